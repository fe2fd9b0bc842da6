"""What tilings of a channel-parallel array take, for all candidates of a search at once.

For each candidate the busy cycles of every engine are summed over the whole op, and so is the slower of load and
compute over the steps, inner and edge tiles apart. The five numbers of a tiling (out channels, in channels, rows,
columns, resident) are int64 arrays that broadcast to one length.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.layout import bursts, group_of
from jouletrace.mapping.loops import Loops, array_of, channels_at_once
from jouletrace.mapping.tile_scores import Array, Costs
from jouletrace.mapping.transfer import ceil_div

__all__ = ["costs", "under"]


def costs(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> Costs:
    """What each tiling takes. Depends on ``array``, ``streams`` and ``word`` of the hardware only."""
    array = array_of(hardware)
    full = array.schedule.edge_tiles == "full"
    free_running = array.schedule.swap == "free_running"
    tiling = _Tiling(loops, hardware, out, in_, rows, columns, resident)
    m, n, maps = tiling.m, tiling.n, tiling.maps
    times = loops.images * loops.groups
    if full:
        area = tiling.rows.padded * tiling.columns.padded
        area = _share(area, loops.work_rows * loops.work_columns, loops.rows * loops.columns)
        in_channels = loops.in_channels if loops.unpadded_input else n * in_
        pairs, stored = m * out * n * in_, m * out * tiling.rows.padded * tiling.columns.padded
    else:
        area = np.asarray(loops.work_rows * loops.work_columns)
        in_channels = loops.in_channels
        pairs = np.asarray(loops.out_channels * loops.in_channels)
        stored = np.asarray(loops.out_channels * loops.rows * loops.columns)
    compute = times * tiling.cycles(area)
    input_words = times * m * tiling.rows.read * tiling.columns.read * in_channels
    loads = times * m * n * maps
    kernel_words, map_words = loops.groups * (pairs // loops.packed) * loops.taps, times * stored
    again = loops.images if array.schedule.weights_stay_for == "image" else 1
    moved = [("input", input_words, loads, 0)]
    if loops.role == "backward_weight":
        once = (maps == 1) & (resident > 0)
        moved.append(("operand", np.where(once, map_words, map_words * n), np.where(once, times * m, loads), 1))
        moved.append(("output", kernel_words, m, 2))
    else:
        streaming = resident == 0
        reloads = np.where(streaming, loops.images * maps, again)
        moved.append(("weight", kernel_words * reloads, np.where(streaming, loads, m * n * again), 1))
        moved.append(("output", map_words, times * m * maps, 2))
    engines = [compute, tiling.step_cycles(again), *(tiling.stream_cycles(*stream) for stream in moved)]
    first = tiling.stream_cycles("input", input_words // loads, np.asarray(1), 0)
    words = sum(stream[1] for stream in moved)
    busiest, together = engines[0], engines[0]
    for engine in engines[1:]:
        busiest, together = np.maximum(busiest, engine), together + engine
    if not free_running:
        together = np.asarray(0)
    return Costs(*(np.ravel(figure) for figure in np.broadcast_arrays(busiest, first, together, words)))


class _Axis:
    """Rows (or columns) of all tilings, inner tiles apart from the last one of a map: int64 arrays [edges, tilings].

    Where loop bounds are fixed at synthesis (``full``), or there is one row, all tiles are alike: one edge.
    """

    def __init__(self, loops: Loops, axis: int, tile: Array, *, full: bool) -> None:
        total = (loops.rows, loops.columns)[axis]
        self.parts = _ceil(total, tile)
        self.is_whole = tile >= total
        self.padded = self.parts * tile
        if full or total == 1:
            self.counts, self.sizes = self.parts[None], tile[None]
        else:
            inner = self.parts - 1
            self.counts = np.stack((inner, np.ones_like(inner)))
            self.sizes = np.stack((tile, total - inner * tile))
        self.reads = under(self.sizes, loops, axis)
        self.read = (self.counts * self.reads).sum(axis=0)


class _Tiling:
    """The loops of one op in all tilings."""

    def __init__(
        self, loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
    ) -> None:
        array = array_of(hardware)
        full = array.schedule.edge_tiles == "full"
        self.loops, self.hardware, self.schedule = loops, hardware, array.schedule
        self.out, self.in_, self.resident = out, in_, resident
        self.m, self.n = _ceil(loops.out_channels, out), _ceil(loops.in_channels, in_)
        self.rows, self.columns = _Axis(loops, 0, rows, full=full), _Axis(loops, 1, columns, full=full)
        self.maps = self.rows.parts * self.columns.parts
        at_once = channels_at_once(loops, hardware)
        folds = self.m * (out // array.out_channels) * self.n * (in_ // at_once)
        if not full:
            folds = ceil_div(loops.out_channels, array.out_channels) * ceil_div(loops.in_channels, at_once)
        self._cycles_each = folds * (loops.taps * array.initiation_interval * loops.passes)
        rows_read, columns_read = self.rows.reads[0], self.columns.reads[0]
        self._bursts = {
            "input": self._broken(in_, loops.in_channels, array.in_channels, rows_read, columns_read),
            "operand" if loops.role == "backward_weight" else "output":
                self._broken(out, loops.out_channels, array.out_channels, rows, columns),
        }  # fmt: skip

    def _broken(self, channels: Array, of: int, lanes: int, rows: Array, columns: Array) -> Array | int:
        """Bursts of one tile of a map."""
        group = 0 if self.loops.is_product else group_of(array_of(self.hardware).layout, lanes, of)
        if not group:
            return 1
        return bursts(group, np.minimum(channels, of), rows, columns, self.rows.is_whole, self.columns.is_whole)

    def cycles(self, area: Array) -> Array:
        """Cycles of the array for all channels of an area of the map."""
        return self._cycles_each * _ceil(area, self.loops.fused_positions)

    def stream_cycles(self, stream: str, words: Array, loads: Array, which: int) -> Array:
        """Cycles for ``words`` in ``loads`` tiles; a tile of a map that is read starts anew."""
        spec = self.hardware.streams[stream]
        broken = self._bursts.get(stream, 1)
        anew = spec.restarts == "transfer" or stream in ("input", "operand")
        restarts = loads * broken if anew else 1 + loads * (broken - 1)
        bits = self.hardware.storage_bits(self.loops.bits[which])
        common = gcd(bits, spec.width_bits)
        beats = words if bits == common else words * (bits // common)
        return _ceil(beats, spec.width_bits // common) + restarts * spec.start_cycles

    def step_cycles(self, again: int) -> Array:
        """The slower of load and compute, summed over all steps; weights that stay are fetched ``again`` so often."""
        loops = self.loops
        times = loops.images * loops.groups
        there, fetching = self._image_cycles()
        steps = times * there
        if fetching is not None:
            return steps + loops.groups * again * ((fetching - there) // self.maps)
        if self.schedule.swap != "synchronous" or loops.role == "backward_weight":
            return steps  # there is time to fetch weights ahead, or there are none
        # A block comes at once, in its first reduction loop.
        block = np.minimum(self.resident, self.m * self.out) * self.in_ * loops.taps // loops.packed
        block_cycles = self.stream_cycles("weight", block, np.asarray(1), 1)
        longer = np.maximum(block_cycles - steps // (times * self.m * self.n * self.maps), 0)
        blocks = _ceil(loops.out_channels, np.maximum(self.resident, 1))
        extra = np.where(self.resident > 0, blocks * (self.n + 1) * longer, 0)
        return steps + loops.groups * again * extra

    def _image_cycles(self) -> tuple[Array, Array | None]:
        """The steps of one image; where weights that stay are there, and where they come with every step.

        Edge tiles compute less but still pay their start costs, so they are weighed apart from inner ones; channel
        tiles are taken at their average. With synchronous swaps nothing hides the first load of a reduction loop, and
        only a store overlaps with its last compute. The second is worked out for forward and synchronous swaps only.
        """
        loops, m, n = self.loops, self.m, self.n
        synchronous = self.schedule.swap == "synchronous"
        area = self.rows.sizes[:, None] * self.columns.sizes[None]
        reads = self.rows.reads[:, None] * self.columns.reads[None]
        tiles = self.rows.counts[:, None] * self.columns.counts[None]
        work = _share(area, loops.work_rows * loops.work_columns, loops.rows * loops.columns)
        compute = self.cycles(work)
        steps = m * n
        load = self.stream_cycles("input", m * loops.in_channels * reads, steps, 0)
        streaming = self.resident == 0
        if loops.role == "backward_weight":
            operand = self.stream_cycles("operand", n * loops.out_channels * area, steps, 1)
            load = np.maximum(load, operand)
            slowest = np.maximum(load, compute)
            if synchronous:
                reduced = np.where((self.maps > 1) | streaming, self.maps, n)
                slowest = slowest + (load + compute - slowest) // reduced
            return (tiles * slowest).sum(axis=(0, 1)), None
        words = np.asarray(loops.out_channels * loops.in_channels * loops.taps // loops.packed)
        weights = self.stream_cycles("weight", words, steps, 1)
        none = self.stream_cycles("weight", np.asarray(0), np.asarray(0), 1)
        last, opens = compute, np.asarray(0)
        if synchronous:
            stored = self.stream_cycles("output", loops.out_channels * area, m, 2)
            last = np.maximum(compute, n * stored)
            # weights that stream come in one run for each loop
            opens = np.where(streaming, m, 0) * self.hardware.streams["weight"].start_cycles

        def summed(weights: Array) -> Array:
            both = np.maximum(load, weights)
            slowest = np.maximum(both, compute)
            if synchronous:
                slowest = slowest + (both + last - slowest) // n + opens
            return (tiles * slowest).sum(axis=(0, 1))

        there = summed(np.where(streaming, weights, none))
        return there, summed(weights) if synchronous and loops.role == "forward" else None


def _ceil(total: Array | int, size: Array | int) -> Array:
    """The quotient rounded up, of positive numbers or 0 by positive ones."""
    return np.asarray(total if isinstance(size, int) and size == 1 else (total + (size - 1)) // size)


def _share(total: Array, numerator: int, denominator: int) -> Array:
    """A share of numbers, rounded down."""
    return total if numerator == denominator else total * numerator // denominator


def under(tile: Array, loops: Loops, axis: int) -> Array:
    """Rows (or columns) of the input map that tiles of these sizes read."""
    numerator, denominator = loops.step[axis]
    if denominator == 1:
        return tile * numerator + (loops.span[axis] - numerator)
    rows = ((tile - 1) * numerator + loops.span[axis] - 1) // denominator + 1
    return np.minimum(rows, loops.map_rows if axis == 0 else loops.map_columns)
