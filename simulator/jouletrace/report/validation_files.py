"""A validation as files: canonical JSON, Markdown for the manual, and one HTML page with a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any, TextIO

from jouletrace.report.validation import (
    MEASURED,
    error_text,
    fit_lines,
    number,
    overrides,
    quantity_text,
    summary_text,
    tolerance_text,
    verdict_line,
)
from jouletrace.report.validation_picture import export_picture, picture
from jouletrace.validate.outcome import Outcome, Validation
from jouletrace.version import MODEL_VERSION, __version__

__all__ = ["EXPORTS", "FORMAT", "VERSION", "export_html", "export_json", "export_markdown"]

FORMAT = "jouletrace-validation"
VERSION = "1.0"
_ROWS = ("row", "quantity", "measured", "simulated", "error", "tolerance", "verdict", "certainty", "where")
_SUMMARY = ("system", "errors of", "quantity", "obtained by", "rows", "mean", "worst", "rank")
_NUMBERS = {"measured", "simulated", "error", "mean", "worst", "rank"}
# Colours that differ for colour-blind readers too (Okabe and Ito).
_COLOURS = {"ok": "#009e73", "miss": "#d55e00", "shown": "#999999", "fitted": "#999999"}


def export_json(file: TextIO, validation: Validation) -> None:
    """Writes every figure: sorted keys, nothing volatile, so that equal validations give equal bytes."""
    json.dump(_document(validation), file, sort_keys=True, indent=1, allow_nan=False)
    file.write("\n")


def _document(validation: Validation) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "producer": {"version": __version__, "model_version": MODEL_VERSION},
        "exit_code": validation.exit_code,
        "problems": list(validation.problems),
        "rows": [_row(outcome) for outcome in validation.outcomes],
        "fits": [
            {"system": fitted.system, "name": fitted.name, "rows": list(fitted.rows), "rule": fitted.rule,
             "condition": fitted.condition,
             "coefficients": [
                 {"name": term.name, "value": term.value, "low": term.low, "high": term.high, "unit": term.unit}
                 for term in fitted.terms
             ]}
            for fitted in validation.fits
        ],
        "summaries": [
            {"system": s.system, "group": s.group, "quantity": s.quantity, "kind": s.kind, "gating": s.gating,
             "fitted": s.fitted, "in_points": s.in_points, "rows": s.rows, "misses": s.misses, "mean": s.mean,
             "worst": s.worst, "rank": s.rank}
            for s in validation.summaries
        ],
    }  # fmt: skip


def _row(outcome: Outcome) -> dict[str, Any]:
    row = outcome.entry.row
    return {
        "system": outcome.entry.file.system, "citation": outcome.entry.file.citation, "id": row.id,
        "group": outcome.group,
        "quantity": row.quantity, "per": row.per, "relation": row.relation, "unit": row.unit, "measured": row.value,
        "simulated": outcome.simulated, "error": outcome.error, "tolerance": row.tolerance, "bound": row.bound,
        "within": outcome.within, "verdict": outcome.verdict, "kind": row.kind, "certainty": row.certainty,
        "where": row.where, "shown": row.shown, "note": row.note,
        "build": row.build, "workload": row.workload, "layer": list(row.layer), "phase": list(row.phase),
        "ops": list(row.ops), "strategy": row.strategy, "iterations": row.iterations, "scope": row.scope,
        "components": list(row.components),
        "fit": list(row.fit),
        "overrides": [
            {"hardware": case.hardware, "path": o.path, "value": o.value, "where": o.where}
            for case in outcome.cases for o in case.settings
        ],
    }  # fmt: skip


# -- tables


def _cells(outcome: Outcome) -> tuple[str, ...]:
    row = outcome.entry.row
    return (
        row.id, quantity_text(row), number(row.value, MEASURED), number(outcome.simulated), error_text(outcome),
        tolerance_text(row), outcome.verdict, row.certainty, row.where,
    )  # fmt: skip


def _remarks(validation: Validation, system: str) -> Iterator[str]:
    """What a reader of a system's table should know."""
    outcomes = validation.of(system)
    file = outcomes[0].entry.file
    yield f"Boundary: {file.boundary}"
    kinds: dict[str, list[str]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.entry.row.kind, []).append(outcome.entry.row.id)
    for kind, ids in kinds.items():
        yield f"Obtained by: {kind}" + ("" if len(kinds) == 1 else f" ({_listed(ids)})")
    for line in overrides(outcomes):
        yield f"Set from the citation: {line}"
    for line in fit_lines(validation, system):
        yield f"Fitted: {line}"
    notes: dict[str, list[str]] = {}
    for outcome in outcomes:
        row = outcome.entry.row
        for text in filter(None, (row.note, row.shown and f"shown only: {row.shown}", outcome.entry.workload.note)):
            notes.setdefault(text, []).append(row.id)
    for text, ids in notes.items():
        yield text if len(ids) == len(outcomes) else f"{_listed(ids)}: {text}"


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(ids))


def export_markdown(file: TextIO, validation: Validation, image: str | None = None) -> None:
    """Writes the page of the manual; ``image`` is where its picture lies, seen from the page."""
    file.write("\n".join(_markdown(validation, image)) + "\n")


def _markdown(validation: Validation, image: str | None) -> Iterator[str]:
    yield "# Held against published measurements"
    yield ""
    yield (
        "This page is written by `jouletrace validate --markdown`. Rows, citations and tolerances stand in "
        "[validation/](../validation/README.md), and no model reads them. A row that misses its tolerance "
        "fails the command; numbers that are only recalled, and rows that say why, are shown and fail nothing. "
        "Rows that coefficients were fitted to are named as such and judge nothing: "
        "their errors are what the fit leaves."
    )
    yield ""
    yield f"{verdict_line(validation)}."
    yield ""
    if image is not None:
        yield f"![Simulated over measured values, with bands of 10 and 25 %]({_target(image)})"
        yield ""
    yield from _markdown_table(_SUMMARY, map(summary_text, validation.summaries))
    yield (
        "Errors are relative, or in points of a percentage, and without sign; rank is Spearman's correlation of "
        "measured with simulated values. What is not on this page is not validated."
    )
    for system in validation.systems:
        outcomes = validation.of(system)
        yield ""
        yield f"## {_plain(system)}"
        yield ""
        yield _plain(outcomes[0].entry.file.citation)
        yield ""
        yield from (f"* {_plain(remark)}" for remark in _remarks(validation, system))
        yield ""
        yield from _markdown_table(_ROWS, map(_cells, outcomes))


def _markdown_table(names: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|{'|'.join('---:' if name in _NUMBERS else '---' for name in names)}|"
    yield from (f"| {' | '.join(map(_plain, cells))} |" for cells in rows)
    yield ""


def _target(place: str) -> str:
    """A place as Markdown links it: bytes that could end the link are written as %XX.

    >>> _target("../my pictures/a(1).svg")
    '../my%20pictures/a%281%29.svg'
    """
    return "".join(c if c.isalnum() or c in "/._-~" else "".join(f"%{b:02X}" for b in os.fsencode(c)) for c in place)


def _plain(text: str) -> str:
    """Text of a file without what Markdown or HTML would read as theirs."""
    return "".join(f"&#{ord(c)};" if c in "|<>&[]`*" else " " if c == "\n" else c for c in text.strip())


# -- HTML


def export_html(file: TextIO, validation: Validation) -> None:
    """Writes a page that needs nothing else: the tables, and measured against simulated values."""
    file.write("\n".join(_html(validation)) + "\n")


def _html(validation: Validation) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>jouletrace validate</title>'
    yield (
        "<style>:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; "
        "max-width: 72em; margin: 2em auto; padding: 0 1em } table { border-collapse: collapse; margin: 1em 0 } "
        "th, td { padding: .2em .7em; text-align: left; border-bottom: 1px solid #8884 } "
        ".n { text-align: right; font-variant-numeric: tabular-nums } "
        + " ".join(f".{verdict} {{ color: {colour} }}" for verdict, colour in _COLOURS.items()) + "</style>"
    )  # fmt: skip
    yield f"<h1>Held against published measurements</h1>\n<p>{escape(verdict_line(validation))}.</p>"
    if validation.problems:
        yield f"<ul>{''.join(f'<li class=miss>{escape(problem)}</li>' for problem in validation.problems)}</ul>"
    yield from _html_table(_SUMMARY, map(summary_text, validation.summaries))
    yield from picture(validation)
    for system in validation.systems:
        outcomes = validation.of(system)
        yield f"<h2>{escape(system)}</h2>\n<p>{escape(outcomes[0].entry.file.citation)}</p>"
        yield f"<ul>{''.join(f'<li>{escape(remark)}</li>' for remark in _remarks(validation, system))}</ul>"
        yield from _html_table(_ROWS, map(_cells, outcomes))
    yield "</html>"


def _html_table(names: Sequence[str], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    classes = [" class=n" if name in _NUMBERS else "" for name in names]
    yield "<table>\n<tr>" + "".join(f"<th{c}>{escape(n)}</th>" for n, c in zip(names, classes, strict=True)) + "</tr>"
    for cells in rows:
        verdict = cells[6] if names is _ROWS else ""
        row = f'<tr class="{verdict}">' if verdict else "<tr>"
        yield row + "".join(f"<td{c}>{escape(t)}</td>" for t, c in zip(cells, classes, strict=True)) + "</tr>"
    yield "</table>"


EXPORTS: Mapping[str, Callable[[TextIO, Validation], None]] = MappingProxyType({
    "json": export_json, "html": export_html, "markdown": export_markdown, "picture": export_picture,
})  # fmt: skip
