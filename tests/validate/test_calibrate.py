"""Factors on prices from readings: found where they are known, refused where they cannot be, judged unseen."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.cli import main
from jouletrace.errors import UsageError
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.validate import validate
from jouletrace.validate.calibrate import Calibration, calibrate
from jouletrace.validate.factors import fit

from .measurement_files import write

# Two shapes at two clocks: what the board draws in each cycle takes another share in each of the rows.
_HEAD = """\
    schema_version: 1
    system: Bench
    citation: readings of this test
    boundary: everything
    builds:
      fast: {hardware: zedboard-fp32, set: [SETTINGS]}
      slow: {hardware: zedboard-fp32, set: [SETTINGS {path: clock, value: 20 MHz, where: here}]}
      other: {hardware: zedboard-int8}
    workloads:
      wide: {batch: 1, inference: true, layers: [{kind: fc, name: fc, in_features: 512, out_features: 512}]}
      deep: {batch: 1, inference: true, layers: [{kind: conv, name: c, in_channels: 48, out_channels: 48, rows: 8,
                                                  columns: 8, kernel: 3}]}
    defaults: {quantity: power, unit: W, kind: board meter, certainty: seen, where: here, tolerance: 5 %}
    rows:
"""
HEAD = _HEAD.replace("SETTINGS", "")
RUNS = {f"{workload}_{build}": f"workload: {workload}, build: {build}" for workload in ("wide", "deep")
        for build in ("fast", "slow")}  # fmt: skip
# Standing powers a quarter above those of the spec.
MORE_STATIC = ["board.chip_static=[0.125 W, 0.175 W, 0.25 W]", "board.board_idle=[2.5 W, 4 W, 5.625 W]"]


def bench(folder: Path, values: dict[str, float], more: str = "", head: str = HEAD) -> Path:
    return write(folder, *(f"id: {name}, {RUNS[name]}, value: {value}{more}" for name, value in values.items()), head=head)


def simulated(folder: Path, *settings: str) -> dict[str, float]:
    """What the rows are on a hardware with other prices."""
    pairs = (setting.split("=") for setting in settings)
    head = _HEAD.replace("SETTINGS", " ".join(f"{{path: {path}, value: '{value}', where: here}}," for path, value in pairs))
    place = folder / "other"
    place.mkdir(exist_ok=True)
    found = validate(bench(place, dict.fromkeys(RUNS, 1.0), head=head))
    assert not found.problems, found.problems
    return {outcome.entry.row.id: outcome.simulated for outcome in found.outcomes}


def zedboard() -> Hardware:
    return load_hardware("zedboard-fp32")


def factors(calibration: Calibration) -> dict[str, float]:
    return {coefficient.name: coefficient.factor for coefficient in calibration.coefficients}


# -- the least squares


@given(st.lists(st.floats(0, 8), min_size=1, max_size=3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_exact_readings_give_their_factors_back(true: list[float], spare: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix = np.vstack([np.eye(len(true)), draw.uniform(0, 1, (spare, len(true)))])
    fixed = draw.uniform(0.1, 1, len(matrix))
    found = fit(matrix, fixed, fixed + matrix @ np.array(true), [f"c{i}" for i in range(len(true))])
    assert found.factors == pytest.approx(true, abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_no_factor_is_negative_and_none_fits_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, measured = draw.uniform(0.1, 1, (5, 2)), draw.uniform(0.5, 1, 5)
    try:
        found = fit(matrix, np.zeros(5), measured, ["a", "b"]).factors
    except UsageError:  # two columns that are nearly one
        return

    def badness(factors: np.ndarray) -> float:
        return float((((matrix @ factors) / measured - 1) ** 2).sum())

    assert (found >= 0).all()
    for step in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert badness(found) <= badness(np.maximum(found + step, 0)) + 1e-12


def test_interval_of_one_factor_by_hand() -> None:
    # Rows of 1 J at the spec's prices, measured as 1, 2 and 4 J: relative columns a = 1, 1/2, 1/4.
    # factor = sum a / sum a^2 = (7/4) / (21/16) = 4/3; residuals 1/3, -1/3, -2/3: squares sum to 6/9.
    # half width = t(97.5 %, 2) sqrt(6/9 / 2 / (21/16)) = 4.3027 * 0.50395
    found = fit(np.ones((3, 1)), np.zeros(3), np.array([1.0, 2.0, 4.0]), ["all"])
    assert found.factors.tolist() == pytest.approx([4 / 3])
    assert found.interval(0) == pytest.approx((0, 4 / 3 + 4.302653 * (16 / 63) ** 0.5), rel=1e-6)
    assert found.condition == 1


def test_intervals_hold_the_true_factor_as_often_as_they_say() -> None:
    draw, held = np.random.default_rng(1), 0
    matrix = np.column_stack([np.ones(8), np.arange(1.0, 9)])
    for _ in range(400):
        measured = (matrix @ [3.0, 0.5]) / (1 + draw.normal(0, 0.01, 8))
        low, high = fit(matrix, np.zeros(8), measured, ["static", "dynamic"]).interval(1)
        assert low is not None
        assert high is not None
        held += low <= 0.5 <= high
    assert 0.92 < held / 400 < 0.98


def test_as_many_rows_as_factors_leave_nothing_for_an_interval() -> None:
    found = fit(np.eye(2), np.zeros(2), np.array([2.0, 3.0]), ["a", "b"])
    assert found.interval(0) == (None, None)


@pytest.mark.parametrize(
    ("matrix", "sentence"),
    [
        (np.ones((1, 2)), "1 rows cannot fix 2 coefficients"),
        (np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]), "do not tell a from b"),
        (np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), "no fitted row holds energy of b"),
    ],
)
def test_what_the_rows_do_not_fix_is_refused(matrix: np.ndarray, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        fit(matrix, np.zeros(len(matrix)), np.ones(len(matrix)), ["a", "b"])


# -- rows


def test_a_board_that_differs_in_its_standing_power(tmp_path: Path) -> None:
    found = calibrate(bench(tmp_path, simulated(tmp_path, *MORE_STATIC)), zedboard())
    assert factors(found) == pytest.approx({"static": 1.25, "dynamic": 1})
    assert found.worst_unseen == pytest.approx(0, abs=1e-9)
    for reading in found.readings:
        assert reading.before < reading.after == pytest.approx(reading.measured)


def test_readings_of_the_spec_itself_change_nothing(tmp_path: Path) -> None:
    values = simulated(tmp_path)
    found = calibrate(bench(tmp_path, values), zedboard(), ["static", "array", "dram"])
    assert factors(found) == pytest.approx({"static": 1, "array": 1, "dram": 1})
    assert {r.entry.row.id: r.before for r in found.readings} == pytest.approx(values)


def test_what_no_coefficient_names_stays_as_it_is(tmp_path: Path) -> None:
    found = calibrate(bench(tmp_path, simulated(tmp_path, *MORE_STATIC)), zedboard(), ["chip+board"])
    assert factors(found) == pytest.approx({"chip+board": 1.25})


def test_power_and_energy_per_sample_say_the_same(tmp_path: Path) -> None:
    rows = [f"id: p{i}, {run}, value: 4" for i, run in enumerate(RUNS.values())]
    found = calibrate(write(tmp_path, *rows, head=HEAD), zedboard())
    times = [f"id: t{i}, {run}, quantity: latency, unit: s, value: 1" for i, run in enumerate(RUNS.values())]
    seconds = validate(write(tmp_path, *times, head=HEAD, name="times.yaml") / "times.yaml")
    energies = [f"id: e{i}, {run}, quantity: energy, unit: mJ, per: sample, value: {4000 * outcome.simulated}"
                for (i, run), outcome in zip(enumerate(RUNS.values()), seconds.outcomes, strict=True)]  # fmt: skip
    again = calibrate(write(tmp_path, *energies, head=HEAD) / "bench.yaml", zedboard())
    assert factors(again) == pytest.approx(factors(found))


def test_a_row_is_judged_by_a_fit_that_has_not_seen_it(tmp_path: Path) -> None:
    values = simulated(tmp_path, *MORE_STATIC)
    values["deep_fast"] *= 1.1  # a slip of the pen
    found = {r.entry.row.id: r for r in calibrate(bench(tmp_path, values), zedboard()).readings}
    slip = found["deep_fast"]
    assert slip.unseen == pytest.approx(values["deep_fast"] / 1.1)  # the other rows agree on the truth
    assert slip.unseen_error == pytest.approx(1 / 1.1 - 1)
    assert abs(slip.error) < abs(slip.unseen_error)  # and the fit bends towards the slip


@pytest.mark.parametrize("how", ["only", "recalled"])
def test_rows_that_are_judged_and_never_fitted(tmp_path: Path, how: str) -> None:
    values = simulated(tmp_path, *MORE_STATIC)
    values["deep_slow"] *= 2
    rows = [f"id: {name}, {RUNS[name]}, value: {value}"
            + (", certainty: recalled" if how == "recalled" and name == "deep_slow" else "")
            for name, value in values.items()]  # fmt: skip
    only = ["wide", "fast"] if how == "only" else []
    found = calibrate(write(tmp_path, *rows, head=HEAD), zedboard(), only=only)
    assert factors(found) == pytest.approx({"static": 1.25, "dynamic": 1})
    *fitted, judged = sorted(found.readings, key=lambda r: not r.fitted)
    assert all(reading.fitted for reading in fitted)
    assert (judged.entry.row.id, judged.fitted) == ("deep_slow", False)
    assert judged.unseen_error == judged.error == pytest.approx(-0.5)
    assert "deep_slow" not in found.rows


def test_rows_of_other_hardware_and_other_quantities_are_left_out(tmp_path: Path) -> None:
    values = simulated(tmp_path, *MORE_STATIC)
    rows = [f"id: {name}, {RUNS[name]}, value: {value}" for name, value in values.items()]
    more = ["id: int8, workload: wide, build: other, value: 9",
            "id: time, workload: wide, build: fast, quantity: latency, unit: s, value: 9",
            "id: least, workload: wide, build: fast, value: 9, bound: above"]  # fmt: skip
    found = calibrate(write(tmp_path, *rows, *more, head=HEAD), zedboard())
    assert [reading.entry.row.id for reading in found.readings] == list(values)


@pytest.mark.parametrize(
    ("coefficients", "rows", "sentences"),
    [
        (["statc"], {}, ["'statc' is no part of the machine; did you mean 'static'?"]),
        (["static", "chip"], {}, ["'chip' is in two coefficients"]),
        (["static", "dynamic"], {"wide_fast": 4}, ["1 rows cannot fix 2 coefficients (static, dynamic)"]),
        (["chip", "board"], {"wide_fast": 4, "deep_fast": 4}, ["do not tell chip from board"]),
        (["host"], {"wide_fast": 4}, ["no fitted row holds energy of host"]),
        (["static"], {"wide_fast": -4}, ["value that is not above zero"]),
    ],
)
def test_sentences(tmp_path: Path, coefficients: list[str], rows: dict[str, float], sentences: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        calibrate(bench(tmp_path, rows or {"wide_fast": 4.0}), zedboard(), coefficients)
    for sentence in sentences:
        assert sentence in str(caught.value)


def test_no_row_of_this_hardware(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no row is an energy or power of 'eftrain-zcu102'; builds of such rows are zedb"):
        calibrate(bench(tmp_path, {"wide_fast": 4.0}), load_hardware("eftrain-zcu102"))


# -- files


def test_the_spec_that_is_written_says_what_the_fit_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {name: value * (1 + 0.01 * i) for i, (name, value) in enumerate(simulated(tmp_path, *MORE_STATIC).items())}
    readings = bench(tmp_path, values)
    names = {what: str(tmp_path / "written" / what) for what in ("spec.yaml", "table.yaml", "all.json")}
    (tmp_path / "written").mkdir()
    words = ["calibrate", str(readings / "bench.yaml"), "--hardware", "zedboard-fp32", "--spec", names["spec.yaml"],
             "--table", names["table.yaml"], "--json", names["all.json"]]  # fmt: skip
    assert main(words) == 0
    assert "static" in capsys.readouterr().out
    data = json.loads(Path(names["all.json"]).read_text())
    head = HEAD.replace("zedboard-fp32", "./spec.yaml")
    for row, outcome in zip(
        data["rows"], validate(bench(tmp_path / "written", values, head=head) / "bench.yaml").outcomes, strict=True
    ):
        assert outcome.simulated == pytest.approx(row["after"], rel=1e-5)
    spec = load_hardware(tmp_path / "written" / "spec.yaml")
    for entry in (spec.energy.array.entries["mac_fp32"], spec.energy.buffers.sram[0]):
        assert entry.certainty == "fitted"
        assert "on rows wide_fast, wide_slow, deep_fast, deep_slow of Bench" in entry.source
    assert spec.board.board_idle[1] == pytest.approx(3.2e18 * data["coefficients"][0]["factor"], rel=1e-5)
    # Nothing ran on the vector unit, so its prices are what they were; and the table alone is that of the spec.
    assert spec.energy.vector.entries["add_fp32"].certainty == "assumed"
    assert "vector" in data["coefficients"][1]["untouched"]
    alone = tmp_path / "written" / "mine.yaml"
    alone.write_text(Path(names["spec.yaml"]).read_text())
    again = load_hardware(alone, ["energy.array=./table.yaml"])
    assert again.energy.array.entries == spec.energy.array.entries


def test_bands_of_written_prices_are_the_interval(tmp_path: Path) -> None:
    values = {name: value * (1 + 0.001 * i) for i, (name, value) in enumerate(simulated(tmp_path).items())}
    from jouletrace.validate.fitted import fitted_spec

    found = calibrate(bench(tmp_path, values), zedboard(), ["static"])
    (static,) = found.coefficients
    assert static.low is not None
    assert static.high is not None
    low, value, high = (Fraction(power.removesuffix(" W")) for power in fitted_spec(found, "mine")["board"]["board_idle"])
    assert [float(power) / 3.2 for power in (low, value, high)] == pytest.approx([static.low, static.factor, static.high], rel=1e-5)  # fmt: skip


def test_a_factor_of_0_is_printed_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The more the accelerator does, the less this meter shows: no price below 0 explains that.
    readings = bench(tmp_path, {"wide_fast": 4.0, "wide_slow": 4.3, "deep_fast": 3.9, "deep_slow": 4.2})
    place = tmp_path / "spec.yaml"
    words = ["calibrate", str(readings / "bench.yaml"), "--hardware", "zedboard-fp32", "--spec", str(place)]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert re.search(r"dynamic +0 ", out)
    assert "the fit puts dynamic at 0" in err
    assert not place.exists()


def test_the_example_of_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "calibrate.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    found = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    shown = re.search(r"```console\n\$ jouletrace (.*?)\n(.*?)```", page, re.DOTALL)
    assert found is not None
    assert shown is not None
    (tmp_path / "readings.yaml").write_text(found[1])
    assert main(shown[1].split()) == 0
    assert capsys.readouterr().out.strip() == shown[2].strip()
