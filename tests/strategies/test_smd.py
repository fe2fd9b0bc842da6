"""Dropped mini-batches: how many, which, and what a dropped one still does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.strategies.smd import StochasticMiniBatchDropping
from jouletrace.testing import assert_laws
from jouletrace.trace.activities import training_run
from jouletrace.trace.decisions import Decisions, write_decisions
from jouletrace.trace.run import DROPPED, Run

STEP = load_trace("resnet20-cifar10-b32")


def smd(settings: str = "", iterations: int = 3000, seed: int = 0) -> Run:
    return apply(strategy(f"smd:{settings}"), training_run(STEP, iterations), seed=seed).value


def times(run: Run) -> dict[str, int]:
    return {activity.name: activity.times for activity in run.activities}


@pytest.mark.parametrize("settings", ["", "mode=expected", "drop=as_coded", "p=0.9,ratio=0.1"])
def test_smd_keeps_the_laws(settings: str) -> None:
    assert_laws(strategy(f"smd:{settings}"), cases=10)


def test_the_published_training_has_85333_nominal_iterations() -> None:
    # E2-Train: 2/3 of 64,000 iterations executed, each with probability 1/2: 42,667 of 85,333.
    run = smd("mode=expected", 64_000)
    assert (run.iterations, run.executed) == (85_333, 42_667)


def test_the_code_counts_64000_nominal_iterations() -> None:
    # The authors' loop runs 64,000 times, dropped iterations included: half are executed.
    run = smd("mode=expected,ratio=1/2", 64_000)
    assert (run.iterations, run.executed) == (64_000, 32_000)


def test_a_dropped_iteration_does_nothing_and_loads_nothing() -> None:
    run = smd()
    assert run.steps == (STEP,)
    assert set(run.step_of.tolist()) == {0, DROPPED}
    assert times(run) == {"loading": run.executed, "augmentation": run.executed}
    assert run.step(int(np.argmax(run.step_of == 0))) is STEP
    assert run.step(int(np.argmax(run.step_of == DROPPED))) is None


def test_as_coded_a_dropped_iteration_loads_and_updates_with_a_gradient_of_zero() -> None:
    run = smd("drop=as_coded")
    assert run.executed == run.iterations == 4000
    assert times(run) == {"loading": 4000, "augmentation": 4000}
    idle = run.steps[1]
    assert {op.phase for op in idle.ops} == {"update"}
    assert idle.macs == 0
    full = smd()
    assert ((run.step_of == 0) == (full.step_of == 0)).all()  # the same batches are dropped


@given(st.integers(1, 500), st.fractions(0, Fraction(9, 10), max_denominator=20),
       st.fractions(Fraction(1, 20), 1, max_denominator=20))  # fmt: skip
def test_the_expected_mode_keeps_the_mean_evenly(iterations: int, p: Fraction, ratio: Fraction) -> None:
    part = StochasticMiniBatchDropping(p, ratio, mode="expected")
    run = apply(part, training_run(STEP, iterations)).value
    assert run.executed == max(1, round(ratio * iterations))
    gaps = np.diff(np.flatnonzero(run.step_of == 0))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_a_longer_training_begins_with_the_shorter_one() -> None:
    short, long = smd(iterations=300), smd(iterations=3000)
    assert (long.step_of[: short.iterations] == short.step_of).all()
    assert (smd(iterations=300, seed=1).step_of != short.step_of).any()


def test_steps_of_a_training_are_stretched_in_order() -> None:
    base = training_run(STEP, 4)
    two = Run("two", (STEP, base.activities[0].step), np.array([0, 0, 1, 1], dtype=np.int32))
    run = apply(strategy("smd:mode=expected,ratio=1"), two).value
    assert run.step_of.tolist() == [-1, 0, -1, 0, -1, 1, -1, 1]


def test_a_log_says_which_iterations_ran(tmp_path: Path) -> None:
    path = tmp_path / "run.decisions.jsonl"
    executed = np.array([True, False, False, True])
    write_decisions(Decisions("resnet20", 32, (), (), executed, np.zeros((4, 0), dtype=np.int32)), path)
    run = smd(f"log={path}", 3)
    assert run.step_of.tolist() == [0, DROPPED, DROPPED, 0]


def test_a_single_step_is_left_alone() -> None:
    rewritten = apply(strategy("smd"), STEP)
    assert rewritten.value is STEP
    assert "acts on runs" in rewritten.left[0].reason


def test_nothing_dropped_is_the_very_run() -> None:
    run = training_run(STEP, 10)
    assert apply(strategy("smd:p=0,ratio=1"), run).value is run


def test_knobs_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("smd:p=1,ratio=0")
    assert len(refused.value.problems) == 2
