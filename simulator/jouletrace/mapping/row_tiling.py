"""The mapping letters of a row-stationary array: how a convolution is cut into processing passes.

The letters are those of Chen et al. (JSSC 2017): in one pass the array convolves the rows of ``n`` images with
``p``·``t`` filters over ``q``·``r`` channels, and ``e`` rows of output come out of a set of processing elements. A set
is as high as the kernel and ``e`` wide; a set wider than the array is folded into pieces that lie one below the other.
``r`` sets of different channels and ``t`` sets of different filters stand on the array at once. Sums of ``m`` filters
stay in the global buffer until all channels are added.

Two more are needed for kernels that no set can hold, as in backward-weight, whose kernel is a whole map: ``taps``
rows of the kernel stand in a set and ``segment`` columns in the scratchpads; the others come in further passes, as
channels do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import MappingError
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import Hardware, RowStationary
from jouletrace.mapping.matrix import Axis, Indices
from jouletrace.mapping.row_convolution import RowConvolution
from jouletrace.mapping.transfer import ceil_div
from jouletrace.units import show_bytes

__all__ = ["Letters", "Room", "Worth", "choose_letters", "fits", "hull", "part_sizes"]

# Sizes of a part that are tried: those of the first few numbers of parts, and then fewer and fewer.
_FINE = 8


@dataclass(frozen=True, slots=True)
class Letters:
    """One mapping; see above."""

    m: int
    n: int
    e: int
    p: int
    q: int
    r: int
    t: int
    taps: int
    segment: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a mapping has to fit: the array, words of the scratchpads, one copy of the global and the filter buffer.

    ``words``: words of the datapath, of ``word_bits`` each, that an element of the maps, kernels and outputs takes.
    """

    rows: int
    columns: int
    filter_words: int
    ifmap_words: int
    psum_words: int
    bank_bytes: int
    global_bytes: int
    filter_bytes: int
    word_bits: int
    words: tuple[int, int, int]

    @staticmethod
    def of(conv: RowConvolution, hardware: Hardware) -> Room:
        """The room on a row-stationary hardware for tensors as wide as those of a convolution."""
        array = hardware.array
        assert isinstance(array, RowStationary)
        pads = array.scratchpads
        x, w, y = (hardware.storage_bits(bits) // hardware.word_bits for bits in conv.tensors.bits)
        return Room(
            array.rows, array.columns, pads.filter_words, pads.ifmap_words, pads.psum_words, array.bank_bytes,
            hardware.buffers["input"].size_bytes, hardware.buffers["weight"].size_bytes, hardware.word_bits, (x, w, y),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Worth:
    """Prices in aJ by which mappings are compared: a word of DRAM, of the global buffer, over a network; a cycle."""

    dram: int
    buffer: int
    network: int
    cycle: int

    @staticmethod
    def of(hardware: Hardware) -> Worth:
        """The prices of a hardware; a cycle costs what idle elements, the chip and the DRAM take."""
        prices, buffer = price_list(hardware), hardware.buffers["input"]

        def price(component: str, action: str) -> int:
            return prices.of(component, action).energy_aj

        return Worth(
            price("dram", "read") * hardware.word_bits // 8,
            price("buffer.input", "read") * hardware.word_bits // buffer.word_bits,
            price("network", "word"),
            price("array", "idle") * hardware.array.lanes + price("chip", "static") + price("dram", "background"),
        )


class _Grid(NamedTuple):
    """Candidates: parallel arrays of the letters that are searched."""

    m: Indices
    n: Indices
    e: Indices
    p: Indices
    q: Indices
    r: Indices
    t: Indices

    def where(self, keep: NDArray[np.bool_]) -> _Grid:
        return _Grid(*(axis[keep] for axis in self))


def hull(axis: Axis, positions: Indices, first: int, last: int) -> Indices:
    """Rows (or columns) under so many positions and the taps first..last, padding included.

    >>> hull(Axis(13, 1, (-1, 0, 1), 13), np.array([13]), 0, 2).tolist()
    [15]
    """
    span = axis.offsets[last] - axis.offsets[first] + 1
    return np.minimum((positions - 1) * axis.stride + span, positions * (last - first + 1))


def part_sizes(size: int, most: int) -> list[int]:
    """Sizes up to ``most`` of parts that are as equal as can be, largest first.

    >>> part_sizes(100, 24)
    [20, 17, 15, 13, 12, 10, 9, 8, 6, 5, 4, 3, 2, 1]
    """
    count = start = ceil_div(size, most)
    sizes = {1}
    while count < size:
        sizes.add(ceil_div(size, count))
        count = count + 1 if count < start + _FINE else ceil_div(5 * count, 4)
    return sorted(sizes, reverse=True)


@lru_cache(maxsize=4096)
def choose_letters(conv: RowConvolution, room: Room, worth: Worth) -> Letters:
    """The mapping of least estimated energy, by the prices of ``worth``; of equal ones, the one of fewer cycles.

    All candidates are scored at once, as if every value were dense. Raises MappingError if none fits.
    """
    search = _Search(conv, room)
    grid = search.candidates()
    grid = grid.where(search.feasible(grid))
    if not len(grid.m):
        raise MappingError(search.too_small())
    energy, cycles = search.scores(grid, worth)
    best = int(np.lexsort((cycles, energy))[0])
    m, n, e, p, q, r, t = (int(axis[best]) for axis in grid)
    return Letters(m, n, e, p, q, r, t, search.taps, search.segment)


def fits(letters: Letters, conv: RowConvolution, room: Room) -> bool:
    """Can a convolution be mapped by these letters?"""
    found = (letters.m, letters.n, letters.e, letters.p, letters.q, letters.r, letters.t)
    grid = _Grid(*(np.array([letter], dtype=np.int64) for letter in found))
    return bool(_Search(conv, room, letters.taps, letters.segment).feasible(grid)[0])


def _balanced(size: int, most: int) -> int:
    return ceil_div(size, ceil_div(size, max(1, most)))


class _Search:
    """What mappings of one convolution need and cost. Words are those of the datapath."""

    def __init__(self, conv: RowConvolution, room: Room, taps: int = 0, segment: int = 0) -> None:
        self.conv, self.room = conv, room
        x_words, w_words, _ = room.words
        wide = min(room.ifmap_words // x_words, room.filter_words // w_words)
        self.taps = taps or _balanced(len(conv.rows.offsets), room.rows)
        self.segment = segment or _balanced(len(conv.columns.offsets), wide)

    def candidates(self) -> _Grid:
        """Letters on a grid, with as many resident filters as the banks allow beside the maps of a pass."""
        conv, room = self.conv, self.room
        sets = room.rows * room.columns // self.taps
        sizes = (
            part_sizes(conv.images, conv.images),
            part_sizes(conv.rows.positions, room.columns * max(1, room.rows // self.taps)),
            part_sizes(conv.filters, room.psum_words),
            part_sizes(conv.channels, max(1, room.ifmap_words // self.segment)),
            part_sizes(conv.channels, max(1, sets)),
            part_sizes(conv.filters, max(1, sets)),
        )
        axes = np.meshgrid(*(np.array(size, dtype=np.int64) for size in sizes), indexing="ij")
        n, e, p, q, r, t = (axis.ravel() for axis in axes)
        # More sets than there is work for are the same as fewer.
        keep = (r <= -(-conv.channels // q)) & (t <= -(-conv.filters // p))
        n, e, p, q, r, t = (axis[keep] for axis in (n, e, p, q, r, t))
        left = room.global_bytes // room.bank_bytes - self._map_banks(n, e, q * r)
        together, free_bits = p * t, np.maximum(left, 0) * room.bank_bytes * 8
        most = np.minimum(free_bits // self._sum_bits(n, e) // together * together, conv.filters)
        blocks = _ceil(np.full_like(n, conv.filters), np.maximum(most, 1))
        m = _ceil(_ceil(np.full_like(n, conv.filters), blocks), together) * together
        return _Grid(m, n, e, p, q, r, t)

    def feasible(self, grid: _Grid) -> NDArray[np.bool_]:
        """Do scratchpads, array, banks and the buffer of the filters hold them?"""
        room, segment = self.room, self.segment
        x_words, w_words, y_words = room.words
        m, n, e, p, q, r, t = grid
        pieces = -(-e // room.columns)
        beside = np.where(pieces == 1, room.columns // np.minimum(e, room.columns), 1)
        sets = room.rows // self.taps // pieces * beside
        banks = self._map_banks(n, e, q * r) + _ceil(m * self._sum_bits(n, e), 8 * room.bank_bytes)
        filter_bits = p * t * q * r * self.taps * segment * w_words * room.word_bits
        return (
            (p * q * segment * w_words <= room.filter_words)
            & (q * segment * x_words <= room.ifmap_words)
            & (p * y_words <= room.psum_words)
            & (r * t <= sets)
            & (banks * room.bank_bytes <= room.global_bytes)
            & (filter_bits <= 8 * room.filter_bytes)
        )

    def scores(self, grid: _Grid, worth: Worth) -> tuple[NDArray[np.float64], Indices]:
        """Estimated energy and cycles, parts taken as whole; a ranking, not a count."""
        conv, (x_words, w_words, y_words) = self.conv, self.room.words
        m, n, e, p, q, r, t = grid
        images, strips, blocks = -(-conv.images // n), -(-conv.rows.positions // e), -(-conv.filters // m)
        kernel_parts = ceil_div(len(conv.rows.offsets), self.taps) * ceil_div(len(conv.columns.offsets), self.segment)
        depth = -(-conv.channels // (q * r)) * kernel_parts
        subs = _ceil(np.minimum(m, conv.filters), p * t)
        columns = conv.columns.positions
        under = strips * self._rows(e) * self._columns() * kernel_parts * x_words
        maps = conv.groups * conv.images * conv.channels * under
        sums = conv.groups * conv.images * conv.filters * conv.rows.positions * columns * y_words
        kernels = conv.groups * conv.filters * conv.channels * conv.taps * w_words
        kernels = kernels * np.where(blocks * depth * subs == 1, 1, images * strips)
        dram = maps * np.where(depth == 1, 1, blocks) + kernels + sums
        buffer = maps * blocks * subs + kernels + 2 * sums * depth
        # Every element gets its own copy of maps and kernels; sums go up through a column of elements.
        network = maps * blocks * subs * t * self.taps + kernels * e + sums * depth * (self.taps * r + 1)
        work = p * q * self.segment
        cycles = conv.groups * images * strips * blocks * depth * subs * work * (n * columns + 1)
        energy = np.zeros(len(m), dtype=np.float64)
        prices = (worth.dram, worth.buffer, worth.network, worth.cycle)
        for count, price in zip((dram, buffer, network, cycles), prices, strict=True):
            energy += count.astype(np.float64) * price
        return energy, cycles

    def too_small(self) -> str:
        """Why not even the smallest mapping fits."""
        room, one = self.room, np.ones(1, dtype=np.int64)
        sums = ceil_div(int(self._sum_bits(one, one)[0]), 8)
        maps = int(self._map_banks(one, one, one)[0]) * self.room.bank_bytes
        return (
            f"a row of the output needs {show_bytes(sums)} and the rows under it {show_bytes(maps)} of the global "
            f"buffer ({show_bytes(room.global_bytes)} in banks of {show_bytes(self.room.bank_bytes)}); enlarge "
            "buffers.input.size and buffers.output.size, or the scratchpads"
        )

    def _map_banks(self, n: Indices, e: Indices, channels: Indices) -> Indices:
        """Banks that the maps of a pass take, padding included."""
        conv = self.conv
        depth = np.minimum(n, conv.images) * np.minimum(channels, conv.channels)
        bits = depth * self._rows(np.minimum(e, conv.rows.positions)) * self._columns() * self.room.words[0]
        return _ceil(bits * self.room.word_bits, 8 * self.room.bank_bytes)

    def _sum_bits(self, n: Indices, e: Indices) -> Indices:
        """Bits of the sums of one filter."""
        conv = self.conv
        rows = np.minimum(n, conv.images) * np.minimum(e, conv.rows.positions)
        return rows * (conv.columns.positions * self.room.words[2] * self.room.word_bits)

    def _rows(self, positions: Indices) -> Indices:
        return _largest_hull(self.conv.rows, positions, self.taps)

    def _columns(self) -> int:
        positions = np.array([self.conv.columns.positions], dtype=np.int64)
        return int(_largest_hull(self.conv.columns, positions, self.segment)[0])


def _ceil(count: Indices, step: Indices | int) -> Indices:
    return (count + step - 1) // step


def _largest_hull(axis: Axis, positions: Indices, taps: int) -> Indices:
    """Over all parts of the kernel; taps are equally far apart, so that all whole parts are alike."""
    last = len(axis.offsets) - 1
    parts = {(first, min(first + taps - 1, last)) for first in (0, last // taps * taps)}
    return np.max([hull(axis, positions, *part) for part in parts], axis=0)
