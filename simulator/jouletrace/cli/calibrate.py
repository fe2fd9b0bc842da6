"""``jouletrace calibrate``: prices of a spec, fitted to power and energy readings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jouletrace.cli.options import Commands, natural, progress_bar
from jouletrace.cli.outputs import Output, outputs, text_into

if TYPE_CHECKING:
    from jouletrace.validate.calibrate import Calibration

__all__ = ["add", "execute"]

FILES = ("table", "spec", "json")


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "calibrate", help="fit prices to power or energy readings of a board",
        description="Fits a few factors on the prices of a spec to measured rows, by non-negative least squares; says "
        "how well rows are predicted by a fit that has not seen them; and writes the new prices.",
    )  # fmt: skip
    parser.add_argument("measurements", metavar="FOLDER|FILE", help="measurement files, as of validate")
    parser.add_argument("--hardware", metavar="NAME|FILE", required=True, help="the spec that the readings are of")
    parser.add_argument(
        "--fit", metavar="PARTS", action="append", default=[],
        help="a coefficient: parts that are scaled together, as in array+buffers; may be repeated (static, dynamic)",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[],
        help="fit rows whose id holds this text, and judge the others; may be repeated",
    )  # fmt: skip
    parser.add_argument("--jobs", metavar="N", type=natural, default=1, help="processes that replay (1)")
    parser.add_argument("--table", metavar="FILE", help="write the fitted energy table (.yaml)")
    parser.add_argument("--spec", metavar="FILE", help="write the whole spec at fitted prices (.yaml)")
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from jouletrace.hardware.load import load_hardware
    from jouletrace.report.calibration import print_calibration
    from jouletrace.validate.calibrate import calibrate

    hardware = load_hardware(arguments.hardware)
    with outputs({what: path for what in FILES if (path := getattr(arguments, what))}) as files:
        with progress_bar("replaying:") as progress:
            calibration = calibrate(
                Path(arguments.measurements), hardware, arguments.fit or ("static", "dynamic"), only=arguments.only,
                jobs=arguments.jobs, progress=progress,
            )  # fmt: skip
        print_calibration(calibration)
        _write(calibration, files)
    for what, output in files.items():
        print(f"{what}: {output.path}")


def _write(calibration: Calibration, files: Mapping[str, Output]) -> None:
    from pathlib import Path

    from jouletrace.report.calibration import export_json, export_yaml
    from jouletrace.validate.fitted import fitted_spec, fitted_table

    for what, output in files.items():
        with text_into(output.file) as text:
            if what == "json":
                export_json(text, calibration)
            else:
                make = fitted_table if what == "table" else fitted_spec
                export_yaml(text, make(calibration, Path(output.path).stem))
