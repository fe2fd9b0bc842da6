"""Breakdowns are values: they add, repeat and group without losing an attojoule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.errors import UsageError
from jouletrace.ledger.breakdown import GROUPS, SCOPES, Breakdown, Energy, Row

ROWS = st.builds(
    lambda op, component, action, n, low, value, high: Row(
        op, op[0], "forward", "conv", component, action, "param", n,
        Energy(low + value, low, low + value + high),
    ),
    st.sampled_from(["a1", "a2", "b1"]), st.sampled_from(["array", "dram", "board", "buffer.input"]),
    st.sampled_from(["read", "write"]), st.integers(1, 10**12), *[st.integers(0, 10**25)] * 3,
)  # fmt: skip
BREAKDOWNS = st.builds(
    lambda rows, cycles: Breakdown(tuple(rows), cycles, 10**8),
    st.lists(ROWS, max_size=6),
    st.integers(0, 10**9),
)


@given(BREAKDOWNS, BREAKDOWNS)
def test_a_sum_is_the_sum_of_its_groups(a: Breakdown, b: Breakdown) -> None:
    both = a + b
    assert both.cycles == a.cycles + b.cycles
    for scope in SCOPES:
        assert both.total(scope) == a.total(scope) + b.total(scope)
        for group in GROUPS:
            parts, first, second = (x.by(group, scope) for x in (both, a, b))
            assert parts == {key: first.get(key, Energy()) + second.get(key, Energy()) for key in {**first, **second}}
    assert sum(row.count for row in both.rows) == sum(row.count for row in (*a.rows, *b.rows))
    assert len({(r.op, r.component, r.action) for r in both.rows}) == len(both.rows)


@given(BREAKDOWNS, st.integers(0, 5))
def test_n_times_is_n_sums(one: Breakdown, n: int) -> None:
    total = Breakdown((), 0, 10**8)
    for _ in range(n):
        total = total + one
    assert total.by("op") == (Breakdown((), 0, 10**8) + one.times(n)).by("op") if n else total.rows == ()
    assert one.times(n).total() == one.total().times(n)
    assert one.times(n).cycles == one.cycles * n


def test_groups_keep_program_order() -> None:
    rows = [Row(op, op, "forward", "conv", "array", "mac", "", 1, Energy(1, 1, 1)) for op in ("z", "a", "z", "m")]
    assert list(Breakdown(tuple(rows), 1, 1).by("layer")) == ["z", "a", "m"]


def test_scopes_hold_what_they_say() -> None:
    components = ("array", "buffer.input", "vector", "host", "chip", "dram", "board")
    rows = tuple(Row("o", "l", "forward", "conv", c, "x", "", 1, Energy(1, 1, 1)) for c in components)
    breakdown = Breakdown(rows, 1, 1)
    assert list(breakdown.by("component", "chip")) == ["array", "buffer.input", "vector", "host", "chip"]
    assert list(breakdown.by("component", "chip+dram")) == [*breakdown.by("component", "chip"), "dram"]
    assert list(breakdown.by("component", "board")) == list(components)


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot be grouped by 'layers'; groups are .*; did you mean 'layer'"):
        Breakdown((), 0, 1).by("layers")
    with pytest.raises(UsageError, match="at 1 Hz and 2 Hz cannot be added"):
        Breakdown((), 0, 1) + Breakdown((), 0, 2)
