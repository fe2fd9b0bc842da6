"""Gradient accumulation as a strategy: the same step in micro-batches."""

from __future__ import annotations

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.testing import assert_laws
from jouletrace.trace.activities import training_run
from jouletrace.trace.lifetimes import peak_memory
from jouletrace.trace.micro_batch import micro_batched

STEP = load_trace("resnet20-cifar10-b32")


@pytest.mark.parametrize("size", [1, 2])
def test_accumulation_keeps_the_laws(size: int) -> None:
    assert_laws(strategy(f"accumulation:micro_batch={size}"), cases=8)


def test_four_micro_batches_multiply_as_often_in_less_memory() -> None:
    rewritten = apply(strategy("accumulation:micro_batch=8"), STEP)
    assert rewritten.value.ops == micro_batched(STEP, 8).ops
    assert rewritten.value.macs == STEP.macs
    assert rewritten.added_macs == rewritten.skipped_macs == STEP.macs
    assert peak_memory(rewritten.value).size_bytes < peak_memory(STEP).size_bytes / 3


def test_a_batch_that_fits_is_left_alone() -> None:
    for text in ("accumulation", "accumulation:micro_batch=64", "accumulation:micro_batch=none"):
        rewritten = apply(strategy(text), STEP)
        assert rewritten.value is STEP
        assert "fits one micro-batch" in rewritten.left[0].reason


def test_sizes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(RewriteError, match="do not divide the batch of 32"):
        apply(strategy("accumulation:micro_batch=5"), STEP)
    with pytest.raises(RewriteError, match="at least 1"):
        strategy("accumulation:micro_batch=0")


def test_samples_that_skip_units_are_in_no_known_micro_batch() -> None:
    some = apply(strategy("slu:gate=off"), training_run(STEP, 5)).value
    with pytest.raises(RewriteError, match="per_batch"):
        apply(strategy("accumulation:micro_batch=8"), some)
    whole = apply(strategy("stochastic-depth") | strategy("accumulation:micro_batch=8"), training_run(STEP, 5)).value
    assert np.isin(whole.samples, (0, 32)).all()
