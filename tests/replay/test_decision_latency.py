"""Decisions cost time: what they decide waits for them, and that shows in the cycles of a step."""

from dataclasses import replace

import pytest

import jouletrace
from jouletrace.trace.batch import with_batch


@pytest.fixture(scope="module")
def step() -> jouletrace.Trace:
    return with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 4)


@pytest.fixture(scope="module")
def hardware() -> jouletrace.Hardware:
    return jouletrace.load_hardware("zedboard-int8")


def applied(step: jouletrace.Trace, text: str) -> jouletrace.Trace:
    return jouletrace.apply(jouletrace.strategy(text), step).value


def starts_and_ends(step: jouletrace.Trace, hardware: jouletrace.Hardware) -> tuple[int, dict[str, tuple[int, int]]]:
    result = jouletrace.simulate(step, hardware)
    return result.cycles, {op.name: (op.start_cycle, op.end_cycle) for op in result.ops}


def test_a_block_begins_when_its_gate_has_decided(step: jouletrace.Trace, hardware: jouletrace.Hardware) -> None:
    """x -> gate -> decision -> block: the gate stands in the way, for as long as it takes.

    The same ops without the control edges would run beside the block. Nothing is skipped here.
    """
    gates = applied(step, "slu:skip=0")
    free = replace(gates, ops=tuple(
        replace(op, gate=replace(op.gate, decision=None) if op.gate is not None else None) for op in gates.ops
    ))  # fmt: skip
    plain, _ = starts_and_ends(step, hardware)
    waiting, when = starts_and_ends(gates, hardware)
    beside, earlier = starts_and_ends(free, hardware)
    assert plain < beside < waiting
    for op in gates.ops:
        if op.gate is not None and op.gate.decision is not None:
            assert when[op.name][0] >= when[op.gate.decision][1], op.name
    first = "layer2.1.conv1:forward"
    assert earlier[first][0] < earlier["layer2.1.gate.decision:forward"][1], "without the edge it begins too early"


def test_a_threshold_that_needs_all_predictions_is_a_barrier(
    step: jouletrace.Trace, hardware: jouletrace.Hardware
) -> None:
    """predictor -> max -> decision -> fall-back; with a fixed threshold the fall-back follows element by element."""
    adaptive, fixed = (applied(step, f"psg:threshold={threshold}") for threshold in ("adaptive", "fixed"))
    waiting, when = starts_and_ends(adaptive, hardware)
    flowing, _ = starts_and_ends(fixed, hardware)
    assert waiting > flowing
    decisions = [op for op in adaptive.ops if op.kind == "sync"]
    assert decisions
    for decision in decisions:
        held = [op.name for op in adaptive.ops if decision.name in op.after]
        assert held
        assert all(when[name][0] >= when[decision.name][1] for name in held)
