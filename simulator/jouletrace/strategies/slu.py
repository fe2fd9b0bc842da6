"""Selective layer update: a gate decides for every residual unit which samples run it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import RewriteError, did_you_mean
from jouletrace.strategies.base import Notes, Published, Strategy
from jouletrace.strategies.gate import with_gates
from jouletrace.strategies.skipping import BlockSkipping
from jouletrace.trace.decisions import read_decisions
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run
from jouletrace.trace.units import Unit, gated

__all__ = ["SelectiveLayerUpdate"]

_SETTING = "ResNet-74, CIFAR-10, SMD and SLU and PSG, skip={}"
_SECTION = "E2-Train, section 4.5"


@dataclass(frozen=True)
class SelectiveLayerUpdate(BlockSkipping):
    """A residual unit is skipped by the share ``skip`` of samples, as a small recurrent gate decides.

    E2-Train, NeurIPS 2019, section 3.2. Of a skipped unit nothing is computed, forward or backward; its output is its
    shortcut. The stem, projections on shortcuts, the classifier, and the first unit (unless ``first``) always run.

    * ``skip``: one share for all gated units, or one for each in forward order. The authors steer it by a set-point:
      ``minimum`` = 80, 60 and 40 percent in their code are 1/5, 2/5 and 3/5 here.
    * ``granularity=per_sample`` (the authors' code): every sample decides; a unit runs for the samples that chose it,
      and weights are read and updated unless all skip. ``per_batch`` (the wording of the paper): all samples decide as
      one, and the weights rest too.
    * ``gate``: whether the gates are part of the step, with backward and update
      (:mod:`jouletrace.strategies.gate`). They decide before the unit begins. The gradient of a decision passes
      straight through the draw; the sum over the map that it starts from, and what a gate would give back to the map,
      are not counted. The code evaluates one gate more, behind the last unit, which decides nothing.
    * ``log``: how many samples ran each unit as a real training recorded it, instead of draws; for runs.

    Draws are independent of the data and of each other; what a real gate learns is in a log.
    """

    name: ClassVar[str] = "slu"
    source: ClassVar[str] = "Y. Wang et al., E2-Train, NeurIPS 2019 (arXiv 1910.13349), section 3.2"
    published: ClassVar[tuple[Published, ...]] = (
        Published("energy_saving", "84.64", "%", _SETTING.format("1/5"), "recalled", _SECTION),
        Published("energy_saving", "88.72", "%", _SETTING.format("2/5"), "recalled", _SECTION),
        Published("energy_saving", "92.81", "%", _SETTING.format("3/5"), "recalled", _SECTION),
        Published("top1_accuracy", "92.12", "%", _SETTING.format("1/5"), "recalled", _SECTION),
        Published("top1_accuracy", "91.84", "%", _SETTING.format("2/5"), "recalled", _SECTION),
        Published("top1_accuracy", "91.36", "%", _SETTING.format("3/5"), "recalled", _SECTION),
    )

    skip: tuple[Fraction, ...] = (Fraction(2, 5),)
    granularity: Literal["per_sample", "per_batch"] = "per_sample"
    gate: bool = True
    first: bool = False
    log: str | None = None

    def __post_init__(self) -> None:
        wrong = [str(share) for share in self.skip if not 0 <= share < 1]
        self.refuse(
            (not self.skip, "skip has to hold one share, or one for each gated unit"),
            (bool(wrong), f"skip has to lie in [0, 1), because a unit that never runs is no part of the network "
             f"(got {', '.join(wrong)})"),
        )  # fmt: skip

    def neutral(self) -> Strategy:
        return replace(self, skip=(Fraction(0),), gate=False, log=None)

    @property
    def whole_batches(self) -> bool:
        return self.granularity == "per_batch"

    @property
    def _idle(self) -> bool:
        return not self.gate and self.log is None and not any(self.skip)

    def chosen(self, units: Sequence[Unit], notes: Notes) -> Sequence[Unit]:
        if self._idle:
            notes.leave(units[0].name, "skip is 0 and there is no gate")
            return ()
        if not self.first:
            notes.leave(units[0].name, "the first unit always runs")
            units = units[1:]
        if len(self.skip) not in (1, len(units)):
            raise RewriteError(f"{self.name}: skip holds {len(self.skip)} shares for {len(units)} gated units; give "
                               "one share, or one for each")  # fmt: skip
        return units

    def shares(self, units: Sequence[str]) -> tuple[Fraction, ...]:
        skip = self.skip * len(units) if len(self.skip) == 1 else self.skip
        return tuple(1 - share for share in skip)

    def equipped(self, trace: Trace, units: Sequence[Unit]) -> Trace:
        if not self.gate:
            return gated(trace, units)
        ready, decisions = with_gates(trace, units, per_batch=self.whole_batches)
        return gated(ready, units, decisions)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if self.log is not None:
            raise RewriteError(f"{self.name}: a log tells of a whole training; apply it to a run, not to a single step")
        return super().step(trace, notes)

    def draw(self, run_batch: int, iterations: int, units: Sequence[str], notes: Notes) -> NDArray[np.int32]:
        if self.log is None:
            return super().draw(run_batch, iterations, units, notes)
        log = read_decisions(self.log)
        problems = [f"{self.name}: {self.log} has no unit {name!r}{did_you_mean(name, log.units)}"
                    for name in units if name not in log.units]  # fmt: skip
        if len(log.executed) != iterations:
            problems.append(f"{self.name}: {self.log} has {len(log.executed)} iterations; the run has {iterations}")
        if log.batch != run_batch:
            problems.append(f"{self.name}: {self.log} has batches of {log.batch}; the run has {run_batch}")
        if problems:
            raise RewriteError(problems)
        return log.samples[:, [log.units.index(name) for name in units]].astype(np.int32)

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        return super().expected(run) if self.log is None else ()

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        return super().outcomes(before, after) if self.log is None else ()
