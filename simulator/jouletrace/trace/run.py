"""What a training is: distinct steps, and for every iteration which of them ran and for how many samples.

A run of 64,000 iterations is not 64,000 graphs. It is a few distinct steps with everything present, an index per
iteration, and one small integer per iteration and unit: how many of the batch's samples ran the unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import RewriteError
from jouletrace.trace.model import Rewrite, Trace
from jouletrace.trace.units import with_samples

__all__ = ["DROPPED", "Activity", "Run", "unit_names"]

# Of an iteration that does nothing.
DROPPED = -1


@dataclass(frozen=True)
class Activity:
    """What belongs to a training and is no step: loading and augmenting a batch, an evaluation pass, averaging.

    ``name`` is the phase under which it is reported, ``step`` what is done once, ``times`` how often.
    """

    name: str
    step: Trace
    times: int


@dataclass(frozen=True, eq=False)
class Run:
    """A whole training.

    ``steps`` are the distinct steps, with every unit present for the whole batch. ``step_of`` is int32[iterations], an
    index into ``steps`` or :data:`DROPPED`. ``samples`` is int32[iterations, units]: how many samples ran each unit
    (0: skipped; meaningless in a dropped iteration). ``units`` are names of gates in the steps. Iterations are
    nominal: dropped ones count.
    """

    name: str
    steps: tuple[Trace, ...]
    step_of: NDArray[np.int32]
    units: tuple[str, ...] = ()
    samples: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int32))
    activities: tuple[Activity, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.step_of), len(self.units))
        if not self.units and self.samples.shape != shape:
            object.__setattr__(self, "samples", np.zeros(shape, dtype=np.int32))
        for array in (self.step_of, self.samples):
            array.setflags(write=False)
        problems: list[str] = []
        if self.samples.shape != shape:
            problems.append(f"samples has the shape {self.samples.shape}; iterations and units are {shape}")
        elif self.samples.size and not 0 <= self.samples.min() <= self.samples.max() <= self.batch:
            least, most = self.samples.min(), self.samples.max()
            problems.append(f"samples run from {least} to {most}, of a batch of {self.batch}")
        if self.step_of.size and not DROPPED <= self.step_of.min() <= self.step_of.max() < len(self.steps):
            problems.append(f"step_of names a step outside {DROPPED} .. {len(self.steps) - 1}")
        if problems:
            raise RewriteError([f"the run {self.name!r} contradicts itself: {problem}" for problem in problems])

    @property
    def iterations(self) -> int:
        """Nominal iterations, dropped ones included."""
        return len(self.step_of)

    @property
    def executed(self) -> int:
        """Iterations that were not dropped."""
        return int(np.count_nonzero(self.step_of != DROPPED))

    @property
    def batch(self) -> int:
        return self.steps[0].header.batch

    @cached_property
    def unit_index(self) -> Mapping[str, int]:
        return MappingProxyType({name: i for i, name in enumerate(self.units)})

    def step(self, iteration: int) -> Trace | None:
        """What one iteration executes, as a trace of its own; None if it was dropped."""
        which = int(self.step_of[iteration])
        if which == DROPPED:
            return None
        trace = self.steps[which]
        present = unit_names(trace)
        row: list[int] = self.samples[iteration].tolist()
        wanted = {u: n for u, n in zip(self.units, row, strict=True) if n != self.batch and u in present}
        return with_samples(trace, wanted) if wanted else trace


def unit_names(trace: Trace) -> frozenset[str]:
    """The units that a decision may skip, by the gates of a step's ops."""
    return frozenset(op.gate.name for op in trace.ops if op.gate is not None and op.gate.unit == "block")
