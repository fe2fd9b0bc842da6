"""A calibration on a terminal and as files: coefficients with intervals, rows with errors, the new prices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import yaml
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.report.terminal import heading, print_page, table
from jouletrace.report.validation import number
from jouletrace.validate.calibrate import Calibration, Coefficient, Reading
from jouletrace.version import MODEL_VERSION, __version__

__all__ = ["FORMAT", "VERSION", "calibration_page", "export_json", "export_yaml", "print_calibration"]

FORMAT = "jouletrace-calibration"
VERSION = "1.0"


def print_calibration(calibration: Calibration) -> None:
    """Prints :func:`calibration_page`."""
    print_page(calibration_page(calibration))


def calibration_page(calibration: Calibration) -> Iterator[RenderableType]:
    """Coefficients with intervals; every row at old and new prices, and as a fit says that has not seen it."""
    fitted = len(calibration.fitted)
    yield heading(f"Calibration of {calibration.hardware.name}",
                  f"{fitted} rows, {len(calibration.coefficients)} coefficients, condition number "
                  f"{calibration.condition:.3g}")  # fmt: skip
    factors = table("coefficient", ">factor", ">95 % interval")
    for coefficient in calibration.coefficients:
        factors.add_row(coefficient.name, f"{coefficient.factor:.4g}", _interval(coefficient))
    yield Padding(factors, (0, 0, 0, 2))
    for coefficient in calibration.coefficients:
        if coefficient.untouched:
            yield Text(f"  {', '.join(coefficient.untouched)}: took no energy in these rows; prices stay", style="dim")
    rows = table("row", "quantity", ">measured", ">spec", ">fitted", ">error", ">unseen", "")
    for reading in calibration.readings:
        row = reading.entry.row
        rows.add_row(
            row.id, f"{row.quantity} ({', '.join(row.components) or row.scope}), {row.unit}", number(reading.measured),
            number(reading.before), number(reading.after), _signed(reading.error), _signed(reading.unseen_error),
            "" if reading.fitted else "not fitted",
        )  # fmt: skip
    yield heading("Rows", "unseen: the error of a fit without the row")
    yield Padding(rows, (0, 0, 0, 2))
    yield Text(f"\n{_verdict(calibration)}", style="bold")


def _verdict(calibration: Calibration) -> str:
    """What a reader may expect of the fitted prices, in one line."""
    if any(reading.unseen is None for reading in calibration.readings):
        return "Without some row the others do not fix the coefficients; measure more before trusting the fit"
    return f"Rows that a fit has not seen are predicted within {calibration.worst_unseen:.2%}"


def _interval(coefficient: Coefficient) -> str:
    if coefficient.low is None or coefficient.high is None:
        return "none: no row to spare"
    return f"{coefficient.low:.4g} to {coefficient.high:.4g}"


def _signed(error: float | None) -> str:
    return "-" if error is None else f"{error:+.2%}"


def export_json(file: TextIO, calibration: Calibration) -> None:
    """Writes every figure: sorted keys, nothing volatile."""
    json.dump(_document(calibration), file, sort_keys=True, indent=1, allow_nan=False)
    file.write("\n")


def _document(calibration: Calibration) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "producer": {"version": __version__, "model_version": MODEL_VERSION},
        "hardware": calibration.hardware.name,
        "condition": calibration.condition,
        "coefficients": [
            {"name": c.name, "parts": list(c.parts), "untouched": list(c.untouched), "factor": c.factor, "low": c.low,
             "high": c.high}
            for c in calibration.coefficients
        ],
        "rows": [_row(reading) for reading in calibration.readings],
    }  # fmt: skip


def _row(reading: Reading) -> dict[str, Any]:
    row = reading.entry.row
    return {
        "system": reading.entry.file.system, "id": row.id, "quantity": row.quantity, "unit": row.unit,
        "scope": row.scope, "components": list(row.components), "kind": row.kind, "certainty": row.certainty,
        "where": row.where,
        "measured": reading.measured, "before": reading.before, "after": reading.after, "error": reading.error,
        "unseen": reading.unseen, "unseen_error": reading.unseen_error, "fitted": reading.fitted,
    }  # fmt: skip


def export_yaml(file: TextIO, data: Mapping[str, Any]) -> None:
    """Writes an energy table or a spec as the loader reads it: no aliases, keys in their order."""
    yaml.dump(data, file, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
