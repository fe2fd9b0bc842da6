"""A run: which step an iteration executes, and for how many samples."""

from __future__ import annotations

import numpy as np
import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError
from jouletrace.strategies.base import run_digest
from jouletrace.trace.activities import training_run
from jouletrace.trace.run import DROPPED, Run, unit_names
from jouletrace.trace.units import gated, residual_units, with_samples

STEP = load_trace("resnet20-cifar10-b32")
UNITS = residual_units(STEP)[:2]
GATED = gated(STEP, UNITS)


def run(step_of: list[int], samples: list[list[int]] | None = None) -> Run:
    rows = np.zeros((0, 0), dtype=np.int32) if samples is None else np.array(samples, dtype=np.int32)
    units = () if samples is None else tuple(unit.name for unit in UNITS)
    return Run("toy", (GATED, STEP), np.array(step_of, dtype=np.int32), units, rows)


def test_an_iteration_executes_its_step_for_its_samples() -> None:
    some = run([0, 0, DROPPED, 1, 0], [[32, 32], [8, 0], [0, 0], [5, 5], [32, 0]])
    assert (some.iterations, some.executed, some.batch) == (5, 4, 32)
    assert some.step(0) is GATED
    assert some.step(1) == with_samples(GATED, {"layer1.0": 8, "layer1.1": 0})
    assert some.step(2) is None
    assert some.step(3) is STEP  # has no unit that could be skipped
    assert some.step(4) == with_samples(GATED, {"layer1.1": 0})


def test_units_of_a_step_are_those_of_its_gates() -> None:
    assert unit_names(GATED) == {"layer1.0", "layer1.1"}
    assert unit_names(STEP) == frozenset()
    assert run([0], [[1, 1]]).unit_index == {"layer1.0": 0, "layer1.1": 1}


def test_a_run_without_units_needs_no_samples() -> None:
    plain = training_run(STEP, 7, load=False, augment=False)
    assert plain.samples.shape == (7, 0)
    assert (plain.executed, plain.activities) == (7, ())


def test_arrays_of_a_run_cannot_be_changed() -> None:
    some = run([0], [[1, 1]])
    with pytest.raises(ValueError, match="read-only"):
        some.samples[0, 0] = 2
    with pytest.raises(ValueError, match="read-only"):
        some.step_of[0] = 1


def test_contradictions_are_told() -> None:
    with pytest.raises(RewriteError, match="names a step outside -1 .. 1") as refused:
        run([2], [[33, 0]])
    assert len(refused.value.problems) == 2
    with pytest.raises(RewriteError, match=r"samples has the shape \(1, 2\); iterations and units are \(2, 2\)"):
        run([0, 0], [[1, 1]])


def test_every_decision_is_part_of_the_identity() -> None:
    runs = [run([0, 0], [[1, 1], [1, 1]]), run([0, 0], [[1, 1], [1, 2]]), run([0, 1], [[1, 1], [1, 1]]), run([0, 0])]
    assert len({run_digest(r) for r in (*runs, training_run(STEP, 2))}) == 5
