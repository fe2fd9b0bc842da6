"""The mapping letters of a row-stationary array: how a convolution is cut into processing passes.

The letters are those of Chen et al. (JSSC 2017, Table II): in one pass the array convolves the rows of ``n`` images with
``p``·``t`` filters over ``q``·``r`` channels, and ``e`` rows of output come out of a set of processing elements. A set is
as high as the kernel and ``e`` wide; a set wider than the array is folded into pieces that lie one below the other. ``r``
sets of different channels and ``t`` sets of different filters stand on the array at once. Sums of ``m`` filters stay in
the global buffer until all channels are added.

Two letters more are needed for kernels that no set can hold, as in backward-weight, whose kernel is a whole map: ``taps``
rows of the kernel stand in a set and ``segment`` columns in the scratchpads; the others come in further passes, as
channels do.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import RowStationary
from jouletrace.mapping.matrix import Axis, Indices
from jouletrace.mapping.row_convolution import RowConvolution
from jouletrace.mapping.transfer import ceil_div
from jouletrace.units import show_bytes

__all__ = ["Letters", "Room", "Worth", "choose_letters", "fits", "hull"]

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
    """What a mapping has to fit: one copy of the global buffer and of the filter buffer, and words of elements.

    ``words``: words of the datapath that an element of the maps, the kernels and the outputs takes; ``word_bits`` each.
    """

    global_bytes: int
    filter_bytes: int
    word_bits: int
    words: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Worth:
    """Prices in aJ by which mappings are compared: a word of DRAM, of the global buffer, over a network, a cycle."""

    dram: int
    buffer: int
    network: int
    cycle: int


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
    [20, 17, 15, 13, 12, 10, 8, 6, 5, 4, 3, 2, 1]
    """
    count = max(1, ceil_div(size, most))
    start, sizes = count, {1}
    while count < size:
        sizes.add(ceil_div(size, count))
        count = count + 1 if count < start + _FINE else ceil_div(5 * count, 4)
    if size <= most:
        sizes.add(size)
    return sorted((s for s in sizes if s <= most), reverse=True)


@lru_cache(maxsize=4096)
def choose_letters(conv: RowConvolution, array: RowStationary, room: Room, worth: Worth) -> Letters:
    """The mapping of least estimated energy, by the prices of ``worth``; of equal ones, the one of fewer cycles.

    All candidates are scored at once, as if every value were dense. Raises MappingError if none fits.
    """
    pads = array.scratchpads
    x_words, w_words, _ = room.words
    taps = _balanced(len(conv.rows.offsets), array.rows)
    segment = _balanced(len(conv.columns.offsets), max(1, min(pads.ifmap_words // x_words, pads.filter_words // w_words)))
    across = array.rows // taps
    grid = np.meshgrid(
        *(
            np.array(sizes, dtype=np.int64)
            for sizes in (
                part_sizes(conv.images, conv.images),
                part_sizes(conv.rows.positions, array.columns * across),
                part_sizes(conv.filters, pads.psum_words),
                part_sizes(conv.channels, max(1, pads.ifmap_words // segment)),
                part_sizes(conv.channels, array.lanes // taps),
                part_sizes(conv.filters, array.lanes // taps),
            )
        ),
        indexing="ij",
    )
    n, e, p, q, r, t = (axis.ravel() for axis in grid)
    # Sets larger than what there is to do are the same as smaller ones.
    keep = (r <= -(-conv.channels // q)) & (t <= -(-conv.filters // p))
    n, e, p, q, r, t = (axis[keep] for axis in (n, e, p, q, r, t))
    together = p * t
    banks = room.global_bytes // array.bank_bytes - _input_banks(conv, array, room, n, e, q * r, taps, segment)
    sums = n * e * conv.columns.positions * room.words[2] * room.word_bits
    most = np.maximum(banks, 0) * array.bank_bytes * 8 // sums // together * together
    blocks = -(-conv.filters // np.maximum(np.minimum(most, conv.filters), 1))
    m = -(-(-(-conv.filters // blocks)) // together) * together
    found = _feasible(conv, array, room, m, n, e, p, q, r, t, taps, segment) & (most > 0)
    if not found.any():
        raise MappingError(_too_small(conv, array, room, taps, segment))
    m, n, e, p, q, r, t = (axis[found] for axis in (m, n, e, p, q, r, t))
    energy, cycles = _score(conv, array, room, worth, m, n, e, p, q, r, t, taps, segment)
    best = int(np.lexsort((cycles, energy))[0])
    return Letters(*(int(axis[best]) for axis in (m, n, e, p, q, r, t)), taps, segment)


def fits(letters: Letters, conv: RowConvolution, array: RowStationary, room: Room) -> bool:
    """Can a convolution be mapped by these letters?"""
    return bool(_feasible(conv, array, room, *(np.array([letter]) for letter in astuple(letters)[:7]),
                          letters.taps, letters.segment)[0])  # fmt: skip


def _balanced(size: int, most: int) -> int:
    return ceil_div(size, ceil_div(size, most))


def _input_banks(
    conv: RowConvolution, array: RowStationary, room: Room, n: Indices, e: Indices, channels: Indices, taps: int,
    segment: int,
) -> Indices:  # fmt: skip
    """Banks that the maps of a pass take, padding included."""
    rows = _largest_hull(conv.rows, np.minimum(e, conv.rows.positions), taps)
    columns = _largest_hull(conv.columns, np.full_like(e, conv.columns.positions), segment)
    images, depth = np.minimum(n, conv.images), np.minimum(channels, conv.channels)
    bits = images * depth * rows * columns * room.words[0] * room.word_bits
    return -(-bits // (8 * array.bank_bytes))


def _largest_hull(axis: Axis, positions: Indices, taps: int) -> Indices:
    """Over all groups of taps; offsets ascend, so of equal groups the span of the first is that of each."""
    last = len(axis.offsets) - 1
    groups = [(first, min(first + taps - 1, last)) for first in range(0, last + 1, taps)]
    return np.max([hull(axis, positions, *group) for group in groups], axis=0)


def _feasible(
    conv: RowConvolution, array: RowStationary, room: Room, m: Indices, n: Indices, e: Indices, p: Indices, q: Indices,
    r: Indices, t: Indices, taps: int, segment: int,
) -> Indices:  # fmt: skip
    pads, (x_words, w_words, y_words) = array.scratchpads, room.words
    pieces = -(-e // array.columns)  # a set wider than the array is folded
    beside = np.where(pieces == 1, array.columns // np.minimum(e, array.columns), 1)
    sets = (array.rows // taps) // pieces * beside if taps <= array.rows else np.zeros_like(e)
    sums = np.minimum(n, conv.images) * m * e * conv.columns.positions * y_words * room.word_bits
    banks = _input_banks(conv, array, room, n, e, q * r, taps, segment) + -(-sums // (8 * array.bank_bytes))
    filters = p * t * q * r * taps * segment * w_words * room.word_bits
    return (
        (p * q * segment * w_words <= pads.filter_words)
        & (q * segment * x_words <= pads.ifmap_words)
        & (p * y_words <= pads.psum_words)
        & (r * t <= sets)
        & (banks * array.bank_bytes <= room.global_bytes)
        & (filters <= 8 * room.filter_bytes)
    )


def _score(
    conv: RowConvolution, array: RowStationary, room: Room, worth: Worth, m: Indices, n: Indices, e: Indices,
    p: Indices, q: Indices, r: Indices, t: Indices, taps: int, segment: int,
) -> tuple[Indices, Indices]:  # fmt: skip
    """Estimated energy and cycles of whole passes; numbers of words as the mapping moves them, edges rounded."""
    x_words, w_words, y_words = room.words
    images, strips, blocks = -(-conv.images // n), -(-conv.rows.positions // e), -(-conv.filters // m)
    depth = -(-conv.channels // (q * r)) * ceil_div(len(conv.rows.offsets), taps) * (
        ceil_div(len(conv.columns.offsets), segment)
    )
    subs = -(-np.minimum(m, conv.filters) // (p * t))
    passes = conv.groups * images * strips * blocks * depth * subs
    columns = conv.columns.positions
    rows_under = _largest_hull(conv.rows, e, taps) * strips
    map_words = conv.groups * conv.images * conv.channels * rows_under * int(
        _largest_hull(conv.columns, np.array([columns]), segment)[0]
    ) * x_words * (depth // -(-conv.channels // (q * r)))
    sum_words = conv.groups * conv.images * conv.filters * conv.rows.positions * columns * y_words
    kernels = conv.groups * conv.filters * conv.channels * conv.taps * w_words
    kernel_words = kernels * np.where(blocks * depth * subs == 1, 1, images * strips)
    map_loads = np.where(depth == 1, 1, blocks)
    dram = map_words * map_loads + kernel_words + sum_words
    buffer = map_words * blocks * subs + 2 * sum_words * depth + kernel_words
    # Each element gets its own copy of maps and kernels; sums go up through the elements of a column.
    network = map_words * blocks * subs * t * taps + kernel_words * e + sum_words * depth * (taps * r + 1)
    work = p * q * segment
    cycles = passes * (work * n * columns + work)
    energy = (
        dram.astype(np.float64) * worth.dram + buffer * float(worth.buffer) + network * float(worth.network)
        + cycles * float(worth.cycle)
    )  # a ranking, not a count  # fmt: skip
    return energy, cycles


def _too_small(conv: RowConvolution, array: RowStationary, room: Room, taps: int, segment: int) -> str:
    one = np.ones(1, dtype=np.int64)
    sums = ceil_div(conv.columns.positions * room.words[2] * room.word_bits, 8)
    maps = int(_input_banks(conv, array, room, one, one, one, taps, segment)[0]) * array.bank_bytes
    return (
        f"a row of the output and the rows under it need {show_bytes(sums)} and {show_bytes(maps)} of the global buffer "
        f"({show_bytes(room.global_bytes)} in banks of {show_bytes(array.bank_bytes)}); enlarge buffers.input.size or "
        "the scratchpads"
    )
