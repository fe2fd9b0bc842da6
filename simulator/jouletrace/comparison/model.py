"""What a comparison holds: a column per strategy, each a step and a run on its hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from statistics import fmean, stdev

from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from jouletrace.ledger.breakdown import Scope
from jouletrace.result.run import RunResult
from jouletrace.strategies.base import Left, Published

__all__ = ["Column", "Comparison", "Spread", "saving"]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of a figure over seeds, and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    half_width: float
    seeds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """
        >>> Spread.of([3.0]), round(Spread.of([1.0, 2.0, 3.0]).half_width, 3)
        (Spread(mean=3.0, half_width=0.0, seeds=1), 2.484)
        """
        n = len(values)
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / sqrt(n) if n > 1 else 0.0
        return Spread(fmean(values), half, n)


@dataclass(frozen=True, eq=False)
class Column:
    """One strategy (or the baseline) on one hardware.

    ``step`` is one iteration as the strategy leaves it; ``runs`` are whole trainings, one per seed (one where nothing
    is drawn, none where only the step was asked for). ``base_ops`` are the names of the ops before the rewrite.
    """

    label: str
    strategy: str
    hardware: str
    step: RunResult
    runs: tuple[RunResult, ...]
    base_ops: frozenset[str]
    matches: int = 0
    left: tuple[Left, ...] = ()
    published: tuple[tuple[str, Published], ...] = ()

    def figure(self, *, run: bool) -> RunResult:
        """The step, or the run of the first seed."""
        return self.runs[0] if run else self.step

    def over_seeds(self, figure: Callable[[RunResult], float]) -> Spread:
        """A figure of the run, over its seeds."""
        return Spread.of([figure(run) for run in self.runs])


@dataclass(frozen=True, eq=False)
class Comparison:
    """A baseline, strategies beside it, and prefixes of a combination (``waterfall``, the baseline not included)."""

    trace: str
    trace_digest: str
    batch: int
    iterations: int
    baseline: Column
    columns: tuple[Column, ...]
    waterfall: tuple[Column, ...]

    @property
    def all(self) -> tuple[Column, ...]:
        return (self.baseline, *self.columns)

    @property
    def has_runs(self) -> bool:
        return bool(self.baseline.runs)

    def saving(self, column: Column, scope: Scope = "board", idle: Fraction = Fraction(1), *, run: bool) -> float:
        """Share of the baseline's energy that a column does not use; negative where it uses more.

        ``idle`` scales the power of the idle board, in both.
        """
        before, after = (c.figure(run=run).energy_at(scope, idle) for c in (self.baseline, column))
        return saving(before, after)

    def work(self, column: Column, *, run: bool) -> tuple[int, int, int]:
        """MACs executed, skipped and added: executed = the baseline's - skipped + added, exactly.

        Added are those of ops that the baseline does not have.
        """
        before, after = (c.figure(run=run) for c in (self.baseline, column))
        added = after.macs_of(self.baseline.base_ops, inside=False)
        return after.macs, before.macs - after.macs + added, added


def saving(before: int, after: int) -> float:
    """
    >>> saving(200, 50)
    0.75
    """
    return float(1 - Fraction(after, before)) if before else 0.0
