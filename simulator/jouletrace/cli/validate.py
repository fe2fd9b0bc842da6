"""``jouletrace validate``: published measurements beside simulated values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jouletrace.cli.options import Commands, natural, progress_bar
from jouletrace.cli.outputs import Output, outputs, text_into

if TYPE_CHECKING:
    from jouletrace.validate import Validation

__all__ = ["add", "execute"]

FILES = ("json", "html", "markdown", "picture")


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "validate", help="compare with published measurements, or with your own",
        description="Simulates every row of the measurement files and compares. Exit code 0: no row that gates misses "
        "its tolerance; 1: some do; 2: some input makes no sense (the other rows are compared all the same).",
    )  # fmt: skip
    parser.add_argument(
        "place", metavar="FOLDER|FILE", nargs="?", help="measurement files (.yaml); by default the shipped ones"
    )
    parser.add_argument(
        "--only", metavar="TEXT", action="append", default=[],
        help="rows whose file, system or system/id holds this text; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", metavar="N", type=natural, default=min(4, os.cpu_count() or 1),
        help="processes that replay (one per core, at most 4)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    parser.add_argument("--html", metavar="FILE", help="write a page with a picture, complete in itself")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as Markdown, which show --picture")
    parser.add_argument("--picture", metavar="FILE.svg", help="draw simulated over measured values")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from jouletrace.errors import UsageError
    from jouletrace.report.validation import print_validation
    from jouletrace.validate import validate

    if arguments.picture and not arguments.picture.endswith(".svg"):
        raise UsageError(f"{arguments.picture}: a picture ends in .svg")
    place = None if arguments.place is None else Path(arguments.place)
    with outputs({what: path for what in FILES if (path := getattr(arguments, what))}) as files:
        with progress_bar("replaying:") as progress:
            validation = validate(place, only=arguments.only, jobs=arguments.jobs, progress=progress)
        _write(validation, files)
    print_validation(validation)
    for what, output in files.items():
        print(f"{what}: {output.path}")
    sys.stdout.flush()
    for problem in validation.problems:
        print(f"error: {problem}", file=sys.stderr)
    return validation.exit_code


def _write(validation: Validation, files: Mapping[str, Output]) -> None:
    from jouletrace.report.validation_files import EXPORTS, export_markdown

    for what, output in files.items():
        with text_into(output.file) as text:
            if what == "markdown" and "picture" in files:
                export_markdown(text, validation, _seen_from(output.path, files["picture"].path))
            else:
                EXPORTS[what](text, validation)


def _seen_from(page: str, picture: str) -> str:
    """The place of a picture as a page links it."""
    from pathlib import Path

    return Path(os.path.relpath(picture, Path(page).parent)).as_posix()
