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
from jouletrace.mapping.memory_plan import plan_memory
from jouletrace.mapping.program import OpInfo
from jouletrace.mapping.step import map_step
from jouletrace.replay.family import Part, compose_step
from jouletrace.result.run import RunOp, RunResult, merged
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run, unit_names

__all__ = ["simulate_run"]

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
    for which, step in enumerate(run.steps):
        chosen = np.flatnonzero(run.step_of == which)
        if not len(chosen):
            continue
        whole = step if micro_batch is None else micro_batched(step, micro_batch)
        memory = plan_memory(whole, hardware, allow_overflow=allow_dram_overflow)
        peak, capacity = max(peak, memory.peak_bytes), memory.capacity_bytes
        skips = _skips(run, step, chosen)
        if not skips.any():
            part = _replayed(whole, hardware, len(chosen))
            cycles[chosen] = part.breakdown.cycles // len(chosen)
        elif micro_batch is not None and ((skips > 0) & (skips < run.batch)).any():
            raise RewriteError(
                f"{run.name}: some samples of a batch skip a unit, and micro-batches of {micro_batch} were asked for; "
                "let whole batches skip (granularity=per_batch), or choose hardware that holds the whole batch"
            )
        else:
            composed = compose_step(run, step, chosen, hardware, micro_batch) if compose else None
            part, cycles[chosen] = composed or _one_by_one(run, step, chosen, hardware, micro_batch)
        parts.append(part)
        done += len(chosen)
        if progress is not None:
            progress(done, run.executed)
    for activity in run.activities:
        if activity.times:
            part = _replayed(activity.step, hardware, activity.times)
            rows = tuple(replace(row, phase=activity.name) for row in part.breakdown.rows)
            ops = tuple(replace(op, phase=activity.name) for op in part.ops)
            parts.append(Part(replace(part.breakdown, rows=rows), ops))
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


def _replayed(step: Trace, hardware: Hardware, times: int, base: Trace | None = None) -> Part:
    """A step as it is, ``times`` times."""
    program = map_step(step, hardware, base=base)
    engine = run_events if program.port.arbitration == "round_robin" else run_compiled
    counts = engine(program)
    ops = (_op(step, c.op, times, c.frontier_cycles) for c in counts.ops)
    return Part(price(counts, hardware).times(times), tuple(ops))


def _op(step: Trace, info: OpInfo, times: int, frontier_cycles: int) -> RunOp:
    bits = bit_operations_of(step, step.op[info.name])
    return RunOp(
        info.name, info.layer, info.phase, info.kind, times, times * info.macs, times * bits, times * frontier_cycles
    )  # fmt: skip


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
        parts.append(_replayed(trace if micro_batch is None else micro_batched(trace, micro_batch), hardware, n, whole))
    each = np.array([part.breakdown.cycles for part in parts], dtype=np.int64) // times
    ops = merged(op for part in parts for op in part.ops)
    return Part(_sum(parts, hardware.clock_hz), ops), each[inverse]


def _sum(parts: list[Part], clock_hz: int) -> Breakdown:
    """All parts, one after the other. Rows of one name and phase are merged."""
    total = Breakdown((), 0, clock_hz)
    for part in parts:
        total += part.breakdown
    return total
