"""SignSGD: gradients of one bit, nothing else."""

from __future__ import annotations

from dataclasses import replace

from jouletrace import load_trace
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.testing import Step, assert_laws

STEP = load_trace("resnet20-cifar10-b32")


def test_signsgd_keeps_the_laws() -> None:
    assert_laws(strategy("signsgd"), cases=15)


def test_every_weight_gradient_has_one_bit_and_all_else_is_equal() -> None:
    after = apply(strategy("signsgd"), STEP).value
    assert after.ops == STEP.ops
    signed = {op.reads[1] for op in STEP.ops if op.kind == "update"}
    for old, new in zip(STEP.tensors, after.tensors, strict=True):
        assert new == (replace(old, bits=1, format="sign") if old.name in signed else old)
    weights = sum(t.elements for t in STEP.tensors if t.role == "param" and t.name not in STEP.writer)
    assert sum(after.tensor[name].size_bits for name in signed) == weights


def test_a_gradient_that_is_added_up_first_keeps_its_parts() -> None:
    step = Step("shared", 2)
    x = step.given("images", (2, 2, 4, 4), "input")
    for _ in range(2):
        x = step.conv("conv", x, 2)
    step.loss(step.linear("fc", x, 3), 3)
    after = apply(strategy("signsgd"), step.trace()).value
    update = after.op["conv.weight:update"]
    assert after.tensor[update.reads[1]].bits == 1
    assert [after.tensor[name].bits for name in after.writer[update.reads[1]].reads] == [32, 32]


def test_signing_twice_is_signing_once() -> None:
    once = apply(strategy("signsgd"), STEP).value
    assert apply(strategy("signsgd"), once).value is once
