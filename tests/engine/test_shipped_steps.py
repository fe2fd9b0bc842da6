"""The compiled engine is the events engine on every shipped network, on all hardware whose port keeps program order.

Always, over two samples: every network whole but VGG-16, and of that the smallest op of each kind and phase. The small
networks and ResNet-74 on one design run with the batch of their training. The nightly profile runs every network whole,
over two samples and over the batch that it was captured with: some 3 * 10**9 commands, hours. It runs in parts too, as
in ``-k "whole and full and zedboard"``.
"""

import os
from functools import cache
from math import prod

import numpy as np
import pytest

from jouletrace.engine import compiled, events
from jouletrace.errors import MappingError, TraceError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import list_traces, load_trace
from jouletrace.trace.model import Op, Trace

NIGHTLY = os.environ.get("JOULETRACE_PROFILE") == "nightly"
FIXED = [name for name in list_hardware() if load_hardware(name).dram.port != "round_robin"]
SMALL = ("cnn1x-cifar10-b128", "lenet10-cifar10-b128", "resnet20-cifar10-b32", "resnet20v2-cifar10-b1")
# Over two samples too, steps of VGG-16 are as long as those of all other networks together: 2 to 40 million commands.
WHOLE_OVER_TWO = [name for name in list_traces() if not name.startswith("vgg16")]
# On these, steps of small networks have 1,000 to 111,000 commands at full size too.
COARSE = ("eftrain-zcu102", "systolic-32x32", "tensil-zcu104", "zedboard-fp32", "zedboard-int8")
# The widest layers of these are wider than what these can hold.
YOLO = ("yolov2-zu3eg-fp32", "yolov2-zu3eg-int16")
MISFITS = {
    (trace, spec)
    for trace in ("alexnet-eftrain-b128", "alexnet-eftrain-b4", "alexnet-eyeriss-b4", "resnet18-imagenet-b1")
    for spec in YOLO
} | {("alexnet-eftrain-b128", "zedboard-int8"), ("alexnet-eftrain-b4", "zedboard-int8")}
PARTS = [
    (trace, spec)
    for trace in list_traces()
    for spec in FIXED
    # 600,000 commands for one convolution of 224 x 224: nightly
    if trace not in WHOLE_OVER_TWO and not (trace.startswith("vgg16") and spec == "yolov2-zu3eg-int16")
]
WHOLE = (
    [(trace, spec, batch) for trace in list_traces() for spec in FIXED for batch in ("two", "full")]
    if NIGHTLY
    else [
        *((trace, spec, "full" if trace in SMALL and spec in COARSE else "two") for trace in WHOLE_OVER_TWO for spec in FIXED),
        ("resnet74-cifar10-b128", "eftrain-zcu102", "full"),
    ]
)
# Start and end of more commands, from both engines, are more than some 10 GB.
MOST_COMMANDS = 100_000_000


hardware = cache(load_hardware)


@cache
def step(name: str, batch: str) -> Trace:
    """The step as it was captured, or over ``two`` samples where it has other batches."""
    trace = load_trace(name)
    try:
        return with_batch(trace, 2) if batch == "two" else trace
    except TraceError:
        return trace


def smallest(trace: Trace) -> list[Op]:
    """Of each kind of op in each phase the one that multiplies least, or touches the fewest elements."""

    def size(op: Op) -> tuple[int, int]:
        return op.macs, sum(prod(trace.tensor[name].shape) for name in (*op.reads, *op.writes))

    found: dict[tuple[str, str], Op] = {}
    for op in trace.ops:
        kind = (op.phase, op.kind)
        if kind not in found or size(op) < size(found[kind]):
            found[kind] = op
    return [op for op in trace.ops if found[op.phase, op.kind] is op]


def assert_same(program: Program) -> None:
    """Every start, end, count and sum. (No lists: they would not fit.)"""
    expected, counts = events.simulate(program), compiled.simulate(program)
    assert np.array_equal(counts.intervals.start, expected.intervals.start)
    assert np.array_equal(counts.intervals.end, expected.intervals.end)
    assert (counts.cycles, counts.ops, counts.engine_busy) == (expected.cycles, expected.ops, expected.engine_busy)
    assert (counts.engine, expected.engine) == ("compiled", "events")


@pytest.mark.parametrize(("trace", "spec"), PARTS)
def test_parts_of_every_step(trace: str, spec: str) -> None:
    whole = step(trace, "two")
    assert_same(map_step(whole, hardware(spec), ops=smallest(whole)))


@pytest.mark.parametrize(("trace", "spec", "batch"), WHOLE)
def test_whole_steps(trace: str, spec: str, batch: str) -> None:
    try:
        program = map_step(step(trace, batch), hardware(spec))
    except MappingError:
        assert (trace, spec) in MISFITS
        return
    assert (trace, spec) not in MISFITS
    if len(program) > MOST_COMMANDS:
        pytest.skip(f"{len(program):,} commands take too much memory")
    assert_same(program)


def test_a_step_is_shorter_than_its_blocks_one_after_the_other() -> None:
    """Blocks overlap where prefetching runs ahead, so the spans of blocks do not add up to the step."""
    counts = compiled.simulate(map_step(step("resnet20-cifar10-b32", "two"), hardware("systolic-32x32")))
    blocks: dict[str, tuple[int, int]] = {}
    for op in counts.ops:
        name = f"{op.op.phase} {'.'.join(op.op.layer.split('.')[:2])}"
        first, last = blocks.get(name, (op.start_cycle, op.end_cycle))
        blocks[name] = (min(first, op.start_cycle), max(last, op.end_cycle))
    assert counts.cycles < sum(last - first for first, last in blocks.values())
