"""What an engine returns: cycles and access counts, integers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jouletrace.mapping.op_program import Action, Integers
from jouletrace.mapping.program import OpInfo, Program

__all__ = ["Counts", "Intervals", "OpCounts", "collect", "spans"]


@dataclass(frozen=True, slots=True)
class OpCounts:
    """One op after execution.

    ``cycles`` is its span (first command's start to last command's end). ``frontier_cycles`` are the
    cycles by which its end lies beyond the ends of all ops before it in program order: they partition the
    step exactly, so per-cycle energies can be charged to ops without a rest. ``busy`` is, per engine kind, the largest
    busy time of one engine of that kind; ``start_cycles`` the largest sum of start costs on one engine.
    """

    op: OpInfo
    start_cycle: int
    end_cycle: int
    frontier_cycles: int
    busy: Mapping[str, int]
    start_cycles: int
    counts: Mapping[Action, int]

    @property
    def cycles(self) -> int:
        return self.end_cycle - self.start_cycle

    @property
    def bound_by(self) -> str:
        """What keeps the op from being shorter: compute, vector, dram, start, host, or buffer.

        The busiest resource of the op is its bound; if all of them together idle longer than the
        busiest one works, waiting for buffers is.
        """
        dma = max(self.busy.get("dma", 0), self.busy.get("dram", 0))
        shares = {
            "compute": self.busy.get("array", 0),
            "vector": self.busy.get("vector", 0),
            "dram": dma - min(dma, self.start_cycles),
            "start": self.start_cycles,
            "host": self.busy.get("host", 0),
        }
        bound = max(shares, key=lambda name: shares[name])
        return "buffer" if self.cycles > 2 * max(shares[bound], dma) else bound


@dataclass(frozen=True, eq=False)
class Intervals:
    """Start and end cycle of every command of the sequence, int64[commands]."""

    start: Integers
    end: Integers


@dataclass(frozen=True, eq=False)
class Counts:
    """A finished step. ``engine_busy`` is cycles per engine name; ``find_intervals`` finds the ``intervals``."""

    cycles: int
    ops: tuple[OpCounts, ...]
    engine_busy: Mapping[str, int]
    engine: str
    port_model: str
    events: int
    find_intervals: Callable[[], Intervals]

    @cached_property
    def intervals(self) -> Intervals:
        """When every command starts and ends."""
        return self.find_intervals()

    def total(self) -> dict[Action, int]:
        """All counts of all ops, summed."""
        total: dict[Action, int] = {}
        for op in self.ops:
            for action, n in op.counts.items():
                total[action] = total.get(action, 0) + n
        return dict(sorted(total.items()))


def spans(program: Program, intervals: Intervals) -> tuple[Integers, Integers]:
    """The first start and the last end of every op, int64[ops]; 0 for an op without commands."""
    ops = len(program.ops)
    start, end = np.zeros(ops, dtype=np.int64), np.zeros(ops, dtype=np.int64)
    bounds = np.cumsum([0, *map(len, program.bodies)])
    present = np.flatnonzero(bounds[1:] > bounds[:-1])
    if len(present):
        start[present] = np.minimum.reduceat(intervals.start, bounds[present])
        end[present] = np.maximum.reduceat(intervals.end, bounds[present])
    return start, end


def collect(
    program: Program, op_start: Integers, op_end: Integers, engine: str, events: int,
    find_intervals: Callable[[], Intervals],
) -> Counts:  # fmt: skip
    """Sums a program's counts; shared by all engines. ``op_start`` and ``op_end`` are the cycles of every op.

    Sums are exact: distinct commands times their repeats, in Python integers. Ops that execute the same share them.
    """
    reached = np.maximum.accumulate(op_end) if len(op_end) else op_end
    frontier = np.diff(reached, prepend=0)
    ops = tuple(
        OpCounts(op, start, end, beyond, body.busy, body.start_cycles, body.counts)
        for op, body, start, end, beyond in zip(
            program.ops, program.bodies, op_start.tolist(), op_end.tolist(), frontier.tolist(), strict=True
        )
    )
    busy = [0] * len(program.engines)
    for body, place, times in program.distinct:
        for held, cycles in zip(place.engines, body.held_cycles, strict=True):
            busy[held] += times * cycles
    return Counts(
        int(reached[-1]) if len(reached) else 0,
        ops,
        {e.name: b for e, b in zip(program.engines, busy, strict=True)},
        engine,
        program.port.arbitration,
        events,
        find_intervals,
    )
