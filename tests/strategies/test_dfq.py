"""Dynamic fractional quantisation: Fu et al., FracTrain, NeurIPS 2020."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.dfq import DynamicFractionalQuantisation
from jouletrace.strategies.products import edges
from jouletrace.testing import Step, assert_laws
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run
from jouletrace.trace.units import residual_units

STEP = load_trace("resnet20-cifar10-b32")


def training(trace: Trace, iterations: int) -> Run:
    return Run("training", (trace,), np.zeros(iterations, dtype=np.int32))


def per_cent(run: Run) -> Fraction:
    """Cost of all that is no edge, in per cent of 32 × 32 bits."""
    done = full = 0
    for step, times in zip(run.steps, np.bincount(run.step_of).tolist(), strict=True):
        inner = [op for op in step.ops if op.name not in edges(step)]
        done += times * sum(bit_operations_of(step, op) for op in inner)
        full += times * sum(op.macs for op in inner) * 1024
    return Fraction(100 * done, full)


def choice(trace: Trace, layer: str) -> tuple[int, int]:
    gradient, activation = trace.bits_read(trace.op[f"{layer}:backward_weight"])[:2]
    return activation, gradient


def test_the_choices_cost_what_the_publication_s_settings_give() -> None:
    costs = [round(float(cost), 3) for cost in DynamicFractionalQuantisation().costs]
    assert costs == [1.758, 2.083, 2.604, 3.385, 4.688]


def test_two_neighbouring_choices_meet_the_target() -> None:
    cheap, dear, share = DynamicFractionalQuantisation().mix(Fraction(3))
    assert (cheap, dear, share) == (2, 3, Fraction(38, 75))  # (4, 8) and (6, 8)
    assert DynamicFractionalQuantisation().mix(DynamicFractionalQuantisation().costs[1])[2] == 0


def test_the_target_is_met_exactly_where_the_rotations_hold_the_proportion() -> None:
    # 2.5 per cent lie four fifths of the way from (4, 6) to (4, 8).
    exact = DynamicFractionalQuantisation(target=(Fraction(5, 2),), rotations=5)
    assert exact.mix(Fraction(5, 2))[2] == Fraction(4, 5)
    assert per_cent(apply(exact, training(STEP, 20)).value) == Fraction(5, 2)


def test_otherwise_it_is_off_by_less_than_one_block_in_one_rotation() -> None:
    run = apply(DynamicFractionalQuantisation(), training(STEP, 20)).value
    low, high = DynamicFractionalQuantisation().costs[2:4]
    assert abs(per_cent(run) - 3) < (high - low) / (9 * 5)


def test_a_block_takes_one_choice_and_every_block_sees_both() -> None:
    run = apply(DynamicFractionalQuantisation(), training(STEP, 5)).value
    assert len(run.steps) == 5
    for unit in residual_units(STEP):
        seen = set[tuple[int, int]]()
        for step in run.steps:
            first, second = (choice(step, f"{unit.name}.{conv}") for conv in ("conv1", "conv2"))
            assert first == second
            seen.add(first)
        assert seen == {(4, 8), (6, 8)}


def test_stem_shortcuts_and_classifier_keep_their_widths() -> None:
    after = apply(DynamicFractionalQuantisation(), STEP).value
    assert after.op["fc:forward"] == STEP.op["fc:forward"]
    assert after.op["layer2.0.downsample.0:forward"] == STEP.op["layer2.0.downsample.0:forward"]


def test_a_network_without_blocks_chooses_by_layer() -> None:
    step = Step("plain", 2)
    x = step.given("images", (2, 3, 8, 8), "input")
    for i in range(4):
        x = step.conv(f"conv{i}", x, 4)
    step.loss(step.linear("fc", x, 10), 10)
    after = apply(DynamicFractionalQuantisation(edges=True), step.trace()).value
    chosen = {after.bits_read(op)[0] for op in after.ops if op.kind == "conv" and op.phase == "forward"}
    assert chosen == {4, 6}


def test_depthwise_convolutions_have_widths_of_their_own() -> None:
    trace = load_trace("mobilenetv2-cifar10-b128")
    after = apply(DynamicFractionalQuantisation(), trace).value
    depthwise = [op for op in trace.ops if op.kind == "conv" and op.nest.G > 1]  # type: ignore[union-attr]
    assert {after.bits_read(after.op[op.name]) for op in depthwise if op.phase == "backward_weight"} == {(16, 8)}


def test_a_list_of_targets_is_fractrain() -> None:
    targets = tuple(map(Fraction, ("1.5", "2", "2.5", "3")))
    fractrain = DynamicFractionalQuantisation(target=targets, saturate=True)
    run = apply(fractrain, training(STEP, 40)).value
    parts = [Run("part", run.steps, run.step_of[i : i + 10].copy()) for i in range(0, 40, 10)]
    costs = [float(_cost_of_used(part)) for part in parts]
    assert costs == pytest.approx([1.758, 2, 2.5, 3], abs=0.02)  # 1.5 is out of reach: all blocks take (3, 6)


def _cost_of_used(run: Run) -> Fraction:
    used = sorted(set(run.step_of.tolist()))
    steps = tuple(run.steps[i] for i in used)
    return per_cent(Run("part", steps, np.array([used.index(i) for i in run.step_of.tolist()], dtype=np.int32)))


def test_a_target_out_of_reach_is_refused_with_the_range() -> None:
    with pytest.raises(RewriteError) as caught:
        DynamicFractionalQuantisation(target=(Fraction(3, 2), Fraction(5)))
    assert caught.value.problems == (
        "dfq: target=1.5 cannot be met; choices cost 1.758 to 4.688 % of 32 × 32 bits, and saturate=on takes the "
        "cheapest",
        "dfq: target=5 cannot be met; choices cost 1.758 to 4.688 % of 32 × 32 bits",
    )


def test_wrong_knobs_are_told_together() -> None:
    with pytest.raises(RewriteError) as caught:
        DynamicFractionalQuantisation(weight=1, rotations=0, scope="activations", edges=True)
    assert len(caught.value.problems) == 3


def test_neutral_is_the_very_step_and_run() -> None:
    run, neutral = training(STEP, 5), DynamicFractionalQuantisation().neutral()
    assert apply(neutral, STEP).value is STEP
    assert apply(neutral, run).value is run


def test_laws() -> None:
    assert_laws(DynamicFractionalQuantisation(edges=True, rotations=2), cases=10)
