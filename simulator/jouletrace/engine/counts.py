"""What an engine returns: cycles and access counts, integers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jouletrace.mapping.program import Action, OpInfo, Program

__all__ = ["Counts", "Intervals", "OpCounts", "collect"]


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

    start: NDArray[np.int64]
    end: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """A finished step. ``engine_busy`` is cycles per engine name."""

    cycles: int
    ops: tuple[OpCounts, ...]
    engine_busy: Mapping[str, int]
    engine: str
    port_model: str
    events: int
    intervals: Intervals

    def total(self) -> dict[Action, int]:
        """All counts of all ops, summed."""
        total: dict[Action, int] = {}
        for op in self.ops:
            for action, n in op.counts.items():
                total[action] = total.get(action, 0) + n
        return dict(sorted(total.items()))


def _spans(of: NDArray[np.int64], ops: int, intervals: Intervals) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first start and the last end of every op, int64[ops]; 0 for an op without commands."""
    if len(of) and (of[1:] < of[:-1]).any():  # a hand-written program may let the commands of ops alternate
        by_op = np.argsort(of, kind="stable")
        return _spans(of[by_op], ops, Intervals(intervals.start[by_op], intervals.end[by_op]))
    start, end = np.zeros(ops, dtype=np.int64), np.zeros(ops, dtype=np.int64)
    bounds = np.searchsorted(of, np.arange(ops + 1))
    present = np.flatnonzero(bounds[1:] > bounds[:-1])
    if len(present):
        start[present] = np.minimum.reduceat(intervals.start, bounds[present])
        end[present] = np.maximum.reduceat(intervals.end, bounds[present])
    return start, end


def collect(program: Program, intervals: Intervals, engine: str, events: int) -> Counts:
    """Sums a program's counts over executed commands; shared by all engines.

    Sums are exact: distinct commands times their repeats, in Python integers.
    """
    n_ops = len(program.ops)
    of = np.array([c.op for c in program.commands], dtype=np.int64)[program.sequence]
    start, end = _spans(of, n_ops, intervals)

    counts: list[dict[Action, int]] = [{} for _ in range(n_ops)]
    busy: list[dict[int, int]] = [{} for _ in range(n_ops)]
    starts: list[dict[int, int]] = [{} for _ in range(n_ops)]
    engine_busy = [0] * len(program.engines)
    for command, repeats in zip(program.commands, program.repeats.tolist(), strict=True):
        if not repeats:
            continue
        of_op = counts[command.op]
        for action, n in command.counts:
            of_op[action] = of_op.get(action, 0) + n * repeats
        for held, cycles in command.holds:
            busy[command.op][held] = busy[command.op].get(held, 0) + cycles * repeats
            engine_busy[held] += cycles * repeats
        if command.start_cycles:
            driver = command.holds[0][0]
            starts[command.op][driver] = starts[command.op].get(driver, 0) + command.start_cycles * repeats

    frontier = [0] * n_ops
    reached = 0
    for i in range(n_ops):
        frontier[i] = max(0, int(end[i]) - reached)
        reached = max(reached, int(end[i]))

    kinds = [e.kind for e in program.engines]
    ops: list[OpCounts] = []
    for i, op in enumerate(program.ops):
        by_kind: dict[str, int] = {}
        for held, cycles in busy[i].items():
            by_kind[kinds[held]] = max(by_kind.get(kinds[held], 0), cycles)
        ops.append(
            OpCounts(
                op, int(start[i]), int(end[i]), frontier[i], dict(sorted(by_kind.items())),
                max(starts[i].values(), default=0), dict(sorted(counts[i].items())),
            )
        )  # fmt: skip
    return Counts(
        reached,
        tuple(ops),
        {e.name: b for e, b in zip(program.engines, engine_busy, strict=True)},
        engine,
        program.port.arbitration,
        events,
        intervals,
    )
