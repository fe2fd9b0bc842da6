"""From a trace and a hardware to a result: memory plan, mapping, engine, ledger, in this order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jouletrace.engine import compiled, events
from jouletrace.engine.counts import Counts
from jouletrace.errors import ResultError, UsageError, did_you_mean
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.load import Assumption, assumptions, digest, hardware_from_resolved, resolved
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.price import price
from jouletrace.ledger.tally import Tally
from jouletrace.mapping.memory_plan import MemoryPlan, plan_memory
from jouletrace.mapping.program import Program
from jouletrace.mapping.remembered import remembered
from jouletrace.mapping.step import map_step, select
from jouletrace.result.model import Deferred, Execution, OpResult, Options, Result, TraceInput
from jouletrace.trace.io import dump, list_traces, load_trace, parse_trace
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Trace
from jouletrace.version import MODEL_VERSION, __version__

__all__ = ["Replayed", "priced", "replayed", "reproduce", "simulate"]

Progress = Callable[[int, int], None]
_ENGINES = {"events": events.simulate, "compiled": compiled.simulate}
# The fastest engine that can execute the step.
AUTO = "auto"


def simulate(
    trace: Trace,
    hardware: Hardware,
    *,
    engine: str = AUTO,
    only: str | None = None,
    micro_batch: int | None = None,
    allow_dram_overflow: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Replays a training step, or a part of it, on an accelerator, and prices every access.

    ``only`` is a ``LAYER`` or ``LAYER:PHASE`` that is replayed alone. ``micro_batch`` samples at a time go
    forward and backward before the one update. ``progress`` is called with the commands done and in all.

    ``engine`` is ``auto``, ``events`` or ``compiled``. All find the same cycles; ``auto`` is the compiled one, or the
    events engine where the DRAM port decides at run time whose turn it is.

    Raises :class:`MappingError` for a step that does not fit its board or its buffers, :class:`EnergyError` for an
    action without a price, :class:`UsageError` for a layer, an engine or a micro-batch that makes no sense.

    >>> import jouletrace
    >>> trace = jouletrace.load_trace("resnet20-cifar10-b32")
    >>> result = simulate(trace, jouletrace.load_hardware("eftrain-zcu102"), only="conv1:forward")
    >>> result.macs == 32 * 32 * 32 * 16 * 27
    True
    """
    options = Options(engine, only, micro_batch, allow_dram_overflow)
    return priced(replayed(trace, hardware, options, progress), hardware)


@dataclass(frozen=True, eq=False)
class Replayed:
    """A step that has been mapped and executed, before anything is priced. Results at any prices share its ops."""

    trace: Trace
    options: Options
    micro_batches: int
    warnings: tuple[str, ...]
    memory: MemoryPlan
    program: Program
    counts: Counts

    @cached_property
    def ops(self) -> tuple[OpResult, ...]:
        return _ops(self.counts)

    @cached_property
    def tally(self) -> Tally:
        return Tally.of(self.counts)


def replayed(trace: Trace, hardware: Hardware, options: Options, progress: Progress | None = None) -> Replayed:
    """A step up to its cycles and counts. Raises what :func:`simulate` raises, but for actions without a price."""
    engine, only, micro_batch = options.engine, options.only, options.micro_batch
    if engine not in (AUTO, *_ENGINES):
        known = [AUTO, *_ENGINES]
        raise UsageError(f"there is no engine {engine!r}{did_you_mean(engine, known)}; there is {', '.join(known)}")
    step = trace if micro_batch is None else micro_batched(trace, micro_batch)
    memory = plan_memory(_part(step, only), hardware, allow_overflow=options.allow_dram_overflow)
    program = map_step(step, hardware, only=only)
    dynamic = program.port.arbitration == "round_robin"
    counts = _ENGINES[("events" if dynamic else "compiled") if engine == AUTO else engine](program, progress=progress)
    micro_batches = 1 if micro_batch is None else trace.header.batch // micro_batch
    return Replayed(trace, options, micro_batches, step.header.warnings, memory, program, counts)


def priced(step: Replayed, hardware: Hardware) -> Result:
    """The result of a step on the hardware that it was replayed on, or on one that differs from it in prices alone.

    Raises :class:`EnergyError` for an action without a price.
    """
    counts, program = step.counts, step.program
    breakdown = price(step.tally, hardware)
    prices = price_list(hardware)
    return Result(
        version=__version__,
        model_version=MODEL_VERSION,
        trace=_trace_input(step.trace),
        hardware=Deferred(lambda: resolved(hardware)),
        hardware_digest=Deferred(lambda: digest(hardware)),
        options=step.options,
        engine=counts.engine,
        port_model=hardware.dram.port,
        events=counts.events,
        commands=len(program),
        micro_batches=step.micro_batches,
        lanes=hardware.array.lanes,
        peak_memory_bytes=step.memory.peak_bytes,
        dram_capacity_bytes=step.memory.capacity_bytes,
        ops=Deferred(lambda: step.ops),
        breakdown=breakdown,
        prices={key: prices[key] for key in sorted(breakdown.counts)},
        assumed=Deferred(lambda: _weak(hardware, user=False)),
        user=Deferred(lambda: _weak(hardware, user=True)),
        warnings=step.warnings,
        execution=Execution(program.on(hardware.name, program.port), counts),
    )


def _part(trace: Trace, only: str | None) -> Trace:
    """The ops that are replayed, with the tensors that they touch: what has to fit into memory."""
    if only is None:
        return trace
    ops = select(trace, only)
    touched = {name for op in ops for name in (*op.reads, *op.writes)}
    return replace(trace, ops=ops, tensors=tuple(t for t in trace.tensors if t.name in touched))


def _weak(hardware: Hardware, *, user: bool) -> tuple[Assumption, ...]:
    return tuple(sorted(each for each in assumptions(hardware) if (each.certainty == "user") == user))


def _ops(counts: Counts) -> tuple[OpResult, ...]:
    return tuple(
        OpResult(
            c.op.name, c.op.layer, c.op.phase, c.op.kind, c.start_cycle, c.end_cycle, c.frontier_cycles, c.op.macs,
            c.op.tiles, c.bound_by, {kind: cycles for kind, cycles in c.busy.items() if cycles},
        )
        for c in counts.ops
    )  # fmt: skip


@remembered(4)
def _trace_input(trace: Trace) -> TraceInput:
    """Name and digest, and the lines of the trace unless it is a shipped one, so that a result is complete."""
    data = dump(trace)
    name, sha256 = trace.header.name, hashlib.sha256(data).hexdigest()
    shipped = name in list_traces() and (load_trace(name) == trace)
    lines: tuple[Mapping[str, Any], ...] | None = None
    if not shipped:
        lines = tuple(json.loads(line) for line in data.splitlines())
    return TraceInput(name, sha256, trace.header.batch, lines)


def reproduce(result: Result, *, progress: Progress | None = None) -> Result:
    """Replays what made a result, from what the result itself holds.

    Raises :class:`ResultError` if its model, or the shipped trace that it names, is another one by now.
    """
    if result.model_version != MODEL_VERSION:
        raise ResultError(
            f"the result was made by jouletrace {result.version} with model version {result.model_version}; this "
            f"is {__version__} with model version {MODEL_VERSION}, whose numbers differ; install that release"
        )
    options = result.options
    return simulate(
        _stored_trace(result.trace), hardware_from_resolved(result.hardware, "the result's hardware"),
        engine=options.engine, only=options.only, micro_batch=options.micro_batch,
        allow_dram_overflow=options.allow_dram_overflow, progress=progress,
    )  # fmt: skip


def _stored_trace(stored: TraceInput) -> Trace:
    if stored.lines is None:
        trace = load_trace(stored.name)
    else:
        lines = (json.dumps(line, sort_keys=True, separators=(",", ":")) for line in stored.lines)
        trace = parse_trace("".join(f"{line}\n" for line in lines).encode(), "the result's trace")
    found = hashlib.sha256(dump(trace)).hexdigest()
    if found != stored.digest:
        raise ResultError(
            f"the trace {stored.name!r} has the digest {found[:12]}…, and the result was made from "
            f"{stored.digest[:12]}…; install the release that made the result"
        )
    return trace
