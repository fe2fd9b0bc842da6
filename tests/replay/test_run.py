"""Whole trainings: composing is replaying every iteration alone, and energies follow the decisions as they must."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jouletrace
from jouletrace.errors import RewriteError
from jouletrace.hardware.spec import Hardware
from jouletrace.result.run import RunResult
from jouletrace.strategies.registry import strategy
from jouletrace.testing import residual_traces
from jouletrace.trace.model import Trace
from jouletrace.trace.run import DROPPED, Run
from jouletrace.trace.units import gated, residual_units

SPECS = ("zedboard-int8", "eftrain-zcu102", "systolic-32x32")


@pytest.fixture(scope="module")
def step() -> Trace:
    from jouletrace.trace.batch import with_batch

    return with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 4)


@pytest.fixture(scope="module")
def hardware() -> Hardware:
    return jouletrace.load_hardware("zedboard-int8")


def marked(trace: Trace) -> tuple[Trace, tuple[str, ...]]:
    units = residual_units(trace)
    return gated(trace, units), tuple(unit.name for unit in units)


def training(trace: Trace, rows: list[list[int]], which: list[int] | None = None) -> Run:
    """One iteration per row: the samples that run each unit."""
    step, units = marked(trace)
    return Run("training", (step,), np.array(which or [0] * len(rows), dtype=np.int32), units,
               np.array(rows, dtype=np.int32).reshape(len(rows), len(units)))  # fmt: skip


def table(result: RunResult) -> dict[tuple[str, ...], tuple[int, int]]:
    return {(row.op, row.phase, row.component, row.action, row.role): (row.count, row.energy.energy_aj)
            for row in result.breakdown.rows}  # fmt: skip


def same(composed: RunResult, alone: RunResult) -> None:
    assert composed.iteration_cycles.tolist() == alone.iteration_cycles.tolist()
    assert table(composed) == table(alone)
    assert sorted(composed.ops, key=lambda op: op.name) == sorted(alone.ops, key=lambda op: op.name)
    assert (composed.cycles, composed.energy()) == (alone.cycles, alone.energy())


@given(residual_traces(), st.data(), st.sampled_from(SPECS))
@settings(max_examples=60, deadline=None)
def test_composing_a_training_is_replaying_every_iteration_alone(trace: Trace, data: st.DataObject, spec: str) -> None:
    _, units = marked(trace)
    assume(units)
    batch = trace.header.batch
    samples = st.integers(0, batch) if data.draw(st.booleans()) else st.sampled_from([0, batch])
    rows = data.draw(st.lists(st.lists(samples, min_size=len(units), max_size=len(units)), min_size=1, max_size=4))
    run = training(trace, rows)
    hardware = jouletrace.load_hardware(spec)
    try:
        alone = jouletrace.simulate_run(run, hardware, compose=False)
    except RewriteError:  # a unit that cannot be skipped by itself is refused by name
        with pytest.raises(RewriteError):
            jouletrace.simulate_run(run, hardware)
        return
    same(jouletrace.simulate_run(run, hardware), alone)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("granularity", ["per_sample", "per_batch"])
def test_a_gated_training_is_composed_exactly(step: Trace, spec: str, granularity: str) -> None:
    """With gates, their recurrence and their decisions in the step."""
    run = jouletrace.training_run(step, 4)
    gates = jouletrace.apply(strategy(f"slu:granularity={granularity}"), run, seed=3).value
    hardware = jouletrace.load_hardware(spec)
    same(jouletrace.simulate_run(gates, hardware), jouletrace.simulate_run(gates, hardware, compose=False))


def test_micro_batches_are_composed_exactly(step: Trace, hardware: Hardware) -> None:
    run = jouletrace.apply(strategy("slu:granularity=per_batch"), jouletrace.training_run(step, 4), seed=1).value
    same(
        jouletrace.simulate_run(run, hardware, micro_batch=2),
        jouletrace.simulate_run(run, hardware, micro_batch=2, compose=False),
    )


def test_samples_that_skip_do_not_go_with_micro_batches(step: Trace, hardware: Hardware) -> None:
    run = jouletrace.apply(strategy("slu"), jouletrace.training_run(step, 8), seed=1).value
    with pytest.raises(RewriteError, match="some samples of a batch skip a unit, and micro-batches of 2 were asked"):
        jouletrace.simulate_run(run, hardware, micro_batch=2)


def test_equal_iterations_cost_what_one_of_them_costs(step: Trace, hardware: Hardware) -> None:
    one = jouletrace.simulate_run(Run("one", (step,), np.zeros(1, dtype=np.int32)), hardware)
    many = jouletrace.simulate_run(Run("many", (step,), np.zeros(1000, dtype=np.int32)), hardware)
    assert many.energy().energy_aj == 1000 * one.energy().energy_aj
    assert many.cycles == 1000 * one.cycles
    assert one.cycles == jouletrace.simulate(step, hardware).cycles


def test_dropped_iterations_cost_nothing(step: Trace, hardware: Hardware) -> None:
    which = np.array([0, DROPPED, 0, DROPPED], dtype=np.int32)
    dropped = jouletrace.simulate_run(Run("half", (step,), which), hardware)
    kept = jouletrace.simulate_run(Run("kept", (step,), np.zeros(2, dtype=np.int32)), hardware)
    assert (dropped.iterations, dropped.executed) == (4, 2)
    assert dropped.iteration_cycles.tolist() == [kept.iteration_cycles[0], 0, kept.iteration_cycles[0], 0]
    assert dropped.energy() == kept.energy()


def test_a_training_of_dropped_iterations_only_is_empty(step: Trace, hardware: Hardware) -> None:
    nothing = jouletrace.simulate_run(Run("nothing", (step,), np.full(3, DROPPED, dtype=np.int32)), hardware)
    assert (nothing.cycles, nothing.energy().energy_aj, nothing.macs, nothing.executed) == (0, 0, 0, 0)


def test_skipping_everything_and_skipping_nothing(step: Trace, hardware: Hardware) -> None:
    _, units = marked(step)
    batch = step.header.batch
    nothing = jouletrace.simulate_run(training(step, [[batch] * len(units)]), hardware)
    assert nothing.cycles == jouletrace.simulate(marked(step)[0], hardware).cycles
    everything = jouletrace.simulate_run(training(step, [[0] * len(units)]), hardware)
    always = {"conv1", "layer2.0.downsample.0", "layer3.0.downsample.0", "fc"}
    assert {op.layer for op in everything.ops if op.macs} == always
    assert everything.macs == sum(op.macs for op in step.ops if op.layer in always)


def test_weights_rest_only_where_the_whole_batch_skips(step: Trace, hardware: Hardware) -> None:
    """Half of the samples skip layer2.1, or all of every second batch: equal MACs, unequal weight traffic."""
    _, units = marked(step)
    batch = step.header.batch
    column = units.index("layer2.1")

    def rows(*samples: int) -> list[list[int]]:
        return [[n if i == column else batch for i in range(len(units))] for n in samples]

    full, half, alternate = (
        jouletrace.simulate_run(training(step, rows(*samples)), hardware)
        for samples in ((batch, batch), (batch // 2, batch // 2), (batch, 0))
    )

    def weights(result: RunResult) -> int:
        """Bytes of parameters, their gradients and states of layer2.1 in DRAM."""
        return sum(row.count for row in result.breakdown.rows if row.layer.startswith("layer2.1")
                   and row.component == "dram" and row.action in ("read", "write")
                   and row.role in ("param", "weight_gradient", "optimizer_state"))  # fmt: skip

    assert half.macs == alternate.macs < full.macs
    assert weights(half) == weights(full)
    assert weights(alternate) * 2 == weights(full)


def test_activities_are_phases_of_their_own(step: Trace, hardware: Hardware) -> None:
    run = jouletrace.training_run(step, 10, evaluate_every=5, evaluation_batches=3)
    result = jouletrace.simulate_run(run, hardware)
    steps_only = jouletrace.simulate_run(replace(run, activities=()), hardware)
    phases = result.by("phase")
    assert set(phases) == {"forward", "backward_data", "backward_weight", "update", "loading", "augmentation", "evaluation"}
    rest = sum(phases[name].energy_aj for name in ("loading", "augmentation", "evaluation"))
    assert result.energy().energy_aj == steps_only.energy().energy_aj + rest
    assert phases["evaluation"].energy_aj > 0
    evaluated = sum(op.macs for op in result.ops if op.phase == "evaluation")
    assert evaluated == 6 * sum(op.macs for op in step.ops if op.phase == "forward"), "two evaluations of three batches"


def test_energy_as_coded_keeps_loading_and_the_update_of_dropped_batches(step: Trace, hardware: Hardware) -> None:
    run = jouletrace.training_run(step, 60)
    full, coded = (
        jouletrace.apply(strategy(f"smd:drop={drop}"), run, seed=5).value for drop in ("full", "as_coded")
    )
    assert (full.step_of == DROPPED).tolist() == (coded.step_of == 1).tolist(), "one stream, one set of decisions"
    dropped = int((full.step_of == DROPPED).sum())
    cheap, dear = (jouletrace.simulate_run(each, hardware) for each in (full, coded))
    idle = jouletrace.simulate_run(Run("zero", (coded.steps[1],), np.zeros(dropped, dtype=np.int32)), hardware)
    once = {a.name: jouletrace.simulate_run(Run(a.name, (a.step,), np.zeros(1, dtype=np.int32)), hardware)
            for a in run.activities}  # fmt: skip
    expected = idle.energy().energy_aj + dropped * sum(r.energy().energy_aj for r in once.values())
    assert dear.energy().energy_aj - cheap.energy().energy_aj == expected > 0


def test_idle_power_scales_the_board_alone(step: Trace, hardware: Hardware) -> None:
    result = jouletrace.simulate_run(Run("one", (step,), np.zeros(1, dtype=np.int32)), hardware)
    idle = result.by("component")["board"].energy_aj
    for factor in (Fraction(1, 2), Fraction(1), Fraction(2)):
        assert abs(result.energy_at("board", factor) - (result.energy().energy_aj + idle * (factor - 1))) < 1
        assert result.energy_at("chip", factor) == result.energy("chip").energy_aj
