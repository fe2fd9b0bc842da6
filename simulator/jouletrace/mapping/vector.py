"""Vector work as commands: operands stream through the vector unit chunk by chunk.

One sweep (:mod:`jouletrace.mapping.sweeps`) of three chunks, two copies of the buffer::

    vector.load   [x0][x1][x2]
    vector            [0] [1] [2]
    vector.store         [y0] [y1] [y2]

A *chunk* has as many elements as ``vector.chunk`` holds of the longest operand, fewer if one copy of
``buffers.vector`` is too small for a chunk of every operand and result; the last chunk is smaller. Operands
shorter than the longest (weights of a norm, labels) are loaded with the first chunks, short results
(statistics, sums) stored with the last; only where all advance in step (pools, cells) they are spread in
proportion.

A copy of the buffer is taken (``vector.free``) by the first load of a chunk and given back when computing has
read it; results have their own hand-shake (``vector.out.free``, ``vector.out.full``), so that storing one
chunk, computing the next and loading the one after overlap. Loads run ahead by one copy less than there are.

Computing takes one cycle for every ``lanes`` primitive operations (the unit is pipelined: each primitive
takes one slot), and at least one slot per element that passes. A stream starts anew whenever it changes
operand, and for every row of a gather or scatter. Where ``vector.load_also`` names further streams, operands take
turns on them, each with its own hand-shake, and are loaded side by side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.fusion import NO_FUSION, FusionPlan
from jouletrace.mapping.plan import Base
from jouletrace.mapping.program import Action
from jouletrace.mapping.sweeps import Operand, Sweep, operands, sweeps
from jouletrace.mapping.transfer import Memory, Transfer, ceil_div
from jouletrace.trace.model import Op, Pool, Tensor, Trace
from jouletrace.units import show_bytes

__all__ = ["chunk_elements", "map_host", "map_vector"]

BUFFER = "vector"


def map_vector(
    op: Op, trace: Trace, hardware: Hardware, memory: Memory, fusion: FusionPlan = NO_FUSION, base: Base | None = None
) -> int:
    """Maps one op into the open builder op; returns its tiles (chunks of all sweeps).

    Operands and results that ``fusion`` keeps on chip are computed on and not moved. Chunks are as long as those
    of ``base`` where they fit. Kinds that the hardware leaves to its host go there. An op without work (``sync``)
    becomes one command of no cycles, so that others can wait for it.

    Raises MappingError for unknown functions, for kinds that need the array, and if not even one element of
    every operand fits ``buffers.vector``.
    """
    if hardware.host is not None and op.kind in hardware.host.kinds:
        return map_host(op, trace, hardware, memory)
    planned, limits = _planned(op, trace, hardware, base)
    if not planned:
        sequencer = memory.builder.engine("sequencer", "control")
        memory.builder.emit([memory.builder.command(op.kind, [(sequencer, 0)])])
        return 0
    tiles = 0
    for i, (sweep, limit) in enumerate(zip(planned, limits, strict=True)):
        signals = any(later.after_stores for later in planned[i + 1 : i + 2])
        tiles += _Stage(op, trace, memory, fusion, sweep, limit, signals).emit()
    return tiles


def _planned(op: Op, trace: Trace, hardware: Hardware, base: Base | None) -> tuple[list[Sweep], list[int]]:
    """The sweeps of an op, and the longest chunk of each: as the base op has it, where it fits."""
    bits = _fetched_bits(op, trace)
    chunk = chunk_elements((*op.reads, *op.writes), trace, hardware, bits)
    if base is not None:
        names = (*base.op.reads, *base.op.writes)
        given = chunk_elements(names, base.trace, hardware, _fetched_bits(base.op, base.trace))
        chunk = min(chunk, given or chunk)
    planned = [_packed(sweep, op, trace, hardware) for sweep in sweeps(op, trace, chunk) if sweep.longest]
    limits = [chunk_elements(_streamed(sweep), trace, hardware, bits) for sweep in planned]
    if base is not None:
        whole, given = _planned(base.op, base.trace, hardware, None)
        if len(whole) == len(planned):
            limits = [min(own, other or own) for own, other in zip(limits, given, strict=True)]
    return planned, limits


def _packed(sweep: Sweep, op: Op, trace: Trace, hardware: Hardware) -> Sweep:
    """The same sweep with a pool's indices in whole words of the datapath, as the hardware packs them."""
    bits = hardware.vector.pool_index_bits
    if bits is None or not isinstance(op.nest, Pool):
        return sweep

    def words(operand: Operand) -> Operand:
        if not _is_index(trace.tensor[operand.tensor]):
            return operand
        return replace(operand, words=ceil_div(operand.words * bits, hardware.word_bits))

    return replace(sweep, loads=tuple(map(words, sweep.loads)), stores=tuple(map(words, sweep.stores)))


def _is_index(tensor: Tensor) -> bool:
    return tensor.role == "mask" and tensor.format == "int"


def _fetched_bits(op: Op, trace: Trace) -> Mapping[str, int]:
    """Bits that are fetched of each element of what an op reads; the most where two reads are of one tensor."""
    bits: dict[str, int] = {}
    for name, fetched in zip(op.reads, trace.bits_read(op), strict=True):
        bits[name] = max(bits.get(name, 0), fetched)
    return bits


def _streamed(sweep: Sweep) -> list[str]:
    return [o.tensor for o in (*sweep.loads, *sweep.stores)]


def map_host(op: Op, trace: Trace, hardware: Hardware, memory: Memory) -> int:
    """Maps any op onto the host CPU: cycles per element of its longest operand, or per MAC.

    The host's cycles include its memory accesses, so it holds no stream and no port; the DRAM traffic is
    counted, each operand once.
    """
    host = hardware.host
    if host is None:
        raise MappingError(
            f"op {op.name!r} cannot run on a host: hardware {hardware.name!r} has none; add host to the spec"
        )
    loads, stores = operands(op, trace)
    bits = _fetched_bits(op, trace)
    elements = op.macs or max((o.words for o in (*loads, *stores)), default=0)
    host_cycles = elements * host.cycles_per_element * hardware.clock_hz / host.clock_hz
    counts: list[tuple[Action, int]] = [(("host", "element", ""), elements)]
    for write, moved in ((False, loads), (True, stores)):
        for operand in moved:
            tensor = trace.tensor[operand.tensor]
            width = bits.get(tensor.name, tensor.bits)
            transfer = Transfer("", BUFFER, write, tensor.role, operand.words, width)
            counts += [(action, n) for action, n in memory.counts(transfer) if action[0] == "dram"]
    engine = memory.builder.engine("host", "host")
    cycles = ceil_div(host_cycles.numerator, host_cycles.denominator)
    memory.builder.emit([memory.builder.command("host", [(engine, cycles)], counts=counts)])
    return 1


def chunk_elements(names: Sequence[str], trace: Trace, hardware: Hardware, fetched_bits: Mapping[str, int]) -> int:
    """Elements of one chunk when these tensors stream together; 0 if not one of each fits the buffer.

    Planned for whole tensors, also where an op works on a part of them.
    """
    if not names:
        return 1
    if BUFFER not in hardware.buffers:
        raise MappingError(
            f"hardware {hardware.name!r} has no buffers.{BUFFER}, which vector work needs; add it to the spec"
        )
    tensors = [trace.tensor[name] for name in dict.fromkeys(names)]
    bits = [hardware.storage_bits(fetched_bits.get(t.name, t.bits)) for t in tensors]
    sizes = [(t.elements, b) for t, b in zip(tensors, bits, strict=True)]
    _, widest = max(sizes)  # of the longest ones
    limit, room = max(1, 8 * hardware.vector.chunk_bytes // widest), 8 * hardware.buffers[BUFFER].size_bytes

    def needed(chunk: int) -> int:
        return sum([min(chunk, elements) * b for elements, b in sizes])

    return limit if needed(limit) <= room else bisect_right(range(1, limit), room, key=needed)


@dataclass(frozen=True, slots=True)
class _Share:
    """How a total is spread over chunks: ``each`` from chunk ``first`` on, until it is used up."""

    total: int
    each: int
    first: int = 0

    def at(self, chunk: int) -> int:
        left = self.total - (chunk - self.first) * self.each
        return max(0, min(self.each, left)) if chunk >= self.first else 0

    @property
    def changes(self) -> tuple[int, ...]:
        """Chunks at which another amount than before may be due."""
        if not self.total:
            return ()
        return self.first, self.first + self.total // self.each, self.first + ceil_div(self.total, self.each)


Shares = Mapping[Operand, _Share]


class _Moves:
    """Operands that are moved in one direction, on one stream or several, and their shares."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self._known: dict[int, list[tuple[Operand, int]]] = {}

    def at(self, chunk: int) -> list[tuple[Operand, int]]:
        """The operands of which this chunk has something, and how much."""
        found = self._known.get(chunk)
        if found is None:
            every = [(operand, share.at(chunk)) for operand, share in self.shares.items()]
            found = self._known[chunk] = [(operand, words) for operand, words in every if words]
        return found


class _Stage:
    """One sweep on its way into the program.

    ``limit``: the elements of its longest chunk. ``signals``: the next sweep loads what this one stores, and has to
    be told.
    """

    def __init__(
        self, op: Op, trace: Trace, memory: Memory, fusion: FusionPlan, sweep: Sweep, limit: int, signals: bool
    ) -> None:
        self.trace, self.memory, self.sweep, self.signals = trace, memory, sweep, signals
        self.hardware, self.builder = memory.hardware, memory.builder
        self.fetched_bits = dict(_fetched_bits(op, trace))
        if self.hardware.vector.pool_index_bits is not None and isinstance(op.nest, Pool):
            named = (t for t in map(trace.tensor.__getitem__, (*op.reads, *op.writes)) if _is_index(t))
            self.fetched_bits |= {t.name: self.hardware.word_bits for t in named}
        if not limit:
            raise MappingError(
                f"op {op.name!r} streams {len(set(_streamed(sweep)))} operands and results together, and "
                f"buffers.{BUFFER} of hardware {self.hardware.name!r} "
                f"({show_bytes(memory.buffer(BUFFER).size_bytes)}) is too small for one element of each; "
                "make it larger"
            )
        self.chunk = limit // sweep.row * sweep.row if sweep.row <= limit else limit
        self.chunks = ceil_div(sweep.longest, self.chunk)
        # Short operands first and short results last: the stream of a long one is not interrupted.
        loads = sorted(sweep.loads, key=lambda o: o.words)
        stores = sorted(sweep.stores, key=lambda o: -o.words)
        self.operands: Shares = {o: self._share(o.words) for o in loads}
        self.results: Shares = {o: self._share(o.words, last=True) for o in stores}
        self.stores = _Moves({o: s for o, s in self.results.items() if fusion.writes_dram(op.name, o.tensor)})
        vector = self.hardware.vector
        # What the sweep before it stored is awaited on one stream.
        streams = (vector.load,) if sweep.after_stores else (vector.load, *vector.load_also)
        self.stream_of = {o: streams[i % len(streams)] for i, o in enumerate(self.operands)}
        self.loads = _Moves({o: s for o, s in self.operands.items() if fusion.reads_dram(op.name, o.tensor)})
        self.loads_of = {
            stream: _Moves({o: s for o, s in self.loads.shares.items() if self.stream_of[o] == stream})
            for stream in streams
        }
        # The stream on which loads and stores take turns, so that each one starts anew.
        both = self.loads.shares and self.stores.shares and vector.store in self.stream_of.values()
        self.taken_in_turns = vector.store if both else None
        self._pools: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.elements = self._in_proportion(sweep.elements)
        self.sets = (
            _Share(sweep.sets, sweep.sets, self.chunks - 1)
            if sweep.sets <= self.chunk
            else self._in_proportion(sweep.sets)
        )

    def emit(self) -> int:
        """Writes the commands, equal chunks as few commands and a repetition; returns the chunks.

        Step s loads chunk s + ahead, then computes and stores chunk s.
        """
        shares = (*self.operands.values(), *self.results.values(), self.elements, self.sets)
        changes = {0, self.chunks}.union(*(share.changes for share in shares))
        # A chunk beside a change may open or close a run, and so has a command of its own.
        cuts = {c + d for c in changes for d in (-1, 0, 1) if 0 <= c + d <= self.chunks}
        ahead = self.memory.buffer(BUFFER).copies - 1
        for step, then in pairwise(sorted(cuts | {c - ahead for c in cuts})):
            commands = self._load(step + ahead) if step + ahead < self.chunks else []
            if step >= 0:
                commands += [self._compute(step), *self._store(step)]
            self.builder.emit(commands, times=then - step)
        return self.chunks

    def _in_proportion(self, total: int) -> _Share:
        return _Share(total, ceil_div(total * self.chunk, self.sweep.longest))

    def _share(self, words: int, last: bool = False) -> _Share:
        """A full chunk each from the first one on, or up to the last one."""
        if self.sweep.in_step:
            return self._in_proportion(words)
        return _Share(words, self.chunk, self.chunks - ceil_div(words, self.chunk) if last else 0)

    def _compute(self, chunk: int) -> int:
        """The command that works on one chunk: primitive operations, and words of the buffer."""
        counts: Counter[Action] = Counter()
        for share, work in ((self.elements, self.sweep.work), (self.sets, self.sweep.set_work)):
            for primitive, n in work:
                counts["vector", f"{primitive}_fp32", ""] += n * share.at(chunk)
        slots = max(counts.total(), *(s.at(chunk) for s in (*self.operands.values(), *self.results.values())))
        word_bits = self.memory.buffer(BUFFER).word_bits
        for access, shares in (("read", self.operands), ("write", self.results)):
            for operand, share in shares.items():
                tensor = self.trace.tensor[operand.tensor]
                bits = share.at(chunk) * self.hardware.storage_bits(self._bits(tensor))
                counts[f"buffer.{BUFFER}", access, tensor.role] += ceil_div(bits, word_bits)
        takes: list[tuple[int, int]] = []
        gives: list[tuple[int, int]] = []
        for stream in self._loading(chunk):
            takes += self._credit("full", stream)
            gives += self._credit("free", stream)
        if self.stores.at(chunk):
            takes += self._credit("out.free")
            gives += self._credit("out.full")
        hold = (self.builder.engine("vector", "vector"), ceil_div(slots, self.hardware.vector.lanes))
        return self.builder.command("compute", [hold], takes, gives, counts=counts.items())

    def _loading(self, chunk: int) -> list[str]:
        """The streams that load something of this chunk."""
        return list(dict.fromkeys([self.stream_of[operand] for operand, _ in self.loads.at(chunk)]))

    def _load(self, chunk: int) -> list[int]:
        commands: list[int] = []
        for stream in self._loading(chunk):
            takes = self._credit("free", stream)
            if self.sweep.after_stores and chunk == 0:
                takes = takes + self._credit("stored")
            gives = self._credit("full", stream)
            commands += self._commands("load", stream, chunk, self.loads_of[stream], takes, gives)
        return commands

    def _store(self, chunk: int) -> list[int]:
        gives = self._credit("out.free")
        if self.signals and chunk == self.chunks - 1:
            gives = gives + self._credit("stored")
        stream = self.hardware.vector.store
        return self._commands("store", stream, chunk, self.stores, self._credit("out.full"), gives)

    def _commands(
        self,
        name: str,
        stream: str,
        chunk: int,
        moves: _Moves,
        takes: list[tuple[int, int]],
        gives: list[tuple[int, int]],
    ) -> list[int]:
        """The transfers of one chunk in one direction; the first takes the credits, the last gives."""
        transfers = self._transfers(name == "store", stream, chunk, moves)
        last = len(transfers) - 1
        return [
            self.memory.command(name, transfer, takes if i == 0 else (), gives if i == last else ())
            for i, transfer in enumerate(transfers)
        ]

    def _transfers(self, write: bool, stream: str, chunk: int, moves: _Moves) -> list[Transfer]:
        before, now, after = moves.at(chunk - 1), moves.at(chunk), moves.at(chunk + 1)
        end = len(now) - 1
        found: list[Transfer] = []
        for i, (operand, words) in enumerate(now):
            tensor = self.trace.tensor[operand.tensor]
            pieces, opens, closes = [words], True, True
            if operand.row:
                rows, rest = divmod(words, operand.row)
                pieces = [operand.row] * rows + [rest] * (rest > 0)
            elif stream != self.taken_in_turns:
                opens = i > 0 or not before or before[-1][0] != operand
                closes = i < end or not after or after[0][0] != operand
            bits = self._bits(tensor)
            found += [Transfer(stream, BUFFER, write, tensor.role, n, bits, opens, closes) for n in pieces]
        return found

    def _bits(self, tensor: Tensor) -> int:
        return self.fetched_bits.get(tensor.name, tensor.bits)

    def _credit(self, name: str, stream: str = "") -> list[tuple[int, int]]:
        """One credit of the buffer, to take or to give; further streams have their own free and full places."""
        known = self._pools.get((name, stream))
        if known is None:
            beside = "" if stream in ("", self.hardware.vector.load) else f".{stream}"
            copies, buffer = (self.memory.buffer(BUFFER).copies, BUFFER) if name in ("free", "out.free") else (0, "")
            known = self._pools[name, stream] = [(self.builder.pool(f"{BUFFER}.{name}{beside}", copies, buffer), 1)]
        return known
