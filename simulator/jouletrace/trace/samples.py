"""A step in which residual units run for some samples of the batch, and units marked by gates.

    F over B samples         becomes       F over n samples
    out = shortcut + F(x)                  n rows of out are computed, the others are the shortcut's, in place

The n samples read their share of what comes from outside the unit. Weights, weight gradients and updates stay whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from jouletrace.errors import RewriteError
from jouletrace.trace.batch import Scaling
from jouletrace.trace.check import MAX_NAME, problems
from jouletrace.trace.model import Gate, Op, Tensor, Trace
from jouletrace.trace.residual import Unit, residual_units
from jouletrace.trace.skip import choose, without_units

__all__ = ["gated", "with_samples"]


def with_samples(trace: Trace, samples: Mapping[str, int], *, checked: bool = True) -> Trace:
    """The step of a batch of which so many samples run each of these units; the others skip it.

    All samples are the step itself; none is :func:`jouletrace.trace.skip.without_units`. MACs of a unit are exactly
    n/B of the whole batch's. Tensors inside shrink to n samples; what others read keeps its shape and is computed
    in part (``write_elements``). Units may be given one after the other, in any order.

    Raises RewriteError for names of no unit, for more samples than the batch has, for a unit that runs for a part
    of the batch already, and where a count of an op is no whole number for n samples. ``checked=False`` leaves out the
    rules of :mod:`jouletrace.trace.check`, for one of several numbers of samples of which the extremes are checked.

    >>> from jouletrace.trace.io import load_trace
    >>> step = load_trace("resnet20-cifar10-b32")
    >>> some = with_samples(step, {"layer1.1": 8})
    >>> some.op["layer1.1.conv2:forward"].macs * 4 == step.op["layer1.1.conv2:forward"].macs
    True
    >>> some.op["layer1.1.relu:forward#2"].write_elements, some.tensor["layer1.1.relu:forward#2.y"].shape
    ((131072,), (32, 16, 32, 32))
    """
    batch = trace.header.batch
    if wrong := [f"{n} samples of {name!r} are not possible; the batch of {trace.header.name} has {batch}."
                 for name, n in samples.items() if not 0 <= n <= batch]:  # fmt: skip
        raise RewriteError(wrong)
    step = without_units(trace, [name for name, n in samples.items() if n == 0])
    some = {name: n for name, n in samples.items() if n}
    units = [unit for unit in choose(residual_units(step), some) if some[unit.name] < batch]
    return _reduced(step, {unit: some[unit.name] for unit in units}, checked) if units else step


def gated(trace: Trace, units: Iterable[Unit], decisions: Mapping[str, str] | None = None) -> Trace:
    """The step whose ops of these units carry a gate named after the unit, updates included.

    ``decisions`` maps names of units to the op that decides, which has to come before all ops of the unit; a unit
    without one is decided outside the step. Raises RewriteError for decisions of no unit, for an op that another gate
    holds already, and for one that comes before its decision.

    >>> from jouletrace.trace.io import load_trace
    >>> from jouletrace.trace.residual import residual_units
    >>> step = load_trace("resnet20-cifar10-b32")
    >>> gated(step, residual_units(step)[:1]).op["layer1.0.conv1:forward"].gate
    Gate(unit='block', name='layer1.0', decision=None)
    """
    units, decided = tuple(units), decisions or {}
    choose(units, decided)  # refuses decisions of no unit
    gates = {op: Gate("block", unit.name, decided.get(unit.name)) for unit in units for op in unit.ops}
    wrong = [f"Op {op.name!r} of the unit {gates[op.name].name!r} is held by the gate {op.gate.name!r} already."
             for op in trace.ops if op.gate is not None and gates.get(op.name, op.gate) != op.gate]  # fmt: skip
    if wrong:
        raise RewriteError(wrong)
    result = replace(trace, ops=tuple(
        op if gates.get(op.name, op.gate) == op.gate else replace(op, gate=gates[op.name]) for op in trace.ops
    ))  # fmt: skip
    # Of a valid step, only what a gate says can be wrong.
    if not _comes_first(result, gates) and (found := problems(result)):
        raise RewriteError([f"The units cannot be marked: {sentence}" for sentence in found])
    return result


def _comes_first(trace: Trace, gates: Mapping[str, Gate]) -> bool:
    """Are all gates named, and stands every decision before the ops that it decides about?"""
    place = {op.name: i for i, op in enumerate(trace.ops)}
    after_all = len(trace.ops)
    return all(
        0 < len(gate.name) <= MAX_NAME and (gate.decision is None or place.get(gate.decision, after_all) < place[name])
        for name, gate in gates.items()
    )


def _reduced(trace: Trace, samples: Mapping[Unit, int], checked: bool) -> Trace:
    """The step whose units run for so many samples each, at least one and not all."""
    whole = trace.__dict__.get("_scaling")  # kept as a cached property of the frozen trace
    if not isinstance(whole, Scaling):
        whole = trace.__dict__.setdefault("_scaling", Scaling(trace, trace.header.batch))
    scaling = {unit: _Part(whole, unit, n) for unit, n in samples.items()}
    ops = {name: part.op(trace.op[name]) for part in scaling.values() for name in part.members}
    tensors = {t.name: t for part in scaling.values() for t in part.tensors if t.name in part.inside}
    wrong = [f"{unit.name} cannot run for {samples[unit]} samples: {problem}"
             for unit, part in scaling.items() for problem in part.problems]  # fmt: skip
    for unit in samples:
        if trace.writer[unit.output].write_elements:
            wrong.append(f"{unit.name} runs for a part of the batch already; start from the step with all samples.")
    if wrong:
        raise RewriteError(wrong)
    reduced = replace(
        trace,
        tensors=tuple(tensors.get(t.name, t) for t in trace.tensors),
        ops=tuple(ops.get(op.name, op) for op in trace.ops),
    )
    if checked and (found := problems(reduced)):
        names = ", ".join(unit.name for unit in samples)
        raise RewriteError([f"{names} cannot run for a part of the batch: {sentence}" for sentence in found])
    return reduced


class _Part(Scaling):
    """A change of batch for one unit: only tensors that nothing outside it reads get another size."""

    def __init__(self, whole: Scaling, unit: Unit, samples: int) -> None:
        """``whole`` knows what carries the batch; it is asked once for all units."""
        trace = self.trace = whole.trace
        self.old, self.new, self.axes = whole.old, samples, whole.axes
        self.problems = []
        self.members = frozenset((*unit.forward, *unit.backward))
        ops = [trace.op[name] for name in self.members]
        made = {name for op in ops for name in op.writes}
        self.inside: Collection[str] = {name for name in made if self._private(trace, name)}
        touched = {name for op in ops for name in (*op.reads, *op.writes)}
        self.tensors = tuple(self.tensor(trace.tensor[name]) for name in sorted(touched))
        self.elements = {t.name: t.elements for t in self.tensors}

    def _private(self, trace: Trace, name: str) -> bool:
        return all(reader.name in self.members for reader in trace.readers.get(name, ()))

    def tensor(self, tensor: Tensor) -> Tensor:
        return super().tensor(tensor) if tensor.name in self.inside else tensor

    def op(self, op: Op) -> Op:
        scaled = super().op(op)
        written = [
            self.times(n, f"What op {op.name!r} computes of {name!r}") if self.grows(name) else n
            for name, n in zip(op.writes, self.trace.elements_written(op), strict=True)
        ]
        whole = written == [self.elements[name] for name in op.writes]
        return replace(scaled, write_elements=() if whole else tuple(written))
