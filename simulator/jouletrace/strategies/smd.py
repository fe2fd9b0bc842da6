"""Stochastic mini-batch dropping: most of a training's iterations are enough, chosen at random."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from jouletrace.strategies.base import Notes, Published, Strategy
from jouletrace.trace.activities import AUGMENTATION, LOADING, zero_gradient_update
from jouletrace.trace.decisions import read_decisions
from jouletrace.trace.model import Trace
from jouletrace.trace.run import DROPPED, Run

__all__ = ["StochasticMiniBatchDropping"]


@dataclass(frozen=True)
class StochasticMiniBatchDropping(Strategy):
    """Every mini-batch is dropped with probability ``p``; a kept iteration is the unmodified step.

    E2-Train, NeurIPS 2019, section 3.1. A training of N iterations becomes one of ``ratio``·N/(1 - p) nominal
    iterations, rounded to the nearest integer, of which ``ratio``·N are executed on average; the steps of a training
    that has several are stretched over them in order.

    * ``mode=sampled`` draws every iteration, ``expected`` keeps exactly ``ratio``·N (rounded), evenly spread.
    * ``drop=full`` (the paper): a dropped iteration does nothing, and its batch is not loaded. ``as_coded`` (the
      authors' code): its batch is loaded and augmented, and the optimizer runs with a gradient of zero, so that
      momentum and weight decay act on.
    * ``log``: dropped and executed iterations as a real training recorded them, instead of draws.

    The paper trains for 2/3 of 64,000 iterations, which are 85,333 nominal ones; the code counts 64,000 nominal
    ones, hence ``ratio=1/2``.
    """

    name: ClassVar[str] = "smd"
    source: ClassVar[str] = "Y. Wang et al., E2-Train, NeurIPS 2019 (arXiv 1910.13349), section 3.1"
    stage: ClassVar[str] = "data"
    claims: ClassVar[frozenset[str]] = frozenset({"iterations"})
    commutes_with: ClassVar[frozenset[str]] = frozenset({"int8", "psg", "signsgd"})
    random: ClassVar[bool] = True
    published: ClassVar[tuple[Published, ...]] = (
        Published("top1_accuracy_gain", "0.2", "%", "executed 2/3 of the iterations, against all of them", "recalled",
                  "E2-Train, section 4.2"),
        Published("top1_accuracy_gain", "0.39 to 0.86", "%", "against standard training of equal energy", "recalled",
                  "E2-Train, section 4.2"),
    )  # fmt: skip

    p: Fraction = Fraction(1, 2)
    ratio: Fraction = Fraction(2, 3)
    drop: Literal["full", "as_coded"] = "full"
    mode: Literal["sampled", "expected"] = "sampled"
    log: str | None = None

    def __post_init__(self) -> None:
        self.refuse(
            (not 0 <= self.p < 1, f"p has to lie in [0, 1), because some iterations have to run (got {self.p})"),
            (not 0 < self.ratio <= 1, f"ratio has to lie in (0, 1]; it is the executed share (got {self.ratio})"),
        )

    def neutral(self) -> Strategy:
        return replace(self, p=Fraction(0), ratio=Fraction(1), log=None)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        notes.leave(trace.header.name, "smd drops whole iterations; it acts on runs, not on a single step")
        return trace

    def run(self, run: Run, notes: Notes) -> Run:
        kept = self._kept(run.iterations, notes)
        if kept.all() and len(kept) == run.iterations:
            return run
        nominal = len(kept)
        base = np.arange(nominal, dtype=np.int64) * run.iterations // nominal
        step_of = run.step_of[base]
        kept &= step_of != DROPPED
        executed = int(np.count_nonzero(kept))
        steps = run.steps
        if self.drop == "full":
            step_of = np.where(kept, step_of, DROPPED)
        else:
            step_of = np.where(kept, step_of, len(steps))
            steps += (zero_gradient_update(steps[-1]),)
        loads = executed if self.drop == "full" else nominal
        activities = tuple(replace(a, times=loads) if a.name in (LOADING, AUGMENTATION) else a for a in run.activities)
        notes.match(run.name, f"{executed} of {nominal} nominal iterations executed, {run.iterations} before")
        return replace(run, steps=steps, step_of=step_of.astype(np.int32), samples=run.samples[base],
                       activities=activities)  # fmt: skip

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        if self.mode == "sampled" and self.log is None:
            yield "executed", self._nominal(run.iterations), 1 - self.p

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        if self.mode == "sampled" and self.log is None:
            zero = -1 if self.drop == "full" else len(before.steps)
            yield "executed", int(np.count_nonzero(after.step_of != zero))

    def _nominal(self, iterations: int) -> int:
        return max(1, round(self.ratio * iterations / (1 - self.p)))

    def _kept(self, iterations: int, notes: Notes) -> NDArray[np.bool_]:
        """bool[nominal iterations]: which of them are executed."""
        if self.log is not None:
            return np.array(read_decisions(self.log).executed)
        nominal = self._nominal(iterations)
        if self.mode == "sampled":
            # A draw below p drops; an exact comparison of doubles with a share is one with its nearest double.
            return notes.random().random(nominal) >= float(self.p)
        share = np.arange(nominal + 1, dtype=np.int64) * max(1, round(self.ratio * iterations)) // nominal
        return np.diff(share) > 0
