"""Every trace that is shipped: canonical, valid, nothing dead in it, and fit for any batch."""

from __future__ import annotations

import gzip

import pytest

from jouletrace.resources import folder
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import dump, list_traces, load_trace
from jouletrace.trace.prune import prune


@pytest.mark.parametrize("name", list_traces())
def test_shipped_trace(name: str) -> None:
    trace = load_trace(name)
    assert trace.header.name == name
    assert gzip.decompress((folder("traces") / f"{name}.jsonl.gz").read_bytes()) == dump(trace)
    assert prune(trace) is trace
    batch = trace.header.batch
    one = with_batch(trace, 1)
    assert one.macs * batch == trace.macs
    back = with_batch(one, batch)
    assert (back.tensors, back.ops) == (trace.tensors, trace.ops)
