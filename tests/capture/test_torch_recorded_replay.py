"""From a real training to its energy: recorded by two lines, replayed iteration by iteration."""

from dataclasses import replace
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

import jouletrace  # noqa: E402
from jouletrace.resources import folder  # noqa: E402
from jouletrace.trace.run import DROPPED, Run  # noqa: E402

ITERATIONS, BATCH = 200, 32


@pytest.fixture(scope="module")
def log(e2train: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "e2train.decisions.jsonl.gz"
    torch.manual_seed(3)
    model, data = e2train.ResNet(1, e2train.PSGConv2d, gates=True), e2train.Patterns(3)
    with jouletrace.record(model, path, batch=BATCH) as recorder:
        for _ in e2train.train(model, data, ITERATIONS):
            recorder.step()
    return path


@pytest.fixture(scope="module")
def step() -> jouletrace.Trace:
    return jouletrace.capture_recipe(f"{folder('workloads') / 'e2train.py'}:resnet8", BATCH, "resnet8")


@pytest.fixture(scope="module")
def replayed(log: Path, step: jouletrace.Trace) -> Run:
    strategy = jouletrace.strategy(f"smd:log={log}+slu:log={log}+psg:log={log}")
    return jouletrace.apply(strategy, jouletrace.training_run(step, ITERATIONS)).value


def test_decisions_are_those_of_the_log(log: Path, replayed: Run) -> None:
    decisions = jouletrace.read_decisions(log)
    assert replayed.iterations == ITERATIONS
    assert (replayed.step_of != DROPPED).tolist() == decisions.executed.tolist()
    assert replayed.units == ("layer2.0", "layer3.0"), "the first block always runs"
    columns = [decisions.units.index(unit) for unit in replayed.units]
    executed = decisions.executed
    assert replayed.samples[executed].tolist() == decisions.samples[executed][:, columns].tolist()


def test_the_share_of_the_predictor_is_measured(log: Path, step: jouletrace.Trace, replayed: Run) -> None:
    """Of every signed layer, the fall-back computes what the training's predictor did not settle."""
    decisions = jouletrace.read_decisions(log)
    trace = replayed.steps[0]
    for layer in ("conv1", "layer1.0.conv1", "layer3.0.conv2"):
        share = decisions.predictor_share(layer)
        weight = step.tensor[f"{layer}.weight"].elements
        assert 0 < share < 1
        assert trace.op[f"{layer}:backward_weight"].write_elements == (ceil((1 - share) * weight),)
    assert Fraction(3, 10) < decisions.predictor_share() < Fraction(9, 10)


def test_a_recorded_training_is_replayed_end_to_end(replayed: Run) -> None:
    hardware = jouletrace.load_hardware("zedboard-int8")
    result = jouletrace.simulate_run(replayed, hardware)
    assert result.executed == int((replayed.step_of != DROPPED).sum())
    assert ((result.iteration_cycles > 0) == (replayed.step_of != DROPPED)).all()
    assert len(set(result.iteration_cycles.tolist())) > 20, "iterations differ"
    loaded = {op.times for op in result.ops if op.phase == "loading"}
    assert loaded == {result.executed}, "the batch of a dropped iteration is not loaded"


def test_a_part_of_it_replayed_one_by_one_is_the_same(replayed: Run) -> None:
    hardware = jouletrace.load_hardware("zedboard-int8")
    first = replace(replayed, step_of=replayed.step_of[:12], samples=replayed.samples[:12], activities=())
    composed, alone = (jouletrace.simulate_run(first, hardware, compose=way) for way in (True, False))
    assert composed.iteration_cycles.tolist() == alone.iteration_cycles.tolist()
    assert composed.energy() == alone.energy()
    whole = jouletrace.simulate_run(replayed, hardware)
    assert whole.iteration_cycles[:12].tolist() == composed.iteration_cycles.tolist()


def test_what_a_real_training_saves_is_less_than_the_plain_one_costs(step: jouletrace.Trace, replayed: Run) -> None:
    hardware = jouletrace.load_hardware("zedboard-int8")
    plain = jouletrace.apply(jouletrace.strategy("int8"), jouletrace.training_run(step, ITERATIONS)).value
    before, after = (jouletrace.simulate_run(run, hardware) for run in (plain, replayed))
    assert 0 < after.energy().energy_aj < before.energy().energy_aj
    assert after.bit_operations < before.bit_operations
