"""What work grows with, counted and not timed: straight lines over depth, batch and iterations."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import jouletrace
from jouletrace.engine import parts
from jouletrace.hardware.load import load_hardware
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import load_trace

SPECS = ("eftrain-zcu102", "zedboard-int8")


def written(program: Program) -> int:
    """Commands that a program writes down: each chunk once."""
    return sum(len(run.chunk) for body in program.bodies for run in body.runs)


@pytest.mark.parametrize("spec", SPECS)
def test_depth(spec: str) -> None:
    """Three ResNets that differ in depth alone: every block adds as many ops and commands as the one before."""
    depths = {20: "resnet20-cifar10-b32", 38: "resnet38-cifar10-b128", 74: "resnet74-cifar10-b128"}
    programs = {
        depth: map_step(with_batch(load_trace(name), 32), load_hardware(spec)) for depth, name in depths.items()
    }
    for count in (lambda p: len(p.ops), len, written):
        line = [count(program) for program in programs.values()]
        slopes = {(b - a) / (e - d) for (d, e), (a, b) in zip(pairwise(depths), pairwise(line), strict=True)}
        assert len(slopes) == 1
        assert slopes.pop() > 0
    assert len({len(program.distinct) for program in programs.values()}) == 1, "deeper networks have no other ops"


@pytest.mark.parametrize("spec", SPECS)
def test_batch(spec: str) -> None:
    """A larger batch repeats more and writes down little more: images are runs."""
    step, hardware = load_trace("resnet20-cifar10-b32"), load_hardware(spec)
    small, large = (map_step(with_batch(step, batch), hardware) for batch in (16, 128))
    assert len(large) > 7 * len(small)
    assert written(large) < 2 * written(small)


def test_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the iterations of a training find few seams that were not seen: executions hardly grow.

    What is left for each iteration is a few array elements per choice, whatever it skips.
    """
    executed: list[int] = []
    original: Any = parts.kernel

    def counting(function: Any) -> Any:
        if function is parts.execute:
            executed[-1] += 1
        return original(function)

    monkeypatch.setattr(parts, "kernel", counting)
    step, hardware = with_batch(load_trace("resnet20-cifar10-b32"), 4), load_hardware("eftrain-zcu102")
    monkeypatch.setenv("JOULETRACE_NO_CACHE", "1")
    iterations = (500, 5_000)
    for n in iterations:
        executed.append(0)
        run = jouletrace.apply(jouletrace.strategy("slu"), jouletrace.training_run(step, n), seed=0).value
        assert np.count_nonzero(jouletrace.simulate_run(run, hardware).iteration_cycles) == n
    assert 0 < executed[0] <= executed[1] < 2 * executed[0]
