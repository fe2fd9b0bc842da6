"""Removal of dead work: what no final value of the step depends on is neither computed nor kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from jouletrace.trace.check import is_final, waits_for
from jouletrace.trace.graph import STATE_ROLES
from jouletrace.trace.model import Op, Trace
from jouletrace.trace.operands import disagreements

__all__ = ["prune", "without_ops"]


def without_ops(trace: Trace, names: Collection[str]) -> Trace:
    """The step without some ops, without what they write, and without whatever is dead then.

    This is how an update is left out: the new versions go with it, and the old ones pass through the step.
    """
    ops = tuple(op for op in trace.ops if op.name not in names)
    gone = {name for op in trace.ops if op.name in names for name in op.writes}
    return prune(replace(trace, tensors=tuple(t for t in trace.tensors if t.name not in gone), ops=ops))


def prune(trace: Trace) -> Trace:
    """The step without dead ops, dead results and dead tensors; the trace itself if there are none.

    An op stays if a final value (see :mod:`jouletrace.trace.check`) depends on it, over tensors, control
    edges or gates. Of an op that stays, results that nothing reads go where its kind allows it: the first
    norm above frozen layers keeps its weight gradients and loses its input gradient. Parameters, states and
    buffers that exist before the step stay, because they pass through it. ``prune(prune(t)) == prune(t)``.

    >>> from jouletrace.trace.model import Elementwise, Header, Tensor
    >>> x = Tensor("x", (4,), 32, "fp", "param")
    >>> y = Tensor("y", (4,), 32, "fp", "activation")
    >>> relu = Op("relu:forward", "forward", "relu", Elementwise("relu", 4), ("x",), ("y",))
    >>> prune(Trace(Header("dead", 1), (x, y), (relu,))).ops
    ()
    """
    final = {t.name for t in trace.tensors if is_final(trace, t)}
    used, awaited = set(final), set[str]()
    kept: list[Op] = []
    for op in reversed(trace.ops):
        if op.name in awaited or not used.isdisjoint(op.writes):
            used.update(op.reads)
            awaited.update(waits_for(op))
            kept.append(_without_dead_results(trace, op, used))
    kept.reverse()
    alive = {name for op in kept for name in (*op.reads, *op.writes)}
    given = {t.name for t in trace.tensors if t.role in STATE_ROLES and t.name not in trace.writer}
    tensors = tuple(t for t in trace.tensors if t.name in alive or t.name in given)
    pruned = replace(trace, tensors=tensors, ops=tuple(kept))
    return trace if (tensors, pruned.ops) == (trace.tensors, trace.ops) else pruned


def _without_dead_results(trace: Trace, op: Op, used: set[str]) -> Op:
    """The op with as few unused results as the operands of its kind allow."""
    writes = tuple(name for name in op.writes if name in used)
    if writes == op.writes:
        return op
    for fewer in (writes, tuple(name for name in op.writes if name in (op.writes[0], *writes))):
        computed = dict(zip(op.writes, op.write_elements, strict=False))
        smaller = replace(op, writes=fewer, write_elements=tuple(computed[n] for n in fewer) if computed else ())
        if _agrees(trace, smaller):
            return smaller
    return op


def _agrees(trace: Trace, op: Op) -> bool:
    reads, writes = (tuple(trace.tensor[n] for n in names) for names in (op.reads, op.writes))
    return not any(disagreements(op, reads, trace.elements_read(op), writes))
