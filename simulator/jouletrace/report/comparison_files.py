"""A comparison as files: canonical JSON with every figure, and tidy CSV of the energies.

docs/compare.md describes both.
"""

from __future__ import annotations

import csv
import json
from typing import Any, TextIO

from jouletrace.comparison.model import Column, Comparison
from jouletrace.ledger.breakdown import SCOPES, Energy, Scope
from jouletrace.report.comparison_figures import IDLE, reasons, rows_published, saving_over_seeds, way
from jouletrace.result.run import RunResult
from jouletrace.trace.model import Rewrite
from jouletrace.version import MODEL_VERSION, __version__

__all__ = ["FORMAT", "VERSION", "export_comparison_csv", "export_comparison_json"]

FORMAT = "jouletrace-comparison"
VERSION = "1.0"
CSV_FIELDS = ("label", "strategy", "hardware", "of", "seed", "component", "phase", "energy_pj")


def export_comparison_json(file: TextIO, comparison: Comparison) -> None:
    """Writes the comparison file: sorted keys, nothing volatile, so that equal comparisons give equal bytes."""
    json.dump(_document(comparison), file, sort_keys=True, indent=1, allow_nan=False)
    file.write("\n")


def export_comparison_csv(file: TextIO, comparison: Comparison) -> None:
    """Writes a row per column, step or training (of every seed), component and phase; energies in pJ."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for column in comparison.all:
        for of, result in (("step", column.step), *(("run", run) for run in column.runs)):
            seed = _seed(result)
            for (component, phase), energy in _parts(result).items():
                writer.writerow((
                    column.label, column.strategy, column.hardware, of, "" if seed is None else seed, component, phase,
                    energy.energy_aj / 10**6,
                ))  # fmt: skip


def _document(comparison: Comparison) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "producer": {"version": __version__, "model_version": MODEL_VERSION},
        "trace": {"name": comparison.trace, "digest": comparison.trace_digest, "batch": comparison.batch},
        "iterations": comparison.iterations,
        "columns": [_column(comparison, column) for column in comparison.all],
        "waterfall": [
            {"label": label, "strategy": column.strategy, "hardware": column.hardware,
             "scopes": _scopes(column.figure(run=comparison.has_runs))}
            for label, column in (way(comparison) if comparison.waterfall else ())
        ],
        "published": [
            {"strategy": name, "quantity": row.quantity, "value": row.value, "unit": row.unit, "setting": row.setting,
             "certainty": row.certainty, "source": row.source}
            for name, row in rows_published(comparison)
        ],
        "assumed": [
            {"hardware": hardware, **assumption._asdict()}
            for hardware, result in {column.hardware: column.step for column in comparison.all}.items()
            for assumption in result.assumed
        ],
    }  # fmt: skip


def _column(comparison: Comparison, column: Column) -> dict[str, Any]:
    data: dict[str, Any] = {
        "label": column.label,
        "strategy": column.strategy,
        "hardware": column.hardware,
        "hardware_digest": column.step.hardware_digest,
        "step": _figure(column.step) | _against(comparison, column, run=False),
        "runs": [_figure(run) for run in column.runs],
        "matches": column.matches,
        "left": [{"reason": reason, "places": places} for reason, places in reasons(column).items()],
    }
    if comparison.has_runs:
        data["run"] = _against(comparison, column, run=True)
    return data


def _against(comparison: Comparison, column: Column, *, run: bool) -> dict[str, Any]:
    """A step, or the training of the first seed (its savings: of all seeds), beside the baseline's."""
    macs, skipped, added = comparison.work(column, run=run)
    savings = {
        scope: (
            _spread(comparison, column, scope) if run else {"mean": comparison.saving(column, scope, run=False)}
        )
        for scope in SCOPES
    }  # fmt: skip
    idle = {f"{float(share):g}": comparison.saving(column, idle=share, run=run) for share in IDLE}
    work = {"executed": str(macs), "skipped": str(skipped), "added": str(added)}
    return {"saving": savings, "saving_by_idle_power": idle, "work_macs": work}


def _spread(comparison: Comparison, column: Column, scope: Scope) -> dict[str, Any]:
    share = saving_over_seeds(comparison, column, scope)
    return {"mean": share.mean, "half_width": share.half_width, "seeds": share.seeds}


def _figure(result: RunResult) -> dict[str, Any]:
    return {
        "seed": _seed(result),
        "engine": result.engine,
        "iterations": result.iterations,
        "executed": result.executed,
        "micro_batch": result.micro_batch,
        "cycles": result.cycles,
        "seconds": result.seconds,
        "macs": str(result.macs),
        "bit_operations": str(result.bit_operations),
        "dram_bytes": result.dram_bytes,
        "peak_memory_bytes": result.peak_memory_bytes,
        "dram_capacity_bytes": result.dram_capacity_bytes,
        "dram_overflow": result.dram_overflow,
        "scopes": _scopes(result),
        "parts": [
            {"component": component, "phase": phase, **_exact(energy)}
            for (component, phase), energy in _parts(result).items()
        ],
        "rewrites": [_rewrite(rewrite) for rewrite in result.rewrites],
        "warnings": list(result.warnings),
    }


def _rewrite(rewrite: Rewrite) -> dict[str, Any]:
    return {
        "strategy": rewrite.strategy, "parameters": dict(rewrite.parameters), "seed": rewrite.seed,
        "input_digest": rewrite.input_digest,
    }  # fmt: skip


def _seed(result: RunResult) -> int | None:
    """The seed that decisions were drawn from; None where nothing was drawn."""
    return next((rewrite.seed for rewrite in result.rewrites if rewrite.seed is not None), None)


def _scopes(result: RunResult) -> dict[str, Any]:
    return {scope: _exact(result.energy(scope)) for scope in SCOPES}


def _parts(result: RunResult) -> dict[tuple[str, str], Energy]:
    """Energy by component and phase, in a fixed order."""
    found: dict[tuple[str, str], Energy] = {}
    for row in result.breakdown.rows:
        key = (row.component, row.phase)
        found[key] = found.get(key, Energy()) + row.energy
    return dict(sorted(found.items()))


def _exact(energy: Energy) -> dict[str, str]:
    return {"energy_aj": str(energy.energy_aj), "low_aj": str(energy.low_aj), "high_aj": str(energy.high_aj)}
