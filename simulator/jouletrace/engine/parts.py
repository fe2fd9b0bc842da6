"""Op programs on their own, ready to be executed once for every distinct way in which their engines can be free.

The *terms* of an op program are the cycles that its commands can depend on: since when each of its engines is free, and
since when each credit of its pools is there. What it does depends on differences of terms only.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from weakref import WeakKeyDictionary

import numpy as np

from jouletrace.engine.check import problems
from jouletrace.engine.family import Family
from jouletrace.engine.recurrence import NOT_STARTED, Turns, clocks, execute, kernel, survey
from jouletrace.engine.seams import Use
from jouletrace.errors import MappingError, UsageError
from jouletrace.mapping.arrays import Arrays
from jouletrace.mapping.op_program import Integers, OpProgram, rows
from jouletrace.mapping.program import OpInfo, Place, Program
from jouletrace.store.settings import is_off

__all__ = ["Part", "Parts", "PlacedPart", "first_terms", "parts_of"]

# How many ways to be ready are remembered of an op.
WAYS = 4096
# An op alone: one turn of one body, which awaits nobody.
_ALONE = Turns(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), *rows([()]))
_UNRECORDED = np.zeros(0, dtype=np.int64)


class Part:
    """An op program at a rate of the DRAM port; its terms are those of its engines and then those of its pools.

    ``serial_cycles`` are its cycles if its commands followed one another. ``teams`` are the engines of each command,
    ``taken`` the pools that it takes from, as it numbers them. ``problem`` says why it cannot be executed alone.
    """

    def __init__(self, body: OpProgram, bytes_per_cycle: Fraction | None) -> None:
        self.is_empty = not body.runs
        self.engines, self.pools = len(body.engines), body.pools
        first, repeats = np.array([0, len(body.commands)], dtype=np.int64), np.array(body.repeats, dtype=np.int64)
        arrays = Arrays(body.arrays, body.run_arrays, first, repeats, body.moves)
        self.commands, self.runs = arrays.timed(bytes_per_cycle), arrays.runs
        longest = self.commands.longest.tolist()
        self.serial_cycles = sum(n * times for n, times in zip(longest, body.repeats, strict=True))
        self.teams = frozenset([tuple([engine for engine, _ in command.holds]) for command in body.commands])
        self.taken = frozenset([pool for pool, _ in body.takers])
        credits = np.array([pool.credits for pool in body.pools], dtype=np.int64)
        level, ring_size = credits.copy(), np.maximum(credits, 1)
        stuck = kernel(survey)(_ALONE, self.commands, self.runs, level, ring_size)
        # What goes into an op are single credits, each with its own cycle; every give adds an entry.
        self.ring_size = np.maximum(np.minimum(ring_size, credits + np.array(body.gives, dtype=np.int64)), 1)
        self.problem = ""
        if stuck >= 0:
            name = body.commands[int(self.runs.sequence[stuck])].name
            self.problem = f"takes credits at command {stuck} ({name!r}) that none of its earlier commands has given"
        elif (level != credits).any():
            pool = body.pools[int(np.flatnonzero(level != credits)[0])]
            self.problem = f"does not leave {pool.name!r} with the {pool.credits} credits that it started with"
        self._known: dict[bytes, bytes] = {}

    def execute(self, ready: bytes) -> bytes:
        """The terms behind the op, its first start and its last end, if its terms are ``ready`` before it.

        All are int64, as they lie in memory.
        """
        found = self._known.get(ready)
        if found is None:
            if len(self._known) >= WAYS:
                self._known.clear()
            found = self._known[ready] = self._execute(np.frombuffer(ready, dtype=np.int64)).tobytes()
        return found

    def _execute(self, ready: Integers) -> Integers:
        now = clocks(self.pools, self.ring_size, self.engines, 1)
        now.free[:] = ready[: self.engines]
        term = self.engines
        for p, pool in enumerate(self.pools):
            entry = int(now.ring_at[p])
            now.ring_cycle[entry : entry + pool.credits] = ready[term : term + pool.credits]
            now.ring_credits[entry : entry + pool.credits] = 1
            now.filled[p] = pool.credits
            term += pool.credits
        start = np.full(1, NOT_STARTED, dtype=np.int64)
        kernel(execute)(0, 1, _ALONE, self.commands, self.runs, now, start, _UNRECORDED, 0)
        behind = [now.free]
        for p in range(len(self.pools)):
            entries: Integers = now.ring_at[p] + (now.head[p] + np.arange(int(now.filled[p]))) % self.ring_size[p]
            behind.append(np.repeat(now.ring_cycle[entries], now.ring_credits[entries]))
        return np.concatenate([*behind, start, now.op_end])


_PARTS: WeakKeyDictionary[OpProgram, dict[Fraction | None, Part]] = WeakKeyDictionary()


def _part_of(body: OpProgram, bytes_per_cycle: Fraction | None) -> Part:
    """An op program ready to be executed; made once for it, as long as somebody holds it.

    Its commands must keep to the rules (:mod:`jouletrace.engine.check`).
    """
    if is_off():
        return Part(body, bytes_per_cycle)
    known = _PARTS.setdefault(body, {})
    found = known.get(bytes_per_cycle)
    if found is None:
        found = known[bytes_per_cycle] = Part(body, bytes_per_cycle)
    return found


# -- of a family


def first_terms(family: Family) -> list[int]:
    """The first term of each pool, behind those of the engines, and the number of terms."""
    return np.cumsum([len(family.engines), *(pool.credits for pool in family.pools)]).tolist()


@dataclass(frozen=True, eq=False, slots=True)
class PlacedPart:
    """An op program in its family: where its terms stand in a seam, and what it uses."""

    part: Part
    terms: Integers
    use: Use


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """What executes each variant of each slot, and more cycles than any step of the family takes."""

    of: list[list[PlacedPart]]
    bound_cycles: int


def parts_of(family: Family) -> Parts:
    """Made once for a family, whose runs share what was executed.

    Raises UsageError and MappingError for commands that no run can have.
    """
    known: object = family.__dict__.get("_parts")  # kept as a cached property of the frozen family
    if isinstance(known, Parts):
        return known
    given = {id(body): body for slot in family.slots for body in slot.variants}
    bodies = tuple(dict.fromkeys(given.values()))
    # Together: one driver takes from a pool, whatever the op, and one gives.
    ops = tuple(OpInfo("op", "", "forward", "", 0) for _ in bodies)
    places = tuple(map(family.place, bodies))
    together = Program("family", family.engines, family.pools, ops, bodies, places, ((),) * len(bodies), family.port)
    if found := problems(together):
        raise MappingError(found)
    placing = _Placing(family)
    made = dict(zip(bodies, map(placing.placed, bodies, places), strict=True))
    of = {i: made[body] for i, body in given.items()}
    parts = [[of[id(part)] for part in slot.variants] for slot in family.slots]
    # The sum of all variants bounds every cycle of a step; a quarter of 64 bits leaves room for NEVER.
    bound = sum(placed.part.serial_cycles for some in parts for placed in some)
    if 4 * bound >= 2**63:
        raise MappingError("the ops take more cycles than 64 bits can count; split the step")
    wrong = {
        f"an op at slot {j} ({family.ops[j].name!r}) {placed.part.problem}; only ops that give back what they take "
        "compose"
        for j, some in enumerate(parts) for placed in some if placed.part.problem
    }  # fmt: skip
    if wrong:
        raise UsageError(sorted(wrong))
    return family.__dict__.setdefault("_parts", Parts(parts, bound))


class _Placing:
    """Op programs find their terms in the seams of a family; those that find the same ones share them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.first_term = first_terms(family)
        self.terms: dict[Place, Integers] = {}
        self.uses: dict[object, Use] = {}

    def placed(self, body: OpProgram, place: Place) -> PlacedPart:
        part = _part_of(body, self.family.port.bytes_per_cycle)
        key = place, part.teams, part.taken
        if key not in self.uses:
            held = frozenset([tuple(sorted([place.engines[engine] for engine in team])) for team in part.teams])
            taken = {len(self.family.engines) + place.pools[pool] for pool in part.taken}
            self.uses[key] = Use(False, held, frozenset({engine for team in held for engine in team} | taken))
        if place not in self.terms:
            pools = [range(self.first_term[p], self.first_term[p + 1]) for p in place.pools]
            self.terms[place] = np.array([*place.engines, *(t for some in pools for t in some)], dtype=np.int64)
        return PlacedPart(part, self.terms[place], self.uses[key])
