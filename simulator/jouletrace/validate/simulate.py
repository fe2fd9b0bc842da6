"""From rows to simulated values: every replay that several rows share is done once.

A simulated value depends on the build, the workload and the selector of a row. What was measured is not looked at here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from jouletrace.engine.compiled import simulate as run_compiled
from jouletrace.engine.events import simulate as run_events
from jouletrace.errors import JouletraceError, UsageError
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import SCOPES, Breakdown, Row, Scope
from jouletrace.ledger.price import price
from jouletrace.mapping.memory_plan import plan_memory
from jouletrace.mapping.step import map_step
from jouletrace.replay.run import simulate_run
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.trace.activities import training_run
from jouletrace.trace.counting import bit_operations, bit_operations_of, macs
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Op, Trace
from jouletrace.validate.load import Entry
from jouletrace.validate.measurements import Build, Override, Reference, Workload
from jouletrace.validate.quantities import Part, Simulated, quantity, unit_factor
from jouletrace.validate.workloads import below, selected, step

__all__ = ["Case", "Simulation", "cases_of", "simulate_all", "simulate_case", "simulated_value"]

# A simulation, or the sentences about why there is none.
Simulation = Simulated | tuple[str, ...]
# Fewer cases are done before another process has started.
_FEW = 4
# Called with the replays done, all of them, and the name of one.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Case:
    """One thing to simulate: everything of a row but what was measured."""

    folder: str
    build: Build | None
    overrides: tuple[Override, ...]
    workload: Workload
    strategy: str | None
    iterations: int | None
    batch: int | None
    layer: tuple[str, ...]
    phase: tuple[str, ...]
    ops: tuple[str, ...]
    replayed: bool

    @cached_property
    def key(self) -> str:
        """Equal for cases that simulate the same, wherever they stand."""
        build, workload = self.build, self.workload
        files = (build is not None and _is_file(build.hardware)) or (workload.trace or "").endswith((".jsonl", ".gz"))
        settings = [override.setting for override in self.settings]
        layers = [workload.names.get(name, name) for name in self.layer]
        return json.dumps([
            self.folder if files else "", self.hardware, settings,
            workload.model_dump(mode="json", exclude={"note", "names"}),
            self.strategy, self.iterations, self.batch, layers, self.phase, self.ops, self.replayed,
        ])  # fmt: skip

    @property
    def hardware(self) -> str | None:
        """What the build names; None for what is only counted."""
        return None if self.build is None else self.build.hardware

    @property
    def everything(self) -> bool:
        """Whether nothing was selected."""
        return not (self.layer or self.phase or self.ops)

    @property
    def settings(self) -> tuple[Override, ...]:
        """All overrides, those of the row after those of its build."""
        return (*(() if self.build is None else self.build.set), *self.overrides)

    def __str__(self) -> str:
        where = [*self.layer, *self.phase, *([self.strategy] if self.strategy else [])]
        return " ".join([self.workload.trace or "layers", *where])


def cases_of(entry: Entry) -> tuple[Case, ...]:
    """The case of a row, and that of what it is set against."""
    row = entry.row
    replayed = quantity(row.quantity).replayed
    if replayed and row.build is None:
        raise UsageError(f"{row.quantity} needs a build; name one of builds")
    case = Case(
        str(entry.folder), entry.build if replayed else None, row.set if replayed else (), entry.workload, row.strategy,
        row.iterations, row.batch, row.layer, row.phase, row.ops, replayed,
    )  # fmt: skip
    if replayed and row.iterations is not None and not case.everything:
        raise UsageError("is of a whole training; leave out iterations, or layer, phase and ops")
    cases = (case,) if row.against is None else (case, _against(entry, case, row.against))
    for each in cases:
        if each.workload.layers and (each.strategy is not None or each.iterations is not None):
            raise UsageError("a list of layers is no training step; name a trace to apply a strategy or to train")
    return cases


def _against(entry: Entry, case: Case, other: Reference) -> Case:
    """The case that a row is set against."""
    file = entry.file
    return replace(
        case,
        build=file.builds[other.build] if case.replayed and other.build is not None else case.build,
        overrides=(other.set if other.set is not None else case.overrides) if case.replayed else (),
        workload=file.workloads[other.workload] if other.workload is not None else case.workload,
        strategy=other.strategy,
        batch=other.batch or case.batch,
    )


def simulated_value(entry: Entry, simulated: Sequence[Simulated]) -> Fraction:
    """What the row's cases give, in the row's unit.

    Raises :class:`UsageError` for units and components that there are not.
    """
    row = entry.row
    what = quantity(row.quantity)
    factor = unit_factor(row.quantity, row.unit, relative=row.relation is not None)
    values: list[Fraction] = []
    for each in simulated:
        _check_energies(entry, each)
        divisor = each.per(row.per)
        if not divisor:
            raise UsageError(f"nothing is multiplied here, so that {row.quantity} per {row.per} has no value")
        values.append(what.of(each, row.scope, row.components) / divisor)
    if row.relation is None:
        return values[0] / factor
    after, before = values
    if not before:
        raise UsageError(f"what the row is set against has no {row.quantity}")
    ratio = after / before
    return {"saving": 1 - ratio, "change": ratio - 1, "ratio": ratio}[row.relation] / factor


def _check_energies(entry: Entry, simulated: Simulated) -> None:
    """Joules and multiples of something do not compare; shares of either do."""
    row, unit = entry.row, simulated.normalised_to
    if unit is not None and row.relation is None and row.quantity in ("energy", "power"):
        raise UsageError(f"energies of this hardware are multiples of {unit}, not joules; "
                         "normalised_energy can be compared")  # fmt: skip
    if unit is None and row.quantity == "normalised_energy":
        raise UsageError("energies of this hardware are joules, not multiples of a MAC; energy can be compared")


def simulate_all(
    cases: Sequence[Case], *, jobs: int = 1, progress: Progress | None = None
) -> Mapping[str, Simulation]:
    """Every distinct case once, by its key; in ``jobs`` processes, which changes no value."""
    distinct = sorted({case.key: case for case in cases}.values(), key=lambda case: (-_weight(case), str(case)))
    found: dict[str, Simulation] = {}
    for case, simulation in zip(distinct, _simulated(distinct, jobs), strict=True):
        found[case.key] = simulation
        if progress is not None:
            progress(len(found), len(distinct), str(case))
    return found


def _weight(case: Case) -> int:
    """Roughly how long a case takes; long ones go first, so that processes end together."""
    return case.replayed * (2 if case.iterations is not None else 1)


def _simulated(cases: Sequence[Case], jobs: int) -> Iterator[Simulation]:
    if jobs < 2 or len(cases) < _FEW:
        yield from map(simulate_case, cases)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(jobs, len(cases)), get_context("spawn")) as pool:
        yield from pool.map(simulate_case, cases)


def simulate_case(case: Case) -> Simulation:
    """One case; of an input that makes no sense, the sentences about it."""
    try:
        return _training(case) if case.iterations is not None else _step(case)
    except JouletraceError as error:
        return error.problems


def _step(case: Case) -> Simulated:
    trace = step(case.workload, Path(case.folder), case.batch)
    if case.strategy is not None:
        trace = apply(strategy(case.strategy), trace).value
    ops = _ops(case, trace)
    counted = Simulated(
        trace.header.batch, sum(op.macs for op in ops), sum(bit_operations_of(trace, op) for op in ops)
    )
    if not case.replayed:
        return counted
    hardware = _hardware(case)
    if case.everything and (size := _micro_batch(case, trace, hardware)) is not None:
        trace = micro_batched(trace, size)
        ops = trace.ops
    plan_memory(_part(trace, ops), hardware)
    program = map_step(trace, hardware, ops=None if case.everything else ops)
    engine = run_compiled if program.port.arbitration == "program_order" else run_events
    counts = engine(program)
    busy = sum(op.busy.get("array", 0) for op in counts.ops)
    return replace(_priced(counted, price(counts, hardware), hardware), array_cycles=busy)


def _ops(case: Case, trace: Trace) -> tuple[Op, ...]:
    """What is selected of a step."""
    return trace.ops if case.everything else selected(trace, case.workload, case.layer, case.phase, case.ops)


def _training(case: Case) -> Simulated:
    assert case.iterations is not None
    trace = step(case.workload, Path(case.folder), case.batch)
    run = training_run(trace, case.iterations)
    if case.strategy is not None:
        run = apply(strategy(case.strategy), run).value
    part = replace(run, steps=tuple(replace(each, ops=_ops(case, each)) for each in run.steps))
    counted = Simulated(case.iterations * trace.header.batch, macs(part), bit_operations(part))
    if not case.replayed:
        return counted
    hardware = _hardware(case)
    size = next((n for each in run.steps if (n := _micro_batch(case, each, hardware)) is not None), None)
    result = simulate_run(run, hardware, micro_batch=size)
    return _priced(counted, result.breakdown, hardware)


def _hardware(case: Case) -> Hardware:
    assert case.build is not None
    name = case.build.hardware
    place = below(Path(case.folder), name) if _is_file(name) else name
    return load_hardware(place, [override.setting for override in case.settings])


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _micro_batch(case: Case, trace: Trace, hardware: Hardware) -> int | None:
    """The size that the workload states, where the whole batch does not fit."""
    size = case.workload.micro_batch
    if size is None or not plan_memory(trace, hardware, allow_overflow=True).overflow_bytes:
        return None
    return size


def _part(trace: Trace, ops: tuple[Op, ...]) -> Trace:
    touched = {name for op in ops for name in (*op.reads, *op.writes)}
    return replace(trace, ops=ops, tensors=tuple(t for t in trace.tensors if t.name in touched))


def _priced(counted: Simulated, breakdown: Breakdown, hardware: Hardware) -> Simulated:
    """With cycles, and counts and energies by component and action."""
    parts: dict[tuple[str, str], Part] = {}
    for row in breakdown.rows:
        key = (row.component, row.action)
        before = parts.get(key)
        parts[key] = Part(
            *key, _scope(row), row.count + (before.count if before else 0), _access_bits(row.component, hardware),
            row.energy.energy_aj + (before.energy_aj if before else 0),
        )  # fmt: skip
    return replace(
        counted, cycles=breakdown.cycles, clock_hz=breakdown.clock_hz, parts=tuple(parts.values()),
        normalised_to=hardware.energy.array.normalised_to,
    )  # fmt: skip


def _scope(row: Row) -> Scope:
    """The narrowest that holds the row's component."""
    return next(scope for scope in SCOPES if row.within(scope))


def _access_bits(component: str, hardware: Hardware) -> int:
    buffer = hardware.buffers.get(component.removeprefix("buffer."))
    return buffer.word_bits if buffer is not None else 8 if component == "dram" else 0
