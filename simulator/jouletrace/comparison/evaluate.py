"""Evaluating a comparison: strategies applied, steps and runs replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jouletrace.comparison.model import Column, Comparison
from jouletrace.errors import UsageError
from jouletrace.hardware.load import digest
from jouletrace.hardware.spec import Hardware
from jouletrace.replay.run import planned, simulate_run
from jouletrace.result.run import RunResult
from jouletrace.strategies.base import Strategy, apply
from jouletrace.strategies.pipeline import Pipeline
from jouletrace.trace.activities import training_run
from jouletrace.trace.io import digest as trace_digest
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run

__all__ = ["compare"]

BASELINE = "baseline"
# Called with what is being done, the columns done, and the columns in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Setting:
    """What all columns share."""

    trace: Trace
    run: Run | None
    seeds: Sequence[int]
    micro_batch: int | None
    allow_dram_overflow: bool


def compare(
    trace: Trace,
    hardware: Hardware,
    strategies: Sequence[Strategy],
    *,
    on: Mapping[int, Hardware] | None = None,
    labels: Mapping[int, str] | None = None,
    iterations: int | None = 64_000,
    run: Run | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    micro_batch: int | None = None,
    allow_dram_overflow: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """A baseline and strategies side by side, for one step and for a whole training.

    ``on`` gives some strategies (by position) a hardware build of their own, ``labels`` a name. The training is
    ``run``, by default ``iterations`` of the step with loading and augmentation; without iterations, steps only. Where
    decisions are drawn, each of ``seeds`` is a training of its own. Steps that do not fit a board in one piece are cut
    into micro-batches of ``micro_batch``. If the last strategy is a combination, the way there from the baseline is
    evaluated too: each prefix on the baseline's hardware, until a member sets widths, and then on the combination's.

    Raises what :func:`jouletrace.strategies.base.apply` and :func:`jouletrace.replay.run.simulate_run` raise.
    """
    if not seeds:
        raise UsageError("a comparison needs at least one seed")
    builds = dict(on or {})
    names = dict(labels or {})
    base = run if run is not None else (None if iterations is None else training_run(trace, iterations))
    setting = _Setting(trace, base, seeds, micro_batch, allow_dram_overflow)
    wanted = [(names.get(i, str(s)), s, builds.get(i, hardware)) for i, s in enumerate(strategies)]
    steps = _prefixes(strategies[-1], hardware, wanted[-1][2]) if strategies else []
    total = 1 + len(wanted) + len(steps)
    columns: list[Column] = []
    for label, strategy, build in [(BASELINE, None, hardware), *wanted, *steps]:
        if progress is not None:
            progress(label, len(columns), total)
        same = (str(strategy or ""), digest(build))
        known = next((c for c in columns if (c.strategy, c.step.hardware_digest) == same), None)
        columns.append(_column(label, strategy, build, setting) if known is None else replace(known, label=label))
    if progress is not None:
        progress("", total, total)
    shown = 1 + len(wanted)
    return Comparison(
        trace.header.name, trace_digest(trace), trace.header.batch,
        base.iterations if base is not None else 0, columns[0],
        tuple(columns[1:shown]), tuple(columns[shown:]),
    )  # fmt: skip


def _prefixes(strategy: Strategy, before: Hardware, after: Hardware) -> list[tuple[str, Strategy, Hardware]]:
    """The way from a baseline to a combination: (what is added, the prefix, its hardware)."""
    if len(strategy.parts) < 2:
        return []
    found: list[tuple[str, Strategy, Hardware]] = []
    build = before
    for i, part in enumerate(strategy.parts, 1):
        build = after if "widths" in part.claims or i == len(strategy.parts) else build
        found.append((f"+ {part.name}", Pipeline.of(*strategy.parts[:i]) if i > 1 else part, build))
    return found


def _column(label: str, strategy: Strategy | None, hardware: Hardware, setting: _Setting) -> Column:
    one = Run(setting.trace.header.name, (setting.trace,), np.zeros(1, dtype=np.int32))
    if strategy is None:
        step = _replay(one, hardware, setting)
        trained = () if setting.run is None else (_replay(setting.run, hardware, setting),)
        return Column(label, "", hardware.name, step, trained, _names(setting))
    rewritten = apply(strategy, setting.trace, seed=setting.seeds[0])
    step = _replay(replace(one, steps=(rewritten.value,), rewrites=rewritten.value.header.rewrites), hardware, setting)
    matches, left = rewritten.matches, rewritten.left
    runs: list[RunResult] = []
    if setting.run is not None:
        drawn = any(part.random for part in strategy.parts)
        for seed in setting.seeds if drawn else setting.seeds[:1]:
            whole = apply(strategy, setting.run, seed=seed)
            runs.append(_replay(whole.value, hardware, setting))
            matches, left = (whole.matches, whole.left) if seed == setting.seeds[0] else (matches, left)
    return Column(
        label, str(strategy), hardware.name, step, tuple(runs), _names(setting), len(matches), left,
        tuple((part.name, row) for part in strategy.parts for row in part.published),
    )  # fmt: skip


def _names(setting: _Setting) -> frozenset[str]:
    traces = [setting.trace]
    if setting.run is not None:
        traces += [*setting.run.steps, *(activity.step for activity in setting.run.activities)]
    return frozenset(op.name for trace in traces for op in trace.ops)


def _replay(run: Run, hardware: Hardware, setting: _Setting) -> RunResult:
    """Whole batches where they fit; else micro-batches, if a size was given."""
    fits = all(not planned(step, hardware, None, True)[1].overflow_bytes for step in run.steps)
    return simulate_run(
        run, hardware, micro_batch=None if fits else setting.micro_batch,
        allow_dram_overflow=setting.allow_dram_overflow,
    )  # fmt: skip
