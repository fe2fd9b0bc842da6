"""Which engine replays a step: all find the same, and the result says which one it was."""

import json

import pytest

import jouletrace
from jouletrace.hardware.spec import Hardware
from jouletrace.result.contract import from_json
from jouletrace.result.model import Result
from jouletrace.trace.model import Trace

# What of a result file may tell engines apart.
OWN = {("inputs", "engine"), ("replay", "engine"), ("replay", "events")}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return jouletrace.load_trace("resnet20-cifar10-b32")


@pytest.fixture(scope="module")
def fixed() -> Hardware:
    return jouletrace.load_hardware("zedboard-int8")


def without_engine(result: Result) -> dict[str, object]:
    document = json.loads(result.to_json())
    for section, key in OWN:
        del document[section][key]
    return document


def test_a_fixed_order_runs_compiled_and_says_so(trace: Trace, fixed: Hardware) -> None:
    result = jouletrace.simulate(trace, fixed, only="conv1")
    assert (result.options.engine, result.engine) == ("auto", "compiled")


def test_a_port_that_is_shared_at_run_time_needs_events(trace: Trace, fixed: Hardware) -> None:
    dynamic = fixed.model_copy(update={"dram": fixed.dram.model_copy(update={"port": "round_robin"})})
    result = jouletrace.simulate(trace, dynamic, only="conv1")
    assert (result.options.engine, result.engine) == ("auto", "events")


def test_results_of_all_engines_are_equal_in_all_else(trace: Trace, fixed: Hardware) -> None:
    results = [jouletrace.simulate(trace, fixed, engine=engine, only="layer3.2") for engine in ("events", "compiled", "auto")]
    assert [result.engine for result in results] == ["events", "compiled", "compiled"]
    assert without_engine(results[0]) == without_engine(results[1]) == without_engine(results[2])


def test_a_compiled_step_has_every_interval_for_a_timeline(trace: Trace, fixed: Hardware) -> None:
    timed, counted = (
        jouletrace.simulate(trace, fixed, engine=engine, only="layer3.2").execution for engine in ("compiled", "events")
    )
    assert timed is not None
    assert counted is not None
    assert timed.counts.intervals.start.tolist() == counted.counts.intervals.start.tolist()
    assert timed.counts.intervals.end.tolist() == counted.counts.intervals.end.tolist()


def test_a_result_keeps_what_was_asked_and_what_ran(trace: Trace, fixed: Hardware) -> None:
    result = jouletrace.simulate(trace, fixed, only="conv1")
    assert from_json(result.to_json(), "copy") == result
    assert jouletrace.reproduce(result).to_json() == result.to_json()


def test_files_of_version_1_0_are_read(trace: Trace, fixed: Hardware) -> None:
    """They named one engine: the one that was asked for is the one that ran."""
    document = json.loads(jouletrace.simulate(trace, fixed, engine="events", only="conv1").to_json())
    document["version"] = "1.0"
    del document["inputs"]["engine"]
    old = from_json(json.dumps(document), "old")
    assert (old.options.engine, old.engine) == ("events", "events")
