"""What strategies that skip residual units share: finding the units, drawing who runs them, and counting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Notes, Strategy
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run, unit_names
from jouletrace.trace.units import Unit, residuals, with_samples

__all__ = ["BlockSkipping"]


@dataclass(frozen=True)
class BlockSkipping(Strategy, ABC):
    """Base class: each unit runs for some samples of a batch, or for the batch, with a probability of its own.

    A subclass says which units may be skipped (:meth:`chosen`), with which probability they run (:meth:`shares`),
    whether a batch decides as one, and what is added to the step (:meth:`equipped`).
    """

    stage: ClassVar[str] = "graph"
    claims: ClassVar[frozenset[str]] = frozenset({"blocks"})
    changes: ClassVar[frozenset[str]] = frozenset({
        "op.gate", "op.nest", "op.reads", "op.writes", "op.after", "op.read_elements", "op.write_elements",
        "tensor.shape", "tensor.saved",
    })  # fmt: skip
    random: ClassVar[bool] = True

    @property
    def whole_batches(self) -> bool:
        """Does one decision hold for all samples of a batch?"""
        return True

    def chosen(self, units: Sequence[Unit], notes: Notes) -> Sequence[Unit]:
        """The units that may be skipped, of all units of a step."""
        return units

    @abstractmethod
    def shares(self, units: Sequence[str]) -> tuple[Fraction, ...]:
        """With which probability each of these units runs."""

    @abstractmethod
    def equipped(self, trace: Trace, units: Sequence[Unit]) -> Trace:
        """The step with gates on the ops of these units, and what decides them."""

    def draw(self, run_batch: int, iterations: int, units: Sequence[str], notes: Notes) -> NDArray[np.int32]:
        """int32[iterations, units]: samples that run each unit; every unit has a stream of its own."""
        drawn = np.zeros((iterations, len(units)), dtype=np.int32)
        for i, (unit, share) in enumerate(zip(units, self.shares(units), strict=True)):
            n = 1 if self.whole_batches else run_batch
            drawn[:, i] = notes.random(unit).binomial(n, float(share), iterations) * (run_batch // n)
        return drawn

    def step(self, trace: Trace, notes: Notes) -> Trace:
        units = self._units(trace, notes)
        if not units:
            return trace
        names = [unit.name for unit in units]
        ready = self._ready(trace, units, notes)
        row: list[int] = self.draw(trace.header.batch, 1, names, notes)[0].tolist()
        fewer = {name: n for name, n in zip(names, row, strict=True) if n < trace.header.batch}
        for name, n in zip(names, row, strict=True):
            notes.match(name, f"run by {n} of {trace.header.batch} samples")
        after = with_samples(ready, fewer) if fewer else ready
        notes.skipped_macs += sum(op.macs - (after.op[op.name].macs if op.name in after.op else 0) for op in trace.ops)
        return after

    def run(self, run: Run, notes: Notes) -> Run:
        if run.units:
            raise RewriteError(f"{self.name}: units of {run.name} may be skipped already; apply one of the two")
        equipped = self.rewritten(run, notes, self._ready_for_any)
        units = tuple(dict.fromkeys(u for trace in equipped.steps for u in self._in_order(trace)))
        if not units:
            return run
        samples = self.draw(run.batch, run.iterations, units, notes)
        return replace(equipped, units=units, samples=samples)

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        units = self._names(run)
        draws = run.iterations * (1 if self.whole_batches else run.batch)
        yield from ((unit, draws, share) for unit, share in zip(units, self.shares(units), strict=True))

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        each = after.batch if self.whole_batches else 1
        for unit in self._names(before):
            yield unit, int(after.samples[:, after.unit_index[unit]].sum()) // each

    def _names(self, run: Run) -> list[str]:
        """The units that may be skipped in the steps of a run that this strategy has not rewritten yet."""
        quiet = Notes(self.name, 0)
        return list(dict.fromkeys(unit.name for trace in run.steps for unit in self._units(trace, quiet)))

    def _units(self, trace: Trace, notes: Notes) -> Sequence[Unit]:
        if unit_names(trace):
            raise RewriteError(f"{self.name}: units of {trace.header.name} may be skipped already; apply one of them")
        found = residuals(trace)
        for place, reason in found.left.items():
            notes.leave(place, reason)
        if not found.units:
            notes.leave(trace.header.name, "it has no residual unit, so that nothing can be skipped")
            return ()
        return self.chosen(found.units, notes)

    def _ready(self, trace: Trace, units: Sequence[Unit], notes: Notes) -> Trace:
        ready = self.equipped(trace, units)
        notes.added_macs += sum(op.macs for op in ready.ops if op.name not in trace.op)
        return ready

    def _ready_for_any(self, trace: Trace, notes: Notes) -> Trace:
        units = self._units(trace, notes)
        for unit in units:
            notes.match(unit.name, "may be skipped")
        return self._ready(trace, units, notes) if units else trace

    def _in_order(self, trace: Trace) -> list[str]:
        gates = (op.gate for op in trace.ops if op.gate is not None and op.gate.unit == "block")
        return list(dict.fromkeys(gate.name for gate in gates))
