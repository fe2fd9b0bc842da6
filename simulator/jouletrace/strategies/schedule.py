"""Widths that change during a training: a run's iterations in order, each with a position in the schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from jouletrace.strategies.base import Notes, Strategy
from jouletrace.strategies.int8 import CHANGES
from jouletrace.strategies.precision import Range, Scope, Widths, with_widths
from jouletrace.strategies.products import edges, layers, products, require_wide
from jouletrace.trace.model import Trace
from jouletrace.trace.run import DROPPED, Run

__all__ = ["PrecisionSchedule", "bad_bits", "bad_boundaries", "equal_parts", "one_length", "stage_of"]


@dataclass(frozen=True)
class PrecisionSchedule(Strategy, ABC):
    """Base class of strategies whose widths follow the iterations.

    Of a run every distinct setting becomes a distinct step. A single step has the setting of ``position``, which each
    strategy defines, as well as what ``none`` stands for. The ``clock`` counts ``nominal`` iterations, or ``executed``
    ones, so that a schedule stands still while batches are dropped.
    """

    stage: ClassVar[str] = "precision"
    claims: ClassVar[frozenset[str]] = frozenset({"widths"})
    changes: ClassVar[frozenset[str]] = CHANGES

    clock: Literal["nominal", "executed"] = "nominal"
    position: Fraction | None = None
    edges: bool = False
    scope: Scope = "operands"
    range: Range = "delayed"

    @abstractmethod
    def schedule(self, iterations: int) -> tuple[Sequence[Fraction], NDArray[np.int64]]:
        """Positions with distinct settings, and for each of so many iterations the index of its own."""

    def at(self, position: Fraction) -> PrecisionSchedule:
        """The strategy for single steps at a position."""
        return replace(self, position=position)

    def run(self, run: Run, notes: Notes) -> Run:
        ran = run.step_of != DROPPED
        nominal = self.clock == "nominal"
        count = run.iterations if nominal else run.executed
        if not count:
            return run
        positions, chosen = self.schedule(count)
        time = np.arange(run.iterations) if nominal else np.cumsum(ran) - 1
        pairs = run.step_of[ran].astype(np.int64) * len(positions) + chosen[time[ran]]
        steps: list[Trace] = []
        index: dict[int, int] = {}
        distinct: list[int] = sorted(set(pairs.tolist()))
        for pair in distinct:
            step, setting = divmod(pair, len(positions))
            before, pinned = run.steps[step], self.at(positions[setting])
            own = Notes(notes.strategy, notes.seed)
            after = pinned._finished(before, pinned.step(before, own), notes.seed)
            notes.matches += [m for m in own.matches if m not in notes.matches]
            notes.left += [left for left in own.left if left not in notes.left]
            notes.added_macs += own.added_macs
            index[pair] = next((i for i, step in enumerate(steps) if step is after), len(steps))
            if index[pair] == len(steps):
                steps.append(after)
        step_of = np.full_like(run.step_of, DROPPED)
        step_of[ran] = [index[pair] for pair in pairs.tolist()]
        if len(steps) == len(run.steps) and all(a is b for a, b in zip(steps, run.steps, strict=True)):
            return run
        return replace(run, steps=tuple(steps), step_of=step_of)

    def narrowed(self, trace: Trace, widths: Widths | Mapping[str, Widths], notes: Notes) -> Trace:
        """The step with these widths, of all products or of the products of each layer, edges as the knob says."""
        require_wide(self.name, trace)
        left = frozenset[str]() if self.edges else edges(trace)
        if isinstance(widths, Widths):
            chosen = {op.name: widths for op in products(trace) if op.name not in left}
        else:
            layer = layers(trace)
            chosen = {op.name: widths[layer[op.name]] for op in products(trace)
                      if op.name not in left and layer[op.name] in widths}  # fmt: skip
        kept = widths if self.scope == "activations" and isinstance(widths, Widths) else None
        return with_widths(trace, chosen, notes, kept=kept, dynamic=self.range == "dynamic")

    def common_refusals(self) -> tuple[tuple[bool, str], ...]:
        """Checks of the knobs that all schedules have."""
        return (
            (self.position is not None and not 0 <= self.position < 1,
             f"position has to lie between 0 and 1, not at 1 (got {self.position})"),
            (self.scope == "activations" and not self.edges,
             "edges=off keeps wide operands, and scope=activations keeps none; write edges=on or scope=operands"),
        )  # fmt: skip


def bad_bits(**lists: Sequence[int]) -> list[tuple[bool, str]]:
    """Checks that widths lie between 2 and 32 bits."""
    return [(True, f"{knob} has to lie between 2 and 32 bits (got {b})")
            for knob, bits in lists.items() for b in dict.fromkeys(bits) if not 2 <= b <= 32]  # fmt: skip


def equal_parts(stages: int) -> tuple[Fraction, ...]:
    """Boundaries of so many equal stages.

    >>> equal_parts(4)
    (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))
    """
    return tuple(Fraction(k, stages) for k in range(1, stages))


def bad_boundaries(boundaries: Sequence[Fraction], stages: int) -> list[tuple[bool, str]]:
    """Checks that boundaries separate so many stages; none at all stands for equal stages."""
    if not boundaries:
        return []
    shares = [Fraction(0), *boundaries, Fraction(1)]
    ascending = all(a < b for a, b in pairwise(shares))
    return [
        (len(boundaries) != stages - 1,
         f"{stages} stages have {stages - 1} boundaries between them (got {len(boundaries)})"),
        (not ascending, "boundaries are shares of the run, ascending between 0 and 1"),
    ]  # fmt: skip


def stage_of(boundaries: Sequence[Fraction], iterations: int) -> NDArray[np.int64]:
    """The stage of each iteration: i belongs to the next stage from i ≥ boundary · iterations on.

    >>> stage_of((Fraction(1, 2),), 5).tolist()
    [0, 0, 0, 1, 1]
    """
    starts = [ceil(boundary * iterations) for boundary in boundaries]
    return np.searchsorted(np.array(starts, dtype=np.int64), np.arange(iterations), side="right").astype(np.int64)


def one_length(**lists: Sequence[object]) -> list[tuple[bool, str]]:
    """Checks that lists of stages are equally long."""
    lengths = {knob: len(values) for knob, values in lists.items()}
    told = ", ".join(f"{knob} {n}" for knob, n in lengths.items())
    return [(len(set(lengths.values())) > 1 or not all(lengths.values()),
             f"every stage needs one value of each list (got {told})")]  # fmt: skip
