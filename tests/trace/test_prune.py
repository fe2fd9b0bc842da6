"""Removal of dead work: exactly what no final value needs, and the same again when done twice."""

from __future__ import annotations

import networkx
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.testing import Step, traces
from jouletrace.trace.check import is_final, problems
from jouletrace.trace.graph import graph
from jouletrace.trace.model import Elementwise, Gate, Header, Op, Sync, Tensor, Trace
from jouletrace.trace.prune import prune, without_ops

from .test_io import small_step


def test_a_step_without_dead_work_is_returned_as_it_is() -> None:
    trace = small_step()
    assert prune(trace) is trace


@given(traces(gates=True), st.data())
def test_after_removal_of_updates(trace: Trace, data: st.DataObject) -> None:
    """What stays is what a final value can be reached from; it is valid, and nothing more goes."""
    updates = [op.name for op in trace.ops if op.kind == "update"]
    gone = set(data.draw(st.lists(st.sampled_from(updates), unique=True)))
    pruned = without_ops(trace, gone)
    assert problems(pruned) == []
    assert prune(pruned) is pruned

    edges = graph(trace)
    final = [op for op in trace.ops if op.name not in gone and any(is_final(trace, trace.tensor[t]) for t in op.writes)]
    roots = {op.name for op in final}
    needed = roots | {name for root in roots for name in networkx.ancestors(edges, root)}
    assert {op.name for op in pruned.ops} == needed
    assert [op for op in pruned.ops if op.nest != trace.op[op.name].nest] == []
    assert {t.name for t in trace.tensors if t.role == "param" and t.name not in trace.writer} <= set(pruned.tensor)


def test_frozen_layers_lose_what_only_they_need() -> None:
    """Without updates of conv and norm, the backward pass ends at the classifier."""
    trace = small_step()
    pruned = without_ops(trace, [op.name for op in trace.ops if op.kind == "update" and op.layer != "fc"])
    backward = [op.name for op in pruned.ops if op.phase.startswith("backward")]
    assert backward == ["cross_entropy:backward_data", "fc.gemm:backward_weight", "fc.sum:backward_weight"]
    assert "conv.weight" in pruned.tensor  # it passes through the step
    assert "conv.weight:update.param" not in pruned.tensor


def test_norm_above_frozen_layers_keeps_weight_gradients_only() -> None:
    pruned = without_ops(small_step(), ["conv.weight:update"])
    norm = pruned.op["bn.batch:backward_data"]
    assert [name.rpartition(".")[2] for name in norm.writes] == ["gw", "gb"]
    assert problems(pruned) == []


def test_results_that_their_kind_needs_stay() -> None:
    """The last cell state is read by nothing, but the one before the first is the cell's first result."""
    step = Step("words", 2)
    x = step.embedding("embedding", step.given("tokens", (2, 2), "input", 64), 5, 3)
    step.loss(step.linear("fc", step.lstm("lstm", x, 2), 3), 3)
    trace = step.trace()
    pruned = prune(trace)
    assert [t.name for t in trace.tensors if t.name not in pruned.tensor] == ["lstm.cell:forward#2.c"]
    assert pruned.op["lstm.cell:forward#2"].writes == ("lstm.cell:forward#2.h", "lstm.cell:forward#2.all")


def test_what_a_gate_waits_for_stays() -> None:
    x, y = (Tensor(n, (4,), 32, "fp", r) for n, r in (("x", "input"), ("y", "buffer")))
    score = Tensor("score", (1,), 32, "fp", "activation")
    dead = Op("dead", "forward", "", Sync("host"), ("x",), ())
    predict = Op("predict", "forward", "", Sync("host"), ("x",), ("score",))
    decide = Op("decide", "forward", "", Sync("decision"), ("score",), ())
    relu = Op("relu", "forward", "", Elementwise("relu", 4), ("x",), ("y",), gate=Gate("layer", "relu", "decide"))
    pruned = prune(Trace(Header("t", 1), (x, y, score), (dead, predict, decide, relu)))
    assert [op.name for op in pruned.ops] == ["predict", "decide", "relu"]
