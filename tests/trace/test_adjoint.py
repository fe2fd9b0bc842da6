"""Which backward op belongs to which forward op, held against the tape that wrote them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given

from jouletrace.capture import reverse
from jouletrace.capture.forward import Array
from jouletrace.capture.reverse import train_step
from jouletrace.capture.tape import Given, Tape
from jouletrace.strategies.base import apply
from jouletrace.strategies.int8 import Int8Training
from jouletrace.testing.steps import Step
from jouletrace.testing.traces import traces
from jouletrace.trace.adjoint import Adjoint, adjoint
from jouletrace.trace.io import list_traces, load_trace
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Elementwise, Op, Trace

Pairs = tuple[dict[str, str], dict[str, str]]


def pairs_of(found: Adjoint) -> Pairs:
    assert not found.unpaired
    return dict(found.differentiates), dict(found.accumulates)


def recorded(forward: Trace) -> tuple[Trace, Pairs]:
    """A step, and for every backward op why the tape wrote it: the rule of an op, or the sum of a tensor."""
    differentiates: dict[str, str] = {}
    accumulates: dict[str, str] = {}

    class Recorder(Tape):
        current = ""

        def _sum(self, name: str, given: list[Given]) -> Array | None:
            before = len(self.ops)
            total = super()._sum(name, given)
            accumulates.update((op.name, name) for op in self.ops[before:])
            return total

    def rule_of(kind: str) -> Callable[[Tape, Op], None]:
        def rule(tape: Tape, op: Op) -> None:
            before = len(tape.ops)
            reverse_rules[kind](tape, op)
            for made in tape.ops[before:]:
                if made.name not in accumulates:
                    differentiates[made.name] = op.name

        return rule

    reverse_rules = reverse.RULES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reverse, "Tape", Recorder)
        patch.setattr(reverse, "RULES", {kind: rule_of(kind) for kind in reverse_rules})
        step = train_step(forward)
    alive = step.op.keys()
    return step, (
        {b: f for b, f in differentiates.items() if b in alive},
        {b: t for b, t in accumulates.items() if b in alive},
    )


def forward_part(trace: Trace) -> Trace:
    """The forward pass of a step alone, with functions that have no rule of their own allowed."""
    ops = tuple(op for op in trace.ops if op.phase == "forward")
    names = {name for op in ops for name in (*op.reads, *op.writes)}
    tensors = tuple(replace(t, saved=False) for t in trace.tensors if t.name in names)
    header = replace(trace.header, policy=(("approximate", "elementwise"),))
    return replace(trace, header=header, tensors=tensors, ops=ops)


@given(traces())
def test_as_the_tape_wrote_it(trace: Trace) -> None:
    step, pairs = recorded(forward_part(trace))
    assert pairs_of(adjoint(step)) == pairs


@pytest.mark.parametrize("name", list_traces())
def test_every_backward_op_of_a_captured_step_is_paired(name: str) -> None:
    """Also as the tape would write the step itself, where its functions have rules."""
    trace = load_trace(name)
    found = adjoint(trace)
    assert not found.unpaired
    backward = {op.name for op in trace.ops if op.phase.startswith("backward")}
    assert backward == found.differentiates.keys() | found.accumulates.keys()
    for op in trace.ops:
        if op.kind == "update":
            assert found.gradient[op.reads[0]] == op.reads[1]
    if not backward:
        return  # inference: there is nothing that a tape would have to write again
    step, pairs = recorded(forward_part(trace))
    assert pairs_of(adjoint(step)) == pairs


@given(traces())
def test_every_backward_op_is_paired(trace: Trace) -> None:
    """Of steps that no tape wrote; an op and what it differentiates share their layer's kind of name."""
    found = adjoint(trace)
    assert not found.unpaired
    for backward, forward in found.differentiates.items():
        assert trace.op[backward].layer == trace.op[forward].layer
    for op in trace.ops:
        if op.kind == "update":
            assert found.gradient[op.reads[0]] == op.reads[1]


@given(traces())
def test_micro_batches(trace: Trace) -> None:
    """Weight gradients are added up over micro-batches; each keeps its own pairs."""
    if trace.header.batch == 2:
        assert not adjoint(micro_batched(trace, 1)).unpaired


@pytest.mark.parametrize("scope", ["operands", "activations"])
def test_rounded_copies_are_the_tensors_themselves(scope: Literal["operands", "activations"]) -> None:
    """Eight-bit training has the pairs of the step that it began with, and copies."""
    trace = load_trace("resnet20-cifar10-b32")
    narrow = apply(Int8Training(scope=scope), trace).value
    found = adjoint(narrow)
    assert pairs_of(found) == pairs_of(adjoint(trace))
    assert found.copies.keys() == narrow.op.keys() - trace.op.keys()


def test_a_shared_gradient_is_told_apart_by_what_is_read_with_it() -> None:
    """        a = conv(x)   b = conv(x)           y = a + b: both convs read the gradient of y
    """
    step = Step("two", 2)
    x = step.conv("stem", step.given("images", (2, 1, 3, 3), "input"), 2)
    y = step.add("join", step.conv("a", x, 2), step.conv("b", x, 2))
    step.loss(step.linear("fc", y, 3), 3)
    found = adjoint(step.trace())
    assert {b: f for b, f in found.differentiates.items() if f in ("a.conv:forward", "b.conv:forward")} == {
        "b.conv:backward_data": "b.conv:forward", "b.conv:backward_weight": "b.conv:forward",
        "a.conv:backward_data": "a.conv:forward", "a.conv:backward_weight": "a.conv:forward",
    }  # fmt: skip
    gy = "fc.gemm:backward_data.g"
    assert found.gradient["a.conv:forward.y"] == found.gradient["b.conv:forward.y"] == gy
    assert found.partials["stem.conv:forward.y"] == ("b.conv:backward_data.g", "a.conv:backward_data.g")


def test_a_weight_that_is_used_twice() -> None:
    step = Step("twice", 2)
    x = step.given("images", (2, 3), "input")
    y = step.function("first", "relu", step.linear("fc", x, 3))
    step.loss(step.linear("fc", y, 3), 3)
    found = adjoint(step.trace())
    assert found.partials["fc.weight"] == ("fc.gemm:backward_weight.g", "fc.gemm:backward_weight#2.g")
    assert [b for b, t in found.accumulates.items() if t == "fc.weight"] == ["fc.weight.accumulate:backward_weight"]


def test_what_fits_nothing_gets_a_reason() -> None:
    """A function of a gradient that no forward op asks for, and what reads it."""
    step = Step("odd", 2)
    x = step.given("images", (2, 3), "input")
    step.loss(step.linear("fc", step.function("act", "relu", step.linear("up", x, 3)), 3), 3)
    trace = step.trace()
    relu = trace.op["act.relu:backward_data"]
    odd = replace(relu, nest=Elementwise("noise", 6))
    ops = tuple(odd if op is relu else op for op in trace.ops)
    unpaired = adjoint(replace(trace, ops=ops)).unpaired
    assert list(unpaired) == ["act.relu:backward_data", "up.gemm:backward_weight", "up.sum:backward_weight"]
    assert unpaired["act.relu:backward_data"] == (
        "Op 'act.relu:backward_data' reads 'fc.gemm:backward_data.g', 'act.relu:forward.y', which fits no op of the "
        "forward pass and no sum of gradients."
    )


def test_two_that_cannot_be_told_apart_are_not_guessed() -> None:
    """        a = mean(x)   b = mean(x)           both give x the same gradient, from ops of one other layer
    """
    step = Step("same", 2)
    x = step.conv("stem", step.given("images", (2, 1, 4, 4), "input"), 2)
    y = step.add("join", step.pool("a", "average", x, 2), step.pool("b", "average", x, 2))
    step.loss(step.linear("fc", y, 3), 3)
    trace = step.trace()
    assert not adjoint(trace).unpaired  # by their layers
    ops = tuple(replace(op, layer="") if op.kind == "pool" and op.phase != "forward" else op for op in trace.ops)
    unpaired = adjoint(replace(trace, ops=ops)).unpaired
    assert unpaired["a.average:backward_data"] == (
        "Op 'a.average:backward_data' is one of 2 that may differentiate 'a.average:forward'; they read the same gradient."
    )
