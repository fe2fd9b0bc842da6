"""Rows that are made only when looked at say what rows that are written out say, whatever is asked of them."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.hardware.energy import Price, price_list
from jouletrace.hardware.load import load_hardware
from jouletrace.ledger.breakdown import GROUPS, SCOPES, Breakdown, Energy, Row
from jouletrace.ledger.price import price
from jouletrace.ledger.rows import PricedRows
from jouletrace.ledger.tally import PER_CYCLE, Accesses, OpKey, OpTally, Tally

PRICES = {
    key: Price(10 + i, i, 10**20 * i, "a source", "assumed")
    for i, key in enumerate([("array", "mac"), ("dram", "read"), ("board", "fan"), *(key[:2] for key in PER_CYCLE)])
}
ACTIONS = [("array", "mac", ""), ("dram", "read", "param"), ("dram", "read", "gradient"), ("board", "fan", "")]
ACCESSES = st.dictionaries(st.sampled_from(ACTIONS), st.integers(1, 10**22), max_size=4)


@st.composite
def steps(draw: st.DrawFn, *, unique: bool = False) -> list[tuple[OpKey, dict[Any, int], int]]:
    """Ops with some accesses, which several may share, and cycles; some are there twice unless they are unique."""
    names = draw(st.lists(st.sampled_from(["a1", "a2", "b1", "b2"]), max_size=5, unique=unique))
    shared = draw(st.lists(ACCESSES, min_size=1, max_size=2))
    cycles = st.integers(0, 2)
    return [(OpKey(n, n[0], "forward", "conv"), draw(st.sampled_from(shared)), draw(cycles)) for n in names]


def written_out(step: list[tuple[OpKey, dict[Any, int], int]]) -> Breakdown:
    """With every row made from counts and prices, one by one."""
    rows: list[Row] = []
    for key, accesses, cycles in step:
        for action, n in (*accesses.items(), *((action, cycles) for action in PER_CYCLE if cycles)):
            one = PRICES[action[:2]]
            rows.append(Row(*key, *action, n, Energy(one.energy_aj * n, one.low_aj * n, one.high_aj * n)))
    return Breakdown(tuple(rows), sum(cycles for _, _, cycles in step), 10**8)


def counted(step: list[tuple[OpKey, dict[Any, int], int]]) -> Breakdown:
    done: dict[int, Accesses] = {id(accesses): tuple(accesses.items()) for _, accesses, _ in step}
    ops = tuple(OpTally(key, done[id(accesses)], cycles) for key, accesses, cycles in step)
    tally = Tally(ops, sum(op.cycles for op in ops))
    return Breakdown(PricedRows(tally, PRICES), tally.cycles, 10**8)


def answers(breakdown: Breakdown) -> list[object]:
    """All that can be asked; of groups also their order."""
    groups = [list(breakdown.by(group, scope).items()) for group in GROUPS for scope in SCOPES]
    return [breakdown.cycles, [*map(breakdown.total, SCOPES)], groups, list(breakdown.counts.items()), len(breakdown.rows)]


@given(steps(), steps(), st.integers(0, 3))
def test_counted_steps_are_steps_that_are_written_out(a: Any, b: Any, n: int) -> None:
    def check(lazy: Breakdown, plain: Breakdown) -> None:
        assert answers(lazy) == answers(plain)
        assert lazy == plain == lazy
        assert hash(lazy) == hash(plain)

    check(counted(a), written_out(a))
    check(counted(a).times(n), written_out(a).times(n))
    check(counted(a).in_phase("loading"), written_out(a).in_phase("loading"))
    check(counted(a) + counted(b), written_out(a) + written_out(b))
    check(counted(a) + written_out(b), written_out(a) + written_out(b))
    check(Breakdown((), 0, 10**8) + counted(b), Breakdown((), 0, 10**8) + written_out(b))


def row_was_made(*_: object) -> None:
    raise AssertionError("a row was made")


@given(steps(unique=True), st.integers(1, 3))
def test_sums_make_no_rows(step: Any, n: int) -> None:
    one, later = counted(step), [(key, accesses, 2 * cycles) for key, accesses, cycles in step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PricedRows, "__iter__", row_was_made)
        patch.setattr("jouletrace.ledger.rows.Row", row_was_made)
        both = Breakdown((), 0, 10**8) + one.times(n) + counted(later) + one.in_phase("loading")
        found = answers(both)
    assert found == answers(written_out(step).times(n) + written_out(later) + written_out(step).in_phase("loading"))


def test_other_prices_are_kept_apart() -> None:
    """Rows of two hardwares at one clock are added row by row."""
    op = OpTally(OpKey("a", "a", "forward", "conv"), ((ACTIONS[0], 2),), 0)
    dearer = {key: Price(2 * p.energy_aj, p.low_aj, p.high_aj, p.source, p.certainty) for key, p in PRICES.items()}
    one, other = (Breakdown(PricedRows(Tally((op,), 0), prices), 0, 1) for prices in (PRICES, dearer))
    assert (one + other).total().energy_aj == 3 * one.total().energy_aj
    assert one != other


def test_rows_are_a_sequence() -> None:
    step = counted([(OpKey("a", "a", "forward", "conv"), {ACTIONS[0]: 1, ACTIONS[1]: 2}, 1)])
    assert [row.action for row in step.rows] == ["mac", "read", "static", "background", "idle"]
    assert step.rows[1] == step.rows[1:][0] == Row("a", "a", "forward", "conv", "dram", "read", "param", 2, Energy(22, 2, 2 * 10**20))
    assert pickle.loads(pickle.dumps(step)) == step
    assert repr(step.rows) == repr(tuple(step.rows))
    assert step.rows != [*step.rows], "a list is no tuple either"


def test_what_engines_count_is_tallied_once_for_equal_ops() -> None:
    """Ops that share their counts share their accesses; what never happened is gone."""
    counts = {ACTIONS[0]: 3, ACTIONS[1]: 0}
    info = SimpleNamespace(name="a", layer="a", phase="forward", kind="conv")
    ops = [SimpleNamespace(op=info, frontier_cycles=n, counts=counts) for n in (1, 2)]
    tally = Tally.of(SimpleNamespace(cycles=3, ops=ops))  # type: ignore[arg-type]
    assert tally.ops[0].accesses is tally.ops[1].accesses
    assert tally.total == {ACTIONS[0]: 6, **dict.fromkeys(PER_CYCLE, 3)}


def test_prices_of_one_hardware_are_not_those_of_the_next() -> None:
    hardware = load_hardware("zedboard-int8")
    power = [10 * watts for watts in hardware.board.board_idle]
    other = hardware.model_copy(update={"board": hardware.board.model_copy(update={"board_idle": tuple(power)})})
    idle = [price_list(each)["board", "idle"].energy_aj for each in (hardware, other, hardware)]
    assert idle[1] == 10 * idle[0] == 10 * idle[2]
    op = SimpleNamespace(name="a", layer="a", phase="forward", kind="conv")
    counts: Any = SimpleNamespace(cycles=5, ops=[SimpleNamespace(op=op, frontier_cycles=5, counts={})])
    tally = Tally.of(counts)
    energies = [price(tally, each).by("component")["board"].energy_aj for each in (hardware, other)]
    assert energies == [5 * idle[0], 5 * idle[1]]
