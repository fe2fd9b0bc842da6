"""Rows beside simulated values: verdicts, errors that leave other rows alone, and values that no measurement moves."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from jouletrace import load_hardware, load_trace, simulate
from jouletrace.resources import folder
from jouletrace.trace.batch import with_batch
from jouletrace.validate import Outcome, Validation, validate
from jouletrace.validate.load import load
from jouletrace.validate.quantities import Simulated
from jouletrace.validate.simulate import cases_of, simulated_value

from .measurement_files import write

C1 = "layer: C1, phase: forward"


def only(tmp_path: Path, *rows: str) -> Outcome:
    validation = validate(write(tmp_path, *rows))
    assert not validation.problems
    return validation.outcomes[-1]


def cycles_of_c1() -> int:
    trace = with_batch(load_trace("lenet10-cifar10-b128"), 2)
    return simulate(trace, load_hardware("eftrain-zcu102"), only="conv1:forward").cycles


def test_a_layer_alone_is_what_run_gives_for_it(tmp_path: Path) -> None:
    assert only(tmp_path, f"id: a, {C1}, value: 1").simulated == cycles_of_c1()


@pytest.mark.parametrize(
    ("measured", "more", "verdict"),
    [
        (Fraction(100, 104), "", "ok"),
        (Fraction(100, 106), "", "miss"),
        (Fraction(100, 94), "", "miss"),
        (Fraction(100, 150), ", certainty: recalled", "shown"),
        (Fraction(100, 150), ", shown: it is another machine", "shown"),
        (Fraction(100, 150), ", bound: above", "ok"),     # at least this much, and it is more
        (Fraction(100, 150), ", bound: below", "miss"),
        (Fraction(100, 104), ", bound: below", "ok"),     # more, by less than the tolerance
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_tolerance(tmp_path: Path, measured: Fraction, more: str, verdict: str) -> None:
    value = float(cycles_of_c1() * measured)
    outcome = only(tmp_path, f"id: a, {C1}, value: {value}{more}")
    assert outcome.verdict == verdict
    assert outcome.error == pytest.approx(float(1 / measured - 1))


def test_savings_are_against_another_case_and_their_tolerance_is_in_points(tmp_path: Path) -> None:
    saving = "quantity: bit_operations, strategy: 'int8:gradient=8', against: {}, relation: saving, unit: '%'"
    # 8 x 8 of 32 x 32 bits are 1/16: 93.75 % are saved.
    outcome = only(tmp_path, f"id: a, {saving}, value: 91, tolerance: 3 points")
    assert (outcome.simulated, outcome.deviation, outcome.verdict) == (93.75, 2.75, "ok")
    assert only(tmp_path, f"id: a, {saving}, value: 90, tolerance: 3 points").verdict == "miss"
    rows = f"id: a, {saving}, value: 91, tolerance: 3 points", f"id: b, {saving}, value: 75, tolerance: 50 %"
    points, share = validate(write(tmp_path, *rows)).summaries
    assert (points.in_points, points.mean, share.in_points, share.mean) == (True, 2.75, False, pytest.approx(0.25))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("layer: conv9, value: 1", "lenet10-cifar10-b2 has no layer 'conv9'; did you mean 'conv3'?"),
        ("layer: C1, phase: backward_data, value: 1", "the selector chooses no op of lenet10-cifar10-b2; phases there are"),
        ("layer: C1, ops: convv, value: 1", "did you mean 'conv'?"),
        ("quantity: cycle, value: 1", "there is no quantity 'cycle'; did you mean 'cycles'?"),
        ("unit: ms, value: 1", "cycles has no unit 'ms'; one of cycles is needed"),
        ("quantity: energy, unit: J, components: [arry], value: 1", "no component 'arry' did anything here; did you mean 'array'?"),
        ("set: [{path: clok, value: 1 MHz, where: p. 3}], value: 1", "--set clok=1 MHz: there is no 'clok'; did you mean 'clock'?"),
        ("set: [{path: clock, value: 0 MHz, where: p. 3}], value: 1", "clock"),
        ("strategy: smdd, value: 1", "there is no strategy 'smdd'; did you mean 'smd'?"),
        ("quantity: energy, unit: J, components: ['array:mac_int61'], value: 1", "no component 'array:mac_int61' did anything"),
        ("quantity: normalised_energy, unit: MAC, value: 1", "energies of this hardware are joules, not multiples of a MAC"),
        ("quantity: array_latency, unit: s, iterations: 1, value: 1", "is known of a step and not of a whole training"),
        ("batch: 3, iterations: 2, layer: C1, value: 1", "is of a whole training; leave out iterations, or layer"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_simulated_is_told_and_the_others_run(tmp_path: Path, row: str, sentence: str) -> None:
    validation = validate(write(tmp_path, f"id: good, {C1}, value: {cycles_of_c1()}", f"id: bad, {row}"))
    assert [(o.entry.row.id, o.verdict) for o in validation.outcomes] == [("good", "ok")]
    assert validation.exit_code == 2
    assert all(p.startswith(f"{tmp_path / 'bench.yaml'}:13: bad: ") for p in validation.problems), validation.problems
    assert any(sentence in problem for problem in validation.problems), validation.problems


EYERISS = {"eftrain-zcu102": "eyeriss", "lenet10-cifar10-b128": "alexnet-eyeriss-b4", "batch: 2": "inference: true"}


def on_eyeriss(tmp_path: Path, *rows: str) -> Validation:
    write(tmp_path, *(f"{row}, layer: CONV5, value: 1, shown: no measurement" for row in rows))
    file = tmp_path / "bench.yaml"
    text = file.read_text().replace("C1: conv1", "CONV5: conv5")
    for old, new in EYERISS.items():
        text = text.replace(old, new)
    file.write_text(text)
    return validate(tmp_path)


def test_one_action_of_a_component_can_be_meant(tmp_path: Path) -> None:
    """Reads and writes of the buffer for maps add up to both; MACs at one MAC each are the MACs of the layer."""
    plain = "set: [{path: array.zero_gating, value: 'false', where: p. 3}]"
    reads, writes, both, macs, energy = (
        outcome.simulated for outcome in on_eyeriss(
            tmp_path,
            "id: reads, quantity: buffer_bytes, unit: B, components: 'buffer.input:read'",
            "id: writes, quantity: buffer_bytes, unit: B, components: 'buffer.input:write'",
            "id: both, quantity: buffer_bytes, unit: B, components: [buffer.input, 'buffer.input:read']",
            "id: macs, quantity: macs, unit: MAC",
            f"id: energy, quantity: normalised_energy, unit: MAC, components: 'array:mac_int16', {plain}",
        ).outcomes
    )  # fmt: skip
    assert reads + writes == both > max(reads, writes) > 0
    assert energy == macs == 4 * 2 * 128 * 192 * 13 * 13 * 3 * 3


def test_the_array_works_for_less_than_the_layer_takes(tmp_path: Path) -> None:
    """Maps and results are moved while the array waits, so a slower link makes the layer longer and not its work."""
    slow = "set: [{path: dram.bandwidth, value: 48 MB/s, where: p. 3}]"
    works, takes, works_as_long, takes_longer = (
        outcome.simulated for outcome in on_eyeriss(
            tmp_path, "id: a, quantity: array_latency, unit: ms", "id: b, quantity: latency, unit: ms",
            f"id: c, quantity: array_latency, unit: ms, {slow}", f"id: d, quantity: latency, unit: ms, {slow}",
        ).outcomes
    )  # fmt: skip
    assert works == works_as_long < takes < takes_longer


def test_joules_are_not_compared_with_multiples_of_a_mac_but_their_ratios_are(tmp_path: Path) -> None:
    ratio = "quantity: energy, against: {}, relation: ratio, unit: x"
    validation = on_eyeriss(tmp_path, "id: power, quantity: power, unit: mW", f"id: ratio, {ratio}")
    assert [(outcome.entry.row.id, outcome.simulated) for outcome in validation.outcomes] == [("ratio", 1.0)]
    assert [p.partition(": power: ")[2] for p in validation.problems] == [
        "energies of this hardware are multiples of one 16-bit MAC, not joules; normalised_energy can be compared"
    ]


def test_a_list_of_layers_is_no_step_that_could_be_trained(tmp_path: Path) -> None:
    write(tmp_path, "id: bad, iterations: 2, value: 1", "id: worse, strategy: int8, value: 1")
    file = tmp_path / "bench.yaml"
    fc = "layers: [{kind: fc, name: fc, out_features: 4, in_features: 4}]"
    file.write_text(file.read_text().replace("trace: lenet10-cifar10-b128", fc))
    problems = validate(tmp_path).problems
    assert [problem.rpartition(": ")[2][:40] for problem in problems] == ["a list of layers is no training step; na"] * 2


def test_an_unknown_platform_is_told_and_counts_need_none(tmp_path: Path) -> None:
    write(tmp_path, "id: bad, value: 1", "id: count, quantity: macs, unit: MMAC, per: sample, value: 1, shown: why not")
    file = tmp_path / "bench.yaml"
    file.write_text(file.read_text().replace("eftrain-zcu102", "eftrain-zcu103"))
    validation = validate(tmp_path)
    assert [outcome.entry.row.id for outcome in validation.outcomes] == ["count"]
    assert "there is no shipped hardware 'eftrain-zcu103'" in validation.problems[0]


def test_files_named_by_path_lie_below_the_measurement_file(tmp_path: Path) -> None:
    write(tmp_path, "id: bad, value: 1")
    file = tmp_path / "bench.yaml"
    file.write_text(file.read_text().replace("eftrain-zcu102", "../../secret.yaml"))
    assert "lies outside the folder of the measurement file" in validate(tmp_path).problems[0]


def test_rows_that_share_a_replay_share_it(tmp_path: Path) -> None:
    seconds = "quantity: latency, unit: ms, tolerance: 5 %"
    validation = validate(write(
        tmp_path, f"id: a, {C1}, value: 1", f"id: b, {C1}, {seconds}, value: 1",
        "id: c, layer: conv1, phase: [forward], value: 1", f"id: d, {C1}, quantity: power, unit: W, value: 1",
        f"id: e, {C1}, set: [{{path: clock, value: 50 MHz, where: p. 3}}], {seconds}, value: 1",
    ))  # fmt: skip
    assert validation.replays == 2
    a, b, c, d, e = (outcome.simulated for outcome in validation.outcomes)
    assert a == c
    assert b == pytest.approx(a / 100e3)
    assert e == pytest.approx(2 * b)
    assert d > 0


def test_processes_change_no_value(tmp_path: Path) -> None:
    phases = ("forward", "backward_weight")
    write(tmp_path, *(f"id: {p}_{b}, layer: C1, phase: {p}, batch: {b}, value: 1" for p in phases for b in (1, 2)))
    assert [o.simulated for o in validate(tmp_path, jobs=2).outcomes] == [o.simulated for o in validate(tmp_path).outcomes]


def test_mean_worst_and_rank_by_system_and_quantity(tmp_path: Path) -> None:
    batches = (1, 2, 4)
    given = validate(write(tmp_path, *(f"id: r{b}, {C1}, batch: {b}, value: 1" for b in batches)))
    cycles = [outcome.simulated for outcome in given.outcomes]
    rows = [f"id: r{b}, {C1}, batch: {b}, value: {n / (1 + error)}"
            for b, n, error in zip(batches, cycles, (0.01, -0.02, 0.09), strict=True)]  # fmt: skip
    rows.append("id: energy, quantity: energy, unit: mJ, value: 1, shown: why not")
    summaries = validate(write(tmp_path, *rows)).summaries
    assert [(s.group, s.quantity, s.gating, s.rows, s.misses, s.rank) for s in summaries] == [
        ("time", "cycles", True, 3, 1, 1.0), ("energy", "energy", False, 1, 0, None),
    ]  # fmt: skip
    assert (summaries[0].mean, summaries[0].worst) == (pytest.approx(0.04), pytest.approx(0.09))


def test_shuffled_measurements_move_no_simulated_value(tmp_path: Path) -> None:
    text = (folder("validation") / "ef-train.yaml").read_text(encoding="utf-8")
    values = re.findall(r"value: ([0-9.]+)", text)
    shuffled = values.copy()
    random.Random(1).shuffle(shuffled)
    given = iter(shuffled)
    before, after = tmp_path / "before", tmp_path / "after"
    other = re.sub(r"value: [0-9.]+", lambda _: f"value: {next(given)}", text)
    for place, content in ((before, text), (after, other)):
        place.mkdir()
        (place / "ef-train.yaml").write_text(content, encoding="utf-8")
    was, now = validate(before), validate(after)
    assert shuffled != values
    assert not was.problems
    assert not now.problems
    assert [o.entry.row.value for o in was.outcomes] != [o.entry.row.value for o in now.outcomes]
    assert [o.simulated for o in was.outcomes] == [o.simulated for o in now.outcomes]


@pytest.mark.parametrize("file", sorted(folder("validation").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_is_simulated_for_a_shipped_row_does_not_know_what_was_measured(file: Path) -> None:
    simulated = Simulated(4, 10**9, 10**12, 10**6, 10**8)
    for entry in load(file).entries:
        row = entry.row
        other = replace(entry, row=row.model_copy(update={
            "value": row.value * 7, "certainty": "recalled", "tolerance": None, "bound": None, "id": "other",
            "where": "elsewhere", "note": None, "shown": None, "kind": "not stated",
        }))  # fmt: skip
        assert [case.key for case in cases_of(entry)] == [case.key for case in cases_of(other)]
        if row.quantity in ("cycles", "latency", "macs", "bit_operations"):
            given = [simulated] * len(cases_of(entry))
            assert simulated_value(entry, given) == simulated_value(other, given)
