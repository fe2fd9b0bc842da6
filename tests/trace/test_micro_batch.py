"""A step in micro-batches: a valid step over the same samples, with less memory and more traffic."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from jouletrace.capture.zoo import zoo
from jouletrace.errors import TraceError, UsageError
from jouletrace.trace.check import problems
from jouletrace.trace.lifetimes import peak_memory
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Elementwise, Gate, Op, Tensor, Trace


@pytest.fixture(scope="module", params=["resnet20-cifar10", "lenet10-cifar10"])
def network(request: pytest.FixtureRequest) -> Trace:
    return zoo(request.param, batch=8)


def weight_gradient_bytes(trace: Trace) -> int:
    """Of what the update reads."""
    read = {name for op in trace.ops if op.phase == "update" for name in op.reads}
    return sum(t.size_bytes for t in trace.tensors if t.role == "weight_gradient" and t.name in read)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_micro_batched_step_is_valid_and_multiplies_as_often(network: Trace, size: int) -> None:
    cut = micro_batched(network, size)
    assert problems(cut) == []
    assert cut.macs == network.macs
    assert cut.header.batch == network.header.batch
    repeats = network.header.batch // size
    once = [op for op in network.ops if op.phase == "update"]
    summed = {name for op in once for name in op.reads if network.tensor[name].role == "weight_gradient"}
    assert len(cut.ops) == repeats * (len(network.ops) - len(once)) + (repeats - 1) * len(summed) + len(once)


def test_memory_falls_with_the_micro_batch(network: Trace) -> None:
    peaks = [peak_memory(micro_batched(network, size)).size_bytes for size in (8, 4, 2, 1)]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 4


def test_every_later_gradient_is_added_to_the_sum(network: Trace) -> None:
    """Two reads and one write of every weight gradient, for each micro-batch but the first."""
    cut = micro_batched(network, 2)
    added = [op for op in cut.ops if "@" in op.name and ".accumulate@" in op.name]
    read = sum(cut.tensor[name].size_bytes for op in added for name in op.reads)
    written = sum(cut.tensor[name].size_bytes for op in added for name in op.writes)
    assert (read, written) == (2 * 3 * weight_gradient_bytes(network), 3 * weight_gradient_bytes(network))


def test_the_update_is_the_same(network: Trace) -> None:
    cut = micro_batched(network, 2)
    before, after = ([op for op in trace.ops if op.phase == "update"] for trace in (network, cut))
    assert before == after


def test_running_statistics_go_from_one_micro_batch_to_the_next() -> None:
    cut = micro_batched(zoo("resnet20-cifar10", batch=8), 2)
    norms = [op for op in cut.ops if op.kind == "norm" and op.phase == "forward" and op.layer == "bn1"]
    assert len(norms) == 4
    means = [name for name in norms[0].reads if name.endswith("running_mean")]
    assert means == ["bn1.running_mean"]
    for before, after in pairwise(norms):
        handed_on = set(before.writes) & set(after.reads)
        assert len(handed_on) == 2, "mean and variance"


def test_the_header_says_what_differs() -> None:
    cut = micro_batched(zoo("resnet20-cifar10", batch=8), 2)
    assert cut.header.name.endswith("-mb2")
    assert ("micro_batch", "2") in cut.header.policy
    (warning,) = cut.header.warnings
    assert "batch norm takes its statistics over 2 samples instead of 8" in warning
    assert micro_batched(zoo("lenet10-cifar10", batch=8), 2).header.warnings == ()


def test_the_whole_batch_is_the_step_itself(network: Trace) -> None:
    assert micro_batched(network, 8) is network


@pytest.mark.parametrize("size", [0, 3, 16])
def test_sizes_that_do_not_divide_are_refused(network: Trace, size: int) -> None:
    with pytest.raises(UsageError, match=r"do not divide the batch of 8; possible are 1, 2, 4, 8"):
        micro_batched(network, size)


def test_gates_and_control_edges_stay_within_their_micro_batch() -> None:
    trace = zoo("lenet10-cifar10", batch=4)
    first, second, *rest = trace.ops
    gated = replace(second, gate=Gate("block", "b", first.name), after=(first.name,))
    cut = micro_batched(Trace(trace.header, trace.tensors, (first, gated, *rest)), 2)
    for k in (1, 2):
        op = cut.op[f"{second.name}@{k}"]
        assert op.after == (f"{first.name}@{k}",)
        assert op.gate == Gate("block", "b", f"{first.name}@{k}")


def test_an_update_that_reads_activations_is_refused() -> None:
    trace = zoo("lenet10-cifar10", batch=4)
    activation = next(op.writes[0] for op in trace.ops if trace.tensor[op.writes[0]].role == "activation")
    probe = Tensor("probe", trace.tensor[activation].shape, 32, "fp", "buffer")
    nest = Elementwise("abs", probe.elements)
    reads = Op("probe:update", "update", "", nest, (activation,), ("probe",))
    trace = Trace(trace.header, (*trace.tensors, probe), (*trace.ops, reads))
    with pytest.raises(TraceError, match="only weight gradients can be summed"):
        micro_batched(trace, 2)
