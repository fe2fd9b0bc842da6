"""Frozen layers and sparse updates: what is no longer trained goes, and so does what only served it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from jouletrace import list_traces, load_trace
from jouletrace.errors import RewriteError
from jouletrace.hardware.load import load_hardware
from jouletrace.mapping.step import map_step
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.testing import Step, assert_laws, residual_traces, traces
from jouletrace.trace.activities import training_run
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import problems
from jouletrace.trace.lifetimes import peak_memory, saved_for_backward_bytes
from jouletrace.trace.model import Elementwise, Trace

STEP = load_trace("resnet20-cifar10-b32")


def rewritten(text: str, trace: Trace = STEP) -> Trace:
    return apply(strategy(text), trace).value


def names(trace: Trace, phase: str) -> list[str]:
    return [op.name for op in trace.ops if op.phase == phase]


@pytest.mark.parametrize("settings", ["below=fc", "layers=layer1", "layers=conv1:bn1,norm_statistics=running"])
def test_freeze_keeps_the_laws(settings: str) -> None:
    assert_laws(strategy(f"freeze:{settings}"), cases=10, traces=residual_traces())


@pytest.mark.parametrize("settings", ["", "biases=off", "channels=1/2,norm_statistics=running"])
def test_sparse_update_keeps_the_laws(settings: str) -> None:
    assert_laws(strategy(f"sparse-update:{settings}"), cases=10, traces=traces())


@pytest.mark.parametrize("name", [name for name in list_traces() if load_trace(name).header.optimizer])
def test_sparse_update_of_shipped_steps(name: str) -> None:
    step = with_batch(load_trace(name), 2)
    after = apply(strategy("sparse-update"), step)
    assert problems(after.value) == []
    assert after.value.macs == step.macs - after.skipped_macs < step.macs


# -- freeze


def test_with_a_frozen_backbone_only_the_head_is_trained() -> None:
    after = rewritten("freeze:below=fc")
    assert names(after, "backward_data") == ["cross_entropy:backward_data"]
    assert names(after, "backward_weight") == ["fc:backward_weight", "fc.sum:backward_weight"]
    assert names(after, "update") == ["fc.weight:update", "fc.bias:update"]
    forward = [op for op in STEP.ops if op.phase == "forward"]
    assert after.macs == sum(op.macs for op in forward) + STEP.op["fc:backward_weight"].macs
    # kept for backward: what the classifier reads, and the log-probabilities
    assert saved_for_backward_bytes(after) == 4 * (32 * 64 + 32 * 10)
    states = [t.name for t in after.tensors if t.role == "optimizer_state" and t.name not in after.writer]
    assert states == ["fc.weight.momentum_buffer", "fc.bias.momentum_buffer"]


def test_gradients_pass_through_frozen_layers_to_trained_ones() -> None:
    after = rewritten("freeze:layers=layer3")
    assert "layer3.0.conv1:backward_data" in after.op
    assert "layer3.0.conv1:backward_weight" not in after.op
    assert "layer2.0.conv1:backward_weight" in after.op


def test_a_frozen_batch_norm_uses_given_statistics_and_saves_nothing() -> None:
    after = rewritten("freeze:layers=layer3")
    assert after.op["layer3.1.bn1.batch:forward"].writes == ("layer3.1.bn1.batch:forward.y",)
    backward = after.op["layer3.1.bn1.batch:backward_data"]
    assert backward.nest == Elementwise("mul", 32 * 64 * 8 * 8)
    assert backward.reads[1:] == ("layer3.1.bn1.weight", "layer3.1.bn1.running_var")
    assert not after.tensor["layer3.1.conv1:forward.y"].saved
    running = rewritten("freeze:layers=layer3,norm_statistics=running")
    assert running.op["layer3.1.bn1.batch:forward"] == STEP.op["layer3.1.bn1.batch:forward"]
    assert running.op["layer3.1.bn1.batch:backward_data"].writes == ("layer3.1.bn1.batch:backward_data.gx",)


def test_the_more_is_frozen_from_below_the_less_is_saved() -> None:
    saved = [saved_for_backward_bytes(rewritten(f"freeze:below={b}")) for b in ("layer1", "layer2", "layer3", "fc")]
    assert saved == sorted(saved, reverse=True)
    assert len(set(saved)) == 4
    assert peak_memory(rewritten("freeze:below=layer3")).size_bytes < peak_memory(STEP).size_bytes


def test_shared_parameters_are_frozen_at_all_their_uses() -> None:
    step = Step("twice", 2)
    x = step.conv("conv0", step.given("images", (2, 2, 4, 4), "input"), 2)
    for _ in range(2):
        x = step.norm("bn", "batch", step.conv("shared", x, 2))
    step.loss(step.linear("fc", x, 3), 3)
    after = rewritten("freeze:layers=shared:bn", step.trace())
    assert not [name for name in names(after, "backward_weight") if name.startswith("shared")]
    assert "conv0.conv:backward_weight" in after.op


def test_patterns_that_match_nothing_are_refused_together() -> None:
    with pytest.raises(RewriteError, match="matches 'layer9'") as refused:
        rewritten("freeze:layers=layer9:conv1:fcc")
    assert len(refused.value.problems) == 2
    assert "did you mean 'fc'" in refused.value.problems[1]


def test_nothing_or_everything_frozen() -> None:
    unchanged = apply(strategy("freeze"), STEP)
    assert unchanged.value is STEP
    assert "no layer was named" in unchanged.left[0].reason
    with pytest.raises(RewriteError, match="nothing is left to train"):
        rewritten("freeze:layers=*")


def test_an_idle_update_leaves_frozen_layers_out_too() -> None:
    run = apply(strategy("smd:drop=as_coded") | strategy("freeze:below=fc"), training_run(STEP, 20)).value
    assert [op.name for op in run.steps[1].ops] == ["zero:update", "fc.weight:update", "fc.bias:update"]


# -- sparse update


def test_a_quarter_of_the_channels_is_a_quarter_of_the_weight_gradient() -> None:
    after = rewritten("sparse-update:layers=layer3.2.conv2,biases=off")
    product, update = after.op["layer3.2.conv2:backward_weight"], after.op["layer3.2.conv2.weight:update"]
    whole = 64 * 64 * 9
    assert product.write_elements == (whole // 4,)
    assert product.macs * 4 == STEP.op[product.name].macs
    assert update.read_elements == (*update.write_elements, whole // 4) == (whole // 4,) * 3
    assert names(after, "update") == ["layer3.2.conv2.weight:update"]
    assert after.tensor["layer3.2.relu:forward.y"].saved  # its input, whole


def test_channels_are_rounded_up_to_whole_ones() -> None:
    after = rewritten("sparse-update:layers=fc,channels=1/3,biases=off")
    assert after.op["fc:backward_weight"].write_elements == (4 * 64,)  # of 10


def test_biases_from_the_lowest_trained_layer_on() -> None:
    after = rewritten("sparse-update:layers=layer3.2.conv2")
    assert names(after, "update") == [
        "layer3.2.conv2.weight:update", "layer3.2.bn2.bias:update", "fc.bias:update",
    ]  # fmt: skip


def test_a_part_of_a_weight_gradient_can_be_mapped() -> None:
    after = rewritten("sparse-update:layers=layer3")
    program = map_step(after, load_hardware("zedboard-int8"))
    assert sum(info.macs for info in program.ops) == after.macs


def test_weights_whose_gradient_is_a_sum_are_trained_whole() -> None:
    kept = apply(strategy("sparse-update"), with_batch(load_trace("lstm2-b128"), 2)).left
    assert ("lstm.weight_hh_l0", "trained whole, because its gradient is no single product") in [
        (left.place, left.reason) for left in kept
    ]


def test_all_layers_and_channels_are_the_very_step() -> None:
    neutral = strategy("sparse-update:layers=fc,channels=1/2,biases=off").neutral()
    assert neutral is not None
    assert apply(neutral, STEP).value is STEP


def test_knobs_out_of_bounds_are_refused_together() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("sparse-update:layers=,channels=0")
    assert len(refused.value.problems) == 2
    with pytest.raises(RewriteError, match="have no weights"):
        rewritten("sparse-update:layers=layer1.0.bn1", bias_only())
    assert Fraction(1, 4) == strategy("sparse-update").channels  # type: ignore[attr-defined]


def bias_only() -> Trace:
    """ResNet-20 without the weight of one norm."""
    weight = "layer1.0.bn1.weight:update"
    from jouletrace.trace.prune import without_ops

    return without_ops(STEP, {weight})
