"""Small training steps for property tests, valid by construction, and Hypothesis strategies that draw them.

:class:`Step` writes a step layer by layer, as a framework would run it: forward, backward with the gradients
of a tensor that is used twice added up, one update per parameter. It knows nothing of the capture code, so
the two can be held against each other. :func:`traces` draws the layers and shrinks to the smallest network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from hypothesis import strategies as st

from jouletrace.trace.model import (
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gate,
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
    Scatter,
    Softmax,
    Sync,
    Tensor,
    Trace,
    Update,
)

__all__ = ["OPTIMIZERS", "Step", "gated", "image_traces", "recurrent_traces", "sequence_traces", "traces"]

# Per rule: its states, and operations per element.
OPTIMIZERS = {"sgd": ((), 2), "sgd_momentum": (("momentum",), 4), "adam": (("exp_avg", "exp_avg_sq"), 12)}


class Step:
    """A training step in the making. Layers take and return names of tensors."""

    def __init__(self, name: str, batch: int, optimizer: str = "sgd_momentum") -> None:
        self.header = Header(f"{name}-b{batch}", batch, optimizer, "cross_entropy", (("tool", "generators"),))
        self.batch = batch
        self.tensors: dict[str, Tensor] = {}
        self.ops: dict[str, Op] = {}
        self.gradients: dict[str, list[str]] = {}
        self.backward: list[Callable[[], None]] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def elements(self, name: str) -> int:
        return self.tensors[name].elements

    def given(self, name: str, shape: Sequence[int], role: Role, bits: int = 32) -> str:
        """A tensor that exists before the step; asking twice gives the same one (a shared parameter)."""
        self.tensors.setdefault(name, Tensor(name, tuple(shape), bits, "int" if bits == 64 else "fp", role))
        return name

    def op(self, what: str, phase: Phase, nest: Nest, reads: Sequence[str],
           *writes: tuple[str, Sequence[int], Role], touched: Sequence[int] = ()) -> list[str]:  # fmt: skip
        """Appends one op of the layer ``what`` begins with; returns the names of its results."""
        name, repeat = f"{what}:{phase}", 1
        while name in self.ops:
            repeat += 1
            name = f"{what}:{phase}#{repeat}"
        results = [f"{name}.{suffix}" for suffix, _, _ in writes]
        for result, (_, shape, role) in zip(results, writes, strict=True):
            self.tensors[result] = Tensor(result, tuple(shape), 32, "fp", role)
        layer = what.rpartition(".")[0]
        part = () if list(touched) == [self.elements(t) for t in reads] else tuple(touched)
        self.ops[name] = Op(name, phase, layer, nest, tuple(reads), tuple(results), read_elements=part)
        return results

    # -- gradients

    def needs(self, name: str) -> bool:
        return self.tensors[name].role in ("param", "activation")

    def give(self, name: str, gradient: str) -> None:
        self.gradients.setdefault(name, []).append(gradient)

    def gradient(self, name: str) -> str:
        """The gradient of a tensor whose readers are all behind: k parts cost k - 1 additions."""
        total, *parts = self.gradients.pop(name)
        self.give(name, total)
        for part in parts:
            total, = self.gradients.pop(name)
            nest = Elementwise("accumulate", self.elements(name))
            self.pull(name, f"{name.rpartition(':')[0] or name}.accumulate", nest, total, part)
        return self.gradients[name][0]

    def pull(self, operand: str, what: str, nest: Nest, *reads: str) -> None:
        """Appends the op that computes the gradient of an operand, if it needs one."""
        of = self.tensors[operand]
        if of.role == "param":
            result = ("g", of.shape, "weight_gradient")
            self.give(operand, *self.op(what, "backward_weight", nest, reads, result))
        elif of.role == "activation":
            result = ("g", of.shape, "gradient")
            self.give(operand, *self.op(what, "backward_data", nest, reads, result))

    # -- layers

    def conv(self, layer: str, x: str, channels: int, kernel: int = 3, stride: int = 1,
             groups: int = 1) -> str:  # fmt: skip
        """A convolution without bias that pads to keep the size, divided by the stride."""
        N, C, IY, IX = self.shape(x)
        pad, what = kernel // 2, f"{layer}.conv"
        OY, OX = ((size + 2 * pad - kernel) // stride + 1 for size in (IY, IX))
        nest = Conv(N, channels // groups, C // groups, OY, OX, kernel, kernel, groups, IY, IX,
                    (stride, stride), (pad, pad, pad, pad))  # fmt: skip
        w = self.given(f"{layer}.weight", (channels, C // groups, kernel, kernel), "param")
        y, = self.op(what, "forward", nest, (x, w), ("y", (N, channels, OY, OX), "activation"))

        def backward() -> None:
            gy = self.gradient(y)
            self.pull(x, what, replace(nest, role="backward_data"), gy, w)
            self.pull(w, what, replace(nest, role="backward_weight"), gy, x)

        self.backward.append(backward)
        return y

    def linear(self, layer: str, x: str, features: int) -> str:
        """A dense layer with bias over the last axis, or over all that belongs to one image."""
        n, what = self.elements(x), f"{layer}.gemm"
        K = n // self.batch if len(self.shape(x)) == 4 else self.shape(x)[-1]
        M = n // K
        w = self.given(f"{layer}.weight", (features, K), "param")
        b = self.given(f"{layer}.bias", (features,), "param")
        shape = (M, features) if len(self.shape(x)) == 4 else (*self.shape(x)[:-1], features)
        nest = Gemm(1, M, features, K, tb=True)
        y, = self.op(what, "forward", nest, (x, w, b), ("y", shape, "activation"))

        def backward() -> None:
            gy = self.gradient(y)
            self.pull(x, what, Gemm(1, M, K, features), gy, w)
            self.pull(w, what, Gemm(1, features, K, M, ta=True), gy, x)
            self.pull(b, f"{layer}.sum", Reduce("sum", M * features, features), gy)

        self.backward.append(backward)
        return y

    def product(self, layer: str, a: str, b: str, nest: Gemm) -> str:
        """A product of two activations, batched."""
        what = f"{layer}.gemm"
        y, = self.op(what, "forward", nest, (a, b), ("y", (nest.B, nest.M, nest.N), "activation"))

        def backward() -> None:
            gy = self.gradient(y)
            self.pull(a, what, Gemm(nest.B, nest.M, nest.K, nest.N, tb=not nest.tb), gy, b)
            self.pull(b, what, Gemm(nest.B, nest.K, nest.N, nest.M, ta=True), a, gy)

        self.backward.append(backward)
        return y

    def function(self, layer: str, function: str, x: str) -> str:
        """A function of one operand, whose backward reads its result."""
        n, what = self.elements(x), f"{layer}.{function}"
        y, = self.op(what, "forward", Elementwise(function, n), (x,), ("y", self.shape(x), "activation"))
        nest = Elementwise(f"{function}_backward", n)
        self.backward.append(lambda: self.pull(x, what, nest, self.gradient(y), y))
        return y

    def add(self, layer: str, a: str, b: str) -> str:
        """A sum of equal shapes, whose gradient passes through to both."""
        nest = Elementwise("add", self.elements(a))
        y, = self.op(f"{layer}.add", "forward", nest, (a, b), ("y", self.shape(a), "activation"))

        def backward() -> None:
            self.give(a, self.gradient(y))
            self.give(b, self.gradient(y))

        self.backward.append(backward)
        return y

    def dropout(self, layer: str, x: str) -> str:
        shape, n, what = self.shape(x), self.elements(x), f"{layer}.mul"
        mask, = self.op(f"{layer}.random", "forward", Rng(n), (), ("mask", shape, "mask"))
        y, = self.op(what, "forward", Elementwise("mul", n), (x, mask), ("y", shape, "activation"))
        nest = Elementwise("mul_backward", n)
        self.backward.append(lambda: self.pull(x, what, nest, self.gradient(y), mask))
        return y

    def norm(self, layer: str, function: str, x: str) -> str:
        """Batch norm over channels, with running statistics, or layer norm over the last axis."""
        shape, what = self.shape(x), f"{layer}.{function}"
        width = shape[1] if function == "batch" else shape[-1]
        nest = Norm(function, self.elements(x), width if function == "batch" else self.elements(x) // width)
        w, b = (self.given(f"{layer}.{p}", (width,), "param") for p in ("weight", "bias"))
        names = ("running_mean", "running_var") if function == "batch" else ()
        running = [self.given(f"{layer}.{name}", (width,), "buffer") for name in names]
        results = [(name, (nest.groups,), "buffer") for name in ("mean", "invstd", *names)]
        reads, result = (x, w, b, *running), ("y", shape, "activation")
        y, mean, invstd, *_ = self.op(what, "forward", nest, reads, result, *results)

        def backward() -> None:
            results = [("gx", shape, "gradient"), *((g, (width,), "weight_gradient") for g in ("gw", "gb"))]
            reads = (self.gradient(y), x, w, mean, invstd)
            gradients = self.op(what, "backward_data", nest, reads, *results)
            for operand, gradient in zip((x, w, b), gradients, strict=True):
                self.give(operand, gradient)

        self.backward.append(backward)
        return y

    def pool(self, layer: str, function: str, x: str, kernel: int) -> str:
        """Pooling whose windows touch but do not overlap; rows and columns that are left over are dropped."""
        N, C, IY, IX = self.shape(x)
        OY, OX = IY // kernel, IX // kernel
        what = f"{layer}.{function}"
        nest = Pool(function, N, C, IY, IX, OY, OX, kernel, kernel, (kernel, kernel))
        extra = [("indices", (N, C, OY, OX), "mask")] if function == "max" else []
        y, *indices = self.op(what, "forward", nest, (x,), ("y", (N, C, OY, OX), "activation"), *extra)
        self.backward.append(lambda: self.pull(x, what, nest, self.gradient(y), *indices))
        return y

    def softmax(self, layer: str, x: str) -> str:
        shape, what = self.shape(x), f"{layer}.softmax"
        nest = Softmax(prod(shape[:-1]), shape[-1])
        y, = self.op(what, "forward", nest, (x,), ("y", shape, "activation"))
        self.backward.append(lambda: self.pull(x, what, nest, self.gradient(y), y))
        return y

    def embedding(self, layer: str, tokens: str, rows: int, width: int) -> str:
        """One row of a table of ``rows`` per token."""
        table = self.given(f"{layer}.weight", (rows, width), "param")
        n = self.elements(tokens)
        result = ("y", (*self.shape(tokens), width), "activation")
        touched = (n * width, n) if n < rows else ()
        y, = self.op(f"{layer}.gather", "forward", Gather(n, width), (table, tokens), result, touched=touched)
        nest, what = Scatter(n, width), f"{layer}.scatter"
        self.backward.append(lambda: self.pull(table, what, nest, self.gradient(y), tokens))
        return y

    def part(self, layer: str, x: str, shape: tuple[int, ...]) -> str:
        """A part of a tensor, copied out of it; its gradient is padded with zeros."""
        n, pad = prod(shape), Copy("pad", self.elements(x))
        result = ("y", shape, "activation")
        y, = self.op(f"{layer}.slice", "forward", Copy("slice", n), (x,), result, touched=(n,))
        self.backward.append(lambda: self.pull(x, f"{layer}.pad", pad, self.gradient(y)))
        return y

    def lstm(self, layer: str, x: str, hidden: int) -> str:
        """LSTM over (T, N, I), from zero; the time steps share their weights. Returns the last output."""
        T, N, width = self.shape(x)
        h, c = (self.given(f"{layer}.{state}0", (N, hidden), "buffer") for state in "hc")
        for _ in range(T):
            gates = [self.linear(f"{layer}.ih", self.part(layer, x, (N, width)), 4 * hidden),
                     self.linear(f"{layer}.hh", h, 4 * hidden)]  # fmt: skip
            h, c = self.cell(layer, gates, c, N, hidden)
        return h

    def cell(self, layer: str, gates: list[str], c: str, batch: int, hidden: int) -> tuple[str, str]:
        """The pointwise part of one time step: reads gates and c, writes h and the new c."""
        nest, what = Cell("lstm", batch, hidden), f"{layer}.cell"
        widths = (("h", hidden), ("c", hidden), ("all", 4 * hidden))
        results = [(name, (batch, width), "activation") for name, width in widths]
        h, new_c, kept = self.op(what, "forward", nest, (*gates, c), *results)

        def backward() -> None:
            incoming = [self.gradient(s) for s in (h, new_c) if s in self.gradients]
            results = [("ggates", (batch, 4 * hidden), "gradient"), ("gc", (batch, hidden), "gradient")]
            wanted = results if self.needs(c) else results[:1]
            gradients = self.op(what, "backward_data", nest, (*incoming, c, kept), *wanted)
            for operand in gates:
                self.give(operand, gradients[0])
            for gradient in gradients[1:]:
                self.give(c, gradient)

        self.backward.append(backward)
        return h, new_c

    def loss(self, x: str, classes: int) -> None:
        """The classifier's loss; ends the forward pass."""
        rows = self.elements(x) // classes
        labels = self.given("labels", (rows,), "input", 64)
        nest = Loss("cross_entropy", rows, classes)
        results = [("loss", (), "buffer"), ("log_probabilities", self.shape(x), "activation")]
        _, kept = self.op("cross_entropy", "forward", nest, (x, labels), *results)
        self.backward.append(lambda: self.pull(x, "cross_entropy", nest, kept, labels))

    def trace(self) -> Trace:
        """The whole step: backward, updates, and what backward reads of forward marked as saved."""
        while self.backward:
            self.backward.pop()()
        states, flops = OPTIMIZERS[self.header.optimizer]
        for w in [t for t in self.tensors.values() if t.role == "param"]:
            old = [self.given(f"{w.name}.{s}", w.shape, "optimizer_state") for s in states]
            new = [("param", w.shape, "param"), *((s, w.shape, "optimizer_state") for s in states)]
            nest = Update(self.header.optimizer, w.elements, flops)
            self.op(w.name, "update", nest, (w.name, self.gradient(w.name), *old), *new)
        forward = {t for op in self.ops.values() if op.phase == "forward" for t in (*op.reads, *op.writes)}
        saved = {t for op in self.ops.values() if op.phase.startswith("backward") for t in op.reads} & forward
        tensors = tuple(replace(t, saved=t.name in saved) for t in self.tensors.values())
        return Trace(self.header, tensors, tuple(self.ops.values()))


# -- networks


def _conv_norm_relu(step: Step, layer: str, x: str, size: int) -> str:
    return step.function(layer, "relu", step.norm(layer, "batch", step.conv(layer, x, size)))


def _residual(step: Step, layer: str, x: str, size: int) -> str:
    y = step.conv(f"{layer}.1", x, step.shape(x)[1])
    y = step.norm(f"{layer}.2", "batch", y)
    return step.function(layer, "relu", step.add(layer, y, x))


def _inverted(step: Step, layer: str, x: str, size: int) -> str:
    """An inverted residual: 1×1 up, 3×3 depthwise, 1×1 down."""
    channels = step.shape(x)[1]
    y = step.function(layer, "relu6", step.conv(f"{layer}.up", x, 2 * channels, 1))
    y = step.conv(f"{layer}.depthwise", y, 2 * channels, 3, groups=2 * channels)
    return step.add(layer, step.conv(f"{layer}.down", y, channels, 1), x)


def _grouped(step: Step, layer: str, x: str, size: int) -> str:
    channels = step.shape(x)[1]
    return step.conv(layer, x, channels * size, 3, 2, channels)


def _max_pool(step: Step, layer: str, x: str, size: int) -> str:
    return step.pool(layer, "max", x, 2 if min(step.shape(x)[2:]) > 1 else 1)


def _image_dropout(step: Step, layer: str, x: str, size: int) -> str:
    return step.dropout(layer, x)


def _attention(step: Step, layer: str, x: str, size: int) -> str:
    """One head with explicit products over (N, T, D), and the residual around it."""
    N, T, D = step.shape(x)
    q, k, v = (step.linear(f"{layer}.{name}", x, D) for name in "qkv")
    scores = step.function(layer, "scale", step.product(f"{layer}.qk", q, k, Gemm(N, T, T, D, tb=True)))
    y = step.product(f"{layer}.av", step.softmax(layer, scores), v, Gemm(N, T, D, T))
    return step.add(layer, x, y)


def _feed_forward(step: Step, layer: str, x: str, size: int) -> str:
    y = step.linear(f"{layer}.up", step.norm(layer, "layer", x), size * 2)
    y = step.linear(f"{layer}.down", step.function(layer, "gelu", y), step.shape(x)[-1])
    return step.add(layer, x, y)


_IMAGE_BLOCKS = (_conv_norm_relu, _residual, _inverted, _grouped, _max_pool, _image_dropout)
_SEQUENCE_BLOCKS = (_feed_forward, _attention)


@st.composite
def image_traces(draw: st.DrawFn, max_blocks: int = 2) -> Trace:
    """A convolution, up to ``max_blocks`` blocks, global pooling or none, a classifier."""
    batch, channels, size = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    step = Step("images", batch, draw(st.sampled_from(sorted(OPTIMIZERS))))
    x = step.given("images", (batch, channels, size, size + draw(st.integers(0, 1))), "input")
    x = step.conv("stem", x, draw(st.integers(1, 3)), draw(st.sampled_from([1, 3])))
    for index in range(max_blocks):
        if block := draw(st.sampled_from((None, *_IMAGE_BLOCKS))):
            x = block(step, f"block{index}", x, draw(st.integers(1, 3)))
    rows, columns = step.shape(x)[2:]
    if rows == columns and draw(st.booleans()):
        x = step.pool("pool", "average", x, rows)
    classes = draw(st.integers(2, 4))
    step.loss(step.linear("fc", x, classes), classes)
    return step.trace()


@st.composite
def sequence_traces(draw: st.DrawFn, max_blocks: int = 1) -> Trace:
    """An embedding, then up to ``max_blocks`` attention or feed-forward blocks, and a classifier."""
    batch, length, width = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    step = Step("tokens", batch, draw(st.sampled_from(sorted(OPTIMIZERS))))
    tokens = step.given("tokens", (batch, length), "input", 64)
    x = step.embedding("embedding", tokens, draw(st.integers(2, 20)), width)
    for index in range(max_blocks):
        if block := draw(st.sampled_from((None, *_SEQUENCE_BLOCKS))):
            x = block(step, f"block{index}", x, draw(st.integers(1, 3)))
    classes = draw(st.integers(2, 4))
    step.loss(step.linear("fc", x, classes), classes)
    return step.trace()


@st.composite
def recurrent_traces(draw: st.DrawFn) -> Trace:
    """An embedding, one or two time steps of an LSTM, time-major, and a classifier of its last output."""
    batch, length, width = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    step = Step("words", batch, draw(st.sampled_from(sorted(OPTIMIZERS))))
    tokens = step.given("tokens", (length, batch), "input", 64)
    x = step.embedding("embedding", tokens, draw(st.integers(2, 20)), width)
    classes = draw(st.integers(2, 4))
    step.loss(step.linear("fc", step.lstm("lstm", x, draw(st.integers(1, 3))), classes), classes)
    return step.trace()


@st.composite
def gated(draw: st.DrawFn, steps: st.SearchStrategy[Trace]) -> Trace:
    """A step one of whose layers waits for a decision, which is its first op."""
    trace = draw(steps)
    decision = Op("decide:forward", "forward", "", Sync("decision"), (), ())
    layer = draw(st.sampled_from(sorted({op.layer for op in trace.ops})))
    gate = Gate("block", layer or "root", decision.name)
    ops = (replace(op, gate=gate, after=(decision.name,)) if op.layer == layer else op for op in trace.ops)
    return replace(trace, ops=(decision, *ops))


def traces(*, gates: bool = False) -> st.SearchStrategy[Trace]:
    """Any of the steps of this module, of 8 to about 50 ops; with ``gates`` some have a gated layer."""
    steps = image_traces() | sequence_traces() | recurrent_traces()
    return steps | gated(steps) if gates else steps
