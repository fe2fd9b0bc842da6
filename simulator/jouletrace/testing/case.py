"""One strategy on one step, and all that the laws ask about it, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np

from jouletrace.errors import RewriteError, TraceError
from jouletrace.strategies.base import Rewritten, Strategy, apply
from jouletrace.trace.model import Op, Tensor, Trace
from jouletrace.trace.run import DROPPED, Run
from jouletrace.trace.units import residual_units, without_units

__all__ = ["Case", "Stage", "broken", "difference"]

MAX_ROWS = 4  # distinct iterations of a run that are looked at


@dataclass(frozen=True)
class Stage:
    """What one strategy (of a combination) made of the step that it was given."""

    strategy: Strategy
    before: Trace
    rewritten: Rewritten[Trace]

    @property
    def after(self) -> Trace:
        return self.rewritten.value

    @property
    def gone(self) -> list[Op]:
        """Ops that did not survive, in their order."""
        return [op for op in self.before.ops if op.name not in self.after.op]

    @cached_property
    def skipped(self) -> tuple[str, ...]:
        """Residual units of which no forward op is left."""
        if not self.gone:
            return ()
        units = residual_units(self.before)
        return tuple(unit.name for unit in units if not self.after.op.keys() & set(unit.forward))

    @cached_property
    def baseline(self) -> Trace:
        """The step before, without the units that were skipped: what survivors have to be equal to."""
        return without_units(self.before, self.skipped) if self.skipped else self.before


@dataclass(frozen=True)
class Case:
    """A strategy, the step that it rewrites, the seed of its draws, and the iterations of the run that it rewrites.

    Laws take a case. It raises RewriteError where the strategy refuses the step.
    """

    strategy: Strategy
    trace: Trace
    seed: int = 0
    iterations: int = 24

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Each part of the strategy on what the one before it left."""
        stages: list[Stage] = []
        trace = self.trace
        for part in self.strategy.parts:
            try:
                stages.append(Stage(part, trace, apply(part, trace, seed=self.seed)))
            except TraceError as error:
                broken(str(error))
            trace = stages[-1].after
        return tuple(stages)

    @property
    def after(self) -> Trace:
        """The rewritten step."""
        return self.stages[-1].after if self.stages else self.trace

    @cached_property
    def run(self) -> Run:
        """A training of this one step."""
        return repeated(self.trace, self.iterations)

    @cached_property
    def run_stages(self) -> tuple[tuple[Strategy, Run, Run], ...]:
        """Each part of the strategy, the run that it was given, and what it made of it."""
        stages: list[tuple[Strategy, Run, Run]] = []
        run = self.run
        for part in self.strategy.parts:
            try:
                stages.append((part, run, apply(part, run, seed=self.seed).value))
            except TraceError as error:
                broken(str(error))
            run = stages[-1][-1]
        return tuple(stages)

    @property
    def rewritten_run(self) -> Run:
        return self.run_stages[-1][-1] if self.run_stages else self.run

    @property
    def changed(self) -> bool:
        """Did the strategy do anything at all?"""
        return self.after is not self.trace or self.rewritten_run is not self.run

    @cached_property
    def rows(self) -> tuple[tuple[Trace, dict[str, int], Trace], ...]:
        """Of iterations of the rewritten run that differ: the step with everything present, how many samples ran each
        unit where not all did, and the step as executed."""
        return tuple(self._rows())

    def _rows(self) -> Iterator[tuple[Trace, dict[str, int], Trace]]:
        run = self.rewritten_run
        distinct = {(int(run.step_of[i]), run.samples[i].tobytes()): i for i in reversed(range(run.iterations))}
        chosen = [i for (which, _), i in distinct.items() if which != DROPPED][-MAX_ROWS:]
        yield from self._executed(run, chosen)
        if run.units and chosen:  # and one in which only the first unit is skipped, whatever was drawn
            samples = np.full((1, len(run.units)), run.batch, dtype=np.int32)
            samples[0, 0] = 0
            yield from self._executed(replace(run, step_of=run.step_of[chosen[:1]], samples=samples), [0])

    def _executed(self, run: Run, iterations: list[int]) -> Iterator[tuple[Trace, dict[str, int], Trace]]:
        for i in iterations:
            samples: list[int] = run.samples[i].tolist()
            fewer = {unit: n for unit, n in zip(run.units, samples, strict=True) if n != run.batch}
            try:
                executed = run.step(i)
            except RewriteError as error:
                broken(f"{self.strategy.name} decides what cannot be executed, such as {fewer} samples: {error}")
            if executed is not None:
                yield run.steps[int(run.step_of[i])], fewer, executed


def repeated(trace: Trace, iterations: int) -> Run:
    """A training that executes the same step every time."""
    return Run(trace.header.name, (trace,), np.zeros(iterations, dtype=np.int32))


def broken(sentence: str) -> NoReturn:
    """A law does not hold."""
    raise AssertionError(sentence)


def difference(before: Trace, after: Trace) -> str:
    """The first difference of two bodies, as half a sentence; empty if there is none."""
    kinds: tuple[tuple[str, tuple[Op | Tensor, ...], tuple[Op | Tensor, ...]], ...] = (
        ("op", before.ops, after.ops), ("tensor", before.tensors, after.tensors),
    )  # fmt: skip
    for what, ours, theirs in kinds:
        for one, other in zip(ours, theirs, strict=False):
            if one.name != other.name:
                return f"{what} {one.name!r} stands where {other.name!r} does in the other"
            if one != other:
                fields = [f for f in type(one).__slots__ if getattr(one, f) != getattr(other, f)]
                return f"{what} {one.name!r} differs in {', '.join(fields)}"
        if len(ours) != len(theirs):
            longer = max(ours, theirs, key=len)
            return f"{what} {longer[min(len(ours), len(theirs))].name!r} stands in one only"
    return ""
