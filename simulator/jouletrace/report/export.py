"""A result as files: the result file, tidy CSV, a timeline with its energies, a picture."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from typing import TextIO

from jouletrace.errors import UsageError
from jouletrace.report.svg import export_svg
from jouletrace.report.timeline import write_timeline
from jouletrace.result.model import Result

__all__ = ["EXPORTS", "export_csv", "export_json", "export_svg", "export_timeline"]


def export_csv(file: TextIO, result: Result) -> None:
    """Writes :meth:`Result.records`, one row per op and component, with a line of names first."""
    records = result.records()
    writer = csv.DictWriter(file, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def export_json(file: TextIO, result: Result) -> None:
    """Writes the result file."""
    file.write(result.to_json())


def export_timeline(file: TextIO, result: Result) -> None:
    """Writes the run as a Chrome trace, with the energy of every command.

    Raises :class:`UsageError` for a result that was read from a file: intervals are not a part of it.
    """
    run = result.execution
    if run is None:
        raise UsageError("a result file holds no intervals; replay it first, with jouletrace.reproduce(result)")
    energy_pj = [
        sum(result.prices[component, action].energy_aj * n for (component, action, _), n in command.counts) / 10**6
        for command in run.program.commands
    ]
    write_timeline(file, run.program, run.counts, energy_pj=energy_pj)


EXPORTS: Mapping[str, Callable[[TextIO, Result], None]] = {
    "json": export_json, "csv": export_csv, "timeline": export_timeline, "svg": export_svg,
}  # fmt: skip
