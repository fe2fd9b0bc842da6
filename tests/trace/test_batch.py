"""Another batch: exactly what a capture at that batch would have recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.capture.zoo import zoo
from jouletrace.errors import TraceError
from jouletrace.testing import traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import check
from jouletrace.trace.io import dump, parse_trace
from jouletrace.trace.model import Gemm, Header, Op, Tensor, Trace

from .test_io import small_step

batches = st.integers(1, 40)


@given(traces(gates=True), batches, batches)
def test_scaling_twice_is_scaling_once(trace: Trace, a: int, b: int) -> None:
    direct = with_batch(trace, b)
    assert with_batch(with_batch(trace, a), b) == direct
    assert parse_trace(dump(direct), "t") == direct


@given(traces(gates=True), batches)
def test_work_grows_with_the_batch_and_parameters_do_not(trace: Trace, batch: int) -> None:
    scaled, old = with_batch(trace, batch), trace.header.batch
    check(scaled)
    assert scaled.macs * old == trace.macs * batch
    assert sum(op.macs_in_bounds for op in scaled.ops) * old == sum(op.macs_in_bounds for op in trace.ops) * batch
    assert [op.name for op in scaled.ops] == [op.name for op in trace.ops]
    for before, after in zip(trace.tensors, scaled.tensors, strict=True):
        grows = before.role in ("input", "activation", "gradient", "mask")
        fixed = before.role in ("param", "weight_gradient", "optimizer_state")
        assert not grows or after.elements * old == before.elements * batch
        assert not fixed or after == before


@given(traces())
def test_scaling_back_gives_the_same_step(trace: Trace) -> None:
    back = with_batch(with_batch(trace, trace.header.batch * 3), trace.header.batch)
    assert back.tensors == trace.tensors
    assert back.ops == trace.ops


NETWORKS = ("resnet20-cifar10", "mobilenetv2-eic-cifar10", "lstm2", "vit-tiny6-cifar10", "gpt-char", "alexnet-eftrain")


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_a_capture_at_the_other_batch(name: str) -> None:
    """Convolutions, groups, time-major data, attention with stacked gradients, layer norm, look-ups."""
    scaled, captured = with_batch(zoo(name, 8), 6), zoo(name, 6)
    assert scaled.tensors == captured.tensors
    assert scaled.ops == captured.ops


def test_name_and_header_tell_the_batch() -> None:
    header = with_batch(small_step(), 64).header
    assert (header.name, header.batch) == ("small-b64", 64)
    assert header.policy == (("batch_axes", "{}"),)
    assert with_batch(replace(small_step(), header=Header("plain", 2)), 64).header.name == "plain-b64"


def test_time_major_data_keeps_its_time_even_at_batch_one() -> None:
    """(32, 8) are 32 steps of 8 samples, although 8 divides 32; the header remembers it."""
    one = with_batch(zoo("lstm2", 8), 1)
    assert one.tensor["tokens"].shape == (32, 1)
    assert with_batch(one, 5).tensor["tokens"].shape == (32, 5)


def gemm_step(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> Trace:
    """c = a · b with the batch in the operands of role input."""
    M, K, N = a[0], a[1], b[1]
    x, w = Tensor("x", a, 32, "fp", "input"), Tensor("w", b, 32, "fp", "param")
    y = Tensor("y", c, 32, "fp", "buffer")
    op = Op("fc:forward", "forward", "fc", Gemm(1, M, N, K), ("x", "w"), ("y",))
    return Trace(Header("fc-b4", 4), (x, w, y), (op,))


def test_what_cannot_grow_is_refused_with_its_name() -> None:
    with pytest.raises(TraceError, match="Of op 'fc:forward' only a would grow with the batch"):
        with_batch(gemm_step((4, 3), (3, 2), (4, 2)), 8)
    with pytest.raises(TraceError, match="Dimension 0 of tensor 'x' is 3, which the batch of 4 does not divide"):
        with_batch(gemm_step((3, 3), (3, 2), (3, 2)), 8)
    with pytest.raises(TraceError, match="it has to be at least 1"):
        with_batch(small_step(), 0)


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"images":-1}', '{"images":"0"}'])
def test_a_damaged_policy_is_refused(text: str) -> None:
    trace = small_step()
    header = replace(trace.header, policy=(("batch_axes", text),))
    with pytest.raises(TraceError, match="remove it"):
        with_batch(replace(trace, header=header), 8)
