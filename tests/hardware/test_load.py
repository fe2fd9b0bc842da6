"""Loading specs: every problem at once, with its place; references, overrides, sources, and the way back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jouletrace.errors import SpecError, UsageError
from jouletrace.hardware.load import (
    assumptions,
    digest,
    hardware_from_resolved,
    list_hardware,
    load_hardware,
    resolved,
)
from jouletrace.hardware.spec import ChannelParallel, Systolic
from jouletrace.resources import folder

from .specs import SHIPPED, plain, problems_of, write


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spec_loads_and_comes_back_from_a_result(name: str) -> None:
    hardware = load_hardware(name)
    carried = json.loads(json.dumps(resolved(hardware)))
    again = hardware_from_resolved(carried)
    assert again == hardware
    assert resolved(again) == carried
    assert digest(again) == digest(hardware)
    assert hardware.name == name


def test_shipped_designs_are_the_published_ones() -> None:
    zcu = load_hardware("eftrain-zcu102")
    assert isinstance(zcu.array, ChannelParallel)
    assert (zcu.array.lanes, zcu.array.lanes * zcu.array.multiplier.dsp) == (256, 1280)
    # the paper's convolution core takes 672 block RAMs
    assert sum(zcu.buffers[name].bram36 for name in ("input", "weight", "output", "operand")) == 672
    assert zcu.buffers["weight"].capacity_bytes == 24 * 7 * 9 * 256 * 4
    assert len(zcu.array.tilings) == 14
    pynq = load_hardware("eftrain-pynq-z1")
    assert pynq.array.lanes * 5 == 180
    assert sum(buffer.bram36 for buffer in pynq.buffers.values()) <= 123
    for name, side, lanes in (("zedboard-fp32", 6, 8), ("zedboard-int8", 14, 4)):
        zed = load_hardware(name)
        dsp = zed.array.multiplier.dsp
        assert (zed.array.lanes, zed.vector.lanes) == (side * side, lanes)
        assert side * side * dsp <= 220 < (side + 1) ** 2 * dsp
        assert zed.vector.dsp == 5 * lanes == (220 - side * side * dsp) // 5 * 5
        assert zed.dram.devices == 4
    assert isinstance(load_hardware("systolic-32x32").array, Systolic)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_spec_knows_a_published_latency(name: str) -> None:
    text = (folder("hwspecs") / f"{name}.yaml").read_text()
    published = (
        "11419835",
        "9299086",
        "7312794",
        "7146578",
        "7430533",
        "2510310",
        "2671392",
        "2706696",
        "46.99",
    )
    assert not any(number in text for number in published)


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="did you mean 'eftrain-zcu102'"):
        load_hardware("eftrain-zcu103")
    with pytest.raises(UsageError, match=r"shipped are .*systolic-32x32.*\./mine\.yaml"):
        load_hardware("nothing like it")
    assert "schema" not in list_hardware()


# what is changed in zedboard-fp32: old text, new text, column of the complaint, complaint
SLIPS = [
    ("clock: 100 MHz", "clock: 100", 8, "clock: needs a unit, one of Hz, kHz, MHz, GHz (got 100)"),
    ("array:", "array:", 3, "array.initiation_interval: is required"),
    (
        "  initiation_interval: 1", "  initiation_intervall: 1", 3,
        "array.initiation_intervall: is no known key; did you mean 'initiation_interval'?",
    ),
    (
        "    swap: free_running", "    swap: free_runing", 11,
        "array.schedule.swap: must be 'synchronous' or 'free_running' (got 'free_runing'); "
        "did you mean 'free_running'?",
    ),
    (
        "  output: {size: 64 KiB,", "  output: {size: 64.5 B,", 18,
        "buffers.output.size: must be a whole number of B (got '64.5 B')",
    ),
    (
        "  device: ddr3-1600-1gb-x8", "  device: ddr3-1600-1gb-x4", 11,
        "dram.device: 'ddr3-1600-1gb-x4' is not in hwspecs/dram; did you mean 'ddr3-1600-1gb-x8'?",
    ),
    (
        "  efficiency: 0.75", "  efficiency: -0.75", 15,
        "dram.efficiency: must be a number of at least 0, or a ratio such as '3/4' (got -0.75)",
    ),
    (
        "board: zedboard", "board: zedbord", 8,
        "board: 'zedbord' is not in hwspecs/boards; did you mean 'zedboard'?",
    ),
    ("    certainty: assumed", "    certainty: sure", 16, "provenance.0.certainty: must be 'seen', "),
]  # fmt: skip


def test_all_problems_of_a_file_are_reported_at_once_in_its_order(tmp_path: Path) -> None:
    lines = (folder("hwspecs") / "zedboard-fp32.yaml").read_text().splitlines()
    places: list[int] = []
    for old, new, _, _ in SLIPS:
        places.append(next(i for i, line in enumerate(lines) if line.startswith(old)))
        lines[places[-1]] = lines[places[-1]].replace(old, new, 1)
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines))
    problems = problems_of(path)
    assert len(problems) == len(SLIPS)
    for problem, line, (_, _, column, text) in zip(problems, places, SLIPS, strict=True):
        # a missing key is reported where its mapping begins, one line below the key of the mapping
        line += "is required" in text
        assert problem.startswith(f"{path}:{line + 1}:{column}: {text}")


# -- references ------------------------------------------------------------------------------------


def test_a_part_may_lie_beside_the_spec_and_its_problems_stand_in_its_own_file(tmp_path: Path) -> None:
    data = plain()
    board = data["board"]
    data["board"] = "boards/mine.yaml"
    (tmp_path / "boards").mkdir()
    path = write(tmp_path, data)
    beside = write(tmp_path / "boards", board, "mine.yaml")
    assert load_hardware(path).board.name == "zedboard"
    board["dsp"] = -1
    del board["provenance"][1]  # that of chip_static
    write(tmp_path / "boards", board, "mine.yaml")
    problems = problems_of(path)
    assert len(problems) == 4
    assert all(problem.startswith(f"{beside}:") for problem in problems)
    assert "board.dsp: must be greater than or equal to 0 (got -1)" in problems[0]
    assert all("has no source" in problem for problem in problems[1:])


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("../outside.yaml", "lies outside the spec's folder"),
        ("/etc/hostname.yaml", "lies outside the spec's folder"),
        ("link/outside.yaml", "lies outside the spec's folder"),
        ("a\0b/c.yaml", "there is no file"),
        ("boards/none.yaml", "there is no file"),
        ("zedbord", "did you mean 'zedboard'"),
        ("x" * 5000, "is not in hwspecs/boards"),
        ("y/" * 3000, "there is no file"),
    ],
)
def test_references_stay_below_the_spec(tmp_path: Path, reference: str, words: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "outside.yaml").write_text("secret: 42")
    (inside / "link").symlink_to(tmp_path)
    data = plain()
    data["board"] = reference
    problems = problems_of(write(inside, data))
    assert len(problems) == 1
    assert words in problems[0]
    assert "42" not in problems[0]


def test_a_spec_cannot_name_itself(tmp_path: Path) -> None:
    data = plain()
    data["board"] = "./spec.yaml"
    problems = problems_of(write(tmp_path, data))
    assert any("board.array: is no known key" in problem for problem in problems)


# -- overrides -------------------------------------------------------------------------------------


def test_overrides_change_values_and_their_source() -> None:
    hardware = load_hardware(
        "eftrain-zcu102",
        [
            "clock=200 MHz", "array.out_channels=8", "array.tilings.0.tile_rows=1", "dram.efficiency=1/3",
            "buffers.input.size=64 KiB", "vector.fuses=[relu, relu6]", "board.dsp=2000",
        ],
    )  # fmt: skip
    assert isinstance(hardware.array, ChannelParallel)
    assert (hardware.clock_hz, hardware.array.out_channels) == (200_000_000, 8)
    assert hardware.buffers["input"].size_bytes == 65536
    assert hardware.vector.fuses == ("relu", "relu6")
    assert hardware.array.tilings[0].tile_rows == 1
    assert str(hardware.dram.efficiency) == "1/3"
    user = {a.path for a in assumptions(hardware) if a.certainty == "user"}
    assert {"clock", "board.dsp", "array.tilings.0.tile_rows", "dram.efficiency"} <= user
    assert all(a.source == "--set" for a in assumptions(hardware) if a.certainty == "user")
    assert digest(hardware) != digest(load_hardware("eftrain-zcu102"))
    assert hardware_from_resolved(resolved(hardware)) == hardware


def test_later_overrides_win() -> None:
    assert load_hardware("zedboard-fp32", ["clock=50 MHz", "clock=150 MHz"]).clock_hz == 150_000_000


def test_an_override_may_name_another_part() -> None:
    hardware = load_hardware("zedboard-fp32", ["board=zcu102", "energy.array=horowitz-45nm", "board.dsp=1000"])
    assert (hardware.board.name, hardware.board.dsp) == ("zcu102", 1000)
    assert hardware.energy.array.name == "horowitz-45nm"
    assert hardware.energy.buffers.name == "fpga-primitives"


def test_an_override_may_state_what_the_spec_leaves_out() -> None:
    assert load_hardware("systolic-32x32", ["dram.width=32 bit"]).dram.devices == 4
    assert load_hardware("zedboard-fp32", ["energy.dram=horowitz-45nm"]).energy.dram is not None


def test_an_overridden_price_is_the_users_own() -> None:
    entry = load_hardware("zedboard-fp32", ["energy.array.entries.mac_fp32.energy=7 pJ"]).energy.array.entries[
        "mac_fp32"
    ]
    assert (entry.low_aj, entry.energy_aj, entry.high_aj) == (7_000_000,) * 3
    assert (entry.certainty, entry.source) == ("user", "--set")
    banded = load_hardware(
        "zedboard-fp32",
        ["energy.array.entries.mac_fp32.energy=7 pJ", "energy.array.entries.mac_fp32.high=9 pJ"],
    ).energy.array.entries["mac_fp32"]
    assert (banded.low_aj, banded.high_aj) == (7_000_000, 9_000_000)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("clok=1 MHz", "--set clok=1 MHz: there is no 'clok'; did you mean 'clock'?"),
        ("array.out_chanels=8", "there is no 'array.out_chanels'; did you mean 'out_channels'?"),
        ("buffers.inputs.size=1 KiB", "there is no 'buffers.inputs'; did you mean 'input'?"),
        ("provenance.99.source=x", "there is no 'provenance.99'"),
        ("clock.mhz=3", "'clock' has nothing below it"),
        ("clock=200", "--set clock=200: clock: needs a unit"),
        ("clock=", "is no PATH=VALUE"),
        ("=3", "is no PATH=VALUE"),
        ("clock", "is no PATH=VALUE"),
        ("clock=[1", "cannot be read as YAML"),
        ("clock=*x", "uses the alias"),
        ("array.out_channels=9", "needs 310 dsp (54 lanes of 5 and 40 in the vector unit)"),
        ("board=zedbord", "did you mean 'zedboard'"),
        ("array=3", "--set array=3: array: "),
        ("host.clock=1 GHz", "there is no 'host' in this spec; write the whole part into the file"),
        ("dram.bandwidth=-1 GB/s", "must be greater than 0"),
        ("dram.bandwidth=0 GB/s", "must be greater than 0"),
        ("dram.efficiency=1.5", "must be greater than 0 and at most 1"),
        ("dram.efficiency='1e999999999'", "must be a number of at least 0"),
        ("dram.efficiency=1/0", "divides by 0"),
        ("vector.load=inputs", "names no stream of the spec: 'inputs'; did you mean 'input'?"),
    ],
)
def test_wrong_overrides_are_refused_with_a_hint(setting: str, words: str) -> None:
    problems = problems_of("zedboard-fp32", setting)
    assert words in "\n".join(problems)


# -- sources ---------------------------------------------------------------------------------------


def test_every_number_needs_a_source(tmp_path: Path) -> None:
    data = plain()
    for entry in data["provenance"]:
        entry["paths"] = [path for path in entry["paths"] if path not in ("clock", "buffers")]
    problems = problems_of(write(tmp_path, data))
    sourceless = [problem.split(": ")[1] for problem in problems]
    assert sourceless[0] == "clock"
    assert {"buffers.input.size", "buffers.vector.bram36", "buffers.weight.copies"} <= set(sourceless)
    assert all("has no source; name it, or a key above it, under paths" in problem for problem in problems)


def test_a_source_for_nothing_is_refused(tmp_path: Path) -> None:
    data = plain()
    data["provenance"][0]["paths"].append("array.out_chanels")
    problems = problems_of(write(tmp_path, data))
    assert len(problems) == 1
    assert "covers no value of the spec: 'array.out_chanels'; did you mean 'array.out_channels'?" in problems[0]


def test_the_longest_path_is_the_source_and_defaults_are_assumptions(tmp_path: Path) -> None:
    data = plain()
    schedule = data["array"]["schedule"]
    del schedule["objective"]
    numbers = ("out_channels", "in_channels", "initiation_interval", "multiplier", "unwanted_results", "layout")
    parts = [f"array.{k}" for k in numbers] + [f"array.schedule.{k}" for k in schedule]
    for entry in data["provenance"]:
        entry["paths"] = [p for path in entry["paths"] for p in (parts if path == "array" else [path])]
    stated = {a.path: a for a in assumptions(load_hardware(write(tmp_path, data)))}
    assert stated["streams"].source == "the rule at the top of this file"
    assert "streams.input.start_cycles" not in stated  # seen in EF-Train
    assert stated["array.schedule.objective"].source == "default of the schema"
    assert stated["board.chip_static"].certainty == "assumed"
    assert stated["energy of array mac_fp32"].certainty == "assumed"


def test_resolved_specs_are_checked_like_files() -> None:
    data = plain()
    data["clock"] = "fast"
    data["array"]["colour"] = "red"
    with pytest.raises(SpecError) as error:
        hardware_from_resolved(data, "result.json: hardware")
    assert len(error.value.problems) == 2
    assert all(problem.startswith("result.json: hardware: ") for problem in error.value.problems)
    with pytest.raises(SpecError, match="board"):
        hardware_from_resolved({**plain(), "board": "zcu102.yaml"})  # nothing is read from disk
    with pytest.raises(SpecError):
        hardware_from_resolved({})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("array.schedule.swap=synchronous", "does not go with prefetch_stops_at: never; make it reduction_loop"),
        ("array.schedule.prefetch_stops_at=reduction_loop", "make it op or never"),
        ("array.schedule.store_overlaps=last_compute", "make store_overlaps freely"),
    ],
)
def test_a_schedule_that_would_be_ignored_is_refused(setting: str, words: str) -> None:
    with pytest.raises(SpecError, match=re.escape(words)):
        load_hardware("zedboard-fp32", [setting])
