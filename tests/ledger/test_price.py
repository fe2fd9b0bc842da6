"""The energy identity: counts times prices, and every sum of parts equal to the whole, to the attojoule."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.errors import EnergyError
from jouletrace.hardware.energy import PriceList, price_list
from jouletrace.hardware.load import hardware_from_resolved, load_hardware, resolved
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import GROUPS, SCOPES, Energy
from jouletrace.ledger.price import price
from jouletrace.mapping.program import Action, OpInfo

PHASES = ("forward", "backward_data", "backward_weight", "update")
ROLES = ("param", "activation", "gradient", "optimizer_state", "")
HARDWARE = {name: load_hardware(name) for name in ("eftrain-zcu102", "zedboard-int8", "systolic-32x32")}
PRICES = {name: price_list(hardware) for name, hardware in HARDWARE.items()}
LARGE = st.one_of(st.integers(0, 100), st.integers(0, 10**6), st.integers(0, 10**15), st.integers(0, 10**22))


def counted(name: str, layer: str, phase: Any, cycles: int, counts: dict[Action, int]) -> SimpleNamespace:
    return SimpleNamespace(op=OpInfo(name, layer, phase, "conv", macs=0), frontier_cycles=cycles, counts=counts)


def step(*ops: SimpleNamespace) -> Any:
    return SimpleNamespace(cycles=sum(op.frontier_cycles for op in ops), ops=ops)


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, Any]:
    name = draw(st.sampled_from(sorted(HARDWARE)))
    per_cycle = {("chip", "static"), ("dram", "background"), ("board", "idle")}
    actions = st.sampled_from(sorted(set(PRICES[name]) - per_cycle))
    ops: list[SimpleNamespace] = []
    for i in range(draw(st.integers(0, 4))):
        counts: dict[Action, int] = {}
        for _ in range(draw(st.integers(0, 5))):
            component, action = draw(actions)
            counts[component, action, draw(st.sampled_from(ROLES))] = draw(LARGE)
        ops.append(
            counted(
                f"op{i}",
                f"layer{draw(st.integers(0, 2))}",
                draw(st.sampled_from(PHASES)),
                draw(LARGE),
                counts,
            )
        )
    return name, step(*ops)


def recompute(counts: Any, prices: PriceList) -> dict[str, int]:
    """The same sums by other means: per scope, straight from counts, cycles and prices."""
    sums = dict.fromkeys(SCOPES, 0)
    first = {"dram": 1, "board": 2}

    def add(component: str, aj: int) -> None:
        for scope in SCOPES[first.get(component, 0) :]:
            sums[scope] += aj

    for op in counts.ops:
        for (component, action, _), n in op.counts.items():
            add(component, n * prices[component, action].energy_aj)
    for component, action in (("chip", "static"), ("dram", "background"), ("board", "idle")):
        add(component, counts.cycles * prices[component, action].energy_aj)
    return sums


@settings(max_examples=2000, deadline=None)
@given(steps())
def test_energy_identity(case: tuple[str, Any]) -> None:
    name, counts = case
    breakdown = price(counts, HARDWARE[name])
    expected = recompute(counts, PRICES[name])
    for scope in SCOPES:
        total = breakdown.total(scope)
        assert total.energy_aj == expected[scope]
        assert 0 <= total.low_aj <= total.energy_aj <= total.high_aj
        for group in GROUPS:
            parts = breakdown.by(group, scope)
            assert sum(parts.values(), Energy()) == total
    assert breakdown.total("chip").energy_aj <= breakdown.total("chip+dram").energy_aj
    assert breakdown.total("chip+dram").energy_aj <= breakdown.total("board").energy_aj
    assert all(type(row.energy.energy_aj) is int and row.count > 0 for row in breakdown.rows)


@pytest.mark.parametrize("joules", [10, 10**6])
def test_energies_beyond_64_bits_are_exact(joules: int) -> None:
    # 9.2 J is where int64 attojoules end
    one = PRICES["eftrain-zcu102"]["array", "mac_fp32"].energy_aj
    macs = joules * 10**18 // one + 1
    breakdown = price(
        step(counted("op", "l", "forward", 0, {("array", "mac_fp32", ""): macs})), HARDWARE["eftrain-zcu102"]
    )
    assert breakdown.total().energy_aj == macs * one > joules * 10**18 > 2**63
    again = price(
        step(counted("op", "l", "forward", 0, {("array", "mac_fp32", ""): macs + 1})),
        HARDWARE["eftrain-zcu102"],
    )
    assert again.total().energy_aj - breakdown.total().energy_aj == one


def test_energy_per_cycle_follows_the_end_of_the_step() -> None:
    hardware = HARDWARE["zedboard-int8"]
    breakdown = price(
        step(
            counted("a", "l", "forward", 3, {}),
            counted("b", "l", "update", 0, {}),
            counted("c", "l", "update", 4, {}),
        ),
        hardware,
    )
    per_cycle = sum(
        PRICES["zedboard-int8"][key].energy_aj
        for key in (("chip", "static"), ("dram", "background"), ("board", "idle"))
    )
    assert {op: e.energy_aj for op, e in breakdown.by("op").items()} == {
        "a": 3 * per_cycle,
        "c": 4 * per_cycle,
    }
    assert breakdown.cycles == 7


def test_mean_power_is_energy_over_time() -> None:
    hardware = load_hardware("zedboard-fp32", ["board.chip_static=[1 W, 2 W, 3 W]", "board.board_idle=[0 W, 5 W, 9 W]"])
    idle = price(step(counted("a", "l", "forward", 10**8, {})), hardware)  # one second of nothing
    assert idle.seconds == 1
    assert idle.mean_power_w("chip") == 2
    assert idle.mean_power_w("board") - idle.mean_power_w("chip+dram") == pytest.approx(5)
    assert idle.total("chip").energy_aj == 2 * 10**18
    assert (idle.total("chip").low_aj, idle.total("chip").high_aj) == (10**18, 3 * 10**18)
    assert idle.energy_per_sample_pj(4, "chip") == 0.5e12
    assert price(step(), hardware).mean_power_w() == 0


def test_every_unpriced_action_is_named_once() -> None:
    counts = {
        ("array", "mac_int4", ""): 1,
        ("buffer.inputs", "read", "param"): 2,
        ("dram", "read", "param"): 3,
    }
    with pytest.raises(EnergyError) as error:
        price(
            step(counted("a", "l", "forward", 1, counts), counted("b", "l", "forward", 1, counts)),
            HARDWARE["zedboard-int8"],
        )
    assert len(error.value.problems) == 2
    assert "energy table 'fpga-primitives' has no price for array 'mac_int4'; add it" in error.value.problems[0]
    assert "nothing prices 'buffer.inputs' 'read'; priced components are" in error.value.problems[1]


def test_actions_that_never_happened_need_no_price() -> None:
    assert (
        price(step(counted("a", "l", "forward", 0, {("array", "mac_int4", ""): 0})), HARDWARE["zedboard-int8"]).rows
        == ()
    )


ENTRIES = sorted(HARDWARE["zedboard-int8"].energy.array.entries)


@settings(max_examples=150, deadline=None)
@given(steps(), st.sampled_from(["array", "buffers", "vector"]), st.sampled_from(ENTRIES), st.integers(2, 50))
def test_a_larger_table_entry_never_lowers_energy(case: tuple[str, Any], part: str, entry: str, factor: int) -> None:
    _, counts = case
    name = "zedboard-int8"
    known = {**PRICES[name]}
    counts.ops = tuple(
        counted(
            op.op.name, op.op.layer, op.op.phase, op.frontier_cycles,
            {key: n for key, n in op.counts.items() if key[:2] in known},
        )
        for op in counts.ops
    )  # fmt: skip
    dearer = raised(HARDWARE[name], part, entry, factor)
    before, after = price(counts, HARDWARE[name]), price(counts, dearer)
    for scope in SCOPES:
        a, b = before.total(scope), after.total(scope)
        assert (a.energy_aj, a.low_aj, a.high_aj) <= (b.energy_aj, b.low_aj, b.high_aj)
        assert a.low_aj <= b.low_aj
        assert a.high_aj <= b.high_aj


def raised(hardware: Hardware, part: str, entry: str, factor: int) -> Hardware:
    data = resolved(hardware)
    prices = [data["energy"][part]["entries"][entry], *data["energy"][part]["sram"]]
    for one in prices:
        for key in ("energy", "low", "high"):
            one[key] = f"{int(one[key].removesuffix(' aJ')) * factor} aJ"
    return hardware_from_resolved(data)
