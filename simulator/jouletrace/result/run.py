"""The result of a whole training: cycles and energy, summed exactly over all iterations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from jouletrace.hardware.load import Assumption
from jouletrace.ledger.breakdown import Breakdown, Energy, Scope
from jouletrace.trace.model import Rewrite

__all__ = ["RunOp", "RunResult"]


@dataclass(frozen=True, slots=True)
class RunOp:
    """One op over all iterations in which it ran; ``phase`` is that of the op, or the name of its activity."""

    name: str
    layer: str
    phase: str
    kind: str
    times: int
    macs: int
    bit_operations: int
    frontier_cycles: int

    def __add__(self, other: RunOp) -> RunOp:
        return RunOp(
            self.name, self.layer, self.phase, self.kind, self.times + other.times, self.macs + other.macs,
            self.bit_operations + other.bit_operations, self.frontier_cycles + other.frontier_cycles,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class RunResult:
    """A whole training on one hardware.

    ``iteration_cycles`` is int64[iterations], 0 where the iteration was dropped; ``breakdown`` also holds what is no
    step (loading, evaluation, ...), under the phase of that name. ``peak_memory_bytes`` is that of the largest step
    with everything present, which is what memory is planned for.
    """

    name: str
    hardware: str
    hardware_digest: str
    engine: str
    iterations: int
    executed: int
    batch: int
    micro_batch: int | None
    iteration_cycles: NDArray[np.int64]
    breakdown: Breakdown
    ops: tuple[RunOp, ...]
    peak_memory_bytes: int
    dram_capacity_bytes: int
    rewrites: tuple[Rewrite, ...]
    assumed: tuple[Assumption, ...]
    warnings: tuple[str, ...]

    @property
    def cycles(self) -> int:
        """All iterations and activities, one after the other."""
        return self.breakdown.cycles

    @property
    def seconds(self) -> float:
        return self.breakdown.seconds

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def bit_operations(self) -> int:
        """Σ MAC · b1 · b2 over the widths that the products fetch."""
        return sum(op.bit_operations for op in self.ops)

    @property
    def dram_bytes(self) -> int:
        """Bytes read from and written to DRAM."""
        return sum(self.breakdown.counts.get(("dram", action), 0) for action in _MOVES)

    @property
    def dram_overflow(self) -> bool:
        return self.peak_memory_bytes > self.dram_capacity_bytes

    def energy(self, scope: Scope = "board") -> Energy:
        return self.breakdown.total(scope)

    def energy_at(self, scope: Scope, idle: Fraction) -> int:
        """Energy in aJ if the idle board drew ``idle`` times its power, rounded half to even."""
        board = self.by("component", scope).get("board", Energy())
        return self.energy(scope).energy_aj + round(board.energy_aj * (idle - 1))

    def by(self, group: str, scope: Scope = "board") -> dict[str, Energy]:
        """Energy by ``phase``, ``layer``, ``component``, ``role``, ``kind``, ``action`` or ``op``."""
        return self.breakdown.by(group, scope)

    def macs_of(self, names: frozenset[str], *, inside: bool) -> int:
        """MACs of the ops that are among these names (of all their micro-batches), or of those that are not."""
        return sum(op.macs for op in self.ops if (_MICRO_BATCH.sub("", op.name) in names) == inside)


_MOVES = ("read", "write")
_MICRO_BATCH = re.compile(r"@[0-9]+$")


def merged(ops: Iterator[RunOp]) -> tuple[RunOp, ...]:
    """One entry per name and phase, in order of first appearance."""
    found: dict[tuple[str, str], RunOp] = {}
    for op in ops:
        key = (op.name, op.phase)
        found[key] = found[key] + op if key in found else op
    return tuple(found.values())
