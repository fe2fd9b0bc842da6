"""What an engine returns: cycles and access counts, integers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jouletrace.mapping.op_program import Action, Integers
from jouletrace.mapping.program import OpInfo, Program

__all__ = ["Counts", "Intervals", "OpCounts", "spans"]


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
    """A finished step. ``op_start`` and ``op_end`` are the cycles of every op, int64[ops].

    Sums are exact: distinct commands times their repeats, in Python integers. Ops that execute the same share them.
    ``find_intervals`` finds the ``intervals``.
    """

    program: Program
    op_start: Integers
    op_end: Integers
    engine: str
    events: int
    find_intervals: Callable[[], Intervals]

    @property
    def cycles(self) -> int:
        """The end of the last op."""
        return int(self.op_end.max(initial=0))

    @property
    def port_model(self) -> str:
        return self.program.port.arbitration

    @cached_property
    def intervals(self) -> Intervals:
        """When every command starts and ends."""
        return self.find_intervals()

    @property
    def frontier_cycles(self) -> Integers:
        """For every op the cycles by which its end lies beyond those before it."""
        return np.diff(np.maximum.accumulate(self.op_end), prepend=0)

    @property
    def ops(self) -> tuple[OpCounts, ...]:
        """Every op."""
        return self._ops

    @cached_property
    def _ops(self) -> tuple[OpCounts, ...]:
        program = self.program
        busy = [_by_kind(program, each) for each in self._held_cycles]
        cycles: Integers = np.stack([self.op_start, self.op_end, self.frontier_cycles], axis=1)
        return tuple(
            OpCounts(op, start, end, beyond, busy[which], body.start_cycles, body.counts)
            for op, body, which, (start, end, beyond) in zip(
                program.ops, program.bodies, program.which, cycles.tolist(), strict=True
            )
        )

    @cached_property
    def _held_cycles(self) -> list[dict[int, int]]:
        return _held_cycles(self.program)

    @cached_property
    def engine_busy(self) -> Mapping[str, int]:
        """Cycles per engine name."""
        pairs = list(zip(self._held_cycles, self.program.distinct, strict=True))
        return {
            engine.name: sum(each.get(i, 0) * placed.times for each, placed in pairs)
            for i, engine in enumerate(self.program.engines)
        }

    @property
    def shared(self) -> list[tuple[Mapping[Action, int], int, int]]:
        """What ops did, in order of the first op that did it: accesses, the ops, and the first of them."""
        first: dict[int, int] = {}
        for op, which in enumerate(self.program.which):
            first.setdefault(which, op)
        return [(placed.body.counts, placed.times, first[i]) for i, placed in enumerate(self.program.distinct)]

    def total(self) -> dict[Action, int]:
        """All counts of all ops, summed."""
        total: dict[Action, int] = {}
        for body, _, times in self.program.distinct:
            for action, n in body.counts.items():
                total[action] = total.get(action, 0) + n * times
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


def _held_cycles(program: Program) -> list[dict[int, int]]:
    """For each distinct op program the engines that it uses, and for how long."""
    arrays, timed = program.arrays, program.timed
    command = np.repeat(np.arange(len(timed.longest)), np.diff(timed.hold_at))
    which = np.repeat(np.arange(len(arrays.first) - 1), np.diff(arrays.first))[command]
    used = arrays.repeats[command] > 0
    place = which * len(program.engines) + timed.hold_engine
    held = np.zeros(len(program.distinct) * len(program.engines), dtype=np.int64)
    np.add.at(held, place, timed.hold_cycles * arrays.repeats[command])
    found: list[dict[int, int]] = [{} for _ in program.distinct]
    for at in np.unique(place[used]).tolist():
        found[at // len(program.engines)][at % len(program.engines)] = int(held[at])
    return found


def _by_kind(program: Program, held: Mapping[int, int]) -> Mapping[str, int]:
    """Per kind of engine the largest busy time of one engine of that kind."""
    by_kind: dict[str, int] = {}
    for engine, cycles in held.items():
        kind = program.engines[engine].kind
        by_kind[kind] = max(by_kind.get(kind, 0), cycles)
    return dict(sorted(by_kind.items()))
