"""From trace and hardware to a result: selection, micro-batches, memory, and values worked out by hand."""

import pytest

import jouletrace
from jouletrace.errors import MappingError, ResultError, UsageError


@pytest.fixture(scope="module")
def trace() -> jouletrace.Trace:
    return jouletrace.load_trace("resnet20-cifar10-b32")


@pytest.fixture(scope="module")
def hardware() -> jouletrace.Hardware:
    return jouletrace.load_hardware("eftrain-zcu102")


def test_layer_selects_everything_below_it(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    result = jouletrace.simulate(trace, hardware, only="layer3")
    assert {op.layer.split(".")[0] for op in result.ops} == {"layer3"}
    assert [op.name for op in result.ops] == [op.name for op in trace.ops if op.layer.startswith("layer3")]


def test_phase_selects_within_the_layer(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    result = jouletrace.simulate(trace, hardware, only="layer1.0.conv1:backward_weight")
    assert [op.name for op in result.ops] == ["layer1.0.conv1:backward_weight"]
    # N K C OY OX R S of a 3 x 3 convolution with 16 channels on 32 x 32 maps
    assert result.macs == 32 * 16 * 16 * 32 * 32 * 3 * 3


def test_a_part_alone_needs_the_memory_of_its_own_tensors(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    result = jouletrace.simulate(trace, hardware, only="layer1.0.conv1:forward")
    # x and y of 32 x 16 x 32 x 32 and w of 16 x 16 x 3 x 3, fp32
    assert result.peak_memory_bytes == 4 * (2 * 32 * 16 * 32 * 32 + 16 * 16 * 3 * 3)


def test_macs_are_counted_once_whatever_the_micro_batch(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    whole = jouletrace.simulate(trace, hardware, only="layer2.0.conv1")
    parts = jouletrace.simulate(trace, hardware, only="layer2.0.conv1", micro_batch=8)
    assert parts.macs == whole.macs
    assert parts.micro_batches == 4
    assert parts.dram_read_bytes > whole.dram_read_bytes, "weights are read anew, gradients are summed"
    assert parts.peak_memory_bytes < whole.peak_memory_bytes
    assert any("batch norm takes its statistics over 8 samples" in warning for warning in parts.warnings)


def test_step_that_exceeds_the_board_is_refused_unless_allowed(trace: jouletrace.Trace) -> None:
    small = jouletrace.load_hardware("eftrain-zcu102", ["board.dram=16 MiB"])
    with pytest.raises(MappingError, match="and board 'zcu102' has 16.78 MB; use --micro-batch 8,"):
        jouletrace.simulate(trace, small)
    fitting = jouletrace.simulate(trace, small, micro_batch=8)
    assert not fitting.dram_overflow
    overflowing = jouletrace.simulate(trace, small, allow_dram_overflow=True)
    assert overflowing.dram_overflow
    assert '"dram_overflow":true' in overflowing.to_json()


def test_energy_of_one_op_by_hand(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    """Counts that follow from the layer, times prices that follow from the spec, and power times time."""
    result = jouletrace.simulate(trace, hardware, only="layer1.0.conv1:forward")
    by = result.by("component")
    macs = 32 * 16 * 16 * 32 * 32 * 3 * 3
    assert macs == 75_497_472
    # Every lane of the 16 x 16 array has a channel pair of its own, so none idles while the array works.
    assert by["array"].energy_aj == macs * hardware.energy.array.entries["mac_fp32"].energy_aj
    # Watts over the clock, 100 MHz, are joules per cycle.
    assert by["chip"].energy_aj == result.cycles * hardware.board.chip_static[1] // 10**8
    assert by["board"].energy_aj == result.cycles * hardware.board.board_idle[1] // 10**8
    # Each tensor crosses the DRAM port once: w stays on the chip for the whole batch.
    assert result.dram_read_bytes >= 4 * (32 * 16 * 32 * 32 + 16 * 16 * 3 * 3)
    assert result.dram_write_bytes == 4 * 32 * 16 * 32 * 32


def test_progress_is_told(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    seen: list[tuple[int, int]] = []
    result = jouletrace.simulate(trace, hardware, only="conv1", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (result.commands, result.commands)


def test_unknown_engine_is_refused(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    with pytest.raises(UsageError, match="there is no engine 'event'; did you mean 'events'"):
        jouletrace.simulate(trace, hardware, engine="event")


def test_reproduce_is_exact_and_refuses_another_model(trace: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    from dataclasses import replace

    result = jouletrace.simulate(trace, hardware, only="fc")
    stored = jouletrace.Result.from_json(result.to_json())
    assert jouletrace.reproduce(stored) == result
    with pytest.raises(ResultError, match="model version 99"):
        jouletrace.reproduce(replace(stored, model_version=99))
    with pytest.raises(ResultError, match="has the digest .* and the result was made from"):
        jouletrace.reproduce(replace(stored, trace=replace(stored.trace, digest="0" * 64)))
