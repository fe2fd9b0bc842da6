"""One step with all its decisions as a family of programs, and a run of iterations composed from it.

The step is mapped once with everything present. What an op becomes when fewer samples run its unit is mapped for one op
of every distinct shape, on the tiles of the whole op. What waits for whom when a unit is skipped follows from what is
read in the place of its results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine.compose import Choices, Columns, Composed, compose
from jouletrace.engine.family import ABSENT, Family, Slot
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import Breakdown
from jouletrace.ledger.price import price
from jouletrace.mapping.fusion import FusionPlan
from jouletrace.mapping.program import Action, OpInfo
from jouletrace.mapping.remembered import remembered
from jouletrace.mapping.step import Edges, serial
from jouletrace.replay.variants import Options, options_of
from jouletrace.result.run import RunOp
from jouletrace.trace.check import waits_for
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run, unit_names
from jouletrace.trace.units import Skip, residual_units, skips

__all__ = ["Part", "compose_step"]

# The unit of an op with variants, these for every number of samples, and the units that it goes with.
_Reasons = tuple[str | None, tuple[int, ...], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a training: its energy, and its ops."""

    breakdown: Breakdown
    ops: tuple[RunOp, ...]


def compose_step(
    run: Run, step: Trace, whole: Trace, chosen: NDArray[np.int64], hardware: Hardware
) -> tuple[Part, NDArray[np.int64]] | None:
    """The chosen iterations of one step of a run, and the cycles of each, int64[chosen].

    ``whole`` is what is executed: the step itself, or cut into micro-batches.

    None where skipping several units is not the sum of skipping each, because they share a parameter.
    """
    present = unit_names(step)
    units = [unit for unit in run.units if unit in present]
    samples = run.samples[chosen][:, [run.unit_index[unit] for unit in units]]
    absent = _absent(step, whole, tuple(units))
    if absent is None:
        return None
    parts = sorted({int(n) for n in np.unique(samples) if 0 < n < run.batch})
    options = options_of(whole, step, tuple(units), hardware)
    options.add(parts)
    family = _family(options, options.added, absent, hardware)
    composed = compose(family, _choices(options, absent, units, samples, parts, run.batch))
    return _summed(options, composed, len(chosen), hardware), composed.cycles


# -- what goes with a unit


@dataclass(frozen=True, eq=False)
class _Absent:
    """The ops that go with each unit, and for each the ops that are awaited in its place."""

    removed: Mapping[str, frozenset[str]]
    instead: Mapping[str, tuple[str, ...]]


@remembered(8)
def _absent(step: Trace, whole: Trace, units: tuple[str, ...]) -> _Absent | None:
    """What goes with each of these units; ``whole`` is the step, or the step in micro-batches."""
    structure = {unit.name: unit for unit in residual_units(step)}
    origin = _origins(step, whole)
    summed = {gradient for gradient in origin.values() if gradient not in step.op}
    removed: dict[str, frozenset[str]] = {}
    instead: dict[str, set[str]] = {}
    for unit in units:
        skip = skips(step, structure[unit], checked=False)
        gone = _gone(step, skip, summed)
        if gone is None:
            return None
        removed[unit] = frozenset(name for name, of in origin.items() if of in gone)
        decisions = waits_for(step.op[structure[unit].add])
        for name in removed[unit]:
            op = whole.op[name]
            for tensor in op.writes:
                base, _, k = tensor.partition("@")
                if base in skip.instead:
                    follows = instead.setdefault(name, set())
                    other = skip.instead[base]
                    there = f"{other}@{k}" if k and f"{other}@{k}" in whole.tensor else other
                    if there in whole.writer:
                        follows.add(whole.writer[there].name)
                    if op.phase == "forward":
                        follows |= {d for d in (f"{d}@{k}" if k else d for d in decisions) if d in whole.op}
    together = _gone(step, skips(step, *map(structure.__getitem__, units)), summed)
    each = frozenset[str]().union(*removed.values())
    if together is None or frozenset(name for name, of in origin.items() if of in together) != each:
        return None
    return _Absent(removed, {name: tuple(sorted(follows)) for name, follows in instead.items()})


def _origins(step: Trace, whole: Trace) -> Mapping[str, str]:
    """For each op that is executed the op of the step that it is a part of, or the gradient that it sums up."""
    if whole is step:
        return {op.name: op.name for op in step.ops}
    origin: dict[str, str] = {}
    for op in whole.ops:
        part = op.name.rpartition("@")[0]
        same = next((name for name in (op.name, part) if name in step.op), None)
        origin[op.name] = part.removesuffix(".accumulate") if same is None else same
    return origin


def _gone(step: Trace, skip: Skip, summed: Set[str]) -> Set[str] | None:
    """The ops that go, and the gradients that are summed over micro-batches no more; None if others are summed."""
    if not summed:
        return skip.removed
    read = {name for op in step.ops if op.phase == "update" and op.name not in skip.removed for name in op.reads}
    if not read.isdisjoint(skip.instead):
        return None
    return skip.removed | (summed - read)


# -- the family


@remembered(4)
def _family(options: Options, added: tuple[int, ...], absent: _Absent, hardware: Hardware) -> Family:
    """The step with the variants of ``options``, once those for the numbers of samples in ``added`` are there."""
    place = {op.name: i for i, op in enumerate(options.whole.ops)}
    edges = Edges(options.whole, options.fusion)
    slots: list[Slot] = []
    for op in options.whole.ops:
        host = options.fusion.hosts.get(op.name)
        awaited = _delivered((name for name in edges.of(op) if name != host), options.fusion)
        instead = _delivered(absent.instead.get(op.name, ()), options.fusion)
        slots.append(
            Slot(
                tuple(options.variants[op.name]),
                tuple(sorted({place[name] for name in awaited})),
                tuple(sorted({place[name] for name in instead})),
            )
        )
    bodies = dict.fromkeys(body for slot in slots for body in slot.variants)
    engines = dict.fromkeys(engine for body in bodies for engine in body.engines)
    pools = dict.fromkeys(pool for body in bodies for pool in body.pools)
    program = options.program
    return Family(tuple(slots), tuple(engines), tuple(pools), program.ops, serial(hardware), program.port)


def _delivered(names: Iterable[str], fusion: FusionPlan) -> set[str]:
    """Ops, and those on whose stores their results leave."""
    found: set[str] = set()
    for each in names:
        name: str | None = each
        while name is not None:
            found.add(name)
            name = fusion.hosts.get(name)
    return found


def _choices(
    options: Options, absent: _Absent, units: Sequence[str], samples: NDArray[np.int32],
    parts: Sequence[int], batch: int,
) -> Columns:  # fmt: skip
    """The variant of every op in every iteration."""
    gate = {op.name: op.gate.name for op in options.whole.ops if op.gate is not None and op.gate.unit == "block"}
    column = {unit: i for i, unit in enumerate(units)}
    gone: dict[str, list[str]] = {}
    for unit, removed in absent.removed.items():
        for name in removed:
            gone.setdefault(name, []).append(unit)
    # Ops of a unit are mostly alike in this, and all other ops are.
    known: dict[_Reasons, int] = {}
    of: list[int] = []
    for op in options.whole.ops:
        unit = gate.get(op.name)
        variants = tuple(options.at.get((op.name, n), 0) for n in parts) if unit in column else ()
        unit, variants = (unit, variants) if any(variants) else (None, ())
        of.append(known.setdefault((unit, variants, tuple(gone.get(op.name, ()))), len(known)))
    distinct = tuple(_chosen(reasons, samples, column, parts, batch) for reasons in known)
    return Columns(distinct, tuple(of), len(samples))


def _chosen(
    reasons: _Reasons, samples: NDArray[np.int32], column: Mapping[str, int], parts: Sequence[int], batch: int
) -> Choices:
    """int16[iterations]: the variant of an op whose unit has these for so many samples, and that goes with units."""
    unit, variants, gone = reasons
    chosen = np.zeros(len(samples), dtype=np.int16)
    if unit is not None:
        variant = np.zeros(batch + 1, dtype=np.int16)
        variant[list(parts)] = variants
        chosen = variant[samples[:, column[unit]]]
    for of in gone:
        chosen[samples[:, column[of]] == 0] = ABSENT
    return chosen


# -- sums


@dataclass(frozen=True)
class _Counted:
    """An op over all iterations, as the ledger wants it."""

    op: OpInfo
    frontier_cycles: int
    counts: Mapping[Action, int]


@dataclass(frozen=True)
class _Step:
    cycles: int
    ops: tuple[_Counted, ...]


def _summed(options: Options, composed: Composed, iterations: int, hardware: Hardware) -> Part:
    # Ops that became the same have the same counts, and are summed together.
    same: dict[tuple[int, ...], list[int]] = {}
    for j, info in enumerate(options.program.ops):
        same.setdefault(tuple(map(id, options.variants[info.name])), []).append(j)
    counts: dict[int, dict[Action, int]] = {}
    for slots in same.values():
        variants = options.variants[options.program.ops[slots[0]].name]
        actions = sorted({action for variant in variants for action in variant.counts})
        each = [[variant.counts.get(action, 0) for action in actions] for variant in variants]
        totals = _products([composed.occurrences[j] for j in slots], each, iterations)
        counts |= {j: dict(zip(actions, row, strict=True)) for j, row in zip(slots, totals, strict=True)}
    counted: list[_Counted] = []
    ops: list[RunOp] = []
    for j, info in enumerate(options.program.ops):
        times = composed.occurrences[j]
        if ran := sum(times):
            frontier = sum(composed.frontier_cycles[j])
            macs, bits = (sum(map(mul, times, some)) for some in zip(*options.work[info.name], strict=True))
            counted.append(_Counted(info, frontier, counts[j]))
            ops.append(RunOp(info.name, info.layer, info.phase, info.kind, ran, macs, bits, frontier))
    cycles = int(composed.cycles.sum())
    return Part(price(_Step(cycles, tuple(counted)), hardware), tuple(ops))


def _products(times: list[tuple[int, ...]], each: list[list[int]], iterations: int) -> list[list[int]]:
    """For every row of ``times`` the sum of times x row of ``each``; a row of times sums up to ``iterations``."""
    largest = max((count for row in each for count in row), default=0)
    exact: type[Any] = np.int64 if iterations * largest < 2**63 else object
    products: NDArray[Any] = np.array(times, dtype=exact) @ np.array(each, dtype=exact)
    return products.tolist()
