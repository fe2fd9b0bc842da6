"""Steps in which ops work on a part of their operands, made from whole steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from jouletrace.trace.batch import with_batch
from jouletrace.trace.model import Trace

__all__ = ["on_fewer_samples"]


def on_fewer_samples(trace: Trace, names: Collection[str], samples: int) -> Trace:
    """The same tensors, but the named ops run for ``samples`` samples only."""
    small = with_batch(trace, samples)
    ops = tuple(
        replace(op, nest=own.nest, read_elements=small.elements_read(own), write_elements=small.elements_written(own))
        if op.name in names
        else op
        for op, own in zip(trace.ops, small.ops, strict=True)
    )
    return replace(trace, ops=ops)
