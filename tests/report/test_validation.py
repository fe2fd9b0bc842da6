"""A validation on a terminal and as files."""

from __future__ import annotations

import io
import json
import re
from math import log10
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jouletrace.hardware.yaml_text import read_text
from jouletrace.report.terminal import print_page
from jouletrace.report.validation import validation_page
from jouletrace.report.validation_files import EXPORTS
from jouletrace.validate import Validation, validate

FILE = """\
schema_version: 1
system: A <b>bold</b> | board
citation: A. Author, [A Paper](javascript:alert(1)), 2020
boundary: everything
builds:
  zcu102:
    hardware: eftrain-zcu102
    set: [{path: clock, value: 200 MHz, where: Table 2}]
workloads:
  lenet: {trace: lenet10-cifar10-b128, batch: 2}
defaults: {build: zcu102, workload: lenet, layer: conv1, phase: forward, kind: cycle counter, certainty: seen,
           where: Table 1, tolerance: 5 %}
rows:
  - {id: near, quantity: cycles, unit: cycles, value: 18456}
  - {id: far, quantity: latency, unit: ms, value: 20}
  - {id: watts, quantity: power, unit: W, scope: chip, value: 2, kind: tool report, certainty: recalled, tolerance: null}
  - {id: saved, quantity: macs, unit: '%', strategy: 'freeze:layers=0', against: {}, relation: saving, value: -0.1, shown: a law}
  - {id: lost, quantity: latency, unit: hours, value: 2}
"""


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    folder = tmp_path_factory.mktemp("validation")
    text = FILE.replace("strategy: 'freeze:layers=0', ", "")
    (folder / "bench.yaml").write_text(text, encoding="utf-8")
    found = validate(folder)
    # The first row is what the model gives, so that one row is good whatever the model's number is.
    cycles = round(found.outcomes[0].simulated)
    (folder / "bench.yaml").write_text(text.replace("18456", str(cycles)), encoding="utf-8")
    return validate(folder)


def written(validation: Validation, what: str) -> str:
    file = io.StringIO()
    EXPORTS[what](file, validation)
    return file.getvalue()


def test_the_page_says_measured_simulated_error_tolerance_and_verdict(
    validation: Validation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    file = io.StringIO()
    print_page(validation_page(validation), file)
    page = file.getvalue()
    rows = {line.split()[0]: line.split() for line in page.splitlines() if line.startswith("  ")}
    assert rows["near"][-4:] == ["+0.00%", "5", "%", "ok"]
    assert rows["far"][-1] == "miss"
    assert rows["watts"][-2:] == ["-", "shown"]
    assert "set: eftrain-zcu102: clock = 200 MHz (Table 2) for near, far, watts" in page
    assert "shown only: a law (saved)" in page
    # Errors of time and power stand apart.
    assert re.search(r"latency +1 gating, 1 missed", page)
    assert re.search(r"power +1 shown", page)
    assert "1 of 2 gating rows are within their tolerance; 2 are shown; 2 replays and counts; 1 problem with the input" in page


def test_json_holds_every_figure_and_equal_validations_are_equal_bytes(validation: Validation) -> None:
    text = written(validation, "json")
    assert text == written(validation, "json")
    data = json.loads(text)
    assert (data["format"], data["version"], data["exit_code"]) == ("jouletrace-validation", "1.0", 2)
    near, far, watts, saved = data["rows"]
    assert near["measured"] == near["simulated"]
    assert (near["verdict"], far["verdict"], watts["verdict"], saved["verdict"]) == ("ok", "miss", "shown", "shown")
    assert near["overrides"] == [
        {"hardware": "eftrain-zcu102", "path": "clock", "value": "200 MHz", "where": "Table 2"}
    ]
    assert saved["overrides"] == []  # counted, on no hardware
    assert "latency has no unit 'hours'" in data["problems"][0]


def test_html_is_one_page_that_loads_nothing_and_trusts_no_text(validation: Validation) -> None:
    page = written(validation, "html")
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert not re.search(r"<script|<link|src=|href=|url\(|@import", page)
    assert written(validation, "picture").strip() in page


def circles(picture: str) -> dict[str, list[dict[str, str]]]:
    """The circles that carry a row's values, by the id of the row."""
    found: dict[str, list[dict[str, str]]] = {}
    for circle in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle"):
        for title in circle:
            assert title.text
            found.setdefault(title.text.partition(", ")[2].partition(":")[0], []).append(circle.attrib)
    return found


def test_the_picture_is_measured_against_simulated(validation: Validation) -> None:
    text = written(validation, "picture")
    assert text == written(validation, "picture")
    found = circles(text)
    assert list(found) == ["near", "far", "watts"]  # a saving has no place on a logarithmic axis
    assert "3 rows. Left out (bounds; changes and savings in points of a percentage): 1 row." in text
    # Rows that gate are filled, the others hollow; time is blue, power is vermilion; only the miss has a ring.
    assert [point[0]["fill"] for point in found.values()] == ["#0072b2", "#0072b2", "none"]
    assert found["watts"][0]["stroke"] == "#d55e00"
    far = found["far"][0]
    assert f'<circle cx="{far["cx"]}" cy="{far["cy"]}" r="8"' in text
    assert text.count('r="8"') == 2  # and its key


def test_a_distance_from_the_diagonal_is_an_error_whatever_the_unit(validation: Validation) -> None:
    text = written(validation, "picture")
    diagonal = re.search(r'd="M([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+)"', text)
    assert diagonal
    left, bottom, right, top = map(float, diagonal.groups())
    assert right - left == pytest.approx(bottom - top, abs=0.2)  # a decade is as high as wide
    for outcome in validation.outcomes[:3]:
        point = circles(text)[outcome.entry.row.id][0]
        on_it = bottom - (float(point["cx"]) - left)
        above = (on_it - float(point["cy"])) / (right - left)
        assert above == pytest.approx(log10(1 + outcome.error), abs=0.002)
    # The inner band is from -10 to +10 %, drawn over the one from -25 to +25 %.
    bands = [[float(y) for y in re.findall(r",([\d.]+)", points)] for points in re.findall(r'points="(.*?)"', text)]
    assert [[round(10 ** ((bottom - band[i]) / (right - left)) - 1, 2) for i in (0, 3)] for band in bands] == [
        [-0.25, 0.25], [-0.10, 0.10],
    ]  # fmt: skip


def test_a_picture_of_nothing_is_still_a_picture() -> None:
    text = written(Validation((), (), 0), "picture")
    assert circles(text) == {}
    assert ">0 rows. Left out" in text


def test_markdown_tables_hold_together_whatever_a_file_says(validation: Validation) -> None:
    page = written(validation, "markdown")
    assert "](javascript" not in page
    assert "## A &#60;b&#62;bold&#60;/b&#62; &#124; board" in page
    table = page[page.index("| row |"):].split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 4


def test_a_problem_with_the_example_is_not_one_of_yaml() -> None:
    assert read_text(FILE, "bench.yaml").data["system"] == "A <b>bold</b> | board"


def test_every_error_of_the_manual_is_one_that_was_printed() -> None:
    """docs/domain.md quotes docs/validation.md, which is generated; here the two are kept from drifting apart."""
    docs = Path(__file__).parents[2] / "docs"
    printed = {re.sub(r"[+\- ]", "", cell) for line in (docs / "validation.md").read_text().splitlines()
               for cell in line.split("|")}  # fmt: skip
    quoted = [cell.replace(" ", "") for line in (docs / "domain.md").read_text().splitlines()
              for cell in line.split("|")[4:6] if re.search(r"\d (%|points) *$", cell)]  # fmt: skip
    assert len(quoted) > 50
    assert [cell for cell in quoted if cell not in printed] == []
