"""8-bit training: Banner et al., NeurIPS 2018."""

from __future__ import annotations

from fractions import Fraction

import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.int8 import Int8Training
from jouletrace.strategies.registry import strategy
from jouletrace.testing import assert_laws
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.lifetimes import saved_for_backward_bytes
from jouletrace.trace.model import Trace

STEP = load_trace("resnet20-cifar10-b32")


def share_of_layer(trace: Trace, layer: str = "layer1.1.conv1") -> Fraction:
    """Bit-operations of one layer's three products, of those in 32 bits."""
    done, full = (sum(bit_operations_of(t, op) for op in t.ops if op.layer == layer) for t in (trace, STEP))
    return Fraction(done, full)


def test_biprecision_makes_an_inner_layer_cost_a_twelfth() -> None:
    # (8·8 + 8·8 + 8·16) / (3·32²); with one 16-bit copy of the gradient (8·8 + 2·8·16) / (3·32²).
    assert share_of_layer(apply(Int8Training(), STEP).value) == Fraction(64 + 64 + 128, 3072)
    assert float(share_of_layer(apply(Int8Training(), STEP).value)) == pytest.approx(0.08333, abs=5e-6)
    whole = share_of_layer(apply(Int8Training(biprecision=False), STEP).value)
    assert whole == Fraction(64 + 128 + 128, 3072)
    assert float(whole) == pytest.approx(0.10417, abs=5e-6)


def test_macs_and_updates_stay() -> None:
    done = apply(Int8Training(), STEP)
    assert (done.value.macs, done.skipped_macs, done.added_macs) == (STEP.macs, 0, 0)
    updates = [op for op in STEP.ops if op.phase == "update"]
    assert updates == [op for op in done.value.ops if op.phase == "update"]


def test_a_quarter_of_the_saved_bytes_is_kept() -> None:
    after = apply(Int8Training(), STEP).value
    quarter = Fraction(saved_for_backward_bytes(STEP), 4)
    # Log-probabilities (32 × 10 × 4 bytes) stay wide, and the 8-bit images are an activation of their own.
    assert saved_for_backward_bytes(after) == quarter + 32 * 10 * 3 + 32 * 3 * 32 * 32


def test_edges_off_leaves_them_wide_and_says_so() -> None:
    done = apply(Int8Training(scope="operands", edges=False), STEP)
    assert done.value.op["fc:forward"] == STEP.op["fc:forward"]
    assert done.value.bits_read(done.value.op["layer1.0.conv1:forward"]) == (8, 8)
    assert ("fc:forward", "its layer keeps its widths") in [(left.place, left.reason) for left in done.left]


def test_twice_is_refused() -> None:
    once = apply(Int8Training(), STEP).value
    with pytest.raises(RewriteError, match=r"integers already \(by int8\)"):
        apply(Int8Training(), once)
    with pytest.raises(RewriteError, match="both decide about widths"):
        strategy("int8+cpt")


def test_neutral_is_the_very_step() -> None:
    assert apply(Int8Training().neutral(), STEP).value is STEP


def test_wrong_knobs_are_told_together() -> None:
    with pytest.raises(RewriteError) as caught:
        Int8Training(activation=1, gradient=4, edges=False)
    assert caught.value.problems == (
        "int8: activation has to lie between 2 and 32 bits (got 1)",
        "int8: gradient_data=8 is wider than gradient=4, of which it is a copy",
        "int8: edges=off keeps wide operands, and scope=activations keeps none; write scope=operands",
    )


@pytest.mark.parametrize("text", ["int8", "int8:scope=operands,edges=off,range=dynamic"])
def test_laws(text: str) -> None:
    assert_laws(strategy(text), cases=15)
