"""The edges of a trace, for rules that need reachability; the trace itself stays the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jouletrace.trace.model import Op, Role, Trace

if TYPE_CHECKING:
    import networkx

__all__ = ["data_dependencies", "graph", "predecessors", "successors"]

# Roles whose tensors live on from step to step, a new version in the place of the old one.
STATE_ROLES: tuple[Role, ...] = ("param", "optimizer_state", "buffer")


def data_dependencies(trace: Trace) -> tuple[tuple[int, ...], ...]:
    """For each op the positions of the ops whose results it reads, ascending (read after write).

    >>> from jouletrace.trace.model import Elementwise, Header, Tensor
    >>> tensors = tuple(Tensor(n, (4,), 32, "fp", "activation") for n in "xyz")
    >>> relu = [Op(f"relu{i}:forward", "forward", "", Elementwise("relu", 4), (a,), (b,))
    ...         for i, (a, b) in enumerate(["xy", "yz"])]
    >>> data_dependencies(Trace(Header("two", 1), tensors, tuple(relu)))
    ((), (0,))
    """
    position = {name: i for i, op in enumerate(trace.ops) for name in op.writes}
    return tuple(tuple(sorted({position[t] for t in op.reads if t in position})) for op in trace.ops)


def successors(trace: Trace) -> Mapping[str, str]:
    """The next version of every parameter, optimizer state and running statistic that an op updates.

    An op that reads and writes tensors of one of these roles, of equal shape and width, writes new versions
    of what it reads. Where it writes more than it reads (batch norm: saved and running statistics), the
    last written ones are the new versions, as in the order of operands that all captures keep.

    Returns a mapping from the name of the old version to the name of the new one.
    """
    following: dict[str, str] = {}
    for op in trace.ops:
        old = [t for t in dict.fromkeys(op.reads) if t not in following]
        for name in reversed(op.writes):
            new = trace.tensor[name]
            if new.role not in STATE_ROLES:
                continue
            for candidate in reversed(old):
                kept = trace.tensor[candidate]
                if (kept.role, kept.shape, kept.bits) == (new.role, new.shape, new.bits):
                    following[candidate] = name
                    old.remove(candidate)
                    break
    return following


def predecessors(trace: Trace, *, anti: bool = False) -> Mapping[str, tuple[str, ...]]:
    """For each op the ops that have to end before it, in trace order.

    Counted are the writers of what it reads and the ops of its ``after``; with ``anti`` also the readers of
    every old version that it overwrites in place (write after read).
    """
    place = {op.name: i for i, op in enumerate(trace.ops)}
    before = {op.name: {trace.ops[i].name for i in edges} | set(op.after)
              for op, edges in zip(trace.ops, data_dependencies(trace), strict=True)}  # fmt: skip
    if anti:
        for op, reader, _ in _overwrites(trace):
            before[op.name].add(reader.name)
    return {name: tuple(sorted(ops, key=place.__getitem__)) for name, ops in before.items()}


def graph(trace: Trace, *, anti: bool = False) -> networkx.DiGraph[str]:
    """A directed graph over op names; node attribute ``op`` is the Op.

    Edge attributes: ``tensors`` names what flows from the first op to the second (empty for none),
    ``control`` says whether the second names the first in ``after``, and ``overwrites`` names the versions
    that the first still reads and the second replaces in place (only with ``anti``).

    A trace that passed :func:`jouletrace.trace.check.check` gives an acyclic graph without ``anti``.
    """
    import networkx

    view: networkx.DiGraph[str] = networkx.DiGraph()
    for op in trace.ops:
        view.add_node(op.name, op=op)
    for op in trace.ops:
        for tensor in dict.fromkeys(op.reads):
            if tensor in trace.writer:
                _edge(view, trace.writer[tensor].name, op.name)["tensors"] += (tensor,)
        for name in op.after:
            _edge(view, name, op.name)["control"] = True
    if anti:
        for op, reader, tensor in _overwrites(trace):
            _edge(view, reader.name, op.name)["overwrites"] += (tensor,)
    return view


def _edge(view: networkx.DiGraph[str], source: str, target: str) -> dict[str, Any]:
    if not view.has_edge(source, target):
        view.add_edge(source, target, tensors=(), control=False, overwrites=())
    return view.edges[source, target]


def _overwrites(trace: Trace) -> list[tuple[Op, Op, str]]:
    """(op, reader, old version): ``reader`` has to have read the old version before ``op`` replaces it."""
    return [
        (trace.writer[new], reader, old)
        for old, new in successors(trace).items()
        for reader in trace.readers[old]
        if reader is not trace.writer[new]
    ]
