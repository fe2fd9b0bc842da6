"""Learnable dynamic precision: Yu et al., arXiv 2203.07713."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.cpt import CyclicPrecision
from jouletrace.strategies.ldp import LearnableDynamicPrecision
from jouletrace.testing import assert_laws
from jouletrace.trace.decisions import Decisions, write_decisions
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run

STEP = load_trace("resnet20-cifar10-b32")


def training(iterations: int) -> Run:
    return Run("training", (STEP,), np.zeros(iterations, dtype=np.int32))


def forward(trace: Trace, layer: str) -> tuple[int, ...]:
    return trace.bits_read(trace.op[f"{layer}:forward"])


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Ten iterations of two layers: 3 bits, from the fourth on one has 4, in the last two both are back at 3."""
    layers = ("layer1.0.conv1", "layer1.0.conv2")
    rows = [[0, 0, 3, 3, 8], [0, 1, 3, 3, 8], [4, 1, 4, 5, 8], [8, 1, 3, 3, 8]]
    decisions = Decisions("tiny", 32, (), layers, np.ones(10, dtype=bool), np.zeros((10, 0), dtype=np.int32),
                          precision=np.array(rows, dtype=np.int64))  # fmt: skip
    write_decisions(decisions, tmp_path / "run.decisions.jsonl")
    return str(tmp_path / "run.decisions.jsonl")


def test_phases_have_one_width_in_all_layers() -> None:
    run = apply(LearnableDynamicPrecision(bits=(3, 5), boundaries=(Fraction(3, 4),)), training(8)).value
    assert [forward(run.steps[i], "layer1.0.conv1") for i in run.step_of.tolist()] == [(3, 3)] * 6 + [(5, 5)] * 2


def test_constant_widths_are_a_static_schedule() -> None:
    learnt = apply(LearnableDynamicPrecision(bits=(5,)), STEP).value
    static = apply(CyclicPrecision(low=5, high=5), STEP).value
    assert (learnt.ops, learnt.tensors) == (static.ops, static.tensors)


def test_a_log_gives_every_layer_its_widths(log: str) -> None:
    run = apply(LearnableDynamicPrecision(log=log), training(10)).value
    assert len(run.steps) == 2  # equal settings are one step
    told = [forward(run.steps[i], "layer1.0.conv2") for i in run.step_of.tolist()]
    assert told == [(3, 3)] * 4 + [(5, 4)] * 4 + [(3, 3)] * 2
    assert {forward(step, "layer1.0.conv1") for step in run.steps} == {(3, 3)}
    assert {forward(step, "layer1.1.conv1") for step in run.steps} == {(32, 32)}  # the log does not name it
    reasons = {left.place for left in apply(LearnableDynamicPrecision(log=log), STEP).left}
    assert "layer1.1.conv1:forward" in reasons


def test_a_log_is_stretched_to_the_run(log: str) -> None:
    run = apply(LearnableDynamicPrecision(log=log), training(20)).value
    told = [forward(run.steps[i], "layer1.0.conv2")[0] for i in run.step_of.tolist()]
    assert told == [3] * 8 + [5] * 8 + [3] * 4


def test_a_log_of_another_network_is_refused(log: str) -> None:
    with pytest.raises(RewriteError, match="names no layer of lstm2-b128; it was recorded with 'tiny'"):
        apply(LearnableDynamicPrecision(log=log), load_trace("lstm2-b128"))


def test_neutral_is_the_very_step_and_run() -> None:
    run, neutral = training(6), LearnableDynamicPrecision().neutral()
    assert neutral is not None
    assert apply(neutral, STEP).value is STEP
    assert apply(neutral, run).value is run


def test_wrong_knobs_are_told_together() -> None:
    with pytest.raises(RewriteError) as caught:
        LearnableDynamicPrecision(bits=(4, 3, 40), gradient=1)
    assert caught.value.problems == (
        "ldp: bits has to lie between 2 and 32 bits (got 40)",
        "ldp: gradient has to lie between 2 and 32 bits (got 1)",
        "ldp: bits may not fall from phase to phase",
    )


def test_laws() -> None:
    assert_laws(LearnableDynamicPrecision(), cases=10)
