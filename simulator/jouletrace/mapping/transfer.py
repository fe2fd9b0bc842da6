"""Moving bytes between DRAM and a buffer: how long it takes, and what it accesses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from jouletrace.errors import MappingError, did_you_mean
from jouletrace.hardware.spec import Buffer, Hardware, Stream
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Action, Port

__all__ = ["Memory", "Transfer", "ceil_div", "port"]

T = TypeVar("T")


def ceil_div(a: int, b: int) -> int:
    """
    >>> ceil_div(7, 2)
    4
    """
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transfer on one stream: ``words`` elements of ``bits`` each, in ``bursts`` of contiguous addresses.

    ``opens`` and ``closes`` say whether a contiguous run of transfers begins or ends here; a stream that
    restarts at every transfer ignores them. ``coded_bytes``: the bytes in DRAM, where what is there is coded and the
    buffer holds it decoded.
    """

    stream: str
    buffer: str
    write: bool
    role: str
    words: int
    bits: int
    opens: bool = True
    closes: bool = True
    coded_bytes: int | None = None
    bursts: int = 1


def port(hardware: Hardware, engine: int) -> Port:
    """How a hardware's streams share the DRAM port, which is the engine of this index."""
    rate = _bytes_per_cycle(hardware)
    if hardware.dram.port != "round_robin":
        return Port(bytes_per_cycle=rate)
    return Port("round_robin", engine, _ceil(Fraction(hardware.dram.grant_bytes) / rate), rate)


def _bytes_per_cycle(hardware: Hardware) -> Fraction:
    """Of the port, or of the share that each stream has of it."""
    streams = len(hardware.streams) if hardware.dram.port == "stream_share" else 1
    return hardware.dram_bytes_per_cycle / streams


class Memory:
    """The DMA streams and the DRAM port of one hardware, as commands of one program."""

    def __init__(self, hardware: Hardware, builder: ProgramBuilder) -> None:
        self.hardware = hardware
        self.builder = builder
        self._shared = hardware.dram.port != "stream_share"
        self._bytes_per_cycle = _bytes_per_cycle(hardware)
        # Tiles of a kind are moved again and again.
        self._known: dict[Transfer, tuple[list[tuple[int, int]], int, list[tuple[Action, int]], int]] = {}
        self.port_engine = builder.engine("dram port", "dram") if self._shared else -1

    def stream(self, name: str) -> Stream:
        return _named(self.hardware, "streams", name, self.hardware.streams)

    def buffer(self, name: str) -> Buffer:
        return _named(self.hardware, "buffers", name, self.hardware.buffers)

    def stream_engine(self, name: str) -> int:
        """The engine of a DMA stream."""
        return self.builder.engine(f"dma {name}", "dma")

    def port(self) -> Port:
        """How this hardware's streams share the DRAM port."""
        return port(self.hardware, self.port_engine)

    def start_cycles(self, transfer: Transfer) -> int:
        """Start cost of a transfer: at each burst, or only at breaks and where a contiguous run opens or closes."""
        stream = self.stream(transfer.stream)
        if stream.restarts == "transfer":
            return transfer.bursts * stream.start_cycles
        paid = transfer.opens if stream.start_paid_at == "open" else transfer.closes
        return (transfer.bursts - 1 + paid) * stream.start_cycles

    def cycles(self, transfer: Transfer) -> int:
        """Cycles for which the stream is held, start cost included; on a shared port, without what that takes."""
        width = self._stream_cycles(transfer)
        share = 0 if self._shared else _ceil(Fraction(self._size_bytes(transfer)) / self._bytes_per_cycle)
        return self.start_cycles(transfer) + max(width, share)

    def command(
        self,
        name: str,
        transfer: Transfer,
        takes: Iterable[tuple[int, int]] = (),
        gives: Iterable[tuple[int, int]] = (),
    ) -> int:
        """The index of the command that makes this transfer."""
        stream = self.stream_engine(transfer.stream)  # every op asks for its engines
        known = self._known.get(transfer)
        if known is None:
            start = self.start_cycles(transfer)
            holds = [(stream, start + self._stream_cycles(transfer))]
            if self._shared:
                holds.append((self.port_engine, 0))  # as long as its bytes take
            known = self._known[transfer] = holds, start, self.counts(transfer), self._size_bytes(transfer)
        holds, start, counts, size_bytes = known
        return self.builder.command(name, holds, takes, gives, start, counts, size_bytes)

    def counts(self, transfer: Transfer) -> list[tuple[Action, int]]:
        """Accesses of a transfer: DRAM bytes, row activations, and words of the buffer."""
        size_bytes, role = self._size_bytes(transfer), transfer.role
        rows = ceil_div(size_bytes, self.hardware.dram.row_bytes)
        rows = max(rows, min(transfer.bursts, size_bytes))  # each burst opens a row
        words = ceil_div(transfer.words * self._bits(transfer), self.buffer(transfer.buffer).word_bits)
        dram, buffer = ("write", "read") if transfer.write else ("read", "write")
        return [
            (("dram", dram, role), size_bytes),
            (("dram", "activate", role), rows),
            ((f"buffer.{transfer.buffer}", buffer, role), words),
        ]

    def _bits(self, transfer: Transfer) -> int:
        return self.hardware.storage_bits(transfer.bits)

    def _size_bytes(self, transfer: Transfer) -> int:
        return ceil_div(self._size_bits(transfer), 8)

    def _size_bits(self, transfer: Transfer) -> int:
        coded = transfer.coded_bytes
        return transfer.words * self._bits(transfer) if coded is None else 8 * coded

    def _stream_cycles(self, transfer: Transfer) -> int:
        """Cycles that the stream's width needs."""
        return ceil_div(self._size_bits(transfer), self.stream(transfer.stream).width_bits)


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)


def _named(hardware: Hardware, what: str, name: str, known: dict[str, T]) -> T:
    if name not in known:
        raise MappingError(
            f"hardware {hardware.name!r} has no {what} entry {name!r}, which its mapping needs"
            f"{did_you_mean(name, list(known))}; add {what}.{name} to the spec"
        )
    return known[name]
