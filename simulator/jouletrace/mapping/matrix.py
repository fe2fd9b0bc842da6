"""Convolutions, gemms and attention as matrix products: M×K times K×N gives M×N.

==================  ====================  ===============  ==================  =====================
op                  M                     N                K                   batches
==================  ====================  ===============  ==================  =====================
conv forward        N·OY·OX               K (filters)      C·R·S               G
conv backward data  N·(rows)·(columns)    C                K·(taps)            G, per residue class
conv backward w.    K (filters)           C·R·S            N·OY·OX             G
gemm                M                     N                K                   B
attention           Q; Q                  K; D             D; K                B (two products)
==================  ====================  ===============  ==================  =====================

**Backward data with a stride.** Input row ``i`` receives kernel tap ``r`` only if ``i + padding -
r·dilation`` is a multiple of the stride. So the input positions fall into stride² residue classes; within
one class every position has the same taps, and its gradient is a dense product: nothing is inserted, no
zero is multiplied. Classes without taps (stride wider than the kernel) have a zero gradient: one product
with ``K = 0``, which is only stored.

**What is a MAC.** The loop nest counts OY·R pairs per axis, padded ones included. A class with ``t`` taps
holds OY·t of them, and runs over ``max(rows of the map in the class, OY)`` rows, so that it has room for
all. For "same" convolutions both are equal. Where the map has more rows (no padding), the extra slots see
no output gradient and are idle; where it has fewer (rows of the frame that padding adds), the frame is
computed as the forward pass computes it. So ``macs`` over all products equals the trace's count for every
geometry, and idle slots are never negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import MappingError
from jouletrace.trace.model import Attention, Conv, Gemm, Op, Tensor, Trace

__all__ = [
    "Axis",
    "Channels",
    "Dense",
    "Measure",
    "Operand",
    "Product",
    "Residue",
    "Spatial",
    "products",
    "residues",
]

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: position ``p`` touches ``p·stride + offset`` for every offset, inside ``size``."""

    positions: int
    stride: int
    offsets: tuple[int, ...]
    size: int

    def touched(self, first: Indices, last: Indices) -> Indices:
        """How many indices the positions first..last (inclusive) touch, at most.

        The smaller of two upper bounds: the hull of what is touched, and the touches themselves. One of
        them is exact unless stride and dilation both leave holes.

        >>> axis = Axis(positions=28, stride=2, offsets=(-1, 0, 1), size=56)
        >>> axis.touched(np.array([0]), np.array([27])).tolist()
        [56]
        """
        low = np.maximum(first * self.stride + min(self.offsets), 0)
        high = np.minimum(last * self.stride + max(self.offsets), self.size - 1)
        touches = np.zeros_like(low)
        for offset in self.offsets:
            start = np.maximum(first, -(offset // self.stride))
            stop = np.minimum(last, (self.size - 1 - offset) // self.stride)
            touches += np.maximum(stop - start + 1, 0)
        return np.minimum(np.maximum(high - low + 1, 0), touches)


@dataclass(frozen=True, slots=True)
class Dense:
    """A matrix dimension that is one of the tensor's own; ``extra`` rows (a bias) come with index 0."""

    extra: int = 0

    def elements(self, start: Indices, stop: Indices) -> Indices:
        return stop - start + self.extra * (start == 0)


@dataclass(frozen=True, slots=True)
class Spatial:
    """A matrix dimension of images × rows × columns positions, each seeing a window of the map."""

    rows: Axis
    columns: Axis

    @property
    def image(self) -> int:
        """Positions of one image."""
        return self.rows.positions * self.columns.positions

    def elements(self, start: Indices, stop: Indices) -> Indices:
        """Elements of one channel under positions start..stop-1, at most.

        The smaller of two upper bounds: cut rows counted as whole rows, and cut rows counted on their own.
        The first is exact for whole rows, the second for windows of one tap.
        """
        width, end = self.columns.positions, stop - 1
        first, last = start // width, end // width
        zero = np.zeros_like(start)
        whole = self.columns.touched(zero, zero + width - 1)
        rounded = self._rows(first, last) * whole
        cut = (
            self._rows(first, first) * self.columns.touched(start % width, zero + width - 1)
            + np.where(last > first + 1, self._rows(first + 1, last - 1), 0) * whole
            + self._rows(last, last) * self.columns.touched(zero, end % width)
        )
        single = self._rows(first, first) * self.columns.touched(start % width, end % width)
        return np.where(first == last, single, np.minimum(rounded, cut))

    def _rows(self, first: Indices, last: Indices) -> Indices:
        """Rows of the map under the rows first..last of positions, which run on over the images."""
        height = self.rows.positions
        top, bottom = np.zeros_like(first), np.zeros_like(first) + height - 1
        images = last // height - first // height
        across = (
            self.rows.touched(first % height, bottom)
            + (images - 1) * self.rows.touched(top, bottom)
            + self.rows.touched(top, last % height)
        )
        return np.where(images == 0, self.rows.touched(first % height, last % height), across)


@dataclass(frozen=True, slots=True)
class Channels:
    """A matrix dimension of channels × kernel taps; a cut channel is counted whole."""

    taps: int

    def elements(self, start: Indices, stop: Indices) -> Indices:
        return (stop - 1) // self.taps - start // self.taps + 1


Measure = Dense | Spatial | Channels


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor as a matrix.

    Its real elements move from and to DRAM; the array reads the matrix' own (a pixel once per tap).
    """

    name: str = field(compare=False)  # operands of one geometry are blocked alike
    role: str
    bits: int
    rows: Measure = Dense()
    columns: Measure = Dense()

    def elements(self, top: Indices, bottom: Indices, left: Indices, right: Indices) -> Indices:
        """Real elements of the blocks of rows top..bottom-1 and columns left..right-1, at most."""
        real = self.rows.elements(top, bottom) * self.columns.elements(left, right)
        if isinstance(self.rows, Spatial):
            # A cut channel need not come whole: the block has no more elements than its matrix.
            return np.minimum(real, (bottom - top) * (right - left))
        return real


@dataclass(frozen=True, slots=True)
class Product:
    """``batches`` independent products left (M×K) · right (K×N) = result (M×N).

    ``useful_rows`` of the M rows carry MACs of the loop nest. ``bias``: the sums of the first K block start
    from a bias row of the right operand. ``hands_over``: the result is the left operand of the next
    product, which ``takes_over``.
    """

    batches: int
    M: int
    N: int
    K: int
    useful_rows: int
    left: Operand
    right: Operand
    result: Operand
    bias: bool = False
    hands_over: bool = False
    takes_over: bool = False

    @property
    def macs(self) -> int:
        return self.batches * self.useful_rows * self.N * self.K


@dataclass(frozen=True, slots=True)
class Residue:
    """Input positions of one axis that share their taps: ``first``, first + stride, … inside the map.

    ``positions`` are those that the array runs over, ``inside`` those that exist in the map.
    """

    first: int
    inside: int
    positions: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]


def residues(out: int, kernel: int, stride: int, dilation: int, pad: int, size: int) -> tuple[Residue, ...]:
    """The residue classes of one axis of a backward-data convolution.

    ``offsets`` are the output indices, relative to the position's index in the class, that the taps meet.

    >>> [(r.first, r.taps) for r in residues(out=28, kernel=3, stride=2, dilation=1, pad=1, size=56)]
    [(0, (1,)), (1, (0, 2))]
    """
    classes: list[Residue] = []
    for first in range(stride):
        taps = tuple(tap for tap in range(kernel) if (first + pad - tap * dilation) % stride == 0)
        inside = len(range(first, size, stride))
        offsets = tuple((first + pad - tap * dilation) // stride for tap in taps)
        classes.append(Residue(first, inside, max(inside, out) if taps else inside, taps, offsets))
    return tuple(classes)


def products(op: Op, trace: Trace) -> tuple[Product, ...]:
    """The matrix products of one conv, gemm or attention op, in the order of execution.

    An operand is as wide as what is fetched of it (``read_bits``).
    """
    reads = [replace(trace.tensor[name], bits=bits) for name, bits in zip(op.reads, trace.bits_read(op), strict=True)]
    result = trace.tensor[op.writes[0]]
    match op.nest:
        case Conv(role="forward") as conv:
            return (_conv_forward(conv, reads, result),)
        case Conv(role="backward_data") as conv:
            return _conv_backward_data(conv, reads, result)
        case Conv() as conv:
            return (_conv_backward_weight(conv, reads, result),)
        case Gemm() as gemm:
            bias = len(reads) > 2
            return (
                Product(
                    gemm.B, gemm.M, gemm.N, gemm.K, gemm.M, _operand(reads[0]),
                    _operand(reads[1], rows=Dense(extra=int(bias))), _operand(result), bias,
                ),
            )  # fmt: skip
        case Attention() as a:
            query, key, value = (_operand(tensor) for tensor in reads[:3])
            scores = Operand(f"{op.name}.scores", "activation", query.bits)
            return (
                Product(a.B, a.Q, a.K, a.D, a.Q, query, key, scores, hands_over=True),
                Product(a.B, a.Q, a.D, a.K, a.Q, scores, value, _operand(result), takes_over=True),
            )
        case nest:
            raise MappingError(f"op {op.name!r}: a {nest.kind} op is no matrix product; map it to the vector unit")


def _operand(tensor: Tensor, rows: Measure = Dense(), columns: Measure = Dense()) -> Operand:
    return Operand(tensor.name, tensor.role, tensor.bits, rows, columns)


def _window(conv: Conv) -> Spatial:
    """The forward input as its output positions see it."""
    (sy, sx), (dy, dx), (top, _, left, _) = conv.stride, conv.dilation, conv.padding
    return Spatial(
        Axis(conv.OY, sy, tuple(r * dy - top for r in range(conv.R)), conv.IY),
        Axis(conv.OX, sx, tuple(s * dx - left for s in range(conv.S)), conv.IX),
    )


def _conv_forward(conv: Conv, reads: list[Tensor], result: Tensor) -> Product:
    pixels, taps, bias = conv.N * conv.OY * conv.OX, conv.R * conv.S, len(reads) > 2
    left = _operand(reads[0], _window(conv), Channels(taps))
    right = _operand(reads[1], rows=Dense(extra=int(bias)))
    return Product(conv.G, pixels, conv.K, conv.C * taps, pixels, left, right, _operand(result), bias)


def _conv_backward_weight(conv: Conv, reads: list[Tensor], result: Tensor) -> Product:
    pixels, taps = conv.N * conv.OY * conv.OX, conv.R * conv.S
    right = _operand(reads[1], _window(conv), Channels(taps))
    return Product(conv.G, conv.K, conv.C * taps, pixels, conv.K, _operand(reads[0]), right, _operand(result))


def _conv_backward_data(conv: Conv, reads: list[Tensor], result: Tensor) -> tuple[Product, ...]:
    (sy, sx), (dy, dx), (top, _, left, _) = conv.stride, conv.dilation, conv.padding
    rows = [r for r in residues(conv.OY, conv.R, sy, dy, top, conv.IY) if r.taps]
    columns = [c for c in residues(conv.OX, conv.S, sx, dx, left, conv.IX) if c.taps]
    found = [
        Product(
            conv.G, conv.N * y.positions * x.positions, conv.C, conv.K * len(y.taps) * len(x.taps),
            conv.N * conv.OY * conv.OX,
            _operand(
                reads[0],
                Spatial(Axis(y.positions, 1, y.offsets, conv.OY), Axis(x.positions, 1, x.offsets, conv.OX)),
                Channels(len(y.taps) * len(x.taps)),
            ),
            _operand(reads[1]),
            _operand(
                result,
                Spatial(
                    Axis(y.positions, sy, (y.first,), conv.IY), Axis(x.positions, sx, (x.first,), conv.IX)
                ),
            ),
        )
        for y in rows for x in columns
    ]  # fmt: skip
    covered = sum(y.inside for y in rows) * sum(x.inside for x in columns)
    zeros = conv.N * (conv.IY * conv.IX - covered)
    if zeros:
        found.append(Product(conv.G, zeros, conv.C, 0, 0, _operand(reads[0]), _operand(reads[1]), _operand(result)))
    return tuple(found)
