"""DRAM energies from currents, against rows worked out separately for the same parts, and by hand."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.hardware.dram import Band, dram_energies
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Dram

# DRAMsim3's and DRAMPower's parts at datasheet currents, 64-bit rank, core only: ACT+PRE nJ, RD and WR
# pJ/bit, REF nJ, background with rows open and closed mW, and streaming pJ/bit with background and refresh.
EXPECTED = {
    "ddr3l-1600-4gb-x8": ("9.8", "12.6", "9.2", "553", "410", "346", "17.3"),
    "ddr3-1600-1gb-x8": ("14.3", "11.1", "11.7", "165", "540", "540", "16.6"),
    "ddr4-2400-8gb-x8": ("3.5", "5.7", "5.0", "693", "413", "326", "9.0"),
    "ddr4-2400-4gb-x8": ("8.1", "8.8", "7.8", "185", "422", "367", "11.8"),
}


def dram(device: str, *settings: str) -> Dram:
    return load_hardware("systolic-32x32", [f"dram.device={device}", *settings]).dram


def printed(value: Fraction, digits: str) -> str:
    """The value with as many decimals, halves away from zero as on paper."""
    step = Decimal(1).scaleb(-len(digits.partition(".")[2]))
    return str((Decimal(value.numerator) / value.denominator).quantize(step, ROUND_HALF_UP))


@pytest.mark.parametrize("device", EXPECTED)
def test_datasheet_energies_agree_to_the_digit(device: str) -> None:
    part = dram(device)
    e = dram_energies(part, corrected=False)
    bits_per_ps = Fraction(2 * part.interface_bits, part.device.clock_period_ps)
    streaming = e.read_aj_per_byte.value / 8 + (e.open_aw.value + e.refresh_aw.value) / bits_per_ps / 10**12
    found = (
        e.activate_aj.value / 10**9,
        e.read_aj_per_byte.value / 8 / 10**6, e.write_aj_per_byte.value / 8 / 10**6,
        e.refresh_aj.value / 10**9, e.open_aw.value / 10**15, e.closed_aw.value / 10**15, streaming / 10**6,
    )  # fmt: skip
    digits = EXPECTED[device]
    assert tuple(printed(v, d) for v, d in zip(found, digits, strict=True)) == digits


def test_one_value_by_hand() -> None:
    # 1.35 V x 8 devices x (157 - 38) mA x 5 ns = 6426 pJ per burst of 64 bytes
    assert dram_energies(dram("ddr3l-1600-4gb-x8"), corrected=False).read_aj_per_byte.value == Fraction(
        6426 * 10**6, 64
    )


def test_corrected_value_by_hand() -> None:
    # 157 x 0.736 and 38 x 0.367 mA; bounds take the vendors farthest apart
    band = dram_energies(dram("ddr3l-1600-4gb-x8"), corrected=True).read_aj_per_byte
    per_ma = Fraction(135, 100) * 8 * 5 * 10**6 / 64

    def by_hand(ratio4r: str, ratio3n: str) -> Fraction:
        return (157 * Fraction(ratio4r) - 38 * Fraction(ratio3n)) * per_ma

    assert band == Band(by_hand("0.459", "0.532"), by_hand("0.736", "0.367"), by_hand("0.954", "0.234"))


@pytest.mark.parametrize("device", EXPECTED)
def test_modules_on_the_bench_draw_less_than_the_datasheet(device: str) -> None:
    sheet, bench = (dram_energies(dram(device), corrected=c) for c in (False, True))
    for name in (
        "read_aj_per_byte",
        "write_aj_per_byte",
        "activate_aj",
        "refresh_aj",
        "open_aw",
        "background_aw",
    ):
        low, value, high = getattr(bench, name)
        assert 0 <= low <= value <= high
    for name in ("read_aj_per_byte", "write_aj_per_byte", "open_aw"):
        ratio = getattr(bench, name).value / getattr(sheet, name).value
        assert Fraction(1, 4) < ratio < 1
    assert len(set(sheet.read_aj_per_byte)) == 1  # a datasheet is exact


def test_half_the_width_is_half_the_devices() -> None:
    full, half = (dram("ddr3-1600-1gb-x8", f"dram.width={w} bit") for w in (64, 32))
    assert (full.devices, half.devices) == (8, 4)
    assert (full.row_bytes, half.row_bytes) == (8192, 4096)
    for corrected in (True, False):
        a, b = dram_energies(full, corrected=corrected), dram_energies(half, corrected=corrected)
        assert a.activate_aj == b.activate_aj.times(2)
        assert a.background_aw == b.background_aw.times(2)
        assert a.read_aj_per_byte == b.read_aj_per_byte  # half the current, twice the time per byte


def test_interface_energy_comes_on_top_of_the_core() -> None:
    settings = ["dram.device.interface_read_per_bit=3 pJ", "dram.device.interface_write_per_bit=1 pJ"]
    core, both = load_hardware("zedboard-fp32"), load_hardware("zedboard-fp32", settings)
    for action, more in (("read", 24_000_000), ("write", 8_000_000)):
        assert price_list(both)["dram", action].energy_aj == price_list(core)["dram", action].energy_aj + more
    assert "core only" in price_list(core)["dram", "read"].source
    assert "interface included" in price_list(both)["dram", "read"].source


def test_background_is_per_cycle_of_the_accelerator() -> None:
    slow, fast = (price_list(load_hardware("zedboard-fp32", [f"clock={c} MHz"])) for c in (100, 200))
    assert slow["dram", "background"].energy_aj == pytest.approx(2 * fast["dram", "background"].energy_aj, abs=2)
    watts = slow["dram", "background"].energy_aj * 100e6 / 1e18
    assert 0.05 < watts < 0.3  # four DDR3 devices


def test_datasheet_prices_on_request() -> None:
    sheet = price_list(load_hardware("zedboard-fp32", ["dram.use_measured_ratio=false"]))["dram", "read"]
    bench = price_list(load_hardware("zedboard-fp32"))["dram", "read"]
    assert sheet.energy_aj > bench.energy_aj
    assert (sheet.low_aj, sheet.high_aj) == (
        bench.low_aj,
        bench.high_aj,
    )  # the bench's, which holds the datasheet here


@given(st.lists(st.fractions(0, 10), min_size=6, max_size=6))
def test_differences_of_bands_hold_all_differences(numbers: list[Fraction]) -> None:
    a, b = Band(*sorted(numbers[:3])), Band(*sorted(numbers[3:]))
    difference = a.minus(b)
    for x in a:
        for y in b:
            assert difference.low <= max(0, x - y) <= difference.high
