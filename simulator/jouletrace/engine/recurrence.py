"""The longest-path recurrence over the commands of a program: the arithmetic of the engines that use no events.

Under a fixed order every wait is known in advance: a command starts at the largest of the times at which its engines
are free, its credits are there and the ops that it awaits have ended. So one pass over the commands, in an order in
which every give comes before the take that it feeds, finds all times (max-plus algebra: F. Baccelli, G. Cohen,
G. J. Olsder, J.-P. Quadrat, *Synchronization and Linearity*, 1992, chapter 2).

Runs of a chunk need not be executed to the end. A repetition depends on the cycles at which the engines of the chunk
are free and the credits of its pools are there. If all of them are what they were some repetitions ago, only later
by the same number of cycles, then so will be everything that follows: maxima commute with adding a number, and the ends
of awaited ops, which do not move, are behind every engine once the chunk has been executed once. This is the cyclicity
theorem (ibid., section 3.7) at work, found by comparing rather than by solving for eigenvalues: with the repetition
number 1, 2, 4, 8, … as in R. P. Brent, *BIT* 20 (1980) 176-184.

The kernels are plain Python over arrays. Numba compiles them on first use; without it, or with the environment
variable ``JOULETRACE_NO_NUMBA`` set, the same lines run as they stand, some hundred times slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jouletrace.mapping.op_program import Commands, Integers, Pool, Runs
from jouletrace.mapping.program import Program

__all__ = ["NOT_STARTED", "Clocks", "Turns", "clocks", "execute", "kernel", "reorder", "rings", "survey"]

# Later than every start.
NOT_STARTED = 1 << 62
F = TypeVar("F", bound=Callable[..., Any])


class Turns(NamedTuple):
    """Who is executed in which order: turn t executes body ``body[t]`` for op ``op[t]``, which awaits the ops in rows
    ``after_at[t]`` to ``after_at[t + 1]``. In program order every op has one turn."""

    op: Integers
    body: Integers
    after_at: Integers
    after_op: Integers


class Clocks(NamedTuple):
    """All that later commands can depend on, as cycles; advanced in place.

    A pool is a ring of entries (since when, how many credits), oldest first: pool p has ``ring_size[p]`` rows from
    ``ring_at[p]``, of which ``filled[p]`` are in use from ``head[p]`` on. A credit may be there before an older one;
    that it waits behind it needs no arithmetic, because all takers of a pool have one driver and so start in order.
    """

    free: Integers
    op_end: Integers
    ring_at: Integers
    ring_size: Integers
    ring_cycle: Integers
    ring_credits: Integers
    head: Integers
    filled: Integers


def rings(program: Program, ring_size: Integers) -> Integers:
    """Room for each pool: its most credits at a time, but no more entries than are ever made, and at least one."""
    gives = [1] * len(program.pools)
    for body, place, times in program.distinct:
        for pool, given in zip(place.pools, body.gives, strict=True):
            gives[pool] += times * given
    return np.minimum(ring_size, np.array(gives, dtype=np.int64))


def clocks(pools: Sequence[Pool], ring_size: Integers, engines: int, ops: int) -> Clocks:
    """Everything idle at cycle 0, with room for ``ring_size[p]`` entries in pool p."""
    ring_at = np.zeros(len(pools), dtype=np.int64)
    np.cumsum(ring_size[:-1], out=ring_at[1:])
    ring_credits = np.zeros(int(ring_size.sum()), dtype=np.int64)
    filled = np.zeros(len(pools), dtype=np.int64)
    for index, pool in enumerate(pools):
        if pool.credits:
            ring_credits[ring_at[index]] = pool.credits
            filled[index] = 1
    return Clocks(
        np.zeros(engines, dtype=np.int64), np.zeros(ops, dtype=np.int64), ring_at, ring_size,
        np.zeros(len(ring_credits), dtype=np.int64), ring_credits, np.zeros(len(pools), dtype=np.int64), filled,
    )  # fmt: skip


def kernel(function: F) -> F:
    """The function compiled by Numba, or itself where Numba is missing or unwanted."""
    return function if os.environ.get("JOULETRACE_NO_NUMBA") else _compiled(function)


@cache
def _compiled(function: F) -> F:
    try:
        import numba
    except ImportError:
        return function
    njit: Any = numba.njit
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in
        return njit(function)


def survey(turns: Turns, of: Commands, runs: Runs, level: Integers, ring_size: Integers) -> int:
    """Where in ``runs.sequence`` the first command stands whose credits are not there when all before it have ended.

    -1 if there is none. ``level`` is the credits of every pool, advanced in place. ``ring_size`` is raised to the most
    credits that a pool ever holds. Levels change by the same in every repetition, so the first and the last are looked
    at.
    """
    before = np.zeros(len(level), dtype=np.int64)
    for turn in range(len(turns.op)):
        body = turns.body[turn]
        for run in range(runs.run_at[body], runs.run_at[body + 1]):
            for look in range(min(runs.times[run], 2)):
                for row in range(runs.pool_at[run], runs.pool_at[run + 1]):
                    pool = runs.pool[row]
                    if look == 1:
                        level[pool] += (level[pool] - before[pool]) * (runs.times[run] - 2)
                    before[pool] = level[pool]
                for position in range(runs.chunk_at[run], runs.chunk_at[run + 1]):
                    c = runs.sequence[position]
                    for row in range(of.take_at[c], of.take_at[c + 1]):
                        level[of.take_pool[row]] -= of.take_credits[row]
                        if level[of.take_pool[row]] < 0:
                            return position
                    for row in range(of.give_at[c], of.give_at[c + 1]):
                        pool = of.give_pool[row]
                        level[pool] += of.give_credits[row]
                        ring_size[pool] = max(ring_size[pool], level[pool])
    return -1


def execute(
    first: int, last: int, turns: Turns, of: Commands, runs: Runs, now: Clocks, op_start: Integers, start: Integers,
    at: int,
) -> int:  # fmt: skip
    """Executes turns ``first`` to ``last``, in an order that :func:`survey` accepts, from ``now`` on.

    ``op_start`` is lowered to the first start of every op. Every start is written to ``start`` from ``at`` on, unless
    ``start`` is empty; returns where the next one goes.
    """
    writes = len(start) > 0
    kept_free = np.zeros(len(now.free), dtype=np.int64)
    kept_filled = np.zeros(len(now.filled), dtype=np.int64)
    kept_cycle = np.zeros(len(now.ring_cycle), dtype=np.int64)
    kept_credits = np.zeros(len(now.ring_cycle), dtype=np.int64)
    for turn in range(first, last):
        body, op = turns.body[turn], turns.op[turn]
        ready, ended = 0, now.op_end[op]
        for row in range(turns.after_at[turn], turns.after_at[turn + 1]):
            ready = max(ready, now.op_end[turns.after_op[row]])
        for run in range(runs.run_at[body], runs.run_at[body + 1]):
            times = runs.times[run]
            done, kept_at, settled = 0, 0, False
            latest = 0  # end since the repetition that is compared with
            while done < times:
                for position in range(runs.chunk_at[run], runs.chunk_at[run + 1]):
                    c = runs.sequence[position]
                    begin = ready
                    for row in range(of.hold_at[c], of.hold_at[c + 1]):
                        begin = max(begin, now.free[of.hold_engine[row]])
                    for row in range(of.take_at[c], of.take_at[c + 1]):
                        pool, credits = of.take_pool[row], of.take_credits[row]
                        while credits > 0:
                            entry = now.ring_at[pool] + now.head[pool]
                            begin = max(begin, now.ring_cycle[entry])
                            used = min(credits, now.ring_credits[entry])
                            now.ring_credits[entry] -= used
                            credits -= used
                            if now.ring_credits[entry] == 0:
                                now.filled[pool] -= 1
                                now.head[pool] += 1
                                if now.head[pool] == now.ring_size[pool]:
                                    now.head[pool] = 0
                    for row in range(of.hold_at[c], of.hold_at[c + 1]):
                        now.free[of.hold_engine[row]] = begin + of.hold_cycles[row]
                    end = begin + of.longest[c]
                    for row in range(of.give_at[c], of.give_at[c + 1]):
                        pool = of.give_pool[row]
                        entry = now.head[pool] + now.filled[pool]
                        if entry >= now.ring_size[pool]:
                            entry -= now.ring_size[pool]
                        now.ring_cycle[now.ring_at[pool] + entry] = end
                        now.ring_credits[now.ring_at[pool] + entry] = of.give_credits[row]
                        now.filled[pool] += 1
                    if begin < op_start[op]:
                        op_start[op] = begin
                    if end > latest:
                        latest = end
                    if writes:
                        start[at] = begin
                        at += 1
                done += 1
                if settled or done == times:
                    continue
                shift, same = -1, kept_at > 0
                if same:
                    for row in range(runs.engine_at[run], runs.engine_at[run + 1]):
                        engine = runs.engine[row]
                        if shift < 0:
                            shift = now.free[engine] - kept_free[engine]
                        elif now.free[engine] - kept_free[engine] != shift:
                            same = False
                            break
                if same:
                    for row in range(runs.pool_at[run], runs.pool_at[run + 1]):
                        pool = runs.pool[row]
                        if now.filled[pool] != kept_filled[pool]:
                            same = False
                            break
                        for i in range(now.filled[pool]):
                            entry = now.head[pool] + i
                            if entry >= now.ring_size[pool]:
                                entry -= now.ring_size[pool]
                            entry += now.ring_at[pool]
                            old = now.ring_at[pool] + i
                            if (
                                now.ring_cycle[entry] - kept_cycle[old] != shift
                                or now.ring_credits[entry] != kept_credits[old]
                            ):
                                same = False
                                break
                if same:
                    settled = True
                    period = done - kept_at
                    more = (times - done) // period
                    done += more * period
                    if writes:
                        commands = period * (runs.chunk_at[run + 1] - runs.chunk_at[run])
                        for i in range(at, at + more * commands):
                            start[i] = start[i - commands] + shift
                        at += more * commands
                    for row in range(runs.engine_at[run], runs.engine_at[run + 1]):
                        now.free[runs.engine[row]] += more * shift
                    for row in range(runs.pool_at[run], runs.pool_at[run + 1]):
                        pool = runs.pool[row]
                        for i in range(now.filled[pool]):
                            entry = now.head[pool] + i
                            if entry >= now.ring_size[pool]:
                                entry -= now.ring_size[pool]
                            now.ring_cycle[now.ring_at[pool] + entry] += more * shift
                    latest += more * shift
                elif done == max(1, 2 * kept_at):
                    kept_at = done
                    ended = max(ended, latest)
                    latest = 0
                    for row in range(runs.engine_at[run], runs.engine_at[run + 1]):
                        kept_free[runs.engine[row]] = now.free[runs.engine[row]]
                    for row in range(runs.pool_at[run], runs.pool_at[run + 1]):
                        pool = runs.pool[row]
                        kept_filled[pool] = now.filled[pool]
                        for i in range(now.filled[pool]):
                            entry = now.head[pool] + i
                            if entry >= now.ring_size[pool]:
                                entry -= now.ring_size[pool]
                            old = now.ring_at[pool] + i
                            kept_cycle[old] = now.ring_cycle[now.ring_at[pool] + entry]
                            kept_credits[old] = now.ring_credits[now.ring_at[pool] + entry]
            ended = max(ended, latest)
        now.op_end[op] = ended
    return at


def reorder(
    sequence: Integers, op: Integers, after_at: Integers, after_op: Integers, of: Commands, level: Integers,
    left: Integers, queue_at: Integers, order: Integers,
) -> int:  # fmt: skip
    """Writes the positions of the commands to ``order`` so that each can start when all before it have ended.

    Program order is kept on every engine. Returns how many were placed: all, or those before a deadlock. Command c is
    of ``op[c]`` and awaits the ops in its rows of ``after_op``. Queue e of positions, those of the commands that hold
    engine e, has the length ``queue_at[e + 1] - queue_at[e]``.
    """
    engines = len(queue_at) - 1
    queue = np.zeros(queue_at[engines], dtype=np.int64)
    end = queue_at.copy()
    for position in range(len(sequence)):
        c = sequence[position]
        for row in range(of.hold_at[c], of.hold_at[c + 1]):
            queue[end[of.hold_engine[row]]] = position
            end[of.hold_engine[row]] += 1
    at = queue_at[:engines].copy()
    placed, before = 0, -1
    while placed > before:
        before = placed
        for engine in range(engines):
            while at[engine] < end[engine]:
                position = queue[at[engine]]
                c = sequence[position]
                ready = True
                for row in range(of.hold_at[c], of.hold_at[c + 1]):
                    held = of.hold_engine[row]
                    ready = ready and queue[at[held]] == position
                for row in range(after_at[c], after_at[c + 1]):
                    ready = ready and left[after_op[row]] == 0
                for row in range(of.take_at[c], of.take_at[c + 1]):
                    level[of.take_pool[row]] -= of.take_credits[row]
                for row in range(of.take_at[c], of.take_at[c + 1]):
                    ready = ready and level[of.take_pool[row]] >= 0
                if not ready:
                    for row in range(of.take_at[c], of.take_at[c + 1]):
                        level[of.take_pool[row]] += of.take_credits[row]
                    break
                for row in range(of.give_at[c], of.give_at[c + 1]):
                    level[of.give_pool[row]] += of.give_credits[row]
                for row in range(of.hold_at[c], of.hold_at[c + 1]):
                    at[of.hold_engine[row]] += 1
                left[op[c]] -= 1
                order[placed] = position
                placed += 1
    return placed
