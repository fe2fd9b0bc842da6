"""The processing passes of a row convolution: in which order they come, how long each takes, and what it accesses.

In a pass every element of a set holds one row of the kernel and slides it over one row of the map, for ``p`` filters
and ``q`` channels that share the scratchpads; the sums of a column of elements add up from element to element. A
*window* is one position of that sliding: ``p``·``q``·``segment`` multiply-accumulates in each element, one a cycle.

    fill      the filters and the first window are delivered, each over its own network, side by side
    windows   while one is worked on, the new columns of the next one arrive, and with them come the sums of the buffer;
              the sums of the one before leave. A window takes as long as the slowest of these
    drain     the last sums pass the pipeline, the elements above and the output network
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jouletrace.hardware.spec import Hardware, RowStationary
from jouletrace.mapping.matrix import Axis, Indices
from jouletrace.mapping.plan import part
from jouletrace.mapping.program import Action
from jouletrace.mapping.row_convolution import RowConvolution
from jouletrace.mapping.row_tiling import Letters
from jouletrace.mapping.transfer import ceil_div

__all__ = ["Cuts", "Machine", "Pass", "Passes", "step_columns"]


@dataclass(frozen=True, slots=True)
class Cuts:
    """One dimension in parts: where each starts and stops."""

    start: Indices
    stop: Indices

    @staticmethod
    def of(size: int, step: int) -> Cuts:
        start = np.arange(0, size, step, dtype=np.int64)
        return Cuts(start, np.minimum(start + step, size))

    def __len__(self) -> int:
        return len(self.start)

    @property
    def length(self) -> Indices:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Pass:
    """The sizes of one pass: images, output rows (and those with MACs of the nest), filters, channels, kernel taps.

    ``map_rows`` are rows of the map that are delivered, padding included. ``opens_sum``: no sums come in.
    ``new_kernels``: the elements do not hold the kernels from the pass before.
    """

    images: int
    rows: int
    useful_rows: int
    filters: int
    channels: int
    taps: int
    segment: int
    map_rows: int
    opens_sum: bool
    new_kernels: bool


class Passes:
    """All passes of a convolution by letters, in order: parallel arrays of indices into the parts of each dimension.

    From outer to inner loop: group, images, strip of output rows, resident filters; then channels, groups of kernel
    rows and of kernel columns, over which sums build up; then the filters of a pass.
    """

    def __init__(self, conv: RowConvolution, letters: Letters) -> None:
        self.images = Cuts.of(conv.images, letters.n)
        self.strips = Cuts.of(conv.rows.positions, letters.e)
        self.channels = Cuts.of(conv.channels, letters.q * letters.r)
        self.taps = Cuts.of(len(conv.rows.offsets), letters.taps)
        self.segments = Cuts.of(len(conv.columns.offsets), letters.segment)
        resident, together = Cuts.of(conv.filters, letters.m), letters.p * letters.t
        subs = [Cuts.of(int(size), together) for size in resident.length]
        self.resident = resident
        self.filters = Cuts(
            np.concatenate([cut.start + first for cut, first in zip(subs, resident.start, strict=True)]),
            np.concatenate([cut.stop + first for cut, first in zip(subs, resident.start, strict=True)]),
        )
        block_of = np.repeat(np.arange(len(resident)), [len(cut) for cut in subs])
        sums = len(self.channels) * len(self.taps) * len(self.segments)
        grid = np.meshgrid(
            np.arange(conv.groups), np.arange(len(self.images)), np.arange(len(self.strips)),
            np.arange(len(self.filters)), np.arange(sums), indexing="ij",
        )  # fmt: skip
        group, image, strip, filter_, sum_ = (axis.ravel() for axis in grid)
        outer = (group * len(self.images) + image) * len(self.strips) + strip
        order = np.argsort((outer * len(resident) + block_of[filter_]) * sums + sum_, kind="stable")
        self.image, self.strip, self.filter = image[order], strip[order], filter_[order]
        sum_ = sum_[order]
        self.channel, rest = np.divmod(sum_, len(self.taps) * len(self.segments))
        self.tap, self.segment = np.divmod(rest, len(self.segments))
        outer = outer[order]
        self.opens_sum = sum_ == 0
        # Which block of the outputs, the maps and the kernels each pass works on.
        self.output_block = outer * len(resident) + block_of[self.filter]
        self.map_block = outer * sums + sum_
        self.kernel_block = (group[order] * len(self.filters) + self.filter) * sums + sum_
        self.resident_of = block_of[self.filter]


def step_columns(axis: Axis, taps: int) -> int:
    """Columns that a window of so many taps needs anew when it moves on by one position.

    Where taps and steps do not lie on one grid (a dilated kernel; the gradient of a strided one), all of them.
    """
    dilation = axis.offsets[1] - axis.offsets[0] if len(axis.offsets) > 1 else 1
    return min(taps, axis.stride // dilation) if axis.stride % dilation == 0 else taps


class Machine:
    """One convolution by its letters on one hardware: cycles and accesses of its passes.

    ``share`` of the results are wanted. Filling and the rest of a pass are told apart, since filling is what empties
    the buffer of the filters.
    """

    def __init__(self, conv: RowConvolution, letters: Letters, hardware: Hardware, share: Fraction) -> None:
        assert isinstance(hardware.array, RowStationary)
        self.conv, self.letters, self.hardware, self.array = conv, letters, hardware, hardware.array
        self.share = share
        self.bits = [hardware.storage_bits(bits) for bits in conv.tensors.bits]
        self.passes = hardware.passes(*conv.tensors.bits[:2])

    def fill_cycles(self, work: Pass) -> int:
        """Until the kernels, if they are new, and the first window are there."""
        nets = self.array.networks
        return max(ceil_div(self._kernels(work) * self.bits[1], nets.filter_bits), self._arrival(work, work.segment))

    def window_cycles(self, work: Pass) -> int:
        """All windows and the drain."""
        nets, positions = self.array.networks, self.conv.columns.positions
        sums = work.filters * work.rows * self.bits[2]
        leave = ceil_div(sums, nets.psum_out_bits)
        macs = ceil_div(work.filters, self.letters.t) * ceil_div(work.channels, self.letters.r) * work.segment
        busy = macs * self.passes
        if not work.opens_sum:
            busy = max(busy, ceil_div(sums, nets.psum_in_bits))
        step = self._arrival(work, step_columns(self.conv.columns, work.segment))
        first = self._arrival(work, work.segment)
        # During a window a step of the same image arrives, or the first window of the next image, or nothing more.
        kinds = ((work.images * (positions - 1), step), (work.images - 1, first), (1, 0))
        windows = sum(times * max(busy, arrives, leave) for times, arrives in kinds)
        opening = next(arrives for times, arrives in kinds if times)
        windows -= max(0, leave - max(busy, opening))  # nothing leaves during the first window
        return windows + self.array.pipeline_stages + self._chain(work) - 1 + leave

    def fill_counts(self, work: Pass) -> list[tuple[Action, int]]:
        """Accesses of filling: the kernels, each column of elements its own copy."""
        role, elements = self.conv.tensors.roles[1], self._kernels(work)
        copies = elements * work.rows * self._words(1)
        return [
            (("scratchpad.filter", "fill", role), copies),
            (("network", "word", role), copies),
            (("buffer.weight", "read", role), self._accesses("weight", elements * self._words(1))),
        ]

    def window_counts(self, work: Pass) -> list[tuple[Action, int]]:
        """Accesses of the windows: multiplications, scratchpads, networks and the global buffer."""
        conv, columns = self.conv, self.conv.columns
        x_role, w_role, y_role = conv.tensors.roles
        x_words, w_words, y_words = (self._words(i) for i in range(3))
        slots = work.filters * work.images * work.channels * work.taps * work.segment
        seen = part(slots * work.useful_rows * conv.useful[1] * self.passes, self.share)
        macs = part(seen, conv.tensors.densities[0] * conv.inside) if self.array.zero_gating else seen
        delivered = work.segment + (columns.positions - 1) * step_columns(columns, work.segment)
        maps = work.images * work.channels * delivered * x_words
        sums = work.images * work.filters * work.rows * columns.positions * y_words
        # Each element of each set of filters gets the row that it slides over.
        sets = ceil_div(work.filters, ceil_div(work.filters, self.letters.t))
        copies = maps * work.taps * work.rows * sets
        stored = self._accesses("output", sums)
        return [
            (("array", f"mac_{self.array.multiplier.type}", ""), macs),
            (("scratchpad.ifmap", "read", x_role), seen * x_words),
            (("scratchpad.ifmap", "fill", x_role), copies),
            (("scratchpad.filter", "read", w_role), macs * w_words),
            (("scratchpad.psum", "read", y_role), macs * y_words),
            (("scratchpad.psum", "write", y_role), macs * y_words),
            (("network", "word", x_role), copies),
            # Sums go from the buffer to the lowest element, from element to element, and from the top one back.
            (("network", "word", y_role), sums * (self._chain(work) + (not work.opens_sum))),
            (("buffer.input", "read", x_role), self._accesses("input", maps * work.map_rows)),
            (("buffer.output", "read", y_role), 0 if work.opens_sum else stored),
            (("buffer.output", "write", y_role), stored),
        ]

    def kernel_elements(self, work: Pass) -> int:
        """Elements of the kernels of a pass, and the bias from which its sums start."""
        elements = work.filters * work.channels * work.taps * work.segment
        return elements + work.filters * (self.conv.bias and work.opens_sum)

    def _kernels(self, work: Pass) -> int:
        return self.kernel_elements(work) if work.new_kernels else 0

    def _arrival(self, work: Pass, columns: int) -> int:
        """Cycles in which so many columns of all rows and channels of a pass are delivered."""
        return ceil_div(work.map_rows * work.channels * columns * self.bits[0], self.array.networks.ifmap_bits)

    def _chain(self, work: Pass) -> int:
        """Elements through which a sum passes: the rows of the sets that add up."""
        return work.taps * ceil_div(work.channels, ceil_div(work.channels, self.letters.r))

    def _words(self, i: int) -> int:
        """Words of the datapath that an element of the maps, kernels or outputs takes."""
        return self.bits[i] // self.hardware.word_bits

    def _accesses(self, buffer: str, words: int) -> int:
        return ceil_div(words * self.hardware.word_bits, self.hardware.buffers[buffer].word_bits)
