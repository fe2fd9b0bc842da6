"""Loading, augmentation, evaluation and idle updates: steps of their own that are valid and can be mapped."""

from __future__ import annotations

import pytest

from jouletrace import list_traces, load_trace
from jouletrace.errors import UsageError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping.step import map_step
from jouletrace.testing import Step
from jouletrace.trace.activities import augmentation, forward_only, loading, training_run, zero_gradient_update
from jouletrace.trace.check import problems
from jouletrace.trace.lifetimes import saved_for_backward_bytes
from jouletrace.trace.model import Norm, Trace

RESNET = load_trace("resnet20-cifar10-b32")


def lines(trace: Trace | None) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    assert trace is not None
    return [(op.name, op.reads, op.writes) for op in trace.ops]


@pytest.mark.parametrize("name", list_traces())
def test_activities_of_every_shipped_step_are_valid(name: str) -> None:
    step = load_trace(name)
    run = training_run(step, 10, evaluate_every=5)
    for trace in (*(activity.step for activity in run.activities), zero_gradient_update(step)):
        assert problems(trace) == []
    evaluation = run.activities[-1].step
    assert evaluation.macs == sum(op.macs for op in step.ops if op.phase == "forward")
    assert {op.phase for op in evaluation.ops} == {"forward"}
    assert saved_for_backward_bytes(evaluation) == 0


@pytest.mark.parametrize("hardware", list_hardware())
def test_activities_run_on_every_shipped_hardware(hardware: str) -> None:
    for trace in (loading(RESNET), augmentation(RESNET), forward_only(RESNET), zero_gradient_update(RESNET)):
        assert trace is not None
        program = map_step(trace, load_hardware(hardware))
        assert len(program.ops) == len(trace.ops)


def test_a_batch_of_images_arrives_as_bytes_and_is_augmented() -> None:
    assert lines(loading(RESNET)) == [
        ("images.stored.load:forward", (), ("images.stored",)),
        ("labels.load:forward", (), ("labels",)),
    ]
    assert lines(augmentation(RESNET)) == [
        ("images.crop:forward", ("images.stored",), ("images.crop:forward.y",)),
        ("images.normalise:forward", ("images.crop:forward.y",), ("images",)),
    ]
    arrived, made = loading(RESNET), augmentation(RESNET)
    assert arrived is not None
    assert made is not None
    assert arrived.tensor["images.stored"].size_bytes == 32 * 3 * 32 * 32
    assert [t.bits for t in made.tensors] == [8, 8, 32]


def test_tokens_are_loaded_as_they_are_and_not_augmented() -> None:
    run = training_run(load_trace("lstm2-b128"), 10)
    assert [(a.name, a.times) for a in run.activities] == [("loading", 10)]
    assert [t.bits for t in run.activities[0].step.tensors] == [64, 64]


def test_evaluation_uses_given_statistics_and_lets_everything_through() -> None:
    step = Step("net", 2)
    x = step.norm("bn", "batch", step.conv("conv", step.given("images", (2, 1, 4, 4), "input"), 2))
    step.loss(step.linear("fc", step.dropout("drop", x), 3), 3)
    evaluation = forward_only(step.trace())
    assert [op.name for op in evaluation.ops] == [
        "conv.conv:forward", "bn.batch:forward", "fc.gemm:forward", "cross_entropy:forward",
    ]  # fmt: skip
    norm = evaluation.op["bn.batch:forward"]
    assert norm.writes == ("bn.batch:forward.y",)
    assert evaluation.op["fc.gemm:forward"].reads[0] == "bn.batch:forward.y"


def test_norms_that_are_used_twice_evaluate_with_the_statistics_from_before() -> None:
    step = Step("twice", 2)
    x = step.given("images", (2, 2, 4, 4), "input")
    for _ in range(2):
        x = step.norm("bn", "batch", step.conv("conv", x, 2))
    step.loss(step.linear("fc", x, 3), 3)
    first, second = (op for op in forward_only(step.trace()).ops if isinstance(op.nest, Norm))
    assert first.reads[1:] == second.reads[1:]


def test_an_idle_update_reads_and_writes_weights_and_states() -> None:
    idle = zero_gradient_update(RESNET)
    update = idle.op["conv1.weight:update"]
    assert update.reads == ("conv1.weight", "zero", "conv1.weight.momentum_buffer")
    assert update.writes == RESNET.op["conv1.weight:update"].writes
    assert idle.tensor["zero"].elements == 1


def test_counts_below_one_are_refused_together() -> None:
    with pytest.raises(UsageError) as refused:
        training_run(RESNET, 0, evaluate_every=0, evaluation_batches=0)
    assert len(refused.value.problems) == 3
