"""Predictive sign gradients: Wang et al., E2-Train, NeurIPS 2019."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.int8 import Int8Training
from jouletrace.strategies.psg import PredictiveSignGradient
from jouletrace.strategies.registry import strategy
from jouletrace.testing import Step, assert_laws
from jouletrace.trace.counting import bit_operations, bit_operations_of
from jouletrace.trace.decisions import Decisions, write_decisions
from jouletrace.trace.model import Conv, Op, Trace
from jouletrace.trace.units import gated, residual_units

STEP = load_trace("resnet20-cifar10-b32")
LAYER = "layer1.1.conv1"  # 2,304 weights, products in all three phases
EIGHT_BIT = apply(Int8Training(biprecision=False), STEP).value


def cost(trace: Trace, *, phase: str | None = None, layer: str = LAYER) -> int:
    return sum(bit_operations_of(trace, op) for op in trace.ops if op.layer == layer and phase in (None, op.phase))


def exactly(share: Fraction) -> Fraction:
    """The share of 2,304 weights that is settled when the rest is rounded up."""
    return 1 - Fraction(ceil((1 - share) * 2304), 2304)


# -- the picture


def backward_weight(trace: Trace) -> list[str]:
    ops = [op for op in trace.ops if op.layer == LAYER and op.phase == "backward_weight"]
    return [op.name.removeprefix(f"{LAYER}").removesuffix(":backward_weight") for op in ops]


def test_the_adaptive_threshold_is_a_barrier_between_predictor_and_fallback() -> None:
    after = apply(PredictiveSignGradient(), STEP).value
    assert backward_weight(after) == [".predictor", ".max", ".decision", ".compare", "", ".where"]
    gw = f"{LAYER}:backward_weight.gw"
    predictor, fallback = (after.op[f"{LAYER}{what}:backward_weight"] for what in (".predictor", ""))
    assert (after.bits_read(predictor), after.bits_read(fallback)) == ((10, 4), (16, 8, 1))
    assert predictor.reads == fallback.reads[:2]
    assert fallback.reads[2] == f"{gw}.choice"
    assert fallback.after == (f"{LAYER}.decision:backward_weight",)
    assert fallback.write_elements == (922,)  # 2,304 · 2/5, rounded up
    signs = [after.tensor[name] for name in (f"{gw}.sign", f"{gw}.full", gw)]
    assert [(t.bits, t.format, t.role) for t in signs] == [(1, "sign", "weight_gradient")] * 3
    assert (after.tensor[f"{gw}.choice"].bits, after.tensor[f"{gw}.choice"].role) == (1, "buffer")
    assert (after.tensor[f"{gw}.msb"].bits, after.tensor[f"{gw}.msb"].role) == (32, "weight_gradient")
    assert after.op[f"{LAYER}.weight:update"] == STEP.op[f"{LAYER}.weight:update"]
    assert after.tensor[gw].size_bytes == 2304 // 8


def test_a_fixed_threshold_neither_reduces_nor_waits() -> None:
    after = apply(PredictiveSignGradient(threshold="fixed"), STEP).value
    assert backward_weight(after) == [".predictor", ".compare", "", ".where"]
    assert after.op[f"{LAYER}:backward_weight"].after == ()


def test_there_is_no_fallback_if_everything_is_settled() -> None:
    after = apply(PredictiveSignGradient(predicted=Fraction(1)), STEP).value
    assert backward_weight(after) == [".predictor", ".max", ".compare"]
    assert after.op[f"{LAYER}.compare:backward_weight"].writes == (f"{LAYER}:backward_weight.gw",)


# -- the figures


def test_the_bit_operations_of_a_layer_are_those_of_the_formula() -> None:
    # PSG = (64 + 128 + 4·10 + (1 - r)·128) / 3072: 0.09219, 0.08385, 0.07552 for r = 0.6, 0.8, 1.
    for share, printed in ((Fraction(3, 5), 0.09219), (Fraction(4, 5), 0.08385), (Fraction(1), 0.07552)):
        after = apply(PredictiveSignGradient(predicted=share), STEP).value
        formula = (64 + 128 + 40 + (1 - exactly(share)) * 128) / 3072
        assert Fraction(cost(after), cost(STEP)) == formula
        assert float(formula) == pytest.approx(printed, abs=2e-5)


@pytest.mark.parametrize(
    ("bits", "printed"), [(10, (0.7125, 0.5125, 0.3125)), (16, (0.9, 0.7, 0.5))]
)  # fmt: skip
def test_backward_weight_against_8_bit_training(bits: int, printed: tuple[float, ...]) -> None:
    for share, expected in zip((Fraction(3, 5), Fraction(4, 5), Fraction(1)), printed, strict=True):
        after = apply(PredictiveSignGradient(predicted=share, predictor_gradient=bits), STEP).value
        ratio = Fraction(cost(after, phase="backward_weight"), cost(EIGHT_BIT, phase="backward_weight"))
        assert ratio == Fraction(4 * bits, 128) + 1 - exactly(share)
        assert float(ratio) == pytest.approx(expected, abs=5e-4)


def test_predicting_nothing_costs_the_predictor_more_than_8_bit_training() -> None:
    done = apply(PredictiveSignGradient(predicted=Fraction(0)), STEP)
    signed = [op for op in STEP.ops if isinstance(op.nest, Conv) and op.nest.role == "backward_weight"]
    predictor = sum(op.macs for op in signed) * 4 * 10
    assert bit_operations(done.value) == bit_operations(EIGHT_BIT) + predictor
    assert (done.added_macs, done.skipped_macs) == (sum(op.macs for op in signed), 0)


def test_forward_and_backward_data_are_those_of_8_bit_training() -> None:
    after = apply(PredictiveSignGradient(), STEP).value
    for phase in ("forward", "backward_data"):
        assert [o for o in after.ops if o.phase == phase] == [o for o in EIGHT_BIT.ops if o.phase == phase]


def test_macs_are_counted_as_added_and_skipped() -> None:
    done = apply(PredictiveSignGradient(), STEP)
    assert done.value.macs == STEP.macs + done.added_macs - done.skipped_macs
    share = Fraction(done.skipped_macs, done.added_macs)
    assert Fraction(59, 100) < share <= Fraction(3, 5)


# -- what is left alone


def test_classifier_and_norms_are_not_signed_unless_told() -> None:
    done = apply(PredictiveSignGradient(), STEP)
    assert [left.place for left in done.left] == ["fc:backward_weight"]
    assert done.value.tensor["fc:backward_weight.gw"].bits == 32
    signed = apply(PredictiveSignGradient(linear=True), STEP)
    assert signed.left == ()
    assert signed.value.tensor["fc:backward_weight.gw"].format == "sign"
    assert {t.bits for t in signed.value.tensors if t.role == "weight_gradient" and "bn" in t.name} == {32}


def test_gradients_that_are_added_up_keep_their_magnitude() -> None:
    step = Step("shared", 2)
    x = step.conv("conv", step.given("images", (2, 4, 4, 4), "input"), 4)
    step.loss(step.linear("fc", step.conv("conv", x, 4), 10), 10)
    done = apply(PredictiveSignGradient(), step.trace())
    reasons = {left.place: left.reason for left in done.left}
    assert all("accumulate" in reasons[f"conv.conv:backward_weight{n}"] for n in ("", "#2"))


def test_a_network_without_convolutions_is_8_bit_training() -> None:
    step = Step("dense", 4)
    step.loss(step.linear("fc", step.given("x", (4, 8), "input"), 10), 10)
    trace = step.trace()
    after = apply(PredictiveSignGradient(), trace).value
    assert after.ops == apply(Int8Training(biprecision=False), trace).value.ops


def test_an_8_bit_step_keeps_its_widths_and_a_signed_one_is_refused() -> None:
    bifurcated = apply(Int8Training(), STEP).value
    after = apply(PredictiveSignGradient(), bifurcated).value
    assert Fraction(cost(after, phase="backward_data"), cost(STEP, phase="backward_data")) == Fraction(64, 1024)
    with pytest.raises(RewriteError, match="signs already"):
        apply(PredictiveSignGradient(), after)


# -- knobs


def test_the_released_code_has_a_preset_of_its_own() -> None:
    code = strategy("psg:bits=code")
    assert isinstance(code, PredictiveSignGradient)
    assert (code.gradient, code.predictor_gradient, code.predictor_activation, code.threshold) == (32, 16, 4, "fixed")
    assert code == PredictiveSignGradient(bits="code", gradient=32)
    with pytest.raises(RewriteError, match="bits=code sets predictor_gradient"):
        PredictiveSignGradient(bits="code", predictor_gradient=12)


def test_wrong_knobs_are_told_together() -> None:
    with pytest.raises(RewriteError) as caught:
        PredictiveSignGradient(predictor_activation=9, predicted=Fraction(3, 2), beta=Fraction(-1))
    assert caught.value.problems == (
        "psg: predictor_activation has to lie between 1 and activation=8 (got 9)",
        "psg: predicted has to lie between 0 and 1 (got 3/2)",
        "psg: beta has to lie between 0 and 1 (got -1)",
    )


def test_a_log_gives_every_layer_its_measured_share(tmp_path: Path) -> None:
    rows = np.array([[0, 0, 1000, 2304], [1, 0, 1304, 2304]], dtype=np.int64)
    log = Decisions("tiny", 32, (), (LAYER, "other"), np.ones(2, dtype=bool), np.zeros((2, 0), dtype=np.int32),
                    predictor=rows)  # fmt: skip
    write_decisions(log, tmp_path / "run.decisions.jsonl")
    done = apply(PredictiveSignGradient(log=str(tmp_path / "run.decisions.jsonl")), STEP)
    assert done.value.op[f"{LAYER}:backward_weight"].write_elements == (1152,)  # half of them were settled
    assert {left.place: left.reason for left in done.left}["conv1:backward_weight"].endswith("no share of the layer 'conv1'")


def test_gates_stay_on_every_part() -> None:
    after = apply(PredictiveSignGradient(), gated(STEP, residual_units(STEP))).value
    parts: list[Op] = [op for op in after.ops if op.layer == LAYER and op.phase == "backward_weight"]
    assert [op.gate.name if op.gate is not None else "" for op in parts] == ["layer1.1"] * 6


@pytest.mark.parametrize("text", ["psg", "psg:threshold=fixed,linear=on,predicted=0", "slu+psg"])
def test_laws(text: str) -> None:
    assert_laws(strategy(text), cases=10)
