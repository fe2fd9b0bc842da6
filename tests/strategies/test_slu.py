"""Units that samples skip: what goes, what always runs, and what the gate before a unit costs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from jouletrace import list_traces, load_trace
from jouletrace.engine.events import simulate
from jouletrace.errors import RewriteError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping.step import map_step
from jouletrace.strategies.base import apply
from jouletrace.strategies.gate import evaluation_macs
from jouletrace.strategies.registry import strategy
from jouletrace.testing import Step, assert_laws, blocks, residual_traces
from jouletrace.trace.activities import training_run
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import problems
from jouletrace.trace.decisions import Decisions, write_decisions
from jouletrace.trace.model import Op, Trace
from jouletrace.trace.run import Run
from jouletrace.trace.units import residual_units, without_units

RESNET20 = load_trace("resnet20-cifar10-b32")


def two_blocks(batch: int = 4) -> Trace:
    step = Step("two-blocks", batch)
    x = step.conv("conv1", step.given("images", (batch, 3, 4, 4), "input"), 4)
    x = step.function("", "relu", step.norm("bn1", "batch", x))
    x = blocks.basic(step, "layer1.1", blocks.basic(step, "layer1.0", x, 4), 4)
    step.loss(step.linear("fc", x, 3), 3)
    return step.trace()


def slu(settings: str, value: Trace, seed: int = 0) -> Trace:
    return apply(strategy(f"slu:{settings}"), value, seed=seed).value


def slu_run(settings: str, trace: Trace, iterations: int, seed: int = 0) -> Run:
    return apply(strategy(f"slu:{settings}"), training_run(trace, iterations), seed=seed).value


def gates(trace: Trace, unit: str) -> list[Op]:
    return [op for op in trace.ops if op.layer == f"{unit}.gate"]


@pytest.mark.parametrize("settings", ["first=on", "first=on,gate=off", "first=on,granularity=per_batch", "skip=9/10"])
def test_slu_keeps_the_laws(settings: str) -> None:
    assert_laws(strategy(f"slu:{settings}"), cases=8, traces=residual_traces())


def test_slu_on_shipped_steps_at_a_small_batch() -> None:
    for name in list_traces():
        step = with_batch(load_trace(name), 2)
        if step.macs < 10**10:  # the others differ in size only
            rewritten = apply(strategy("slu:skip=1/2"), step, seed=1)
            assert problems(rewritten.value) == []
            assert rewritten.value.macs == step.macs + rewritten.added_macs - rewritten.skipped_macs
            assert (rewritten.value is step) == (not rewritten.matches)


# -- the gate


def test_a_gate_stands_before_its_unit_and_ends_in_a_decision() -> None:
    after = slu("skip=0", two_blocks())
    forward = [op.name for op in after.ops if op.phase == "forward"]
    start = forward.index("layer1.1.gate.pool:forward")
    assert forward[start : start + 10] == [
        "layer1.1.gate.pool:forward",
        "layer1.1.gate.project:forward",
        "layer1.1.gate.input:forward",
        "layer1.1.gate.recurrent:forward",
        "layer1.1.gate.lstm:forward",
        "layer1.1.gate.output:forward",
        "layer1.1.gate.sigmoid:forward",
        "layer1.1.gate.random:forward",
        "layer1.1.gate.compare:forward",
        "layer1.1.gate.decision:forward",
    ]
    assert forward[start + 10] == "layer1.1.conv1.conv:forward"
    assert after.op["layer1.1.gate.pool:forward"].reads == ("layer1.0.relu:forward#2.y",)


def test_every_op_of_a_unit_waits_for_its_decision() -> None:
    trace = two_blocks()
    unit = residual_units(trace)[1]
    after = slu("skip=0", trace)
    held = {op.name for op in after.ops if op.gate is not None and op.gate.decision == "layer1.1.gate.decision:forward"}
    assert held == set(unit.ops)
    assert {op.phase for op in map(after.op.__getitem__, held)} == {
        "forward",
        "backward_data",
        "backward_weight",
        "update",
    }


def test_a_gate_learns_with_the_optimizer_of_the_step() -> None:
    after = slu("skip=0,first=on", two_blocks())
    updates = {op.name: op for op in after.ops if op.kind == "update"}
    shared = [name for name in updates if name.startswith("gate.")]
    assert len(shared) == 6  # weight and bias of the input, the recurrent and the output product
    assert updates["gate.input.weight:update"].reads == (
        "gate.input.weight", "layer1.0.gate.input.weight.accumulate:backward_weight.gw", "gate.input.weight.momentum",
    )  # fmt: skip
    assert updates["layer1.1.gate.project.weight:update"].reads[1] == "layer1.1.gate.project:backward_weight.gw"


def test_macs_of_the_published_gates() -> None:
    """E2-Train: less than 0.04 % of the computation. Its code evaluates a gate behind each of the 36 blocks of
    ResNet-74, of 16, 32 and 64 channels: 42,600 MACs per image, 0.0253 % of forward, and 344,064 additions."""
    step = load_trace("resnet74-cifar10-b128")
    forward = sum(op.macs for op in step.ops if op.phase == "forward") // 128
    assert 12 * sum(map(evaluation_macs, (16, 32, 64))) == 42_600
    assert round(100 * 42_600 / forward, 4) == 0.0253
    after = slu("skip=0", step)
    evaluated = sum(op.macs for op in after.ops if op.phase == "forward" and op.layer.endswith(".gate")) // 128
    last = evaluation_macs(64)  # decides nothing, and is not evaluated here
    assert evaluated == 42_600 - last
    pooled = sum(step.tensor[op.reads[0]].elements for op in after.ops if op.name.endswith(".gate.pool:forward")) // 128
    assert pooled == 344_064 - 64 * 8 * 8


def test_one_decision_of_a_batch_is_drawn_once() -> None:
    after = slu("skip=0,granularity=per_batch", two_blocks())
    assert after.tensor["layer1.1.gate.compare:forward.mask"].elements == 1
    assert after.tensor["layer1.1.gate.sigmoid:forward.y"].elements == 4


def test_gates_of_tokens_read_the_mean_over_tokens() -> None:
    after = slu("skip=0", with_batch(load_trace("vit-tiny6-cifar10-b128"), 2))
    pool = next(op for op in after.ops if op.name.endswith("gate.pool:forward"))
    assert pool.kind == "reduce"
    assert after.tensor[pool.writes[0]].shape == (2, 192)


@pytest.mark.parametrize("hardware", list_hardware())
def test_no_command_of_a_unit_starts_before_its_decision(hardware: str) -> None:
    trace = slu("skip=0,first=on", two_blocks())
    counts = {c.op.name: c for c in simulate(map_step(trace, load_hardware(hardware))).ops}
    for op in trace.ops:
        if op.gate is not None and counts[op.name].cycles:
            assert op.gate.decision is not None
            assert counts[op.name].start_cycle >= counts[op.gate.decision].end_cycle > 0


# -- who runs what


def test_per_sample_a_unit_shrinks_and_its_weights_stay() -> None:
    after = slu("skip=1/2,gate=off", RESNET20, seed=1)
    unit = residual_units(RESNET20)[4]
    n = next(int(m.what.split()[2]) for m in apply(strategy("slu:skip=1/2,gate=off"), RESNET20, seed=1).matches
             if m.place == unit.name)  # fmt: skip
    assert 0 < n < 32
    for name in unit.forward + unit.backward:
        assert after.op[name].macs * 32 == RESNET20.op[name].macs * n
    for name in unit.updates:
        assert after.op[name].nest == RESNET20.op[name].nest


def test_per_batch_skipped_units_go_with_their_updates() -> None:
    rewritten = apply(strategy("slu:skip=1/2,gate=off,granularity=per_batch"), RESNET20)
    gone = [m.place for m in rewritten.matches if m.what == "run by 0 of 32 samples"]
    assert 0 < len(gone) < 8
    plain = without_units(RESNET20, gone)
    assert [op.name for op in rewritten.value.ops] == [op.name for op in plain.ops]
    assert rewritten.value.macs == plain.macs


def test_the_stem_the_first_unit_projections_and_the_classifier_always_run() -> None:
    rewritten = apply(strategy("slu:skip=99/100,granularity=per_batch,gate=off"), RESNET20)
    left = {op.layer for op in rewritten.value.ops}
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer3.0.downsample.0", "fc"} <= left
    assert ("layer1.0", "the first unit always runs") in [(at.place, at.reason) for at in rewritten.left]


def test_a_run_holds_the_samples_of_every_unit_and_iteration() -> None:
    run = slu_run("skip=2/5", two_blocks(), 500)
    assert run.units == ("layer1.1",)
    assert run.samples.shape == (500, 1)
    assert run.samples.mean() == pytest.approx(4 * 0.6, abs=0.2)
    i = int(np.argmax(run.samples[:, 0] == 1))
    some = run.step(i)
    assert some is not None
    assert some.op["layer1.1.conv1.conv:forward"].macs * 4 == run.steps[0].op["layer1.1.conv1.conv:forward"].macs


def test_shares_may_differ_from_unit_to_unit() -> None:
    run = slu_run("skip=0:9/10,first=on,granularity=per_batch", two_blocks(), 400)
    assert (run.samples[:, 0] == 4).all()
    assert set(run.samples[:, 1].tolist()) == {0, 4}
    with pytest.raises(RewriteError, match="3 shares for 2 gated units"):
        slu_run("skip=0:1/2:0,first=on", two_blocks(), 4)


def test_a_unit_draws_from_a_stream_of_its_own() -> None:
    both, last = (slu_run(f"skip=1/2,first={first}", two_blocks(), 50) for first in ("on", "off"))
    assert (both.samples[:, 1] == last.samples[:, 0]).all()


def test_a_log_says_how_many_samples_ran(tmp_path: Path) -> None:
    path = tmp_path / "run.decisions.jsonl"
    samples = np.array([[4, 1], [4, 0], [4, 4]], dtype=np.int32)
    write_decisions(Decisions("two-blocks", 4, ("layer1.0", "layer1.1"), (), np.ones(3, dtype=np.bool_), samples), path)
    assert slu_run(f"log={path}", two_blocks(), 3).samples.tolist() == [[1], [0], [4]]
    with pytest.raises(RewriteError) as refused:
        slu_run(f"log={path}", RESNET20, 4)
    assert len(refused.value.problems) == 7 + 2  # seven units, the length and the batch
    with pytest.raises(RewriteError, match="apply it to a run"):
        slu(f"log={path}", two_blocks())


def test_a_network_without_units_is_left_alone() -> None:
    step = with_batch(load_trace("lenet10-cifar10-b128"), 2)
    rewritten = apply(strategy("slu"), step)
    assert rewritten.value is step
    assert "no residual unit" in rewritten.left[-1].reason


def test_skipping_twice_is_refused() -> None:
    once = slu("skip=0", two_blocks())
    with pytest.raises(RewriteError, match="may be skipped already"):
        slu("skip=0", once)
    with pytest.raises(RewriteError, match="may be skipped already"):
        apply(strategy("slu"), slu_run("", two_blocks(), 3))


def test_shares_out_of_bounds_are_refused() -> None:
    with pytest.raises(RewriteError, match=r"skip has to lie in \[0, 1\)"):
        strategy("slu:skip=1")
    assert strategy("slu").neutral() == strategy("slu:skip=0,gate=off")
    assert Fraction(2, 5) in strategy("slu:skip=0.4").skip  # type: ignore[attr-defined]
