"""``jouletrace validate`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jouletrace.cli import main

ROW = "  - {{id: r, quantity: macs, unit: MMAC, per: sample, phase: forward, value: {}, tolerance: 1 %}}\n"
FILE = """\
schema_version: 1
system: Bench
citation: A. Author, A Paper, 2020
boundary: products
workloads:
  resnet20: {trace: resnet20-cifar10-b32}
defaults: {workload: resnet20, kind: equation, certainty: seen, where: Table 1}
rows:
"""


def bench(folder: Path, value: float, *more: str) -> str:
    (folder / "bench.yaml").write_text(FILE + ROW.format(value) + "".join(more), encoding="utf-8")
    return str(folder)


def test_0_if_every_row_is_within_its_tolerance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", bench(tmp_path, 40.8)]) == 0
    out, err = capsys.readouterr()
    assert "1 of 1 gating rows are within their tolerance" in out
    assert err == ""


def test_1_if_a_row_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", bench(tmp_path, 50)]) == 1
    assert "miss" in capsys.readouterr().out


def test_2_if_an_input_makes_no_sense_and_the_other_rows_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "  - {id: bad, quantity: macs, unit: MMAC, value: -1, tolerance: 1 %}\n"
    assert main(["validate", bench(tmp_path, 40.8, bad)]) == 2
    out, err = capsys.readouterr()
    assert "1 of 1 gating rows are within their tolerance" in out
    assert err.startswith(f"error: {tmp_path / 'bench.yaml'}:10: rows.1: has a value that is not above zero (-1)")
    assert main(["validate", str(tmp_path / "missing")]) == 2
    assert "neither a file nor a folder" in capsys.readouterr().err


def test_only_chooses_by_file_system_or_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = bench(tmp_path, 50, "  - {id: other, quantity: macs, unit: MAC, value: 1, certainty: recalled}\n")
    for text, code in (("other", 0), ("bench/r", 1), ("bench", 1), ("Bench/other", 0)):
        assert main(["validate", place, "--only", text]) == code, text
    capsys.readouterr()
    assert main(["validate", place, "--only", "othr"]) == 2
    assert "no row is named by --only othr; did you mean 'other'?" in capsys.readouterr().err


def test_files_are_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {what: tmp_path / f"v.{what}" for what in ("json", "html", "markdown")}
    assert main(["validate", bench(tmp_path, 50), "--markdown", str(places["markdown"])]) == 1
    assert "![" not in places["markdown"].read_text()
    places["picture"] = tmp_path / "a folder" / "v.svg"
    places["picture"].parent.mkdir()
    words = [word for what, place in places.items() for word in (f"--{what}", str(place))]
    assert main(["validate", bench(tmp_path, 50), *words]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[-4:]] == list(places)
    assert json.loads(places["json"].read_text())["rows"][0]["verdict"] == "miss"
    assert places["html"].read_text().startswith("<!doctype html>")
    page = places["markdown"].read_text()
    assert page.startswith("# Held against")
    assert "](a%20folder/v.svg)" in page  # seen from the page
    assert places["picture"].read_text().startswith("<svg ")


def test_a_picture_is_an_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", bench(tmp_path, 50), "--picture", "v.png"]) == 2
    assert "v.png: a picture ends in .svg" in capsys.readouterr().err


def test_the_shipped_counts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--only", "layer_fw38_bw8", "--only", "e2-train/resnet74_forward", "--only", "gate_share"]) == 0
