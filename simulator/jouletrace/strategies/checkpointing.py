"""Gradient checkpointing: activations are computed twice instead of being kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import isqrt
from typing import ClassVar, Literal

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Notes, Strategy
from jouletrace.trace.model import Norm, Op, Rng, Sync, Tensor, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.units import residual_units

__all__ = ["GradientCheckpointing"]

_AGAIN = "@recompute"


@dataclass(frozen=True)
class GradientCheckpointing(Strategy):
    """The forward pass keeps what enters each segment; the rest of a segment is computed again before its backward.

    Chen et al., 2016. ``every=unit`` ends a segment with every residual unit. ``every=share`` cuts the forward pass
    into ``segments`` parts that keep about equally many bytes, where as few tensors as possible cross; none stands
    for the square root of the number of matrix products. The last segment is not computed again.

    Recomputed ops are called ``name@recompute`` and are of phase forward. What no backward op needs is not
    computed again. Random masks and the statistics of norms (two numbers per channel or row) are kept, so that
    results are the same and running statistics are updated once.
    """

    name: ClassVar[str] = "checkpointing"
    source: ClassVar[str] = "T. Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016 (arXiv 1604.06174)"
    stage: ClassVar[str] = "layout"
    claims: ClassVar[frozenset[str]] = frozenset({"kept activations"})
    changes: ClassVar[frozenset[str]] = frozenset({"op.reads", "op.writes", "tensor.saved"})

    every: Literal["share", "unit"] = "share"
    segments: int | None = None

    def __post_init__(self) -> None:
        wrong = self.segments is not None and self.segments < 1
        self.refuse(
            (wrong, f"segments has to be at least 1, or none (got {self.segments})"),
            (self.every == "unit" and self.segments is not None, "segments cannot be set where every unit is one; "
             "leave out segments or every"),
        )  # fmt: skip

    def neutral(self) -> Strategy:
        return replace(self, every="share", segments=1)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if any(op.name.endswith(_AGAIN) for op in trace.ops):
            raise RewriteError(f"{self.name}: {trace.header.name} has checkpoints already; apply it once")
        if any(op.gate is not None and op.gate.unit == "block" for op in trace.ops):
            raise RewriteError(f"{self.name}: units of {trace.header.name} may be skipped, and what a skipped unit "
                               "would compute again is not modelled; leave one of the two out")  # fmt: skip
        forward = [op for op in trace.ops if op.phase == "forward"]
        cuts = self._cuts(trace, forward, notes)
        if not cuts:
            return trace
        after = _recomputed(trace, [forward[start:end] for start, end in pairwise([0, *cuts])])
        if not (again := [op for op in after.ops if op.name.endswith(_AGAIN)]):
            notes.leave(trace.header.name, "the backward pass needs nothing that a segment would compute again")
            return trace
        notes.match(trace.header.name, f"{len(cuts) + 1} segments, {len(again)} ops computed again")
        notes.added_macs += sum(op.macs for op in again)
        return after

    def _cuts(self, trace: Trace, forward: Sequence[Op], notes: Notes) -> list[int]:
        """Positions in the forward pass before which a segment ends, ascending."""
        crossing = _crossing(trace, forward)
        if self.every == "unit":
            place = {name: i for i, op in enumerate(forward) for name in op.writes}
            ends = [place[unit.output] + 1 for unit in residual_units(trace)]
            if not ends:
                notes.leave(trace.header.name, "it has no residual unit that could be a segment")
            return sorted({end for end in ends if end < len(forward)})
        wanted = self.segments or isqrt(sum(op.macs > 0 for op in forward))
        if wanted <= 1:
            notes.leave(trace.header.name, "it is a single segment")
            return []
        fewest = min(crossing[1:-1], default=0)
        possible = [i for i in range(1, len(forward)) if crossing[i] == fewest]
        saved = [sum(trace.tensor[name].size_bytes for name in op.writes if trace.tensor[name].saved) for op in forward]
        before = [0, *accumulate(saved)]
        cuts: set[int] = set()
        for k in range(1, wanted):
            aim = before[-1] * k
            free = [i for i in possible if i not in cuts]
            if free:
                cuts.add(min(free, key=lambda i: (abs(before[i] * wanted - aim), i)))
        if len(cuts) < wanted - 1:
            notes.leave(trace.header.name, f"there are {len(possible)} places to cut it, for {wanted} segments")
        return sorted(cuts)


def _crossing(trace: Trace, forward: Sequence[Op]) -> list[int]:
    """For every position of the forward pass, and its end, what a cut there costs.

    That is the number of tensors written before and read behind it; those that the backward pass does not read anyway
    count twice.
    """
    change = [0] * (len(forward) + 2)
    last = {name: i for i, op in enumerate(forward) for name in op.reads}
    for i, op in enumerate(forward):
        for tensor in map(trace.tensor.__getitem__, op.writes):
            if last.get(tensor.name, i) > i and tensor.role == "activation":
                change[i + 1] += 1 if tensor.saved else 2
                change[last[tensor.name] + 1] -= 1 if tensor.saved else 2
    return list(accumulate(change))[: len(forward) + 1]


def _recomputed(trace: Trace, segments: Sequence[Sequence[Op]]) -> Trace:
    """The step with copies of the ops of these segments before the first backward op that needs them."""
    part = {op.name: k for k, ops in enumerate(segments) for op in ops}
    home = {name: k for k, ops in enumerate(segments) for op in ops if _repeats(trace, op) for name in _results(op)}
    for op in trace.ops:  # what another segment reads is kept
        if op.phase == "forward":
            for name in op.reads:
                if name in home and home[name] != part.get(op.name):
                    del home[name]
    ops: list[Op] = []
    done: set[int] = set()
    for op in trace.ops:
        if op.phase.startswith("backward"):
            for k in sorted({home[name] for name in op.reads if name in home} - done):
                start = ops[-1].name
                ops += [_again(trace, each, home, start) for each in segments[k] if _repeats(trace, each)]
                done.add(k)
            op = replace(op, reads=tuple(f"{name}{_AGAIN}" if name in home else name for name in op.reads))
        ops.append(op)
    names = {name for op in ops for name in op.writes}
    copies = (replace(t, name=f"{t.name}{_AGAIN}", saved=False) for t in trace.tensors if f"{t.name}{_AGAIN}" in names)
    after = prune(replace(trace, tensors=(*trace.tensors, *copies), ops=tuple(ops)))
    return replace(after, tensors=tuple(_marked(t, after) for t in after.tensors))


def _results(op: Op) -> tuple[str, ...]:
    """What an op computes again: of a norm its result, because its statistics are kept."""
    return op.writes[:1] if isinstance(op.nest, Norm) else op.writes


def _repeats(trace: Trace, op: Op) -> bool:
    """May this op run twice? Draws, decisions and new versions of what lives on may not."""
    if isinstance(op.nest, Rng | Sync):
        return False
    return all(trace.tensor[name].role in ("activation", "mask") for name in _results(op))


def _again(trace: Trace, op: Op, home: Mapping[str, int], start: str) -> Op:
    """The copy of an op, which begins no earlier than the backward pass gets there."""
    reads = op.reads
    if isinstance(op.nest, Norm) and len(op.writes) > 1:
        running = [name for name in op.reads if trace.tensor[name].role == "buffer"]
        statistics = op.writes[1 : len(op.writes) - len(running)]
        reads = (*(name for name in op.reads if name not in running), *statistics)
    inner = [name in home for name in reads]  # what is read of other segments is kept, and has no home
    return replace(
        op, name=f"{op.name}{_AGAIN}", after=() if any(inner) else (start,),
        reads=tuple(f"{name}{_AGAIN}" if mine else name for name, mine in zip(reads, inner, strict=True)),
        writes=tuple(f"{name}{_AGAIN}" for name in _results(op)),
    )  # fmt: skip


def _marked(tensor: Tensor, after: Trace) -> Tensor:
    """Saved is what the backward pass or a second computation reads."""
    readers = after.readers.get(tensor.name, ())
    again = any(op.name.endswith(_AGAIN) for op in readers)
    if tensor.name.endswith(_AGAIN):
        return tensor
    saved = again or (tensor.saved and any(op.phase.startswith("backward") for op in readers))
    return tensor if saved == tensor.saved else replace(tensor, saved=saved)
