"""The compiled engine: the same cycles as the events engine, some hundred times faster, for programs in fixed order.

It computes the longest path through the commands (:mod:`jouletrace.engine.recurrence`) and returns what the events
engine returns: every start, every end, every count.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine import events
from jouletrace.engine.check import check
from jouletrace.engine.counts import Counts, Intervals, collect
from jouletrace.engine.recurrence import Integers, Tables, advance, clocks, kernel, reorder, survey, tables
from jouletrace.errors import LimitExceeded, UsageError
from jouletrace.mapping.program import Program

__all__ = ["simulate"]

# Commands between two looks at the clock.
BATCH = 1 << 18


def simulate(
    program: Program,
    *,
    max_events: int | None = None,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Executes a program, all engines idle at the end; an event is a command.

    ``progress`` is called now and then with the commands done and the commands in all.

    Raises UsageError for a port that is shared at run time, and otherwise what the events engine raises:
    MappingError, Deadlock, LimitExceeded.

    >>> from jouletrace.mapping.program import OpInfo, ProgramBuilder
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
    total = len(program.sequence)
    if max_events is not None and total > max_events:
        raise LimitExceeded(f"the step has {total} commands, more than the limit of {max_events}; raise max_events")
    of = tables(program.commands)
    order, ring_size = _order(program, of)
    sequence = _frozen(program.sequence if order is None else program.sequence[order])
    now = clocks(program.pools, ring_size, len(program.engines), len(program.ops))
    start = np.zeros(total, dtype=np.int64)
    for first in range(0, total, BATCH):
        if deadline is not None and monotonic() > deadline:
            raise LimitExceeded(
                f"the simulation reached its limit of {max_seconds} s with {first} of {total} commands started; "
                "raise max_seconds"
            )
        if progress is not None:
            progress(first, total)
        kernel(advance)(sequence[first : first + BATCH], of, now, start[first : first + BATCH])
    if order is not None:
        placed, start = start, np.zeros(total, dtype=np.int64)
        start[order] = placed
    if progress is not None:
        progress(total, total)
    return collect(program, Intervals(start, start + of.longest[program.sequence]), "compiled", total)


def _order(program: Program, of: Tables) -> tuple[NDArray[np.int32] | None, Integers]:
    """Positions in an order in which every command can start after those before it, and the most credits per pool.

    None stands for program order, in which mappings issue. A hand-written program may issue a take before the give
    that feeds it, as long as the two are on different engines.
    """
    sequence = _frozen(program.sequence)
    credits = np.array([pool.credits for pool in program.pools], dtype=np.int64)
    left = np.bincount(of.op[sequence], minlength=len(program.ops)).astype(np.int64)
    ring_size = np.maximum(credits, 1)
    order: NDArray[np.int32] | None = None
    if kernel(survey)(sequence, of, credits.copy(), left.copy(), ring_size) >= 0:
        holds = np.zeros(len(program.engines) + 1, dtype=np.int64)
        for command, repeats in zip(program.commands, program.repeats.tolist(), strict=True):
            for engine, _ in command.holds:
                holds[engine + 1] += repeats
        order = np.zeros(len(sequence), dtype=np.int32)
        placed = kernel(reorder)(sequence, of, credits.copy(), left.copy(), np.cumsum(holds), order)
        if placed < len(sequence):
            events.simulate(program)  # raises the Deadlock, and says who waits for whom
        kernel(survey)(_frozen(sequence[order]), of, credits.copy(), left, ring_size)
    # A ring holds an entry per give, never an empty one.
    gives = np.ones(len(program.pools), dtype=np.int64)
    for command, repeats in zip(program.commands, program.repeats.tolist(), strict=True):
        for pool, _ in command.gives:
            gives[pool] += repeats
    return order, np.minimum(ring_size, gives)


def _frozen(sequence: NDArray[np.int32]) -> NDArray[np.int32]:
    """A read-only view: Numba compiles a kernel anew for every type of its arguments."""
    view = sequence.view()
    view.setflags(write=False)
    return view
