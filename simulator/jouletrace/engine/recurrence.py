"""The longest-path recurrence over the commands of a program: the arithmetic of the engines that use no events.

Under a fixed order every wait is known in advance: a command starts at the largest of the times at which its engines
are free, its credits are there and the ops that it awaits have ended. So one pass over the commands, in an order in
which every give comes before the take that it feeds, finds all times (max-plus algebra: F. Baccelli, G. Cohen,
G. J. Olsder, J.-P. Quadrat, *Synchronization and Linearity*, 1992, chapter 2).

The kernels are plain Python over arrays. Numba compiles them on first use; without it, or with the environment
variable ``JOULETRACE_NO_NUMBA`` set, the same lines run as they stand, some hundred times slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from jouletrace.mapping.program import Command, Pool

__all__ = ["Clocks", "Integers", "Tables", "advance", "clocks", "kernel", "reorder", "survey", "tables"]

Integers = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])


class Tables(NamedTuple):
    """Distinct commands as arrays. What command c holds stands in rows ``hold_at[c]`` to ``hold_at[c + 1]``."""

    op: Integers
    longest: Integers
    hold_at: Integers
    hold_engine: Integers
    hold_cycles: Integers
    take_at: Integers
    take_pool: Integers
    take_credits: Integers
    give_at: Integers
    give_pool: Integers
    give_credits: Integers
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


def tables(commands: Sequence[Command]) -> Tables:
    """The arrays of these commands."""
    none: tuple[tuple[int, int], ...] = ()
    return Tables(
        np.array([c.op for c in commands], dtype=np.int64),
        np.array([c.cycles for c in commands], dtype=np.int64),
        *_rows([c.holds for c in commands]),
        *_rows([c.takes for c in commands]),
        *_rows([c.gives for c in commands]),
        *_rows([tuple((op, 0) for op in c.after) or none for c in commands])[:2],
    )


def _rows(pairs: Iterable[tuple[tuple[int, int], ...]]) -> tuple[Integers, Integers, Integers]:
    lists = list(pairs)
    at = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(some) for some in lists], out=at[1:])
    flat = np.array([pair for some in lists for pair in some], dtype=np.int64).reshape(-1, 2)
    return at, flat[:, 0].copy(), flat[:, 1].copy()


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


def survey(sequence: NDArray[np.int32], of: Tables, level: Integers, left: Integers, ring_size: Integers) -> int:
    """The first command that cannot start when all before it in the sequence have ended, or -1.

    ``level`` is the credits of every pool and ``left`` the commands of every op; both end as they are behind the
    last command that could start. ``ring_size`` is raised to the most credits that a pool ever holds.
    """
    for position in range(len(sequence)):
        c = sequence[position]
        for row in range(of.after_at[c], of.after_at[c + 1]):
            if left[of.after_op[row]]:
                return position
        for row in range(of.take_at[c], of.take_at[c + 1]):
            level[of.take_pool[row]] -= of.take_credits[row]
            if level[of.take_pool[row]] < 0:
                return position
        for row in range(of.give_at[c], of.give_at[c + 1]):
            pool = of.give_pool[row]
            level[pool] += of.give_credits[row]
            ring_size[pool] = max(ring_size[pool], level[pool])
        left[of.op[c]] -= 1
    return -1


def reorder(
    sequence: NDArray[np.int32],
    of: Tables,
    level: Integers,
    left: Integers,
    queue_at: Integers,
    order: NDArray[np.int32],
) -> int:
    """Writes the positions of the commands to ``order`` so that each can start when all before it have ended.

    Program order is kept on every engine. Returns how many were placed: all, or those before a deadlock. Queue e
    of positions, those of the commands that hold engine e, has the length ``queue_at[e + 1] - queue_at[e]``.
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
                for row in range(of.after_at[c], of.after_at[c + 1]):
                    ready = ready and left[of.after_op[row]] == 0
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
                left[of.op[c]] -= 1
                order[placed] = position
                placed += 1
    return placed


def advance(sequence: NDArray[np.int32], of: Tables, now: Clocks, start: Integers) -> None:
    """Executes commands in an order that :func:`survey` accepts, from ``now`` on; writes the start of each."""
    for position in range(len(sequence)):
        c = sequence[position]
        begin = now.free[of.hold_engine[of.hold_at[c]]]
        for row in range(of.hold_at[c] + 1, of.hold_at[c + 1]):
            begin = max(begin, now.free[of.hold_engine[row]])
        for row in range(of.after_at[c], of.after_at[c + 1]):
            begin = max(begin, now.op_end[of.after_op[row]])
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
        now.op_end[of.op[c]] = max(now.op_end[of.op[c]], end)
        for row in range(of.give_at[c], of.give_at[c + 1]):
            pool = of.give_pool[row]
            entry = now.head[pool] + now.filled[pool]
            if entry >= now.ring_size[pool]:
                entry -= now.ring_size[pool]
            now.ring_cycle[now.ring_at[pool] + entry] = end
            now.ring_credits[now.ring_at[pool] + entry] = of.give_credits[row]
            now.filled[pool] += 1
        start[position] = begin
