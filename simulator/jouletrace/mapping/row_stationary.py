"""Convolutions and products on a row-stationary array: two array commands per processing pass.

``fill`` brings kernels and the first window to the elements, ``pass`` is the rest
(:mod:`jouletrace.mapping.row_passes`). Kernels are fetched from DRAM while the pass before works, as filling empties
their buffer. Maps and sums share the global buffer: with one copy of it, no map is loaded and no result stored while
the array works, which is how Eyeriss is built (Chen et al., JSSC 2017); with two, transfers run ahead.

Maps stay in the global buffer for all filters whose sums are there, sums until every channel is added; then they are
stored once. What the elements or the buffer still hold from the pass before is not loaded again.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Hardware, RowStationary
from jouletrace.mapping.fusion import FusionPlan
from jouletrace.mapping.matrix import Axis, Indices
from jouletrace.mapping.plan import Base, part, wanted_share
from jouletrace.mapping.program import Sequence32
from jouletrace.mapping.row_convolution import RowConvolution, row_convolutions
from jouletrace.mapping.row_passes import Cuts, Machine, Pass, Passes
from jouletrace.mapping.row_tiling import Letters, Room, Worth, choose_letters, fits, hull
from jouletrace.mapping.run_length import coded_bytes
from jouletrace.mapping.transfer import Memory, Transfer
from jouletrace.trace.model import Conv, Op, Tensor, Trace

__all__ = ["map_row_stationary"]

Credits = tuple[tuple[int, int], ...]
# Buffers and streams of maps, kernels and outputs, by index.
NAMES = ("input", "weight", "output")
MAPS, KERNELS, OUTPUTS = range(3)


def map_row_stationary(
    op: Op, trace: Trace, hardware: Hardware, memory: Memory, fusion: FusionPlan, base: Base | None = None
) -> int:
    """Maps a conv, gemm or attention op into the open op of ``memory.builder``; returns its tiles.

    A tile is one load-compute-store group: the passes from one store to the next. Letters are the published ones of
    the shape, or those of ``base`` where they fit, or the best found. Raises MappingError if a row fits no buffer.
    """
    array = hardware.array
    assert isinstance(array, RowStationary)
    found = row_convolutions(op, trace, _leaving(op, trace, fusion))
    planned = found if base is None else row_convolutions(base.op, base.trace)
    tiles = 0
    for conv, whole in zip(found, planned, strict=True):
        room = Room.of(conv, hardware)
        letters = _published(op if base is None else base.op, array)
        if letters is None and whole != conv:
            letters = _letters(whole, hardware)
        if letters is None or not fits(letters, conv, room):
            try:
                letters = choose_letters(_dense(conv), room, Worth.of(hardware))
            except MappingError as error:
                raise MappingError(f"op {op.name!r} fits no mapping on {hardware.name!r}: {error}") from None
        tiles += _Mapping(conv, letters, hardware, memory, wanted_share(op)).emit()
    return tiles


def _leaving(op: Op, trace: Trace, fusion: FusionPlan) -> Tensor:
    """What leaves in place of what the op writes: the result of the last function that rides on its store."""
    riders = {host: rider for rider, host in fusion.hosts.items()}
    last = op.name
    while last in riders:
        last = riders[last]
    return trace.tensor[trace.op[last].writes[0]]


def _published(op: Op, array: RowStationary) -> Letters | None:
    nest = op.nest
    if not isinstance(nest, Conv):
        return None
    shape = (nest.role, nest.K, nest.C, nest.OY, nest.OX, nest.R)
    for t in array.tilings:
        if shape == (t.phase, t.out_channels, t.in_channels, t.rows, t.columns, t.kernel):
            return Letters(t.m, t.n, t.e, t.p, t.q, t.r, t.t, nest.R, nest.S)
    return None


def _letters(conv: RowConvolution, hardware: Hardware) -> Letters | None:
    """The letters of the whole op for which the accelerator was planned, if it can be mapped itself."""
    try:
        return choose_letters(_dense(conv), Room.of(conv, hardware), Worth.of(hardware))
    except MappingError:
        return None


class _Mapping:
    """One convolution on one array. Passes are arrays of indices; loops are over distinct commands."""

    def __init__(
        self, conv: RowConvolution, letters: Letters, hardware: Hardware, memory: Memory, share: Fraction
    ) -> None:
        self.conv, self.letters, self.hardware, self.memory, self.share = conv, letters, hardware, memory, share
        self.machine = Machine(conv, letters, hardware, share)
        self.passes = Passes(conv, letters)
        builder = memory.builder
        self.engine = builder.engine("array", "array")
        self.free = [builder.pool(f"{name}.free", memory.buffer(name).copies, name) for name in NAMES]
        self.full = [builder.pool(f"{name}.full", 0) for name in NAMES]

    def emit(self) -> int:
        """Appends the commands in program order; returns the number of tiles."""
        blocks = (self.passes.map_block, self.passes.kernel_block, self.passes.output_block)
        first = [np.flatnonzero(np.diff(block, prepend=-1)) for block in blocks]
        fills, windows = self._array_commands(first)
        self.memory.builder.emit(self._interleave(fills, windows, first))
        self._store_zeros()
        return len(first[OUTPUTS])

    def _array_commands(self, first: list[Indices]) -> tuple[Sequence32, Sequence32]:
        """Both commands of every pass. Passes of one shape that begin and end the same blocks share them."""
        passes, count = self.passes, len(self.passes.image)
        edges = np.zeros(count, dtype=np.int64)
        for i, at in enumerate(first):
            edges[at] += 1 << i
            edges[np.append(at[1:], count) - 1] += 8 << i
        strips, rows = passes.strips, self.conv.useful[0]
        useful = np.minimum(strips.stop, rows) - np.minimum(strips.start, rows)
        kinds = [
            _kinds(passes.images.length)[passes.image],
            _kinds(strips.length * (rows + 1) + useful)[passes.strip],
            _kinds(passes.filters.length)[passes.filter],
            _kinds(passes.channels.length)[passes.channel],
            _kinds(passes.taps.length)[passes.tap],
            _kinds(passes.segments.length)[passes.segment],
            passes.opens_sum.astype(np.int64),
            edges,
        ]
        code = np.ravel_multi_index(kinds, [int(kind.max()) + 1 for kind in kinds])
        _, at, which = np.unique(code, return_index=True, return_inverse=True)
        made = [self._pass(i, int(useful[passes.strip[i]]), int(edges[i])) for i in at.tolist()]
        commands = np.array(made, dtype=np.int32).reshape(-1, 2)[which.ravel()]
        return commands[:, 0], commands[:, 1]

    def _pass(self, i: int, useful_rows: int, edges: int) -> tuple[int, int]:
        """The fill and the rest of pass ``i``: cycles, hand-shakes, accesses."""
        machine, work = self.machine, self._sizes(i, useful_rows, bool(edges & 1 << KERNELS))
        begins, ends = ([b for b in range(3) if edges >> shift + b & 1] for shift in (0, 3))
        fill, windows = machine.fill_cycles(work), machine.window_cycles(work)
        counts = machine.window_counts(work)
        macs = counts[0][1]
        lanes, command = self.hardware.array.lanes, self.memory.builder.command
        kernels = ((self.free[KERNELS], 1),) if KERNELS in begins else ()
        return (
            command(
                "fill", [(self.engine, fill)], [((self.free if b == OUTPUTS else self.full)[b], 1) for b in begins],
                kernels,
                counts=[*machine.fill_counts(work), (("array", "idle", ""), lanes * fill)],
            ),
            command(
                "pass", [(self.engine, windows)], (),
                [((self.full if b == OUTPUTS else self.free)[b], 1) for b in ends if b != KERNELS],
                counts=[*counts, (("array", "idle", ""), lanes * windows - macs)],
            ),
        )  # fmt: skip

    def _sizes(self, i: int, useful_rows: int, new_kernels: bool) -> Pass:
        passes, tap = self.passes, int(self.passes.tap[i])

        def length(cuts: Cuts, index: Indices) -> int:
            return int(cuts.length[index[i]])

        rows = length(passes.strips, passes.strip)
        first, last = int(passes.taps.start[tap]), int(passes.taps.stop[tap]) - 1
        return Pass(
            length(passes.images, passes.image), rows, useful_rows, length(passes.filters, passes.filter),
            length(passes.channels, passes.channel), last - first + 1, length(passes.segments, passes.segment),
            int(hull(self.conv.rows, np.array([rows]), first, last)[0]), bool(passes.opens_sum[i]), new_kernels,
        )  # fmt: skip

    def _interleave(self, fills: Sequence32, windows: Sequence32, first: list[Indices]) -> Sequence32:
        """Fills and passes with loads and stores between them, in an order that a DRAM port can keep to.

        With s copies of a buffer, load j stands where copy j - s becomes free: for kernels behind the fill, for maps
        behind the pass that used it last, and behind the stores of what that pass completed. Time on the axis of the
        program: pass i fills at 2i and works at 2i + 1.
        """
        steps = np.stack((fills, windows), axis=1).ravel()
        before: list[Indices] = []
        commands: list[Sequence32] = []
        for b, at in enumerate(first):
            if b == OUTPUTS:
                before.append(np.append(2 * at[1:], len(steps)))
                elements, load = self._output_elements(at), self._store
            else:
                copies = self.memory.buffer(NAMES[b]).copies
                freed = 2 * at[:-1] + 1 if b == KERNELS else 2 * at[1:]
                before.append(np.append(np.zeros(copies, dtype=np.int64), freed)[: len(at)])
                if b == KERNELS:
                    elements, load = self._kernel_elements(at), self._load_kernels
                else:
                    elements, load = self._map_elements(at), self._load_maps
            sizes, which = np.unique(elements, return_inverse=True)
            moves = np.array([load(int(size)) for size in sizes], dtype=np.int32)[which.ravel()]
            stored = ((self.memory.builder.pool("product.stored", 0), 1),)
            if b == MAPS and self.conv.takes_over:
                moves[0] = self._load_maps(int(elements[0]), stored)
            if b == OUTPUTS and self.conv.hands_over:
                moves[-1] = self._store(int(elements[-1]), stored)
            commands.append(moves)
        # At one place: stores first, as they free sums; then what is needed first.
        gap = np.concatenate(before)
        load_or_store = np.repeat([1, 1, 0], [len(at) for at in first])
        order = np.lexsort((np.concatenate(first), load_or_store, gap))
        return np.insert(steps, gap[order], np.concatenate(commands)[order])

    def _map_elements(self, at: Indices) -> Indices:
        """Real elements of the maps under a pass: padding is not stored in DRAM."""
        passes = self.passes
        rows = _touched(self.conv.rows, passes.strips, passes.taps)[passes.strip[at], passes.tap[at]]
        whole = Cuts.of(self.conv.columns.positions, self.conv.columns.positions)
        columns = _touched(self.conv.columns, whole, passes.segments)[0, passes.segment[at]]
        return passes.images.length[passes.image[at]] * passes.channels.length[passes.channel[at]] * rows * columns

    def _kernel_elements(self, at: Indices) -> Indices:
        passes = self.passes
        filters = passes.filters.length[passes.filter[at]]
        taps = passes.taps.length[passes.tap[at]] * passes.segments.length[passes.segment[at]]
        bias = filters * passes.opens_sum[at] if self.conv.bias else 0
        return filters * passes.channels.length[passes.channel[at]] * taps + bias

    def _output_elements(self, at: Indices) -> Indices:
        passes, (rows, columns) = self.passes, self.conv.stored
        wide = int(columns.touched(np.array([0]), np.array([columns.positions - 1]))[0])
        tall = rows.touched(passes.strips.start, passes.strips.stop - 1)[passes.strip[at]]
        return passes.images.length[passes.image[at]] * passes.resident.length[passes.resident_of[at]] * tall * wide

    def _load_maps(self, elements: int, takes: Credits = ()) -> int:
        return self._move(MAPS, elements, (self.free[MAPS], self.full[MAPS]), takes)

    def _load_kernels(self, elements: int) -> int:
        return self._move(KERNELS, elements, (self.free[KERNELS], self.full[KERNELS]))

    def _store(self, elements: int, gives: Credits = ()) -> int:
        pools = (self.full[OUTPUTS], self.free[OUTPUTS])
        return self._move(OUTPUTS, part(elements, self.share), pools, gives=gives)

    def _move(
        self, i: int, elements: int, pools: tuple[int, int] | None, takes: Credits = (), gives: Credits = ()
    ) -> int:
        """One transfer of a block, coded as the hardware codes tensors of its role."""
        store, tensors = i == OUTPUTS, self.conv.tensors
        transfer = Transfer(NAMES[i], NAMES[i], store, tensors.roles[i], elements, tensors.bits[i])
        transfer = replace(transfer, coded_bytes=self._coded(i, elements))
        if pools is not None:
            takes, gives = ((pools[0], 1), *takes), ((pools[1], 1), *gives)
        return self.memory.command(f"{'store' if store else 'load'} {NAMES[i]}", transfer, takes, gives)

    def _coded(self, i: int, elements: int) -> int | None:
        array, tensors = self.hardware.array, self.conv.tensors
        assert isinstance(array, RowStationary)
        code = array.compression
        if code is None or not code.applies_to(tensors.roles[i]):
            return None
        return coded_bytes(elements, self.hardware.storage_bits(tensors.bits[i]), tensors.densities[i], code)

    def _store_zeros(self) -> None:
        """Stores a gradient that no tap reaches, a buffer at a time; the array has no part in it."""
        bits = self.hardware.storage_bits(self.conv.tensors.bits[OUTPUTS])
        copy = self.memory.buffer("output").size_bytes * 8 // bits
        whole, rest = divmod(part(self.conv.zeros, self.share), copy)
        for elements, times in ((copy, whole), (rest, min(rest, 1))):
            if times:
                self.memory.builder.emit([self._move(OUTPUTS, elements, None)], times)


def _dense(conv: RowConvolution) -> RowConvolution:
    """The same with dense values: mappings are planned before it is known which values will be zero."""
    tensors = replace(conv.tensors, roles=("", "", ""), densities=(Fraction(1),) * 3)
    return replace(conv, tensors=tensors, inside=Fraction(1))


def _kinds(values: Indices) -> Indices:
    """Values by the number of the distinct one that each is."""
    return np.unique(values, return_inverse=True)[1].ravel()


def _touched(axis: Axis, positions: Cuts, taps: Cuts) -> Indices:
    """Indices inside the map under every part of the positions (first axis) and of the taps (second)."""
    parts = [
        Axis(axis.positions, axis.stride, axis.offsets[start:stop], axis.size).touched(
            positions.start, positions.stop - 1
        )
        for start, stop in zip(taps.start.tolist(), taps.stop.tolist(), strict=True)
    ]
    return np.stack(parts, axis=1)
