"""What an op becomes when some samples run its unit: taken from an op that is like it, it is what the whole step gives."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jouletrace
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.step import map_step
from jouletrace.replay.family import _products
from jouletrace.replay.variants import Options
from jouletrace.strategies.registry import strategy
from jouletrace.testing import blocks
from jouletrace.testing.steps import Step
from jouletrace.testing.traces import residual_traces, sequence_traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.model import Trace
from jouletrace.trace.units import gated, residual_units, with_samples

SPECS = ("zedboard-int8", "eftrain-zcu102", "systolic-32x32")


def agree(step: Trace, hardware: Hardware) -> None:
    """For every number of samples, in no order that would help: the extremes are whole steps, the others excerpts."""
    units = [unit.name for unit in residual_units(step)]
    batch = step.header.batch
    options = Options(step, step, units, hardware)
    options.add([1, batch - 1])
    options.add(range(1, batch))
    for n in range(1, batch):
        some = with_samples(step, dict.fromkeys(units, n))
        program = map_step(some, hardware, base=step)
        for op, body in zip(some.ops, program.bodies, strict=True):
            variant = options.at.get((op.name, n), 0)
            assert options.variants[op.name][variant] == body
            assert options.work[op.name][variant] == (op.macs, bit_operations_of(some, op))


@settings(max_examples=30)
@given(residual_traces() | sequence_traces(max_blocks=2), st.sampled_from(SPECS))
def test_ops_that_differ_alike_become_the_same(trace: Trace, spec: str) -> None:
    units = residual_units(trace)
    assume(units)
    agree(gated(with_batch(trace, 5), units), jouletrace.load_hardware(spec))


@pytest.mark.parametrize("spec", ["int8", "int8:scope=activations", "psg"])
def test_ops_in_few_bits_become_the_same(spec: str) -> None:
    step = with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 4)
    narrow = jouletrace.apply(strategy(spec), gated(step, residual_units(step))).value
    agree(narrow, jouletrace.load_hardware("zedboard-int8"))


def test_a_rounded_copy_of_the_images_has_no_padded_channels() -> None:
    """Only what wrote the copy tells that it has three: a block reads it, and the projection beside the block."""
    step = Step("net", 4, "sgd")
    x = blocks.basic(step, "layer1.0", step.given("images", (4, 3, 8, 8), "input"), 4)
    step.loss(step.linear("fc", x, 3), 3)
    trace = step.trace()
    narrow = jouletrace.apply(strategy("int8"), gated(trace, residual_units(trace))).value
    tensors = (replace(t, role="activation") if t.name == "images.int8" else t for t in narrow.tensors)
    agree(replace(narrow, tensors=tuple(tensors)), jouletrace.load_hardware("eftrain-zcu102"))


def test_products_are_exact() -> None:
    """    (3 5) · ((1 2 4), (1 1 0)) = (8 11 12), and one that 64 bits do not hold"""
    assert _products([(3, 5), (0, 1)], [[1, 2, 4], [1, 1, 0]], 8) == [[8, 11, 12], [1, 1, 0]]
    assert _products([(2**40, 2**40)], [[2**40], [1]], 2**41) == [[2**80 + 2**40]]
