"""Three published FPGA accelerators for inference: what their arrays do, by hand, and what the whole replay gives."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest

from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import ChannelParallel
from jouletrace.resources import folder
from jouletrace.trace.activities import forward_only
from jouletrace.trace.io import load_trace
from jouletrace.trace.model import Conv, Gemm, Trace
from jouletrace.validate import validate
from jouletrace.validate.load import load
from jouletrace.validate.simulate import cases_of, simulate_all
from jouletrace.validate.workloads import step

VALIDATION = folder("validation")


def alexnet() -> Trace:
    (workload,) = load(VALIDATION / "zhang.yaml").entries[0].file.workloads.values()
    return step(workload, Path("."), None)


def lane_cycles(nest: Conv, hardware: str) -> int:
    """Cycles of the array alone: tiles of output and input channels, pixels, taps."""
    array = load_hardware(hardware).array
    assert isinstance(array, ChannelParallel)
    tiles = nest.G * ceil(nest.K / array.out_channels) * ceil(nest.C / array.in_channels)
    return tiles * nest.OY * nest.OX * nest.R * nest.S * array.initiation_interval


def test_the_array_of_zhang_needs_the_ideal_cycles_of_its_unrolling() -> None:
    """Two channel groups one after the other: 2 x ceil(M/64) x ceil(N/7) x R x R x K x K."""
    ideal = {op.layer: lane_cycles(op.nest, "zhang-vc707") for op in alexnet().ops if isinstance(op.nest, Conv)}
    assert ideal == {"conv1": 732_050, "conv2": 510_300, "conv3": 337_662, "conv4": 255_528, "conv5": 170_352}


def test_transfers_add_less_than_a_tenth_to_the_ideal_cycles_of_zhang() -> None:
    """The array never waits for long: the publication says so, by the bandwidth that its design asks for."""
    rows = [each for each in load(VALIDATION / "zhang.yaml").entries if each.row.layer]
    cases = {each.row.layer[0]: cases_of(each)[0] for each in rows}
    done = simulate_all(list(cases.values()))
    for op in alexnet().ops:
        assert isinstance(op.nest, Conv)
        simulated = done[cases[op.layer].key]
        assert not isinstance(simulated, tuple)
        ideal = lane_cycles(op.nest, "zhang-vc707")
        assert ideal < simulated.cycles < 1.1 * ideal


def test_yolov2_is_the_public_configuration() -> None:
    """23 convolutions and five pools; its README counts 29.472 GOP, 0.03 % more than two for each MAC."""
    trace = forward_only(load_trace("yolov2-coco416-b1"))
    kinds = [op.kind for op in trace.ops]
    assert (kinds.count("conv"), kinds.count("pool")) == (23, 5)
    assert 2 * trace.macs == 29_464_168_448
    by_layer = {op.layer: op.nest for op in trace.ops if isinstance(op.nest, Conv)}
    assert (by_layer["conv21"].C, by_layer["conv21"].OY) == (512, 26)  # reads the map of conv13
    assert (by_layer["conv22"].C, by_layer["conv22"].OY) == (4 * 64 + 1024, 13)


@pytest.mark.parametrize(("hardware", "row"), [("yolov2-zu3eg-fp32", "A_latency"), ("yolov2-zu3eg-int16", "C_latency")])
def test_the_array_is_busy_for_nine_tenths_of_an_image_of_yolov2(hardware: str, row: str) -> None:
    """What is left of the published time is for pools and for transfers that nothing hides."""
    published = next(each.row.value for each in load(VALIDATION / "yolov2.yaml").entries if each.row.id == row)
    trace = forward_only(load_trace("yolov2-coco416-b1"))
    cycles = sum(lane_cycles(op.nest, hardware) for op in trace.ops if isinstance(op.nest, Conv))
    assert 0.9 < cycles / load_hardware(hardware).clock_hz / published < 0.95


def test_resnet20_v2_has_the_macs_that_tensil_prints() -> None:
    """61.476 million, taps that fall on padding not counted."""

    def axis(out: int, kernel: int, stride: int, pad: int, size: int) -> int:
        return sum(0 <= i * stride + k - pad < size for i in range(out) for k in range(kernel))

    macs = 0
    for op in forward_only(load_trace("resnet20v2-cifar10-b1")).ops:
        nest = op.nest
        if isinstance(nest, Conv):
            rows = axis(nest.OY, nest.R, nest.stride[0], nest.padding[0], nest.IY)
            columns = axis(nest.OX, nest.S, nest.stride[1], nest.padding[2], nest.IX)
            macs += nest.K * nest.C * rows * columns
        elif isinstance(nest, Gemm):
            macs += nest.macs
    assert macs == 61_475_520


def test_a_wider_link_saves_tensil_the_time_that_was_measured() -> None:
    """Both builds run the same instructions, whose own time the model leaves out: it is not in the difference."""
    rows = {each.row.id: each for each in load(VALIDATION / "tensil.yaml").entries}
    pair = rows["baseline"], rows["bigger_memory"]
    done = simulate_all([cases_of(each)[0] for each in pair])
    seconds: list[float] = []
    for each in pair:
        simulated = done[cases_of(each)[0].key]
        assert not isinstance(simulated, tuple)
        seconds.append(float(simulated.seconds))
    measured = 1 / pair[0].row.value - 1 / pair[1].row.value
    assert seconds[0] - seconds[1] == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("name", ["zhang", "yolov2", "tensil"])
def test_no_gating_row_misses(name: str) -> None:
    validation = validate(VALIDATION / f"{name}.yaml")
    assert (validation.problems, validation.misses) == ((), ())
