"""Four small strategies that keep every law, and mutants of them, each with one defect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from typing import ClassVar

import numpy as np

from jouletrace.strategies.base import Notes, Strategy
from jouletrace.testing import Step, blocks
from jouletrace.trace.model import Conv, Copy, Elementwise, Gemm, Op, Tensor, Trace
from jouletrace.trace.run import DROPPED, Run
from jouletrace.trace.units import gated, residual_units, without_units


def residual_step(batch: int = 4) -> Trace:
    """A stem and two basic blocks with identity shortcuts, of one shape throughout."""
    step = Step("two-blocks", batch)
    x = step.conv("conv1", step.given("images", (batch, 2, 4, 4), "input"), 2)
    x = step.function("", "relu", step.norm("bn1", "batch", x))
    x = blocks.basic(step, "layer1.1", blocks.basic(step, "layer1.0", x, 2), 2)
    step.loss(step.linear("fc", x, 3), 3)
    return step.trace()


# -- strategies that keep the laws


@dataclass(frozen=True)
class SkipFirst(Strategy):
    """The first ``units`` residual units are left out of the step."""

    name: ClassVar[str] = "skip-first"
    units: int = 1

    def neutral(self) -> Strategy:
        return replace(self, units=0)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        names = [unit.name for unit in residual_units(trace)][: self.units]
        after = without_units(trace, names)
        notes.skipped_macs += trace.macs - after.macs
        return after


@dataclass(frozen=True)
class Drop(Strategy):
    """Iterations are dropped with probability ``p``."""

    name: ClassVar[str] = "drop"
    stage: ClassVar[str] = "data"
    random: ClassVar[bool] = True
    p: Fraction = Fraction(1, 3)

    def neutral(self) -> Strategy:
        return replace(self, p=Fraction(0))

    def run(self, run: Run, notes: Notes) -> Run:
        if not self.p:
            return run
        kept = notes.random().random(run.iterations) >= float(self.p)
        return replace(run, step_of=np.where(kept, run.step_of, DROPPED).astype(np.int32))

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        yield "dropped", run.iterations, self.p

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        yield "dropped", before.executed - after.executed


@dataclass(frozen=True)
class SkipSome(Strategy):
    """Every residual unit is skipped by every sample with probability ``p``."""

    name: ClassVar[str] = "skip-some"
    changes: ClassVar[frozenset[str]] = frozenset({"op.gate"})
    random: ClassVar[bool] = True
    p: Fraction = Fraction(1, 2)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        return gated(trace, residual_units(trace))

    def run(self, run: Run, notes: Notes) -> Run:
        marked = super().run(run, notes)
        units = tuple(unit.name for unit in residual_units(run.steps[0]))
        if not units:
            return run
        draws = [notes.random(unit).binomial(run.batch, 1 - float(self.p), run.iterations) for unit in units]
        return replace(marked, units=units, samples=np.stack(draws, axis=1).astype(np.int32))

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        for unit in residual_units(run.steps[0]):
            yield unit.name, run.iterations * run.batch, 1 - self.p

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        for index, unit in enumerate(after.units):
            yield unit, int(after.samples[:, index].sum())


@dataclass(frozen=True)
class Narrow(Strategy):
    """Gradients of activations have ``bits`` bits."""

    name: ClassVar[str] = "narrow"
    stage: ClassVar[str] = "precision"
    changes: ClassVar[frozenset[str]] = frozenset({"tensor.bits"})
    bits: int = 16

    def neutral(self) -> Strategy | None:
        return replace(self, bits=32)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        narrow = (replace(t, bits=self.bits) if t.role == "gradient" else t for t in trace.tensors)
        return replace(trace, tensors=tuple(narrow))


# -- mutants: skipping


def _edit(trace: Trace, name: str, **fields: object) -> Trace:
    return replace(trace, ops=tuple(replace(op, **fields) if op.name == name else op for op in trace.ops))


def _restored(after: Trace, before: Trace, ops: Iterable[Op]) -> Trace:
    """Some ops of the step before put back at the end, with their results and what they read of the state."""
    ops = tuple(ops)
    names = {name for op in ops for name in (*op.reads, *op.writes)} - set(after.tensor)
    return replace(after, ops=(*after.ops, *ops), tensors=(*after.tensors, *(before.tensor[n] for n in sorted(names))))


@dataclass(frozen=True)
class GradientLeftBehind(SkipFirst):
    """The last convolution of a skipped block still computes its weight gradient, from what was its input."""

    changes: ClassVar[frozenset[str]] = frozenset({"op.reads"})

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if (after := super().step(trace, notes)) is trace:
            return trace
        unit = residual_units(trace)[0]
        weight = next(op for op in trace.ops if op.name in unit.backward and isinstance(op.nest, Conv)
                      and op.phase == "backward_weight")  # fmt: skip
        update = next(op for op in trace.ops if op.kind == "update" and weight.writes[0] in op.reads)
        gradient = next(t.name for t in after.tensors if t.role == "gradient" and t.shape == trace.tensor[unit.output].shape)
        return _restored(after, trace, [replace(weight, reads=(gradient, unit.shortcut)), update])


@dataclass(frozen=True)
class WrongShortcut(SkipFirst):
    """Readers of a skipped block read the result of the stem's convolution, which has the shape of the shortcut."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if (after := super().step(trace, notes)) is trace:
            return trace
        shortcut, wrong = residual_units(trace)[0].shortcut, trace.ops[0].writes[0]
        reader = next(op for op in after.ops if op.phase == "forward" and shortcut in op.reads)
        return _edit(after, reader.name, reads=tuple(wrong if n == shortcut else n for n in reader.reads))


@dataclass(frozen=True)
class WrongGradient(SkipFirst):
    """A convolution computes its weight gradient from the gradient of another result; reads are declared."""

    changes: ClassVar[frozenset[str]] = frozenset({"op.reads"})

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if (after := super().step(trace, notes)) is trace:
            return trace
        products = [op for op in after.ops if isinstance(op.nest, Conv) and op.phase == "backward_weight"]
        return _edit(after, products[-1].name, reads=(products[0].reads[0], products[-1].reads[1]))


@dataclass(frozen=True)
class UpdateKept(SkipFirst):
    """The weight of a skipped block is updated all the same, with a gradient of zeros."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if (after := super().step(trace, notes)) is trace:
            return trace
        update = trace.op[residual_units(trace)[0].updates[0]]
        zeros = Op("zeros:update", "update", "", Copy("zeros", trace.tensor[update.reads[1]].elements), (),
                   update.reads[1:2])  # fmt: skip
        return _restored(after, trace, [zeros, update])


@dataclass(frozen=True)
class ParameterLost(SkipFirst):
    """The weights of a skipped block are gone."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if (after := super().step(trace, notes)) is trace:
            return trace
        lost = residual_units(trace)[0].params
        return replace(after, tensors=tuple(t for t in after.tensors if t.name not in lost))


@dataclass(frozen=True)
class SkippedTwice(SkipFirst):
    """MACs that were skipped are reported twice."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        after = super().step(trace, notes)
        notes.skipped_macs *= 2
        return after


@dataclass(frozen=True)
class UnrelatedBatch(SkipFirst):
    """One sample fewer goes through the loss."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        after = super().step(trace, notes)
        loss = next(op for op in after.ops if op.kind == "loss")
        return _edit(after, loss.name, nest=replace(loss.nest, rows=loss.nest.rows - 1))


@dataclass(frozen=True)
class NeutralWrites(SkipFirst):
    """The setting that skips nothing forgets what is saved for the backward pass."""

    changes: ClassVar[frozenset[str]] = frozenset({"tensor.saved"})

    def step(self, trace: Trace, notes: Notes) -> Trace:
        after = super().step(trace, notes)
        return replace(after, tensors=tuple(replace(t, saved=False) for t in after.tensors))


# -- mutants: gates


@dataclass(frozen=True)
class GateNotCounted(SkipFirst):
    """A product on the input that decides something, whose MACs are not reported; the loss waits for it."""

    changes: ClassVar[frozenset[str]] = frozenset({"op.after"})

    def step(self, trace: Trace, notes: Notes) -> Trace:
        after = super().step(trace, notes)
        images = next(t for t in after.tensors if t.role == "input")
        weight = Tensor("gate.weight", (images.elements, 1), 32, "fp", "param")
        result = Tensor("gate:forward.y", (1, 1), 32, "fp", "activation")
        gate = Op("gate:forward", "forward", "gate", Gemm(1, 1, 1, images.elements), (images.name, weight.name),
                  (result.name,))  # fmt: skip
        after = replace(after, ops=(gate, *after.ops), tensors=(weight, result, *after.tensors))
        return _edit(after, next(op.name for op in after.ops if op.kind == "loss"), after=(gate.name,))


@dataclass(frozen=True)
class GatedTooMuch(SkipSome):
    """The classifier carries the gate of the first block."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        after = super().step(trace, notes)
        gate = next((op.gate for op in after.ops if op.gate is not None), None)
        return after if gate is None else _edit(after, "fc.gemm:forward", gate=gate)


# -- mutants: fields, order, energy


@dataclass(frozen=True)
class Undeclared(Narrow):
    """Widths change, and it is not declared."""

    changes: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class KnobLost(Narrow):
    """The knob that is kept is not the one that was given: it cannot be given again."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", self.bits // 2)

    def neutral(self) -> Strategy | None:
        return None


@dataclass(frozen=True)
class FirstFive(Narrow):
    """Only the first five gradients are narrow, whatever they are: it matters what was skipped before."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        five = [t.name for t in trace.tensors if t.role == "gradient"][:5]
        narrow = (replace(t, bits=self.bits) if t.name in five else t for t in trace.tensors)
        return replace(trace, tensors=tuple(narrow))


@dataclass(frozen=True)
class Dearer(Narrow):
    """The first ReLU becomes a function that costs more than comparing, and reads no more."""

    changes: ClassVar[frozenset[str]] = frozenset({"op.nest"})

    def neutral(self) -> Strategy | None:
        return None

    def step(self, trace: Trace, notes: Notes) -> Trace:
        relu = next(op for op in trace.ops if isinstance(op.nest, Elementwise) and op.nest.function == "relu")
        return _edit(trace, relu.name, nest=Elementwise("gelu", relu.nest.elements))


_calls = count()


@dataclass(frozen=True)
class Moody(Narrow):
    """Every second time the widths are others."""

    def step(self, trace: Trace, notes: Notes) -> Trace:
        return replace(self, bits=8 if next(_calls) % 2 else 16)._narrowed(trace, notes)

    def _narrowed(self, trace: Trace, notes: Notes) -> Trace:
        return Narrow.step(self, trace, notes)


# -- mutants: draws


@dataclass(frozen=True)
class WrongProbability(Drop):
    """Drops a little more often than it says."""

    def run(self, run: Run, notes: Notes) -> Run:
        return replace(self, p=self.p * 11 / 10)._dropped(run, notes)

    def _dropped(self, run: Run, notes: Notes) -> Run:
        return Drop.run(self, run, notes)


@dataclass(frozen=True)
class Shifted(Drop):
    """Draws a number for the whole run first, so that a longer run drops other iterations."""

    def run(self, run: Run, notes: Notes) -> Run:
        kept = notes.random(str(run.iterations)).random(run.iterations) >= float(self.p)
        return replace(run, step_of=np.where(kept, run.step_of, DROPPED).astype(np.int32))


@dataclass(frozen=True)
class Silent(Drop):
    """Draws, and says of nothing how often it is expected."""

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        return ()

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        return ()
