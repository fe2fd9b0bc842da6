"""Stochastic depth: survival that decays linearly, whole batches, no gate."""

from __future__ import annotations

from fractions import Fraction

import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.strategies.stochastic_depth import survival
from jouletrace.testing import assert_laws, residual_traces
from jouletrace.trace.activities import training_run
from jouletrace.trace.units import without_units

STEP = load_trace("resnet20-cifar10-b32")


@pytest.mark.parametrize("settings", ["", "skip=2/5", "survive_last=0"])
def test_stochastic_depth_keeps_the_laws(settings: str) -> None:
    assert_laws(strategy(f"stochastic-depth:{settings}"), cases=10, traces=residual_traces())


def test_expected_depth_of_the_publication() -> None:
    # Huang et al., section 3: with p_L = 1/2 three quarters of the units run, (3L - 1)/4; 40.25 of 54.
    for units in (1, 9, 54):
        assert sum(survival(units, Fraction(1, 2))) == Fraction(3 * units - 1, 4)
    assert sum(survival(54, Fraction(1, 2))) == Fraction("40.25")


def test_a_step_loses_whole_units_and_gains_nothing() -> None:
    rewritten = apply(strategy("stochastic-depth"), STEP, seed=3)
    gone = [m.place for m in rewritten.matches if m.what.startswith("run by 0 ")]
    assert gone
    assert rewritten.added_macs == 0
    assert rewritten.value.macs == without_units(STEP, gone).macs
    assert {op.gate.decision for op in rewritten.value.ops if op.gate is not None} == {None}


def test_a_run_skips_late_units_more_often() -> None:
    run = apply(strategy("stochastic-depth"), training_run(STEP, 2000)).value
    assert set(run.samples.flatten().tolist()) == {0, 32}
    ran = (run.samples == 32).mean(axis=0)
    assert ran.tolist() == pytest.approx([float(p) for p in survival(9, Fraction(1, 2))], abs=0.06)


def test_one_share_for_all_units() -> None:
    run = apply(strategy("stochastic-depth:skip=2/5"), training_run(STEP, 2000)).value
    assert (run.samples == 32).mean(axis=0).tolist() == pytest.approx([0.6] * 9, abs=0.06)


def test_knobs_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("stochastic-depth:survive_last=2,skip=1")
    assert len(refused.value.problems) == 2
    assert apply(strategy("stochastic-depth:survive_last=1"), STEP).value is STEP
