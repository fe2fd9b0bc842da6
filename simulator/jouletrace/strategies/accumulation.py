"""Gradient accumulation: one update from several micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jouletrace.errors import JouletraceError, RewriteError
from jouletrace.strategies.base import Notes, Strategy
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run

__all__ = ["GradientAccumulation"]


@dataclass(frozen=True)
class GradientAccumulation(Strategy):
    """Forward and backward run on ``micro_batch`` samples at a time; their weight gradients are added up.

    The update is that of the whole batch, MACs are the same, and memory for activations falls by the number of
    micro-batches. Weights are read anew for each of them. Batch norm takes its statistics over a micro-batch.
    """

    name: ClassVar[str] = "accumulation"
    source: ClassVar[str] = "P. Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv 1706.02677), section 3"
    stage: ClassVar[str] = "layout"
    claims: ClassVar[frozenset[str]] = frozenset({"micro-batches"})
    changes: ClassVar[frozenset[str]] = frozenset({"op.after", "tensor.saved", "tensor.shape"})

    micro_batch: int | None = 32

    def __post_init__(self) -> None:
        wrong = self.micro_batch is not None and self.micro_batch < 1
        self.refuse((wrong, f"micro_batch has to be at least 1, or none (got {self.micro_batch})"))

    def neutral(self) -> Strategy:
        return replace(self, micro_batch=None)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if self.micro_batch is None or self.micro_batch >= trace.header.batch:
            notes.leave(trace.header.name, f"its batch of {trace.header.batch} fits one micro-batch")
            return trace
        try:
            after = micro_batched(trace, self.micro_batch)
        except JouletraceError as error:
            raise RewriteError([f"{self.name}: {sentence}" for sentence in error.problems]) from None
        notes.match(trace.header.name, f"{trace.header.batch // self.micro_batch} micro-batches of {self.micro_batch}")
        notes.skipped_macs += sum(op.macs for op in trace.ops if op.name not in after.op)
        notes.added_macs += sum(op.macs for op in after.ops if op.name not in trace.op)
        return after

    def run(self, run: Run, notes: Notes) -> Run:
        samples = run.samples[run.step_of >= 0]
        if ((samples > 0) & (samples < run.batch)).any():
            raise RewriteError(f"{self.name}: some samples of a batch skip a unit in {run.name}, and which micro-batch "
                               "they are in is not known; let whole batches skip (granularity=per_batch)")  # fmt: skip
        return super().run(run, notes)
