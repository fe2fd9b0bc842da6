"""The compiled engine is the events engine on every shipped network, on all hardware whose port keeps program order.

Without a profile each small network runs on one spec; the nightly profile runs all of them on all.
"""

import os

import pytest

from jouletrace.engine import compiled
from jouletrace.errors import MappingError, TraceError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping.step import map_step
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import list_traces, load_trace
from jouletrace.trace.model import Trace

from .test_compiled import assert_same

NIGHTLY = os.environ.get("JOULETRACE_PROFILE") == "nightly"
FIXED = [name for name in list_hardware() if load_hardware(name).dram.port != "round_robin"]
SMALL = ("cnn1x-cifar10-b128", "lenet10-cifar10-b128", "resnet20-cifar10-b32", "resnet20v2-cifar10-b1")
PAIRS = (
    [(trace, spec) for trace in list_traces() for spec in FIXED]
    if NIGHTLY
    else [(trace, FIXED[i % len(FIXED)]) for i, trace in enumerate(SMALL)]
)


def of_two(name: str) -> Trace:
    """The step over two samples, or as it was captured where it has no other batch."""
    trace = load_trace(name)
    try:
        return with_batch(trace, 2)
    except TraceError:
        return trace


@pytest.mark.parametrize(("trace", "spec"), PAIRS)
def test_every_start_and_end(trace: str, spec: str) -> None:
    try:
        program = map_step(of_two(trace), load_hardware(spec))
    except MappingError as error:
        pytest.skip(f"does not fit: {error.problems[0]}")
    assert_same(program)


def test_a_step_is_shorter_than_its_blocks_one_after_the_other() -> None:
    """Blocks overlap where prefetching runs ahead, so the spans of blocks do not add up to the step."""
    counts = compiled.simulate(map_step(of_two("resnet20-cifar10-b32"), load_hardware("systolic-32x32")))
    blocks: dict[str, tuple[int, int]] = {}
    for op in counts.ops:
        name = f"{op.op.phase} {'.'.join(op.op.layer.split('.')[:2])}"
        first, last = blocks.get(name, (op.start_cycle, op.end_cycle))
        blocks[name] = (min(first, op.start_cycle), max(last, op.end_cycle))
    assert counts.cycles < sum(last - first for first, last in blocks.values())
