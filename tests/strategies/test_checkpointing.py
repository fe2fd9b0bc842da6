"""Checkpoints: less is kept, and exactly the forward pass of all segments but the last is computed again."""

from __future__ import annotations

import pytest

from jouletrace import list_traces, load_trace
from jouletrace.errors import RewriteError
from jouletrace.hardware.load import load_hardware
from jouletrace.mapping.step import map_step
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.testing import Step, assert_laws, residual_traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import problems
from jouletrace.trace.graph import successors
from jouletrace.trace.lifetimes import peak_memory, saved_for_backward_bytes
from jouletrace.trace.model import Trace

STEP = load_trace("resnet20-cifar10-b32")


def chain(*, dropout: bool = False) -> Trace:
    """Four pairs of convolution and relu."""
    step = Step("chain", 2)
    x = step.given("images", (2, 2, 4, 4), "input")
    for i in range(4):
        x = step.function(f"layer{i}", "relu", step.conv(f"layer{i}", x, 2))
        x = step.dropout(f"layer{i}", x) if dropout else x
    step.loss(step.linear("fc", x, 3), 3)
    return step.trace()


def again(trace: Trace) -> list[str]:
    return [op.name for op in trace.ops if op.name.endswith("@recompute")]


@pytest.mark.parametrize("settings", ["", "segments=3", "every=unit"])
def test_checkpointing_keeps_the_laws(settings: str) -> None:
    assert_laws(strategy(f"checkpointing:{settings}"), cases=10, traces=residual_traces())


@pytest.mark.parametrize("name", list_traces())
def test_shipped_steps_keep_less(name: str) -> None:
    step = with_batch(load_trace(name), 2)
    for settings in ("", "every=unit"):
        rewritten = apply(strategy(f"checkpointing:{settings}"), step)
        after = rewritten.value
        assert problems(after) == []
        assert after.macs == step.macs + rewritten.added_macs
        assert [op.name for op in after.ops if "@" not in op.name] == [op.name for op in step.ops]
        if rewritten.matches:
            assert saved_for_backward_bytes(after) < saved_for_backward_bytes(step)


def test_two_segments_of_a_chain() -> None:
    after = apply(strategy("checkpointing:segments=2"), chain()).value
    order = [op.name for op in after.ops if op.phase != "update"]
    # the first half runs once more when its backward needs it; the relu at its end is the checkpoint, so that neither
    # it nor the convolution before it is needed again
    start = order.index("layer0.conv:forward@recompute")
    assert order[start - 1] == "layer1.conv:backward_data"
    assert order[start : start + 3] == [
        "layer0.conv:forward@recompute",
        "layer0.relu:forward@recompute",
        "layer1.conv:backward_weight",
    ]
    kept = {t.name for t in after.tensors if t.saved and t.role == "activation" and t.name.startswith("layer")}
    assert kept == {"layer1.relu:forward.y", "layer2.relu:forward.y", "layer3.relu:forward.y"}
    assert after.op["layer0.conv:forward@recompute"].after == ("layer1.conv:backward_data",)


def test_every_residual_unit_is_a_segment() -> None:
    rewritten = apply(strategy("checkpointing:every=unit"), STEP)
    forward = {op.name: op.macs for op in STEP.ops if op.phase == "forward"}
    last = {"fc:forward"}  # is behind the last unit
    assert rewritten.added_macs == sum(macs for name, macs in forward.items() if name not in last)
    assert peak_memory(rewritten.value).size_bytes < 0.4 * peak_memory(STEP).size_bytes


def test_deeper_networks_gain_more() -> None:
    shares: list[float] = []
    for name in ("resnet20-cifar10-b32", "resnet74-cifar10-b128"):
        step = with_batch(load_trace(name), 32)
        shares.append(
            peak_memory(apply(strategy("checkpointing"), step).value).size_bytes / peak_memory(step).size_bytes
        )
    assert shares[1] < shares[0] < 1


def test_running_statistics_are_updated_once() -> None:
    after = apply(strategy("checkpointing:every=unit"), STEP).value
    assert successors(after) == successors(STEP)
    norm = after.op["layer1.0.bn1.batch:forward@recompute"]
    assert norm.reads[-2:] == ("layer1.0.bn1.batch:forward.mean", "layer1.0.bn1.batch:forward.invstd")
    assert norm.writes == ("layer1.0.bn1.batch:forward.y@recompute",)


def test_random_masks_are_kept() -> None:
    after = apply(strategy("checkpointing:segments=2"), chain(dropout=True)).value
    assert not [name for name in again(after) if "random" in name]
    mask = "layer0.random:forward.mask"
    assert mask in after.op["layer0.mul:forward@recompute"].reads
    assert after.tensor[mask].saved


def test_it_can_be_mapped() -> None:
    after = apply(strategy("checkpointing"), with_batch(STEP, 2)).value
    assert sum(info.macs for info in map_step(after, load_hardware("eftrain-zcu102")).ops) == after.macs


def test_one_segment_or_no_unit_changes_nothing() -> None:
    assert apply(strategy("checkpointing:segments=1"), STEP).value is STEP
    rewritten = apply(strategy("checkpointing:every=unit"), chain())
    assert "no residual unit" in rewritten.left[0].reason


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("checkpointing:every=unit,segments=0")
    assert len(refused.value.problems) == 2
    with pytest.raises(RewriteError, match="has checkpoints already"):
        apply(strategy("checkpointing"), apply(strategy("checkpointing"), STEP).value)
    with pytest.raises(RewriteError, match="may be skipped"):
        apply(strategy("stochastic-depth") | strategy("checkpointing"), STEP)
