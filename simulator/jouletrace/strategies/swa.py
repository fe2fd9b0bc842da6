"""Stochastic weight averaging: a running mean of the weights beside the training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jouletrace.strategies.base import Notes, Strategy
from jouletrace.trace.check import check
from jouletrace.trace.model import Elementwise, Norm, Op, Tensor, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.run import Activity, Run

__all__ = ["AVERAGING", "StochasticWeightAveraging", "averaging", "statistics_pass"]

AVERAGING = "averaging"


@dataclass(frozen=True)
class StochasticWeightAveraging(Strategy):
    """Every ``period`` nominal iterations the weights go into a running mean: ``a ← (n·a + w) / (n + 1)``.

    Izmailov et al., UAI 2018. At the end of the training ``statistics_batches`` batches go forward once, which gives
    the averaged network its batch-norm statistics: 391 batches of 128 are the training images of CIFAR. Both are
    activities of the run, under the phase "averaging"; the steps stay as they are. The default period is that of
    FracTrain's code, three epochs.
    """

    name: ClassVar[str] = "swa"
    source: ClassVar[str] = "P. Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018 (arXiv 1803.05407)"
    stage: ClassVar[str] = "update"
    claims: ClassVar[frozenset[str]] = frozenset({"averages"})

    period: int | None = 1170
    statistics_batches: int = 391

    def __post_init__(self) -> None:
        wrong = self.period is not None and self.period < 1
        self.refuse(
            (wrong, f"period has to be at least 1 iteration, or none (got {self.period})"),
            (self.statistics_batches < 0, f"statistics_batches cannot be negative (got {self.statistics_batches})"),
        )

    def neutral(self) -> Strategy:
        return replace(self, period=None)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        notes.leave(trace.header.name, "swa averages between steps; it acts on runs, not on a single step")
        return trace

    def run(self, run: Run, notes: Notes) -> Run:
        times = 0 if self.period is None else run.iterations // self.period
        if not times:
            notes.leave(run.name, f"its {run.iterations} iterations are less than one period")
            return run
        step = run.steps[0]
        activities = [Activity(AVERAGING, averaging(step), times)]
        norms = statistics_pass(step)
        if norms.ops and self.statistics_batches:
            activities.append(Activity(AVERAGING, norms, self.statistics_batches))
        notes.match(run.name, f"weights averaged {times} times")
        return replace(run, activities=(*run.activities, *activities))


def averaging(trace: Trace) -> Trace:
    """One entry into the running mean of every trained parameter: two reads and one write of its size."""
    tensors: list[Tensor] = []
    ops: list[Op] = []
    for weight in (trace.tensor[op.reads[0]] for op in trace.ops if op.kind == "update"):
        mean = replace(weight, name=f"{weight.name}.average", role="buffer", saved=False)
        new = replace(mean, name=f"{weight.name}.average:update")
        nest = Elementwise("lerp", weight.elements)
        tensors += (replace(weight, saved=False), mean, new)
        ops.append(Op(f"{weight.name}.average:update", "update", "", nest, (mean.name, weight.name), (new.name,)))
    header = replace(trace.header, name=f"{trace.header.name}-{AVERAGING}", loss="", optimizer="")
    step = Trace(header, tuple(tensors), tuple(ops))
    check(step)
    return step


def statistics_pass(trace: Trace) -> Trace:
    """The forward pass up to the last batch norm, which renews the running statistics; no ops if there are none."""
    ops = tuple(op for op in trace.ops if op.phase == "forward" and op.kind != "loss")
    ops = tuple(_without_saving(trace, op) for op in ops)
    written = {name for op in ops for name in op.writes}
    tensors = (t for t in trace.tensors if t.name in written or t.name not in trace.writer)
    header = replace(trace.header, name=f"{trace.header.name}-statistics", loss="", optimizer="")
    return prune(Trace(header, tuple(replace(t, saved=False) for t in tensors), ops, trace.extensions))


def _without_saving(trace: Trace, op: Op) -> Op:
    """Norms that have no running statistics write their result alone."""
    running = any(trace.tensor[name].role == "buffer" for name in op.reads)
    return replace(op, writes=op.writes[:1]) if isinstance(op.nest, Norm) and not running else op
