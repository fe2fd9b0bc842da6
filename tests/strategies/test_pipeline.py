"""Combinations: their order, what only one of them may decide, and what the header and the run tell afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError, TraceError
from jouletrace.hardware.load import load_hardware
from jouletrace.strategies.base import Notes, Strategy, apply, run_digest
from jouletrace.strategies.knobs import from_texts
from jouletrace.strategies.pipeline import Pipeline
from jouletrace.strategies.registry import strategy, strategy_class
from jouletrace.testing import assert_laws, residual_traces
from jouletrace.trace.activities import training_run
from jouletrace.trace.io import digest
from jouletrace.trace.model import Trace

STEP = load_trace("resnet20-cifar10-b32")


def test_e2train_keeps_the_laws() -> None:
    assert_laws(
        strategy("smd+slu:first=on+psg"), cases=6, traces=residual_traces(), hardware=load_hardware("zedboard-int8")
    )


def test_the_bar_puts_strategies_one_after_the_other() -> None:
    smd, slu, sign = (strategy(name) for name in ("smd", "slu", "signsgd"))
    assert (smd | slu) | sign == smd | (slu | sign) == Pipeline((smd, slu, sign))
    assert (smd | slu | sign).parts == (smd, slu, sign)


@pytest.mark.parametrize(("text", "problem"), [
    ("slu+smd", r"smd \(data\) cannot come after slu \(graph\).*write smd\+slu"),
    ("accumulation+signsgd", r"write signsgd\+accumulation"),
    ("slu+stochastic-depth", "slu and stochastic-depth both decide about blocks"),
    ("freeze+sparse-update", "both decide about trained parameters"),
    ("smd+smd", "smd stands twice"),
])  # fmt: skip
def test_combinations_that_make_no_sense_are_refused(text: str, problem: str) -> None:
    with pytest.raises(RewriteError, match=problem):
        strategy(text)


def test_all_conflicts_are_told_at_once() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("swa+slu+stochastic-depth+smd")
    assert len(refused.value.problems) == 6  # every pair


def test_a_neutral_combination_changes_nothing() -> None:
    neutral = strategy("slu+freeze:layers=conv1+checkpointing").neutral()
    assert neutral is not None
    assert apply(neutral, STEP).value is STEP
    assert strategy("slu+signsgd").neutral() is None


def test_the_header_tells_every_rewrite_and_gives_the_same_step_again() -> None:
    combination = strategy("slu:skip=1/2+sparse-update:channels=1/2+signsgd")
    after = apply(combination, STEP, seed=5).value
    assert [r.strategy for r in after.header.rewrites] == ["slu", "sparse-update", "signsgd"]
    assert [r.seed for r in after.header.rewrites] == [5, None, None]
    assert after.header.rewrites[0].input_digest == digest(STEP)
    again: Trace = STEP
    for rewrite in after.header.rewrites:
        part = from_texts(strategy_class(rewrite.strategy), {k: str(v) for k, v in rewrite.parameters})
        assert digest(again) == rewrite.input_digest
        again = apply(part, again, seed=rewrite.seed or 0).value
    assert again == after


def test_a_run_tells_every_rewrite() -> None:
    run = training_run(STEP, 40)
    after = apply(strategy("smd+slu+signsgd+swa:period=10"), run, seed=3).value
    assert [(r.strategy, r.seed) for r in after.rewrites] == [("smd", 3), ("slu", 3), ("signsgd", None), ("swa", None)]
    assert after.rewrites[0].input_digest == run_digest(run)
    assert [r.strategy for r in after.steps[0].header.rewrites] == ["slu", "signsgd"]
    assert run_digest(after) == run_digest(apply(strategy("smd+slu+signsgd+swa:period=10"), run, seed=3).value)


def test_what_matched_and_what_was_left_is_told_in_order() -> None:
    rewritten = apply(strategy("smd+slu:gate=off+swa"), STEP)
    assert rewritten.left[0].reason.startswith("smd drops whole iterations")
    assert rewritten.left[-1].reason.startswith("swa averages between steps")
    assert rewritten.matches[0].place == "layer1.1"


def test_a_strategy_that_breaks_a_step_is_named() -> None:
    @dataclass(frozen=True)
    class Broken(Strategy):
        name: ClassVar[str] = "broken"

        def step(self, trace: Trace, notes: Notes) -> Trace:
            return Trace(trace.header, trace.tensors[1:], trace.ops)

    with pytest.raises(TraceError, match="after broken the step is not valid, which is a defect of that strategy"):
        apply(Broken(), STEP)
