"""A convolution or matrix product as the loops that a channel-parallel array runs.

All three roles of a convolution, and gemm, become one shape: an output map of ``out_channels`` × ``rows`` ×
``columns``, reduced over ``in_channels`` and the kernel's ``taps`` (backward-weight reduces over the map instead and
keeps a kernel per channel pair). Roles and symbols follow Zhang et al., FPGA 2015, and EF-Train (arXiv 2202.10935).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jouletrace.errors import MappingError
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.fusion import NARROWING
from jouletrace.mapping.transfer import ceil_div
from jouletrace.trace.model import Conv, Elementwise, Gemm, Op, Tensor, Trace

__all__ = ["Loops", "array_of", "channels_at_once", "loops", "unpadded"]


@dataclass(frozen=True, slots=True)
class Loops:
    """One op on a channel-parallel array.

    ``groups`` independent problems (after packing: small groups share one tile block-diagonally, ``packed`` of
    them); ``images`` maps each. ``out_channels`` and ``in_channels`` are per packed group. For role ``weight`` they
    are the two channel dimensions of the kernel, and ``rows`` × ``columns`` the map that is reduced over.

    ``step``: rows of the input map per row of the output map, as (numerator, denominator): (s, 1) for a stride s,
    (1, s) for its backward-data. ``work_rows``, ``work_columns``: rows and columns that the array really runs through
    for a whole map (zero insertion runs through all; gathering only through the taps that exist).

    ``fused``: products of one sum that a lane computes at once, of as many input channels, or map positions where the
    reduction is over the map.
    """

    role: Literal["forward", "backward_data", "backward_weight"]
    groups: int
    packed: int
    images: int
    out_channels: int
    in_channels: int
    rows: int
    columns: int
    kernel: tuple[int, int]
    span: tuple[int, int]
    step: tuple[tuple[int, int], tuple[int, int]]
    map_rows: int
    map_columns: int
    work_rows: int
    work_columns: int
    passes: int
    fused: int
    macs: int
    bits: tuple[int, int, int]
    roles: tuple[str, str, str]
    unpadded_input: bool

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    @property
    def is_product(self) -> bool:
        """Whether there is no map: a matrix product, whose tiles have no halo."""
        return self.taps == 1 and self.columns == 1

    @property
    def fused_channels(self) -> int:
        return 1 if self.role == "backward_weight" else self.fused

    @property
    def fused_positions(self) -> int:
        return self.fused if self.role == "backward_weight" else 1

    def input_rows(self, tile_rows: int) -> int:
        """Rows of the input map under ``tile_rows`` rows of the output map, halo included."""
        return _under(tile_rows, self.span[0], self.step[0])

    def input_columns(self, tile_columns: int) -> int:
        return _under(tile_columns, self.span[1], self.step[1])


def _under(tile: int, span: int, step: tuple[int, int]) -> int:
    numerator, denominator = step
    return ((tile - 1) * numerator + span - 1) // denominator + 1


def array_of(hardware: Hardware) -> ChannelParallel:
    """The array of a hardware that has a channel-parallel one."""
    assert isinstance(hardware.array, ChannelParallel)
    return hardware.array


def channels_at_once(loops: Loops, hardware: Hardware) -> int:
    """Input channels that the array takes in at once."""
    return array_of(hardware).in_channels * loops.fused_channels


def unpadded(tensor: Tensor, trace: Trace) -> bool:
    """Whether a tensor has only the channels that it really has: data of the step, and narrower copies of it."""
    while (writer := trace.writer.get(tensor.name)) is not None:
        if not isinstance(writer.nest, Elementwise) or writer.nest.function not in NARROWING:
            return False
        tensor = trace.tensor[writer.reads[0]]
    return tensor.role == "input"


def loops(op: Op, trace: Trace, hardware: Hardware) -> Loops:
    """The loops of a conv or gemm op; ``MappingError`` for any other kind."""
    array = array_of(hardware)
    first, second, *_ = (  # an operand is as wide as what is fetched of it
        replace(trace.tensor[name], bits=bits) for name, bits in zip(op.reads, trace.bits_read(op), strict=True)
    )
    out = trace.tensor[op.writes[0]]
    passes = hardware.passes(first.bits, second.bits)
    fused = array.multiplier.fused(first.bits, second.bits)
    if isinstance(op.nest, Gemm):
        g = op.nest
        return Loops(
            "forward", g.B, 1, 1, g.N, g.K, g.M, 1, (1, 1), (1, 1), ((1, 1), (1, 1)), g.M, 1, g.M, 1, passes,
            fused, g.macs, (first.bits, second.bits, out.bits), (first.role, second.role, out.role), False,
        )  # fmt: skip
    if not isinstance(op.nest, Conv):
        raise MappingError(
            f"op {op.name!r} is a fused {op.kind}, which {hardware.name!r} runs as gemm, softmax and gemm: capture "
            "the step with its attention written out (capture on meta tensors does that)"
        )
    c = op.nest
    pack = max(1, min(c.G, array.out_channels // max(c.K, 1), array.in_channels // max(c.C, 1)))
    groups = ceil_div(c.G, pack)
    span = ((c.R - 1) * c.dilation[0] + 1, (c.S - 1) * c.dilation[1] + 1)
    if c.role == "backward_data":
        zero = array.schedule.strided_backward_data == "zero_insertion"
        return Loops(
            "backward_data", groups, pack, c.N, pack * c.C, pack * c.K, c.IY, c.IX, (c.R, c.S), span,
            ((1, c.stride[0]), (1, c.stride[1])), c.OY, c.OX,
            max(c.IY, c.OY) if zero else c.OY, max(c.IX, c.OX) if zero else c.OX, passes, fused, c.macs,
            (first.bits, second.bits, out.bits), (first.role, second.role, out.role), False,
        )  # fmt: skip
    x, w = (first, second) if c.role == "forward" else (second, first)
    return Loops(
        c.role, groups, pack, c.N, pack * c.K, pack * c.C, c.OY, c.OX, (c.R, c.S), span,
        ((c.stride[0], 1), (c.stride[1], 1)), c.IY, c.IX, c.OY, c.OX, passes, fused, c.macs,
        (x.bits, w.bits, out.bits), (x.role, w.role, out.role), unpadded(x, trace),
    )  # fmt: skip
