"""The result file: complete, canonical, re-priced by a stranger, and refused when it was edited."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import jouletrace
from jouletrace.errors import ResultError
from jouletrace.ledger.breakdown import SCOPES
from jouletrace.result.contract import document
from jouletrace.result.statistics import STATISTICS

from .reprice import reprice


@pytest.fixture(scope="module")
def result() -> jouletrace.Result:
    """A convolution block with all four phases."""
    trace = jouletrace.load_trace("resnet20-cifar10-b32")
    return jouletrace.simulate(trace, jouletrace.load_hardware("eftrain-zcu102", ["clock=90 MHz"]), only="layer2.0")


@pytest.fixture
def file(result: jouletrace.Result) -> dict[str, Any]:
    return json.loads(result.to_json())


def test_reading_is_the_inverse_of_writing(result: jouletrace.Result) -> None:
    text = result.to_json()
    again = jouletrace.Result.from_json(text)
    assert again == result
    assert again.to_json() == text


def test_a_stranger_gets_the_same_energies(file: dict[str, Any]) -> None:
    for scope, energies in reprice(file).items():
        given = file["totals"]["scopes"][scope]
        assert {end: str(aj) for end, aj in energies.items()} == {end: given[end] for end in energies}


def test_totals_are_sums_of_ops(file: dict[str, Any]) -> None:
    totals, ops = file["totals"], file["ops"]
    assert totals["cycles"] == sum(op["frontier_cycles"] for op in ops) == max(op["end_cycle"] for op in ops)
    assert totals["macs"] == sum(op["macs"] for op in ops)
    assert totals["dram_read_bytes"] + totals["dram_write_bytes"] == sum(op["dram_bytes"] for op in ops)
    for scope in SCOPES:
        assert int(totals["scopes"][scope]["energy_aj"]) == sum(int(op["scopes"][scope]["energy_aj"]) for op in ops)
    assert int(totals["scopes"]["board"]["energy_aj"]) == sum(int(c["energy_aj"]) for c in file["components"])


def test_file_says_where_its_numbers_come_from(file: dict[str, Any]) -> None:
    assert (file["format"], file["version"]) == ("jouletrace-result", "1.1")
    assert file["producer"]["version"] == jouletrace.__version__
    assert [entry["path"] for entry in file["provenance"]["user"]] == ["clock"]
    assert file["inputs"]["hardware"]["resolved"]["clock"].startswith("90")
    assert file["inputs"]["only"] == "layer2.0"
    assert file["inputs"]["trace"]["lines"] is None, "a shipped trace is named, not copied"
    assert "board_idle" in json.dumps(file["provenance"]["assumed"])


def numbers(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers, and of energies written as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, f"{path}[]")
    elif type(value) in (int, float) or path.endswith("_aj"):
        yield path


def test_every_number_is_described_once(file: dict[str, Any]) -> None:
    """Inputs aside: they are the user's numbers, not ours."""
    reported = {path for path in numbers(file) if not path.startswith(("inputs.", "producer."))}
    patterns = {s.path: re.compile(re.escape(s.path).replace(r"\*", "[^\\[\\]]+?")) for s in STATISTICS}
    for path in sorted(reported):
        assert sum(bool(p.fullmatch(path)) for p in patterns.values()) >= 1, f"{path} is not described"
    for name, pattern in patterns.items():
        assert any(pattern.fullmatch(path) for path in reported), f"{name} is described and not reported"
    assert all(s.unit and s.meaning.endswith(".") for s in STATISTICS)


EDITS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("a total", lambda f: f["totals"].update(cycles=f["totals"]["cycles"] + 1), "totals.scopes.board.power_w: does not follow"),
    ("an energy", lambda f: f["totals"]["scopes"]["chip"].update(energy_aj="1"), "totals.scopes.chip.energy_aj: does not"),
    ("a price", lambda f: f["prices"][0].update(energy_aj="1"), "does not follow from the counts and prices"),
    ("a count", lambda f: f["ops"][0]["counts"].update({"array.idle": 10**9}), "does not follow from the counts"),
    ("an unknown key", lambda f: f["totals"].update(joules=3), "totals.joules: does not follow"),
    ("a missing key", lambda f: f["replay"].pop("events"), "'events' is missing"),
    ("a missing section", lambda f: f.pop("ops"), "'ops' is missing"),
    ("a list for an object", lambda f: f.update(replay=[]), "is not a complete result file"),
    ("text for a count", lambda f: f["ops"][0].update(macs="many"), "is not a complete result file"),
    ("a count without price", lambda f: f["ops"][0]["counts"].update({"laser.fire": 1}), "('laser', 'fire') is missing"),
    ("an op twice", lambda f: f["ops"].append(f["ops"][0]), "does not follow"),
    ("no clock", lambda f: f["replay"].update(clock_hz=0), "is not a complete result file"),
    ("another version", lambda f: f.update(version="2.0"), "has version '2.0'; this jouletrace reads 1.x"),
    ("another format", lambda f: f.update(format="jouletrace-trace"), "is not a result file"),
]


@pytest.mark.parametrize(("edit", "sentence"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
def test_edited_file_is_refused(file: dict[str, Any], edit: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    edit(file)
    with pytest.raises(ResultError, match=re.escape(sentence)) as refused:
        jouletrace.Result.from_json(json.dumps(file), "r.json")
    assert all(problem.startswith("r.json: ") for problem in refused.value.problems)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format":"jouletrace-result"}', "[" * 100_000, '{"a":NaN}', "9" * 5000, "\x00", "\ud800x"],
)
def test_what_is_no_result_file_is_refused(text: str) -> None:
    with pytest.raises(ResultError, match="^r.json: "):
        jouletrace.Result.from_json(text, "r.json")


def test_newer_minor_version_may_say_more(file: dict[str, Any], result: jouletrace.Result) -> None:
    file["version"] = "1.7"
    file["totals"]["carbon_g"] = 1.5
    assert jouletrace.Result.from_json(json.dumps(file)) == result


def test_bytes_do_not_depend_on_the_order_of_keys(result: jouletrace.Result) -> None:
    data = document(result)
    assert json.loads(result.to_json()) == json.loads(json.dumps(data))
    assert result.to_json() == jouletrace.Result.from_json(json.dumps(data)).to_json()
