"""The quick test of types: what passes can be written and read, and records as they are made do pass."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jouletrace.testing.traces import traces
from jouletrace.trace.codec import decode, encode
from jouletrace.trace.field_types import well_typed
from jouletrace.trace.model import Conv, Gate, Header, Op, Tensor, Trace

ODD = st.one_of(
    st.sampled_from([
        None, True, 0, 1.0, 2**63 - 1, 2**63, -(2**63), "", "forward", "conv", "new\nline", b"", [], [1], (), (1,), (True,),
        (1, 2), (1, 2, 3), (2**63,), (1.5,), ("x",), ("x", 1), ("new\nline",), (("a", "b"),), (("a", 1),), (("a",),),
        {}, {"kind": "conv"}, object, Gate("block", "unit"), Gate("block", 3), Conv(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, (1,)),  # type: ignore[arg-type]
    ]),
    st.integers(), st.text(max_size=2), st.tuples(st.integers(), st.integers()),
)  # fmt: skip


def records(trace: Trace) -> list[tuple[type, Any]]:
    """Every kind of record in a trace, with the annotation that it stands under."""
    nests = [(type(op.nest), op.nest) for op in trace.ops]
    gates = [(Gate, op.gate) for op in trace.ops if op.gate is not None]
    return [(Header, trace.header), *((Tensor, t) for t in trace.tensors), *((Op, op) for op in trace.ops), *nests, *gates]


@given(traces(gates=True))
def test_what_is_right_passes(trace: Trace) -> None:
    assert all(well_typed(kind)(record) for kind, record in records(trace))


@given(traces(gates=True), st.data())
def test_what_passes_can_be_written_and_read(trace: Trace, data: st.DataObject) -> None:
    """One field of one record holds something else."""
    kind, record = data.draw(st.sampled_from(records(trace)))
    if fields(record):
        name = data.draw(st.sampled_from([field.name for field in fields(record)]))
        record = replace(record, **{name: data.draw(ODD)})
    if well_typed(kind)(record):
        assert decode(kind, encode(record)) == record


def test_another_record_does_not_pass() -> None:
    assert not well_typed(Tensor)(Gate("block", "unit"))
