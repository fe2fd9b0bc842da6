"""Reading measurement files: what is wrong is told with file and line, and the rest is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from jouletrace.errors import UsageError
from jouletrace.validate.load import load

from .measurement_files import HEAD, write

GOOD = "id: good, layer: C1, phase: forward, value: 1000"


def test_defaults_are_those_of_every_row_that_says_nothing_else(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, GOOD, "id: other, value: 2, unit: ms, quantity: latency, tolerance: 1 %"))
    first, second = (entry.row for entry in loaded.entries)
    assert (first.quantity, first.unit, first.tolerance, first.layer) == ("cycles", "cycles", "5 %", ("C1",))
    assert (second.quantity, second.unit, second.tolerance, second.where) == ("latency", "ms", "1 %", "Table 1")
    assert [entry.place.rpartition(":")[2] for entry in loaded.entries] == ["12", "13"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("id: bad, value: -3", "13: rows.1: has a value that is not above zero (-3)"),
        ("id: bad, value: 0", "13: rows.1: has a value that is not above zero (0)"),
        ("id: bad, value: many", "13: rows.1.value: must be a valid number (got 'many')"),
        ("id: bad", "13: rows.1.value: is required"),
        ("id: bad, value: 3, tolerance: 0 %", "13: rows.1.tolerance: of zero would make a miss of the last printed digit"),
        ("id: bad, value: 3, tolerance: 0.05", "13: rows.1.tolerance: is a share of the value, as in '5 %'"),
        ("id: bad, value: 3, tolerance: 3 points", "13: rows.1: has a tolerance in points, which only a percentage has"),
        ("id: bad, value: 3, tolerance: null", "13: rows.1: needs a tolerance, because it gates"),
        ("id: bad, value: 3, workload: lenett", "13: bad: there is no workload 'lenett' in this file; did you mean 'lenet'?"),
        ("id: bad, value: 3, build: zcu103", "13: bad: there is no build 'zcu103' in this file; did you mean 'zcu102'?"),
        ("id: bad, value: 3, layr: C1", "13: rows.1.layr: is no known key; did you mean 'layer'?"),
        ("id: bad, value: 3, phase: foward", "13: rows.1.phase: must be 'forward'"),
        ("id: bad, value: 3, strategy: ./mine.py", "13: rows.1.strategy: is a Python file, and measurement files execute none"),
        ("id: bad, value: 3, kind: ruler", "13: rows.1.kind: must be 'cycle counter'"),
        ("id: bad, value: 3, relation: saving", "13: rows.1: needs against and relation together, or neither"),
        ("id: bad, value: 3, set: [{path: clock, value: 1 MHz}]", "13: rows.1.set.0.where: is required"),
        ("id: good, value: 3", "13: good: repeats the id 'good'"),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_with_its_line_and_the_good_one_is_read(tmp_path: Path, row: str, sentence: str) -> None:
    loaded = load(write(tmp_path, GOOD, row))
    assert [entry.row.id for entry in loaded.entries] == ["good"]
    assert len(loaded.problems) == 1, loaded.problems
    assert loaded.problems[0].startswith(f"{tmp_path / 'bench.yaml'}:{sentence}"), loaded.problems


def test_a_field_that_is_wrong_in_the_defaults_is_told_where_it_stands(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, GOOD, head=HEAD.replace("certainty: seen", "certainty: certain")))
    assert not loaded.entries
    assert loaded.problems[0].startswith(f"{tmp_path / 'bench.yaml'}:9: rows.0.certainty: must be 'seen'")


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("schema_version: 1", "schema_version: 2", "1: schema_version: must be 1"),
        ("citation: A. Author, A Paper, 2020", "citaton: A. Author", "3: citaton: is no known key; did you mean 'citation'?"),
        ("{trace: lenet10-cifar10-b128,", "{", "8: workloads.lenet: needs either the name of a trace or a list of layers"),
        ("hardware: eftrain-zcu102", "hardware: [a]", "6: builds.zcu102.hardware: must be"),
    ],
)
def test_a_bad_head_leaves_out_its_file_alone(tmp_path: Path, before: str, after: str, sentence: str) -> None:
    write(tmp_path, GOOD, head=HEAD.replace(before, after))
    loaded = load(write(tmp_path, GOOD, name="other.yaml"))
    assert [Path(entry.place).name for entry in loaded.entries] == ["other.yaml:12"]
    assert any(p.startswith(f"{tmp_path / 'bench.yaml'}:{sentence}") for p in loaded.problems), loaded.problems


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "rows: {a: b}", "a: &x 1\nb: *x", "rows: !!python/object:os.system [x]", "{" * 200],
)
def test_what_is_no_measurement_file_is_a_problem_and_no_crash(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    loaded = load(write(tmp_path, GOOD))
    assert len(loaded.entries) == 1
    assert loaded.problems
    assert all(problem.startswith(str(tmp_path / "bad.yaml")) for problem in loaded.problems)


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a file nor a folder with .yaml files"):
        load(tmp_path)
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        load(tmp_path / "missing.yaml")
