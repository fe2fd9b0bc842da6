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
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine.family import ABSENT, Family
from jouletrace.engine.parts import Part, first_terms, parts_of
from jouletrace.engine.recurrence import kernel
from jouletrace.engine.seams import NEVER, Use, settle, structure
from jouletrace.errors import UsageError
from jouletrace.mapping.op_program import Integers

__all__ = ["Choices", "Columns", "Composed", "compose"]

# How many numbers all seams together may be; beyond it, fewer iterations go side by side.
ENTRIES = 1 << 22
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

    def halves(self) -> tuple[Columns, Columns]:
        """The choices of the first half of all iterations, and of the others."""
        half = self.iterations // 2
        return (
            Columns(tuple([some[:half] for some in self.distinct]), self.of, half),
            Columns(tuple([some[half:] for some in self.distinct]), self.of, self.iterations - half),
        )


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

    def with_more(self, other: Composed) -> Composed:
        """These iterations, and then others."""
        return Composed(
            np.concatenate([self.cycles, other.cycles]),
            _added(self.occurrences, other.occurrences), _added(self.end_cycles, other.end_cycles),
            _added(self.span_cycles, other.span_cycles), _added(self.frontier_cycles, other.frontier_cycles),
        )  # fmt: skip


def _added(some: Sums, others: Sums) -> Sums:
    return tuple([tuple(map(add, a, b)) for a, b in zip(some, others, strict=True)])


def compose(
    family: Family, choice: Choices | Columns, *, progress: Callable[[int, int], None] | None = None
) -> Composed:
    """Executes ``choice[iteration, slot]``, a variant or -1 for absent, for all iterations.

    Each iteration takes the cycles of its :func:`~jouletrace.engine.family.concatenate`. ``progress`` is called now and
    then with the slots done and the slots in all. :class:`Columns` save memory.

    Raises UsageError for choices that do not exist and for ops that do not return the credits they take, and
    MappingError for commands that break the rules of a program.

    >>> from jouletrace.engine.family import Slot
    >>> from jouletrace.mapping.builder import ProgramBuilder
    >>> from jouletrace.mapping.program import OpInfo
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
    columns, slots = _checked(family, choice), len(family.slots)
    composed = _composed(family, columns, progress)
    if progress is not None:
        progress(slots, slots)
    return composed


def _composed(family: Family, columns: Columns, progress: Callable[[int, int], None] | None) -> Composed:
    """All iterations side by side, or first one half of them and then the other where that needs too much memory."""
    run, k = _Run(family, columns), 0
    while k < len(family.slots):
        if progress is not None:
            progress(k, len(family.slots))
        end = run.go_on(k)
        if end is None:
            del run
            one, other = (_composed(family, half, progress) for half in columns.halves())
            return one.with_more(other)
        k = end
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


_ABSENT_USE = Use(True, frozenset(), frozenset())


@dataclass(frozen=True, eq=False, slots=True)
class _Alike:
    """Pairs of a stretch that choose variants with the same terms, ordered by variant.

    ``rows`` are the pairs, ``parts`` what each executes, and ``variants`` those from each of ``firsts`` on. ``often``
    says for how many iterations each pair stands.
    """

    rows: Integers
    parts: list[Part]
    terms: Integers
    variants: Integers
    firsts: Integers
    often: NDArray[Any]


class _Run:
    """The seams between slot k - 1 and slot k, and which of them every iteration has reached."""

    def __init__(self, family: Family, columns: Columns) -> None:
        self.family = family
        self.iterations = columns.iterations
        self.choice = [columns.distinct[c] for c in columns.of]
        steady = [bool((some == some[:1]).all()) for some in columns.distinct]
        self.steady = [steady[c] for c in columns.of]
        occurring: list[frozenset[int]] = [frozenset(np.unique(some).tolist()) for some in columns.distinct]
        self.variants = [len(slot.variants) for slot in family.slots]
        first_term = first_terms(family)
        parts = parts_of(family)
        self.parts = parts.of
        # Sums over iterations are counted in 64 bits where they fit, with room for the difference of two.
        self.exact: type[Any] = np.int64 if self.iterations * parts.bound_cycles < 2**61 else object
        pools = len(family.pools)
        resource = [*range(len(family.engines))]
        for p in range(pools):
            resource += [len(family.engines) + p] * (first_term[p + 1] - first_term[p])
        self.terms = len(resource)
        uses = [
            frozenset([_ABSENT_USE if v == ABSENT else self.parts[j][v].use for v in occurring[c]])
            for j, c in enumerate(columns.of)
        ]
        self.structure = structure(
            family.after, family.instead, uses, np.array(resource, dtype=np.int64), len(family.engines),
            len(family.engines) + pools,
        )  # fmt: skip
        self.awaited = [
            [np.array(some, dtype=np.int64) + self.terms for some in edges] for edges in (family.after, family.instead)
        ]
        self.seams = np.zeros((1, self.terms + len(family.slots) + 1), dtype=np.int64)
        self.at = np.zeros(self.iterations, dtype=np.int64)  # seam of every iteration
        self.base = np.zeros(self.iterations, dtype=np.int64)  # cycle from which its seam counts
        self.occurrences: list[NDArray[Any]] = [np.zeros(n, dtype=np.int64) for n in self.variants]
        # Of each variant its end, span and frontier cycles.
        self.sums: list[NDArray[Any]] = [np.zeros((n, 3), dtype=self.exact) for n in self.variants]

    def go_on(self, k: int) -> int | None:
        """Executes the slots from k on up to the next that tells more iterations apart; returns that one.

        Nothing is executed, and None returned, where there are too many seams.
        """
        label, labels, end = self._stretch(k)
        pair, first = _dense(self.at * labels + label, len(self.seams) * labels)
        pairs = len(first)
        if pairs > 1 and pairs * self.seams.shape[1] > ENTRIES:
            return None
        seams = self.seams[self.at[first]]
        often = np.bincount(pair, minlength=pairs)
        since = np.array(_grouped(self.base, pair, pairs), dtype=self.exact)
        chosen: Choices | None = None
        absent, present = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        ordered: dict[tuple[int, ...], list[_Alike]] = {}
        for j in range(k, end):
            if chosen is None or self.choice[j] is not self.choice[j - 1]:
                chosen = self.choice[j][first]
                absent, present = np.flatnonzero(chosen == ABSENT), np.flatnonzero(chosen != ABSENT)
                ordered.clear()
            if len(absent):
                seams[absent, self.terms + j] = self._latest(seams, absent, self.awaited[1][j])
            if not len(present):
                continue
            key = tuple(map(id, self.parts[j]))
            if key not in ordered:
                ordered[key] = self._ordered(chosen, present, j, often)
            for alike in ordered[key]:
                self.occurrences[j][alike.variants] += np.add.reduceat(often[alike.rows], alike.firsts)
                self._execute(seams, j, alike, since)
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

    def _ordered(self, chosen: Choices, present: Integers, j: int, often: Integers) -> list[_Alike]:
        """The pairs in which slot j is there, by what they choose."""
        order = present[np.argsort(chosen[present], kind="stable")]
        variant = chosen[order].astype(np.int64)
        firsts = np.flatnonzero(np.diff(variant, prepend=-1))
        by_terms: dict[tuple[int, bool], list[int]] = {}
        distinct: list[int] = variant[firsts].tolist()
        for i, v in enumerate(distinct):
            placed = self.parts[j][v]
            by_terms.setdefault((id(placed.terms), placed.part.is_empty), []).append(i)
        ends = np.append(firsts[1:], len(order))
        found: list[_Alike] = []
        for some in by_terms.values():
            lengths = ends[some] - firsts[some]
            rows = np.concatenate([order[firsts[i] : ends[i]] for i in some])
            each = [self.parts[j][distinct[i]] for i in some]
            parts = [placed.part for placed, n in zip(each, lengths.tolist(), strict=True) for _ in range(n)]
            starts = np.cumsum(lengths) - lengths
            variants = variant[firsts[some]]
            found.append(_Alike(rows, parts, each[0].terms, variants, starts, often[rows].astype(self.exact)))
        return found

    def _latest(self, seams: Integers, rows: Integers, columns: Integers) -> Integers:
        """The latest of what stands in these columns, for each of the rows."""
        if not len(columns):
            return np.full(len(rows), NEVER, dtype=np.int64)
        return seams[rows[:, None], columns].max(axis=1)

    def _execute(self, seams: Integers, j: int, alike: _Alike, since: NDArray[Any]) -> None:
        """Executes slot j in those seams that choose alike, in place, and adds up what it takes."""
        rows = alike.rows
        after = self._latest(seams, rows, self.awaited[0][j])
        if alike.parts[0].is_empty:
            seams[rows, self.terms + j] = after
            return
        where = rows[:, None], alike.terms
        ready = np.maximum(seams[where], after[:, None])  # every command of the op waits for this
        least = ready.min(axis=1)
        ready -= least[:, None]
        size, raw = ready.itemsize * ready.shape[1], ready.tobytes()
        done = [part.execute(raw[i * size : (i + 1) * size]) for i, part in enumerate(alike.parts)]
        behind = np.frombuffer(b"".join(done), dtype=np.int64).reshape(len(done), -1) + least[:, None]
        start, stop = behind[:, -2], behind[:, -1]
        seams[where] = behind[:, :-2]
        seams[rows, self.terms + j] = stop
        frontier = np.maximum(stop - seams[rows, -1], 0)
        seams[rows, -1] += frontier
        sums = np.stack([stop, stop - start, frontier], axis=1) * alike.often[:, None]
        sums[:, 0] += since[rows]
        self.sums[j][alike.variants] += np.add.reduceat(sums, alike.firsts)

    def result(self) -> Composed:
        ends, spans, frontiers = (tuple([tuple(some[:, i].tolist()) for some in self.sums]) for i in range(3))
        cycles = self.base + self.seams[self.at, -1]
        return Composed(cycles, tuple([tuple(some.tolist()) for some in self.occurrences]), ends, spans, frontiers)


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
