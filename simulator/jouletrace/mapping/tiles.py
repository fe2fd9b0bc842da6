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

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.designs import Same, searched
from jouletrace.mapping.loops import Loops, array_of, channels_at_once
from jouletrace.mapping.remembered import Seen
from jouletrace.mapping.tile_costs import costs, under
from jouletrace.mapping.tile_scores import Array, Costs, least, scores
from jouletrace.mapping.transfer import ceil_div
from jouletrace.store.settings import is_off
from jouletrace.trace.model import Conv, Op
from jouletrace.units import show_bytes

__all__ = ["Tile", "choose", "footprint_bytes", "part_sizes", "stored_channels"]

# How many candidates are kept for searches on the same design with another DRAM, clock or prices: 72 bytes each.
CANDIDATES = 500_000


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
    smallest = [units]
    while smallest[-1] > 1:
        smallest.append(ceil_div(units, ceil_div(units, smallest[-1] - 1)))  # one part more, or as many as it takes
    return sorted({min(size + i, units) * unit for size in smallest for i in range(phases)})


def stored_channels(hardware: Hardware, channels: int, bits: int, stream: str, full: int) -> int:
    """Channels per pixel as they lie in DRAM: whole beats of the stream.

    Where loop bounds are fixed at synthesis (``edge_tiles: full``) a map is stored in groups of the array's channels,
    except the network's input, which the host writes as it is.
    """
    edge_full = array_of(hardware).schedule.edge_tiles == "full"
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
    for given in (base, _published(op, loops, hardware)):
        if given is not None and _fits(given, loops, hardware):
            return given
    found = _search(loops, hardware) if is_off() else _searched(loops, Same(hardware))
    if found is None:
        raise _too_small(op, _smallest(loops, hardware), loops, hardware)
    return found


def _published(op: Op, loops: Loops, hardware: Hardware) -> Tile | None:
    nest = op.nest
    array = array_of(hardware)
    if not isinstance(nest, Conv) or nest.G != 1:
        return None
    shape = (nest.role, nest.K, nest.C, nest.OY, nest.OX, nest.R)
    for t in array.tilings:
        if shape == (t.phase, t.out_channels, t.in_channels, t.rows, t.columns, t.kernel):
            channels = channels_at_once(loops, hardware)
            return Tile(array.out_channels, channels, t.tile_rows, t.tile_columns, t.resident_channels)
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


def _smallest(loops: Loops, hardware: Hardware) -> Tile:
    return Tile(array_of(hardware).out_channels, channels_at_once(loops, hardware), 1, 1, 0)


# -- the search


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Candidates of a search, int64[candidates] for every field of a tile, and what they take."""

    tilings: tuple[Array, ...]
    costs: Costs

    def contenders(self) -> _Found:
        """Those that are chosen on some DRAM, at some clock or at some prices, and few others."""
        few = self.costs.contenders()
        return _Found(tuple(axis[few] for axis in self.tilings), self.costs.at(few))

    def best(self, loops: Loops, hardware: Hardware) -> Tile:
        """The one of the least score; among equal ones, the one that moves the least, then the first."""
        which = least(scores(self.costs, loops, hardware), self.costs.words)
        return Tile(*(int(axis[which]) for axis in self.tilings))


@lru_cache(maxsize=4096)
def _searched(loops: Loops, same: Same) -> Tile | None:
    found = _KEPT.contenders(loops, Seen(searched(same.hardware), same.hardware))
    return None if found is None else found.best(loops, same.hardware)


class _Kept:
    """Candidates that may be chosen of each op on each design; the least recently used ones go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Loops, Seen], _Found | None] = OrderedDict()
        self.candidates = 0

    def __len__(self) -> int:
        return len(self._known)

    def contenders(self, loops: Loops, design: Seen) -> _Found | None:
        key = loops, design
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = _all(loops, design.hardware)
        found = self._known[key] = None if found is None else found.contenders()
        self.candidates += _places(found)
        while self.candidates > CANDIDATES and len(self._known) > 1:
            self.candidates -= _places(self._known.popitem(last=False)[1])
        return found


def _places(found: _Found | None) -> int:
    """Candidates that are held, and as much as 16 of them for the op."""
    return 16 + (0 if found is None else len(found.costs.words))


_KEPT = _Kept()


def _search(loops: Loops, hardware: Hardware) -> Tile | None:
    found = _all(loops, hardware)
    return None if found is None else found.best(loops, hardware)


def _all(loops: Loops, hardware: Hardware) -> _Found | None:
    """Every tiling that fits, if the smallest does."""
    if not _fits(_smallest(loops, hardware), loops, hardware):
        return None
    candidates = _candidates(loops, hardware)
    return _Found(np.broadcast_arrays(*candidates), costs(loops, hardware, *candidates))


def _candidates(loops: Loops, hardware: Hardware) -> tuple[Array, Array, Array, Array, Array]:
    """The tilings that fit; channels as one number each where the array fixes them."""
    array = array_of(hardware)
    # A matrix product has no halo: its channel tiles lie one after the other, and one burst may cover many.
    free = array.schedule.tile_channels == "free" or loops.is_product
    at_once = channels_at_once(loops, hardware)
    axes = (
        part_sizes(loops.out_channels, array.out_channels) if free else [array.out_channels],
        part_sizes(loops.in_channels, at_once) if free else [at_once],
        part_sizes(loops.rows, phases=loops.step[0][1]),
        part_sizes(loops.columns, phases=loops.step[1][1]),
        [1, 0],  # of equal tilings, the one that keeps its weights
    )
    grid = np.meshgrid(*(np.array(axis, dtype=np.int64) for axis in axes), indexing="ij", sparse=True)
    out, in_, rows, columns, keep = grid
    # The largest block whose weights (or kernel gradients) fit; a larger one never moves more bytes.
    pairs = -(-loops.in_channels // in_) * in_ * loops.taps * hardware.storage_bits(loops.bits[1])
    block = hardware.buffers["weight"].size_bytes * 8 // pairs // out * out
    resident = keep * np.minimum(block, -(-loops.out_channels // out) * out)
    fits = np.broadcast_to((keep == 0) | (resident > 0), np.broadcast_shapes(*(axis.shape for axis in grid)))
    for name, size in _footprint(loops, hardware, out, in_, rows, columns, resident).items():
        fits = fits & (size <= hardware.buffers[name].size_bytes)
    places = np.nonzero(fits)
    kept = resident[places[0], places[1], 0, 0, places[4]]
    out, in_, rows, columns = (axis.ravel()[place] for axis, place in zip(grid[:4], places[:4], strict=True))
    return (out, in_, rows, columns, kept) if free else (out[0], in_[0], rows, columns, kept)


def _footprint(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> dict[str, Array]:
    x, w, y = (hardware.storage_bits(b) for b in loops.bits)
    in_rows, in_columns = under(rows, loops, 0), under(columns, loops, 1)
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
