"""The shared rewrite, as pictures of small steps before and after."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jouletrace import list_traces, load_trace
from jouletrace.strategies.base import Notes
from jouletrace.strategies.precision import Widths, with_widths
from jouletrace.strategies.products import aside, edges, layers, parameters_of, products
from jouletrace.testing import Step
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import problems
from jouletrace.trace.model import Elementwise, Gate, Op, Sync, Tensor, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.units import gated, residual_units, without_units

EIGHT = Widths(8, 8, 16, 8)


def chain() -> Trace:
    """conv1 → relu → conv2 → fc, without norms."""
    step = Step("chain", 2)
    x = step.conv("conv1", step.given("images", (2, 3, 4, 4), "input"), 4)
    x = step.conv("conv2", step.function("act", "relu", x), 4)
    step.loss(step.linear("fc", x, 10), 10)
    return step.trace()


def narrowed(trace: Trace, widths: Widths = EIGHT, *, everything: bool = False, dynamic: bool = False) -> Trace:
    chosen = {op.name: widths for op in products(trace)}
    after = with_widths(trace, chosen, Notes("", 0), kept=widths if everything else None, dynamic=dynamic)
    assert problems(after) == []
    assert prune(after) is after
    return after


def told(trace: Trace, op: str) -> str:
    """An op with what it reads and writes, and how wide that is."""
    reads, writes = (
        ", ".join(f"{n}:{trace.tensor[n].format}{trace.tensor[n].bits}" for n in names)
        for names in (trace.op[op].reads, trace.op[op].writes)
    )
    return f"{reads} -> {writes}"


def test_products_alone_read_the_copies_of_the_scope_operands() -> None:
    after = narrowed(chain())
    relu, copy = "act.relu:forward.y", "act.relu:forward.y.int8"
    assert told(after, "act.relu.quantize:forward") == f"{relu}:fp32 -> {copy}:int8"
    assert told(after, "conv2.weight.quantize:forward") == "conv2.weight:fp32 -> conv2.weight.int8:int8"
    assert told(after, "conv2.conv:forward") == (
        f"{copy}:int8, conv2.weight.int8:int8 -> conv2.conv:forward.y:fp32"
    )
    # The derivative of relu reads the wide result, as the framework saved it.
    assert relu in after.op["act.relu:backward_data"].reads
    # The update reads and writes the master copy.
    assert after.op["conv2.weight:update"] == chain().op["conv2.weight:update"]


def test_a_gradient_is_quantised_to_the_wider_width_and_its_upper_bits_are_the_other_copy() -> None:
    after = narrowed(chain())
    wide = "fc.gemm:backward_data.g"
    assert told(after, "fc.gemm.quantize:backward_data") == f"{wide}:fp32 -> {wide}.int16:int16"
    assert told(after, "fc.gemm.quantize:backward_data#2") == f"{wide}.int16:int16 -> {wide}.int8:int8"
    assert after.bits_read(after.op["conv2.conv:backward_weight"]) == (16, 8)
    assert after.bits_read(after.op["conv2.conv:backward_data"]) == (8, 8)


def test_nothing_wide_is_kept_in_the_scope_activations() -> None:
    after = narrowed(chain(), everything=True)
    # conv1's result is quantised, relu keeps its codes, conv2 reads what relu wrote.
    assert told(after, "conv1.conv.quantize:forward").endswith("-> conv1.conv:forward.y.int8:int8")
    assert told(after, "act.relu:forward") == "conv1.conv:forward.y.int8:int8 -> act.relu:forward.y:int8"
    assert after.op["conv2.conv:forward"].reads[0] == "act.relu:forward.y"
    assert "act.relu.quantize:forward" not in after.op
    saved = {t.name for t in after.tensors if t.saved and t.role == "activation"}
    wide = {name for name in saved if after.tensor[name].bits > 8}
    assert wide == {"cross_entropy:forward.log_probabilities"}  # losses keep their width
    logits = after.op["cross_entropy:forward"].reads[0]
    assert after.tensor[logits].bits == 32


def test_saved_marks_what_backward_reads_of_forward() -> None:
    after = narrowed(chain())
    for tensor in after.tensors:
        forward = [op for op in after.ops if op.phase == "forward" and tensor.name in (*op.reads, *op.writes)]
        backward = [op for op in after.readers.get(tensor.name, ()) if op.phase.startswith("backward")]
        assert tensor.saved == bool(forward and backward), tensor.name


def test_a_dynamic_range_costs_one_more_pass_over_the_wide_tensor() -> None:
    after = narrowed(chain(), dynamic=True)
    n = after.tensor["fc.gemm:backward_data.g"].elements
    assert told(after, "fc.gemm.range:backward_data").endswith("-> fc.gemm:backward_data.g.range:fp32")
    assert after.op["fc.gemm.range:backward_data"].nest.elements == n  # type: ignore[union-attr]
    assert after.op["fc.gemm.quantize:backward_data"].reads[1] == "fc.gemm:backward_data.g.range"
    # The second copy are codes already.
    assert len(after.op["fc.gemm.quantize:backward_data#2"].reads) == 1


def test_widths_of_the_tensors_change_nothing() -> None:
    trace = chain()
    assert narrowed(trace, Widths(32, 32, 32)) is trace
    assert narrowed(trace, Widths(32, 32, 32), everything=True) is trace


def test_a_shared_weight_is_quantised_once() -> None:
    step = Step("shared", 2)
    x = step.conv("conv", step.given("images", (2, 4, 4, 4), "input"), 4)
    step.loss(step.linear("fc", step.conv("conv", x, 4), 10), 10)
    after = narrowed(step.trace())
    assert [op.name for op in after.ops if op.reads[:1] == ("conv.weight",) and op.kind == "elementwise"] == [
        "conv.weight.quantize:forward"
    ]


def test_a_copy_stands_under_the_gate_of_its_readers_and_behind_its_decision() -> None:
    trace = chain()
    gate = Gate("block", "conv2", "decide")
    decide = Op("decide", "forward", "", Sync("decision"), ("act.relu:forward.y",), ())
    ops = [replace(op, gate=gate) if op.layer == "conv2" else op for op in trace.ops]
    place = [op.name for op in ops].index("conv2.conv:forward")
    after = narrowed(replace(trace, ops=(*ops[:place], decide, *ops[place:])))
    order = [op.name for op in after.ops]
    copy = after.op["act.relu.quantize:forward"]
    assert copy.gate == after.op["conv2.weight.quantize:forward"].gate == gate
    assert order.index("act.relu:forward") < order.index("decide") < order.index(copy.name)


def test_a_unit_that_is_skipped_takes_its_copies_with_it() -> None:
    step = load_trace("resnet20-cifar10-b32")
    marked = gated(step, residual_units(step))
    plain = without_units(marked, ["layer1.1"])
    for everything in (False, True):
        after = narrowed(marked, everything=everything, dynamic=True)
        fewer = without_units(after, ["layer1.1"])
        assert fewer.op.keys() & marked.op.keys() == plain.op.keys()
        assert "layer1.1.conv1.weight.quantize:forward" in after.op
        # What is left of its layers rounds the gradient of its input, which the unit before reads.
        left = {op.name for op in fewer.ops if op.layer.startswith("layer1.1.")}
        assert left == {name for name in left if name.startswith("layer1.1.conv1.accumulate.")}
        assert not any(op.gate is not None and op.gate.name == "layer1.1" for op in fewer.ops)


def test_a_layer_that_serves_a_decision_only_keeps_its_widths() -> None:
    trace = chain()
    logit, weight = (Tensor(n, s, 32, "fp", r) for n, s, r in
                     (("gate.y", (2, 1), "activation"), ("gate.w", (1, 64), "param")))  # fmt: skip
    nest = trace.op["fc.gemm:forward"].nest
    gate = Op("gate:forward", "forward", "gate", replace(nest, N=1), ("conv2.conv:forward.y", "gate.w"), ("gate.y",))
    decide = Op("decide", "forward", "gate", Sync("decision"), ("gate.y",), ())
    ops = list(trace.ops)
    place = [op.name for op in ops].index("fc.gemm:forward")
    ops[place:place] = [gate, decide]
    ops[place + 2] = replace(ops[place + 2], after=("decide",))
    with_gate = replace(trace, tensors=(*trace.tensors, logit, weight), ops=tuple(ops))
    assert problems(with_gate) == []
    assert aside(with_gate) == {"gate:forward", "decide"}
    notes = Notes("", 0)
    after = with_widths(with_gate, {op.name: EIGHT for op in products(with_gate)}, notes)
    assert after.op["gate:forward"] == gate
    assert [left.place for left in notes.left] == ["gate:forward"]


def test_edges_are_stem_shortcuts_and_classifier() -> None:
    trace = load_trace("resnet20-cifar10-b32")
    forward = [op.name for op in trace.ops if op.name in edges(trace) and op.phase == "forward"]
    assert forward == ["conv1:forward", "layer2.0.downsample.0:forward", "layer3.0.downsample.0:forward", "fc:forward"]
    assert "fc:backward_weight" in edges(trace)
    assert "layer2.0.conv1:backward_weight" not in edges(trace)


def test_a_bottleneck_s_last_1x1_convolution_is_no_shortcut() -> None:
    step = Step("bottleneck", 2)
    x = step.function("stem", "relu", step.conv("stem", step.given("images", (2, 3, 4, 4), "input"), 4))
    y = step.function("c1", "relu", step.conv("c1", x, 4, 1))
    y = step.norm("n2", "batch", step.conv("c2", y, 8, 1))
    z = step.norm("n3", "batch", step.conv("shortcut", x, 8, 1))
    step.loss(step.linear("fc", step.add("sum", y, z), 10), 10)
    trace = step.trace()
    assert {name.split(".")[0] for name in edges(trace)} == {"stem", "shortcut", "fc"}


def test_every_product_of_a_layer_is_found_by_its_parameter() -> None:
    trace = load_trace("lstm2-b128")
    parameters, layer = parameters_of(trace), layers(trace)
    assert all(op.name in parameters for op in products(trace))
    sums = [op for op in products(trace) if op.phase == "backward_weight"]
    assert {trace.tensor[parameters[op.name]].shape for op in sums} == {trace.tensor[op.writes[0]].shape for op in sums}
    assert set(layer.values()) == {op.layer for op in products(trace)}


@pytest.mark.parametrize("name", [getattr(entry, "name", entry) for entry in list_traces()])
def test_shipped_steps_stay_valid_in_both_scopes_and_can_be_scaled(name: str) -> None:
    trace = load_trace(name)
    small = with_batch(trace, 2)
    for everything in (False, True):
        after = narrowed(small, everything=everything)
        assert after.macs == small.macs
        assert all(op.name in after.op for op in small.ops)
        bits = {after.bits_read(after.op[op.name])[:2] for op in products(small) if op.phase == "forward"}
        assert bits == {(8, 8)}
        whole = narrowed(trace, everything=everything)
        assert {t.name: t.shape for t in whole.tensors} == {
            t.name: t.shape for t in with_batch(after, trace.header.batch).tensors
        }


def test_a_name_that_is_taken_is_numbered() -> None:
    trace = chain()
    taken = Op("act.relu.quantize:forward", "forward", "act", Elementwise("neg", 128), ("act.relu:forward.y",), ("neg",))
    place = [op.name for op in trace.ops].index("conv2.conv:forward")
    conv2 = replace(trace.ops[place], reads=("neg", *trace.ops[place].reads[1:]))
    ops = (*trace.ops[:place], taken, conv2, *trace.ops[place + 1 :])
    neg = Tensor("neg", (2, 4, 4, 4), 32, "fp", "activation")
    after = narrowed(replace(trace, tensors=(*trace.tensors, neg), ops=ops))
    assert {"act.relu.quantize:forward", "act.relu.quantize:forward#2"} <= after.op.keys()
