"""DRAM energy command by command, against Micron's spreadsheet and against the library energydram; and what bursts cost."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jouletrace
from jouletrace.hardware.dram import dram_energies
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Dram
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.transfer import Memory, Transfer

DEVICES = ("ddr3-1600-1gb-x8", "ddr3l-1600-4gb-x8", "ddr4-2400-4gb-x8", "ddr4-2400-8gb-x8")


def dram(device: str, *settings: str) -> Dram:
    return load_hardware("systolic-32x32", [f"dram.device={device}", *settings]).dram


def test_micron_spreadsheet() -> None:
    """DDR3_Power_Calc of Micron for DDR3 2 Gb x8 -125E: powers in mW of one device while it does nothing else.

    The values stand in the unit tests of gaomy3832/energydram @ 09f6655. Times are halves of a nanosecond here.
    """
    part = dram(
        "ddr3-1600-1gb-x8",
        *(f"dram.device.idd.{name}={current} mA" for name, current in
          {"IDD0": 95, "IDD2N": 42, "IDD3N": 45, "IDD4R": 180, "IDD4W": 185, "IDD5": 215}.items()),
        *(f"dram.device.timing_cycles.{name}={2 * Fraction(ns)}" for name, ns in
          {"tRAS": "35", "tRP": "12.5", "tRC": "47.5", "tRFC": "160", "tREFI": "7800"}.items()),
        "dram.device.clock_period=0.5 ns", "dram.device.devices_per_rank=1", "dram.device.rank_width=8 bit",
    )  # fmt: skip
    e = dram_energies(part, corrected=False)
    burst_ps = 4 * 500
    milliwatts = {
        "closed": e.closed_aw.value / 10**15,
        "open": e.open_aw.value / 10**15,
        "activate": e.activate_aj.value / 47_500 / 1000,
        "read": e.read_aj_per_byte.value * 8 / burst_ps / 1000,
        "write": e.write_aj_per_byte.value * 8 / burst_ps / 1000,
        "refresh": e.refresh_aw.value / 10**15,
    }
    expected = {"closed": 63.0, "open": 67.5, "activate": 76.2, "read": 202.5, "write": 210.0, "refresh": 5.2}
    assert {name: round(float(power), 1) for name, power in milliwatts.items()} == expected


def rank(part: Dram) -> Any:
    """The same devices in energydram: picojoules from mA, V and ns. The second rail of DDR4 is left out, as in our files."""
    energydram = pytest.importorskip("energydram")
    device = part.device
    idd = {name.lower(): current / 10**6 for name, current in device.idd_na.items()}
    currents = energydram.IDDs(**idd, idd2p=idd["idd2n"], idd3p=idd["idd3n"])
    clocks = device.timing_cycles
    timing = energydram.Timing(RAS=clocks["tRAS"], RP=clocks["tRP"], RFC=clocks["tRFC"], REFI=clocks["tREFI"], RRD=0)
    generation = int(device.standard[3])
    second = {"vpp": 2.5, "ipps": energydram.IDDs(**dict.fromkeys(currents._fields, 0))} if generation == 4 else {}
    return energydram.EnergyDDR(
        device.clock_period_ps / 1000, timing, device.vdd_uv / 10**6, currents, int(part.devices), generation, **second
    )


@pytest.mark.parametrize("device", DEVICES)
@given(counts=st.lists(st.integers(0, 10**9), min_size=6, max_size=6))
def test_same_commands_same_energy_as_energydram(device: str, counts: list[int]) -> None:
    activates, reads, writes, refreshes, opened, closed = counts
    part = dram(device)
    other = rank(part)
    theirs = (
        other.activate_energy(activates) + other.readwrite_energy(reads, writes) + other.refresh_energy(refreshes)
        + other.background_energy(cycles_bankact_ckehi=opened, cycles_bankpre_ckehi=closed)
    )  # fmt: skip
    e = dram_energies(part, corrected=False)
    burst_bytes = part.device.burst_length * part.interface_bits // 8
    ours = (
        activates * e.activate_aj.value + refreshes * e.refresh_aj.value
        + burst_bytes * (reads * e.read_aj_per_byte.value + writes * e.write_aj_per_byte.value)
        + (opened * e.open_aw.value + closed * e.closed_aw.value) * part.device.clock_period_ps / 10**12
    )  # fmt: skip
    assert float(ours) / 10**6 == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("name", ["zedboard-fp32", "eftrain-zcu102"])
def test_dram_of_a_whole_step_as_energydram_has_it(name: str) -> None:
    """Commands from what the step moves: bursts of its bytes, its activations, refresh and open rows all the time."""
    hardware = load_hardware(name, ["dram.use_measured_ratio=false"])
    step = jouletrace.simulate(jouletrace.load_trace("lenet10-cifar10-b128"), hardware).breakdown
    count, energy = dict.fromkeys(("read", "write", "activate", "background"), 0), 0
    for row in step.rows:
        if row.component == "dram":
            count[row.action] += row.count
            energy += row.energy.energy_aj
    assert count["background"] == step.cycles
    part, other = hardware.dram, rank(hardware.dram)
    burst_bytes = part.device.burst_length * part.interface_bits // 8
    clocks = step.cycles * 10**12 // hardware.clock_hz // part.device.clock_period_ps
    theirs = (
        other.activate_energy(count["activate"])
        + other.readwrite_energy(count["read"] // burst_bytes, count["write"] // burst_bytes)
        + other.refresh_energy(clocks // part.device.timing_cycles["tREFI"])
        + other.background_energy(cycles_bankact_ckehi=clocks)
    )  # fmt: skip
    assert energy / 10**6 == pytest.approx(theirs, rel=1e-4)


def test_both_values_stand_beside_each_price() -> None:
    from jouletrace.hardware.energy import price_list

    for setting in ("true", "false"):
        prices = price_list(load_hardware("eftrain-zcu102", [f"dram.use_measured_ratio={setting}"]))
        assert "45.82 pJ by the datasheet, 29.68 pJ corrected" in prices["dram", "read"].source
    assert prices["dram", "read"].energy_aj == pytest.approx(45.82e6, rel=1e-3)


def test_bandwidth_grows_with_the_burst() -> None:
    """One port at 200 MHz, 64 bytes a cycle, 189 cycles to start: Caffeine's port (ICCAD 2016, Fig. 7).

    ======  ==============  =========
    burst   cycles          bandwidth
    ======  ==============  =========
    1 KiB   189 + 16        1.0 GB/s
    12096   189 + 189       half of 12.8 GB/s
    1 MiB   189 + 16384     12.7 GB/s
    ======  ==============  =========
    """
    settings = ["clock=200 MHz", "streams.weight.width=512 bit", "streams.weight.start_cycles=189",
                "streams.weight.restarts=transfer", "dram.width=64 bit", "dram.bandwidth=12.8 GB/s"]  # fmt: skip
    memory = Memory(load_hardware("zedboard-fp32", settings), ProgramBuilder("rig"))

    def gigabytes_per_second(burst_bytes: int) -> float:
        burst = Transfer("weight", "weight", False, "param", burst_bytes // 4, 32)
        return burst_bytes * 0.2 / memory.cycles(burst)

    assert [round(gigabytes_per_second(size), 1) for size in (1 << 10, 12096, 1 << 20)] == [1.0, 6.4, 12.7]
    rising = [gigabytes_per_second(1 << n) for n in range(6, 21)]
    assert rising == sorted(rising)
