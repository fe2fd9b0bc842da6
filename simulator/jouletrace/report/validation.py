"""Measured beside simulated values, on a terminal: a table per system, then what it comes to."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.report.terminal import heading, print_page, table
from jouletrace.validate.measurements import Row
from jouletrace.validate.outcome import Outcome, Summary, Validation

__all__ = [
    "error_text", "number", "overrides", "print_validation", "quantity_text", "settings_text", "share", "summary_text",
    "tolerance_text", "validation_page", "verdict_line",
]  # fmt: skip

_STYLES = {"ok": "green", "miss": "bold red", "shown": "dim"}


def print_validation(validation: Validation) -> None:
    """Prints :func:`validation_page`."""
    print_page(validation_page(validation))


def validation_page(validation: Validation) -> Iterator[RenderableType]:
    """Every row with its error and verdict, every override, and per system and quantity mean and worst error."""
    for system in validation.systems:
        outcomes = validation.of(system)
        made = table("row", "quantity", ">measured", ">simulated", ">error", ">tolerance", "verdict")
        for outcome in outcomes:
            row = outcome.entry.row
            made.add_row(
                row.id, quantity_text(row), number(row.value), number(outcome.simulated), error_text(outcome),
                tolerance_text(row), Text(outcome.verdict, style=_STYLES[outcome.verdict]),
            )  # fmt: skip
        kinds = ", ".join(dict.fromkeys(outcome.entry.row.kind for outcome in outcomes))
        yield heading(system, kinds)
        yield Padding(made, (0, 0, 0, 2))
        for line in overrides(outcomes):
            yield Text(f"  set: {line}", style="dim")
        for line in dict.fromkeys(f"{o.entry.row.id}: {o.entry.row.shown}" for o in outcomes if o.entry.row.shown):
            yield Text(f"  shown only: {line}", style="dim")
    if validation.outcomes:
        made = table("system", "errors of", "quantity", "rows", ">mean", ">worst", ">rank")
        for summary in validation.summaries:
            made.add_row(*summary_text(summary))
        yield heading("Mean and worst error", "relative, without sign; rank: Spearman's correlation")
        yield Padding(made, (0, 0, 0, 2))
    yield Text(f"\n{verdict_line(validation)}", style="bold")


def verdict_line(validation: Validation) -> str:
    """What everything comes to, in one line."""
    gating = sum(outcome.entry.row.gates for outcome in validation.outcomes)
    parts = [f"{gating - len(validation.misses)} of {gating} gating rows are within their tolerance",
             f"{len(validation.outcomes) - gating} are shown", f"{validation.replays} replays and counts"]  # fmt: skip
    if validation.problems:
        parts.append(f"{len(validation.problems)} problems with the input")
    return "; ".join(parts)


def quantity_text(row: Row) -> str:
    """A row's quantity with its unit, and what it is of.

    An energy or power names its scope, or the components that it is of.
    """
    words = [row.quantity]
    if row.quantity in ("energy", "power"):
        words.append(f"({', '.join(row.components) or row.scope})")
    elif row.components:
        words.append(f"({', '.join(row.components)})")
    if row.per is not None:
        words.append(f"per {row.per.replace('_', ' ')}")
    if row.relation is not None:
        words.append(row.relation)
    return f"{' '.join(words)}, {row.unit}"


def number(value: float) -> str:
    """
    >>> number(11419835), number(46.99), number(0.000123456)
    ('11,419,835', '46.99', '0.0001235')
    """
    if abs(value) < 1e15 and (value == int(value) or abs(value) >= 1e4):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def error_text(outcome: Outcome) -> str:
    """The error in the terms of the tolerance: relative, or in points."""
    row = outcome.entry.row
    if row.allowed[1] or (row.unit == "%" and row.relation is not None and row.tolerance is None):
        return f"{outcome.simulated - row.value:+.2f} points"
    return f"{outcome.error:+.2%}"


def tolerance_text(row: Row) -> str:
    """The tolerance, and on which side a bound holds."""
    side = {None: "", "above": "at least", "below": "at most"}[row.bound]
    return " ".join(filter(None, (side, row.tolerance or ("" if row.bound else "-"))))


def summary_text(summary: Summary) -> tuple[str, ...]:
    """Cells of a summary: system, group, quantity, rows, mean, worst, rank."""
    rows = f"{summary.rows} {'gating' if summary.gating else 'shown'}"
    rows += f", {summary.misses} missed" if summary.misses else ""
    rank = "" if summary.rank is None else f"{summary.rank:.2f}"
    return summary.system, summary.group, summary.quantity, rows, share(summary.mean), share(summary.worst), rank


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def overrides(outcomes: tuple[Outcome, ...]) -> list[str]:
    """Every value of a spec that a citation sets, with the place there, and the rows that it is set for."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        for case in outcome.cases:
            build = "" if case.build is None else case.build.hardware
            for override in case.settings:
                found.setdefault(f"{build}: {settings_text(override.setting)} ({override.where})", []).append(
                    outcome.entry.row.id
                )
    every = len({outcome.entry.row.id for outcome in outcomes})
    return [f"{line} for {'all rows' if len(set(ids)) == every else ', '.join(dict.fromkeys(ids))}"
            for line, ids in found.items()]  # fmt: skip


def settings_text(setting: str) -> str:
    """``path = value`` of an override."""
    path, _, value = setting.partition("=")
    return f"{path} = {value}"
