"""Matrix products on a systolic array: one array command per fold.

A fold is what the array does in one go: the stationary operand is shifted in (preload), vectors stream
through (stream), and the wavefront leaves (skew). Which dimension is where:

==================  =========  =========  ==========  ===========================================
dataflow            rows hold  cols hold  streamed T  cycles of a fold
==================  =========  =========  ==========  ===========================================
weight stationary   K          N          M           rows + T·passes + (rows - 1) + (columns - 1)
input stationary    K          M          N           rows + T·passes + (rows - 1) + (columns - 1)
output stationary   M          N          K           T·passes + (rows - 1) + (columns - 1)
==================  =========  =========  ==========  ===========================================

A bit-flexible element that fuses several products takes as many steps of K at once: a fold is deeper, or T shorter.

A fold at the edge of a dimension uses fewer rows or columns and takes as long. Partial sums of the K folds
add up in the output buffer. Loads run ahead as far as there are free buffer copies; how long a layer takes
is found by the engine. The conventions are those of SCALE-Sim (Samajdar et al., ISPASS 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Hardware, Systolic
from jouletrace.mapping.blocks import Blocks, Folding, Lane, choose_blocks, fits
from jouletrace.mapping.matrix import Indices, Operand, Product, products
from jouletrace.mapping.plan import Base, part, wanted_share
from jouletrace.mapping.program import Action, Sequence32
from jouletrace.mapping.transfer import Memory, Transfer, ceil_div
from jouletrace.trace.model import Op, Trace

__all__ = ["map_product", "map_systolic"]

Credits = tuple[tuple[int, int], ...]
# Partial sums are kept in at least this many bits (int8 arrays add in int32, fp16 arrays in fp32).
PARTIAL_SUM_BITS = 32
# Buffers and streams of left, right and result, by index.
NAMES = ("input", "weight", "output")
RESULT = 2


def map_systolic(op: Op, trace: Trace, hardware: Hardware, memory: Memory, base: Base | None = None) -> int:
    """Maps a conv, gemm or attention op into the open op of ``memory.builder``; returns its tiles.

    A tile is one load-compute-store group: one block of a product, of one or more folds. Blocks are those of
    ``base`` where they fit. Raises MappingError if the array is of another kind, the op is no matrix product, or a
    fold fits no buffer.
    """
    found = products(op, trace)
    whole = found if base is None else products(base.op, base.trace)
    share = wanted_share(op)
    return sum(map_product(p, hardware, memory, w, share) for p, w in zip(found, whole, strict=True))


def map_product(
    product: Product, hardware: Hardware, memory: Memory, whole: Product | None = None, share: Fraction = Fraction(1)
) -> int:
    """Maps one matrix product, a ``share`` of whose results is wanted, in the blocks of the ``whole`` one.

    See :func:`map_systolic`.
    """
    array = hardware.array
    if not isinstance(array, Systolic):
        raise MappingError(f"hardware {hardware.name!r} has a {array.kind} array, which has its own mapping")
    if product.K == 0:
        _store_zeros(product, memory, share)
        return 0
    return _Mapping(product, array, hardware, memory, whole or product, share).emit()


def _store_zeros(product: Product, memory: Memory, share: Fraction) -> None:
    """Stores a gradient that no tap reaches, a buffer copy at a time; the array has no part in it."""
    result = product.result
    copy = memory.buffer("output").size_bytes * 8 // memory.hardware.storage_bits(result.bits)
    whole, rest = divmod(part(product.batches * product.M * product.N, share), copy)
    for elements, times in ((copy, whole), (rest, min(rest, 1))):
        zeros = Transfer("output", "output", True, result.role, elements, result.bits)
        if times:
            memory.builder.emit([memory.command("store zeros", zeros)], times)


@dataclass(frozen=True, slots=True)
class _Cuts:
    """One dimension cut into folds: their bounds, and the block that each lies in."""

    start: Indices
    stop: Indices
    block: Indices
    blocks: int

    @staticmethod
    def of(size: int, block: int, fold: int) -> _Cuts:
        step = fold or block
        start = np.arange(0, size, step, dtype=np.int64)
        return _Cuts(start, np.minimum(start + step, size), start // block, ceil_div(size, block))

    @property
    def length(self) -> Indices:
        return self.stop - self.start

    def bounds(self, block: Indices) -> tuple[Indices, Indices]:
        """Where these blocks start and stop."""
        opens = np.flatnonzero(np.diff(self.block, prepend=-1))
        ends = np.append(opens[1:], len(self.block)) - 1
        return self.start[opens[block]], self.stop[ends[block]]


@dataclass(frozen=True, slots=True)
class _Moves:
    """Blocks of one operand in order of use: the fold that first uses each, and its real elements."""

    at: Indices
    elements: Indices


class _Mapping:
    """One product on one array. Folds are arrays of indices; loops are over distinct commands."""

    def __init__(
        self, product: Product, array: Systolic, hardware: Hardware, memory: Memory, whole: Product, share: Fraction
    ) -> None:
        self.product, self.array, self.hardware, self.memory, self.share = product, array, hardware, memory, share
        self.operands = (product.left, product.right, product.result)
        self.folding = self._folding(product)
        self.passes = hardware.passes(product.left.bits, product.right.bits)
        blocks = self._blocks(whole)
        self.spans, self.outer = blocks.spans, blocks.outer
        self.batch = _Cuts.of(product.batches, blocks.batches, 1)
        self.m = _Cuts.of(product.M, blocks.M, self.folding.M)
        self.n = _Cuts.of(product.N, blocks.N, self.folding.N)
        self.k = _Cuts.of(product.K, blocks.K, self.folding.K)
        builder = memory.builder
        self.engine = builder.engine("array", "array")
        self.free = [builder.pool(f"{name}.free", memory.buffer(name).copies, name) for name in NAMES]
        self.full = [builder.pool(f"{name}.full", 0) for name in NAMES]

    def _blocks(self, whole: Product) -> Blocks:
        """The blocks of the whole product if they serve this one, else its own."""
        if whole != self.product:
            try:
                blocks = self._search(whole)
            except MappingError:  # too wide for this array itself
                pass
            else:
                if fits(blocks, self.product, self.folding, self._lanes(self.product)):
                    return blocks
        return self._search(self.product)

    def _folding(self, product: Product) -> Folding:
        return Folding.of(self.array, self.array.multiplier.fused(product.left.bits, product.right.bits))

    def _search(self, product: Product) -> Blocks:
        passes = self.hardware.passes(product.left.bits, product.right.bits)
        dram = self.hardware.dram
        port = Fraction(0) if dram.port == "stream_share" else 8 * self.hardware.dram_bytes_per_cycle
        return choose_blocks(product, self._folding(product), passes, self._lanes(product), port)

    def emit(self) -> int:
        """Appends the commands in program order; returns the number of blocks."""
        batch, m, n, k = self.batch, self.m, self.n, self.k
        grid = np.meshgrid(*(np.arange(len(cut.start)) for cut in (batch, m, n, k)), indexing="ij")
        b_of, m_of, n_of, k_of = (index.ravel() for index in grid)
        # Block by block; inside a block the grid's own order stays: batch, M, N, and K innermost.
        rank = (m.block[m_of] * n.blocks + n.block[n_of]) if self.outer == "M" else (
            n.block[n_of] * m.blocks + m.block[m_of]
        )  # fmt: skip
        block = (batch.block[b_of] * (m.blocks * n.blocks) + rank) * k.blocks + k.block[k_of]
        order = np.argsort(block, kind="stable")
        b_of, m_of, n_of, k_of = b_of[order], m_of[order], n_of[order], k_of[order]

        moves = (
            self._moves(self.product.left, b_of, m, m_of, k, k_of),
            self._moves(self.product.right, b_of, k, k_of, n, n_of),
            self._moves(self.product.result, b_of, m, m_of, n, n_of),
        )
        folds = self._folds(m_of, n_of, k_of, [move.at for move in moves])
        self.memory.builder.emit(self._interleave(folds, moves))
        return batch.blocks * m.blocks * n.blocks * k.blocks

    def _moves(
        self,
        operand: Operand,
        b_of: Indices,
        rows: _Cuts,
        row_of: Indices,
        columns: _Cuts,
        column_of: Indices,
    ) -> _Moves:
        """Where the block of an operand changes from one fold to the next."""
        group, row, column = self.batch.block[b_of], rows.block[row_of], columns.block[column_of]
        block = (group * rows.blocks + row) * columns.blocks + column
        at = np.append(np.zeros(1, dtype=np.int64), np.flatnonzero(np.diff(block)) + 1)
        batches = np.bincount(self.batch.block)[group[at]]
        return _Moves(at, batches * operand.elements(*rows.bounds(row[at]), *columns.bounds(column[at])))

    def _folds(self, m_of: Indices, n_of: Indices, k_of: Indices, first: list[Indices]) -> Sequence32:
        """The command of every fold. Folds of one shape that begin and end the same blocks share it."""
        m, n, k = self.m, self.n, self.k
        # Bits 0..2: the first fold of a block of left, right, result; bits 3..5: the last one.
        edges = np.zeros(len(m_of), dtype=np.int64)
        for i, at in enumerate(first):
            edges[at] += 1 << i
            edges[np.append(at[1:], len(edges)) - 1] += 8 << i
        rows = self.product.useful_rows
        useful = np.minimum(m.stop, rows) - np.minimum(m.start, rows)
        m_kinds, m_kind = np.unique(np.stack((m.length, useful)), axis=1, return_inverse=True)
        n_kinds, n_kind = np.unique(n.length, return_inverse=True)
        k_kinds, k_kind = np.unique(np.stack((k.length, k.start == 0)), axis=1, return_inverse=True)
        shape = (m_kinds.shape[1], len(n_kinds), k_kinds.shape[1], 64)
        code = np.ravel_multi_index((m_kind.ravel()[m_of], n_kind[n_of], k_kind.ravel()[k_of], edges), shape)
        commands = np.zeros(int(np.prod(shape)), dtype=np.int32)
        for used in np.flatnonzero(np.bincount(code)).tolist():
            i, j, depth, edge = (int(index) for index in np.unravel_index(used, shape))
            m_size, useful_rows = m_kinds[:, i].tolist()
            k_size, opens_sum = k_kinds[:, depth].tolist()
            commands[used] = self._fold(m_size, useful_rows, int(n_kinds[j]), k_size, bool(opens_sum), edge)
        return commands[code]

    def _fold(self, m: int, useful_rows: int, n: int, k: int, opens_sum: bool, edges: int) -> int:
        """One fold of m × n × k: its cycles, its hand-shakes, its accesses."""
        left, right, result = self.operands
        # Of unwanted results the array does all, nothing, or not even takes the time, as its spec says.
        manner, all_ = self.array.unwanted_results, Fraction(1)
        busy = self.share if manner == "packed" else all_
        cycles = part(self.folding.cycles(self.folding.streamed(m, n, k), self.passes), busy)
        # Work: `passes` lane-cycles for every MAC of the nest, or for as many as a lane fuses; the others are idle.
        macs = useful_rows * n * ceil_div(k, self.folding.fused) * self.passes
        macs = part(macs, all_ if manner == "computed" else self.share)
        unit = self.array.multiplier
        bias = n if self.product.bias and opens_sum else 0
        sums = self._words(RESULT, m * n, self._partial_bits(result))
        counts: list[tuple[Action, int]] = [
            (("array", f"mac_{unit.format}{unit.bits}", ""), macs),
            (("array", "idle", ""), self.array.lanes * cycles - macs),
        ]
        accesses: list[tuple[Action, int]] = [
            # Operands: each element of the fold's matrices enters the array once and is passed on inside it.
            (("buffer.input", "read", left.role), self._words(0, m * k, self._stored(left))),
            (("buffer.weight", "read", right.role), self._words(1, k * n + bias, self._stored(right))),
            # Sums: a fold writes m × n of them; all but the first fold of K read what is there and add.
            (("buffer.output", "read", result.role), 0 if opens_sum else sums),
            (("buffer.output", "write", result.role), sums),
        ]
        counts += ((action, part(words, busy)) for action, words in accesses)
        begins, ends = ([i for i in range(3) if edges >> shift + i & 1] for shift in (0, 3))
        takes = [((self.free if i == RESULT else self.full)[i], self.spans[i]) for i in begins]
        gives = [((self.full if i == RESULT else self.free)[i], self.spans[i]) for i in ends]
        return self.memory.builder.command("fold", [(self.engine, cycles)], takes, gives, counts=counts)

    def _interleave(self, folds: Sequence32, moves: tuple[_Moves, ...]) -> Sequence32:
        """Folds with loads and stores between them, in an order that a DRAM port can keep to.

        With s slots in a buffer, load j stands where slot j - s becomes free: behind the last fold that used
        it, ahead of the store of that fold. So a command waits for earlier ones only, and no load is behind
        a store that it does not need.
        """
        before: list[Indices] = []
        commands: list[Sequence32] = []
        for i, move in enumerate(moves):
            if i == RESULT:
                before.append(np.append(move.at[1:], len(folds)))
            else:
                slots = self.memory.buffer(NAMES[i]).copies // self.spans[i]
                before.append(np.append(np.zeros(slots, dtype=np.int64), move.at[1:])[: len(move.at)])
            sizes, size_of = np.unique(move.elements, return_inverse=True)
            commands.append(np.array([self._move(i, int(size)) for size in sizes], dtype=np.int32)[size_of])
        # What a product hands over goes through DRAM: its last store frees the first load of the next.
        stored = ((self.memory.builder.pool("product.stored", 0), 1),)
        if self.product.takes_over:
            commands[0][0] = self._move(0, int(moves[0].elements[0]), takes=stored)
        if self.product.hands_over:
            commands[RESULT][-1] = self._move(RESULT, int(moves[RESULT].elements[-1]), gives=stored)
        # Before the same fold: loads ahead of stores, and what is needed first ahead of the rest.
        store = np.repeat([0, 0, 1], [len(move.at) for move in moves])
        gap = np.concatenate(before)
        order = np.lexsort((np.concatenate([move.at for move in moves]), store, gap))
        return np.insert(folds, gap[order], np.concatenate(commands)[order])

    def _move(self, i: int, elements: int, takes: Credits = (), gives: Credits = ()) -> int:
        """The load (input, weight) or store (output) of one block."""
        name, operand, store = NAMES[i], self.operands[i], i == RESULT
        elements = part(elements, self.share) if store else elements
        source, target = (self.full, self.free) if store else (self.free, self.full)
        return self.memory.command(
            f"{'store' if store else 'load'} {name}",
            Transfer(name, name, store, operand.role, elements, operand.bits),
            ((source[i], self.spans[i]), *takes),
            ((target[i], self.spans[i]), *gives),
        )

    def _lanes(self, product: Product) -> tuple[Lane, Lane, Lane]:
        return self._lane(0, product.left), self._lane(1, product.right), self._lane(RESULT, product.result)

    def _lane(self, i: int, operand: Operand) -> Lane:
        buffer, stream, hardware = self.memory.buffer(NAMES[i]), self.memory.stream(NAMES[i]), self.hardware
        pace = Fraction(stream.width_bits)
        if hardware.dram.port == "stream_share":
            pace = min(pace, 8 * hardware.dram_bytes_per_cycle / len(hardware.streams))
        moved_bits = self._stored(operand)
        held_bits = self._partial_bits(operand) if i == RESULT else moved_bits
        return Lane(
            NAMES[i], buffer.size_bytes, buffer.copies, held_bits, moved_bits, pace, stream.start_cycles
        )  # fmt: skip

    def _partial_bits(self, result: Operand) -> int:
        return self.hardware.storage_bits(max(result.bits, PARTIAL_SUM_BITS))

    def _stored(self, operand: Operand) -> int:
        return self.hardware.storage_bits(operand.bits)

    def _words(self, i: int, elements: int, bits: int) -> int:
        """Words of a buffer that hold so many elements."""
        return ceil_div(elements * bits, self.memory.buffer(NAMES[i]).word_bits)
