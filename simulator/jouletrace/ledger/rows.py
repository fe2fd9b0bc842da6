"""Rows of the ledger: how often an op did something with a tensor of some role, and what that cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, overload

from jouletrace.hardware.energy import Price
from jouletrace.ledger.tally import PER_CYCLE, Accesses, OpKey, Tally
from jouletrace.mapping.program import Action

__all__ = ["SCOPES", "Energy", "PricedRows", "Row", "Scope", "first_scope"]

Scope = Literal["chip", "chip+dram", "board"]
# Chip: array, buffers, vector unit, host (on an FPGA with processors it is on the chip) and chip static
# power. Chip + DRAM adds the DRAM with its background and refresh; board adds what the board draws when it
# idles.
SCOPES: tuple[Scope, ...] = ("chip", "chip+dram", "board")
_FIRST_SCOPE: dict[str, int] = {"dram": 1, "board": 2}


def first_scope(component: str) -> int:
    """The place in ``SCOPES`` of the narrowest scope that holds a component; all after it hold it too."""
    return _FIRST_SCOPE.get(component, 0)


@dataclass(frozen=True, slots=True)
class Energy:
    """An energy between its bounds, in aJ."""

    energy_aj: int = 0
    low_aj: int = 0
    high_aj: int = 0

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.energy_aj + other.energy_aj, self.low_aj + other.low_aj, self.high_aj + other.high_aj)

    def times(self, n: int) -> Energy:
        return Energy(self.energy_aj * n, self.low_aj * n, self.high_aj * n)


@dataclass(frozen=True, slots=True)
class Row:
    """``count`` actions of one kind in one op and their cost; ``role`` is empty where no tensor is meant."""

    op: str
    layer: str
    phase: str
    kind: str
    component: str
    action: str
    role: str
    count: int
    energy: Energy

    def within(self, scope: Scope) -> bool:
        return first_scope(self.component) <= SCOPES.index(scope)


class PricedRows(Sequence[Row]):
    """The rows of a tally at some prices. Sums need no row; rows are made when somebody looks at one.

    ``prices`` are by (component, action), and price everything in the tally.
    """

    def __init__(self, tally: Tally, prices: Mapping[tuple[str, str], Price]) -> None:
        self.tally = tally
        self.prices = prices

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        known: dict[tuple[Action, int], Energy] = {}

        def energy(done: tuple[Action, int]) -> Energy:
            found = known.get(done)
            if found is None:
                found = known[done] = self._energy(*done)
            return found

        return tuple([Row(*op.key, *done[0], done[1], energy(done)) for op in self.tally.ops for done in op.actions])

    def _energy(self, action: Action, n: int) -> Energy:
        one = self.prices[action[0], action[1]]
        return Energy(one.energy_aj * n, one.low_aj * n, one.high_aj * n)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self._rows[index]

    def __len__(self) -> int:
        return sum([len(op.accesses) + (len(PER_CYCLE) if op.cycles else 0) for op in self.tally.ops])

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PricedRows):
            return self._rows == other._rows
        return self._rows == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._rows)

    def __repr__(self) -> str:
        return repr(self._rows)

    def sums(self) -> dict[Action, tuple[int, Energy]]:
        """Count and energy of every action, in order of first appearance."""
        return {action: (n, self._energy(action, n)) for action, n in self.tally.total.items()}

    def costs(self) -> Iterator[tuple[OpKey, int, Energy]]:
        """The energy of each op in program order, in parts of one ``first_scope``."""
        known: dict[int, dict[int, Energy]] = {}
        carried = PER_CYCLE[0] in self.tally.total
        per_cycle = self._parts(tuple([(action, 1) for action in PER_CYCLE])) if carried else {}
        for key, accesses, cycles in self.tally.ops:
            parts = known.get(id(accesses))
            if parts is None:
                parts = known[id(accesses)] = self._parts(accesses)
            for first, energy in parts.items():
                yield key, first, energy
            if cycles:
                for first, energy in per_cycle.items():
                    yield key, first, energy.times(cycles)

    def _parts(self, accesses: Accesses) -> dict[int, Energy]:
        parts: dict[int, Energy] = {}
        for action, n in accesses:
            first = first_scope(action[0])
            parts[first] = parts.get(first, Energy()) + self._energy(action, n)
        return parts

    def times(self, n: int) -> PricedRows:
        """The same, ``n`` times over, of which there is at least one."""
        return PricedRows(self.tally.times(n), self.prices)

    def in_phase(self, phase: str) -> PricedRows:
        """The same with all ops in a phase of that name."""
        return PricedRows(self.tally.in_phase(phase), self.prices)

    def plus(self, other: PricedRows) -> PricedRows | None:
        """One after the other; None if rows have to be merged one by one, or are at other prices."""
        if self.prices is not other.prices and self.prices != other.prices:
            return None
        both = self.tally.plus(other.tally)
        return None if both is None else PricedRows(both, self.prices)
