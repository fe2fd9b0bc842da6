"""One step with all its decisions as a family of programs, and a run of iterations composed from it.

The step is mapped once with everything present. What an op becomes when fewer samples run its unit is mapped for one op
of every distinct shape, on the tiles of the whole op. What waits for whom when a unit is skipped follows from what is
read in the place of its results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine.compose import Composed, compose
from jouletrace.engine.family import ABSENT, Family, OpProgram, Slot, split
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import Breakdown
from jouletrace.ledger.price import price
from jouletrace.mapping.fusion import FusionPlan, as_stored, plan_fusion
from jouletrace.mapping.loops import unpadded
from jouletrace.mapping.program import Action, Command, Engine, OpInfo, Pool, Program
from jouletrace.mapping.step import Edges, map_step, serial
from jouletrace.result.run import RunOp
from jouletrace.trace.check import waits_for
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Op, Trace
from jouletrace.trace.run import Run, unit_names
from jouletrace.trace.units import residual_units, skips, with_samples, without_units

__all__ = ["Part", "compose_step"]

Choices = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a training: its energy, and its ops."""

    breakdown: Breakdown
    ops: tuple[RunOp, ...]


def compose_step(
    run: Run, step: Trace, chosen: NDArray[np.int64], hardware: Hardware, micro_batch: int | None
) -> tuple[Part, NDArray[np.int64]] | None:
    """The chosen iterations of one step of a run, and the cycles of each, int64[chosen].

    None where skipping several units is not the sum of skipping each, because they share a parameter.
    """
    present = unit_names(step)
    units = [unit for unit in run.units if unit in present]
    samples = run.samples[chosen][:, [run.unit_index[unit] for unit in units]]
    whole = step if micro_batch is None else micro_batched(step, micro_batch)
    absent = _absent(step, whole, units, micro_batch)
    if absent is None:
        return None
    parts = sorted({int(n) for n in np.unique(samples) if 0 < n < run.batch})
    options = _Options(whole, step, units, parts, hardware)
    family = _family(options, absent, hardware)
    composed = compose(family, _choices(family, options, absent, units, samples, parts, run.batch))
    return _summed(options, composed, len(chosen), hardware), composed.cycles


# -- what goes with a unit


@dataclass(frozen=True)
class _Absent:
    """The ops that go with each unit, and for each the ops that are awaited in its place."""

    removed: Mapping[str, frozenset[str]]
    instead: Mapping[str, tuple[str, ...]]


def _absent(step: Trace, whole: Trace, units: Sequence[str], micro_batch: int | None) -> _Absent | None:
    structure = {unit.name: unit for unit in residual_units(step)}
    names = frozenset(op.name for op in whole.ops)
    removed: dict[str, frozenset[str]] = {}
    instead: dict[str, set[str]] = {}
    for unit in units:
        removed[unit] = names - _cut(without_units(step, [unit]), micro_batch)
        skip = skips(step, structure[unit])
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
    together = names - _cut(without_units(step, units), micro_batch)
    if together != frozenset[str]().union(*removed.values()):
        return None
    return _Absent(removed, {name: tuple(sorted(follows)) for name, follows in instead.items()})


def _cut(step: Trace, micro_batch: int | None) -> frozenset[str]:
    return frozenset(op.name for op in (step if micro_batch is None else micro_batched(step, micro_batch)).ops)


# -- what each op may be


class _Options:
    """The variants of every op, and the op that each stands for."""

    def __init__(
        self, whole: Trace, step: Trace, units: Sequence[str], parts: Sequence[int], hardware: Hardware
    ) -> None:
        self.whole = whole
        self.hardware = hardware
        self.fusion: FusionPlan = plan_fusion(whole, hardware)
        self.program = map_step(whole, hardware)
        self._engines: dict[str, tuple[int, Engine]] = {e.name: (i, e) for i, e in enumerate(self.program.engines)}
        self._pools: dict[str, tuple[int, Pool]] = {p.name: (i, p) for i, p in enumerate(self.program.pools)}
        self.variants: dict[str, list[OpProgram]] = {
            op.name: [part] for op, part in zip(whole.ops, split(self.program), strict=True)
        }
        self.ops: dict[str, list[tuple[Trace, Op]]] = {op.name: [(whole, op)] for op in whole.ops}
        # Which variant an op is when so many samples run its unit; 0 if it stays as it is.
        self.at: dict[tuple[str, int], int] = {}
        # Op programs that were mapped already, by all that a mapping looks at.
        self._mapped: dict[object, OpProgram] = {}
        for n in parts:
            self._add(n, with_samples(step, dict.fromkeys(units, n)))

    def _add(self, n: int, trace: Trace) -> None:
        """The ops that differ from the whole ones when n samples run every unit."""
        fusion = plan_fusion(trace, self.hardware, base=self.fusion)
        stored, base = as_stored(trace, fusion), as_stored(self.whole, self.fusion)
        new: dict[object, list[Op]] = {}
        for op in trace.ops:
            if _facts(stored, op, fusion) != _facts(base, self.whole.op[op.name], self.fusion):
                key = (_facts(stored, op, fusion), _facts(base, self.whole.op[op.name], self.fusion))
                new.setdefault(key, []).append(op)
        unmapped = [ops[0] for key, ops in new.items() if key not in self._mapped]
        carried = _with_hosts(unmapped, trace, fusion)
        program = map_step(trace, self.hardware, base=self.whole, ops=carried)
        mapped = dict(zip((op.name for op in carried), split(program), strict=True))
        for key, ops in new.items():
            if key not in self._mapped:
                self._mapped[key] = self._renumbered(mapped[ops[0].name], program)
            for op in ops:
                self.at[op.name, n] = len(self.variants[op.name])
                self.variants[op.name].append(self._mapped[key])
                self.ops[op.name].append((trace, op))

    def _renumbered(self, part: OpProgram, program: Program) -> OpProgram:
        """With the engines and pools of the family, by name."""
        engine = [self._engines.setdefault(e.name, (len(self._engines), e))[0] for e in program.engines]
        pool = [self._pools.setdefault(p.name, (len(self._pools), p))[0] for p in program.pools]

        def of(command: Command) -> Command:
            return replace(
                command,
                holds=tuple((engine[e], cycles) for e, cycles in command.holds),
                takes=tuple((pool[p], n) for p, n in command.takes),
                gives=tuple((pool[p], n) for p, n in command.gives),
            )

        return OpProgram(tuple(map(of, part.commands)), part.sequence)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return tuple(engine for _, engine in self._engines.values())

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(pool for _, pool in self._pools.values())


def _facts(trace: Trace, op: Op, fusion: FusionPlan) -> object:
    """All that the mapping of an op looks at, besides the hardware."""
    operands = [(t.shape, t.bits, t.format, t.role) for t in map(trace.tensor.__getitem__, (*op.reads, *op.writes))]
    same = [op.reads.index(name) for name in op.reads], [unpadded(trace.tensor[name], trace) for name in op.reads]
    moved = [fusion.reads_dram(op.name, t) for t in op.reads], [fusion.writes_dram(op.name, t) for t in op.writes]
    return repr((op.phase, op.nest, operands, same, trace.elements_read(op), trace.bits_read(op),
                 trace.elements_written(op), moved, op.name in fusion.hosts))  # fmt: skip


def _with_hosts(ops: Iterable[Op], trace: Trace, fusion: FusionPlan) -> list[Op]:
    """These ops and all that ride with them, in the order of the step."""
    names = {op.name for op in ops}
    riders = {host: rider for rider, host in fusion.hosts.items()}
    for links in (fusion.hosts, riders):
        for name in tuple(names):
            while (name := links.get(name, "")) and name not in names:
                names.add(name)
    return [op for op in trace.ops if op.name in names]


# -- the family


def _family(options: _Options, absent: _Absent, hardware: Hardware) -> Family:
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
    return Family(tuple(slots), options.engines, options.pools, options.program.ops, serial(hardware))


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
    family: Family, options: _Options, absent: _Absent, units: Sequence[str], samples: NDArray[np.int32],
    parts: Sequence[int], batch: int,
) -> Choices:  # fmt: skip
    """int16[iterations, slots]: the variant of every op in every iteration."""
    choice = np.zeros((len(samples), len(family.slots)), dtype=np.int16, order="F")
    gate = {op.name: op.gate.name for op in options.whole.ops if op.gate is not None and op.gate.unit == "block"}
    column = {unit: i for i, unit in enumerate(units)}
    gone: dict[str, list[str]] = {}
    for unit, removed in absent.removed.items():
        for name in removed:
            gone.setdefault(name, []).append(unit)
    for j, op in enumerate(options.whole.ops):
        unit = gate.get(op.name)
        if unit in column and any((op.name, n) in options.at for n in parts):
            variant = np.zeros(batch + 1, dtype=np.int16)
            for n in parts:
                variant[n] = options.at.get((op.name, n), 0)
            choice[:, j] = variant[samples[:, column[unit]]]
        for of in gone.get(op.name, ()):
            choice[samples[:, column[of]] == 0, j] = ABSENT
    return choice


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


def _summed(options: _Options, composed: Composed, iterations: int, hardware: Hardware) -> Part:
    counted: list[_Counted] = []
    ops: list[RunOp] = []
    for j, info in enumerate(options.program.ops):
        times = composed.occurrences[j]
        counts: dict[Action, int] = {}
        macs = bits = 0
        for n, part, (trace, op) in zip(times, options.variants[info.name], options.ops[info.name], strict=True):
            macs += n * op.macs
            bits += n * bit_operations_of(trace, op)
            for action, count in part.counts.items():
                counts[action] = counts.get(action, 0) + n * count
        frontier = sum(composed.frontier_cycles[j])
        if sum(times):
            counted.append(_Counted(info, frontier, dict(sorted(counts.items()))))
            ops.append(RunOp(info.name, info.layer, info.phase, info.kind, sum(times), macs, bits, frontier))
    cycles = int(composed.cycles.sum())
    return Part(price(_Step(cycles, tuple(counted)), hardware), tuple(ops))
