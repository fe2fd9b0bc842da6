"""DRAM capacity: what fits, and what is said where it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jouletrace.capture.zoo import zoo
from jouletrace.errors import MappingError
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.memory import SWITCH
from jouletrace.mapping.memory_plan import largest_micro_batch, plan_memory, stored_peak
from jouletrace.trace.lifetimes import peak_memory
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Trace

ZEDBOARD = load_hardware("zedboard-fp32")
NETWORKS = ("resnet20-cifar10", "lenet10-cifar10")


def with_dram(size_bytes: int) -> Hardware:
    board = ZEDBOARD.board.model_copy(update={"dram_bytes": size_bytes})
    return ZEDBOARD.model_copy(update={"board": board})


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Trace:
    return zoo(request.param, batch=8)


def test_what_fits_is_planned(network: Trace) -> None:
    peak = peak_memory(network)
    plan = plan_memory(network, with_dram(peak.size_bytes))
    assert (plan.peak_bytes, plan.peak_op, plan.overflow_bytes) == (peak.size_bytes, peak.op, 0)


def test_what_does_not_fit_is_refused_with_sizes_and_cures(network: Trace) -> None:
    peak = peak_memory(network).size_bytes
    hardware = with_dram(peak - 1)
    fits = largest_micro_batch(network, hardware)
    assert fits in (1, 2, 4)
    with pytest.raises(MappingError) as error:
        plan_memory(network, hardware)
    sentence = str(error.value)
    for part in (network.header.name, "zedboard", f"--micro-batch {fits}", "--allow-dram-overflow"):
        assert part in sentence
    assert plan_memory(network, hardware, allow_overflow=True).overflow_bytes == 1


def test_the_largest_micro_batch_is_one_that_fits(network: Trace) -> None:
    """Given exactly the memory of micro-batches of 2, it is 2, and one byte less asks for 1."""
    needed = stored_peak(micro_batched(network, 2), ZEDBOARD).size_bytes
    assert largest_micro_batch(network, with_dram(needed)) == 2
    assert largest_micro_batch(network, with_dram(needed - 1)) == 1


def test_where_no_micro_batch_helps_none_is_named(network: Trace) -> None:
    with pytest.raises(MappingError, match="no micro-batch is small enough"):
        plan_memory(network, with_dram(1000))


def test_elements_are_padded_to_words_of_the_datapath(network: Trace) -> None:
    """Stored in 64-bit words, everything of 32 bits takes twice the room."""
    wide = ZEDBOARD.model_copy(update={"word_bits": 64})
    assert stored_peak(network, ZEDBOARD).size_bytes == peak_memory(network).size_bytes
    assert stored_peak(network, wide).size_bytes > 1.9 * peak_memory(network).size_bytes


@pytest.mark.parametrize("word_bits", [8, 24, 32])
def test_tensors_of_many_widths_are_padded_one_by_one(
    network: Trace, word_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of the step as it lies in memory; the same whether it is remembered or not."""
    tensors = tuple(replace(t, bits=1 + i % 40) for i, t in enumerate(network.tensors))
    trace = replace(network, tensors=tensors)
    padded = tuple(replace(t, bits=-(-t.bits // word_bits) * word_bits) for t in tensors)
    hardware = ZEDBOARD.model_copy(update={"word_bits": word_bits})
    expected = peak_memory(replace(trace, tensors=padded))
    faster = hardware.model_copy(update={"clock_hz": 2 * hardware.clock_hz})
    assert stored_peak(trace, hardware) == stored_peak(trace, faster) == expected
    monkeypatch.setenv(SWITCH, "1")
    assert stored_peak(trace, hardware) == expected


def test_resnet74_at_batch_128_does_not_fit_a_zedboard() -> None:
    """721.5 MB of saved activations alone; 512 MB of DRAM."""
    with pytest.raises(MappingError, match="use --micro-batch 64"):
        plan_memory(zoo("resnet74-cifar10", batch=128), ZEDBOARD)
