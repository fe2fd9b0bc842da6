"""The compiled engine: the same cycles as the events engine, hundreds of times faster, for programs in fixed order.

It computes the longest path through the commands (:mod:`jouletrace.engine.recurrence`) and returns what the events
engine returns: every start, every end, every count. Starts and ends are found when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from jouletrace.engine import events
from jouletrace.engine.check import check
from jouletrace.engine.counts import Counts, Intervals
from jouletrace.engine.recurrence import NOT_STARTED, Turns, clocks, execute, kernel, reorder, rings, survey
from jouletrace.errors import LimitExceeded, UsageError
from jouletrace.mapping.arrays import Arrays
from jouletrace.mapping.op_program import Commands, Integers, OpProgram, Runs, rows
from jouletrace.mapping.program import Program

__all__ = ["simulate"]

# Commands between two looks at the clock.
BATCH = 1 << 20


def simulate(
    program: Program,
    *,
    max_events: int | None = None,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Executes a program, all engines idle at the end; an event is a command.

    ``progress`` is called now and then with the commands done and the commands in all; it and the limits are looked at
    between ops.

    Raises UsageError for a port that is shared at run time, and otherwise what the events engine raises:
    MappingError, Deadlock, LimitExceeded.

    >>> from jouletrace.mapping.builder import ProgramBuilder
    >>> from jouletrace.mapping.program import OpInfo
    >>> builder = ProgramBuilder("toy")
    >>> dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    >>> free, full = builder.pool("x.free", 2, buffer="x"), builder.pool("x.full", 0)
    >>> with builder.op(OpInfo("conv:forward", "conv", "forward", "conv", macs=9)):
    ...     load = builder.command("load", [(dma, 5)], takes=[(free, 1)], gives=[(full, 1)])
    ...     compute = builder.command("compute", [(pe, 9)], takes=[(full, 1)], gives=[(free, 1)])
    ...     builder.emit([load, compute], times=3)
    >>> counts = simulate(builder.build())
    >>> counts.cycles, counts.intervals.start.tolist()
    (32, [0, 5, 5, 14, 14, 23])
    """
    if program.port.arbitration != "program_order":
        raise UsageError(
            f"the compiled engine executes commands in a fixed order, and the DRAM port of {program.hardware!r} is "
            f"shared at run time ({program.port.arbitration}); use the events engine"
        )
    deadline = None if max_seconds is None else monotonic() + max_seconds
    check(program)
    total = len(program)
    if max_events is not None and total > max_events:
        raise LimitExceeded(f"the step has {total} commands, more than the limit of {max_events}; raise max_events")
    plan = _planned(program)
    commands = plan.commands(program)
    now = clocks(program.pools, plan.ring_size, len(program.engines), len(program.ops))
    op_start = np.full(len(program.ops), NOT_STARTED, dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    behind = np.concatenate([nothing, np.cumsum(plan.lengths)])  # commands up to the end of each turn
    first = done = 0
    while first < len(behind):
        if deadline is not None and monotonic() > deadline:
            raise LimitExceeded(
                f"the simulation reached its limit of {max_seconds} s with {done} of {total} commands started; "
                "raise max_seconds"
            )
        if progress is not None:
            progress(done, total)
        last = min(int(np.searchsorted(behind, done + BATCH)) + 1, len(behind))
        kernel(execute)(first, last, plan.turns, commands, plan.runs, now, op_start, nothing, 0)
        first, done = last, int(behind[last - 1])
    if progress is not None:
        progress(total, total)
    op_start[op_start == NOT_STARTED] = 0
    return Counts(program, op_start, now.op_end, "compiled", total, lambda: _intervals(program, plan))


class _Plan(NamedTuple):
    """What is executed in which order. Not in program order, ``order`` are the positions of the commands, and these
    are ``reordered``."""

    turns: Turns
    runs: Runs
    ring_size: Integers
    lengths: list[int]
    order: Integers | None = None
    reordered: Commands | None = None

    def commands(self, program: Program) -> Commands:
        """The commands with their cycles."""
        return program.timed if self.reordered is None else self.reordered


# Plans by what they follow from, which all rates of the port share. A plan must not hold the arrays: they would stay.
_PLANS: WeakKeyDictionary[Arrays, _Plan] = WeakKeyDictionary()


def _planned(program: Program) -> _Plan:
    """Every op in its turn, as mappings issue; or command by command, where some give stands behind its take.

    A hand-written program may issue a take before the give that feeds it, as long as the two are on different engines.
    """
    arrays = program.arrays
    known = _PLANS.get(arrays)
    if known is not None:
        return known
    turns = Turns(
        np.arange(len(program.ops), dtype=np.int64), np.array(program.which, dtype=np.int64), *rows(program.after)
    )
    credits = np.array([pool.credits for pool in program.pools], dtype=np.int64)
    ring_size = np.maximum(credits, 1)
    awaits_itself = any(after and after[-1] >= op for op, after in enumerate(program.after))
    if awaits_itself or kernel(survey)(turns, arrays.least, arrays.runs, credits.copy(), ring_size) >= 0:
        return _reordered(program)
    plan = _Plan(turns, arrays.runs, rings(program, ring_size), [len(body) for body in program.bodies])
    return _PLANS.setdefault(arrays, plan)


def _reordered(program: Program) -> _Plan:
    """Commands in an order in which every one can start after those before it. Raises Deadlock if there is none."""
    of = OpProgram(program.engines, program.pools, program.commands, ()).arrays  # they have their cycles
    op = np.array([command.op for command in program.commands], dtype=np.int64)
    sequence = program.sequence.astype(np.int64)
    held = np.zeros(len(program.engines) + 1, dtype=np.int64)
    for body, place, often in program.distinct:
        for command, times in zip(body.commands, body.repeats, strict=True):
            for engine, _ in command.holds:
                held[place.engines[engine] + 1] += often * times
    credits = np.array([pool.credits for pool in program.pools], dtype=np.int64)
    left = np.bincount(op[sequence], minlength=len(program.ops)).astype(np.int64)
    order = np.zeros(len(sequence), dtype=np.int64)
    after = rows([command.after for command in program.commands])
    placed = kernel(reorder)(sequence, op, *after, of, credits.copy(), left, np.cumsum(held), order)
    if placed < len(sequence):
        events.simulate(program)  # raises the Deadlock, and says who waits for whom
    ordered = sequence[order]
    bounds = np.flatnonzero(np.diff(op[ordered])) + 1  # where another op goes on
    first = np.concatenate([[0], bounds])
    n = len(first)
    nothing = rows([()] * n)
    once, ends = np.ones(n, dtype=np.int64), np.concatenate([first, [len(ordered)]])
    runs = Runs(np.arange(n + 1), ends, once, *nothing, *nothing, ordered)
    ops: Integers = op[ordered[first]]
    turns = Turns(ops, np.arange(n), *rows([program.after[int(o)] for o in ops]))
    ring_size = np.maximum(credits, 1)
    kernel(survey)(turns, of, runs, credits.copy(), ring_size)
    lengths: list[int] = np.diff(runs.chunk_at).tolist()
    return _Plan(turns, runs, rings(program, ring_size), lengths, order, of)


def _intervals(program: Program, plan: _Plan) -> Intervals:
    """Start and end of every command."""
    now = clocks(program.pools, plan.ring_size, len(program.engines), len(program.ops))
    placed = np.zeros(len(program), dtype=np.int64)
    op_start = np.zeros(len(program.ops), dtype=np.int64)
    if len(placed):
        commands = plan.commands(program)
        kernel(execute)(0, len(plan.lengths), plan.turns, commands, plan.runs, now, op_start, placed, 0)
    start = placed
    if plan.order is not None:
        start = np.zeros(len(placed), dtype=np.int64)
        start[plan.order] = placed
    return Intervals(start, start + _lengths(program))


def _lengths(program: Program) -> Integers:
    """The cycles of every command, in program order."""
    longest = program.timed.longest
    each = [
        np.concatenate([np.zeros(0, np.int64), *(np.tile(longest[first + run.chunk], run.times) for run in body.runs)])
        for (body, _, _), first in zip(program.distinct, program.arrays.first.tolist(), strict=False)
    ]
    return np.concatenate([np.zeros(0, np.int64), *(each[which] for which in program.which)])
