"""A forward pass written down layer by layer, with shapes, without any framework.

:class:`Forward` is the pencil of the model zoo and of the ONNX import. It knows the operand order of every
op kind and works out output shapes; :func:`jouletrace.capture.reverse.train_step` turns what it wrote into a
training step. Views (reshape, transpose, slice) are no ops: an operand is an :class:`Array`, which names the
tensor that holds the data and the shape in which it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from jouletrace.errors import CaptureError
from jouletrace.trace.model import (
    Cell,
    Conv,
    Copy,
    Elementwise,
    Format,
    Gather,
    Gemm,
    Header,
    Loss,
    Nest,
    Norm,
    Op,
    Phase,
    Pool,
    Reduce,
    Rng,
    Role,
    Softmax,
    Tensor,
    Trace,
)  # fmt: skip

__all__ = ["Array", "Forward", "Names", "window_outputs"]

Pair = tuple[int, int]
Write = tuple[str, Sequence[int], Role, int]  # name within the op, shape, role, bits
Padding = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Array:
    """An operand: a tensor, or a view of a part of it.

    >>> tokens = Array("qkv:forward.y", (8, 65, 576))
    >>> tokens.reshape(520, 576).elements == tokens.elements
    True
    >>> tokens.view(8, 65, 192).elements
    99840
    """

    tensor: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def reshape(self, *shape: int) -> Array:
        """The same elements in another shape."""
        if prod(shape) != self.elements:
            raise CaptureError(f"{self.tensor}: shape {self.shape} cannot be looked at as {shape}; "
                               "the element counts differ.")  # fmt: skip
        return Array(self.tensor, shape)

    def view(self, *shape: int) -> Array:
        """A part of the elements (a slice, a chunk, a time step), or all of them along an expanded axis."""
        return Array(self.tensor, shape)


class Names:
    """Gives every op of a trace its own name, ``layer.what:phase``, and ``#2``, ``#3`` to repeats.

    ``what`` is the function of the op, or its kind. Convolutions and matrix products of a layer are called by
    the layer alone.

    >>> names, add = Names(), Elementwise("add", 4096)
    >>> names.op("fc", Gemm(1, 8, 10, 64), "forward"), names.op("layer1.0", add, "forward")
    ('fc:forward', 'layer1.0.add:forward')
    >>> names.op("layer1.0", add, "forward")
    'layer1.0.add:forward#2'
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def op(self, layer: str, nest: Nest, phase: Phase) -> str:
        if isinstance(nest, Conv | Gemm) and layer:
            return self.unique(f"{layer}:{phase}")
        what = "random" if isinstance(nest, Rng) else getattr(nest, "function", nest.kind)
        return self.unique(f"{layer}.{what}:{phase}".lstrip("."))

    def unique(self, name: str) -> str:
        count = self._seen[name] = self._seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def window_outputs(size: int, kernel: int, stride: int, low: int, high: int, dilation: int = 1) -> int:
    """Positions of a sliding window along one padded axis.

    >>> window_outputs(32, kernel=3, stride=2, low=1, high=1)
    16
    """
    return (size + low + high - dilation * (kernel - 1) - 1) // stride + 1


class Forward:
    """The forward ops of one model, in order of execution.

    >>> f = Forward("tiny", batch=4)
    >>> x = f.relu("relu", f.conv("conv", f.input("images", (4, 3, 8, 8)), 16, 3, pad=1))
    >>> x.shape
    (4, 16, 8, 8)
    >>> f.cross_entropy(f.linear("fc", f.global_average("pool", x).reshape(4, 16), 10))
    >>> f.trace().macs == 4 * (16 * 3 * 8 * 8 * 9 + 16 * 10)
    True
    """

    def __init__(self, name: str, batch: int, producer: tuple[tuple[str, str], ...] = ()) -> None:
        self.header = Header(name, batch, producer=producer)
        self.names = Names()
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.loss = ""

    def trace(self) -> Trace:
        """What was written, as a trace whose ops are all of phase ``forward``."""
        header = replace(self.header, loss=self.loss)
        return Trace(header, tuple(self.tensors.values()), tuple(self.ops))

    # -- tensors that exist before the step

    def input(self, name: str, shape: Sequence[int], bits: int = 32, format: Format = "fp") -> Array:
        return self._tensor(name, shape, "input", bits, format)

    def parameter(self, name: str, shape: Sequence[int]) -> Array:
        """A parameter; asking again for a name that exists gives the same one (shared weights)."""
        return Array(name, tuple(shape)) if name in self.tensors else self._tensor(name, shape, "param")

    def buffer(self, name: str, shape: Sequence[int]) -> Array:
        """A constant, or a running statistic."""
        return Array(name, tuple(shape)) if name in self.tensors else self._tensor(name, shape, "buffer")

    def _tensor(self, name: str, shape: Sequence[int], role: Role, bits: int = 32, format: Format = "fp") -> Array:
        if name in self.tensors:
            raise CaptureError(f"{name}: two tensors have this name.")
        self.tensors[name] = Tensor(name, tuple(shape), bits, format, role)
        return Array(name, tuple(shape))

    # -- one op

    def emit(self, layer: str, nest: Nest, reads: Sequence[Array], shape: Sequence[int],
             role: Role = "activation") -> Array:  # fmt: skip
        """Append one op that writes one tensor of ``shape``."""
        return self.emit_many(layer, nest, reads, [("y", shape, role, 32)])[0]

    def emit_many(self, layer: str, nest: Nest, reads: Sequence[Array],
                  writes: Sequence[Write]) -> list[Array]:  # fmt: skip
        """Append one op; ``writes`` lists what it writes; 64 bits mean integers."""
        name = self.names.op(layer, nest, "forward")
        outs = [self._tensor(f"{name}.{suffix}", shape, role, bits, "int" if bits == 64 else "fp")
                for suffix, shape, role, bits in writes]  # fmt: skip
        self._append(name, layer, nest, reads, tuple(o.tensor for o in outs))
        return outs

    def _append(self, name: str, layer: str, nest: Nest, reads: Sequence[Array], writes: tuple[str, ...]) -> None:
        touched = tuple(min(r.elements, self.tensors[r.tensor].elements) for r in reads)
        whole = all(n == self.tensors[r.tensor].elements for n, r in zip(touched, reads, strict=True))
        self.ops.append(Op(name, "forward", layer, nest, tuple(r.tensor for r in reads), writes,
                           read_elements=() if whole else touched))  # fmt: skip

    # -- products

    def conv(self, layer: str, x: Array, channels: int, kernel: int | Pair, stride: int | Pair = 1,
             pad: int | Padding = 0, groups: int = 1, bias: bool = False) -> Array:  # fmt: skip
        """A convolution over (N, C, H, W) with parameters ``layer.weight`` and ``layer.bias``."""
        R, S = _pair(kernel)
        weight = self.parameter(f"{layer}.weight", (channels, x.shape[1] // groups, R, S))
        operands = (weight, self.parameter(f"{layer}.bias", (channels,))) if bias else (weight,)
        return self.conv_with(layer, x, operands, stride, pad, groups)

    def conv_with(self, layer: str, x: Array, operands: Sequence[Array], stride: int | Pair = 1,
                  pad: int | Padding = 0, groups: int = 1, dilation: int | Pair = 1) -> Array:  # fmt: skip
        """A convolution with given operands (weight [, bias])."""
        N, C, IY, IX = x.shape
        K, per_group, R, S = operands[0].shape
        if per_group * groups != C or K % groups:
            raise CaptureError(f"{layer}: a weight of shape {operands[0].shape} in {groups} groups does "
                               f"not fit an input with {C} channels.")  # fmt: skip
        padding = (pad, pad, pad, pad) if isinstance(pad, int) else pad
        stride, dilation = _pair(stride), _pair(dilation)
        OY = window_outputs(IY, R, stride[0], padding[0], padding[1], dilation[0])
        OX = window_outputs(IX, S, stride[1], padding[2], padding[3], dilation[1])
        nest = Conv(N, K // groups, per_group, OY, OX, R, S, groups, IY, IX, stride, padding, dilation)
        return self.emit(layer, nest, (x, *operands), (N, K, OY, OX))

    def linear(self, layer: str, x: Array, features: int, bias: bool = True) -> Array:
        """A dense layer over the last axis, parameters ``layer.weight`` (out, in) and ``layer.bias``."""
        weight = self.parameter(f"{layer}.weight", (features, x.shape[-1]))
        operands = (weight, self.parameter(f"{layer}.bias", (features,))) if bias else (weight,)
        return self.linear_with(layer, x, operands)

    def linear_with(self, layer: str, x: Array, operands: Sequence[Array]) -> Array:
        """A dense layer with given operands (weight (out, in) [, bias])."""
        N, K = operands[0].shape
        nest = Gemm(1, x.elements // K, N, K, tb=True)
        return self.emit(layer, nest, (x, *operands), (*x.shape[:-1], N))

    def matmul(self, layer: str, a: Array, b: Array, tb: bool = False) -> Array:
        """Batched product of (…, M, K) by (…, K, N), or by (…, N, K) with ``tb``."""
        M, K = a.shape[-2:]
        N = b.shape[-2] if tb else b.shape[-1]
        batch = prod(a.shape[:-2])
        return self.emit(layer, Gemm(batch, M, N, K, tb=tb), (a, b), (*a.shape[:-2], M, N))

    # -- elementwise

    def unary(self, layer: str, function: str, x: Array) -> Array:
        """Any function of one operand that keeps the shape."""
        return self.emit(layer, Elementwise(function, x.elements), (x,), x.shape)

    def relu(self, layer: str, x: Array) -> Array:
        return self.unary(layer, "relu", x)

    def binary(self, layer: str, function: str, a: Array, b: Array) -> Array:
        """``add``, ``mul`` and their kin, broadcasting as NumPy does."""
        shape = _broadcast(layer, a.shape, b.shape)
        return self.emit(layer, Elementwise(function, prod(shape)), (a, b), shape)

    def add(self, layer: str, a: Array, b: Array) -> Array:
        return self.binary(layer, "add", a, b)

    def dropout(self, layer: str, x: Array) -> Array:
        """A random mask, and the product with it."""
        mask = self.emit(layer, Rng(x.elements), (), x.shape, "mask")
        return self.binary(layer, "mul", x, mask)

    # -- normalisation, pooling, reductions

    def batch_norm(self, layer: str, x: Array) -> Array:
        """Batch norm in training mode: batch statistics are used and the running ones updated."""
        channels = (x.shape[1],)
        affine = [self.parameter(f"{layer}.{p}", channels) for p in ("weight", "bias")]
        running = [self.buffer(f"{layer}.{b}", channels) for b in ("running_mean", "running_var")]
        return self.batch_norm_with(layer, x, (*affine, *running))

    def batch_norm_with(self, layer: str, x: Array, operands: Sequence[Array]) -> Array:
        """Batch norm with given operands (weight, bias, running mean, running variance)."""
        channels = (x.shape[1],)
        nest = Norm("batch", x.elements, x.shape[1])
        writes: list[Write] = [("y", x.shape, "activation", 32)]
        for statistic in ("mean", "invstd", "running_mean", "running_var"):
            writes.append((statistic, channels, "buffer", 32))
        return self.emit_many(layer, nest, (x, *operands), writes)[0]

    def layer_norm(self, layer: str, x: Array) -> Array:
        """Layer norm over the last axis."""
        operands = [self.parameter(f"{layer}.{p}", x.shape[-1:]) for p in ("weight", "bias")]
        return self.norm_with(layer, "layer", x, operands, x.elements // x.shape[-1])

    def norm_with(self, layer: str, function: str, x: Array, operands: Sequence[Array], groups: int) -> Array:
        """Layer, group, instance or rms norm: every sample has statistics of its own."""
        nest = Norm(function, x.elements, groups)
        return self.emit_many(layer, nest, (x, *operands), [
            ("y", x.shape, "activation", 32),
            ("mean", (groups,), "buffer", 32),
            ("invstd", (groups,), "buffer", 32),
        ])[0]  # fmt: skip

    def pool(self, layer: str, function: str, x: Array, kernel: int | Pair, stride: int | Pair,
             pad: int | Padding = 0) -> Array:  # fmt: skip
        """``max`` or ``average`` pooling; max also writes the 64-bit indices that its backward reads."""
        N, C, IY, IX = x.shape
        (R, S), stride = _pair(kernel), _pair(stride)
        padding = (pad, pad, pad, pad) if isinstance(pad, int) else pad
        OY = window_outputs(IY, R, stride[0], padding[0], padding[1])
        OX = window_outputs(IX, S, stride[1], padding[2], padding[3])
        nest = Pool(function, N, C, IY, IX, OY, OX, R, S, stride, padding)
        writes: list[Write] = [("y", (N, C, OY, OX), "activation", 32)]
        if function == "max":
            writes.append(("indices", (N, C, OY, OX), "mask", 64))
        return self.emit_many(layer, nest, (x,), writes)[0]

    def global_average(self, layer: str, x: Array) -> Array:
        """The mean over height and width, written as an average pool over the full window."""
        window = x.shape[2], x.shape[3]
        return self.pool(layer, "average", x, window, window)

    def reduce(self, layer: str, function: str, x: Array, shape: Sequence[int]) -> Array:
        """``sum`` or ``mean`` into ``shape``."""
        return self.emit(layer, Reduce(function, x.elements, prod(shape)), (x,), shape)

    def softmax(self, layer: str, x: Array, width: int | None = None) -> Array:
        width = x.shape[-1] if width is None else width
        return self.emit(layer, Softmax(x.elements // width, width), (x,), x.shape)

    # -- data movement

    def embedding(self, layer: str, indices: Array, rows: int, width: int) -> Array:
        return self.gather(layer, self.parameter(f"{layer}.weight", (rows, width)), indices)

    def gather(self, layer: str, table: Array, indices: Array) -> Array:
        """Rows of a (rows, width) table, one per index, which is also how many rows are read."""
        width = table.shape[-1]
        touched = table.view(min(indices.elements, table.shape[0]), width)
        return self.emit(layer, Gather(indices.elements, width), (touched, indices), (*indices.shape, width))

    def copy(self, layer: str, function: str, pieces: Sequence[Array], shape: Sequence[int]) -> Array:
        """A copy that a view cannot express: ``cat``, ``stack``, ``pad``, ``contiguous``."""
        return self.emit(layer, Copy(function, prod(shape)), pieces, shape)

    # -- recurrent cells and the loss

    def recurrent(self, layer: str, function: str, x: Array, operands: Sequence[Array],
                  states: Sequence[Array], reverse: bool = False) -> Array:  # fmt: skip
        """One direction of one LSTM or GRU layer over (T, N, I); returns the (T, N, H) of its outputs.

        ``operands`` are the input weight (gates·H, I), the hidden weight (gates·H, H) [, and their biases],
        ``states`` the initial h [and c]. Every time step is an input product, a hidden product and one cell.
        """
        T, N, width = x.shape
        H = operands[1].shape[1]
        w_input, w_hidden, *biases = operands
        h, c = states[0], states[-1]
        outputs: list[Array] = []
        for _ in range(T):
            step = x.view(N, width)
            gates = [self.linear_with(layer, step, (w_input, *biases[:1])),
                     self.linear_with(layer, h, (w_hidden, *biases[1:]))]  # fmt: skip
            if function == "lstm":
                h, c, *_ = self.emit_many(layer, Cell("lstm", N, H), (*gates, c), [
                    ("h", (N, H), "activation", 32), ("c", (N, H), "activation", 32),
                    ("gates", (N, 4 * H), "activation", 32), ("tanh_c", (N, H), "activation", 32),
                ])  # fmt: skip
            else:
                h, *_ = self.emit_many(layer, Cell("gru", N, H), (*gates, h), [
                    ("h", (N, H), "activation", 32), ("gates", (N, 3 * H), "activation", 32),
                ])  # fmt: skip
            outputs.append(h)
        return self.copy(layer, "stack", outputs[::-1] if reverse else outputs, (T, N, H))

    def cross_entropy(self, logits: Array, labels: str = "labels") -> None:
        """The loss, with its labels: log-softmax and negative log-likelihood in one op."""
        self.cross_entropy_with("", logits, self.input(labels, logits.shape[:-1], 64, "int"))

    def cross_entropy_with(self, layer: str, logits: Array, labels: Array, width: int | None = None) -> Array:
        """The loss over given labels; returns the scalar."""
        width = logits.shape[-1] if width is None else width
        nest = Loss("cross_entropy", logits.elements // width, width)
        self.loss = "cross_entropy"
        loss, _ = self.emit_many(layer, nest, (logits, labels), [
            ("y", (), "activation", 32), ("log_probabilities", logits.shape, "activation", 32),
        ])  # fmt: skip
        return loss


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _broadcast(layer: str, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    shape: list[int] = []
    for m, n in pairs:
        if m != n and 1 not in (m, n):
            raise CaptureError(f"{layer}: operands of shape {a} and {b} do not broadcast.")
        shape.append(n if m == 1 else m)
    return tuple(shape)
