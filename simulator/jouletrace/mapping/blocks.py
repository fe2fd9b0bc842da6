"""How a matrix product is cut into blocks that fit the buffers of a systolic array.

A block is what the three buffers hold at one time: a part of the left operand (M×K) in ``input``, of the
right one (K×N) in ``weight``, and partial sums of the result (M×N) in ``output``. Blocks follow one another
with K innermost, so partial sums never leave the output buffer before they are complete. An operand whose
block stays the same from one step to the next is not loaded again: what fits its buffer is loaded once.

Inside a block the array works fold by fold. Two dimensions are spread over the array and folded; the third
is streamed (T). T is cut only if no block with all of T fits, since every cut costs a fill and a drain per
fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Systolic
from jouletrace.mapping.matrix import Indices, Measure, Product, Spatial
from jouletrace.mapping.transfer import ceil_div

__all__ = ["Blocks", "Folding", "Lane", "block_elements", "block_sizes", "choose_blocks", "fits"]

# Numbers of blocks per dimension that are tried: all small ones, then steps of a quarter.
FINE, STEP = 8, Fraction(5, 4)


@dataclass(frozen=True, slots=True)
class Folding:
    """How much of M, N and K one fold takes (0: all of the block, the streamed T), and its fixed cycles.

    ``fused``: how many steps of K an element does at once.
    """

    M: int
    N: int
    K: int
    preload: int
    skew: int
    fused: int = 1

    @staticmethod
    def of(array: Systolic, fused: int = 1) -> Folding:
        """The folding of a dataflow.

        A stationary operand is shifted in row by row before the streaming starts: ``rows`` cycles. Operands
        enter skewed by one cycle per row, and a result crosses the columns: rows - 1 + columns - 1 more.
        """
        rows, columns = array.rows, array.columns
        skew = rows - 1 + columns - 1
        match array.dataflow:
            case "weight_stationary":
                return Folding(0, columns, rows * fused, rows, skew, fused)
            case "input_stationary":
                return Folding(columns, 0, rows * fused, rows, skew, fused)
            case "output_stationary":
                return Folding(rows, columns, 0, 0, skew, fused)

    def streamed(self, m: int, n: int, k: int) -> int:
        """Vectors that are streamed: as many as one of the three sizes, or a part of it if that is K."""
        return ceil_div(k, self.fused) if self.K == 0 else n if self.N == 0 else m

    def cycles(self, streamed: int, passes: int) -> int:
        """Preload, then ``passes`` cycles per streamed vector, then the skew until the last result is out."""
        return self.preload + streamed * passes + self.skew


@dataclass(frozen=True, slots=True)
class Lane:
    """The way of one operand: a buffer of ``copies``, and the DMA stream that fills or empties it.

    Elements take ``held_bits`` in the buffer and ``moved_bits`` on the stream: sums are held wider.
    """

    buffer: str
    copy_bytes: int
    copies: int
    held_bits: int
    moved_bits: int
    bits_per_cycle: Fraction
    start_cycles: int

    @property
    def capacity(self) -> int:
        """Elements that one copy holds."""
        return self.copy_bytes * 8 // self.held_bits


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes of a block, the outer of the two loops over M and N, and the buffer copies that left, right and
    result take (``spans``: one, unless a whole operand needs more)."""

    batches: int
    M: int
    N: int
    K: int
    outer: str
    spans: tuple[int, int, int]


def block_sizes(size: int, fold: int, measure: Measure) -> list[int]:
    """Candidate sizes of one dimension, largest first: whole folds, whole rows of a map, whole images.

    >>> from jouletrace.mapping.matrix import Dense
    >>> block_sizes(100, 32, Dense())
    [100, 64, 32]
    """
    unit = fold or 1
    units, count, counts = ceil_div(size, unit), 1, [1]
    while count < units:
        count = min(units, count + 1 if count < FINE else int(count * STEP))
        counts.append(count)
    sizes = {min(size, ceil_div(units, count) * unit) for count in counts}
    if not fold and isinstance(measure, Spatial):
        row = measure.columns.positions
        sizes |= {s - s % whole for s in sizes for whole in (row, measure.image) if s > whole}
    return sorted(sizes, reverse=True)


def block_elements(size: int, step: int, measure: Measure) -> tuple[int, int]:
    """Real elements of one dimension cut into blocks of ``step``: in all blocks, and in the largest.

    >>> from jouletrace.mapping.matrix import Channels
    >>> block_elements(size=18, step=6, measure=Channels(taps=9))
    (4, 2)
    """
    # Images look alike: where blocks and images meet again, the same blocks follow.
    period = lcm(step, measure.image) if isinstance(measure, Spatial) else size
    again = max(1, size // period) - 1
    rest = size - again * period
    start = np.arange(0, rest, step, dtype=np.int64)
    elements = measure.elements(start, np.minimum(start + step, rest))
    repeated = int(elements[: period // step].sum()) * again
    return int(elements.sum()) + repeated, int(elements.max())


class _Dimension:
    """The candidate sizes of one dimension as one axis of the search.

    ``sums`` and ``largest`` are, per operand that has this dimension, its elements over all blocks and in the
    largest block.
    """

    def __init__(self, size: int, fold: int, measures: tuple[Measure, Measure], axis: int) -> None:
        spatial = next((measure for measure in measures if isinstance(measure, Spatial)), measures[0])
        self.candidates = block_sizes(size, fold, spatial)
        elements = [block_elements(size, step, measure) for measure in measures for step in self.candidates]
        table = np.array(elements, dtype=np.int64).reshape(2, -1, 2)
        shape = tuple(-1 if i == axis else 1 for i in range(5))
        self.sizes = np.array(self.candidates, dtype=np.int64).reshape(shape)
        self.counts = -(-size // self.sizes)
        self.sums = table[0, :, 0].reshape(shape), table[1, :, 0].reshape(shape)
        self.largest = table[0, :, 1].reshape(shape), table[1, :, 1].reshape(shape)


@lru_cache(maxsize=4096)
def choose_blocks(
    product: Product,
    folding: Folding,
    passes: int,
    lanes: tuple[Lane, Lane, Lane],
    port_bits_per_cycle: Fraction,
) -> Blocks:
    """The blocks of least estimated cycles × bits moved; what they really cost, the engine finds out.

    All candidates are scored at once, on the axes batch, M, N, K and loop order. ``port_bits_per_cycle`` is 0
    where no stream waits for the DRAM port. Raises MappingError if a fold fits no buffer.
    """
    left, right, result = product.left, product.right, product.result
    batch_sizes = block_sizes(product.batches, 1, left.rows)
    m = _Dimension(product.M, folding.M, (left.rows, result.rows), 1)
    n = _Dimension(product.N, folding.N, (right.columns, result.columns), 2)
    k = _Dimension(product.K, folding.K, (left.columns, right.rows), 3)
    together = np.array(batch_sizes, dtype=np.int64).reshape(-1, 1, 1, 1, 1)
    groups = -(-product.batches // together)
    outer_m = np.array([True, False])
    once = np.ones(1, dtype=np.int64)

    # Of left, right and result: elements held per block; number of blocks; loads of each; elements moved.
    per_batch = (m.largest[0] * k.largest[0], k.largest[1] * n.largest[0], m.sizes * n.sizes)
    held = [together * elements for elements in per_batch]
    blocks = [groups * count for count in (m.counts * k.counts, k.counts * n.counts, m.counts * n.counts)]
    loads = [
        # A block of left stays while the loop over N runs inside it, and while there is one such block.
        np.where(np.where(outer_m, 1, m.counts) * k.counts == 1, 1, n.counts),
        np.where(np.where(outer_m, n.counts, 1) * k.counts == 1, 1, m.counts),
        once,
    ]
    sums = (m.sums[0] * k.sums[0], k.sums[1] * n.sums[0], m.sums[1] * n.sums[1])
    moved = [product.batches * elements * times for elements, times in zip(sums, loads, strict=True)]

    # Several batches share a block only where each of them is one.
    feasible = (together == 1) | (m.counts * n.counts * k.counts == 1)
    for lane, elements, count in zip(lanes, held, blocks, strict=True):
        room = np.where(count == 1, lane.copies, 1) * lane.capacity
        feasible = feasible & (elements <= room)
    cuts = (k if folding.K == 0 else n if folding.N == 0 else m).counts
    uncut = feasible & (cuts == 1)
    feasible = uncut if uncut.any() else feasible
    if not feasible.any():
        raise MappingError(_too_small(product, lanes, held))

    folds = product.batches
    for size, fold in ((product.M, folding.M), (product.N, folding.N), (product.K, folding.K)):
        folds *= ceil_div(size, fold) if fold else 1
    length = folding.streamed(product.M, product.N, product.K)
    steady = folds * (length * passes + cuts * (folding.preload + folding.skew))
    ends, bits = 0 * once, 0 * once
    for lane, elements, count, times in zip(lanes, moved, blocks, loads, strict=True):
        transfers = count * times
        cycles = _duration(elements * lane.moved_bits, lane.bits_per_cycle) + transfers * lane.start_cycles
        steady = np.maximum(steady, cycles)
        bits = bits + elements * lane.moved_bits
        # Nothing overlaps the first loads and the last store.
        ends = ends + cycles // transfers
    if port_bits_per_cycle:
        steady = np.maximum(steady, _duration(bits, port_bits_per_cycle))
    # A ranking, not a count: the product can exceed 64 bits, so it is a float.
    score = np.where(feasible, (steady + ends).astype(np.float64) * bits, np.inf)
    best = np.unravel_index(int(np.argmin(score)), score.shape)
    b, i, j, depth, inner_m = (int(x) for x in best)
    spans = [
        max(1, ceil_div(int(np.broadcast_to(elements, score.shape)[best]), lane.capacity))
        for lane, elements in zip(lanes, held, strict=True)
    ]
    return Blocks(
        batch_sizes[b], m.candidates[i], n.candidates[j], k.candidates[depth],
        "N" if inner_m else "M", (spans[0], spans[1], spans[2]),
    )  # fmt: skip


def fits(blocks: Blocks, product: Product, folding: Folding, lanes: tuple[Lane, Lane, Lane]) -> bool:
    """Do the blocks of a product with loops at least as long serve this one as well?

    Where operands are of other widths, a fold may be deeper: blocks have to be whole folds.
    """
    if folding.K and blocks.K < product.K and blocks.K % folding.K:
        return False
    left, right = product.left, product.right
    m, n, k = min(blocks.M, product.M), min(blocks.N, product.N), min(blocks.K, product.K)

    def largest(size: int, step: int, measure: Measure) -> int:
        return block_elements(size, step, measure)[1]

    held = (
        largest(product.M, m, left.rows) * largest(product.K, k, left.columns),
        largest(product.K, k, right.rows) * largest(product.N, n, right.columns),
        m * n,
    )
    together = min(blocks.batches, product.batches)
    return all(
        together * elements <= span * lane.capacity
        for elements, span, lane in zip(held, blocks.spans, lanes, strict=True)
    )


def _duration(bits: Indices, bits_per_cycle: Fraction) -> NDArray[np.int64]:
    pace = max(bits_per_cycle.limit_denominator(1000), Fraction(1, 1000))
    return bits * pace.denominator // pace.numerator


def _too_small(product: Product, lanes: tuple[Lane, Lane, Lane], held: list[Indices]) -> str:
    short: list[str] = []
    for lane, elements in zip(lanes, held, strict=True):
        least = int(elements.min())
        if least > lane.capacity:
            needed = ceil_div(least * lane.held_bits, 8)
            short.append(f"a fold needs {needed} bytes in a copy of {lane.buffer!r} (has {lane.copy_bytes})")
    return f"{product.result.name!r}: {'; '.join(short)}; enlarge buffers.<name>.size or use a smaller array"
