"""Residual units: found by data flow, skipped for a batch or for some samples, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import apply
from jouletrace.strategies.int8 import Int8Training
from jouletrace.strategies.psg import PredictiveSignGradient
from jouletrace.testing import blocks
from jouletrace.testing.steps import Step
from jouletrace.testing.traces import residual_traces, sequence_traces, traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import is_final, problems
from jouletrace.trace.io import load_trace
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Elementwise, Gate, Op, Rng, Sync, Tensor, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.units import (
    Unit,
    excerpt,
    gated,
    residual_units,
    residuals,
    skips,
    with_samples,
    without_units,
)

STEPS = residual_traces() | residual_traces(max_blocks=3) | sequence_traces(max_blocks=2)


@st.composite
def steps_with_units(draw: st.DrawFn) -> tuple[Trace, tuple[Unit, ...]]:
    trace = draw(STEPS)
    units = residual_units(trace)
    assume(units)
    return trace, tuple(draw(st.lists(st.sampled_from(units), min_size=1, unique=True)))


def images(batch: int = 4, channels: int = 2, size: int = 4) -> tuple[Step, str]:
    """A step whose stem ends in relu, as most residual networks begin."""
    step = Step("net", batch, "sgd")
    x = step.conv("conv1", step.given("images", (batch, 3, size, size), "input"), channels)
    return step, step.function("stem", "relu", step.norm("bn1", "batch", x))


def classified(step: Step, x: str) -> Trace:
    step.loss(step.linear("fc", x, 3), 3)
    trace = step.trace()
    assert problems(trace) == []
    return trace


# -- finding


@pytest.mark.parametrize(
    ("name", "units", "projections"),
    [
        ("resnet74-cifar10-b128", 36, 2), ("resnet74-identity-cifar10-b128", 36, 2), ("resnet110-cifar100-b128", 54, 2),
        ("resnet18-imagenet-b1", 8, 3), ("mobilenetv2-cifar10-b128", 10, 0), ("mobilenetv2-eic-cifar10-b128", 14, 4),
        ("vit-tiny6-cifar10-b128", 12, 0), ("gpt-char-b8", 12, 0), ("vgg16bn-imagenet-b8", 0, 0),
        ("alexnet-eftrain-b128", 0, 0), ("lstm2-b128", 0, 0),
    ],
)  # fmt: skip
def test_units_of_published_networks(name: str, units: int, projections: int) -> None:
    """As many as the publications draw: 36 blocks of ResNet-74, two per transformer layer, none without skips."""
    found = residuals(load_trace(name))
    assert (len(found.units), sum(unit.kind == "projection" for unit in found.units)) == (units, projections)
    assert not found.left
    assert len({unit.name for unit in found.units}) == units


def test_a_basic_block() -> None:
    """    relu ─┬─ conv1 ─ bn1 ─ relu ─ conv2 ─ bn2 ─ add ─ relu ─        the unit: all but the first relu
              └─────────────────────────────────────┘
    """
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    (unit,) = residual_units(trace)
    assert unit == Unit(
        "layer1.0", "identity", x, x, "layer1.0.relu:forward#2.y", "layer1.0.add:forward",
        ("layer1.0.conv1.conv:forward", "layer1.0.bn1.batch:forward", "layer1.0.relu:forward",
         "layer1.0.conv2.conv:forward", "layer1.0.bn2.batch:forward", "layer1.0.add:forward",
         "layer1.0.relu:forward#2"),
        ("layer1.0.relu:backward_data", "layer1.0.bn2.batch:backward_data",
         "layer1.0.conv2.conv:backward_data", "layer1.0.conv2.conv:backward_weight",
         "layer1.0.relu:backward_data#2", "layer1.0.bn1.batch:backward_data",
         "layer1.0.conv1.conv:backward_data", "layer1.0.conv1.conv:backward_weight",
         "stem.relu.accumulate:backward_data"),
        tuple(f"layer1.0.{p}:update" for p in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight",
                                               "bn2.bias")),
        tuple(f"layer1.0.{p}" for p in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight",
                                        "bn2.bias")),
    )  # fmt: skip


def test_the_relu_behind_a_projection_stays() -> None:
    """The projection may be negative, and relu is what the next block expects."""
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer2.0", x, 4, 2))
    (unit,) = residual_units(trace)
    assert (unit.kind, unit.shortcut, unit.output) == (
        "projection", "layer2.0.downsample.1.batch:forward.y", "layer2.0.add:forward.y",
    )  # fmt: skip
    assert not [name for name in unit.ops if "downsample" in name]
    without = without_units(trace, [unit.name])
    assert without.op["layer2.0.relu:forward#2"].reads == (unit.shortcut,)
    assert set(trace.op) - set(without.op) == set(unit.ops)


def test_a_pool_keeps_a_shortcut_positive_and_a_norm_does_not() -> None:
    for layer in ("pool", "norm"):
        step, x = images()
        x = step.pool("maxpool", "max", x, 2) if layer == "pool" else step.norm("norm", "batch", x)
        trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
        (unit,) = residual_units(trace)
        assert ("layer1.0.relu:forward#2" in unit.forward) == (layer == "pool")


def test_nested_branches_count_once() -> None:
    """    x ─┬─ conv ─┬─ conv ─ add ─ conv ─ add          the outer add closes the unit
           │        └─────────┘            │
           └───────────────────────────────┘
    """
    step, x = images()
    y = step.conv("block.a", x, 2)
    y = step.add("block.inner", step.conv("block.b", y, 2), y)
    trace = classified(step, step.add("block", step.conv("block.c", y, 2), x))
    found = residuals(trace)
    assert [(unit.name, unit.add) for unit in found.units] == [("block", "block.add:forward")]
    assert dict(found.left) == {
        "block.inner.add:forward":
        "Op 'block.inner.add:forward' lies inside the unit that 'block.add:forward' closes.",
    }  # fmt: skip


def test_squeeze_and_excitation_inside() -> None:
    step, x = images()
    y = blocks.squeeze_excite(step, "block.se", step.conv("block.conv", x, 2))
    trace = classified(step, step.add("block", y, x))
    (unit,) = residual_units(trace)
    assert {"block.se.mul:forward", "block.se.fc1.conv:forward", "block.conv.conv:forward"} < set(unit.forward)
    assert set(trace.op) - set(without_units(trace, ["block"]).op) == set(unit.ops)


def test_parallel_branches_are_units_of_their_own() -> None:
    """    out = (x + F1(x)) + F2(x)          the first sum carries x, so it is the shortcut of the second"""
    step, x = images()
    y = step.add("block.first", x, step.conv("block.a", x, 2))
    trace = classified(step, step.add("block.second", y, step.conv("block.b", x, 2)))
    first, second = residual_units(trace)
    assert (first.shortcut, second.shortcut, second.kind) == (x, y, "identity")
    check_order(trace, first, second)


def test_sums_that_close_no_unit() -> None:
    """Equal branches, a tensor and itself, and a branch that is looked into from outside."""
    step, x = images()
    x = step.add("equal", step.conv("a", x, 2), step.conv("b", x, 2))
    x = step.add("twice", x, x)
    inside = step.conv("d", x, 2)
    x = step.add("open", x, step.conv("e", inside, 2))
    x = step.conv("f", x, 2)
    trace = classified(step, step.add("other", x, step.function("f", "relu", inside)))
    found = residuals(trace)
    assert found.units == ()
    assert dict(found.left) == {
        "equal.add:forward": "Op 'equal.add:forward' closes no residual unit: its two branches have 2304 MACs each, so "
                             "that neither is the shortcut.",
        "twice.add:forward": "Op 'twice.add:forward' closes no residual unit: both its operands are the same tensor.",
        "open.add:forward": "Op 'open.add:forward' closes no residual unit: op 'f.relu:forward' reads "
                            "'d.conv:forward.y' inside its branch.",
        "other.add:forward": found.left["other.add:forward"],
    }  # fmt: skip


@given(traces())
def test_whatever_the_network(trace: Trace) -> None:
    """Every add of two activations closes a unit or has a reason; units share no op."""
    found = residuals(trace)
    adds = [op for op in trace.ops if op.phase == "forward" and getattr(op.nest, "function", "") == "add"]
    assert {unit.add for unit in found.units} | found.left.keys() == {op.name for op in adds}
    names = [name for unit in found.units for name in unit.ops]
    assert len(names) == len({*names})


# -- skipping a whole batch


@given(steps_with_units())
def test_what_skipping_removes_and_leaves(case: tuple[Trace, tuple[Unit, ...]]) -> None:
    trace, units = case
    without = without_units(trace, [unit.name for unit in units])
    assert problems(without) == []
    assert prune(without) is without
    gone = {name for unit in units for name in unit.ops}
    unused = {t for unit in units for t in unit.params} - read_by(trace, gone)
    gone |= {op.name for op in trace.ops if op.kind == "update" and op.reads[0] in unused}  # shared by skipped units
    assert not gone & set(without.op)
    assert trace.macs - without.macs == sum(trace.op[name].macs for name in gone | (set(trace.op) - set(without.op)))
    skip = skips(trace, *units)
    assert skip.removed == set(trace.op) - set(without.op)
    sums = {op.name for op in trace.ops if getattr(op.nest, "function", "") == "accumulate"}
    assert skip.removed <= gone | sums
    for op in without.ops:
        assert unrenamed(op) == unrenamed(trace.op[op.name])
        assert op.reads == tuple(skip.instead.get(name, name) for name in trace.op[op.name].reads)
    assert one_final_version(trace) == one_final_version(without)
    assert saved(without) == {t.name for t in without.tensors if t.saved}


def read_by(trace: Trace, except_for: set[str]) -> set[str]:
    return {t for op in trace.ops if op.phase == "forward" and op.name not in except_for for t in op.reads}


def saved(trace: Trace) -> set[str]:
    """Whatever the backward pass reads of the forward pass has to be kept for it, and nothing else."""
    forward = {name for op in trace.ops if op.phase == "forward" for name in (*op.reads, *op.writes)}
    return {name for op in trace.ops if op.phase.startswith("backward") for name in op.reads} & forward


def unrenamed(op: Op) -> Op:
    return replace(op, reads=(), after=(), read_elements=())


def one_final_version(trace: Trace) -> set[str]:
    """The parameters; each has one version that nothing updates further."""
    updated = [op.reads[0] for op in trace.ops if op.kind == "update"]
    assert len(updated) == len({*updated})
    return {t.name for t in trace.tensors if t.role == "param" and is_final(trace, t) and t.name not in trace.writer}


@settings(max_examples=40)
@given(steps_with_units())
def test_the_order_of_skipping_does_not_matter(case: tuple[Trace, tuple[Unit, ...]]) -> None:
    check_order(case[0], *case[1])


def check_order(trace: Trace, *units: Unit) -> None:
    together = without_units(trace, [unit.name for unit in units])
    for order in (units, units[::-1]):
        step = gated(trace, units)
        for unit in order:
            step = without_units(step, [unit.name])
        assert step == together


@given(steps_with_units())
def test_skips_of_single_units_compose(case: tuple[Trace, tuple[Unit, ...]]) -> None:
    """What a run engine may do: take the union, and follow the substitutions to their end."""
    trace, units = case
    apart = [skips(trace, unit) for unit in units]
    assume(len({p for unit in units for p in unit.params}) == sum(len(unit.params) for unit in units))
    together = skips(trace, *units)
    assert together.removed == frozenset().union(*(skip.removed for skip in apart))
    instead: dict[str, str] = {}
    for skip in apart:
        instead |= skip.instead
    for old, new in together.instead.items():
        while old in instead:
            old = instead[old]
        assert old == new


@settings(max_examples=40)
@given(steps_with_units(), st.booleans(), st.data())
def test_skips_are_told_without_the_smaller_step(
    case: tuple[Trace, tuple[Unit, ...]], cut: bool, data: st.DataObject
) -> None:
    """With decisions, micro-batches, and an op for which nobody has a use."""
    trace = with_batch(case[0], 4)
    idle = Op("idle", "forward", "", Sync("barrier"), (), (), (trace.ops[0].name,))
    trace = decided(replace(trace, ops=(*trace.ops, idle)), residual_units(trace))
    if cut:
        trace = micro_batched(trace, 2)
    found = residual_units(trace)
    drawn = data.draw(st.sets(st.sampled_from(range(len(found))), min_size=1))
    units = [found[i] for i in sorted(drawn)]
    try:
        smaller = without_units(trace, [unit.name for unit in units])
    except RewriteError as error:
        with pytest.raises(RewriteError) as again:
            skips(trace, *units)
        assert again.value.problems == error.problems
        return
    skip = skips(trace, *units)
    assert skip.removed == set(trace.op) - set(smaller.op)
    assert skip.removed == skips(trace, *units, checked=False).removed
    before = {name for op in smaller.ops for name in trace.op[op.name].reads}
    assert skip.instead.keys() <= before
    for op in smaller.ops:
        assert op.reads == tuple(skip.instead.get(name, name) for name in trace.op[op.name].reads)


def two_blocks() -> Trace:
    step, x = images()
    return classified(step, blocks.basic(step, "layer1.1", blocks.basic(step, "layer1.0", x, 2), 2))


def changed(trace: Trace, name: str, **changes: tuple[str, ...]) -> Trace:
    return replace(trace, ops=tuple(replace(op, **changes) if op.name == name else op for op in trace.ops))


def test_what_several_units_need_goes_with_the_last() -> None:
    """    draw -> scale -> a mask that both units read"""
    trace = two_blocks()
    noise, mask = (Tensor(name, (4, 2, 4, 4), 8, "int", "mask") for name in ("noise", "mask"))
    draw = Op("draw", "forward", "", Rng(128), (), ("noise",))
    scale = Op("scale", "forward", "", Elementwise("scale", 128), ("noise",), ("mask",))
    trace = replace(trace, tensors=(*trace.tensors, noise, mask), ops=(draw, scale, *trace.ops))
    for name in ("layer1.0.relu:forward", "layer1.1.relu:forward"):
        trace = changed(trace, name, reads=(*trace.op[name].reads, "mask"))
    first, second = residual_units(trace)
    apart = skips(trace, first).removed | skips(trace, second).removed
    assert skips(trace, first, second).removed - apart == {"draw", "scale"}
    assert {"draw", "scale"} <= set(without_units(trace, [first.name]).op)
    assert set(without_units(trace, [first.name, second.name]).op) == set(trace.op) - apart - {"draw", "scale"}


def test_who_waits_for_a_skipped_op_waits_for_what_it_waited_for() -> None:
    """    probe <- conv1 of the unit [<- fc]"""
    trace = two_blocks()
    probe = Op("probe", "forward", "", Sync("barrier"), (), ())
    trace = changed(replace(trace, ops=(probe, *trace.ops)), "layer1.0.conv1.conv:forward", after=("probe",))
    waiting = changed(trace, "fc.gemm:forward", after=("layer1.0.conv1.conv:forward",))
    unit = residual_units(waiting)[0]
    assert without_units(waiting, [unit.name]).op["fc.gemm:forward"].after == ("probe",)
    assert "probe" not in skips(waiting, unit).removed
    assert "probe" in skips(trace, residual_units(trace)[0]).removed


def test_parameters_that_others_use_too() -> None:
    """Conv a stands in the unit and behind it: its update stays, with one gradient instead of a sum of two."""
    step, x = images()
    y = step.add("block", step.conv("a", x, 2), x)
    trace = classified(step, step.conv("a", y, 2))
    (unit,) = residual_units(trace)
    assert (unit.params, unit.updates) == (("a.weight",), ())
    assert trace.op["a.weight:update"].reads == ("a.weight", "a.weight.accumulate:backward_weight.g")
    without = without_units(trace, [unit.name])
    assert without.op["a.weight:update"].reads == ("a.weight", "a.conv:backward_weight.g")


def test_a_unit_used_twice_is_updated_until_both_are_skipped() -> None:
    step, x = images()
    x = blocks.inverted(step, "block", x, 2)
    trace = classified(step, blocks.inverted(step, "block", x, 2))
    units = residual_units(trace)
    assert [unit.name for unit in units] == ["block", "block#2"]
    check_order(trace, *units)
    assert "block.conv.0.0.weight:update" in without_units(trace, ["block"]).op
    assert "block.conv.0.0.weight:update" not in without_units(trace, ["block", "block#2"]).op


def test_running_statistics_pass_through() -> None:
    """A norm in two units: the second reads the statistics that existed before the step if the first is skipped."""
    step, x = images()
    x = step.add("first", step.norm("norm", "batch", step.conv("a", x, 2)), x)
    trace = classified(step, step.add("second", step.norm("norm", "batch", step.conv("b", x, 2)), x))
    norms = [op for op in trace.ops if op.phase == "forward" and op.layer == "norm"]
    units = residual_units(trace)
    without = without_units(trace, [units[0].name])
    kept = without.op[norms[1].name]
    running = [name for name in kept.reads if "running" in name]
    assert running == [name for name in norms[0].reads if "running" in name]


def test_a_unit_on_the_data() -> None:
    """    out = images + conv(images)          no gradient reaches the shortcut, so none is computed"""
    step = Step("net", 2, "sgd")
    x = step.given("images", (2, 3, 4, 4), "input")
    x = step.add("block", x, step.conv("block.conv", x, 3))
    trace = classified(step, x)
    (unit,) = residual_units(trace)
    assert skips(trace, unit).removed == {*unit.ops, "fc.gemm:backward_data"}
    without = without_units(trace, ["block"])
    assert without.op["fc.gemm:forward"].reads[0] == "images"


def test_a_source_that_others_read_too() -> None:
    """    gx = (late + gout) + gF          of the two additions the unit takes only the one with gF along"""
    step, x = images()
    y = blocks.basic(step, "layer1.0", x, 2)
    trace = classified(step, step.add("late", y, step.function("late", "gelu", x)))
    (unit,) = residual_units(trace)
    sums = [op.name for op in trace.ops if getattr(op.nest, "function", "") == "accumulate"]
    assert [name in unit.backward for name in sums] == [False, True]
    without = without_units(trace, [unit.name])
    assert set(trace.op) - set(without.op) == {*unit.ops}
    assert [without.op[sums[0]].reads, without.op["stem.relu:backward_data"].reads[0]] == [
        ("late.gelu:backward_data.g", "fc.gemm:backward_data.g"), f"{sums[0]}.g",
    ]  # fmt: skip


def test_dropout_inside() -> None:
    """The mask is drawn for the branch alone: it goes with it, or is drawn for as many samples as run."""
    step, x = images()
    trace = classified(step, step.add("block", step.dropout("drop", step.conv("conv", x, 2)), x))
    (unit,) = residual_units(trace)
    assert unit.forward == ("conv.conv:forward", "drop.random:forward", "drop.mul:forward", "block.add:forward")
    assert set(trace.op) - set(without_units(trace, [unit.name]).op) == {*unit.ops}
    assert with_samples(trace, {unit.name: 3}).tensor["drop.random:forward.mask"].shape == (3, 2, 4, 4)


def test_micro_batches_are_units_of_their_own() -> None:
    trace = micro_batched(with_batch(load_trace("resnet20-cifar10-b32"), 4), 2)
    units = residual_units(trace)
    assert len(units) == 18
    without = without_units(trace, [unit.name for unit in units if unit.name.endswith("@1")])
    assert len(residual_units(without)) == 9
    assert {op.name for op in without.ops if op.kind == "update"} == {op.name for op in trace.ops if op.kind == "update"}


def test_names_that_are_no_units() -> None:
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    with pytest.raises(RewriteError, match=r"'layer1\.O' is no residual unit of this step; did you mean 'layer1\.0'"):
        without_units(trace, ["layer1.O"])
    assert without_units(trace, []) is trace


def test_a_sum_over_all_gradients_refuses() -> None:
    """The norm of all gradients has no meaning for a unit that has none; the op is named."""
    step, x = images()
    trace = classified(step, blocks.inverted(step, "block", x, 2))
    gradients = tuple(op.reads[1] for op in trace.ops if op.kind == "update")
    total = Op("norm", "backward_weight", "", Elementwise("norm", 1), gradients, ("total",))
    scale = Tensor("total", (1,), 32, "fp", "buffer")
    where = next(i for i, op in enumerate(trace.ops) if op.kind == "update")
    clipped = replace(trace, tensors=(*trace.tensors, scale), ops=(*trace.ops[:where], total, *trace.ops[where:]))
    assert problems(clipped) == []
    with pytest.raises(RewriteError, match=r"Without block net-b4 makes no sense: op 'norm' reads 'block"):
        without_units(clipped, ["block"])


# -- some samples of a batch


@given(steps_with_units(), st.data())
def test_what_some_samples_cost(case: tuple[Trace, tuple[Unit, ...]], data: st.DataObject) -> None:
    trace, units = case
    trace = with_batch(trace, 6)
    samples = {unit.name: data.draw(st.integers(1, 6)) for unit in units}
    some = with_samples(trace, samples)
    assert problems(some) == []
    assert prune(some) is some
    share = {name: samples[unit.name] for unit in units for name in (*unit.forward, *unit.backward)}
    for op in some.ops:
        before = trace.op[op.name]
        assert op.macs * 6 == before.macs * share.get(op.name, 6)
        if op.name not in share:
            assert op == before
    for tensor in some.tensors:
        if tensor != trace.tensor[tensor.name]:
            assert tensor.elements * 6 == trace.tensor[tensor.name].elements * share[trace.writer[tensor.name].name]
            assert {reader.name for reader in trace.readers.get(tensor.name, ())} <= share.keys()
    for unit in units:
        assert some.tensor[unit.output] == trace.tensor[unit.output]
        output = some.writer[unit.output]
        assert some.elements_written(output)[0] * 6 == trace.tensor[unit.output].elements * samples[unit.name]


@settings(max_examples=40)
@given(steps_with_units(), st.data())
def test_samples_and_skips_in_any_order(case: tuple[Trace, tuple[Unit, ...]], data: st.DataObject) -> None:
    trace, units = case
    trace = gated(with_batch(trace, 4), units)
    samples = {unit.name: data.draw(st.integers(0, 4)) for unit in units}
    together = with_samples(trace, samples)
    for order in (list(samples), list(samples)[::-1]):
        step = trace
        for name in order:
            step = with_samples(step, {name: samples[name]})
        assert step == together


@given(steps_with_units(), st.data())
def test_an_excerpt_is_a_part_of_the_step(case: tuple[Trace, tuple[Unit, ...]], data: st.DataObject) -> None:
    trace, units = case
    trace = with_batch(trace, 6)
    samples = {unit.name: data.draw(st.integers(1, 6)) for unit in units}
    whole = with_samples(trace, samples)
    names = [op.name for op in trace.ops if data.draw(st.booleans())]
    some = excerpt(trace, samples, names)
    assert some.ops == tuple(replace(whole.op[name], after=tuple(n for n in whole.op[name].after if n in names))
                             for name in names)  # fmt: skip
    assert {t.name for t in some.tensors} == {name for op in some.ops for name in (*op.reads, *op.writes)}
    assert all(whole.tensor[tensor.name] == tensor for tensor in some.tensors)


@given(steps_with_units())
def test_all_and_none(case: tuple[Trace, tuple[Unit, ...]]) -> None:
    trace, units = case
    names = [unit.name for unit in units]
    assert with_samples(trace, dict.fromkeys(names, trace.header.batch)) is trace
    assert with_samples(trace, dict.fromkeys(names, 0)) == without_units(trace, names)


def test_a_basic_block_for_one_sample_of_four() -> None:
    """    F for 1 sample; out has 4, of which 1 is computed; the weight gradient is whole"""
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    some = with_samples(trace, {"layer1.0": 1})
    conv1, relu = some.op["layer1.0.conv1.conv:forward"], some.op["layer1.0.relu:forward#2"]
    assert (conv1.reads[0], conv1.read_elements, conv1.write_elements) == (x, (32, 36), ())
    assert some.tensor[conv1.writes[0]].shape == (1, 2, 4, 4)
    assert (some.tensor[relu.writes[0]].shape, relu.write_elements) == ((4, 2, 4, 4), (32,))
    weight = some.op["layer1.0.conv1.conv:backward_weight"]
    assert (weight.macs, weight.write_elements) == (trace.op[weight.name].macs // 4, ())
    total = some.op["stem.relu.accumulate:backward_data"]
    assert (some.tensor[total.writes[0]].shape, total.write_elements) == ((4, 2, 4, 4), (32,))
    assert some.op["layer1.0.conv1.weight:update"] == trace.op["layer1.0.conv1.weight:update"]


def test_samples_that_are_refused() -> None:
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    with pytest.raises(RewriteError, match=r"^5 samples of 'layer1\.0' are not possible; the batch of net-b4 has 4\.$"):
        with_samples(trace, {"layer1.0": 5})
    with pytest.raises(RewriteError, match="runs for a part of the batch already"):
        with_samples(with_samples(trace, {"layer1.0": 2}), {"layer1.0": 1})


def test_excerpts_that_are_refused() -> None:
    """As the whole step is; to skip a unit changes which ops there are."""
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    first = ["layer1.0.conv1.conv:forward"]
    with pytest.raises(RewriteError, match=r"^0 samples of 'layer1\.0' are not possible; the batch of net-b4 has 4\.$"):
        excerpt(trace, {"layer1.0": 0}, first)
    with pytest.raises(RewriteError, match=r"'layer1' is no residual unit of this step; did you mean 'layer1\.0'"):
        excerpt(trace, {"layer1": 1}, first)
    with pytest.raises(RewriteError, match="runs for a part of the batch already"):
        excerpt(with_samples(trace, {"layer1.0": 2}), {"layer1.0": 1}, first)


# -- gates


def decided(trace: Trace, units: tuple[Unit, ...]) -> Trace:
    """The step with one decision per unit, all of them its first ops."""
    decisions = {unit.name: f"decide.{unit.name}" for unit in units}
    first = tuple(Op(name, "forward", "", Sync("decision"), (), ()) for name in decisions.values())
    return gated(replace(trace, ops=(*first, *trace.ops)), units, decisions)


def sampled(trace: Trace, samples: Mapping[str, int]) -> Trace:
    step = trace
    for name, n in samples.items():
        step = with_samples(step, {name: n})
    return step


@settings(max_examples=40)
@given(steps_with_units(), st.data())
def test_gates(case: tuple[Trace, tuple[Unit, ...]], data: st.DataObject) -> None:
    """A marked step has the same units; who reads the output of a skipped one waits for its decision."""
    trace, units = with_batch(case[0], 4), case[1]
    marked = decided(trace, units)
    assert problems(marked) == []
    found = {unit.name: unit for unit in residual_units(marked)}
    for unit in units:
        assert found[unit.name] == unit
        gate = Gate("block", unit.name, f"decide.{unit.name}")
        assert {op.name for op in marked.ops if op.gate == gate} == {*unit.ops}
    samples = {unit.name: data.draw(st.integers(0, 4)) for unit in units}
    together = with_samples(marked, samples)
    assert sampled(marked, samples) == sampled(marked, dict(reversed(samples.items()))) == together
    assert {f"decide.{unit.name}" for unit in units} <= set(together.op)
    plain = with_samples(trace, samples)
    assert [op.name for op in together.ops if not op.name.startswith("decide")] == [op.name for op in plain.ops]


@pytest.mark.parametrize("scope", ["operands", "activations"])
@pytest.mark.parametrize("strategy", [Int8Training, PredictiveSignGradient])
def test_units_of_a_marked_step_in_few_bits(
    strategy: type[Int8Training | PredictiveSignGradient], scope: Literal["operands", "activations"]
) -> None:
    """Rounded copies and predictors belong to the unit whose gate they carry, and go with it."""
    trace = load_trace("resnet20-cifar10-b32")
    units = residual_units(trace)
    narrow = apply(strategy(scope=scope), gated(trace, units)).value
    found = residual_units(narrow)
    assert [(u.name, u.kind, u.source, u.shortcut, u.output) for u in found] == [
        (u.name, u.kind, u.source, u.shortcut, u.output) for u in units
    ]
    assert all({*unit.ops} <= {*other.ops} for unit, other in zip(units, found, strict=True))
    samples = {found[1].name: 0, found[3].name: 8, found[4].name: 0}
    together = with_samples(narrow, samples)
    assert together == sampled(narrow, samples) == sampled(narrow, dict(reversed(samples.items())))
    gone = {name for unit in found for name in unit.ops if samples.get(unit.name) == 0}
    assert not gone & set(together.op)
    some = {*found[3].forward, *found[3].backward}
    for op in together.ops:
        assert op.macs * (4 if op.name in some else 1) == narrow.op[op.name].macs
    copies = {op.name for op in narrow.ops if getattr(op.nest, "function", "") in ("quantize", "max")}
    assert set(narrow.op) - set(together.op) <= gone | copies


def test_decisions_have_units_and_come_first() -> None:
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    units = residual_units(trace)
    with pytest.raises(RewriteError, match="'layer1.1' is no residual unit of this step"):
        gated(trace, units, {"layer1.1": "stem.relu:forward"})
    with pytest.raises(RewriteError, match="is gated by 'fc.gemm:forward', which is no earlier op"):
        gated(trace, units, {"layer1.0": "fc.gemm:forward"})


def test_an_op_that_another_gate_holds() -> None:
    step, x = images()
    trace = classified(step, blocks.basic(step, "layer1.0", x, 2))
    ops = tuple(replace(op, gate=Gate("step", "all")) for op in trace.ops)
    with pytest.raises(RewriteError, match="of the unit 'layer1.0' is held by the gate 'all' already"):
        gated(replace(trace, ops=ops), residual_units(trace))
