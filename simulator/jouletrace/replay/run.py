"""A whole training on an accelerator: every iteration replayed with its own decisions, and summed exactly.

Iterations with equal decisions cost the same, because a step begins and ends with all engines idle. Where decisions
differ from iteration to iteration, the step is mapped once and composed (:mod:`jouletrace.engine.compose`); the sum is
the same, to the last cycle and count, as if every iteration had been mapped and replayed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine.compiled import simulate as run_compiled
from jouletrace.engine.events import simulate as run_events
from jouletrace.errors import RewriteError
from jouletrace.hardware.load import assumptions, digest
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import Breakdown
from jouletrace.ledger.price import price
from jouletrace.mapping.memory_plan import MemoryPlan, plan_memory
from jouletrace.mapping.program import OpInfo
from jouletrace.mapping.remembered import remembered
from jouletrace.mapping.step import map_step
from jouletrace.replay.family import Part, compose_step
from jouletrace.result.run import RunOp, RunResult, merged
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run, unit_names

__all__ = ["planned", "simulate_run"]

Progress = Callable[[int, int], None]


def simulate_run(
    run: Run,
    hardware: Hardware,
    *,
    micro_batch: int | None = None,
    allow_dram_overflow: bool = False,
    compose: bool = True,
    progress: Progress | None = None,
) -> RunResult:
    """Replays a training, exact for the decisions that the run holds.

    ``micro_batch`` samples at a time go forward and backward before the one update. ``compose=False`` replays every
    distinct iteration alone, which is slow and gives the same result. ``progress`` is called with the iterations done
    and in all.

    Raises :class:`MappingError` for a step that does not fit its board, :class:`RewriteError` where some samples of a
    batch skip a unit and the batch is cut into micro-batches as well.
    """
    parts: list[Part] = []
    cycles = np.zeros(run.iterations, dtype=np.int64)
    peak = capacity = done = 0
    for which, named in enumerate(run.steps):
        chosen = np.flatnonzero(run.step_of == which)
        if not len(chosen):
            continue
        # Rewrites tell of the seed; without them, steps of different seeds are equal and replayed once.
        step = replace(named, header=replace(named.header, rewrites=()))
        whole, memory = planned(step, hardware, micro_batch, allow_dram_overflow)
        peak, capacity = max(peak, memory.peak_bytes), memory.capacity_bytes
        skips = _skips(run, step, chosen)
        if not skips.any():
            part = _times(_replayed(whole, hardware), len(chosen))
            cycles[chosen] = part.breakdown.cycles // len(chosen)
        elif micro_batch is not None and ((skips > 0) & (skips < run.batch)).any():
            raise RewriteError(
                f"{run.name}: some samples of a batch skip a unit, and micro-batches of {micro_batch} were asked for; "
                "let whole batches skip (granularity=per_batch), or choose hardware that holds the whole batch"
            )
        else:
            composed = compose_step(run, step, whole, chosen, hardware) if compose else None
            part, cycles[chosen] = composed or _one_by_one(run, step, chosen, hardware, micro_batch)
        parts.append(part)
        done += len(chosen)
        if progress is not None:
            progress(done, run.executed)
    for activity in run.activities:
        if activity.times:
            part = _times(_replayed(activity.step, hardware), activity.times)
            ops = tuple(replace(op, phase=activity.name) for op in part.ops)
            parts.append(Part(part.breakdown.in_phase(activity.name), ops))
    return RunResult(
        name=run.name,
        hardware=hardware.name,
        hardware_digest=digest(hardware),
        engine="compose" if compose else "compiled",
        iterations=run.iterations,
        executed=run.executed,
        batch=run.batch,
        micro_batch=micro_batch,
        iteration_cycles=cycles,
        breakdown=_sum(parts, hardware.clock_hz),
        ops=merged(op for part in parts for op in part.ops),
        peak_memory_bytes=peak,
        dram_capacity_bytes=capacity,
        rewrites=run.rewrites,
        assumed=tuple(sorted(assumptions(hardware))),
        warnings=tuple(dict.fromkeys((*run.warnings, *(w for step in run.steps for w in step.header.warnings)))),
    )


def _skips(run: Run, step: Trace, chosen: NDArray[np.int64]) -> NDArray[np.int32]:
    """Samples that did not run each unit of this step."""
    present = unit_names(step)
    columns = [i for i, unit in enumerate(run.units) if unit in present]
    return run.batch - run.samples[chosen][:, columns]


@remembered(16)
def planned(
    step: Trace, hardware: Hardware, micro_batch: int | None, allow_overflow: bool
) -> tuple[Trace, MemoryPlan]:
    """The step as it is executed, and what it needs of the DRAM.

    Raises what :func:`~jouletrace.mapping.memory_plan.plan_memory` and
    :func:`~jouletrace.trace.micro_batch.micro_batched` raise.
    """
    whole = step if micro_batch is None else micro_batched(step, micro_batch)
    return whole, plan_memory(whole, hardware, allow_overflow=allow_overflow)


@remembered(32)
def _replayed(step: Trace, hardware: Hardware, base: Trace | None = None) -> Part:
    """A step as it is, once."""
    program = map_step(step, hardware, base=base)
    engine = run_events if program.port.arbitration == "round_robin" else run_compiled
    counts = engine(program)
    ops = (_op(step, c.op, c.frontier_cycles) for c in counts.ops)
    return Part(price(counts, hardware), tuple(ops))


def _op(step: Trace, info: OpInfo, frontier_cycles: int) -> RunOp:
    bits = bit_operations_of(step, step.op[info.name])
    return RunOp(info.name, info.layer, info.phase, info.kind, 1, info.macs, bits, frontier_cycles)


def _times(part: Part, times: int) -> Part:
    """A part that is done so many times."""
    ops = (
        replace(op, times=times, macs=times * op.macs, bit_operations=times * op.bit_operations,
                frontier_cycles=times * op.frontier_cycles)
        for op in part.ops
    )  # fmt: skip
    return Part(part.breakdown.times(times), tuple(ops))


def _one_by_one(
    run: Run, step: Trace, chosen: NDArray[np.int64], hardware: Hardware, micro_batch: int | None
) -> tuple[Part, NDArray[np.int64]]:
    """Every distinct iteration of a step mapped and replayed alone; the reference for composing."""
    _, first, inverse = np.unique(run.samples[chosen], axis=0, return_index=True, return_inverse=True)
    times = np.bincount(inverse)
    whole = step if micro_batch is None else micro_batched(step, micro_batch)
    parts: list[Part] = []
    for i, n in zip(first.tolist(), times.tolist(), strict=True):
        trace = run.step(int(chosen[i]))
        assert trace is not None
        cut = trace if micro_batch is None else micro_batched(trace, micro_batch)
        parts.append(_times(_replayed(cut, hardware, whole), n))
    each = np.array([part.breakdown.cycles for part in parts], dtype=np.int64) // times
    ops = merged(op for part in parts for op in part.ops)
    return Part(_sum(parts, hardware.clock_hz), ops), each[inverse]


def _sum(parts: list[Part], clock_hz: int) -> Breakdown:
    """All parts, one after the other. Rows of one name and phase are merged."""
    total = Breakdown((), 0, clock_hz)
    for part in parts:
        total += part.breakdown
    return total
