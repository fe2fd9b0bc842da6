"""Designs that contradict themselves or exceed their board, and numbers that look like slips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jouletrace.hardware.check import problems, warnings
from jouletrace.hardware.load import hardware_from_resolved, load_hardware

from .specs import SHIPPED, plain, problems_of, write


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_specs_are_sound_and_look_it(name: str) -> None:
    hardware = load_hardware(name)
    assert problems(hardware) == []
    assert warnings(hardware) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["buffers.output.size=50 KiB"], "buffers.output: must share all of 'input' with as many copies"),
        (["buffers.output.copies=2"], "maps and sums are in one global buffer, bank by bank"),
        (["array.bank=3 KiB"], "array.bank: must divide the global buffer (102.4 kB) into whole banks"),
        (["array.tilings.4.out_channels=192"], "array.tilings.4: repeats the shape of a tiling before it"),
        (["word=8 bit"], "word: must be at least as wide as what an element multiplies (16 bit)"),
        (["array.compression.pairs=4"], "has 4 pairs of 21 bit in a word of 64 bit"),
        (["array.compression.run=9 bit", "array.compression.pairs=2"], "codes a run in 9 bit; at most 8 are supported"),
    ],
)
def test_a_row_stationary_array_shares_one_buffer_by_banks(settings: list[str], words: str) -> None:
    assert any(words in problem for problem in problems_of("eyeriss", *settings)), problems_of("eyeriss", *settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # 20 x 20 lanes of 5 DSPs and 80 in the vector unit against 2520 fit; 23 x 23 do not
        (["array.out_channels=20", "array.in_channels=20"], ""),
        (
            ["array.out_channels=23", "array.in_channels=23"],
            "array: needs 2725 dsp (529 lanes of 5 and 80 in the vector unit), and board 'zcu102' has 2520: "
            "205 too many; take fewer lanes, or another board",
        ),
        (
            ["buffers.weight.bram36=800"],
            "buffers: needs 1026 bram36 (input 96, weight 800, output 64, vector 66), "
            "and board 'zcu102' has 912: 114 too many; take smaller or fewer buffers, or another board",
        ),
        (["buffers.vector.uram=3"], "needs 3 uram (vector 3), and board 'zcu102' has 0: 3 too many"),
        (
            ["buffers.input.size=1 MiB"],
            "buffers.input: holds 2 x 1.049 MB, more than its 96 BRAM36 and 0 URAM (393.2 kB); "
            "it takes at least 512 BRAM36",
        ),
        (["buffers.operand.size=1 MiB"], "buffers.operand.shares: needs 2.097 MB, and 'output' has 258 kB"),
        (["buffers.operand.shares=outputs"], "names no buffer of the spec: 'outputs'; did you mean 'output'"),
        (["buffers.operand.shares=operand"], "must name a buffer with memory of its own"),
        (["buffers.operand.bram36=1"], "is the memory of 'output', so bram36 and uram must be 0 here"),
        (["vector.chunk=256 KiB"], "vector.chunk: is larger than one copy of the buffer 'vector'"),
        (["array.tilings.0.tile_rows=56"], "array.tilings.0: has a tile of 56 x 55, larger than its map"),
        (["array.tilings.1.phase=forward"], "array.tilings.1: repeats the shape of a tiling before it"),
        (["dram.width=12 bit"], "dram.width: must be a multiple of one device's width (8 bit) and of 8 bit"),
        (["dram.device.idd.IDD4R=10 mA"], "dram.device.idd.IDD4R: must be at least IDD3N"),
        (["dram.device.idd.IDD0=10 mA"], "dram.device.idd.IDD0: must be more than the standby currents"),
        (["dram.device.measured_ratio.IDD0=[1, 0.5, 2]"], "must be low, mean and high ratio, in this order"),
        (["board.board_idle=[3 W, 2 W, 4 W]"], "board.board_idle: must be low, typical and high power"),
    ],
)  # fmt: skip
def test_a_design_that_cannot_be_is_refused_with_the_cure(settings: list[str], words: str) -> None:
    found = "\n".join(problems_of("eftrain-zcu102", *settings))
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("streams", "operand", "streams: needs the stream 'operand', which a channel_parallel array uses"),
        ("buffers", "weight", "buffers: needs the buffer 'weight', which a channel_parallel array uses"),
        ("buffers", "vector", "buffers: needs the buffer 'vector', which the vector unit uses"),
        ("streams", "output", "vector.store: names no stream of the spec: 'output'"),
    ],
)
def test_missing_parts_are_named(tmp_path: Path, section: str, key: str, words: str) -> None:
    data = plain()
    del data[section][key]
    for entry in data["provenance"]:
        entry["paths"] = [path for path in entry["paths"] if not path.startswith(f"{section}.{key}")] or ["clock"]
    assert words in "\n".join(problems_of(write(tmp_path, data)))


@pytest.mark.parametrize("key", ["idd", "measured_ratio", "timing_cycles"])
def test_missing_currents_and_times_are_named(tmp_path: Path, key: str) -> None:
    data = plain()
    lost = next(iter(data["dram"]["device"][key]))
    del data["dram"]["device"][key][lost]
    assert f"dram.device.{key}: needs {lost}" in "\n".join(problems_of(write(tmp_path, data)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["dram.device.interface_read_per_bit=200 pJ"],
            "energy of dram read: 203.7 pJ/bit lies outside the usual 1 to 100",
        ),
        (["clock=1 MHz"], "clock: 1 MHz lies outside the usual"),
        (["dram.efficiency=0.1"], "dram.efficiency: 0.1 of the peak lies outside"),
        (
            ["dram.bandwidth=170 GB/s"],
            "dram.bandwidth: 8.819 of what the device and width allow lies outside",
        ),
        (["energy.array.entries.mac_fp32.energy=1 uJ"], "energy of array mac_fp32: 1e+06 pJ lies outside"),
        (["energy.buffers=eyeriss-normalised"], "their sum means nothing"),
        (
            ["energy.buffers=tpuv4i-7nm", "buffers.weight.size=3 KiB"],
            "no memory of about its size is in the table",
        ),
    ],
)
def test_slips_are_pointed_at(settings: list[str], words: str) -> None:
    assert words in "\n".join(warnings(load_hardware("eftrain-zcu102", settings)))


def test_a_normalised_table_for_everything_is_no_slip() -> None:
    everywhere = [f"energy.{part}=eyeriss-normalised" for part in ("array", "buffers", "vector", "dram")]
    assert not any("normalised" in warning for warning in warnings(load_hardware("zedboard-fp32", everywhere)))


def test_a_board_with_nothing_to_count_limits_no_lanes() -> None:
    data: dict[str, Any] = plain("systolic-32x32")
    data["array"]["multiplier"]["dsp"] = 5
    data["array"]["rows"] = data["array"]["columns"] = 512
    assert hardware_from_resolved(data).array.lanes == 512 * 512
