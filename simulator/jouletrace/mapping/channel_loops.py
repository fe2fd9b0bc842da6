"""The loops of convolutions and matrix products on Tm × Tn multiply-accumulate lanes, as steps to be issued.

Loop orders, outermost first, with the symbols of EF-Train (arXiv 2202.10935, Sec. 4) and Zhang et al. (FPGA 2015):

* forward, backward-data, weights resident: blocks of M_on output channels; images; Tm tiles; map tiles; **Tn tiles**.
  Weights come with the first image. Backward-data reads the same weight tiles transposed, which breaks the contiguous
  run at every reduction step, so the whole block of a step is fetched at once during the block's first loop.
* weights streaming (a block does not fit): the same, and every step brings its weights.
* backward-weight, map in one tile: Tm tiles; images; **Tn tiles**, the output-side operand loaded once per image.
* backward-weight, several map tiles: blocks of M_on; images; Tm tiles; Tn tiles; **map tiles**.
* backward-weight, gradients of a block do not fit: Tm tiles; Tn tiles; images; **map tiles**.

The bold loop is the reduction loop. Kernel gradients are accumulated on chip and stored with the last image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.issue import GRADIENT, WEIGHT_TILE, Issuer, Loop, Step
from jouletrace.mapping.layout import bursts, group_of
from jouletrace.mapping.loops import Loops
from jouletrace.mapping.plan import part
from jouletrace.mapping.program import Action
from jouletrace.mapping.tiles import Tile, stored_channels
from jouletrace.mapping.transfer import Transfer, ceil_div

__all__ = ["FEW", "Plan"]

# First, middle and last images are issued differently, and the first of the middle ones stands for no other: from this
# many images on, a further one repeats the others of the middle once more and changes nothing else.
FEW = 4


@dataclass(frozen=True, slots=True)
class _Patch:
    """A tile of the output map: real and transferred size, and the rows × columns of work in it."""

    rows: int
    columns: int
    work: int
    useful: int


class Plan:
    """The reduction loops of one packed group under one tile, of whose results a ``share`` is wanted."""

    def __init__(
        self, hardware: Hardware, array: ChannelParallel, problem: Loops, tile: Tile, full: bool, share: Fraction
    ) -> None:
        self.hardware, self.array, self.p, self.tile, self.full = hardware, array, problem, tile, full
        self.share = share
        self.patches = [
            _Patch(h.size, w.size, h.work * w.work, h.useful * w.useful)
            for h in _axis(problem.rows, tile.rows, problem.work_rows, problem.map_rows, problem.role, full)
            for w in _axis(problem.columns, tile.columns, problem.work_columns, problem.map_columns, problem.role, full)
        ]
        self.ins = _parts(problem.in_channels, tile.in_channels)

    def issue(self, issuer: Issuer) -> int:
        """Issues all images of this group; returns load-compute-store groups."""
        if self.p.role != "backward_weight":
            return self._issue_maps(issuer)
        if self.tile.resident == 0:
            return self._issue_kernels_one_by_one(issuer)
        if len(self.patches) == 1:
            return self._issue_kernels_by_map(issuer)
        return self._issue_kernels_by_block(issuer)

    # -- forward and backward-data -----------------------------------------------------------------

    def _issue_maps(self, issuer: Issuer) -> int:
        images, tiles = self.p.images, 0
        every_image = self.array.schedule.weights_stay_for == "image" and self.tile.resident > 0
        for block in _parts(self.p.out_channels, self.tile.resident or self.p.out_channels):
            outs = _parts(block, self.tile.out_channels)
            first = self._map_body(block, outs, fetch=True, last=images == 1 or every_image)
            if every_image:
                issuer.emit(first, images)
            else:
                issuer.emit(first)
                if images > 2:
                    issuer.emit(self._map_body(block, outs, fetch=False, last=False), images - 2)
                if images > 1:
                    issuer.emit(self._map_body(block, outs, fetch=False, last=True))
            tiles += images * len(outs) * len(self.patches) * len(self.ins)
        return tiles

    def _map_body(self, block: int, outs: list[int], *, fetch: bool, last: bool) -> list[Loop]:
        """One image: Tm tiles × map tiles, each a reduction loop over Tn tiles."""
        made: dict[tuple[object, ...], Loop] = {}
        body: list[Loop] = []
        count = len(outs) * len(self.patches)
        for m, out in enumerate(outs):
            for r, patch in enumerate(self.patches):
                ends = (not body, len(body) + 1 == count)
                weights = self._weights(fetch, m, r, block, out)
                key = (out, patch, weights, ends, last and ends[1])
                if key not in made:
                    made[key] = self._map_loop(out, patch, weights, ends, frees=last and ends[1])
                body.append(made[key])
        return body

    def _weights(self, fetch: bool, m: int, r: int, block: int, out: int) -> tuple[str, int]:
        """How the weights of a loop come: with every step, tile by tile, a block at a time, or not at all."""
        if self.tile.resident == 0:
            return "stream", out
        if not fetch or r > 0:
            return "", 0
        if self.p.role == "forward":
            return ("open" if m == 0 else "tile"), out
        return ("block", block) if m == 0 else ("", 0)

    def _map_loop(
        self, out: int, patch: _Patch, weights: tuple[str, int], ends: tuple[bool, bool], *, frees: bool
    ) -> Loop:
        manner, weight_out = weights
        steps: list[Step] = []
        made: dict[tuple[object, ...], Step] = {}
        for n, in_ in enumerate(self.ins):
            first, last = n == 0, n == len(self.ins) - 1
            key = (in_, first, last)
            if key not in made:
                loads = [self._input(patch, in_)]
                occupies, releases = ["input"], ["input"]
                if manner:
                    transposed = self.p.role == "backward_data"
                    opens = transposed or (first and manner in ("open", "stream"))
                    loads.append(self._kernel("weight", weight_out, in_, opens=opens, closes=last, write=False))
                if manner == "stream":
                    occupies.append(WEIGHT_TILE)
                    releases.append(WEIGHT_TILE)
                elif manner in ("open", "block") and first:
                    occupies.append("weight")
                if manner != "stream" and frees and last:
                    releases.append("weight")
                if first:
                    occupies.append("output")
                store = self._map_store(out, patch, ends) if last else None
                made[key] = Step(
                    tuple(loads), *self._work(out, in_, patch), tuple(occupies), tuple(releases), store, "output"
                )
            steps.append(made[key])
        return Loop(tuple(steps))

    # -- backward-weight ---------------------------------------------------------------------------

    def _issue_kernels_by_map(self, issuer: Issuer) -> int:
        """Tm tiles; images; Tn tiles. The map is one tile, so every step completes its part of an image."""
        images, patch = self.p.images, self.patches[0]
        outs = _parts(self.p.out_channels, self.tile.out_channels)
        for m, out in enumerate(outs):
            run = (m == 0, m == len(outs) - 1)
            for first, last, times in _image_classes(images):
                issuer.emit([self._kernel_map_loop(out, patch, first=first, last=last, run=run)], times)
        return images * len(outs) * len(self.ins)

    def _kernel_map_loop(
        self, out: int, patch: _Patch, *, first: bool, last: bool, run: tuple[bool, bool]
    ) -> Loop:
        steps: list[Step] = []
        end = len(self.ins) - 1
        for n, in_ in enumerate(self.ins):
            loads = [self._input(patch, in_)] + ([self._operand(patch, out)] if n == 0 else [])
            occupies = ["input"] + (["operand"] if n == 0 else []) + ([GRADIENT] if first and n == 0 else [])
            releases = ["input"] + (["operand"] if n == end else [])
            opens, closes = run[0] and n == 0, run[1] and n == end
            store = self._kernel("output", out, in_, opens=opens, closes=closes, write=True) if last else None
            steps.append(
                Step(
                    tuple(loads), *self._work(out, in_, patch), tuple(occupies), tuple(releases), store, GRADIENT,
                    n == end,
                )
            )  # fmt: skip
        return Loop(tuple(steps), serial=True)

    def _issue_kernels_by_block(self, issuer: Issuer) -> int:
        """Blocks of M_on; images; Tm tiles; Tn tiles; map tiles."""
        images, tiles = self.p.images, 0
        for block in _parts(self.p.out_channels, self.tile.resident):
            outs = _parts(block, self.tile.out_channels)
            pairs = [(out, in_) for out in outs for in_ in self.ins]
            for first, last, times in _image_classes(images):
                body: list[Loop] = []
                made: dict[tuple[object, ...], Loop] = {}
                for i, (out, in_) in enumerate(pairs):
                    key = (out, in_, i == 0, i == len(pairs) - 1)
                    if key not in made:
                        made[key] = self._kernel_loop(
                            out, in_, occupies=first and i == 0, stores=last, run=(key[2], key[3]), releases=key[3]
                        )
                    body.append(made[key])
                issuer.emit(body, times)
            tiles += images * len(pairs) * len(self.patches)
        return tiles

    def _issue_kernels_one_by_one(self, issuer: Issuer) -> int:
        """Tm tiles; Tn tiles; images; map tiles: only one tile of kernel gradients is kept."""
        images = self.p.images
        outs = _parts(self.p.out_channels, self.tile.out_channels)
        made: dict[tuple[object, ...], Loop] = {}
        for out in outs:
            for in_ in self.ins:
                for first, last, times in _image_classes(images):
                    key = (out, in_, first, last)
                    if key not in made:
                        made[key] = self._kernel_loop(
                            out, in_, occupies=first, stores=last, run=(True, True), releases=True
                        )
                    issuer.emit([made[key]], times)
        return images * len(outs) * len(self.ins) * len(self.patches)

    def _kernel_loop(
        self, out: int, in_: int, *, occupies: bool, stores: bool, run: tuple[bool, bool], releases: bool
    ) -> Loop:
        """One image's contribution to one tile of kernel gradients, map tile by map tile."""
        made: dict[tuple[object, ...], Step] = {}
        steps: list[Step] = []
        end = len(self.patches) - 1
        for r, patch in enumerate(self.patches):
            key = (patch, r == 0, r == end)
            if key not in made:
                taken = ("input", "operand", GRADIENT) if occupies and r == 0 else ("input", "operand")
                store = (
                    self._kernel("output", out, in_, opens=run[0], closes=run[1], write=True)
                    if stores and r == end
                    else None
                )
                made[key] = Step(
                    (self._input(patch, in_), self._operand(patch, out)), *self._work(out, in_, patch),
                    taken, ("input", "operand"), store, GRADIENT, releases,
                )  # fmt: skip
            steps.append(made[key])
        return Loop(tuple(steps))

    # -- transfers and work ------------------------------------------------------------------------

    def _input(self, patch: _Patch, in_: int) -> Transfer:
        p = self.p
        full = min(in_, p.in_channels) if p.unpadded_input else self.tile.in_channels
        channels = stored_channels(self.hardware, in_, p.bits[0], "input", full)
        rows, columns = p.input_rows(patch.rows), p.input_columns(patch.columns)
        if not self.full:  # padding is not stored: it is made on chip
            rows, columns = min(rows, p.map_rows), min(columns, p.map_columns)
        parts = self._bursts(patch, full if self.full else in_, p.in_channels, self.array.in_channels, rows, columns)
        return Transfer("input", "input", False, p.roles[0], channels * rows * columns, p.bits[0], bursts=parts)

    def _bursts(self, patch: _Patch, channels: int, of: int, lanes: int, rows: int, columns: int) -> int:
        """Contiguous pieces of ``rows`` × ``columns`` of a map, of which the patch covers the whole or a part."""
        p = self.p
        group = 0 if p.is_product else group_of(self.array.layout, lanes, of)
        whole = (patch.rows >= p.rows, patch.columns >= p.columns)
        return int(bursts(group, min(channels, of), rows, columns, *whole))

    def _out(self, out: int) -> int:
        """Channels of an output tile as it lies in DRAM, where loop bounds are fixed at synthesis."""
        return self.tile.out_channels if self.full else out

    def _operand(self, patch: _Patch, out: int) -> Transfer:
        p = self.p
        channels = stored_channels(self.hardware, out, p.bits[1], "operand", self.tile.out_channels)
        parts = self._bursts(patch, self._out(out), p.out_channels, self.array.out_channels, patch.rows, patch.columns)
        values = channels * patch.rows * patch.columns
        return Transfer("operand", "operand", False, p.roles[1], values, p.bits[1], bursts=parts)

    def _kernel(self, stream: str, out: int, in_: int, *, opens: bool, closes: bool, write: bool) -> Transfer:
        """Kernel values of a channel tile: weights coming in, or gradients going out (role ``backward_weight``)."""
        p = self.p
        which = 2 if write else 1
        if self.full:
            out = ceil_div(out, self.array.out_channels) * self.array.out_channels
            if not p.unpadded_input:  # kernels of the first layer are stored for the channels that it has
                in_ = ceil_div(in_, self.array.in_channels) * self.array.in_channels
        pairs = out * in_ if self.full else out * in_ // p.packed
        values = part(pairs * p.taps, self.share) if write else pairs * p.taps
        return Transfer(stream, "weight", write, p.roles[which], values, p.bits[which], opens, closes)

    def _map_store(self, out: int, patch: _Patch, ends: tuple[bool, bool]) -> Transfer:
        p = self.p
        channels = stored_channels(self.hardware, out, p.bits[2], "output", self.tile.out_channels)
        values = part(channels * patch.rows * patch.columns, self.share)
        parts = self._bursts(patch, self._out(out), p.out_channels, self.array.out_channels, patch.rows, patch.columns)
        return Transfer("output", "output", True, p.roles[2], values, p.bits[2], *ends, bursts=parts)

    def _work(self, out: int, in_: int, patch: _Patch) -> tuple[int, tuple[tuple[Action, int], ...]]:
        """Cycles of one compute, and the accesses that it makes.

        Every cycle reads one word per input lane (or as many as a lane fuses) and accumulates one per output lane; a
        kernel value is read once per tap and fold and then held in a register (loop order kernel, rows, columns: the
        map runs innermost). Of unwanted results the array does all, nothing, or not even takes the time, as its spec
        says.
        """
        p, array = self.p, self.array
        folds = ceil_div(out, array.out_channels) * ceil_div(in_, array.in_channels * p.fused_channels)
        iterations = folds * ceil_div(patch.work, p.fused_positions) * p.taps * p.passes
        manner, all_ = array.unwanted_results, Fraction(1)
        busy = self.share if manner == "packed" else all_
        cycles = part(iterations * array.initiation_interval, busy)
        pairs = out * ceil_div(in_ // p.packed, p.fused_channels)
        useful = pairs * ceil_div(patch.useful, p.fused_positions) * p.taps * p.passes
        useful = part(useful, all_ if manner == "computed" else self.share)
        unit = array.multiplier
        kernel_reads = folds * array.lanes * p.taps * p.passes * p.fused_channels
        x, w, y = (self._words_of(bits) for bits in p.bits)
        counts: list[tuple[Action, int]] = [
            (("array", f"mac_{unit.format}{unit.bits}", ""), useful),
            (("array", "idle", ""), cycles * array.lanes - useful),
        ]
        accesses: list[tuple[Action, int]] = [
            (("buffer.input", "read", p.roles[0]), iterations * array.in_channels * p.fused * x)
        ]
        if p.role == "backward_weight":
            accesses += [
                (("buffer.operand", "read", p.roles[1]), iterations * array.out_channels * p.fused * w),
                (("buffer.weight", "read", p.roles[2]), kernel_reads * y),
                (("buffer.weight", "write", p.roles[2]), kernel_reads * y),
            ]
        else:
            accesses += [
                (("buffer.weight", "read", p.roles[1]), kernel_reads * w),
                (("buffer.output", "read", p.roles[2]), iterations * array.out_channels * y),
                (("buffer.output", "write", p.roles[2]), iterations * array.out_channels * y),
            ]
        return cycles, (*counts, *((action, part(n, busy)) for action, n in accesses))

    def _words_of(self, bits: int) -> int:
        """Words of the datapath per operand and pass: a lane reads no more than it multiplies at once."""
        return ceil_div(min(bits, self.array.multiplier.bits), self.hardware.word_bits)


def _parts(total: int, size: int) -> list[int]:
    """
    >>> _parts(10, 4)
    [4, 4, 2]
    """
    return [size] * (total // size) + ([total % size] if total % size else [])


@dataclass(frozen=True, slots=True)
class _Extent:
    size: int
    work: int
    useful: int


def _axis(total: int, tile: int, work: int, gathered: int, role: str, full: bool) -> list[_Extent]:
    """Tiles of one axis of the map.

    ``useful`` shares out the mathematical work exactly: an output row of backward-data under a stride sees only
    part of the taps, so its tiles get what falls between their ends, and the sum is the whole.
    """
    real = gathered if role == "backward_data" else total
    extents: list[_Extent] = []
    start = 0
    while start < total:
        end = min(start + tile, total)
        size = tile if full else end - start
        share = (end * work // total) - (start * work // total)
        useful = (end * real // total) - (start * real // total)
        extents.append(_Extent(size, max(ceil_div(size * work, total) if full else share, useful), useful))
        start = end
    return extents


def _image_classes(images: int) -> Iterator[tuple[bool, bool, int]]:
    """First, middle and last images with their numbers: only the first opens and only the last stores."""
    if images == 1:
        yield True, True, 1
        return
    yield True, False, 1
    if images > 2:
        yield False, False, images - 2
    yield False, True, 1
