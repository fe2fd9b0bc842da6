"""Weight averaging: activities beside an unchanged training."""

from __future__ import annotations

import pytest

from jouletrace import list_traces, load_trace
from jouletrace.errors import RewriteError
from jouletrace.hardware.load import load_hardware
from jouletrace.mapping.step import map_step
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.strategies.swa import averaging, statistics_pass
from jouletrace.testing import assert_laws
from jouletrace.trace.activities import training_run
from jouletrace.trace.check import problems
from jouletrace.trace.graph import successors
from jouletrace.trace.model import Elementwise

STEP = load_trace("resnet20-cifar10-b32")


def test_swa_keeps_the_laws() -> None:
    assert_laws(strategy("swa:period=3"), cases=10)


@pytest.mark.parametrize("name", list_traces())
def test_activities_are_valid(name: str) -> None:
    step = load_trace(name)
    assert problems(averaging(step)) == problems(statistics_pass(step)) == []
    has_norm = any(op.kind == "norm" and op.nest.function == "batch" for op in step.ops)  # type: ignore[union-attr]
    assert bool(statistics_pass(step).ops) == has_norm


def test_every_weight_is_read_with_its_mean_and_the_mean_written() -> None:
    step = averaging(STEP)
    op = step.op["fc.weight.average:update"]
    assert (op.nest, op.reads) == (Elementwise("lerp", 640), ("fc.weight.average", "fc.weight"))
    assert successors(step)["fc.weight.average"] == "fc.weight.average:update"  # in its place
    weights = sum(op.nest.elements for op in STEP.ops if op.kind == "update")  # type: ignore[union-attr]
    read = sum(sum(step.elements_read(op)) for op in step.ops)
    written = sum(sum(step.elements_written(op)) for op in step.ops)
    assert (read, written) == (2 * weights, weights)


def test_the_statistics_pass_ends_with_the_last_batch_norm() -> None:
    names = [op.name for op in statistics_pass(STEP).ops]
    assert names[-1] == "layer3.2.bn2.batch:forward"
    assert "fc:forward" not in names


def test_a_run_gains_activities_and_keeps_its_steps() -> None:
    run = training_run(STEP, 64_000)
    after = apply(strategy("swa"), run).value
    assert [(a.name, a.times) for a in after.activities[2:]] == [("averaging", 64_000 // 1170), ("averaging", 391)]
    assert after.steps == run.steps
    for activity in after.activities[2:]:
        assert map_step(activity.step, load_hardware("zedboard-fp32")).ops
    assert len(apply(strategy("swa:statistics_batches=0"), run).value.activities) == 3


def test_less_than_a_period_or_a_single_step_is_left_alone() -> None:
    run = training_run(STEP, 100)
    assert apply(strategy("swa"), run).value is run
    assert apply(strategy("swa:period=none"), run).value is run
    rewritten = apply(strategy("swa"), STEP)
    assert rewritten.value is STEP
    assert "acts on runs" in rewritten.left[0].reason


def test_knobs_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("swa:period=0,statistics_batches=-1")
    assert len(refused.value.problems) == 2
