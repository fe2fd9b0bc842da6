"""Ops that fetch some bits, touch some elements or compute some results: valid, written down, scaled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.errors import TraceError
from jouletrace.testing import image_traces, traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import problems
from jouletrace.trace.io import digest, dump, list_traces, load_trace, parse_trace
from jouletrace.trace.lifetimes import lifetimes, peak_memory
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Conv, Copy, Elementwise, Gemm, Nest, Norm, Trace, Update

from .parts import on_fewer_samples
from .test_check import CONV2, GEMM, one_op, operands, with_op
from .test_io import edited, small_step

GRADIENT = "conv.conv:backward_weight"
RELU = "relu.relu:forward"


@given(traces(gates=True), st.data())
def test_any_ops_may_run_for_fewer_samples(trace: Trace, data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from([op.name for op in trace.ops])))
    part = on_fewer_samples(trace, names, data.draw(st.integers(1, trace.header.batch)))
    assert problems(part) == []
    assert parse_trace(dump(part), "t") == part


# -- what is refused


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (RELU, {"read_bits": (8, 8)}, "has 2 read_bits for 1 reads"),
        (RELU, {"read_bits": (33,)}, "fetches 33 bits of each element of 'bn.batch:forward.y', which has 32"),
        (RELU, {"read_bits": (0,)}, "fetches 0 bits of each element of 'bn.batch:forward.y', which has 32"),
        (RELU, {"write_elements": (32, 32)}, "has 2 write_elements for 1 writes"),
        (RELU, {"write_elements": (0,)}, f"computes 0 elements of '{RELU}.y', which has 64"),
        (RELU, {"write_elements": (65,)}, f"computes 65 elements of '{RELU}.y', which has 64"),
        # The 64 elements that the nest goes through are not the 32 that are said to be computed.
        (RELU, {"write_elements": (32,)},
         f"writes '{RELU}.y' in 32 of 64 elements as its result; its nest asks for 64"),
    ],
)  # fmt: skip
def test_broken_part_is_told(name: str, change: dict[str, tuple[int, ...]], sentence: str) -> None:
    assert f"Op {name!r} {sentence}." in problems(with_op(small_step(), name, **change))


@pytest.mark.parametrize(
    ("nest", "reads", "writes", "touched", "computed"),
    [
        (Elementwise("add", 6), "12x 12x", "12x", (6, 6), (6,)),
        (Copy("cat", 8), "12x 8x", "16x", (4, 4), (8,)),
        (Norm("batch", 12, 4), "24x 4w 4w", "24x 4b 4b", (12, 4, 4), (12, 4, 4)),
        (replace(CONV2, N=1), "480x 216w", "360x", (240, 216), (180,)),  # one of two samples
        (replace(CONV2, role="backward_data"), "360g 216w", "480g", (), (77,)),  # the loops of all results, some wanted
        (GEMM, "30x 40w", "24x", (), (5,)),
        (replace(GEMM, B=1), "30x 40w", "24x", (15, 20), (12,)),
    ],
)  # fmt: skip
def test_part_of_the_results_is_judged_as_computed(
    nest: Nest, reads: str, writes: str, touched: tuple[int, ...], computed: tuple[int, ...]
) -> None:
    phase = "backward_data" if "g" in reads else "forward"
    assert one_op(nest, operands(reads), operands(writes), phase, touched, computed) == []
    # A part of the loops goes with one part of the results, no other.
    other = (computed[0] - 1, *computed[1:])
    whole = isinstance(nest, Conv | Gemm) and not touched
    assert bool(one_op(nest, operands(reads), operands(writes), phase, touched, other)) != whole


def test_a_part_of_a_parameter_is_updated() -> None:
    sgd = Update("sgd", 6, 2)
    assert one_op(sgd, operands("12w 6d"), operands("12w"), "update", (6, 6), (6,)) == []
    assert one_op(sgd, operands("12w 6d"), operands("12w"), "update", (6, 6), (5,))


def test_macs_of_a_share_of_the_results() -> None:
    """Every weight gradient is a sum over N·OY·OX = 2·4·4 products, of which padding hides some."""
    trace = small_step()
    op = with_op(trace, GRADIENT, write_elements=(20,)).op[GRADIENT]
    assert isinstance(op.nest, Conv)
    assert op.nest.results == 54
    assert op.macs == 20 * 2 * 4 * 4
    assert op.macs_in_bounds == -(-op.nest.macs_in_bounds * 20 // 54)


# -- files


def test_version_is_the_oldest_that_knows_the_fields() -> None:
    whole = small_step()
    for change in ({"read_bits": (4,)}, {"write_elements": (64,)}):
        part = with_op(whole, RELU, **change)
        data = dump(part)
        assert b'"version":"1.1"' in data.splitlines()[0]
        again = parse_trace(data, "t")
        assert again == part
        assert dump(again) == data
        # Without the new field it is the old file again: identities stay.
        assert dump(with_op(again, RELU, read_bits=(), write_elements=())) == dump(whole)
    assert b'"version":"1.0"' in dump(whole).splitlines()[0]


def test_a_version_that_no_field_asks_for_is_the_same_trace() -> None:
    data = edited(small_step(), 1, lambda header: header.update(version="1.1"))
    newer = parse_trace(data, "t")
    assert newer.extensions == (("version", '"1.1"'),)  # nothing that was read is lost
    part = edited(with_op(small_step(), RELU, read_bits=(4,)), 1, lambda header: header.update(version="1.0"))
    assert parse_trace(part, "t") == with_op(small_step(), RELU, read_bits=(4,))


def test_shipped_traces_keep_their_version() -> None:
    for name in list_traces()[:2]:
        trace = load_trace(name)
        assert b'"version":"1.0"' in dump(trace).splitlines()[0]
        assert digest(parse_trace(dump(trace), name)) == digest(trace)


# -- another batch, micro-batches, memory


def test_the_share_of_samples_stays_with_the_batch() -> None:
    part = on_fewer_samples(with_batch(small_step(), 8), [RELU], 6)
    assert with_batch(part, 4).op[RELU] == on_fewer_samples(with_batch(small_step(), 4), [RELU], 3).op[RELU]
    assert with_batch(part, 32).op[RELU].write_elements == (24 * 32,)
    conv = on_fewer_samples(with_batch(small_step(), 8), ["conv.conv:forward"], 6)
    with pytest.raises(TraceError, match="N of op 'conv.conv:forward' is 6, .* no whole number with a batch of 2"):
        with_batch(conv, 2)


def test_share_of_a_weight_gradient_and_its_bits_stay() -> None:
    part = with_op(small_step(), GRADIENT, write_elements=(20,), read_bits=(10, 4))
    for step in (with_batch(part, 6), micro_batched(with_batch(part, 4), 2)):
        ops = [op for op in step.ops if op.name.startswith(GRADIENT) and op.kind == "conv"]
        assert {(op.write_elements, op.read_bits) for op in ops} == {((20,), (10, 4))}


@given(image_traces())
def test_a_partly_computed_result_has_memory_of_its_own(trace: Trace) -> None:
    part = on_fewer_samples(trace, [op.name for op in trace.ops], 1)
    assert lifetimes(part) == lifetimes(trace)
    assert peak_memory(part) == peak_memory(trace)
