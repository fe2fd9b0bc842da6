"""The composing engine: the cycles of a whole run of iterations, each with its own choices, exactly.

Every iteration begins with all engines idle and ends with a barrier, so it depends on its own choices only. All
iterations go through the step side by side. What an iteration has done so far is a *seam*: the few cycles on which the
rest can depend (:mod:`jouletrace.engine.seams`). Equal seams are stored once, and only what is distinct is computed. An
op is executed by the same recurrence as in the compiled engine, once for every distinct way in which its engines and
credits can be ready.

The result holds what can be summed: the cycles of every iteration, and sums over iterations for every slot and variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine.check import check, serial_cycles
from jouletrace.engine.family import ABSENT, Family
from jouletrace.engine.recurrence import Turns, clocks, execute, kernel, survey
from jouletrace.engine.seams import NEVER, Use, settle, structure
from jouletrace.errors import MappingError, UsageError
from jouletrace.mapping.arrays import joined, rows
from jouletrace.mapping.op_program import Integers, OpProgram
from jouletrace.mapping.program import OpInfo, Program

__all__ = ["Choices", "Columns", "Composed", "compose"]

# How many ways to be ready are remembered of an op.
WAYS = 4096
# Behind every start.
NEVER_STARTS = 1 << 62
Choices = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Columns:
    """Choices of which many slots have the same: ``distinct`` are int16[iterations] each, ``of`` has one per slot."""

    distinct: tuple[Choices, ...]
    of: tuple[int, ...]
    iterations: int

    @classmethod
    def every(cls, choice: Choices) -> Columns:
        """The choices ``choice[iteration, slot]``, a column for each slot."""
        rows = np.ascontiguousarray(choice.T)
        return cls(tuple(rows), tuple(range(len(rows))), len(choice))
Sums = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Composed:
    """A finished run. ``cycles`` is int64[iterations].

    The others are sums over iterations per slot and variant: how often it occurred, and its end, its span (first start
    to last end) and its frontier cycles, as the engines define them. A variant without commands has 0 of all cycles.
    """

    cycles: Integers
    occurrences: Sums
    end_cycles: Sums
    span_cycles: Sums
    frontier_cycles: Sums


def compose(
    family: Family, choice: Choices | Columns, *, progress: Callable[[int, int], None] | None = None
) -> Composed:
    """Executes ``choice[iteration, slot]``, a variant or -1 for absent, for all iterations.

    Each iteration takes the cycles of its :func:`~jouletrace.engine.family.concatenate`. ``progress`` is called now and
    then with the slots done and the slots in all. :class:`Columns` save memory.

    Raises UsageError for choices that do not exist and for ops that do not return the credits they take, and
    MappingError for commands that break the rules of a program.

    >>> from jouletrace.engine.family import Slot
    >>> from jouletrace.mapping.program import OpInfo, ProgramBuilder
    >>> builder = ProgramBuilder("toy")
    >>> a, b = builder.engine("a", "dma"), builder.engine("b", "array")
    >>> for engine, cycles in ((a, 5), (b, 3), (a, 4)):
    ...     with builder.op(OpInfo("op", "layer", "forward", "conv", macs=0)):
    ...         builder.emit([builder.command("work", [(engine, cycles)])])
    >>> program = builder.build()
    >>> slots = [Slot((part,), after, instead) for part, after, instead in
    ...          zip(program.bodies, [(), (0,), (1,)], [(), (0,), ()])]
    >>> family = Family(tuple(slots), program.engines, program.pools, program.ops)
    >>> compose(family, np.array([[0, 0, 0], [0, -1, 0], [-1, 0, -1]], dtype=np.int16)).cycles.tolist()
    [12, 9, 3]
    """
    run = _Run(family, _checked(family, choice))
    k = 0
    while k < len(family.slots):
        if progress is not None:
            progress(k, len(family.slots))
        k = run.go_on(k)
    if progress is not None:
        progress(k, k)
    return run.result()


def _checked(family: Family, choice: Choices | Columns) -> Columns:
    """The choices by slot; raises UsageError for what :func:`compose` cannot mean."""
    problems: list[str] = []
    n = len(family.slots)
    if len(family.ops) != n:
        problems.append(f"the family has {n} slots and {len(family.ops)} ops; give each slot its op")
    for j, slot in enumerate(family.slots):
        if any(not 0 <= a < j for a in (*slot.after, *slot.instead)):
            problems.append(f"slot {j} awaits slots that are not before it; name slots from 0 to {j - 1}")
    columns = choice if isinstance(choice, Columns) else None
    if isinstance(choice, np.ndarray):
        if choice.ndim == 2 and choice.shape[1] == n and choice.dtype.kind == "i":
            columns = Columns.every(choice)
        else:
            problems.append(f"choice is {choice.dtype}{list(choice.shape)}; it must be integers [iterations, {n}]")
    if columns is not None and columns.iterations:
        bounds = [(int(column.min()), int(column.max())) for column in columns.distinct]
        problems += [
            f"slot {j} has {len(slot.variants)} variants, and the choices reach from {bounds[c][0]} to {bounds[c][1]}; "
            f"choose from {ABSENT} (absent) to {len(slot.variants) - 1}"
            for j, (slot, c) in enumerate(zip(family.slots, columns.of, strict=True))
            if bounds[c][0] < ABSENT or bounds[c][1] >= len(slot.variants)
        ]
    if problems or columns is None:
        raise UsageError(problems)
    return columns


# An op alone: one turn of one body, which awaits nobody.
_ALONE = Turns(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), *rows([()]))
_UNRECORDED = np.zeros(0, dtype=np.int64)


class _Part:
    """An OpProgram with everything needed to execute it; its terms are those of its engines and pools."""

    def __init__(self, body: OpProgram, family: Family, first_term: list[int]) -> None:
        self.body = body
        self.is_empty = not body.runs
        place = family.place(body)
        self.terms = np.array(
            [*place.engines, *(t for p in place.pools for t in range(first_term[p], first_term[p + 1]))], dtype=np.int64
        )
        arrays = joined([body], [tuple(range(len(body.engines)))], [tuple(range(len(body.pools)))])
        self.commands, self.runs = arrays.timed(family.port.bytes_per_cycle), arrays.runs
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
        held = frozenset(tuple(sorted(place.engines[engine] for engine, _ in c.holds)) for c in body.commands)
        taken = {len(family.engines) + place.pools[pool] for pool, _ in body.takers}
        self.use = Use(False, held, frozenset({engine for team in held for engine in team} | taken))
        self._memory: dict[bytes, tuple[Integers, int, int]] = {}

    def execute(self, ready: Integers) -> tuple[Integers, int, int]:
        """The terms behind the op, its first start and its last end, if its terms are ``ready`` before it."""
        key = ready.tobytes()
        if key not in self._memory:
            if len(self._memory) >= WAYS:
                self._memory.clear()
            self._memory[key] = self._execute(ready)
        return self._memory[key]

    def _execute(self, ready: Integers) -> tuple[Integers, int, int]:
        body = self.body
        now = clocks(body.pools, self.ring_size, len(body.engines), 1)
        now.free[:] = ready[: len(body.engines)]
        term = len(body.engines)
        for p, pool in enumerate(body.pools):
            entry = int(now.ring_at[p])
            now.ring_cycle[entry : entry + pool.credits] = ready[term : term + pool.credits]
            now.ring_credits[entry : entry + pool.credits] = 1
            now.filled[p] = pool.credits
            term += pool.credits
        start = np.full(1, NEVER_STARTS, dtype=np.int64)
        kernel(execute)(0, 1, _ALONE, self.commands, self.runs, now, start, _UNRECORDED, 0)
        behind = [now.free]
        for p in range(len(body.pools)):
            entries: Integers = now.ring_at[p] + (now.head[p] + np.arange(int(now.filled[p]))) % self.ring_size[p]
            behind.append(np.repeat(now.ring_cycle[entries], now.ring_credits[entries]))
        return np.concatenate(behind), int(start[0]), int(now.op_end[0])


def _first_terms(family: Family) -> list[int]:
    """The first term of each pool, behind those of the engines, and the number of terms."""
    return np.cumsum([len(family.engines), *(pool.credits for pool in family.pools)]).tolist()


def _parts(family: Family) -> list[list[_Part]]:
    """What executes each variant of each slot; made once for a family, whose runs share what was executed.

    Raises UsageError and MappingError for commands that no run can have.
    """
    known: object = family.__dict__.get("_parts")  # kept as a cached property of the frozen family
    if isinstance(known, list):
        return cast(list[list[_Part]], known)
    given = {id(body): body for slot in family.slots for body in slot.variants}
    bodies = tuple(dict.fromkeys(given.values()))
    # Together: one driver takes from a pool, whatever the op, and one gives.
    ops = tuple(OpInfo("op", "", "forward", "", 0) for _ in bodies)
    places = tuple(map(family.place, bodies))
    together = Program("family", family.engines, family.pools, ops, bodies, places, ((),) * len(bodies), family.port)
    check(together)
    # The sum of all variants bounds every cycle of a step; a quarter of 64 bits leaves room for NEVER.
    serial = dict(zip(bodies, serial_cycles(together), strict=True))
    if 4 * sum(serial[body] for slot in family.slots for body in slot.variants) >= 2**63:
        raise MappingError("the ops take more cycles than 64 bits can count; split the step")
    first_term = _first_terms(family)
    made = {body: _Part(body, family, first_term) for body in bodies}
    of = {i: made[body] for i, body in given.items()}
    parts = [[of[id(part)] for part in slot.variants] for slot in family.slots]
    problems = {
        f"an op at slot {j} ({family.ops[j].name!r}) {part.problem}; only ops that give back what they take compose"
        for j, some in enumerate(parts) for part in some if part.problem
    }  # fmt: skip
    if problems:
        raise UsageError(sorted(problems))
    return family.__dict__.setdefault("_parts", parts)


class _Run:
    """The seams between slot k - 1 and slot k, and which of them every iteration has reached."""

    def __init__(self, family: Family, columns: Columns) -> None:
        self.family = family
        self.iterations = columns.iterations
        self.choice = [columns.distinct[c] for c in columns.of]
        steady = [bool((some == some[:1]).all()) for some in columns.distinct]
        self.steady = [steady[c] for c in columns.of]
        occurring = [frozenset(np.unique(some).tolist()) for some in columns.distinct]
        self.occurring = [occurring[c] for c in columns.of]
        self.variants = [len(slot.variants) for slot in family.slots]
        first_term = _first_terms(family)
        self.parts = _parts(family)
        pools = len(family.pools)
        resource = [*range(len(family.engines))]
        for p in range(pools):
            resource += [len(family.engines) + p] * (first_term[p + 1] - first_term[p])
        self.terms = len(resource)
        self.structure = structure(
            family.after, family.instead, [self._uses(j) for j in range(len(family.slots))],
            np.array(resource, dtype=np.int64), len(family.engines), len(family.engines) + pools,
        )  # fmt: skip
        self.seams = np.zeros((1, self.terms + len(family.slots) + 1), dtype=np.int64)
        self.at = np.zeros(self.iterations, dtype=np.int64)  # seam of every iteration
        self.base = np.zeros(self.iterations, dtype=np.int64)  # cycle from which its seam counts
        self.occurrences = [[0] * n for n in self.variants]
        self.sums = [[[0] * n for n in self.variants] for _ in range(3)]  # end, span, frontier

    def _uses(self, j: int) -> list[Use]:
        """What slot j does in the choices that occur."""
        found: list[Use] = []
        for v in range(ABSENT, self.variants[j]):
            if v not in self.occurring[j]:
                continue
            if v == ABSENT:
                found.append(Use(True, frozenset(), frozenset()))
                continue
            found.append(self.parts[j][v].use)
        return found

    def go_on(self, k: int) -> int:
        """Executes the slots from k on up to the next that tells more iterations apart; returns that one."""
        label, labels, end = self._stretch(k)
        pair, first = _dense(self.at * labels + label, len(self.seams) * labels)
        pairs = len(first)
        seams = self.seams[self.at[first]]
        often = np.bincount(pair, minlength=pairs).tolist()
        since = _grouped(self.base, pair, pairs)
        for p in range(pairs):
            seam = seams[p]
            for j in range(k, end):
                v = int(self.choice[j][first[p]])
                if v == ABSENT:
                    seam[self.terms + j] = self._awaited(seam, self.family.instead[j])
                    continue
                self.occurrences[j][v] += often[p]
                done = self._execute(seam, j, v)
                if done is not None:
                    start, stop, frontier = done
                    self.sums[0][j][v] += since[p] + often[p] * stop
                    self.sums[1][j][v] += often[p] * (stop - start)
                    self.sums[2][j][v] += often[p] * frontier
        shift = np.zeros(pairs, dtype=np.int64)
        kernel(settle)(seams, end, self.structure, shift)
        self.base += shift[pair]
        known: dict[bytes, int] = {}
        into = np.array([known.setdefault(seam.tobytes(), len(known)) for seam in seams], dtype=np.int64)
        self.seams = np.frombuffer(b"".join(known), dtype=np.int64).reshape(len(known), seams.shape[1])
        self.at = into[pair]
        return end

    def _stretch(self, k: int) -> tuple[Integers, int, int]:
        """A label per iteration such that equal labels choose alike from slot k up to the returned one."""
        label, labels, like = np.zeros(self.iterations, dtype=np.int64), 1, -1
        end = k
        while end < len(self.family.slots):
            if not self.steady[end] and not (like >= 0 and self._equal(end, like)):
                n = self.variants[end] + 1
                finer, found = _dense(label * n + self.choice[end] + 1, labels * n)
                if end > k and len(found) > labels:
                    break
                label, labels, like = finer, len(found), end
            end += 1
        return label, labels, end

    def _equal(self, j: int, k: int) -> bool:
        return self.choice[j] is self.choice[k] or np.array_equal(self.choice[j], self.choice[k])

    def _awaited(self, seam: Integers, slots: tuple[int, ...]) -> int:
        return max((int(seam[self.terms + a]) for a in slots), default=NEVER)

    def _execute(self, seam: Integers, j: int, v: int) -> tuple[int, int, int] | None:
        """Advances a seam in place; the start, end and frontier cycles of the op, or None if it has no commands."""
        part = self.parts[j][v]
        after = self._awaited(seam, self.family.after[j])
        if part.is_empty:
            seam[self.terms + j] = after
            return None
        ready = np.maximum(seam[part.terms], after)  # every command of the op waits for this
        least = int(ready.min())
        behind, start, stop = part.execute(ready - least)
        seam[part.terms] = behind + least
        start, stop = start + least, stop + least
        seam[self.terms + j] = stop
        frontier = max(0, stop - int(seam[-1]))
        seam[-1] += frontier
        return start, stop, frontier

    def result(self) -> Composed:
        ends, spans, frontiers = (tuple(tuple(row) for row in some) for some in self.sums)
        cycles = self.base + self.seams[self.at, -1]
        return Composed(cycles, tuple(tuple(row) for row in self.occurrences), ends, spans, frontiers)


def _dense(keys: Integers, bound: int) -> tuple[Integers, Integers]:
    """Keys below a bound, numbered without gaps, and where one of each stands."""
    where = np.full(bound, -1, dtype=np.int64)
    where[keys] = np.arange(len(keys))
    found = np.flatnonzero(where >= 0)
    first = where[found]
    where[found] = np.arange(len(found))
    return where[keys], first


def _grouped(values: Integers, group: Integers, groups: int) -> list[int]:
    """Exact sums of non-negative integers per group, in limbs whose sums a float holds exactly."""
    total, shift = [0] * groups, 0
    left = values
    while left.any():
        limb = np.bincount(group, weights=left & 0xFFFFF, minlength=groups)
        total = [t + (int(part) << shift) for t, part in zip(total, limb.tolist(), strict=True)]
        left, shift = left >> 20, shift + 20
    return total
