"""Mixed precision: Micikevicius et al., ICLR 2018."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.mixed_precision import MixedPrecision
from jouletrace.strategies.registry import strategy
from jouletrace.testing import Step, assert_laws
from jouletrace.trace.counting import effective_macs
from jouletrace.trace.lifetimes import saved_for_backward_bytes
from jouletrace.trace.model import Sync, Trace, Update
from jouletrace.trace.prune import prune
from jouletrace.trace.units import gated, residual_units, without_units

STEP = load_trace("resnet20-cifar10-b32")


def functions(trace: Trace) -> dict[str, int]:
    """How often each function of elementwise ops and reductions occurs among ops that were added."""
    names = [op.nest.function for op in trace.ops if op.name not in STEP.op and hasattr(op.nest, "function")]  # type: ignore[union-attr]
    return {name: names.count(name) for name in sorted(set(names))}


def test_products_are_a_quarter_of_full_width() -> None:
    after = apply(MixedPrecision(), STEP).value
    assert effective_macs(after) == Fraction(STEP.macs, 4)
    assert after.macs == STEP.macs


def test_weights_are_cast_once_and_masters_stay() -> None:
    after = apply(MixedPrecision("bf16"), STEP).value
    weight = "layer1.0.conv1.weight"
    readers = {op.name for op in after.readers[f"{weight}.fp16"]}
    assert readers == {"layer1.0.conv1:forward", "layer1.0.conv1:backward_data"}
    update = after.op[f"{weight}:update"]
    assert [after.tensor[t].bits for t in (*update.reads, *update.writes)] == [32] * 5
    assert after.tensor["layer1.0.conv1:backward_weight.gw"].bits == 16


def test_results_are_rounded_on_the_way_out_so_that_only_given_values_are_cast() -> None:
    after = apply(MixedPrecision("bf16"), STEP).value
    wide = {t.name for t in after.tensors if t.bits == 32 and t.role in ("activation", "gradient")}
    assert wide == {
        "fc:forward.y", "cross_entropy:forward.y", "cross_entropy:forward.log_probabilities",
        "cross_entropy:backward_data.gx",
    }  # fmt: skip
    # 22 weights, the images, the gradient of the loss; then 22 weight gradients and one of a bias back to fp32.
    assert functions(after) == {"cast": 24 + 23}


def test_half_of_the_saved_bytes_is_kept() -> None:
    after = apply(MixedPrecision(), STEP).value
    # Log-probabilities stay wide, and 16-bit images are an activation of their own.
    expected = Fraction(saved_for_backward_bytes(STEP), 2) + 32 * 10 * 2 + 2 * 32 * 3 * 32 * 32
    assert saved_for_backward_bytes(after) == expected


def test_dynamic_scaling_is_a_barrier_before_every_update() -> None:
    after = apply(MixedPrecision("fp16"), STEP).value
    updates = [op for op in after.ops if isinstance(op.nest, Update)]
    decision = after.op["gradients.decision:update"]
    assert isinstance(decision.nest, Sync)
    assert all(decision.name in op.after for op in updates)
    checked = [after.op[name].reads[0] for name in decision.after]
    assert checked == [op.reads[1] for op in updates]
    # Every weight gradient is scaled and looked at: 22 of products, 1 of a bias, 42 of norms.
    assert functions(after) == {"any": 65, "cast": 24, "decision": 1, "scale": 65}
    assert after.op["cross_entropy:backward_data"].reads[-1] == "loss_scale"


def test_a_skipped_unit_takes_its_scaling_with_it() -> None:
    marked = gated(STEP, residual_units(STEP))
    after = apply(MixedPrecision("fp16"), marked).value
    fewer = without_units(after, ["layer1.1"])
    gone = {op.layer for op in after.ops} - {op.layer for op in fewer.ops}
    assert gone == {"layer1.1", *(f"layer1.1.{part}" for part in ("bn1", "bn2", "conv1", "conv2"))}
    assert len(fewer.op["gradients.decision:update"].after) == 65 - 6


def test_static_scaling_has_no_check() -> None:
    after = apply(MixedPrecision(loss_scaling="static"), STEP).value
    assert functions(after) == {"cast": 24, "scale": 65}
    assert "loss_scale" in after.op["cross_entropy:backward_data"].reads


def test_bf16_needs_no_scaling() -> None:
    assert MixedPrecision("bf16").scaling == "none"
    assert MixedPrecision("bf16", "static").scaling == "static"


def test_an_update_before_the_last_gradient_is_refused() -> None:
    step = Step("early", 2)
    step.loss(step.linear("fc", step.linear("first", step.given("x", (2, 8), "input"), 8), 10), 10)
    trace = step.trace()
    early = trace.op["fc.weight:update"]
    ops = [op for op in trace.ops if op is not early]
    place = 1 + next(i for i, op in enumerate(ops) if early.reads[1] in op.writes)
    with pytest.raises(RewriteError, match="stands before"):
        apply(MixedPrecision(), replace(trace, ops=(*ops[:place], early, *ops[place:])))


def test_a_step_without_updates_has_nothing_to_scale_back() -> None:
    ops = tuple(op for op in STEP.ops if op.phase == "forward")
    used = {name for op in ops for name in (*op.reads, *op.writes)}
    inference = prune(replace(STEP, ops=ops, tensors=tuple(t for t in STEP.tensors if t.name in used)))
    after = apply(MixedPrecision("bf16"), inference).value
    assert effective_macs(after) == Fraction(inference.macs, 4)


def test_twice_is_refused() -> None:
    once = apply(MixedPrecision("bf16"), STEP).value
    with pytest.raises(RewriteError, match="reads 16 bits already"):
        apply(MixedPrecision("bf16"), once)


@pytest.mark.parametrize("text", ["mixed-precision", "mixed-precision:format=bf16", "slu+mixed-precision"])
def test_laws(text: str) -> None:
    assert_laws(strategy(text), cases=10)
