"""The graph view: every edge there is, and no other."""

from __future__ import annotations

import networkx
from hypothesis import given

from jouletrace.testing import traces
from jouletrace.trace.graph import data_dependencies, graph, predecessors, successors
from jouletrace.trace.model import Trace

from .test_io import small_step


@given(traces(gates=True))
def test_edges_are_those_of_reads_and_control(trace: Trace) -> None:
    view = graph(trace)
    assert networkx.is_directed_acyclic_graph(view)
    assert list(view.nodes) == [op.name for op in trace.ops]
    for op in trace.ops:
        assert view.nodes[op.name]["op"] is op
        for before in trace.ops:
            carried = tuple(t for t in dict.fromkeys(op.reads) if t in before.writes)
            edge = view.get_edge_data(before.name, op.name)
            if carried or before.name in op.after:
                assert edge == {"tensors": carried, "control": before.name in op.after, "overwrites": ()}
            else:
                assert edge is None


@given(traces(gates=True))
def test_predecessors_are_those_of_the_graph(trace: Trace) -> None:
    for anti in (False, True):
        view = graph(trace, anti=anti)
        found = predecessors(trace, anti=anti)
        assert {name: set(before) for name, before in found.items()} == {n: set(view.predecessors(n)) for n in view}
    positions = {op.name: i for i, op in enumerate(trace.ops)}
    for op, edges in zip(trace.ops, data_dependencies(trace), strict=True):
        assert {positions[n] for n in predecessors(trace)[op.name]} - set(edges) <= {positions[n] for n in op.after}


@given(traces())
def test_every_state_has_one_chain_of_versions(trace: Trace) -> None:
    following = successors(trace)
    assert len(set(following.values())) == len(following)
    updated = {op.reads[0]: op.writes[0] for op in trace.ops if op.kind == "update"}
    assert {old: following[old] for old in updated} == updated
    states = [t.name for t in trace.tensors if t.role == "optimizer_state" and t.name not in trace.writer]
    assert all(trace.tensor[following[name]].role == "optimizer_state" for name in states)


def test_running_statistics_follow_one_another() -> None:
    following = successors(small_step())
    assert following["bn.running_mean"] == "bn.batch:forward.running_mean"
    assert following["bn.running_var"] == "bn.batch:forward.running_var"


def test_overwriting_waits_for_every_reader() -> None:
    """conv.weight is read by the convolution (there is no backward_data: it is the first layer)."""
    view = graph(small_step(), anti=True)
    assert view.edges["conv.conv:forward", "conv.weight:update"]["overwrites"] == ("conv.weight",)
    assert view.edges["fc.gemm:backward_data", "fc.weight:update"]["overwrites"] == ("fc.weight",)
    assert not graph(small_step()).has_edge("conv.conv:forward", "conv.weight:update")
