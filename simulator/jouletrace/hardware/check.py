"""Whether a spec makes sense as a design: its parts agree, it fits its board, its numbers are plausible."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import get_args

from jouletrace.errors import EnergyError, did_you_mean
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import Buffer, ChannelParallel, Current, DramDevice, Hardware, RowStationary, Timing
from jouletrace.hardware.sram import EXTRAPOLATED
from jouletrace.hardware.yaml_text import Path
from jouletrace.units import show_bytes

__all__ = ["BRAM36_BYTES", "URAM_BYTES", "problems", "warnings"]

# data bytes of one block, without its parity bits
BRAM36_BYTES = 4096
URAM_BYTES = 32768

Problem = tuple[Path, str]


def problems(hardware: Hardware) -> list[Problem]:
    """What contradicts itself or exceeds the board, as (path, sentence)."""
    parts = [*_parts(hardware), *_tilings(hardware), *_row_stationary(hardware)]
    return [*parts, *_buffers(hardware), *_dram(hardware), *_limits(hardware)]


def _parts(hardware: Hardware) -> Iterator[Problem]:
    operand = ("operand",) if isinstance(hardware.array, ChannelParallel) else ()
    for name in ("input", "weight", "output", *operand):
        if name not in hardware.streams:
            yield ("streams",), f"needs the stream {name!r}, which a {hardware.array.kind} array uses"
    for name in ("input", "weight", "output", *operand, "vector"):
        if name not in hardware.buffers:
            unit = "the vector unit" if name == "vector" else f"a {hardware.array.kind} array"
            yield ("buffers",), f"needs the buffer {name!r}, which {unit} uses"
    vector = hardware.vector
    named = (("load", vector.load), ("store", vector.store), *(("load_also", name) for name in vector.load_also))
    for key, stream in named:
        if stream not in hardware.streams:
            known = list(hardware.streams)
            yield ("vector", key), f"names no stream of the spec: {stream!r}{did_you_mean(stream, known)}"
    if "vector" in hardware.buffers and vector.chunk_bytes > hardware.buffers["vector"].size_bytes:
        size = show_bytes(hardware.buffers["vector"].size_bytes)
        yield (
            ("vector", "chunk"),
            f"is larger than one copy of the buffer 'vector' ({size}); lower it or enlarge the buffer",
        )
    for key, power in (
        ("chip_static", hardware.board.chip_static),
        ("board_idle", hardware.board.board_idle),
    ):
        if list(power) != sorted(power):
            yield ("board", key), "must be low, typical and high power, in this order"


def _tilings(hardware: Hardware) -> Iterator[Problem]:
    array = hardware.array
    if not isinstance(array, ChannelParallel):
        return
    shapes: set[tuple[object, ...]] = set()
    for i, tile in enumerate(array.tilings):
        path = ("array", "tilings", i)
        if tile.tile_rows > tile.rows or tile.tile_columns > tile.columns:
            yield path, f"has a tile of {tile.tile_rows} x {tile.tile_columns}, larger than its map"
        shape = (tile.phase, tile.out_channels, tile.in_channels, tile.rows, tile.columns, tile.kernel)
        if shape in shapes:
            yield path, "repeats the shape of a tiling before it; each shape and phase may stand once"
        shapes.add(shape)


def _row_stationary(hardware: Hardware) -> Iterator[Problem]:
    array, buffers = hardware.array, hardware.buffers
    if not isinstance(array, RowStationary):
        return
    if "input" in buffers and "output" in buffers:
        maps, sums = buffers["input"], buffers["output"]
        if sums.shares != "input" or (sums.size_bytes, sums.copies) != (maps.size_bytes, maps.copies):
            yield (
                ("buffers", "output"),
                "must share all of 'input' with as many copies: maps and sums are in one global buffer, bank by bank",
            )
        if maps.size_bytes % array.bank_bytes:
            yield ("array", "bank"), f"must divide the global buffer ({show_bytes(maps.size_bytes)}) into whole banks"
    if array.multiplier.brick_bits is not None:
        yield ("array", "multiplier", "brick"), "is not for row_stationary elements; they multiply operands as they are"
    if array.multiplier.format == "int" and hardware.word_bits < array.multiplier.bits:
        yield ("word",), f"must be at least as wide as what an element multiplies ({array.multiplier.bits} bit)"
    shapes: set[tuple[object, ...]] = set()
    for i, tile in enumerate(array.tilings):
        shape = (tile.phase, tile.out_channels, tile.in_channels, tile.rows, tile.columns, tile.kernel)
        if shape in shapes:
            yield (
                ("array", "tilings", i),
                "repeats the shape of a tiling before it; each shape and phase may stand once",
            )
        shapes.add(shape)


def _buffers(hardware: Hardware) -> Iterator[Problem]:
    for name, buffer in hardware.buffers.items():
        path = ("buffers", name)
        if buffer.shares is not None:
            yield from _shared(hardware, name, buffer)
        elif hardware.board.is_fpga:
            blocks = buffer.bram36 * BRAM36_BYTES + buffer.uram * URAM_BYTES
            if buffer.capacity_bytes > blocks:
                needed = -(-(buffer.capacity_bytes - buffer.uram * URAM_BYTES) // BRAM36_BYTES)
                have = f"its {buffer.bram36} BRAM36 and {buffer.uram} URAM ({show_bytes(blocks)})"
                size = f"{buffer.copies} x {show_bytes(buffer.size_bytes)}"
                yield path, f"holds {size}, more than {have}; it takes at least {needed} BRAM36"


def _shared(hardware: Hardware, name: str, buffer: Buffer) -> Iterator[Problem]:
    path = ("buffers", name, "shares")
    other = hardware.buffers.get(buffer.shares or "")
    if other is None:
        known = [key for key in hardware.buffers if key != name]
        yield (
            path,
            f"names no buffer of the spec: {buffer.shares!r}{did_you_mean(buffer.shares or '', known)}",
        )
    elif other is buffer or other.shares is not None:
        yield path, f"must name a buffer with memory of its own (got {buffer.shares!r})"
    elif buffer.bram36 or buffer.uram:
        yield path, f"is the memory of {buffer.shares!r}, so bram36 and uram must be 0 here"
    elif buffer.capacity_bytes > other.capacity_bytes:
        yield (
            path,
            f"needs {show_bytes(buffer.capacity_bytes)}, and {buffer.shares!r} has {show_bytes(other.capacity_bytes)}",
        )


def _dram(hardware: Hardware) -> Iterator[Problem]:
    dram, device = hardware.dram, hardware.dram.device
    if not 0 < dram.efficiency <= 1:
        yield ("dram", "efficiency"), "must be greater than 0 and at most 1"
    if dram.devices.denominator != 1 or dram.interface_bits % 8:
        width = f"{device.rank_width_bits // device.devices_per_rank or 1} bit"
        yield ("dram", "width"), f"must be a multiple of one device's width ({width}) and of 8 bit"
    path: Path = ("dram", "device")
    missing = [
        *(("idd", name) for name in get_args(Current) if name not in device.idd_na),
        *(("measured_ratio", name) for name in get_args(Current) if name not in device.measured_ratio),
        *(("timing_cycles", name) for name in get_args(Timing) if name not in device.timing_cycles),
    ]
    for key, name in missing:
        yield (*path, key), f"needs {name}"
    for name, ratio in device.measured_ratio.items():
        if list(ratio) != sorted(ratio):
            yield (*path, "measured_ratio", name), "must be low, mean and high ratio, in this order"
    if not missing:
        yield from _currents(device)


def _currents(device: DramDevice) -> Iterator[Problem]:
    """Currents whose differences would be negative energies."""
    idd, clocks = device.idd_na, device.timing_cycles
    currents: tuple[Current, ...] = ("IDD4R", "IDD4W", "IDD5")
    for name in currents:
        if idd[name] < idd["IDD3N"]:
            yield (
                ("dram", "device", "idd", name),
                "must be at least IDD3N, the current of open rows that do nothing",
            )
    if idd["IDD0"] * clocks["tRC"] < idd["IDD3N"] * clocks["tRAS"] + idd["IDD2N"] * clocks["tRP"]:
        yield ("dram", "device", "idd", "IDD0"), "must be more than the standby currents over tRAS and tRP"


def _limits(hardware: Hardware) -> Iterator[Problem]:
    """What the design takes of its board, and what there is."""
    board = hardware.board
    if not board.is_fpga:
        return
    lanes, unit, vector = hardware.array.lanes, hardware.array.multiplier, hardware.vector
    yield from _limit(
        "dsp", lanes * unit.dsp + vector.dsp, board.dsp, hardware,
        f"{lanes} lanes of {unit.dsp} and {vector.dsp} in the vector unit", ("array",), "fewer lanes",
    )  # fmt: skip
    for block, have in (("bram36", board.bram36), ("uram", board.uram)):
        uses = {name: int(getattr(buffer, block)) for name, buffer in hardware.buffers.items()}
        listed = ", ".join(f"{name} {n}" for name, n in uses.items() if n)
        yield from _limit(block, sum(uses.values()), have, hardware, listed, ("buffers",), "smaller or fewer buffers")


def _limit(
    what: str, used: int, have: int, hardware: Hardware, listed: str, path: Path, cure: str
) -> Iterator[Problem]:
    if used > have:
        yield (
            path,
            f"needs {used} {what} ({listed}), and board {hardware.board.name!r} has {have}: "
            f"{used - have} too many; take {cure}, or another board",
        )


def warnings(hardware: Hardware) -> list[str]:
    """What is allowed but looks like a slip, as ``path: sentence``."""
    found: list[str] = []

    def expect(path: str, value: float, low: float, high: float, unit: str) -> None:
        if not low <= value <= high:
            found.append(f"{path}: {value:.4g} {unit} lies outside the usual {low:g} to {high:g} {unit}; check it")

    expect("clock", hardware.clock_hz / 1e6, 10, 5000, "MHz")
    expect("dram.efficiency", float(hardware.dram.efficiency), 0.3, 1, "of the peak")
    peak = Fraction(2 * hardware.dram.interface_bits, 8 * hardware.dram.device.clock_period_ps) * 10**12
    share = float(hardware.dram.bandwidth_bytes_per_second / peak)
    if hardware.energy.dram is None:
        expect("dram.bandwidth", share, 0.4, 1.1, "of what the device and width allow")
    try:
        prices = price_list(hardware)
    except EnergyError as error:
        return [*found, *error.problems]
    for action in ("read", "write"):
        price = prices.get(("dram", action))
        if price is not None:
            expect(f"energy of dram {action}", price.energy_aj / 8e6, 1, 100, "pJ/bit")
    for (component, action), price in prices.items():
        if component in ("array", "vector") and action != "idle":
            expect(f"energy of {component} {action}", price.energy_aj / 1e6, 0.001, 1000, "pJ")
        elif component.startswith("buffer.") and action == "read":
            expect(f"energy of {component}", price.energy_aj / 1e6, 0.01, 1000, "pJ")
        if EXTRAPOLATED in price.source and action == "read":
            found.append(f"energy of {component}: no memory of about its size is in the table; {price.source}")
    energy = hardware.energy
    tables = {t.name: t for t in (energy.array, energy.buffers, energy.vector, energy.host, energy.dram) if t}
    for table in tables.values():
        if table.normalised_to is not None and (len(tables) > 1 or energy.dram is None):
            found.append(
                f"energy: table {table.name!r} is in multiples of {table.normalised_to}, and stands beside "
                "prices in joules; their sum means nothing"
            )
    return found
