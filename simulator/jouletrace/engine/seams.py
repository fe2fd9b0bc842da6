"""What the rest of a step can still depend on, at a seam between two ops, made as small as can be proved.

At a seam before slot k the past matters only through a few cycles: when each engine is free, since when each credit is
there, and when those ops ended that somebody still awaits. Call them *terms*. The start of every later command is the
largest of some terms and of times that later commands produce.

**Raising a term changes no start, if the term stays at or below the start of every later command that it can reach.**
Proof, by induction over the later commands in program order: if all starts before a command c are unchanged, so
are the times that they produced; each raised term in c's maximum is at most c's old start, and no term got
smaller, so the maximum is c's old start. All terms may be raised at once, since the bounds speak of the old starts.

So every term is raised to the smallest lower bound of the starts that it can reach, over all choices that the rest of
the run makes anywhere:

* An op starts no command before the end of what it awaits, nor before an engine of that command is free. So slot j
  starts at or after ``S(j)``: the largest awaited end, or, if that is later, the smallest, over its commands, of the
  largest time at which one of the command's engines is free. A later slot is taken to end as soon as it starts, or,
  where it may be absent or without commands, as soon as what stands in for it.
* An engine's term reaches first the first later slot that uses the engine, and the others only through it, because an
  engine works in order. The bound is the smallest ``S`` over the slots that may be the first.
* The takers of a pool have one driver, so they start in order: the same holds for the credits of a pool.
* An awaited end reaches the slots that await it, directly or through slots that are absent or without commands.

A term that reaches nobody is set to 0. Then the smallest term is subtracted from all: what follows depends on
differences only (max-plus linearity). Seams that differ in nothing that matters are now equal, and most of them are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jouletrace.mapping.op_program import Integers, rows

__all__ = ["NEVER", "Structure", "Use", "settle", "structure"]

# Before every cycle: the largest of no ends at all. Half the range of 64 bits, so that cycles can be added to it.
NEVER = -(1 << 62)


class Use(NamedTuple):
    """What a slot does in one of the choices that the run makes for it; an absent slot does nothing.

    ``held`` are the engines of each command, ``resources`` the engines held and, behind the number of engines, the
    pools taken from.
    """

    absent: bool
    held: frozenset[tuple[int, ...]]
    resources: frozenset[int]


class Structure(NamedTuple):
    """Who can wait for whom, as arrays; rows of slot j stand from ``*_at[j]`` to ``*_at[j + 1]``.

    ``waiting`` are the slots that name a slot in ``after`` (``in_place`` 0) or ``instead`` (1). ``works``, ``idles``
    and ``skips`` say whether a slot may have commands, may have none, and may be absent. ``team`` are the engines of
    one command. ``user[k, r]`` is the first slot from k on that may use resource r, ``surely[j, r]`` whether it must.
    ``resource`` says which resource each term is of.
    """

    after_at: Integers
    after: Integers
    instead_at: Integers
    instead: Integers
    waiting_at: Integers
    waiting: Integers
    in_place: Integers
    works: NDArray[np.bool_]
    idles: NDArray[np.bool_]
    skips: NDArray[np.bool_]
    teams_at: Integers
    team_at: Integers
    team: Integers
    user: Integers
    surely: NDArray[np.bool_]
    resource: Integers
    engines: int


def structure(
    after: Sequence[Sequence[int]], instead: Sequence[Sequence[int]], uses: Sequence[frozenset[Use]],
    resource: Integers, engines: int, resources: int,
) -> Structure:  # fmt: skip
    """The arrays for slots that await ``after`` and ``instead``, and may do ``uses``."""
    n = len(after)
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for in_place, edges in enumerate((after, instead)):
        for slot, awaited in enumerate(edges):
            for earlier in awaited:
                waiting[earlier].append((slot, in_place))
    # Most slots are used like many others.
    roles = {some: _Role(some) for some in dict.fromkeys(uses)}
    of = [roles[some] for some in uses]
    user = np.full((n + 1, resources), n, dtype=np.int64)
    surely = np.zeros((n, resources), dtype=np.bool_)
    for slot in reversed(range(n)):
        user[slot] = user[slot + 1]
        user[slot, of[slot].resources] = slot
        surely[slot, of[slot].sure] = True
    after_at, after_slot = rows(after)
    instead_at, instead_slot = rows(instead)
    waiting_at, waiting_slot = rows([[slot for slot, _ in some] for some in waiting])
    teams_at, _ = rows([[0] * len(role.teams) for role in of])
    team_at, team = rows([team for role in of for team in role.teams])
    return Structure(
        after_at, after_slot, instead_at, instead_slot,
        waiting_at, waiting_slot, np.array([way for some in waiting for _, way in some], dtype=np.int64),
        np.array([role.works for role in of], dtype=np.bool_), np.array([role.idles for role in of], dtype=np.bool_),
        np.array([role.skips for role in of], dtype=np.bool_), teams_at, team_at, team, user, surely, resource, engines,
    )  # fmt: skip


class _Role:
    """What slots with these uses may do, and what they do whichever is chosen (``sure``)."""

    def __init__(self, uses: Collection[Use]) -> None:
        self.teams = sorted(frozenset[tuple[int, ...]]().union(*(use.held for use in uses)))
        self.resources = sorted(frozenset[int]().union(*(use.resources for use in uses)))
        self.sure = [used for used in self.resources if all(used in use.resources for use in uses)]
        self.works = any(use.held for use in uses)
        self.idles = any(not use.held and not use.absent for use in uses)
        self.skips = any(use.absent for use in uses)


def settle(seams: Integers, k: int, of: Structure, shift: Integers) -> None:
    """Raises and normalises the terms of seams before slot k, in place; ``shift`` is what was subtracted from each.

    A seam is int64[terms + slots + 1]: the terms of engines and pools, the end of every earlier slot, and the last end
    of all, which the frontier counts from and which is therefore never raised.
    """
    n = len(of.works)
    terms = len(of.resource)
    never, forever = -(1 << 62), 1 << 62
    starts = np.zeros(n, dtype=np.int64)
    ends = np.zeros(n, dtype=np.int64)
    reach = np.zeros(n, dtype=np.int64)
    reaches = np.zeros(terms + n + 1, dtype=np.bool_)
    reaches[terms + n] = True
    for row in range(len(seams)):
        seam = seams[row]
        for turn in range(2):  # engines first: their raised terms then bound the others better
            for j in range(k, n):
                awaited = never
                for i in range(of.after_at[j], of.after_at[j + 1]):
                    a = of.after[i]
                    awaited = max(awaited, seam[terms + a] if a < k else ends[a])
                end = forever
                if of.works[j]:
                    start = forever
                    for team in range(of.teams_at[j], of.teams_at[j + 1]):
                        free = never
                        for i in range(of.team_at[team], of.team_at[team + 1]):
                            free = max(free, seam[of.team[i]])
                        start = min(start, free)
                    starts[j] = max(start, awaited)
                    end = starts[j]
                if of.idles[j]:
                    end = min(end, awaited)
                if of.skips[j]:
                    awaited = never
                    for i in range(of.instead_at[j], of.instead_at[j + 1]):
                        a = of.instead[i]
                        awaited = max(awaited, seam[terms + a] if a < k else ends[a])
                    end = min(end, awaited)
                ends[j] = end
            for term in range(of.engines) if turn == 0 else range(of.engines, terms):
                resource = of.resource[term]
                bound = forever
                j = of.user[k, resource]
                while j < n:
                    bound = min(bound, starts[j])
                    j = n if of.surely[j, resource] else of.user[j + 1, resource]
                reaches[term] = bound < forever
                seam[term] = max(seam[term], bound) if bound < forever else never
        for a in range(n - 1, -1, -1):
            bound = forever
            for i in range(of.waiting_at[a], of.waiting_at[a + 1]):
                j = of.waiting[i]
                if j < k:
                    continue
                if of.in_place[i] == 0:
                    if of.works[j]:
                        bound = min(bound, starts[j])
                    if of.idles[j]:
                        bound = min(bound, reach[j])
                elif of.skips[j]:
                    bound = min(bound, reach[j])
            reach[a] = bound
            if a < k:
                reaches[terms + a] = bound < forever
                seam[terms + a] = max(seam[terms + a], bound)
        least = seam[terms + n]
        for term in range(terms + n):
            if reaches[term]:
                least = min(least, seam[term])
        for term in range(terms + n + 1):
            seam[term] = seam[term] - least if reaches[term] else 0
        shift[row] = least
