"""Narrow copies of tensors, and the step as it was before them.

Training in few bits rounds a tensor once and lets its readers read the copy (Banner et al., Scalable Methods for 8-bit
Training of Neural Networks, NeurIPS 2018, section 4). The gradient passes a rounding unchanged, so that a copy has no
backward op: to whoever follows the data, it is the tensor itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from jouletrace.trace.model import Elementwise, Op, Reduce, Trace

__all__ = ["plain"]


def plain(trace: Trace) -> tuple[Trace, Mapping[str, str]]:
    """The step without copies, whose readers read the tensors themselves; and op -> tensor for all that copies.

    Copying are ``quantize``, ``cast`` where no ``cast_backward`` undoes it, and reductions that find a scale for
    nothing else.

    >>> from jouletrace.trace.model import Header, Tensor
    >>> x, code, y = (Tensor(n, (4,), 32, "fp", "activation") for n in ("x", "x.int8", "y"))
    >>> rounded = Op("x.quantize:forward", "forward", "", Elementwise("quantize", 4), ("x",), ("x.int8",))
    >>> relu = Op("relu:forward", "forward", "", Elementwise("relu", 4), ("x.int8",), ("y",))
    >>> step, copies = plain(Trace(Header("two", 1), (x, code, y), (rounded, relu)))
    >>> step.ops[0].reads, dict(copies)
    (('x',), {'x.quantize:forward': 'x'})
    """
    functions = {op.nest.function for op in trace.ops if isinstance(op.nest, Elementwise)}
    copying = {"quantize", "cast"} if "cast_backward" not in functions else {"quantize"}
    root: dict[str, str] = {}
    copies: dict[str, str] = {}
    for op in trace.ops:
        if isinstance(op.nest, Elementwise) and op.nest.function in copying:
            copies[op.name] = root[op.writes[0]] = root.get(op.reads[0], op.reads[0])
    if not copies:
        return trace, MappingProxyType({})
    for op in trace.ops:
        if _finds_a_scale(trace, op, copies):
            copies[op.name] = root.get(op.reads[0], op.reads[0])
    ops = tuple(_reading(op, root) for op in trace.ops if op.name not in copies)
    gone = {name for op in trace.ops if op.name in copies for name in op.writes}
    kept = tuple(t for t in trace.tensors if t.name not in gone)
    return replace(trace, tensors=kept, ops=ops), MappingProxyType(copies)


def _finds_a_scale(trace: Trace, op: Op, copies: Mapping[str, str]) -> bool:
    readers = trace.readers.get(op.writes[0], ()) if op.writes else ()
    return isinstance(op.nest, Reduce) and bool(readers) and all(r.name in copies for r in readers)


def _reading(op: Op, root: Mapping[str, str]) -> Op:
    if root.keys().isdisjoint(op.reads):
        return op
    return replace(op, reads=tuple(root.get(name, name) for name in op.reads), read_bits=())
