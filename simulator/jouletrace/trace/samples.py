"""A step in which residual units run for some samples of the batch, and units marked by gates.

    F over B samples         becomes       F over n samples
    out = shortcut + F(x)                  n rows of out are computed, the others are the shortcut's, in place

The n samples read their share of what comes from outside the unit. Weights, weight gradients and updates stay whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from jouletrace.errors import RewriteError
from jouletrace.trace.batch import Scaling
from jouletrace.trace.check import MAX_NAME, problems
from jouletrace.trace.model import Gate, Op, Trace
from jouletrace.trace.residual import Unit, residual_units
from jouletrace.trace.skip import choose, without_units

__all__ = ["excerpt", "gated", "with_samples"]


def with_samples(trace: Trace, samples: Mapping[str, int]) -> Trace:
    """The step of a batch of which so many samples run each of these units; the others skip it.

    All samples are the step itself; none is :func:`jouletrace.trace.skip.without_units`. MACs of a unit are exactly
    n/B of the whole batch's. Tensors inside shrink to n samples; what others read keeps its shape and is computed
    in part (``write_elements``). Units may be given one after the other, in any order.

    Raises RewriteError for names of no unit, for more samples than the batch has, for a unit that runs for a part
    of the batch already, and where a count of an op is no whole number for n samples.

    >>> from jouletrace.trace.io import load_trace
    >>> step = load_trace("resnet20-cifar10-b32")
    >>> some = with_samples(step, {"layer1.1": 8})
    >>> some.op["layer1.1.conv2:forward"].macs * 4 == step.op["layer1.1.conv2:forward"].macs
    True
    >>> some.op["layer1.1.relu:forward#2"].write_elements, some.tensor["layer1.1.relu:forward#2.y"].shape
    ((131072,), (32, 16, 32, 32))
    """
    batch = trace.header.batch
    _refuse(trace, {name: n for name, n in samples.items() if not 0 <= n <= batch})
    step = without_units(trace, [name for name, n in samples.items() if n == 0])
    some = {name: n for name, n in samples.items() if n}
    units = [unit for unit in choose(residual_units(step), some) if some[unit.name] < batch]
    return _reduced(step, {unit: some[unit.name] for unit in units}) if units else step


def excerpt(trace: Trace, samples: Mapping[str, int], names: Collection[str]) -> Trace:
    """Some ops of :func:`with_samples`, as they are there, and what they touch, without the rest of the step.

    At least one sample runs each unit. Ops stand in the order given and wait only for each other. The rules of
    :mod:`jouletrace.trace.check` are not looked at; else it raises what :func:`with_samples` raises.

    >>> from jouletrace.trace.io import load_trace
    >>> step, samples = load_trace("resnet20-cifar10-b32"), {"layer1.1": 8}
    >>> some = excerpt(step, samples, ["layer1.1.conv2:forward"])
    >>> some.ops == (with_samples(step, samples).op["layer1.1.conv2:forward"],)
    True
    """
    batch = trace.header.batch
    _refuse(trace, {name: n for name, n in samples.items() if not 1 <= n <= batch})
    inside = _inside(trace)
    wanted: dict[Unit, list[Op]] = {}
    for op in map(trace.op.__getitem__, names):
        unit = inside.unit_of.get(op.name)
        if unit is not None and samples.get(unit.name, batch) < batch:
            wanted.setdefault(unit, []).append(op)
    choose(residual_units(trace), samples)  # refuses names of no unit
    parts = [_Part(inside, unit, samples[unit.name], ops) for unit, ops in wanted.items()]
    if any(part.problems or part.is_partial for part in parts):
        return with_samples(trace, samples)  # tells the problems of all ops
    ops = {op.name: op for part in parts for op in part.ops}
    tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
    chosen = tuple(_among(ops.get(name, trace.op[name]), names) for name in names)
    touched = dict.fromkeys(name for op in chosen for name in (*op.reads, *op.writes))
    return replace(trace, tensors=tuple(tensors.get(name, trace.tensor[name]) for name in touched), ops=chosen)


def _among(op: Op, names: Collection[str]) -> Op:
    after = tuple(name for name in op.after if name in names)
    return op if after == op.after else replace(op, after=after)


def _refuse(trace: Trace, samples: Mapping[str, int]) -> None:
    if samples:
        raise RewriteError([
            f"{n} samples of {name!r} are not possible; the batch of {trace.header.name} has {trace.header.batch}."
            for name, n in samples.items()
        ])  # fmt: skip


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


@dataclass(frozen=True, eq=False)
class _Inside:
    """What of a step belongs to which unit: its ops, and tensors that nothing outside it reads."""

    whole: Scaling
    unit_of: Mapping[str, Unit]
    tensors: Mapping[str, Unit]


def _inside(trace: Trace) -> _Inside:
    known = trace.__dict__.get("_inside")  # kept as a cached property of the frozen trace
    if isinstance(known, _Inside):
        return known
    unit_of = {name: unit for unit in residual_units(trace) for name in (*unit.forward, *unit.backward)}
    tensors = {
        tensor: unit for name, unit in unit_of.items() for tensor in trace.op[name].writes
        if all(unit_of.get(reader.name) is unit for reader in trace.readers.get(tensor, ()))
    }  # fmt: skip
    inside = _Inside(Scaling(trace, trace.header.batch), unit_of, tensors)
    return trace.__dict__.setdefault("_inside", inside)


def _reduced(trace: Trace, samples: Mapping[Unit, int]) -> Trace:
    """The step whose units run for so many samples each, at least one and not all."""
    inside = _inside(trace)
    parts = [
        _Part(inside, unit, n, [trace.op[name] for name in (*unit.forward, *unit.backward)])
        for unit, n in samples.items()
    ]
    wrong = [f"{part.unit.name} cannot run for {part.new} samples: {problem}"
             for part in parts for problem in part.problems]  # fmt: skip
    wrong += [f"{part.unit.name} runs for a part of the batch already; start from the step with all samples."
              for part in parts if part.is_partial]  # fmt: skip
    if wrong:
        raise RewriteError(wrong)
    ops = {op.name: op for part in parts for op in part.ops}
    tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
    reduced = replace(
        trace,
        tensors=tuple(tensors.get(t.name, t) for t in trace.tensors),
        ops=tuple(ops.get(op.name, op) for op in trace.ops),
    )
    if found := problems(reduced):
        names = ", ".join(unit.name for unit in samples)
        raise RewriteError([f"{names} cannot run for a part of the batch: {sentence}" for sentence in found])
    return reduced


class _Part(Scaling):
    """A change of batch for ops of one unit: only tensors that nothing outside it reads get another size."""

    def __init__(self, inside: _Inside, unit: Unit, samples: int, ops: Iterable[Op]) -> None:
        trace = self.trace = inside.whole.trace
        self.old, self.new, self.axes = inside.whole.old, samples, inside.whole.axes
        self.problems = []
        self.unit = unit
        ops = tuple(ops)
        touched = dict.fromkeys(name for op in ops for name in (*op.reads, *op.writes))
        self.tensors = tuple(self.tensor(trace.tensor[name]) for name in touched if inside.tensors.get(name) is unit)
        self.elements = {name: inside.whole.elements[name] for name in touched}
        self.elements.update((tensor.name, tensor.elements) for tensor in self.tensors)
        self.ops = tuple(map(self.op, ops))

    @property
    def is_partial(self) -> bool:
        """Does the unit run for some samples of the step only, before the change?"""
        return bool(self.trace.writer[self.unit.output].write_elements)

    def op(self, op: Op) -> Op:
        scaled = super().op(op)
        written = [
            self.times(n, f"What op {op.name!r} computes of {name!r}") if self.grows(name) else n
            for name, n in zip(op.writes, self.trace.elements_written(op), strict=True)
        ]
        whole = written == [self.elements[name] for name in op.writes]
        return replace(scaled, write_elements=() if whole else tuple(written))
