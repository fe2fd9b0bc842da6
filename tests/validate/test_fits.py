"""Coefficients that a measurement file fits to its own rows: found where they are known, and rows judged by them."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jouletrace.cli import main
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.load import hardware_from_resolved, load_hardware
from jouletrace.ledger.breakdown import Scope
from jouletrace.resources import folder
from jouletrace.validate import Validation, validate
from jouletrace.validate.calibrate import calibrate
from jouletrace.validate.fits import CONSTANT, TIME, at_fit, fit_rows
from jouletrace.validate.fitted import fitted_spec
from jouletrace.validate.load import Entry, load
from jouletrace.validate.measurements import Measurements, Row
from jouletrace.validate.quantities import Part, Simulated
from jouletrace.validate.simulate import simulated_value

from .measurement_files import write

# Two shapes on two designs that differ in their clock, so that what is drawn all the time has other shares in them.
HEAD = """\
    schema_version: 1
    system: Bench
    citation: readings of this test
    boundary: everything
    builds:
      fast: {hardware: zedboard-fp32}
      slow: {hardware: zedboard-fp32, set: [{path: clock, value: 20 MHz, where: here}]}
      half: {hardware: zedboard-fp32, set: [{path: clock, value: 50 MHz, where: here},
                                            {path: dram.bandwidth, value: 2.132 GB/s, where: here}]}
      more: {hardware: zedboard-fp32, set: [{path: board.board_idle, value: '[5 W, 6.4 W, 9 W]', where: here}]}
    workloads:
      wide: {batch: 1, inference: true, layers: [{kind: fc, name: fc, in_features: 512, out_features: 512}]}
      deep: {batch: 1, inference: true, layers: [{kind: conv, name: c, in_channels: 48, out_channels: 48, rows: 8,
                                                  columns: 8, kernel: 3}]}
    FITS
    defaults: {quantity: power, unit: W, kind: board meter, certainty: seen, where: here, tolerance: 5 %}
    rows:
"""
RUNS = {f"{workload}_{build}": f"workload: {workload}, build: {build}" for workload in ("wide", "deep")
        for build in ("fast", "slow")}  # fmt: skip
FITTED = "shown: fitted"


def bench(folder: Path, fits: str, *rows: str) -> Validation:
    return validate(write(folder, *rows, head=HEAD.replace("FITS", f"fits: {{{fits}}}" if fits else "")))


def simulated(validation: Validation) -> dict[str, float]:
    assert not validation.problems, validation.problems
    return {outcome.entry.row.id: outcome.simulated for outcome in validation.outcomes}


def terms(validation: Validation) -> dict[str, float]:
    return {term.name: term.value for fitted in validation.fits for term in fitted.terms}


def spec_powers(folder: Path) -> dict[str, float]:
    """Dynamic and standing power of each run at the spec's prices."""
    rows = [f"id: {name}.{part}, {run}, value: 1, components: [{names}]" for name, run in RUNS.items()
            for part, names in (("dynamic", "array, buffer.input, buffer.weight, buffer.output, dram"),
                                ("static", "chip, board"))]  # fmt: skip
    return simulated(bench(folder, "", *rows))


def test_known_coefficients_are_found_and_the_other_rows_agree(tmp_path: Path) -> None:
    """Readings are three times the dynamic power and half the standing one; two rows tell, and two are judged."""
    at_spec = spec_powers(tmp_path)
    truth = {name: 3 * at_spec[f"{name}.dynamic"] + 0.5 * at_spec[f"{name}.static"] for name in RUNS}
    rows = [f"id: {name}, {run}, value: {truth[name]:.12g}, fit: prices{f', {FITTED}' if 'wide' in name else ''}"
            for name, run in RUNS.items()]  # fmt: skip
    found = bench(tmp_path, "prices: {coefficients: [dynamic, static], rows: [wide_fast, wide_slow], rule: one shape}", *rows)
    assert terms(found) == pytest.approx({"dynamic": 3, "static": 0.5}, rel=1e-5)
    assert [(o.entry.row.id, o.verdict) for o in found.outcomes] == [
        ("wide_fast", "fitted"), ("wide_slow", "fitted"), ("deep_fast", "ok"), ("deep_slow", "ok")]  # fmt: skip
    assert simulated(found) == pytest.approx(truth, rel=1e-5)


def test_a_constant_power_is_told_from_a_factor(tmp_path: Path) -> None:
    """What the array takes doubles, and 0.7 W that the spec knows nothing of stand beside it."""
    rows = [f"id: {name}, {run}, value: 1, components: array" for name, run in RUNS.items()]
    array = simulated(bench(tmp_path, "", *rows))
    with_constant = "components: [array, constant], fit: watts"
    rows = [f"id: {name}, {run}, value: {2 * array[name] + 0.7:.12g}, {with_constant}"
            f"{f', {FITTED}' if 'deep' in name else ''}" for name, run in RUNS.items()]  # fmt: skip
    found = bench(tmp_path, "watts: {coefficients: [array, constant], rows: [deep_fast, deep_slow], rule: one shape}", *rows)
    assert terms(found) == pytest.approx({"array": 2, CONSTANT: 0.7}, rel=1e-4)
    assert all(abs(outcome.error) < 1e-5 for outcome in found.outcomes)


_PARTS: tuple[tuple[str, str, Scope], ...] = (
    ("array", "mac_fp32", "chip"), ("buffer.input", "read", "chip"), ("vector", "add_fp32", "chip"),
    ("chip", "static", "chip"), ("dram", "read", "chip+dram"), ("dram", "background", "chip+dram"),
    ("board", "idle", "board"),
)  # fmt: skip
# At most six digits, as they are printed.
_FACTORS = st.integers(1, 10**5).map(lambda n: Fraction(n, 10**4))


@given(
    st.lists(st.tuples(st.integers(10**6, 10**9), st.lists(st.integers(10**15, 10**18), min_size=7, max_size=7)),
             min_size=3, max_size=6),
    _FACTORS, _FACTORS, _FACTORS, _FACTORS,
)  # fmt: skip
def test_whatever_was_replayed_known_coefficients_come_back(
    replays: list[tuple[int, list[int]]], time: Fraction, array: Fraction, dram: Fraction, watts: Fraction
) -> None:
    """A pace from the times; then, at that pace, two factors and a constant from the energies."""
    done = [
        Simulated(1, 1, 1, cycles, 10**8,
                  tuple(Part(*part, 1, 0, energy) for part, energy in zip(_PARTS, energies, strict=True)))
        for cycles, energies in replays
    ]  # fmt: skip
    truth: dict[str, Fraction] = {}
    for i, each in enumerate(done):
        seconds = each.seconds * time
        mac, read, add, static, moved, background, idle = (Fraction(part.energy_aj, 10**18) for part in each.parts)
        truth[f"t{i}"] = seconds
        truth[f"e{i}"] = (array * (mac + read) + add + time * (static + idle)
                          + dram * (moved + time * background) + watts * seconds)  # fmt: skip
    names = {kind: [name for name in truth if name.startswith(kind)] for kind in "te"}
    file = Measurements.model_validate({
        "schema_version": 1, "system": "Bench", "citation": "none", "boundary": "all", "workloads": {"any": {"trace": "any"}},
        "fits": {"pace": {"coefficients": "time", "rows": names["t"], "rule": "all"},
                 "prices": {"coefficients": ["array+buffers", "dram", "constant"], "rows": names["e"], "rule": "all"}},
    })  # fmt: skip
    of = {"t": {"quantity": "latency", "unit": "s", "fit": ["pace"]},
          "e": {"quantity": "energy", "unit": "J", "fit": ["pace", "prices"]}}  # fmt: skip
    rest = {"workload": "any", "kind": "equation", "certainty": "seen", "where": "here", "shown": "fitted"}
    entries = [Entry(file, Path(), Row.model_validate({"id": name, "value": float(value), **of[name[0]], **rest}), "bench.yaml:1")
               for name, value in truth.items()]  # fmt: skip
    found = fit_rows(entries, lambda entry: done[int(entry.row.id[1:])], [])
    pace, prices = (found.get(("bench.yaml", name)) for name in ("pace", "prices"))
    assert pace is not None
    assert [term.value for term in pace.terms] == [float(time)]
    assume(prices is not None and prices.condition < 100)  # not all energies in nearly one proportion
    assert prices is not None
    for entry in entries:
        again = simulated_value(entry, [at_fit(entry, done[int(entry.row.id[1:])], found)])
        assert float(again) == pytest.approx(entry.row.value, rel=1e-4)
    assert [term.value for term in prices.terms] == pytest.approx([float(array), float(dram), float(watts)], rel=1e-3, abs=1e-3)


def test_a_judged_row_moves_no_coefficient(tmp_path: Path) -> None:
    fits = "all: {coefficients: [static], rows: [wide_fast], rule: the first}"
    first, second = (
        bench(tmp_path, fits, f"id: wide_fast, {RUNS['wide_fast']}, value: 5, fit: all, {FITTED}",
              f"id: deep_slow, {RUNS['deep_slow']}, value: {value}, fit: all")
        for value in (1, 100)
    )  # fmt: skip
    assert first.fits == second.fits
    assert simulated(first) == simulated(second)
    assert [outcome.verdict for outcome in first.outcomes] == ["fitted", "miss"]


def test_another_pace_is_another_clock(tmp_path: Path) -> None:
    """Half the clock, with as many bytes a cycle: fitting the time of one run gives time, power and energy of all."""
    wanted = [f"id: {name}_{quantity}, workload: {name}, build: half, quantity: {quantity}, unit: {unit}, value: 1"
              for name in ("wide", "deep") for quantity, unit in (("latency", "s"), ("power", "W"), ("energy", "J"))]
    truth = simulated(bench(tmp_path, "", *wanted))
    rows = [
        row.replace("build: half", "build: fast, fit: pace").replace("value: 1", f"value: {truth[name]:.15g}")
        + (f", {FITTED}" if name == "wide_latency" else "")
        for row, name in zip(wanted, truth, strict=True)
    ]
    found = bench(tmp_path, "pace: {coefficients: time, rows: wide_latency, rule: the first}", *rows)
    assert terms(found) == {TIME: 2}
    assert simulated(found) == pytest.approx(truth, rel=1e-7)


def test_prices_are_fitted_at_the_fitted_pace(tmp_path: Path) -> None:
    """The board draws twice as much and the clock is half: a factor of two on the power, and not of four."""
    settings = "set: [{path: clock, value: 50 MHz, where: here}, {path: dram.bandwidth, value: 2.132 GB/s, where: here}]"
    quantities = {"latency": "s", "energy": "J", "power": "W"}
    wanted = [f"id: {name}_{quantity}, workload: {name}, build: more, {settings}, quantity: {quantity}, unit: {unit}, value: 1"
              for name in ("wide", "deep") for quantity, unit in quantities.items()]  # fmt: skip
    truth = simulated(bench(tmp_path, "", *wanted))
    fits = ("pace: {coefficients: time, rows: wide_latency, rule: the first}, "
            "idle: {coefficients: board, rows: wide_energy, rule: the first}")  # fmt: skip
    rows = [
        row.replace(f"build: more, {settings}", f"build: fast, fit: {'pace' if 'latency' in name else '[idle, pace]'}")
        .replace("value: 1", f"value: {truth[name]:.15g}") + (f", {FITTED}" if name in ("wide_latency", "wide_energy") else "")
        for row, name in zip(wanted, truth, strict=True)
    ]  # fmt: skip
    found = bench(tmp_path, fits, *rows)
    assert terms(found) == pytest.approx({TIME: 2, "board": 2})
    assert simulated(found) == pytest.approx(truth, rel=1e-6)


def test_a_rate_goes_with_the_inverse_of_the_pace(tmp_path: Path) -> None:
    row = "workload: wide, build: fast"
    rows = f"id: t, {row}, quantity: latency, unit: s, value: 1", f"id: r, {row}, quantity: rate, unit: fps, value: 1"
    spec = simulated(bench(tmp_path, "", *rows))
    rows = (f"id: t, {row}, quantity: latency, unit: s, fit: pace, value: {spec['t'] / 4}, {FITTED}",
            f"id: r, {row}, quantity: rate, unit: fps, fit: pace, value: {4 * spec['r']}")
    found = bench(tmp_path, "pace: {coefficients: time, rows: [t], rule: both}", *rows)
    assert terms(found) == {TIME: 0.25}
    assert found.outcomes[1].simulated == pytest.approx(4 * spec["r"])


def test_rows_to_spare_give_an_interval_that_holds_the_truth(tmp_path: Path) -> None:
    at_spec = spec_powers(tmp_path)
    rows = [f"id: {name}, {run}, value: {(1 + 0.01 * (-1) ** i) * (at_spec[f'{name}.dynamic'] + at_spec[f'{name}.static'])}"
            f", fit: all, {FITTED}" for i, (name, run) in enumerate(RUNS.items())]  # fmt: skip
    found = bench(tmp_path, f"all: {{coefficients: [static+dynamic], rows: [{', '.join(RUNS)}], rule: all}}", *rows)
    ((term,),) = (fitted.terms for fitted in found.fits)
    assert term.low is not None
    assert term.high is not None
    assert 0.9 < term.low < 1 < term.high < 1.1


def test_a_chosen_row_brings_the_rows_that_its_fit_rests_on(tmp_path: Path) -> None:
    fits = "all: {coefficients: [static], rows: [wide_fast], rule: the first}"
    place = write(
        tmp_path, f"id: wide_fast, {RUNS['wide_fast']}, value: 5, fit: all, {FITTED}",
        f"id: deep_slow, {RUNS['deep_slow']}, value: 5, fit: all", head=HEAD.replace("FITS", f"fits: {{{fits}}}"),
    )  # fmt: skip
    everything, alone = validate(place), validate(place, only=["deep_slow"])
    assert [outcome.entry.row.id for outcome in alone.outcomes] == ["deep_slow"]
    assert alone.outcomes[0].simulated == everything.outcomes[1].simulated
    assert alone.fits == everything.fits


def test_multiples_of_a_mac_become_joules(tmp_path: Path) -> None:
    """A MAC at 3 pJ: the energy of each layer is its multiples of a MAC times that."""
    head = """\
        schema_version: 1
        system: Chip
        citation: none
        boundary: the chip
        builds: {chip: {hardware: eyeriss}}
        workloads: {alexnet: {trace: alexnet-eyeriss-b4, inference: true}}
        fits: {unit: {coefficients: [dynamic], rows: [conv4_j], rule: one of two}}
        defaults: {build: chip, workload: alexnet, scope: chip, kind: chip bench, certainty: seen, where: here, tolerance: 1 %}
        rows:
    """
    macs = [f"id: conv{i}_macs, layer: conv{i}, quantity: normalised_energy, unit: MAC, value: 1" for i in (4, 5)]
    multiples = simulated(validate(write(tmp_path, *macs, head=head.replace("\n        fits", "\n        #"))))
    rows = [f"id: conv{i}_j, layer: conv{i}, quantity: energy, unit: pJ, fit: unit, value: {3 * multiples[f'conv{i}_macs']}"
            + (f", {FITTED}" if i == 4 else "") for i in (4, 5)]  # fmt: skip
    found = validate(write(tmp_path, *rows, head=head))
    ((term,),) = (fitted.terms for fitted in found.fits)
    assert (term.value, term.unit) == (pytest.approx(3), "pJ for one 16-bit MAC")
    assert [outcome.verdict for outcome in found.outcomes] == ["fitted", "ok"]
    assert found.outcomes[1].error == pytest.approx(0, abs=1e-6)
    half = validate(write(tmp_path, *rows, head=head.replace("[dynamic]", "[buffers]")))
    assert any("multiples of one 16-bit MAC, not joules" in problem for problem in half.problems)


A = f"id: a, {RUNS['wide_fast']}, value: 5, fit: one, {FITTED}"
ONE = "one: {coefficients: [static], rows: [a], rule: here}"


@pytest.mark.parametrize(
    ("fits", "rows", "sentence"),
    [
        ("", [A], "a: there is no fit 'one' in this file; it has none"),
        ("ones: {coefficients: [static], rows: [a], rule: here}", [A], "there is no fit 'one' in this file; did you mean 'ones'?"),
        (ONE.replace("[a]", "[a, b]"), [A], "fits.one: 'b' is no row of this file with fit: one"),
        (ONE, [A.replace(f", {FITTED}", "")], "fits.one: 'a' is fitted and therefore cannot gate"),
        (ONE, [f"{A}, certainty: recalled"], "fits.one: 'a' is recalled, to which nothing is fitted"),
        (ONE, [f"{A}, bound: above"], "fits.one: 'a' is a bound, to which nothing is fitted"),
        (ONE.replace("static", "statc"), [A], "'statc' is no part of the machine; did you mean 'static'?"),
        (ONE.replace("static", "static, dynamic"), [A], "1 rows cannot fix 2 coefficients"),
        (ONE.replace("static", "time, dynamic"), [A], "time is fitted alone"),
        (ONE.replace("static", "time"), [A], "'a' is of power, to which no time can be fitted"),
        (ONE, [A.replace("value: 5", "value: 5, quantity: latency, unit: s")], "'a' is of latency, to which no price can be"),
        (ONE.replace("static", "host"), [A], "no fitted row holds energy of host"),
        (ONE, [A.replace("workload: wide", "workload: wide, layer: c")], "fits.one: a could not be simulated"),
        (f"{ONE}, two: {{coefficients: [board], rows: [b], rule: here}}",
         [A, f"id: b, {RUNS['wide_slow']}, value: 5, fit: [two, one], {FITTED}"], "b: has 'static' from two fits; name one"),
        (ONE, [A, f"id: b, {RUNS['wide_fast']}, value: 1, against: {{}}, relation: ratio, unit: x, fit: one"],
         "is relative, and fits are of times, energies and powers"),
    ],
)  # fmt: skip
def test_sentences(tmp_path: Path, fits: str, rows: list[str], sentence: str) -> None:
    good = f"id: good, {RUNS['deep_fast']}, quantity: latency, unit: s, value: 1, shown: it is compared all the same"
    found = bench(tmp_path, fits, good, *rows)
    assert found.exit_code == 2
    assert any(sentence in problem for problem in found.problems), found.problems
    assert "good" in [outcome.entry.row.id for outcome in found.outcomes]


def test_every_page_says_what_was_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at_spec = spec_powers(tmp_path)
    factor = (5 - at_spec["wide_fast.dynamic"]) / at_spec["wide_fast.static"]
    place = tmp_path / "readings"
    place.mkdir()
    bench(place, ONE.replace("here", "the first of them"), A, f"id: b, {RUNS['deep_slow']}, value: 5, fit: one, shown: far off")
    monkeypatch.setenv("COLUMNS", "200")
    files = {what: tmp_path / f"all.{end}" for what, end in
             {"json": "json", "markdown": "md", "html": "html", "picture": "svg"}.items()}  # fmt: skip
    assert main(["validate", str(place), *(word for what, file in files.items() for word in (f"--{what}", str(file)))]) == 0
    line = f"one: static {factor:.4g} times (no interval: no row to spare); on a (the first of them)"
    assert f"fitted: {line}" in capsys.readouterr().out
    assert f"* Fitted: {line}" in files["markdown"].read_text()
    assert f"Fitted: {line}" in files["html"].read_text()
    assert "1 row. Left out (bounds; changes and savings in points of a percentage): 0 rows. Fitted: 1 row." in files["picture"].read_text()
    data = json.loads(files["json"].read_text())
    assert data["fits"][0]["rows"] == ["a"]
    assert [(row["verdict"], row["fit"]) for row in data["rows"]] == [("fitted", ["one"]), ("shown", ["one"])]
    assert [(s["quantity"], s["fitted"], s["rows"]) for s in data["summaries"]] == [
        ("power, fit one", True, 1), ("power, fit one", False, 1)]  # fmt: skip


def test_calibrate_leaves_rows_of_a_fit_to_their_file(tmp_path: Path) -> None:
    rows = [A, *(f"id: c{i}, {run}, value: {4 + i}" for i, run in enumerate(RUNS.values()))]
    bench(tmp_path, ONE, *rows)
    found = calibrate(tmp_path, load_hardware("zedboard-fp32"))
    assert [reading.entry.row.id for reading in found.readings] == ["c0", "c1", "c2", "c3"]


# -- the shipped ones

VALIDATION = folder("validation")
ENTRIES = load(VALIDATION).entries


def test_no_more_coefficients_than_rows_and_no_row_on_both_sides() -> None:
    fits = {(entry.file.system, name): fit for entry in ENTRIES for name, fit in entry.file.fits.items()}
    assert {name for _, name in fits} >= {"watts", "pace", "standing", "design_A", "on_chip"}
    for (system, name), fit in fits.items():
        rows = {entry.row.id: entry.row for entry in ENTRIES if entry.file.system == system and name in entry.row.fit}
        assert len(fit.coefficients) <= len(fit.rows)
        assert not any(rows[row].gates for row in fit.rows)


def test_one_half_of_the_trainings_of_fractrain_is_judged_by_the_other() -> None:
    """Every second training in the order of the table, each with its time and its energy; none of its watts gates."""
    rows = [entry.row for entry in ENTRIES if entry.file.system == "FracTrain" and entry.row.fit]
    (file,) = {entry.file.system: entry.file for entry in ENTRIES if entry.file.system == "FracTrain"}.values()
    for fit, quantity in (("pace", "latency"), ("standing", "energy")):
        in_order = [row.id for row in rows if row.quantity == quantity]
        assert list(file.fits[fit].rows) == in_order[::2]
    watts = [row for row in rows if row.quantity == "power"]
    assert [row.gates for row in watts] == 5 * [False, True]


def test_the_domain_quotes_coefficients_that_were_printed() -> None:
    """docs/validation.md is generated; a coefficient that has moved since is found here."""
    docs = Path(__file__).parents[2] / "docs"
    printed = (docs / "validation.md").read_text(encoding="utf-8")
    page = (docs / "domain.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| [\w-]+, `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    assert {name for name, _ in quoted} == {name for entry in ENTRIES for name in entry.file.fits}
    assert [name for name, terms in quoted if f"Fitted: {name}: {terms}; on " not in printed] == [], "run: make validate"


@pytest.mark.parametrize(
    ("file", "hardware", "only"),
    [("ef-train-steps", "eftrain-zcu102", ()), ("yolov2", "yolov2-zu3eg-fp32", ("A_static", "A_dynamic"))],
)
def test_a_shipped_fitted_spec_has_the_prices_that_its_rows_give(file: str, hardware: str, only: tuple[str, ...]) -> None:
    """Frozen, and what `jouletrace calibrate` writes: validation/README.md has the command that writes it again."""
    found = calibrate(VALIDATION / f"{file}.yaml", load_hardware(hardware), ["chip", "dynamic"], only=only)
    name = f"{hardware}-fitted"
    shipped = load_hardware(VALIDATION / "fitted" / f"{name}.yaml")
    assert price_list(shipped) == price_list(hardware_from_resolved(fitted_spec(found, name)))
    assert shipped.name == name
    assert len(found.fitted) == len(found.coefficients) == 2
