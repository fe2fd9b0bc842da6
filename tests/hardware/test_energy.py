"""Price lists: one integer price per action, with band and source; a larger entry never lowers any."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.errors import EnergyError
from jouletrace.hardware.energy import PAD_ACTIONS, PRIMITIVES, PriceList, price_list
from jouletrace.hardware.load import hardware_from_resolved, load_hardware

from .specs import SHIPPED, plain

EVERYTHING = {
    ("array", "idle"), ("dram", "read"), ("dram", "write"), ("dram", "activate"), ("dram", "background"),
    ("chip", "static"), ("board", "idle"), *(("vector", f"{p}_fp32") for p in PRIMITIVES),
}  # fmt: skip


def prices(name: str, *overrides: str) -> PriceList:
    return price_list(load_hardware(name, overrides))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_action_of_a_shipped_spec_is_priced_with_band_and_source(name: str) -> None:
    hardware = load_hardware(name)
    found = price_list(hardware)
    buffers = {(f"buffer.{b}", action) for b in hardware.buffers for action in ("read", "write")}
    inside = {(f"scratchpad.{pad}", a) for pad in ("ifmap", "filter", "psum") for a in PAD_ACTIONS}
    inside = inside | {("network", "word")} if hardware.array.kind == "row_stationary" else set[tuple[str, str]]()
    assert set(found) == EVERYTHING | buffers | inside | {("array", f"mac_{hardware.array.multiplier.type}")}
    for key, price in found.items():
        assert isinstance(price.energy_aj, int)
        assert 0 <= price.low_aj <= price.energy_aj <= price.high_aj
        assert price.source
        assert found.of(*key) is price


def test_published_prices_arrive_unchanged() -> None:
    horowitz = prices("zedboard-fp32", "energy.array=horowitz-45nm", "energy.vector=horowitz-45nm")
    assert horowitz["array", "mac_fp32"].energy_aj == 4_600_000  # 3.7 + 0.9 pJ
    assert horowitz["vector", "mul_fp32"].energy_aj == 3_700_000
    assert prices("zedboard-int8", "energy.array=horowitz-45nm")["array", "mac_int8"].energy_aj == 300_000
    assert prices("systolic-32x32")["array", "mac_bf16"].energy_aj == 590_000  # 0.21 + 0.38 pJ
    assert prices("systolic-32x32", "energy.dram=horowitz-45nm")["dram", "read"].energy_aj == 243_750_000


def test_fpga_prices_are_chip_prices_times_one_stated_factor() -> None:
    """Every arithmetic price of the assumed table is 14 times Horowitz's, to three digits, and marked assumed."""
    fpga = load_hardware("zedboard-fp32").energy.array.entries
    chip = load_hardware("zedboard-fp32", ["energy.array=horowitz-45nm"]).energy.array.entries
    for name in ("mac_fp32", "mac_fp16", "mac_int8", "add_fp32", "mul_fp32"):
        assert fpga[name].energy_aj == pytest.approx(14 * chip[name].energy_aj, rel=5e-3), name
    assert all(entry.certainty == "assumed" for entry in fpga.values())


def test_powers_become_energy_per_cycle() -> None:
    found = prices("zedboard-fp32", "board.chip_static=[0.1 W, 0.14 W, 0.2 W]")["chip", "static"]
    assert (found.low_aj, found.energy_aj, found.high_aj) == (10**9, 14 * 10**8, 2 * 10**9)  # at 100 MHz
    assert prices("zedboard-fp32", "clock=30 MHz")["chip", "static"].energy_aj == 4_666_666_667  # rounded once


def test_the_host_is_priced_by_its_own_cycles() -> None:
    data = plain()
    data["host"] = {"clock": "667 MHz", "kinds": ["loss"], "cycles_per_element": "5/2"}
    data["energy"]["host"] = data["energy"]["array"]
    data["provenance"].append({"paths": ["host"], "certainty": "assumed", "source": "test"})
    assert price_list(hardware_from_resolved(data))["host", "element"].energy_aj == 2_500_000_000
    data["energy"]["host"] = None
    with pytest.raises(EnergyError, match=r"nothing prices 'host' 'element'.*name a table for it under energy"):
        price_list(hardware_from_resolved(data)).of("host", "element")


# -- on-chip memories ------------------------------------------------------------------------------


def buffer_price(size: str, word: str = "64 bit", table: str = "horowitz-45nm") -> Any:
    settings = [f"energy.buffers={table}", f"buffers.input.size={size}", f"buffers.input.word={word}"]
    return prices("systolic-32x32", *settings)["buffer.input", "read"]


def test_memories_of_the_table_cost_what_it_says() -> None:
    for size, picojoules in (("8 KiB", 10), ("32 KiB", 20), ("1 MiB", 100)):
        price = buffer_price(size)
        assert (price.energy_aj, price.certainty) == (picojoules * 10**6, "seen")
        assert (price.low_aj, price.high_aj) == (picojoules * 500_000, picojoules * 2_000_000)


def test_memories_between_lie_between() -> None:
    # 16 KiB is half way from 8 to 32 KiB in the logarithm: the geometric mean of 10 and 20 pJ
    price = buffer_price("16 KiB")
    assert price.energy_aj == pytest.approx(10e6 * 2**0.5, abs=1)
    assert price.certainty == "derived"
    assert "interpolated between" in price.source
    ladder = [buffer_price(f"{kib} KiB").energy_aj for kib in (4, 8, 12, 16, 24, 32, 64, 256, 1024, 2048)]
    assert ladder == sorted(ladder)


def test_memories_beyond_are_flagged_and_limited() -> None:
    above, below = buffer_price("4 MiB"), buffer_price("2 KiB")
    assert (above.energy_aj, below.energy_aj) == (200_000_000, 5_000_000)  # the square root of 4
    assert above.certainty == below.certainty == "assumed"
    assert "scaled by the square root" in above.source
    for size in ("511 B", "17 MiB"):
        with pytest.raises(EnergyError, match="more than 16 times beyond the memories of energy table 'horowitz-45nm'"):
            buffer_price(size)


def test_width_scales_seven_tenths_of_an_access() -> None:
    assert buffer_price("8 KiB", "32 bit").energy_aj == 6_500_000  # 10 pJ x (0.7 / 2 + 0.3)
    assert buffer_price("8 KiB", "128 bit").energy_aj == 17_000_000
    assert "32 bit" in buffer_price("8 KiB", "32 bit").source


# -- errors ----------------------------------------------------------------------------------------


def test_a_missing_price_names_table_and_cure() -> None:
    found = prices("systolic-32x32", "energy.array=fpga-primitives")
    assert ("array", "mac_bf16") not in found
    with pytest.raises(EnergyError) as error:
        found.of("array", "mac_bf16")
    assert str(error.value) == (
        "energy table 'fpga-primitives' has no price for array 'mac_bf16'; add it to the table with a source, or "
        "choose another table (--set energy.array=NAME); did you mean 'mac_fp16'?"
    )
    with pytest.raises(
        EnergyError,
        match=r"nothing prices 'buffer\.inputs' 'read'; priced .*; did you mean 'buffer\.input'",
    ):
        found.of("buffer.inputs", "read")


def test_all_unpriceable_parts_are_named_at_once() -> None:
    data = plain()
    data["energy"]["array"]["entries"]["mac_fp32"]["per"] = "byte"
    data["energy"]["buffers"]["sram"] = []
    with pytest.raises(EnergyError) as error:
        price_list(hardware_from_resolved(data))
    assert len(error.value.problems) == 1 + len(data["buffers"])
    assert "entry 'mac_fp32': is per 'byte', and is used per 'operation'" in error.value.problems[0]
    assert "buffers.input: needs sram points, which energy table" in error.value.problems[1]


# -- laws ------------------------------------------------------------------------------------------

BASE = plain("systolic-32x32")
POINTS = st.lists(
    st.tuples(st.integers(10, 22), st.sampled_from([16, 32, 64]), st.integers(1, 10**9)),
    min_size=1, max_size=4, unique_by=lambda point: point[0],
)  # fmt: skip


def with_memories(points: list[tuple[int, int, int]], word: int, size: int) -> PriceList:
    data = copy.deepcopy(BASE)
    data["energy"]["buffers"]["sram"] = [
        {
            "size": f"{2**log} B", "width": f"{width} bit",
            "energy": f"{aj} aJ", "low": f"{(aj + 1) // 2} aJ", "high": f"{2 * aj} aJ",
            "source": "x", "certainty": "seen",
        }
        for log, width, aj in points
    ]  # fmt: skip
    data["buffers"]["input"].update(size=f"{size} B", word=f"{word} bit")
    for other in ("weight", "output", "vector"):
        data["buffers"][other]["size"] = f"{size} B"
    data["vector"]["chunk"] = "1 B"
    return price_list(hardware_from_resolved(data))


@settings(max_examples=300, deadline=None)
@given(
    POINTS,
    st.integers(0, 3),
    st.integers(1, 10**9),
    st.sampled_from([8, 16, 64, 512]),
    st.integers(2**10, 2**22),
)
def test_a_larger_entry_never_lowers_a_price(
    points: list[tuple[int, int, int]], which: int, more: int, word: int, size: int
) -> None:
    log, width, aj = points[which % len(points)]
    raised = [*points]
    raised[which % len(points)] = (log, width, aj + more)
    try:
        before, after = with_memories(points, word, size), with_memories(raised, word, size)
    except EnergyError:
        return  # too far from all memories, in both cases
    for key in before:
        assert before[key].energy_aj <= after[key].energy_aj
        assert before[key].low_aj <= after[key].low_aj
        assert before[key].high_aj <= after[key].high_aj
    one = before["buffer.input", "read"]
    assert one.low_aj <= one.energy_aj <= one.high_aj


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(BASE["energy"]["array"]["entries"])), st.fractions(1, 1000))
def test_larger_operation_entries_never_lower_a_price(name: str, factor: Fraction) -> None:
    data = copy.deepcopy(BASE)
    for part in ("array", "vector", "dram"):
        entry = data["energy"][part]["entries"][name]
        for key in ("energy", "low", "high"):
            entry[key] = f"{int(int(entry[key].removesuffix(' aJ')) * factor)} aJ"
    before, after = price_list(hardware_from_resolved(BASE)), price_list(hardware_from_resolved(data))
    assert all(before[key].energy_aj <= after[key].energy_aj for key in before)
