"""A folder of one's own: readings, the spec, the energy table and the trace that they are of; and rows that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jouletrace import load_trace
from jouletrace.cli import main
from jouletrace.resources import folder
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import write_trace
from jouletrace.validate import validate

from .measurement_files import HEAD, write

OWN = HEAD.replace("eftrain-zcu102", "./mine.yaml").replace("lenet10-cifar10-b128, batch: 2", "./step.jsonl.gz")
ROW = "id: a, layer: C1, phase: forward, value: {}"


def board(tmp_path: Path, clock: str = "100 MHz") -> Path:
    """A spec with a table of its own and a trace, all in the folder of the readings."""
    spec = (folder("hwspecs") / "eftrain-zcu102.yaml").read_text(encoding="utf-8")
    spec = spec.replace("clock: 100 MHz", f"clock: {clock}").replace("array: fpga-primitives", "array: ./table.yaml")
    (tmp_path / "mine.yaml").write_text(spec, encoding="utf-8")
    table = (folder("hwspecs") / "energy/fpga-primitives.yaml").read_text(encoding="utf-8")
    (tmp_path / "table.yaml").write_text(table, encoding="utf-8")
    write_trace(with_batch(load_trace("lenet10-cifar10-b128"), 2), tmp_path / "step.jsonl.gz")
    return tmp_path


def test_spec_table_and_trace_lie_beside_the_readings(tmp_path: Path) -> None:
    shipped = validate(write(tmp_path, ROW.format(1), name="shipped.yaml")).outcomes[0].simulated
    (tmp_path / "shipped.yaml").unlink()
    validation = validate(write(board(tmp_path), ROW.format(shipped), head=OWN))
    assert validation.problems == ()
    assert [(o.simulated, o.verdict) for o in validation.outcomes] == [(shipped, "ok")]
    latency = "id: b, layer: C1, phase: forward, quantity: latency, unit: us, value: {}"
    slow = validate(write(board(tmp_path, "50 MHz"), latency.format(1), head=OWN)).outcomes[0]
    assert slow.simulated == pytest.approx(shipped / 50, rel=0.02)  # it is this spec that ran, at half the clock


def test_a_spec_that_is_wrong_is_told_by_the_row_that_needs_it(tmp_path: Path) -> None:
    write(board(tmp_path), ROW.format(1), head=OWN, name="mine-of-2020.yaml")
    (tmp_path / "mine.yaml").write_text("name: mine\nclock: fast\n", encoding="utf-8")
    validation = validate(write(tmp_path, "id: b, quantity: macs, unit: MAC, value: 1"))
    assert [o.entry.row.id for o in validation.outcomes] == ["b"]
    assert validation.problems
    assert all(problem.startswith(f"{tmp_path / 'mine-of-2020.yaml'}:12: a: ") for problem in validation.problems)


@pytest.mark.parametrize(
    ("before", "after"),
    [("rows:", "row:"), ("workloads:", "workload:"), ("system:", "sytem:"), ("boundary:", "limits:")],
)
def test_a_slip_in_a_key_does_not_make_a_measurement_file_disappear(tmp_path: Path, before: str, after: str) -> None:
    write(tmp_path, ROW.format(1), head=HEAD.replace(before, after))
    validation = validate(write(tmp_path, "id: b, quantity: macs, unit: MAC, value: 1", name="other.yaml"))
    assert validation.problems
    assert all(problem.startswith(str(tmp_path / "bench.yaml")) for problem in validation.problems)
    assert validation.exit_code == 2


def test_no_measurements_at_all_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (board(tmp_path), tmp_path / "mine.yaml"):
        assert main(["validate", str(place)]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"error: '.*' holds no measurements; a file of measurements has system, .*\n", error), error


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("value: many", "rows.1.value: must be a valid number (got 'many')"),
        ("value: .nan", "rows.1.value: must be a valid number (got '.nan')"),
        ("value: yes", "rows.1.value: must be a valid number (got 'yes')"),
        ("value: -4", "rows.1: has a value that is not above zero (-4)"),
        ("note: no value", "rows.1.value: is required"),
        ("value: 4, tolerance: 0 %", "rows.1.tolerance: of zero would make a miss of the last printed digit"),
        ("value: 4, tolerance: -5 %", "rows.1.tolerance: is a share of the value, as in '5 %'"),
        ("value: 4, build: nowhere", "bad: there is no shipped hardware 'eftrain-zcu103'"),
        ("value: 4, build: missing", "missing.yaml: there is no such file; name a shipped spec"),
        ("value: 4, build: outside", "'../board.yaml' lies outside the folder of the measurement file"),
        ("value: 4, workload: nothing", "bad: there is no shipped trace 'lenet11-cifar10-b128'"),
        ("value: 4, layer: conv9", "bad: lenet10-cifar10-b2 has no layer 'conv9'; did you mean 'conv3'?"),
        ("value: 4, quantity: joules", "bad: there is no quantity 'joules'"),
    ],
)
def test_a_wrong_row_is_told_the_others_are_compared_and_the_exit_code_is_2(
    tmp_path: Path, row: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = HEAD.replace("builds:\n", "builds:\n      nowhere: {hardware: eftrain-zcu103}\n"
                        "      missing: {hardware: ./missing.yaml}\n      outside: {hardware: ../board.yaml}\n")  # fmt: skip
    head = head.replace("workloads:\n", "workloads:\n      nothing: {trace: lenet11-cifar10-b128}\n")
    good = "id: good, layer: C1, phase: forward, quantity: macs, unit: MAC, per: sample, value: 884736"  # 32^3 x 3 x 9
    assert main(["validate", str(write(tmp_path, good, f"id: bad, {row}", head=head))]) == 2
    out, err = capsys.readouterr()
    assert "1 of 1 gating rows are within their tolerance" in out
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"error: {tmp_path / 'bench.yaml'}:17: ")
    assert sentence in err
