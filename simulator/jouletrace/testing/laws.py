"""Laws that every rewrite of a step keeps. Each takes a :class:`~jouletrace.testing.case.Case`.

A law returns if it holds, else it raises AssertionError with a sentence that names the op, tensor or knob.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from jouletrace.engine.events import simulate
from jouletrace.errors import EnergyError, MappingError, TraceError
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.price import PER_CYCLE, price
from jouletrace.mapping.step import map_step
from jouletrace.strategies.base import apply
from jouletrace.strategies.knobs import from_texts, parameters
from jouletrace.testing.case import Case, Stage, broken, difference
from jouletrace.trace.adjoint import adjoint
from jouletrace.trace.io import digest, dump, parse_trace
from jouletrace.trace.model import Op, Rewrite, Tensor, Trace
from jouletrace.trace.prune import prune

__all__ = [
    "law_energy", "law_header", "law_macs", "law_neutral", "law_nothing_left_behind", "law_parameters",
    "law_survivors", "law_valid",
]  # fmt: skip


def law_valid(case: Case) -> None:
    """What comes out is valid, holds no dead op, and is the same after writing and reading it."""
    for name, trace in _results(case):
        data = dump(trace)
        try:
            again = parse_trace(data, name)
        except TraceError as error:
            broken(f"{name} leaves a step that is not valid: {error.problems[0]}")
        if again != trace or dump(again) != data:
            broken(f"{name} leaves a step that is another one after writing and reading it: "
                   f"{difference(trace, again) or 'its header differs'}.")  # fmt: skip
        if (pruned := prune(trace)) is not trace:
            dead = [op.name for op in trace.ops if op.name not in pruned.op] or ["a result that nothing reads"]
            broken(f"{name} leaves dead work behind: {_some(dead)}.")


def _results(case: Case) -> Iterator[tuple[str, Trace]]:
    """Every step that the strategy makes, and by which part of it."""
    yield from ((stage.strategy.name, stage.after) for stage in case.stages)
    yield from ((case.strategy.name, executed) for _, _, executed in case.rows
                if (executed.tensors, executed.ops) != (case.after.tensors, case.after.ops))  # fmt: skip


def law_neutral(case: Case) -> None:
    """The neutral setting returns the very step and the very run that it was given: no change, no header entry."""
    for part in case.strategy.parts:
        neutral = part.neutral()
        if neutral is None:
            continue
        trace = apply(neutral, case.trace, seed=case.seed).value
        if trace != case.trace:
            what = difference(case.trace, trace) or "its header has an entry"
            broken(f"{neutral} is said to be neutral, yet it changes a step: {what}.")
        if apply(neutral, case.run, seed=case.seed).value is not case.run:
            broken(f"{neutral} is said to be neutral, yet it changes a run.")


def law_survivors(case: Case) -> None:
    """An op or a tensor that survives is equal to what it was, but for the fields that the strategy declares.

    Where residual units were skipped, survivors are those of :func:`~jouletrace.trace.units.without_units`: who read
    the output of a unit reads its shortcut. In an iteration of a run, ops of a unit that ran for some samples differ
    in their sizes.
    """
    for stage in case.stages:
        _unchanged(stage)
    for whole, fewer, executed in case.rows:
        if not fewer and executed is not whole and (what := difference(whole, executed)):
            broken(f"{case.strategy.name}: an iteration that skips nothing is not the whole step: {what}.")


def _unchanged(stage: Stage) -> None:
    kinds: tuple[tuple[str, tuple[Op | Tensor, ...]], ...] = (("op", stage.after.ops), ("tensor", stage.after.tensors))
    for kind, survivors in kinds:
        known: dict[str, Op | Tensor] = {x.name: x for x in (*stage.before.ops, *stage.before.tensors)}
        known |= {x.name: x for x in (*stage.baseline.ops, *stage.baseline.tensors)}
        for now in survivors:
            was = known.get(now.name)
            if was is None or type(was) is not type(now):
                continue
            changed = [f.name for f in fields(now) if getattr(was, f.name) != getattr(now, f.name)]
            undeclared = [f for f in changed if f"{kind}.{f}" not in stage.strategy.changes]
            if undeclared:
                field = undeclared[0]
                broken(f"{stage.strategy.name} changes {field} of {kind} {now.name!r} from {getattr(was, field)!r} to "
                       f"{getattr(now, field)!r}, and does not declare {kind}.{field} in its 'changes'.")  # fmt: skip


def law_nothing_left_behind(case: Case) -> None:
    """Where a forward op is gone, so is all that differentiates it; of a unit that no sample ran, nothing is left."""
    for stage in case.stages:
        if stage.gone:
            _no_orphans(stage.strategy.name, stage.before, stage.after)
    for whole, fewer, executed in case.rows:
        skipped = {unit for unit, samples in fewer.items() if samples == 0}
        for op in executed.ops:
            if op.gate is not None and op.gate.unit == "block" and op.gate.name in skipped:
                broken(f"{case.strategy.name}: op {op.name!r} of unit {op.gate.name!r} survives in an iteration in "
                       "which no sample runs the unit.")  # fmt: skip
        if skipped:
            _no_orphans(case.strategy.name, whole, executed)


def _no_orphans(name: str, before: Trace, after: Trace) -> None:
    """No backward op without its forward op, and none that differentiates another one than it did."""
    then, now = adjoint(before), adjoint(after)
    for op in after.ops:
        forward = then.differentiates.get(op.name)
        if forward is None:
            continue
        if forward not in after.op:
            broken(f"{name}: op {op.name!r} survives, and op {forward!r}, which it differentiates, is gone.")
        if now.differentiates.get(op.name, forward) != forward or op.name in now.unpaired.keys() - then.unpaired.keys():
            found = now.unpaired.get(op.name) or f"Now it differentiates {now.differentiates[op.name]!r}."
            broken(f"{name}: op {op.name!r} differentiated {forward!r}, and reads what makes no sense there. {found}")


def law_macs(case: Case) -> None:
    """MACs executed = MACs before − skipped + added, where the strategy's own counts agree with those of the ops."""
    for stage in case.stages:
        before, after = stage.before, stage.after
        off = {o.name: o.macs - (after.op[o.name].macs if o.name in after.op else 0) for o in before.ops}
        on = {o.name: o.macs - (before.op[o.name].macs if o.name in before.op else 0) for o in after.ops}
        for what, differences, reported in (
            ("took off", off, stage.rewritten.skipped_macs),
            ("added", on, stage.rewritten.added_macs),
        ):
            counted = {name: n for name, n in differences.items() if n > 0}
            if sum(counted.values()) != reported:
                ops = f" in {_some(list(counted))}" if counted else ""
                broken(f"{stage.strategy.name} reports {reported} MACs that it {what}, and the ops tell of "
                       f"{sum(counted.values())}{ops}.")  # fmt: skip
    for whole, fewer, executed in case.rows:
        for op in executed.ops:
            unit = op.gate.name if op.gate is not None and op.gate.unit == "block" else ""
            samples, batch = fewer.get(unit, whole.header.batch), whole.header.batch
            if op.name in whole.op and op.macs * batch != whole.op[op.name].macs * samples:
                broken(f"{case.strategy.name}: op {op.name!r} has {op.macs} MACs where {samples} of {batch} samples "
                       f"run it; for all of them it has {whole.op[op.name].macs}.")  # fmt: skip


def law_parameters(case: Case) -> None:
    """Every parameter has one final version: updated, or passed through where nothing reads it any more."""
    for stage in case.stages:
        _one_version(stage.strategy.name, stage.before, stage.after)
    for whole, fewer, executed in case.rows:
        if fewer:
            _one_version(case.strategy.name, whole, executed)


def _one_version(name: str, before: Trace, after: Trace) -> None:
    given = [t.name for t in before.tensors if t.role == "param" and t.name not in before.writer]
    for parameter in given:
        if parameter not in after.tensor:
            broken(f"{name} loses the parameter {parameter!r}; without an update it passes through the step.")
        updates = [op for op in after.readers.get(parameter, ()) if op.kind == "update"]
        if len(updates) > 1:
            broken(f"{name} updates {parameter!r} {len(updates)} times: {_some([op.name for op in updates])}.")
        used = [op for op in after.readers.get(parameter, ()) if op.phase == "forward"]
        was_used = any(op.phase == "forward" for op in before.readers.get(parameter, ()))
        if updates and was_used and not used:
            broken(f"{name}: op {updates[0].name!r} updates {parameter!r}, which no forward op reads any more.")


def law_header(case: Case) -> None:
    """The header names each strategy that changed the step, its knobs, its seed and what it was given, and from those
    the same step can be made again."""
    for stage in case.stages:
        strategy, before, after = stage.strategy, stage.before, stage.after
        if after is before:
            continue
        entry = Rewrite(strategy.name, parameters(strategy), case.seed if strategy.random else None, digest(before))
        if after.header.rewrites != (*before.header.rewrites, entry):
            broken(f"{strategy.name} should have left {entry} as the last entry of the header, and there are "
                   f"{after.header.rewrites[len(before.header.rewrites):]}.")  # fmt: skip
        texts = {knob: str(value) for knob, value in entry.parameters}
        again = from_texts(type(strategy), texts)
        if again != strategy:
            broken(f"{strategy.name} does not come back from the knobs in the header: {again!r} is not {strategy!r}.")
        if what := difference(after, apply(again, before, seed=case.seed).value):
            broken(f"{strategy.name}, made again from the header's knobs and seed, gives another step: {what}.")


def law_energy(case: Case, hardware: Hardware) -> None:
    """With tiles planned on the step before, no op that survives costs more dynamic energy than it did.

    What is added, and what reads, computes or multiplies more than before, is the strategy's stated overhead. The
    vector unit fuses nothing here, so that every op pays for itself. Steps that the hardware cannot execute tell
    nothing.
    """
    alone = hardware.model_copy(update={"vector": hardware.vector.model_copy(update={"fuses": ()})})
    if case.after is case.trace:
        return
    try:
        was = _dynamic_aj(case.trace, case.trace, alone)
        now = _dynamic_aj(case.after, case.trace, alone)
    except (MappingError, EnergyError):
        return
    for name, energy_aj in now.items():
        if energy_aj > was.get(name, energy_aj) and not _grew(case, name):
            broken(f"{case.strategy.name}: op {name!r} costs {energy_aj} aJ on {hardware.name}, and cost {was[name]} "
                   "aJ before, though it reads, computes and multiplies no more.")  # fmt: skip


def _dynamic_aj(trace: Trace, base: Trace, hardware: Hardware) -> dict[str, int]:
    """Energy of each op without what flows in every cycle."""
    total = dict.fromkeys((op.name for op in trace.ops), 0)
    static = {(component, action) for component, action, _ in PER_CYCLE}
    for row in price(simulate(map_step(trace, hardware, base=base)), hardware).rows:
        if (row.component, row.action) not in static:
            total[row.op] += row.energy.energy_aj
    return total


def _grew(case: Case, name: str) -> bool:
    return any(b > a for a, b in zip(_work(case.trace, name), _work(case.after, name), strict=False))


def _work(trace: Trace, name: str) -> list[int]:
    """MACs, operands, bits stored, bits fetched of an op."""
    op = trace.op[name]
    fetched = sum(n * b for n, b in zip(trace.elements_read(op), trace.bits_read(op), strict=True))
    stored = sum(n * trace.tensor[t].bits for n, t in zip(trace.elements_written(op), op.writes, strict=True))
    return [op.macs, len(op.reads), len(op.writes), fetched, stored, *trace.bits_read(op)]


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
