"""Every shipped row is simulated: none that gates misses, and the manual shows just what comes out.

A file at a time, so that processes share the work; together it is all that ``make validate`` does.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from jouletrace.report.validation_files import EXPORTS
from jouletrace.resources import folder
from jouletrace.validate import Validation, validate
from jouletrace.validate.load import load
from jouletrace.validate.simulate import cases_of

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "validation.md").read_text(encoding="utf-8")
PICTURE = (DOCS / "img/validation.svg").read_text(encoding="utf-8")
FILES = sorted(folder("validation").glob("*.yaml"))


def written(validation: Validation, what: str) -> str:
    file = io.StringIO()
    EXPORTS[what](file, validation)
    return file.getvalue()


def values(picture: str) -> set[str]:
    """The row and its two values that each point of a picture carries."""
    return set(re.findall(r"<circle[^>]*><title>(.*?)</title>", picture))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_row_misses_and_the_manual_says_so(file: Path) -> None:
    validation = validate(file)
    assert validation.problems == ()
    assert [outcome.entry.row.id for outcome in validation.misses] == []
    assert validation.exit_code == 0
    page = written(validation, "markdown")
    summary, section = page[: page.index("\n## ")], page[page.index("\n## ") :]
    assert section in PAGE, "run: make validate"
    lines = [line for line in summary.splitlines() if line.startswith("| ")]
    assert set(lines) <= set(PAGE.splitlines()), "run: make validate"
    assert values(written(validation, "picture")) <= values(PICTURE), "run: make validate"


def test_the_manual_counts_every_row_and_shows_nothing_else() -> None:
    loaded = load()
    gating = sum(entry.row.gates for entry in loaded.entries)
    replays = len({case.key for entry in loaded.entries for case in cases_of(entry)})
    (line,) = (line for line in PAGE.splitlines() if "gating rows are within" in line)
    assert line.startswith(f"{gating} of {gating} gating rows are within their tolerance; ")
    assert line.endswith(f"; {replays} replays and counts.")
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert headings == list(dict.fromkeys(entry.file.system for entry in loaded.entries))
    rows = PAGE[PAGE.index("\n## ") :].splitlines()
    assert sum(line.startswith("| ") and not line.startswith("| row |") for line in rows) == len(loaded.entries)
