"""What a training step is: tensors, ops over them, and where it came from.

A trace is a value. Ops stand in topological order; a tensor is written at most once (a new version
of a parameter is a new tensor), so edges follow from ``reads`` and ``writes``. The loop nest of an op
is the mathematical one; how hardware executes it is decided by the mapping.

Operand order of the kinds that multiply:

=====================================  =======================  ==========
op                                      reads                    writes
=====================================  =======================  ==========
conv, role ``forward``                  x, w [, bias]            y
conv, role ``backward_data``            gy, w                    gx
conv, role ``backward_weight``          gy, x                    gw
gemm                                    a, b [, bias]            c
attention                               q, k, v                  y
=====================================  =======================  ==========
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import ClassVar, Literal

__all__ = [
    "FORMATS",
    "NESTS",
    "PHASES",
    "ROLES",
    "Attention",
    "Cell",
    "Conv",
    "Copy",
    "Elementwise",
    "Gate",
    "Gather",
    "Gemm",
    "Header",
    "Loss",
    "Nest",
    "Norm",
    "Op",
    "Phase",
    "Pool",
    "Reduce",
    "Rng",
    "Role",
    "Scatter",
    "Softmax",
    "Sync",
    "Tensor",
    "Trace",
    "Update",
]

Phase = Literal["forward", "backward_data", "backward_weight", "update"]
Role = Literal[
    "param", "activation", "gradient", "weight_gradient", "optimizer_state", "input", "mask", "buffer"
]
Format = Literal["int", "fp", "bfp", "sign"]
PHASES: tuple[Phase, ...] = ("forward", "backward_data", "backward_weight", "update")
ROLES: tuple[Role, ...] = (
    "param", "activation", "gradient", "weight_gradient", "optimizer_state", "input", "mask", "buffer"
)
FORMATS: tuple[Format, ...] = ("int", "fp", "bfp", "sign")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One version of one tensor.

    ``gradient`` is the gradient of an activation, ``weight_gradient`` that of a parameter: the first
    grows with the batch, the second does not. ``input``, ``activation``, ``gradient`` and ``mask``
    grow with the batch; ``param``, ``weight_gradient``, ``optimizer_state`` and ``buffer`` (statistics,
    counters, constants) do not. ``density`` is the exact share of non-zeros that are *present*.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    format: Format
    role: Role
    saved: bool = False
    density: tuple[int, int] = (1, 1)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def size_bits(self) -> int:
        return self.elements * self.bits

    @property
    def size_bytes(self) -> int:
        return -(-self.size_bits // 8)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution in one of its three roles, described by its forward geometry.

    K and C count per group. ``padding`` is (top, bottom, left, right). The MACs of the three roles are
    equal; they differ in what is reduced (forward C R S, backward-data K R S, backward-weight N OY OX).
    A transposed convolution is the same nest with the roles swapped.
    """

    kind: ClassVar[str] = "conv"
    N: int
    K: int
    C: int
    OY: int
    OX: int
    R: int
    S: int
    G: int
    IY: int
    IX: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    role: Literal["forward", "backward_data", "backward_weight"] = "forward"

    @property
    def macs(self) -> int:
        return self.N * self.G * self.K * self.C * self.OY * self.OX * self.R * self.S

    @property
    def results(self) -> int:
        """Elements of what the role computes: y, gx or gw."""
        if self.role == "backward_weight":
            return self.G * self.K * self.C * self.R * self.S
        if self.role == "backward_data":
            return self.N * self.G * self.C * self.IY * self.IX
        return self.N * self.G * self.K * self.OY * self.OX

    @property
    def macs_in_bounds(self) -> int:
        """MACs whose input position lies inside the map (padding excluded)."""
        rows = _inside(self.OY, self.R, self.stride[0], self.dilation[0], self.padding[0], self.IY)
        cols = _inside(self.OX, self.S, self.stride[1], self.dilation[1], self.padding[2], self.IX)
        return self.N * self.G * self.K * self.C * rows * cols


def _inside(out: int, kernel: int, stride: int, dilation: int, pad: int, size: int) -> int:
    """Pairs (output index, kernel tap) of one axis that hit the map."""
    total = 0
    for tap in range(kernel):
        low = pad - tap * dilation  # first o with o*stride >= low is inside
        first = max(0, -(-low // stride))
        last = min(out - 1, (size - 1 + low) // stride)
        total += max(0, last - first + 1)
    return total


@dataclass(frozen=True, slots=True)
class Gemm:
    """B independent products of M×K by K×N matrices; ``ta`` and ``tb`` say which operand is transposed."""

    kind: ClassVar[str] = "gemm"
    B: int
    M: int
    N: int
    K: int
    ta: bool = False
    tb: bool = False

    @property
    def macs(self) -> int:
        return self.B * self.M * self.N * self.K

    @property
    def results(self) -> int:
        """Elements of the product."""
        return self.B * self.M * self.N

    @property
    def macs_in_bounds(self) -> int:
        return self.macs


@dataclass(frozen=True, slots=True)
class Attention:
    """Fused softmax(q kᵀ) v of B·H heads, Q queries, K keys, D wide."""

    kind: ClassVar[str] = "attention"
    B: int
    Q: int
    K: int
    D: int
    causal: bool = False

    @property
    def macs(self) -> int:
        return 2 * self.B * self.Q * self.K * self.D

    @property
    def macs_in_bounds(self) -> int:
        return self.macs


@dataclass(frozen=True, slots=True)
class Elementwise:
    """One function on every element: relu, relu_backward, add, accumulate, mul, gelu, cast, …"""

    kind: ClassVar[str] = "elementwise"
    function: str
    elements: int


@dataclass(frozen=True, slots=True)
class Norm:
    """Batch, layer, group or rms norm over ``elements`` in ``groups`` sets of statistics."""

    kind: ClassVar[str] = "norm"
    function: str
    elements: int
    groups: int


@dataclass(frozen=True, slots=True)
class Pool:
    """Max or average pooling; adaptive pooling is written with its actual window."""

    kind: ClassVar[str] = "pool"
    function: str
    N: int
    C: int
    IY: int
    IX: int
    OY: int
    OX: int
    R: int
    S: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Reduce:
    """Sum, mean or max of ``elements`` values into ``outputs`` values (bias gradients, means, norms)."""

    kind: ClassVar[str] = "reduce"
    function: str
    elements: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax over rows of ``width`` values."""

    kind: ClassVar[str] = "softmax"
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Softmax cross-entropy (or another named loss) over ``rows`` samples of ``width`` classes."""

    kind: ClassVar[str] = "loss"
    function: str
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class Gather:
    """Embedding look-up: ``rows`` rows of ``width`` values."""

    kind: ClassVar[str] = "gather"
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class Scatter:
    """Embedding gradient: ``rows`` rows of ``width`` values added into a table."""

    kind: ClassVar[str] = "scatter"
    rows: int
    width: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Data movement that a view cannot express: pad, slice, concat, transpose, expand, quantise layout."""

    kind: ClassVar[str] = "copy"
    function: str
    elements: int


@dataclass(frozen=True, slots=True)
class Cell:
    """The pointwise part of one LSTM or GRU step (its matrix products are gemm ops)."""

    kind: ClassVar[str] = "cell"
    function: Literal["lstm", "gru"]
    batch: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer rule on one parameter: ``rule`` such as sgd, sgd_momentum, adam, adamw."""

    kind: ClassVar[str] = "update"
    rule: str
    elements: int
    flops_per_element: int


@dataclass(frozen=True, slots=True)
class Rng:
    """Random values, for example a dropout mask."""

    kind: ClassVar[str] = "rng"
    elements: int


@dataclass(frozen=True, slots=True)
class Sync:
    """A barrier or a decision: whatever depends on it by ``after`` may not start before it ends."""

    kind: ClassVar[str] = "sync"
    function: Literal["barrier", "decision", "host"]


Nest = (
    Conv | Gemm | Attention | Elementwise | Norm | Pool | Reduce | Softmax | Loss | Gather | Scatter
    | Copy | Cell | Update | Rng | Sync
)
NESTS: Mapping[str, type[Nest]] = MappingProxyType({
    n.kind: n for n in (
        Conv, Gemm, Attention, Elementwise, Norm, Pool, Reduce, Softmax, Loss, Gather, Scatter, Copy,
        Cell, Update, Rng, Sync,
    )
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gate:
    """Which unit a strategy may skip, and the op that decides it (None: decided outside the step)."""

    unit: Literal["step", "block", "layer", "channel", "element"]
    name: str
    decision: str | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a step.

    ``reads`` and ``writes`` name tensors, ``after`` names ops that must have ended first (control
    edges). ``read_elements`` says how many elements of each read tensor are touched where that is not
    the whole tensor (a slice, a view); empty means all of each. ``read_bits`` says how many bits of each
    element are fetched where that is not the tensor's width (the most significant bits of a code).
    ``write_elements`` says how many elements of each result are computed where that is not all: the others are
    left as they are in memory, because what stood there before is their value (samples that skip a block), or
    because another op computes them (the part of a weight gradient that a predictor settles).
    """

    name: str
    phase: Phase
    layer: str
    nest: Nest
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    after: tuple[str, ...] = ()
    gate: Gate | None = None
    read_elements: tuple[int, ...] = ()
    read_bits: tuple[int, ...] = ()
    write_elements: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return self.nest.kind

    @property
    def macs(self) -> int:
        """MACs over the loop nest, padded positions included; 0 for kinds that do not multiply.

        Of a product that computes some of its results only (``write_elements``), the MACs of those: every
        result of a nest is a sum of equally many products.
        """
        return self._share(self.nest.macs) if isinstance(self.nest, Conv | Gemm | Attention) else 0

    @property
    def macs_in_bounds(self) -> int:
        """:attr:`macs` without padded positions; of a part of the results, their average share, rounded up."""
        return self._share(self.nest.macs_in_bounds) if isinstance(self.nest, Conv | Gemm | Attention) else 0

    def _share(self, macs: int) -> int:
        if not self.write_elements or not isinstance(self.nest, Conv | Gemm):
            return macs
        return -(-macs * self.write_elements[0] // self.nest.results)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One strategy that was applied to a trace, as its header records it."""

    strategy: str
    parameters: tuple[tuple[str, str | int], ...]
    seed: int | None
    input_digest: str


@dataclass(frozen=True, slots=True)
class Header:
    """Where a step came from; string facts only, so that the file is canonical."""

    name: str
    batch: int
    optimizer: str = ""
    loss: str = ""
    producer: tuple[tuple[str, str], ...] = ()
    policy: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A step: a header, tensors by name, and ops in topological order.

    ``extensions`` keeps unknown header fields of newer minor versions, so that writing a file that was
    read loses nothing.
    """

    header: Header
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    extensions: tuple[tuple[str, str], ...] = field(default=())

    @cached_property
    def tensor(self) -> Mapping[str, Tensor]:
        return MappingProxyType({t.name: t for t in self.tensors})

    @cached_property
    def op(self) -> Mapping[str, Op]:
        return MappingProxyType({o.name: o for o in self.ops})

    @cached_property
    def writer(self) -> Mapping[str, Op]:
        """The op that writes a tensor; tensors that exist before the step have none."""
        return MappingProxyType({t: o for o in self.ops for t in o.writes})

    @cached_property
    def readers(self) -> Mapping[str, tuple[Op, ...]]:
        readers: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.reads):
                readers.setdefault(name, []).append(op)
        return MappingProxyType({t: tuple(r) for t, r in readers.items()})

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    def elements_read(self, op: Op) -> tuple[int, ...]:
        """Elements that ``op`` touches of each tensor in ``op.reads``."""
        return op.read_elements or tuple(self.tensor[t].elements for t in op.reads)

    def bits_read(self, op: Op) -> tuple[int, ...]:
        """Bits that ``op`` fetches of each element of each tensor in ``op.reads``."""
        return op.read_bits or tuple(self.tensor[t].bits for t in op.reads)

    def elements_written(self, op: Op) -> tuple[int, ...]:
        """Elements that ``op`` computes of each tensor in ``op.writes``."""
        return op.write_elements or tuple(self.tensor[t].elements for t in op.writes)
