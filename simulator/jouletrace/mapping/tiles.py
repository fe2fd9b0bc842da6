"""Tiles of a channel-parallel array: which fit, which a publication fixes, and which the search chooses.

A tile is (out channels, in channels, rows, columns) of one load-compute-store group, plus how many output channels
keep their weights on chip (``resident``; 0 means that weights stream with every step).

The search enumerates every tiling that can matter (for q parts of an axis only the smallest tiles with q parts),
drops what does not fit, and takes the least busy bottleneck: for each candidate the busy cycles of every engine are
summed over the whole op, and so is the slower of load and compute over the steps, inner and edge tiles apart; the
largest of these, plus the first load that nothing can hide, is its score. The score chooses; how long the op takes is
found by executing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import MappingError
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.loops import Loops
from jouletrace.mapping.transfer import ceil_div
from jouletrace.trace.model import Conv, Op
from jouletrace.units import show_bytes

__all__ = ["Tile", "choose", "footprint_bytes", "part_sizes", "scores", "stored_channels"]

Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tile:
    """One tiling; all numbers in elements of the loops of one packed group."""

    out_channels: int
    in_channels: int
    rows: int
    columns: int
    resident: int


def part_sizes(total: int, unit: int = 1, phases: int = 1) -> list[int]:
    """Every tile size that can matter on an axis: the smallest for each number of parts.

    Sizes are multiples of ``unit``. Under a stride of ``phases``, tiles of one axis load the same rows if their
    sizes differ by whole strides, so the sizes up to one stride above the smallest stand for all others.

    >>> part_sizes(10)
    [1, 2, 3, 4, 5, 10]
    >>> part_sizes(20, unit=6)
    [6, 12, 24]
    >>> part_sizes(10, phases=2)
    [1, 2, 3, 4, 5, 6, 10]
    """
    units = ceil_div(total, unit)
    smallest = {ceil_div(units, parts) for parts in range(1, units + 1)}
    return sorted({min(size + i, units) * unit for size in smallest for i in range(phases)})


def stored_channels(hardware: Hardware, channels: int, bits: int, stream: str, full: int) -> int:
    """Channels per pixel as they lie in DRAM: whole beats of the stream.

    Where loop bounds are fixed at synthesis (``edge_tiles: full``) a map is stored in groups of the array's channels,
    except the network's input, which the host writes as it is.
    """
    edge_full = _array(hardware).schedule.edge_tiles == "full"
    beat = max(1, hardware.streams[stream].width_bits // hardware.storage_bits(bits))
    return ceil_div(full if edge_full else channels, beat) * beat


def footprint_bytes(tile: Tile, loops: Loops, hardware: Hardware) -> dict[str, int]:
    """Bytes that one copy of each buffer must hold for this tile."""
    arrays = _footprint(loops, hardware, *(np.array([v], dtype=np.int64) for v in (
        tile.out_channels, tile.in_channels, tile.rows, tile.columns, tile.resident)))  # fmt: skip
    return {name: int(size[0]) for name, size in arrays.items()}


def choose(op: Op, loops: Loops, hardware: Hardware, base: Tile | None = None) -> Tile:
    """The tile of the base op, else the published tile of this shape, where they fit; else the best of the search.

    Raises :class:`MappingError` naming the buffer that is too small for the smallest tile.
    """
    for given in (base, _published(op, hardware)):
        if given is not None and _fits(given, loops, hardware):
            return given
    smallest = Tile(_array(hardware).out_channels, _array(hardware).in_channels, 1, 1, 0)
    if not _fits(smallest, loops, hardware):
        raise _too_small(op, smallest, loops, hardware)
    return _search(loops, _Identity(hardware))


class _Identity:
    """Hardware compared by identity, so that a search is cached per loaded spec."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.hardware is self.hardware

    def __hash__(self) -> int:
        return id(self.hardware)


def _array(hardware: Hardware) -> ChannelParallel:
    assert isinstance(hardware.array, ChannelParallel)
    return hardware.array


def _published(op: Op, hardware: Hardware) -> Tile | None:
    nest = op.nest
    array = _array(hardware)
    if not isinstance(nest, Conv) or nest.G != 1:
        return None
    shape = (nest.role, nest.K, nest.C, nest.OY, nest.OX, nest.R)
    for t in array.tilings:
        if shape == (t.phase, t.out_channels, t.in_channels, t.rows, t.columns, t.kernel):
            return Tile(array.out_channels, array.in_channels, t.tile_rows, t.tile_columns, t.resident_channels)
    return None


def _fits(tile: Tile, loops: Loops, hardware: Hardware) -> bool:
    need = footprint_bytes(tile, loops, hardware)
    return all(size <= hardware.buffers[name].size_bytes for name, size in need.items())


def _too_small(op: Op, tile: Tile, loops: Loops, hardware: Hardware) -> MappingError:
    short = [
        f"buffer {name!r} holds {show_bytes(hardware.buffers[name].size_bytes)} a copy and the smallest tile "
        f"needs {show_bytes(size)}"
        for name, size in footprint_bytes(tile, loops, hardware).items()
        if size > hardware.buffers[name].size_bytes
    ]
    return MappingError(
        f"op {op.name!r} fits no tiling on {hardware.name!r}: {'; '.join(short)}; enlarge the buffer "
        f"(--set buffers.NAME.size='... KiB') or use a smaller array"
    )


@lru_cache(maxsize=4096)
def _search(loops: Loops, identity: _Identity) -> Tile:
    hardware = identity.hardware
    candidates = _candidates(loops, hardware)
    cost = scores(loops, hardware, *candidates)
    best = int(np.lexsort((_busy(loops, hardware, *candidates)["words"], cost))[0])
    return Tile(*(int(axis[best]) for axis in candidates))


def _candidates(loops: Loops, hardware: Hardware) -> tuple[Array, Array, Array, Array, Array]:
    array = _array(hardware)
    # A matrix product has no halo: its channel tiles lie one after the other, and one burst may cover many.
    free = array.schedule.tile_channels == "free" or (loops.taps == 1 and loops.columns == 1)
    outs = part_sizes(loops.out_channels, array.out_channels) if free else [array.out_channels]
    ins = part_sizes(loops.in_channels, array.in_channels) if free else [array.in_channels]
    grid = np.meshgrid(
        np.array(outs, dtype=np.int64), np.array(ins, dtype=np.int64),
        np.array(part_sizes(loops.rows, phases=loops.step[0][1]), dtype=np.int64),
        np.array(part_sizes(loops.columns, phases=loops.step[1][1]), dtype=np.int64),
        np.array([1, 0], dtype=np.int64), indexing="ij",  # of equal tilings, the one that keeps its weights
    )  # fmt: skip
    out, in_, rows, columns, keep = (axis.ravel() for axis in grid)
    # The largest block whose weights (or kernel gradients) fit; a larger one never moves more bytes.
    pairs = -(-loops.in_channels // in_) * in_ * loops.taps * hardware.storage_bits(loops.bits[1])
    block = hardware.buffers["weight"].size_bytes * 8 // pairs // out * out
    resident = keep * np.minimum(block, -(-loops.out_channels // out) * out)
    axes = (out, in_, rows, columns, resident)
    fits = (keep == 0) | (resident > 0)
    for name, size in _footprint(loops, hardware, *axes).items():
        fits &= size <= hardware.buffers[name].size_bytes
    return tuple(axis[fits] for axis in axes)  # type: ignore[return-value]


def _footprint(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> dict[str, Array]:
    x, w, y = (hardware.storage_bits(b) for b in loops.bits)
    in_rows, in_columns = _under(rows, loops, 0), _under(columns, loops, 1)
    channels = np.minimum(in_, loops.in_channels) if loops.unpadded_input else in_
    input_bits = channels * in_rows * in_columns * x
    whole = -(-loops.in_channels // in_) * in_
    if loops.role == "backward_weight":
        one_tile_map = (rows >= loops.rows) & (columns >= loops.columns)
        kept = np.where(resident == 0, out * in_, np.where(one_tile_map, out, resident) * whole)
        sizes = {"input": input_bits, "operand": out * rows * columns * w, "weight": kept * loops.taps * y}
    else:
        pair = -(-2 // hardware.buffers["weight"].copies)  # streaming weights need two tiles, in all copies together
        kept = np.where(resident == 0, pair * out * in_, resident * whole)
        sizes = {"input": input_bits, "weight": kept * loops.taps * w, "output": out * rows * columns * y}
    return {name: -(-bits // 8) for name, bits in sizes.items()}


def _under(tile: Array, loops: Loops, axis: int) -> Array:
    numerator, denominator = loops.step[axis]
    rows = ((tile - 1) * numerator + loops.span[axis] - 1) // denominator + 1
    return np.minimum(rows, loops.map_rows if axis == 0 else loops.map_columns) if denominator > 1 else rows


def scores(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> Array:
    """The figure by which tilings are compared, in the unit of the spec's objective; smaller is better."""
    busy = _busy(loops, hardware, out, in_, rows, columns, resident)
    engines = [busy[name] for name in busy if name not in ("words", "first")]
    # Engines that are nearly as busy as the bottleneck collide with it now and then; a little of their sum
    # tells apart tilings with the same bottleneck.
    cycles = np.max(engines, axis=0) + busy["first"] + np.sum(engines, axis=0) // 32
    objective = _array(hardware).schedule.objective
    if objective == "cycles":
        return cycles
    prices = price_list(hardware)

    def pj(component: str, action: str, times: int = 1) -> int:
        """A price in whole pJ: as fine as a score needs, and sums of it stay far from 64 bits."""
        return max(1, prices[component, action].energy_aj * times // 10**6)

    word = pj("dram", "read", hardware.storage_bits(max(loops.bits)) // 8)
    waiting = pj("chip", "static") + pj("dram", "background")
    energy = busy["words"] * word + cycles * waiting
    return energy if objective == "energy" else energy // 10**3 * (cycles // 10**3)


def _busy(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> dict[str, Array]:
    """Busy cycles of every engine over the whole op, the words moved, and the first load that nothing hides."""
    array = _array(hardware)
    full = array.schedule.edge_tiles == "full"
    times = loops.images * loops.groups
    m, n = -(-loops.out_channels // out), -(-loops.in_channels // in_)
    r, c = -(-loops.rows // rows), -(-loops.columns // columns)
    if full:
        folds = m * (out // array.out_channels) * n * (in_ // array.in_channels)
        area = r * rows * c * columns * loops.work_rows * loops.work_columns // (loops.rows * loops.columns)
    else:
        whole = -(-loops.out_channels // array.out_channels) * -(-loops.in_channels // array.in_channels)
        folds = np.full_like(out, whole)
        area = np.full_like(out, loops.work_rows * loops.work_columns)
    compute = times * folds * area * loops.taps * array.initiation_interval * loops.passes

    in_area = _axis_sum(loops.rows, rows, loops, 0, full) * _axis_sum(loops.columns, columns, loops, 1, full)
    in_channels = n * in_ if full and not loops.unpadded_input else np.full_like(out, loops.in_channels)
    input_words = times * m * in_area * in_channels
    input_loads = times * m * r * c * n
    pairs = (m * out * n * in_ if full else np.full_like(out, loops.out_channels * loops.in_channels)) // loops.packed
    kernel_words = loops.groups * pairs * loops.taps
    map_words = times * (m * out if full else loops.out_channels) * (
        r * rows * c * columns if full else np.full_like(out, loops.rows * loops.columns)
    )
    words_per_load = input_words // np.maximum(input_loads, 1)
    first = _stream_cycles(hardware, "input", words_per_load, np.ones_like(out), loops.bits[0])
    if loops.role == "backward_weight":
        once = (r * c == 1) & (resident > 0)
        loads = np.where(once, times * m, times * m * n * r * c)
        operand_words = np.where(once, map_words, map_words * n)
        streams = {
            "input": (input_words, input_loads, 0),
            "operand": (operand_words, loads, 1),
            "output": (kernel_words, m, 2),
        }
    else:
        again = 1 if array.schedule.weights_stay_for == "batch" else loops.images
        reloads = np.where(resident == 0, loops.images * r * c, again)
        streams = {
            "input": (input_words, input_loads, 0),
            "weight": (kernel_words * reloads, np.where(resident == 0, input_loads, m * n * again), 1),
            "output": (map_words, times * m * r * c, 2),
        }
    busy = {
        "array": compute,
        "first": first,
        "steps": times * _step_cycles(loops, hardware, folds, m, n, out, rows, columns, resident),
    }
    total = np.zeros_like(out)
    for name, (words, loads, which) in streams.items():
        busy[name] = _stream_cycles(hardware, name, words, loads, loops.bits[which])
        total = total + words
    if hardware.dram.port != "stream_share":
        per_cycle = hardware.dram_bytes_per_cycle
        width = hardware.storage_bits(max(loops.bits))
        busy["port"] = total * width * per_cycle.denominator // (8 * per_cycle.numerator)
    busy["words"] = total
    return busy


def _step_cycles(
    loops: Loops, hardware: Hardware, folds: Array, m: Array, n: Array, out: Array, rows: Array, columns: Array,
    resident: Array,
) -> Array:  # fmt: skip
    """The slower of load and compute, summed over the steps of one image.

    Edge tiles compute less but still pay their start costs, so they are weighed apart from inner ones; channel
    tiles are taken at their average.
    """
    array = _array(hardware)
    full = array.schedule.edge_tiles == "full"
    total = np.zeros_like(out)
    for row_count, row in _edges(loops.rows, rows, full):
        for column_count, column in _edges(loops.columns, columns, full):
            area = row * column * loops.work_rows * loops.work_columns // (loops.rows * loops.columns)
            slowest = folds * area * loops.taps * array.initiation_interval * loops.passes
            under = _under(row, loops, 0) * _under(column, loops, 1)
            loads = [("input", m * under * loops.in_channels, 0)]
            if loops.role == "backward_weight":
                loads.append(("operand", n * row * column * loops.out_channels, 1))
            else:
                weights = loops.out_channels * loops.in_channels * loops.taps // loops.packed
                loads.append(("weight", np.where(resident == 0, weights, 0), 1))
            for name, words, which in loads:
                steps = np.where(words > 0, m * n, 0)
                slowest = np.maximum(slowest, _stream_cycles(hardware, name, words, steps, loops.bits[which]))
            total = total + row_count * column_count * slowest
    return total


def _edges(total: int, tile: Array, full: bool) -> list[tuple[Array, Array]]:
    """(number, size) of the inner tiles of an axis and of its last one."""
    inner = -(-total // tile) - 1
    return [(inner, tile), (np.ones_like(tile), tile if full else total - inner * tile)]


def _stream_cycles(hardware: Hardware, stream: str, words: Array, loads: Array, bits: int) -> Array:
    spec = hardware.streams[stream]
    starts = loads * spec.start_cycles if spec.restarts == "transfer" else spec.start_cycles
    return -(-(words * hardware.storage_bits(bits)) // spec.width_bits) + starts


def _axis_sum(total: int, tile: Array, loops: Loops, axis: int, full: bool) -> Array:
    """Input rows (or columns) loaded over all tiles of an axis."""
    parts = -(-total // tile)
    last = np.where(full, tile, total - (parts - 1) * tile)
    return (parts - 1) * _under(tile, loops, axis) + _under(last, loops, axis)
