"""Convolutions and products as a row-stationary array sees them: filters that slide over images, row by row.

All three roles of a convolution, gemm and both products of attention become one form. ``filters`` × ``channels``
kernels slide over ``images`` × ``channels`` maps and give ``images`` × ``filters`` outputs, in ``groups`` independent
copies:

======================  ======  ==========  ===========  =============  ==========  ================
op                      images  filters     channels     kernel         output      slides over
======================  ======  ==========  ===========  =============  ==========  ================
conv forward            N       K           C            R × S          OY × OX     x, by w
conv backward data      N       C           K            taps of class  its class   gy, by w
conv backward weight    C       K           N            OY × OX        R × S       x, by gy
gemm                    M       N           K            1 × 1          1 × 1       a, by b
attention               Q; Q    K; D        D; K         1 × 1          1 × 1       q, by k; then v
======================  ======  ==========  ===========  =============  ==========  ================

Backward data with a stride falls into residue classes, each a dense convolution of its own, as on a systolic array
(:mod:`jouletrace.mapping.matrix`); positions that no tap reaches are only stored. In backward-weight the gradient of
the output is the kernel, the stride spaces its taps, and the dilation is the stride of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from jouletrace.errors import MappingError
from jouletrace.mapping.matrix import Axis, residues
from jouletrace.trace.model import Attention, Conv, Gemm, Op, Tensor, Trace

__all__ = ["RowConvolution", "Tensors", "row_convolutions"]

_ONE = Axis(1, 1, (0,), 1)
# rows, columns, useful and stored of a matrix product
_POINT = (_ONE, _ONE, (1, 1), (_ONE, _ONE))


@dataclass(frozen=True, slots=True)
class Tensors:
    """What moves: roles, widths in bits and densities of the maps, the kernels and the outputs, in this order."""

    roles: tuple[str, str, str]
    bits: tuple[int, int, int]
    densities: tuple[Fraction, Fraction, Fraction]


@dataclass(frozen=True, slots=True)
class RowConvolution:
    """One convolution in the form above; ``rows`` and ``columns`` hold output positions, stride and taps.

    ``useful`` of the rows and columns carry MACs of the loop nest; the others are the room that a residue class needs.
    ``stored`` says where the rows and columns lie in the result, and so which of them exist. ``inside``: the share of
    the MACs whose input lies in the map. ``bias``: sums start from a bias. ``zeros``: results beside the outputs that
    no tap reaches. ``hands_over``: the output is what the next convolution slides over, which ``takes_over``.
    """

    groups: int
    images: int
    filters: int
    channels: int
    rows: Axis
    columns: Axis
    useful: tuple[int, int]
    stored: tuple[Axis, Axis]
    tensors: Tensors
    inside: Fraction = Fraction(1)
    bias: bool = False
    zeros: int = 0
    hands_over: bool = False
    takes_over: bool = False

    @property
    def taps(self) -> int:
        return len(self.rows.offsets) * len(self.columns.offsets)

    @property
    def macs(self) -> int:
        """MACs of the loop nest."""
        return self.groups * self.images * self.filters * self.channels * self.useful[0] * self.useful[1] * self.taps


def row_convolutions(op: Op, trace: Trace, result: Tensor | None = None) -> tuple[RowConvolution, ...]:
    """The row convolutions of a conv, gemm or attention op, in the order of execution.

    ``result`` is the tensor that leaves, where it is not what the op writes (a function rides on its store). Raises
    MappingError for any other kind.
    """
    reads = [replace(trace.tensor[name], bits=bits) for name, bits in zip(op.reads, trace.bits_read(op), strict=True)]
    written = trace.tensor[op.writes[0]] if result is None else result
    nest = op.nest
    if not isinstance(nest, Conv | Gemm | Attention):
        raise MappingError(f"op {op.name!r}: a {nest.kind} op is no convolution; map it to the vector unit")
    inside = Fraction(nest.macs_in_bounds, nest.macs) if nest.macs else Fraction(1)
    if isinstance(nest, Conv) and nest.role == "backward_weight":
        return (_backward_weight(nest, _tensors(reads[1], reads[0], written), inside),)
    tensors = _tensors(reads[0], reads[1], written)
    bias = len(reads) > 2
    match nest:
        case Conv(role="forward"):
            return (_forward(nest, tensors, inside, bias),)
        case Conv():
            return _backward_data(nest, tensors, inside)
        case Gemm():
            return (RowConvolution(nest.B, nest.M, nest.N, nest.K, *_POINT, tensors, bias=bias),)
        case Attention():
            scores = Tensor(f"{op.name}.scores", (), reads[0].bits, reads[0].format, "activation")
            first = RowConvolution(
                nest.B, nest.Q, nest.K, nest.D, *_POINT, _tensors(reads[0], reads[1], scores),
                hands_over=True,
            )  # fmt: skip
            last = RowConvolution(
                nest.B, nest.Q, nest.D, nest.K, *_POINT, _tensors(scores, reads[2], written),
                takes_over=True,
            )  # fmt: skip
            return first, last


def _tensors(maps: Tensor, kernels: Tensor, outputs: Tensor) -> Tensors:
    three = (maps, kernels, outputs)
    roles, bits = tuple(t.role for t in three), tuple(t.bits for t in three)
    return Tensors(roles, bits, tuple(Fraction(*t.density) for t in three))  # type: ignore[arg-type]


def _forward(conv: Conv, tensors: Tensors, inside: Fraction, bias: bool) -> RowConvolution:
    (sy, sx), (dy, dx), (top, _, left, _) = conv.stride, conv.dilation, conv.padding
    rows = Axis(conv.OY, sy, tuple(r * dy - top for r in range(conv.R)), conv.IY)
    columns = Axis(conv.OX, sx, tuple(s * dx - left for s in range(conv.S)), conv.IX)
    useful, stored = (conv.OY, conv.OX), (_dense(conv.OY), _dense(conv.OX))
    return RowConvolution(conv.G, conv.N, conv.K, conv.C, rows, columns, useful, stored, tensors, inside, bias)


def _backward_weight(conv: Conv, tensors: Tensors, inside: Fraction) -> RowConvolution:
    (sy, sx), (dy, dx), (top, _, left, _) = conv.stride, conv.dilation, conv.padding
    rows = Axis(conv.R, dy, tuple(y * sy - top for y in range(conv.OY)), conv.IY)
    columns = Axis(conv.S, dx, tuple(x * sx - left for x in range(conv.OX)), conv.IX)
    useful, stored = (conv.R, conv.S), (_dense(conv.R), _dense(conv.S))
    return RowConvolution(conv.G, conv.C, conv.K, conv.N, rows, columns, useful, stored, tensors, inside)


def _dense(size: int) -> Axis:
    return Axis(size, 1, (0,), size)


def _backward_data(conv: Conv, tensors: Tensors, inside: Fraction) -> tuple[RowConvolution, ...]:
    (sy, sx), (dy, dx), (top, _, left, _) = conv.stride, conv.dilation, conv.padding
    every_row = [r for r in residues(conv.OY, conv.R, sy, dy, top, conv.IY) if r.taps]
    every_column = [c for c in residues(conv.OX, conv.S, sx, dx, left, conv.IX) if c.taps]
    found = [
        RowConvolution(
            conv.G, conv.N, conv.C, conv.K,
            # Taps in the order of the positions that they meet: kernels are turned around.
            Axis(y.positions, 1, tuple(sorted(y.offsets)), conv.OY),
            Axis(x.positions, 1, tuple(sorted(x.offsets)), conv.OX),
            (conv.OY, conv.OX),
            (Axis(y.positions, sy, (y.first,), conv.IY), Axis(x.positions, sx, (x.first,), conv.IX)),
            tensors, inside,
        )
        for y in every_row for x in every_column
    ]  # fmt: skip
    covered = sum(y.inside for y in every_row) * sum(x.inside for x in every_column)
    zeros = conv.G * conv.N * conv.C * (conv.IY * conv.IX - covered)
    return (*found[:-1], replace(found[-1], zeros=zeros))
