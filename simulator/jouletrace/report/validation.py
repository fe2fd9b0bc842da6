"""Measured beside simulated values, on a terminal: a table per system, then what it comes to."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.report.terminal import heading, print_page, table
from jouletrace.validate.fits import Term
from jouletrace.validate.measurements import Row
from jouletrace.validate.outcome import Outcome, Summary, Validation

__all__ = [
    "MEASURED", "error_text", "fit_lines", "number", "overrides", "print_validation", "quantity_text", "summary_text",
    "tolerance_text", "validation_page", "verdict_line",
]  # fmt: skip

# Digits of what was measured: all that the file has.
MEASURED = 10
_STYLES = {"ok": "green", "miss": "bold red", "shown": "dim", "fitted": "dim"}


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
                row.id, quantity_text(row), number(row.value, MEASURED), number(outcome.simulated), error_text(outcome),
                tolerance_text(row), Text(outcome.verdict, style=_STYLES[outcome.verdict]),
            )  # fmt: skip
        kinds = ", ".join(dict.fromkeys(outcome.entry.row.kind for outcome in outcomes))
        yield heading(system, kinds)
        yield Padding(made, (0, 0, 0, 2))
        for line in overrides(outcomes):
            yield Text(f"  set: {line}", style="dim")
        for line in fit_lines(validation, system):
            yield Text(f"  fitted: {line}")
        reasons: dict[str, list[str]] = {}
        for row in (outcome.entry.row for outcome in outcomes if not outcome.entry.row.gates):
            reasons.setdefault(row.shown or "recalled, not read in the source", []).append(row.id)
        for reason, ids in reasons.items():
            yield Text(f"  shown only: {reason} ({', '.join(ids)})", style="dim")
    if validation.outcomes:
        made = table("system", "quantity", "rows", ">mean", ">worst", ">rank")
        above = ""
        for summary in validation.summaries:
            system, _, quantity, _, *figures = summary_text(summary)
            made.add_row("" if system == above else system, quantity, *figures)
            above = system
        yield heading("Mean and worst error", "without sign; rank: Spearman's correlation")
        yield Padding(made, (0, 0, 0, 2))
    yield Text(f"\n{verdict_line(validation)}", style="bold")


def verdict_line(validation: Validation) -> str:
    """What everything comes to, in one line."""
    gating = sum(outcome.entry.row.gates for outcome in validation.outcomes)
    fitted = sum(outcome.verdict == "fitted" for outcome in validation.outcomes)
    parts = [f"{gating - len(validation.misses)} of {gating} gating rows are within their tolerance",
             f"{len(validation.outcomes) - gating - fitted} are shown"]  # fmt: skip
    if fitted:
        parts.append(f"{fitted} were fitted")
    parts.append(f"{validation.replays} replays and counts")
    if validation.problems:
        n = len(validation.problems)
        parts.append(f"{n} problem{'s' * (n > 1)} with the input")
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
    return " ".join(words) if row.unit == row.quantity else f"{' '.join(words)}, {row.unit}"


def number(value: float, digits: int = 4) -> str:
    """A number to so many digits, and at least to whole ones.

    >>> number(12345678), number(12.345), number(12.345, 10), number(0.000123456)
    ('12,345,678', '12.35', '12.345', '0.0001235')
    """
    if abs(value) < 1e15 and (value == int(value) or abs(value) >= 10**digits):
        return f"{value:,.0f}"
    return f"{value:,.{digits}g}"


def error_text(outcome: Outcome) -> str:
    """The error in the terms of the tolerance: relative, or in points."""
    if outcome.in_points:
        return f"{_rounded(outcome.simulated - outcome.entry.row.value):+.2f} points"
    return f"{_rounded(100 * outcome.error):+.2f}%"


def _rounded(value: float) -> float:
    """To two digits, and never minus zero."""
    return round(value, 2) + 0.0


def tolerance_text(row: Row) -> str:
    """The tolerance, and on which side a bound holds."""
    side = {None: "", "above": "at least", "below": "at most"}[row.bound]
    return " ".join(filter(None, (side, row.tolerance or ("" if row.bound else "-"))))


def summary_text(summary: Summary) -> tuple[str, ...]:
    """Cells of a summary: system, group, quantity, kind, rows, mean, worst, rank."""
    rows = f"{summary.rows} {'gating' if summary.gating else 'fitted' if summary.fitted else 'shown'}"
    rows += f", {summary.misses} missed" if summary.misses else ""
    rank = "" if summary.rank is None else f"{summary.rank:.2f}"
    errors = (_size(error, summary.in_points) for error in (summary.mean, summary.worst))
    return summary.system, summary.group, summary.quantity, summary.kind, rows, *errors, rank


def _size(error: float | None, in_points: bool) -> str:
    return "" if error is None else f"{error:.2f} points" if in_points else f"{error:.2%}"


def overrides(outcomes: tuple[Outcome, ...]) -> list[str]:
    """Every value of a spec that a citation sets, with the place there, and the rows that it is set for."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        for case in outcome.cases:
            for override in case.settings:
                found.setdefault(f"{case.hardware}: {_setting_text(override.setting)} ({override.where})", []).append(
                    outcome.entry.row.id
                )
    every = len({outcome.entry.row.id for outcome in outcomes})
    return [f"{line} for {'all rows' if len(set(ids)) == every else ', '.join(dict.fromkeys(ids))}"
            for line, ids in found.items()]  # fmt: skip


def fit_lines(validation: Validation, system: str) -> list[str]:
    """Every fit of a system: its coefficients with their intervals, its rows, and why these."""
    return [
        f"{fitted.name}: {'; '.join(map(_term_text, fitted.terms))}; on {', '.join(fitted.rows)} ({fitted.rule})"
        for fitted in validation.fits if fitted.system == system
    ]  # fmt: skip


def _term_text(term: Term) -> str:
    if term.low is None or term.high is None:
        interval = "no interval: no row to spare"
    else:
        interval = f"95 % interval {term.low:.4g} to {term.high:.4g}"
    return f"{term.name} {term.value:.4g} {term.unit} ({interval})"


def _setting_text(setting: str) -> str:
    """``path = value`` of an override."""
    path, _, value = setting.partition("=")
    return f"{path} = {value}"
