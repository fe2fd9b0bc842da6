"""The recurrent gate of E2-Train: a small network before every unit that decides which samples run it.

    x → mean over the map → C×10 product → LSTM (10, 10) → 10×1 product → sigmoid → draw → decision

The LSTM and the last product are shared by all gates; the state of the LSTM goes from one gate to the next. One
evaluation takes ``10·C + 4·10·(10 + 10) + 10`` MACs per sample (Y. Wang et al., E2-Train, NeurIPS 2019, section 3.2;
the layout is that of the authors' code and of X. Wang et al., SkipNet, ECCV 2018, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

from jouletrace.trace.model import (
    Cell,
    Copy,
    Elementwise,
    Gemm,
    Nest,
    Op,
    Phase,
    Pool,
    Reduce,
    Rng,
    Role,
    Sync,
    Tensor,
    Trace,
    Update,
)
from jouletrace.trace.units import Unit

__all__ = ["WIDTH", "evaluation_macs", "with_gates"]

WIDTH = 10  # of what the LSTM reads, and of its state
_SHARED = "gate"


def evaluation_macs(channels: int) -> int:
    """MACs of one evaluation for one sample whose map has so many channels.

    >>> evaluation_macs(16)
    970
    """
    return WIDTH * channels + 4 * WIDTH * (WIDTH + WIDTH) + WIDTH


def with_gates(trace: Trace, units: Sequence[Unit], *, per_batch: bool) -> tuple[Trace, dict[str, str]]:
    """The step with a gate before each of these units (in forward order), its backward and its updates.

    Returns the step and, for each unit, the op that decides. With ``per_batch`` the mean probability of the batch
    decides for all samples. Gradients flow through the draw to what the gate has learnt, and from gate to gate, but not
    into the map that it reads.
    """
    gates = _Gates(trace, per_batch)
    before: dict[str, list[Op]] = {}
    for unit in units:
        before[unit.forward[0]] = gates.forward(unit)
    backward = gates.backward() if any(op.kind == "update" for op in trace.ops) else []
    ops: list[Op] = []
    updated = False
    for op in trace.ops:
        if op.kind == "update" and not updated:
            ops += backward
            updated = True
        ops += (*before.get(op.name, ()), op)
    ops += gates.updates()
    decisions = {gate.unit: gate.decision for gate in gates.gates}
    return replace(trace, tensors=(*trace.tensors, *gates.tensors.values()), ops=tuple(ops)), decisions


@dataclass
class _Gate:
    """Names of what the backward of one gate reads."""

    unit: str
    layer: str
    channels: int
    pooled: str
    projected: str
    state: str  # h that the gate reads
    cell: str  # c that the gate reads
    hidden: str = ""  # h that it writes
    new_cell: str = ""
    kept: tuple[str, ...] = ()  # activated gates, and tanh of the new cell state
    probability: str = ""
    mask: str = ""
    decision: str = ""


@dataclass
class _Gates:
    """The gates of one step in the making."""

    trace: Trace
    per_batch: bool
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    gates: list[_Gate] = field(default_factory=list["_Gate"])
    weight_gradients: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def batch(self) -> int:
        return self.trace.header.batch

    def given(self, name: str, shape: tuple[int, ...], role: Role = "param") -> str:
        """A tensor that exists before the step; asking twice gives the same one."""
        self.tensors.setdefault(name, Tensor(name, shape, 32, "fp", role, saved=len(shape) > 1))
        return name

    def op(self, name: str, phase: Phase, layer: str, nest: Nest, reads: Sequence[str],
           *writes: tuple[str, tuple[int, ...], Role], saved: bool = False) -> Op:  # fmt: skip
        """An op, and its results as new tensors."""
        full = f"{name}:{phase}"
        results = [Tensor(f"{full}.{what}", shape, 32, "fp", role, saved) for what, shape, role in writes]
        self.tensors |= {t.name: t for t in results}
        return Op(full, phase, layer, nest, tuple(reads), tuple(t.name for t in results))

    # -- forward

    def forward(self, unit: Unit) -> list[Op]:
        B, layer = self.batch, f"{unit.name}.gate"
        pooling, pooled, channels = self._pool(layer, unit.source)
        weight = self.given(f"{layer}.project.weight", (WIDTH, channels))
        bias = self.given(f"{layer}.project.bias", (WIDTH,))
        project = self.op(f"{layer}.project", "forward", layer, Gemm(1, B, WIDTH, channels, tb=True),
                          (pooled, weight, bias), ("y", (B, WIDTH), "activation"), saved=True)  # fmt: skip
        if self.gates:
            state, cell = self.gates[-1].hidden, self.gates[-1].new_cell
        else:
            zeros = [self.op(f"{_SHARED}.{what}", "forward", layer, Copy("zeros", B * WIDTH), (),
                             ("y", (B, WIDTH), "activation"), saved=True) for what in ("state", "cell")]  # fmt: skip
            pooling = [*zeros, *pooling]
            state, cell = (op.writes[0] for op in zeros)
        gate = _Gate(unit.name, layer, channels, pooled, project.writes[0], state, cell)
        products = [
            self.op(f"{layer}.{what}", "forward", layer, Gemm(1, B, 4 * WIDTH, WIDTH, tb=True),
                    (operand, *self._lstm(what)), ("y", (B, 4 * WIDTH), "activation"))
            for what, operand in (("input", gate.projected), ("recurrent", state))
        ]  # fmt: skip
        lstm = self.op(f"{layer}.lstm", "forward", layer, Cell("lstm", B, WIDTH),
                       (products[1].writes[0], products[0].writes[0], cell),
                       ("new_state", (B, WIDTH), "activation"), ("tanh", (B, WIDTH), "activation"),
                       ("new_cell", (B, WIDTH), "activation"), ("gates", (B, 4 * WIDTH), "activation"),
                       saved=True)  # fmt: skip
        gate.hidden, tanh, gate.new_cell, activated = lstm.writes
        gate.kept = (activated, tanh)
        self.gates.append(gate)
        return [*pooling, project, *products, lstm, *self._decide(gate)]

    def _pool(self, layer: str, source: str) -> tuple[list[Op], str, int]:
        """The mean of every channel over the map, or over the tokens; nothing to do where there is one value."""
        B, shape = self.batch, self.trace.tensor[source].shape
        channels = shape[1] if len(shape) == 4 else shape[-1]
        if prod(shape) == B * channels:
            return [], source, channels
        nest: Nest = Reduce("mean", prod(shape), B * channels)
        if len(shape) == 4:
            nest = Pool("average", B, channels, *shape[2:], 1, 1, *shape[2:], stride=(shape[2], shape[3]))
        pool = self.op(f"{layer}.pool", "forward", layer, nest, (source,), ("y", (B, channels), "activation"),
                       saved=True)  # fmt: skip
        return [pool], pool.writes[0], channels

    def _lstm(self, what: str) -> tuple[str, str]:
        """Weight and bias of one of the two products before the LSTM."""
        return (self.given(f"{_SHARED}.{what}.weight", (4 * WIDTH, WIDTH)),
                self.given(f"{_SHARED}.{what}.bias", (4 * WIDTH,)))  # fmt: skip

    def _decide(self, gate: _Gate) -> list[Op]:
        B, layer = self.batch, gate.layer
        weight, bias = self.given(f"{_SHARED}.output.weight", (1, WIDTH)), self.given(f"{_SHARED}.output.bias", (1,))
        output = self.op(f"{layer}.output", "forward", layer, Gemm(1, B, 1, WIDTH, tb=True),
                         (gate.hidden, weight, bias), ("y", (B, 1), "activation"))  # fmt: skip
        sigmoid = self.op(f"{layer}.sigmoid", "forward", layer, Elementwise("sigmoid", B), output.writes,
                          ("y", (B, 1), "activation"), saved=True)  # fmt: skip
        ops, n, chance = [output, sigmoid], B, sigmoid.writes[0]
        if self.per_batch and B > 1:
            mean = self.op(f"{layer}.mean", "forward", layer, Reduce("mean", B, 1), sigmoid.writes,
                           ("y", (1,), "buffer"))  # fmt: skip
            ops, n, chance = [*ops, mean], 1, mean.writes[0]
        role: Role = "buffer" if self.per_batch else "mask"
        shape = (n,) if self.per_batch else (n, 1)
        draw = self.op(f"{layer}.random", "forward", layer, Rng(n), (), ("draw", shape, role))
        compare = self.op(f"{layer}.compare", "forward", layer, Elementwise("lt", n), (chance, *draw.writes),
                          ("mask", shape, role), saved=True)  # fmt: skip
        decision = self.op(f"{layer}.decision", "forward", layer, Sync("decision"), compare.writes)
        gate.probability, gate.mask, gate.decision = sigmoid.writes[0], compare.writes[0], decision.name
        return [*ops, draw, compare, decision]

    # -- backward

    def backward(self) -> list[Op]:
        """The gates in reverse: the straight-through gradient of the regulariser, back through time."""
        ops: list[Op] = []
        recurrent: list[str] = []  # gradients of the state and of the cell that a later gate gives this one
        for position, gate in reversed(list(enumerate(self.gates))):
            ops += self._backward(gate, recurrent, first=position == 0)
        return ops

    def _backward(self, gate: _Gate, recurrent: list[str], *, first: bool) -> list[Op]:
        B, layer, data = self.batch, gate.layer, "backward_data"
        penalty = self.op(f"{layer}.regulariser", data, layer, Elementwise("scale", B),
                          (gate.probability, gate.mask), ("g", (B, 1), "gradient"))  # fmt: skip
        sigmoid = self.op(f"{layer}.sigmoid_backward", data, layer, Elementwise("sigmoid_backward", B),
                          (*penalty.writes, gate.probability), ("gx", (B, 1), "gradient"))  # fmt: skip
        output = self.op(f"{layer}.output", data, layer, Gemm(1, B, WIDTH, 1),
                         (*sigmoid.writes, f"{_SHARED}.output.weight"), ("gx", (B, WIDTH), "gradient"))  # fmt: skip
        results: list[tuple[str, tuple[int, ...], Role]] = [("gx", (B, 4 * WIDTH), "gradient")]
        if not first:
            results.append(("gcell", (B, WIDTH), "gradient"))
        lstm = self.op(f"{layer}.lstm", data, layer, Cell("lstm", B, WIDTH),
                       (*output.writes, *recurrent, *gate.kept, gate.cell), *results)  # fmt: skip
        ops = [penalty, sigmoid, output, *self._weights(gate, "output", sigmoid.writes[0], gate.hidden, 1), lstm]
        gates = lstm.writes[0]
        ops += self._weights(gate, "recurrent", gates, gate.state, 4 * WIDTH)
        ops += self._weights(gate, "input", gates, gate.projected, 4 * WIDTH)
        shape = Gemm(1, B, WIDTH, 4 * WIDTH)
        inward = self.op(f"{layer}.input", data, layer, shape, (gates, f"{_SHARED}.input.weight"),
                         ("gx", (B, WIDTH), "gradient"))  # fmt: skip
        ops += (inward, *self._weights(gate, "project", inward.writes[0], gate.pooled, WIDTH))
        recurrent.clear()
        if not first:
            back = self.op(f"{layer}.recurrent", data, layer, shape, (gates, f"{_SHARED}.recurrent.weight"),
                           ("gx", (B, WIDTH), "gradient"))  # fmt: skip
            ops.append(back)
            recurrent += (back.writes[0], lstm.writes[1])
        return ops

    def _weights(self, gate: _Gate, what: str, gradient: str, operand: str, rows: int) -> list[Op]:
        """Gradients of weight and bias of one product, added to those of later gates where they are shared."""
        B, layer, phase = self.batch, gate.layer, "backward_weight"
        columns = gate.channels if what == "project" else WIDTH
        owner = f"{layer}.project" if what == "project" else f"{_SHARED}.{what}"
        weight = self.op(f"{layer}.{what}", phase, layer, Gemm(1, rows, columns, B, ta=True), (gradient, operand),
                         ("gw", (rows, columns), "weight_gradient"))  # fmt: skip
        bias = self.op(f"{layer}.{what}.sum", phase, layer, Reduce("sum", B * rows, rows), (gradient,),
                       ("gb", (rows,), "weight_gradient"))  # fmt: skip
        ops = [weight, bias]
        for name, own in ((f"{owner}.weight", weight.writes[0]), (f"{owner}.bias", bias.writes[0])):
            if (before := self.weight_gradients.get(name)) is not None:
                of = self.tensors[own]
                suffix = name.rpartition(".")[2]
                total = self.op(f"{layer}.{what}.{suffix}.accumulate", phase, layer,
                                Elementwise("accumulate", of.elements), (before, own),
                                ("gw", of.shape, "weight_gradient"))  # fmt: skip
                ops.append(total)
                own = total.writes[0]
            self.weight_gradients[name] = own
        return ops

    # -- updates

    def updates(self) -> list[Op]:
        """The optimizer of the step, applied to the parameters of the gates."""
        like = next((op for op in self.trace.ops if isinstance(op.nest, Update)), None)
        if like is None or not isinstance(like.nest, Update):
            return []
        return [self._update(like, like.nest, name, gradient) for name, gradient in self.weight_gradients.items()]

    def _update(self, like: Op, rule: Update, name: str, gradient: str) -> Op:
        weight, tensors = self.tensors[name], self.trace.tensor
        pattern = tensors[like.reads[0]]
        layer = name.rpartition(".")[0]
        states: list[str] = []
        new: list[str] = []
        for old in like.reads[2:]:
            if old in self.trace.writer:  # a coefficient that one op computes for all updates
                states.append(old)
                continue
            of = tensors[old]
            suffix = old.removeprefix(f"{pattern.name}.")
            state = replace(of, name=f"{name}.{suffix}", shape=weight.shape if of.shape == pattern.shape else of.shape)
            self.tensors[state.name] = state
            states.append(state.name)
        for written in like.writes:
            of = tensors[written]
            suffix = written.removeprefix(f"{pattern.name}:update.")
            shape = weight.shape if of.shape == pattern.shape else of.shape
            result = replace(of, name=f"{name}:update.{suffix}", shape=shape)
            self.tensors[result.name] = result
            new.append(result.name)
        nest = replace(rule, elements=weight.elements)
        return Op(f"{name}:update", "update", layer, nest, (name, gradient, *states), tuple(new))
