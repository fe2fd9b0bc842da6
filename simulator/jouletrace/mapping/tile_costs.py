"""How good a tiling of a channel-parallel array is, for all candidates of a search at once.

For each candidate the busy cycles of every engine are summed over the whole op, and so is the slower of load and
compute over the steps, inner and edge tiles apart. All sizes are int64 arrays of one length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.layout import bursts, group_of
from jouletrace.mapping.loops import Loops

__all__ = ["Array", "array_of", "busy_cycles", "channels_at_once", "scores", "under"]

Array = NDArray[np.int64]


def array_of(hardware: Hardware) -> ChannelParallel:
    """The array of a hardware that has a channel-parallel one."""
    assert isinstance(hardware.array, ChannelParallel)
    return hardware.array


def channels_at_once(loops: Loops, hardware: Hardware) -> int:
    """Input channels that the array takes in at once."""
    return array_of(hardware).in_channels * loops.fused_channels


def scores(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> Array:
    """The figure by which tilings are compared, in the unit of the spec's objective; smaller is better."""
    busy = busy_cycles(loops, hardware, out, in_, rows, columns, resident)
    engines = [busy[name] for name in busy if name not in ("words", "first")]
    schedule = array_of(hardware).schedule
    cycles = np.max(engines, axis=0) + busy["first"]
    if schedule.swap == "free_running":
        # Engines that are nearly as busy as the bottleneck collide with it now and then; a little of their sum
        # tells apart tilings with the same bottleneck.
        cycles = cycles + np.sum(engines, axis=0) // 32
    objective = schedule.objective
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


def busy_cycles(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array, resident: Array
) -> dict[str, Array]:
    """Busy cycles of every engine over the whole op, the words moved, and the first load that nothing hides."""
    array = array_of(hardware)
    full = array.schedule.edge_tiles == "full"
    times = loops.images * loops.groups
    m, n = -(-loops.out_channels // out), -(-loops.in_channels // in_)
    r, c = -(-loops.rows // rows), -(-loops.columns // columns)
    at_once = channels_at_once(loops, hardware)
    if full:
        folds = m * (out // array.out_channels) * n * (in_ // at_once)
        area = r * rows * c * columns * loops.work_rows * loops.work_columns // (loops.rows * loops.columns)
    else:
        whole = -(-loops.out_channels // array.out_channels) * -(-loops.in_channels // at_once)
        folds = np.full_like(out, whole)
        area = np.full_like(out, loops.work_rows * loops.work_columns)
    area = -(-area // loops.fused_positions)
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
    broken = _breaks(loops, hardware, out, in_, rows, columns)
    first = _stream_cycles(hardware, "input", words_per_load, np.ones_like(out), loops.bits[0], broken["input"])
    again = loops.images if array.schedule.weights_stay_for == "image" else 1
    sizes = (folds, m, n, out, in_, rows, columns, resident)
    steps = times * _step_cycles(loops, hardware, *sizes, fetches=False)
    if array.schedule.swap == "synchronous":  # else there is time to fetch weights ahead
        if loops.role == "backward_data":  # a block comes at once, in its first reduction loop
            one = np.ones_like(out)
            block = np.minimum(resident, m * out) * in_ * loops.taps // loops.packed
            block_cycles = _stream_cycles(hardware, "weight", block, one, loops.bits[1])
            longer = np.maximum(block_cycles - steps // (times * m * n * r * c), 0)
            blocks = -(-loops.out_channels // np.maximum(resident, 1))
            extra = np.where(resident > 0, blocks * (n + 1) * longer, 0)
        else:
            fetching = _step_cycles(loops, hardware, *sizes, fetches=True)
            extra = (fetching - steps // times) // (r * c)
        steps = steps + loops.groups * again * extra
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
        reloads = np.where(resident == 0, loops.images * r * c, again)
        streams = {
            "input": (input_words, input_loads, 0),
            "weight": (kernel_words * reloads, np.where(resident == 0, input_loads, m * n * again), 1),
            "output": (map_words, times * m * r * c, 2),
        }
    busy = {
        "array": compute,
        "first": first,
        "steps": steps,
    }
    total = np.zeros_like(out)
    for name, (words, loads, which) in streams.items():
        busy[name] = _stream_cycles(hardware, name, words, loads, loops.bits[which], broken.get(name, 1))
        total = total + words
    if hardware.dram.port != "stream_share":
        per_cycle = hardware.dram_bytes_per_cycle
        width = hardware.storage_bits(max(loops.bits))
        busy["port"] = total * width * per_cycle.denominator // (8 * per_cycle.numerator)
    busy["words"] = total
    return busy


def _step_cycles(
    loops: Loops, hardware: Hardware, folds: Array, m: Array, n: Array, out: Array, in_: Array, rows: Array,
    columns: Array, resident: Array, *, fetches: bool,
) -> Array:  # fmt: skip
    """The slower of load and compute, summed over the steps of one image.

    Edge tiles compute less but still pay their start costs, so they are weighed apart from inner ones; channel
    tiles are taken at their average. With synchronous swaps nothing hides the first load of a reduction loop, and only
    a store overlaps with its last compute. ``fetches``: weights that stay come with every step; else they are there.
    """
    array = array_of(hardware)
    full = array.schedule.edge_tiles == "full"
    total = np.zeros_like(out)
    broken = _breaks(loops, hardware, out, in_, rows, columns)
    in_turn = array.schedule.swap == "synchronous"
    streaming = resident == 0
    over_maps = loops.role == "backward_weight"  # the reduction loop, unless the map is one tile
    for row_count, row in _edges(loops.rows, rows, full):
        for column_count, column in _edges(loops.columns, columns, full):
            area = row * column * loops.work_rows * loops.work_columns // (loops.rows * loops.columns)
            area = -(-area // loops.fused_positions)
            compute = folds * area * loops.taps * array.initiation_interval * loops.passes
            area_read = under(row, loops, 0) * under(column, loops, 1)
            loads = [("input", m * area_read * loops.in_channels, 0)]
            if over_maps:
                loads.append(("operand", n * row * column * loops.out_channels, 1))
            else:
                weights = loops.out_channels * loops.in_channels * loops.taps // loops.packed
                loads.append(("weight", np.where(streaming | fetches, weights, 0), 1))
            load = np.zeros_like(compute)
            for name, words, which in loads:
                steps = np.where(words > 0, m * n, 0)
                moved = _stream_cycles(hardware, name, words, steps, loops.bits[which], broken.get(name, 1))
                load = np.maximum(load, moved)
            slowest = np.maximum(load, compute)
            if in_turn:
                last = compute
                if not over_maps:
                    words = row * column * loops.out_channels
                    stored = _stream_cycles(hardware, "output", words, m, loops.bits[2], broken["output"])
                    last = np.maximum(compute, n * stored)
                maps = -(-loops.rows // rows) * -(-loops.columns // columns)
                steps = np.where((maps > 1) | streaming, maps, n) if over_maps else n
                slowest = slowest + (load + last - slowest) // steps
                if not over_maps:  # weights that stream come in one run for each loop
                    slowest = slowest + np.where(streaming, m, 0) * hardware.streams["weight"].start_cycles
            total = total + row_count * column_count * slowest
    return total


def _edges(total: int, tile: Array, full: bool) -> list[tuple[Array, Array]]:
    """(number, size) of the inner tiles of an axis and of its last one."""
    inner = -(-total // tile) - 1
    return [(inner, tile), (np.ones_like(tile), tile if full else total - inner * tile)]


def _breaks(
    loops: Loops, hardware: Hardware, out: Array, in_: Array, rows: Array, columns: Array
) -> dict[str, Array]:
    """Bursts of one tile of each map."""
    array = array_of(hardware)
    whole = (rows >= loops.rows, columns >= loops.columns)

    def breaks(channels: Array, of: int, lanes: int, rows: Array, columns: Array) -> Array:
        group = 0 if loops.is_product else group_of(array.layout, lanes, of)
        return bursts(group, np.minimum(channels, of), rows, columns, *whole)

    result = breaks(out, loops.out_channels, array.out_channels, rows, columns)
    source = (under(rows, loops, 0), under(columns, loops, 1))
    found = {"input": breaks(in_, loops.in_channels, array.in_channels, *source)}
    return {**found, "operand": result} if loops.role == "backward_weight" else {**found, "output": result}


def _stream_cycles(
    hardware: Hardware, stream: str, words: Array, loads: Array, bits: int, broken: Array | int = 1
) -> Array:
    """Cycles for ``words`` in ``loads`` tiles of ``broken`` bursts each; a tile of a map that is read starts anew."""
    spec = hardware.streams[stream]
    anew = spec.restarts == "transfer" or stream in ("input", "operand")
    restarts = loads * broken if anew else 1 + loads * (broken - 1)
    return -(-(words * hardware.storage_bits(bits)) // spec.width_bits) + restarts * spec.start_cycles


def _axis_sum(total: int, tile: Array, loops: Loops, axis: int, full: bool) -> Array:
    """Input rows (or columns) loaded over all tiles of an axis."""
    parts = -(-total // tile)
    last = np.where(full, tile, total - (parts - 1) * tile)
    return (parts - 1) * under(tile, loops, axis) + under(last, loops, axis)


def under(tile: Array, loops: Loops, axis: int) -> Array:
    """Rows (or columns) of the input map that tiles of these sizes read."""
    numerator, denominator = loops.step[axis]
    rows = ((tile - 1) * numerator + loops.span[axis] - 1) // denominator + 1
    return np.minimum(rows, loops.map_rows if axis == 0 else loops.map_columns) if denominator > 1 else rows
