"""A result as a value: groupings that all add up, and tidy tables."""

import pickle
import sys
from dataclasses import fields, replace

import pytest

import jouletrace
from jouletrace.errors import UsageError
from jouletrace.ledger.breakdown import GROUPS, SCOPES, Energy, Scope
from jouletrace.replay import step
from jouletrace.result.model import Deferred


@pytest.fixture(scope="module")
def result() -> jouletrace.Result:
    trace = jouletrace.load_trace("resnet20-cifar10-b32")
    return jouletrace.simulate(trace, jouletrace.load_hardware("eftrain-zcu102"), only="layer1.0")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("group", GROUPS)
def test_every_grouping_has_the_same_total(result: jouletrace.Result, group: str, scope: Scope) -> None:
    assert sum(result.by(group, scope).values(), Energy()) == result.energy(scope)


def test_wider_scopes_cost_more_and_intervals_hold_the_value(result: jouletrace.Result) -> None:
    chip, with_dram, board = (result.energy(scope) for scope in SCOPES)
    assert 0 < chip.energy_aj < with_dram.energy_aj < board.energy_aj
    for energy in (chip, with_dram, board):
        assert energy.low_aj <= energy.energy_aj <= energy.high_aj


def test_power_is_energy_over_time(result: jouletrace.Result) -> None:
    joules = result.energy("board").energy_aj / 10**18
    assert result.power_w("board") == pytest.approx(joules / (result.cycles / 100e6), rel=1e-12)


def test_records_are_tidy_and_complete(result: jouletrace.Result) -> None:
    records = result.records()
    assert {tuple(record) for record in records} == {tuple(records[0])}
    assert len({(record["op"], record["component"]) for record in records}) == len(records)
    assert sum(record["energy_pj"] for record in records) == pytest.approx(result.energy().energy_aj / 10**6, rel=1e-12)


def test_frame_without_pandas_says_what_to_do(result: jouletrace.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="needs pandas; install it, or use result.records"):
        result.frame()


def test_frame_is_made_of_the_records(result: jouletrace.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for pandas, which is not a dependency."""

    class Pandas:
        DataFrame = staticmethod(lambda records: ("frame of", records))

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    assert result.frame() == ("frame of", result.records())


def test_unknown_group_is_refused_with_a_suggestion(result: jouletrace.Result) -> None:
    with pytest.raises(UsageError, match="did you mean 'layer'"):
        result.by("layers")


def test_what_nobody_looks_at_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("resolved", "digest", "assumptions", "_ops"):
        real = getattr(step, name)
        monkeypatch.setattr(step, name, lambda x, name=name, real=real: (asked.append(name), real(x))[1])
    trace = jouletrace.load_trace("resnet20-cifar10-b32")
    result = jouletrace.simulate(trace, jouletrace.load_hardware("eftrain-zcu102"), only="conv1")
    assert (result.cycles, result.energy().energy_aj, result.utilisation) > (0, 0, 0)
    assert not asked
    assert len({result.hardware_digest, result.hardware_digest}) == 1
    assert [op.name for op in result.ops] == [op.name for op in result.ops]
    assert asked == ["digest", "_ops"]


def test_a_result_with_values_to_come_is_a_value(result: jouletrace.Result) -> None:
    given = {each.name: getattr(result, each.name) for each in fields(result)} | {"execution": None}
    later = jouletrace.Result(**given | {name: Deferred(lambda name=name: given[name]) for name in ("hardware", "ops")})
    for made in (pickle.loads(pickle.dumps(later)), replace(later, engine=result.engine), later):
        assert made == result
        assert made.to_json() == result.to_json()
    with pytest.raises(AttributeError, match="cannot assign to field 'ops'"):
        later.ops = ()  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'ops'"):
        jouletrace.Result(**{name: value for name, value in given.items() if name != "ops"})
