"""A whole training of ResNet-74, every iteration its own, against its iterations mapped and executed one by one."""

from __future__ import annotations

import os

import jouletrace
from jouletrace.engine import compiled
from jouletrace.mapping.step import map_step
from jouletrace.strategies.registry import strategy

# Iterations that are executed alone, from the first on; some are dropped.
PREFIX = 2000 if os.environ.get("JOULETRACE_PROFILE") == "nightly" else 100


def test_a_long_training_is_its_iterations() -> None:
    """A training of 64,000 iterations, of which smd makes 85,333 and drops half; each skips for other samples.

    The cycles that are composed for an iteration are those of the recurrence, command by command, on the step that this
    iteration really is, planned as the whole step was.
    """
    step = jouletrace.load_trace("resnet74-cifar10-b128")
    hardware = jouletrace.load_hardware("eftrain-zcu102")
    run = jouletrace.apply(strategy("smd+slu"), jouletrace.training_run(step), seed=0).value
    whole = jouletrace.simulate_run(run, hardware)
    assert whole.executed == len(whole.iteration_cycles.nonzero()[0])
    for iteration in range(PREFIX):
        own = run.step(iteration)
        alone = 0 if own is None else compiled.simulate(map_step(own, hardware, base=run.steps[0])).cycles
        assert whole.iteration_cycles[iteration] == alone, f"iteration {iteration}"
