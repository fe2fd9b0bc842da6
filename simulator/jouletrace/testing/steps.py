"""Training steps written layer by layer, as a framework would run them.

Forward, backward with the gradients of a tensor that is used twice added up, one update per parameter. Nothing
here knows the code that captures real steps, so the two can be held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from jouletrace.trace.model import (
    Cell,
    Conv,
    Copy,
    Elementwise,
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
    Tensor,
    Trace,
    Update,
)

__all__ = ["OPTIMIZERS", "Result", "Step"]

# A result in the making: what its name ends in, its shape, its role.
Result = tuple[str, Sequence[int], Role]

# Per rule: its states, and operations per element.
OPTIMIZERS = {"sgd": ((), 2), "sgd_momentum": (("momentum",), 4), "adam": (("exp_avg", "exp_avg_sq"), 12)}


class Step:
    """A training step in the making. Layers take and return names of tensors; :meth:`trace` is the step.

    ``batch`` is the number of samples, ``optimizer`` one of :data:`OPTIMIZERS`. A layer that is used again under the
    same name shares its parameters.

    >>> step = Step("small", batch=2)
    >>> x = step.conv("conv1", step.given("images", (2, 3, 8, 8), "input"), channels=4)
    >>> step.loss(step.linear("fc", step.function("relu", "relu", x), 10), classes=10)
    >>> trace = step.trace()
    >>> len(trace.ops), trace.ops[0].name, trace.macs
    (13, 'conv1.conv:forward', 43008)
    """

    def __init__(self, name: str, batch: int, optimizer: str = "sgd_momentum") -> None:
        self.header = Header(f"{name}-b{batch}", batch, optimizer, "cross_entropy", (("tool", "jouletrace.testing"),))
        self.batch = batch
        self.tensors: dict[str, Tensor] = {}
        self.ops: dict[str, Op] = {}
        self.gradients: dict[str, list[str]] = {}
        self.latest: dict[str, str] = {}  # running statistics: their last version
        self.backward: list[Callable[[], None]] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def elements(self, name: str) -> int:
        return self.tensors[name].elements

    def given(self, name: str, shape: Sequence[int], role: Role, bits: int = 32) -> str:
        """A tensor that exists before the step; asking twice gives the same one (a shared parameter)."""
        self.tensors.setdefault(name, Tensor(name, tuple(shape), bits, "int" if bits == 64 else "fp", role))
        return name

    def state(self, name: str, shape: Sequence[int]) -> str:
        """The latest version of a statistic that every use of its layer replaces."""
        return self.latest.get(name) or self.given(name, shape, "buffer")

    def op(self, what: str, phase: Phase, nest: Nest, reads: Sequence[str],
           *writes: Result, touched: Sequence[int] = ()) -> list[str]:  # fmt: skip
        """Appends one op of the layer ``what`` begins with; returns the names of its results."""
        what = what.lstrip(".")  # of the network itself, whose layer path is empty
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

    def scale(self, layer: str, x: str, weights: str) -> str:
        """Every map of x times its own weight, of shape (N, C, 1, 1)."""
        n, what = self.elements(x), f"{layer}.mul"
        nest = Elementwise("mul_backward", n)
        y, = self.op(what, "forward", Elementwise("mul", n), (x, weights), ("y", self.shape(x), "activation"))

        def backward() -> None:
            gy = self.gradient(y)
            self.pull(x, what, nest, gy, weights)
            product, = self.op(what, "backward_data", nest, (gy, x), ("product", self.shape(x), "gradient"))
            self.pull(weights, f"{layer}.sum", Reduce("sum", n, self.elements(weights)), product)

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
        running = [self.state(f"{layer}.{name}", (width,)) for name in names]
        results: list[Result] = [(name, (nest.groups,), "buffer") for name in ("mean", "invstd", *names)]
        y, mean, invstd, *latest = self.op(
            what, "forward", nest, (x, w, b, *running), ("y", shape, "activation"), *results
        )
        self.latest.update(zip((f"{layer}.{name}" for name in names), latest, strict=True))

        def backward() -> None:
            results: list[Result] = [(g, (width,), "weight_gradient") for g in ("gw", "gb")]
            reads = (self.gradient(y), x, w, mean, invstd)
            gradients = self.op(what, "backward_data", nest, reads, ("gx", shape, "gradient"), *results)
            for operand, gradient in zip((x, w, b), gradients, strict=True):
                self.give(operand, gradient)

        self.backward.append(backward)
        return y

    def pool(self, layer: str, function: str, x: str, kernel: int | tuple[int, int]) -> str:
        """Pooling whose windows touch but do not overlap; rows and columns that are left over are dropped."""
        N, C, IY, IX = self.shape(x)
        R, S = (kernel, kernel) if isinstance(kernel, int) else kernel
        OY, OX = IY // R, IX // S
        what = f"{layer}.{function}"
        nest = Pool(function, N, C, IY, IX, OY, OX, R, S, (R, S))
        extra: list[Result] = [("indices", (N, C, OY, OX), "mask")] if function == "max" else []
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
        results: list[Result] = [(name, (batch, width), "activation") for name, width in widths]
        h, new_c, kept = self.op(what, "forward", nest, (*gates, c), *results)

        def backward() -> None:
            incoming = [self.gradient(s) for s in (h, new_c) if s in self.gradients]
            wanted: list[Result] = [("ggates", (batch, 4 * hidden), "gradient")]
            if self.needs(c):
                wanted.append(("gc", (batch, hidden), "gradient"))
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
        results: list[Result] = [("loss", (), "buffer"), ("log_probabilities", self.shape(x), "activation")]
        _, kept = self.op("cross_entropy", "forward", nest, (x, labels), *results)
        self.backward.append(lambda: self.pull(x, "cross_entropy", nest, kept, labels))

    def trace(self) -> Trace:
        """The whole step: backward, updates, and what backward reads of forward marked as saved."""
        while self.backward:
            self.backward.pop()()
        states, flops = OPTIMIZERS[self.header.optimizer]
        for w in [t for t in self.tensors.values() if t.role == "param"]:
            old = [self.given(f"{w.name}.{s}", w.shape, "optimizer_state") for s in states]
            new: list[Result] = [(s, w.shape, "optimizer_state") for s in states]
            nest = Update(self.header.optimizer, w.elements, flops)
            reads = (w.name, self.gradient(w.name), *old)
            self.op(w.name, "update", nest, reads, ("param", w.shape, "param"), *new)
        forward = {t for op in self.ops.values() if op.phase == "forward" for t in (*op.reads, *op.writes)}
        saved = {t for op in self.ops.values() if op.phase.startswith("backward") for t in op.reads} & forward
        tensors = tuple(replace(t, saved=t.name in saved) for t in self.tensors.values())
        return Trace(self.header, tensors, tuple(self.ops.values()))
