"""How long every tensor lives, and what a step needs of memory for it.

A sweep over the ops in trace order, on tensors alone: tiles, buffers and fusion are a matter of the mapping.
What exists before the step stays to its end, except that a new version of a parameter, of an optimizer state
or of a running statistic takes the place of the old one. Everything else lives from the op that writes it to
the last op that reads it; nothing is written in place otherwise. A result of which an op computes a part only
(``write_elements``) has memory of its own, all of it: that the rest stands in the memory of another tensor is
not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from jouletrace.trace.check import is_final
from jouletrace.trace.graph import successors
from jouletrace.trace.model import Trace

__all__ = ["Lifetime", "Peak", "lifetimes", "peak_memory", "saved_for_backward_bytes"]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Positions of the first and the last op during which a tensor occupies memory.

    ``first`` is -1 for what exists before the step; ``last`` is the number of ops for what outlives it.
    """

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that a step occupies, and the first op during which it does (None without ops)."""

    size_bytes: int
    op: str | None


def lifetimes(trace: Trace) -> Mapping[str, Lifetime]:
    """The lifetime of every tensor, by name.

    A new version that replaces an old one in place begins with the op after the one that writes it: until
    then the memory is the old version's.
    """
    end = len(trace.ops)
    writer = {name: i for i, op in enumerate(trace.ops) for name in op.writes}
    reader = {name: i for i, op in enumerate(trace.ops) for name in op.reads}
    following = successors(trace)
    in_place = {new for old, new in following.items() if reader[old] == writer[new]}
    spans: dict[str, Lifetime] = {}
    for tensor in trace.tensors:
        name = tensor.name
        first = writer.get(name, -1) + (name in in_place)
        if tensor.role == "buffer" and name in writer:  # statistics that backward reads again are temporary
            stays = name not in reader
        else:
            stays = name not in writer or is_final(trace, tensor)
        stays = stays and name not in following
        spans[name] = Lifetime(first, end if stays else reader.get(name, first))
    return spans


def peak_memory(trace: Trace) -> Peak:
    """The most bytes that live at once, and where: the memory that training needs, in trace order."""
    changes = [0] * (len(trace.ops) + 3)
    for name, span in lifetimes(trace).items():
        size_bytes = trace.tensor[name].size_bytes
        changes[span.first + 1] += size_bytes
        changes[span.last + 2] -= size_bytes
    before, *during = list(accumulate(changes))[: len(trace.ops) + 1]
    size_bytes = max(during, default=before)
    return Peak(size_bytes, trace.ops[during.index(size_bytes)].name if during else None)


def saved_for_backward_bytes(trace: Trace) -> int:
    """Bytes that forward keeps for backward: saved tensors of role activation or mask, each counted once."""
    return sum(t.size_bytes for t in trace.tensors if t.saved and t.role in ("activation", "mask"))
