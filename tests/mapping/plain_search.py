"""The tile search as a loop over every candidate, in plain integers: slow, and what the fast one must agree with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.layout import bursts, group_of
from jouletrace.mapping.loops import Loops
from jouletrace.mapping.tiles import Tile, footprint_bytes

__all__ = ["candidates", "plain_choice", "plain_score"]


def plain_choice(loops: Loops, hardware: Hardware, tiles: Sequence[Tile]) -> Tile:
    """The tile of the least score; among equal ones, the one that moves the least, then the first."""
    return min((*plain_score(loops, hardware, tile), i, tile) for i, tile in enumerate(tiles))[-1]


def candidates(loops: Loops, hardware: Hardware) -> Iterator[Tile]:
    """Every tiling that can matter and that fits."""
    array = _array(hardware)
    free = array.schedule.tile_channels == "free" or loops.is_product
    at_once = array.in_channels * loops.fused_channels
    grid = product(
        _sizes(loops.out_channels, array.out_channels) if free else [array.out_channels],
        _sizes(loops.in_channels, at_once) if free else [at_once],
        _sizes(loops.rows, phases=loops.step[0][1]),
        _sizes(loops.columns, phases=loops.step[1][1]),
    )
    for out, in_, rows, columns in grid:
        pairs = _ceil(loops.in_channels, in_) * in_ * loops.taps * hardware.storage_bits(loops.bits[1])
        block = hardware.buffers["weight"].size_bytes * 8 // pairs // out * out
        for resident in dict.fromkeys((min(block, _ceil(loops.out_channels, out) * out), 0)):
            tile = Tile(out, in_, rows, columns, resident)
            need = footprint_bytes(tile, loops, hardware)
            if all(size <= hardware.buffers[name].size_bytes for name, size in need.items()):
                yield tile


def plain_score(loops: Loops, hardware: Hardware, tile: Tile) -> tuple[int, int]:
    """The score of one tiling by the spec's objective, and the words that it moves."""
    op = _Tiled(loops, hardware, tile)
    schedule = _array(hardware).schedule
    engines = [op.compute(), op.steps(), *(op.stream(*moved) for moved in op.moved())]
    words = sum(moved[1] for moved in op.moved())
    bits = hardware.storage_bits(max(loops.bits))
    if hardware.dram.port != "stream_share":
        engines.append(int(words * bits / (8 * hardware.dram_bytes_per_cycle)))
    cycles = max(engines) + op.first()
    if schedule.swap == "free_running":
        cycles += sum(engines) // 32
    if schedule.objective == "cycles":
        return cycles, words
    prices = price_list(hardware)

    def pj(component: str, action: str, times: int = 1) -> int:
        return max(1, prices[component, action].energy_aj * times // 10**6)

    energy = words * pj("dram", "read", bits // 8) + cycles * (pj("chip", "static") + pj("dram", "background"))
    return (energy if schedule.objective == "energy" else energy // 10**3 * (cycles // 10**3)), words


@dataclass(frozen=True)
class _Tiled:
    """One op in one tiling: busy cycles of every engine over the whole op."""

    loops: Loops
    hardware: Hardware
    tile: Tile

    @property
    def full(self) -> bool:
        return _array(self.hardware).schedule.edge_tiles == "full"

    @property
    def synchronous(self) -> bool:
        return _array(self.hardware).schedule.swap == "synchronous"

    @property
    def times(self) -> int:
        return self.loops.images * self.loops.groups

    @property
    def again(self) -> int:
        return self.loops.images if _array(self.hardware).schedule.weights_stay_for == "image" else 1

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Tiles of the output channels, the input channels, the rows, and the columns."""
        loops, tile = self.loops, self.tile
        return (
            _ceil(loops.out_channels, tile.out_channels), _ceil(loops.in_channels, tile.in_channels),
            _ceil(loops.rows, tile.rows), _ceil(loops.columns, tile.columns),
        )  # fmt: skip

    def cycles(self, area: int) -> int:
        """Cycles of the array for all channels of so many positions of the output map."""
        loops, tile, array = self.loops, self.tile, _array(self.hardware)
        at_once = array.in_channels * loops.fused_channels
        folds = _ceil(loops.out_channels, array.out_channels) * _ceil(loops.in_channels, at_once)
        if self.full:
            m, n, _, _ = self.parts
            folds = m * (tile.out_channels // array.out_channels) * n * (tile.in_channels // at_once)
        return folds * _ceil(area, loops.fused_positions) * loops.taps * array.initiation_interval * loops.passes

    def compute(self) -> int:
        loops = self.loops
        area = loops.work_rows * loops.work_columns
        if self.full:
            _, _, r, c = self.parts
            area = r * self.tile.rows * c * self.tile.columns * area // (loops.rows * loops.columns)
        return self.times * self.cycles(area)

    def moved(self) -> list[tuple[str, int, int, int]]:
        """What each stream moves: words, in how many tiles, and which operand's width they have."""
        loops, tile, times = self.loops, self.tile, self.times
        m, n, r, c = self.parts
        rows = sum(self.under(size, 0) for size in self.edges(0))
        columns = sum(self.under(size, 1) for size in self.edges(1))
        channels = n * tile.in_channels if self.full and not loops.unpadded_input else loops.in_channels
        inputs, loads = times * m * rows * columns * channels, times * m * r * c * n
        pairs, maps = loops.out_channels * loops.in_channels, times * loops.out_channels * loops.rows * loops.columns
        if self.full:
            pairs = m * tile.out_channels * n * tile.in_channels
            maps = times * m * tile.out_channels * r * tile.rows * c * tile.columns
        kernels = loops.groups * (pairs // loops.packed) * loops.taps
        if loops.role == "backward_weight":
            once = r * c == 1 and tile.resident > 0
            operand = (maps, times * m) if once else (maps * n, loads)
            return [("input", inputs, loads, 0), ("operand", *operand, 1), ("output", kernels, m, 2)]
        weights = (kernels * self.again, m * n * self.again)
        if tile.resident == 0:
            weights = (kernels * loops.images * r * c, loads)
        return [("input", inputs, loads, 0), ("weight", *weights, 1), ("output", maps, times * m * r * c, 2)]

    def first(self) -> int:
        _, words, loads, _ = self.moved()[0]
        return self.stream("input", words // loads, 1, 0)

    def stream(self, name: str, words: int, loads: int, operand: int) -> int:
        """Cycles for words in so many tiles; a tile of a map that is read starts anew."""
        spec, broken = self.hardware.streams[name], self.bursts(name)
        anew = spec.restarts == "transfer" or name in ("input", "operand")
        restarts = loads * broken if anew else 1 + loads * (broken - 1)
        bits = self.hardware.storage_bits(self.loops.bits[operand])
        return _ceil(words * bits, spec.width_bits) + restarts * spec.start_cycles

    def bursts(self, name: str) -> int:
        """Bursts of one tile."""
        loops, tile, array = self.loops, self.tile, _array(self.hardware)
        rows, columns = tile.rows, tile.columns
        if name == "input":
            channels, of, lanes = tile.in_channels, loops.in_channels, array.in_channels
            rows, columns = self.under(rows, 0), self.under(columns, 1)
        elif name == ("operand" if loops.role == "backward_weight" else "output"):
            channels, of, lanes = tile.out_channels, loops.out_channels, array.out_channels
        else:
            return 1
        group = 0 if loops.is_product else group_of(array.layout, lanes, of)
        whole = (tile.rows >= loops.rows, tile.columns >= loops.columns)
        return int(bursts(group, min(channels, of), rows, columns, *whole))

    def steps(self) -> int:
        """The slower of load and compute over all steps, and what weights that stay add to it."""
        loops, tile = self.loops, self.tile
        m, n, r, c = self.parts
        there = self.image(fetches=False)
        steps = self.times * there
        if not self.synchronous or loops.role == "backward_weight":
            return steps
        extra = (self.image(fetches=True) - there) // (r * c)
        if loops.role == "backward_data":
            extra = 0
            if tile.resident:
                block = min(tile.resident, m * tile.out_channels) * tile.in_channels * loops.taps // loops.packed
                longer = self.stream("weight", block, 1, 1) - steps // (self.times * m * n * r * c)
                extra = _ceil(loops.out_channels, tile.resident) * (n + 1) * max(longer, 0)
        return steps + loops.groups * self.again * extra

    def image(self, *, fetches: bool) -> int:
        """The steps of one image; where weights that stay come with every step, or are there."""
        loops, tile = self.loops, self.tile
        m, n, r, c = self.parts
        weights = loops.out_channels * loops.in_channels * loops.taps // loops.packed
        come = fetches or tile.resident == 0
        total = 0
        for row, column in product(self.edges(0), self.edges(1)):
            area = row * column * loops.work_rows * loops.work_columns // (loops.rows * loops.columns)
            compute = last = self.cycles(area)
            load = self.stream("input", m * self.under(row, 0) * self.under(column, 1) * loops.in_channels, m * n, 0)
            loops_of = n
            if loops.role == "backward_weight":
                load = max(load, self.stream("operand", n * row * column * loops.out_channels, m * n, 1))
                loops_of = r * c if r * c > 1 or tile.resident == 0 else n
            else:
                load = max(load, self.stream("weight", weights if come else 0, m * n if come else 0, 1))
                last = max(compute, n * self.stream("output", row * column * loops.out_channels, m, 2))
            slowest = max(load, compute)
            if self.synchronous:
                slowest += (load + last - slowest) // loops_of
                if loops.role != "backward_weight" and tile.resident == 0:
                    slowest += m * self.hardware.streams["weight"].start_cycles
            total += slowest
        return total

    def edges(self, axis: int) -> list[int]:
        """The sizes of all tiles of an axis."""
        total, tile = ((self.loops.rows, self.tile.rows), (self.loops.columns, self.tile.columns))[axis]
        return [tile if self.full else min(tile, total - start) for start in range(0, total, tile)]

    def under(self, tile: int, axis: int) -> int:
        """Rows (or columns) of the input map under those of an output tile."""
        loops = self.loops
        numerator, denominator = loops.step[axis]
        rows = ((tile - 1) * numerator + loops.span[axis] - 1) // denominator + 1
        return min(rows, (loops.map_rows, loops.map_columns)[axis]) if denominator > 1 else rows


def _sizes(total: int, unit: int = 1, phases: int = 1) -> list[int]:
    """The smallest tiles for each number of parts, and those up to one stride larger."""
    units = _ceil(total, unit)
    smallest = {_ceil(units, parts) for parts in range(1, units + 1)}
    return sorted({min(size + i, units) * unit for size in smallest for i in range(phases)})


def _array(hardware: Hardware) -> ChannelParallel:
    assert isinstance(hardware.array, ChannelParallel)
    return hardware.array


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
