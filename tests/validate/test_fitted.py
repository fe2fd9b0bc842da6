"""What is written after a calibration: each price is its old price times the factor of its part, and loads again."""

from __future__ import annotations

import pytest

from jouletrace.errors import UsageError
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.load import assumptions, hardware_from_resolved, list_hardware, load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.validate.calibrate import PARTS, Calibration, Coefficient
from jouletrace.validate.fitted import fitted_spec, fitted_table

IN_JOULES = [name for name in list_hardware() if load_hardware(name).energy.array.normalised_to is None]


def found(hardware: Hardware, *coefficients: Coefficient) -> Calibration:
    return Calibration(hardware, coefficients, (), 1.0)


def part(component: str) -> str:
    return next(part for part, names in PARTS.items() if component.partition(".")[0] in names)


def written(calibration: Calibration) -> Hardware:
    return hardware_from_resolved(fitted_spec(calibration, "mine"))


@pytest.mark.parametrize("name", IN_JOULES)
def test_every_price_is_multiplied_by_the_factor_of_its_part(name: str) -> None:
    hardware = load_hardware(name)
    factor = {part: 1 + n / 4 for n, part in enumerate(PARTS)}
    each = [Coefficient(part, (part,), n, 0.5 * n, 2 * n) for part, n in factor.items()]
    old, new = price_list(hardware), price_list(written(found(hardware, *each)))
    assert new.keys() == old.keys()
    for (component, action), price in old.items():
        n = factor[part(component)]
        again = new[component, action]
        assert again.energy_aj == pytest.approx(n * price.energy_aj, rel=1e-6, abs=2), (component, action)
        assert again.low_aj <= again.energy_aj <= again.high_aj
        if component in ("array", "vector") and price.energy_aj:
            assert (again.certainty, again.high_aj) == ("fitted", pytest.approx(2 * n * price.energy_aj, rel=1e-6))


@pytest.mark.parametrize("measured", ["true", "false"])
def test_dram_with_an_interface_by_the_datasheet_or_as_measured(measured: str) -> None:
    settings = [f"dram.use_measured_ratio={measured}", "dram.device.interface_read_per_bit=3 pJ"]
    hardware = load_hardware("zedboard-fp32", settings)
    half = written(found(hardware, Coefficient("dram", ("dram",), 0.5, None, None)))
    old, new = price_list(hardware), price_list(half)
    for action in ("read", "write", "activate", "background"):
        assert new["dram", action].energy_aj == pytest.approx(old["dram", action].energy_aj / 2, rel=1e-6)
    assert {a.certainty for a in assumptions(half) if a.path == "dram.device.measured_ratio"} == {"fitted"}


def test_what_no_coefficient_names_keeps_its_price_and_what_it_rests_on() -> None:
    hardware = load_hardware("zedboard-fp32")
    new = written(found(hardware, Coefficient("chip", ("chip",), 2.0, 1.5, 2.5)))
    old, now = price_list(hardware), price_list(new)
    for key in old:
        if key[0] != "chip":
            assert (now[key].energy_aj, now[key].low_aj, now[key].high_aj, now[key].certainty) == (
                old[key].energy_aj, old[key].low_aj, old[key].high_aj, old[key].certainty)  # fmt: skip
    assert [power / 10**18 for power in new.board.chip_static] == pytest.approx([0.21, 0.28, 0.35])


def test_without_an_interval_the_old_band_is_scaled() -> None:
    table = fitted_table(found(load_hardware("zedboard-fp32"), Coefficient("array", ("array",), 2.0, None, None)), "mine")
    mac = table["entries"]["mac_fp32"]
    assert [mac[key] for key in ("low", "energy", "high")] == ["32.2 pJ", "128.8 pJ", "258 pJ"]
    assert "array fitted: 2 times (no interval)" in mac["source"]
    assert "before: 64.4 pJ, fpga-primitives: 14 x" in mac["source"]


def test_a_table_without_joules_is_refused() -> None:
    with pytest.raises(UsageError, match="not in joules"):
        fitted_table(found(load_hardware("eyeriss"), Coefficient("array", ("array",), 2.0, None, None)), "mine")
