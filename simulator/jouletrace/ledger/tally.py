"""What the ops of a step did and how often, whatever it costs.

Engines return one value for the counts of equal ops; sums are taken once for each of those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jouletrace.mapping.program import Action, OpInfo

__all__ = ["PER_CYCLE", "Accesses", "CountedOp", "CountedStep", "OpKey", "OpTally", "Tally"]

# what costs energy in every cycle of the step
PER_CYCLE: tuple[Action, ...] = (("chip", "static", ""), ("dram", "background", ""), ("board", "idle", ""))

Accesses = tuple[tuple[Action, int], ...]


class CountedOp(Protocol):
    """What the ledger needs of an op that an engine has executed."""

    @property
    def op(self) -> OpInfo: ...
    @property
    def frontier_cycles(self) -> int: ...
    @property
    def counts(self) -> Mapping[Action, int]: ...


class CountedStep(Protocol):
    """What the ledger needs of a step that an engine has executed."""

    @property
    def cycles(self) -> int: ...
    @property
    def ops(self) -> Sequence[CountedOp]: ...


@runtime_checkable
class SharedStep(Protocol):
    """A counted step that also knows which of its ops did the same: accesses, how many ops, and the first of them."""

    @property
    def frontier_cycles(self) -> NDArray[np.int64]: ...
    @property
    def shared(self) -> Sequence[tuple[Mapping[Action, int], int, int]]: ...


class OpKey(NamedTuple):
    """What ops are told apart and grouped by."""

    op: str
    layer: str
    phase: str
    kind: str


class OpTally(NamedTuple):
    """What one op did, and the cycles whose energy it carries."""

    key: OpKey
    accesses: Accesses
    cycles: int

    @property
    def actions(self) -> Accesses:
        """The accesses, then what costs energy per cycle."""
        return self.accesses + tuple([(action, self.cycles) for action in PER_CYCLE]) if self.cycles else self.accesses

    def plus(self, other: OpTally) -> OpTally | None:
        """Both; None if they did not do the same."""
        alike = [action for action, _ in self.actions] == [action for action, _ in other.actions]
        if not alike or bool(self.cycles) != bool(other.cycles):
            return None
        pairs = zip(self.accesses, other.accesses, strict=True)
        return OpTally(self.key, tuple([(action, n + m) for (action, n), (_, m) in pairs]), self.cycles + other.cycles)


@dataclass(frozen=True, eq=False)
class Tally:
    """The ops of a step in program order, and its cycles.

    What was counted by an engine becomes a tally op by op only when somebody looks at one.

    >>> op = OpTally(OpKey("conv:forward", "conv", "forward", "conv"), ((("array", "mac_int8", ""), 10),), cycles=2)
    >>> list(Tally((op, op), cycles=4).times(3).total.values())
    [60, 12, 12, 12]
    """

    given: tuple[OpTally, ...] | CountedStep
    cycles: int

    @staticmethod
    def of(counts: CountedStep) -> Tally:
        """What was counted; what never happened is left out."""
        return Tally(counts, counts.cycles)

    def __reduce__(self) -> tuple[type[Tally], tuple[tuple[OpTally, ...], int]]:
        """Other processes get values, not what an engine holds."""
        return Tally, (self.ops, self.cycles)

    @cached_property
    def ops(self) -> tuple[OpTally, ...]:
        """Every op."""
        if isinstance(self.given, tuple):
            return self.given
        distinct = {id(each): each for each in [op.counts for op in self.given.ops]}
        done = {key: tuple([(action, n) for action, n in each.items() if n]) for key, each in distinct.items()}
        return tuple([
            OpTally(OpKey(c.op.name, c.op.layer, c.op.phase, c.op.kind), done[id(c.counts)], c.frontier_cycles)
            for c in self.given.ops
        ])  # fmt: skip

    @cached_property
    def total(self) -> Mapping[Action, int]:
        """How often everything was done, in order of first appearance."""
        return self._total_of(self.given) if isinstance(self.given, SharedStep) else self._total_of_ops()

    def _total_of(self, counts: SharedStep) -> Mapping[Action, int]:
        total: dict[Action, int] = {}
        nothing: Mapping[Action, int] = {}
        moved = np.flatnonzero(counts.frontier_cycles)
        carrier = int(moved[0]) if len(moved) else -1  # the first op that carries energy per cycle
        for accesses, times, first in [*counts.shared, (nothing, 0, len(counts.frontier_cycles))]:
            if 0 <= carrier < first:
                total.update((action, 0) for action in PER_CYCLE if action not in total)
            for action, n in accesses.items():
                if n:
                    total[action] = total.get(action, 0) + n * times
        for action in PER_CYCLE if carrier >= 0 else ():
            total[action] += self.cycles
        return total

    def _total_of_ops(self) -> Mapping[Action, int]:
        uses = Counter([id(op.accesses) for op in self.ops])
        total: dict[Action, int] = {}
        cycles = 0
        for op in self.ops:
            if times := uses.pop(id(op.accesses), 0):
                for action, n in op.accesses:
                    total[action] = total.get(action, 0) + n * times
            if op.cycles and not cycles:
                total.update((action, 0) for action in PER_CYCLE if action not in total)
            cycles += op.cycles
        for action in PER_CYCLE if cycles else ():
            total[action] += cycles
        return total

    def times(self, n: int) -> Tally:
        """The same, ``n`` times over, of which there is at least one."""
        distinct = {id(op.accesses): op.accesses for op in self.ops}
        scaled = {key: tuple([(action, n * m) for action, m in each]) for key, each in distinct.items()}
        ops = [OpTally(op.key, scaled[id(op.accesses)], n * op.cycles) for op in self.ops]
        return Tally(tuple(ops), n * self.cycles)

    def in_phase(self, phase: str) -> Tally:
        """All ops in a phase of that name."""
        ops = [OpTally(op.key._replace(phase=phase), op.accesses, op.cycles) for op in self.ops]
        return Tally(tuple(ops), self.cycles)

    def plus(self, other: Tally) -> Tally | None:
        """One after the other, ops of one key merged; None if some cannot be: they are twice in one of the steps,
        or did different things.
        """
        merged = {op.key: op for op in self.ops}
        distinct = {op.key: op for op in other.ops}
        if len(merged) < len(self.ops) or len(distinct) < len(other.ops):
            return None
        for key, op in distinct.items():
            before = merged.get(key)
            both = op if before is None else before.plus(op)
            if both is None:
                return None
            merged[key] = both
        return Tally(tuple(merged.values()), self.cycles + other.cycles)
