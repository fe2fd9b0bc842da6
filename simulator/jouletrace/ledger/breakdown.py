"""Where the energy of a step went: one row per op, component, action and tensor role, summed any way.

Energies are integers of 1 aJ, so every grouping adds up to the same total to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from jouletrace.errors import UsageError, did_you_mean
from jouletrace.ledger.rows import SCOPES, Energy, PricedRows, Row, Scope, first_scope
from jouletrace.ledger.tally import OpKey, Tally
from jouletrace.mapping.program import Action

__all__ = ["GROUPS", "SCOPES", "Breakdown", "Energy", "Row", "Scope"]

_OF_OPS = OpKey._fields
_OF_ACTIONS = ("component", "action", "role")
GROUPS = (*_OF_OPS, *_OF_ACTIONS)


@dataclass(frozen=True)
class Breakdown:
    """The energy of a step or a run, in rows in program order.

    >>> row = Row("conv:forward", "conv", "forward", "conv", "array", "mac_int8", "", 10, Energy(30, 20, 50))
    >>> step = Breakdown((row,), cycles=2, clock_hz=10**6)
    >>> (step + step).total().energy_aj, step.times(3).by("layer")
    (60, {'conv': Energy(energy_aj=90, low_aj=60, high_aj=150)})
    """

    rows: Sequence[Row]
    cycles: int
    clock_hz: int

    @cached_property
    def _sums(self) -> Mapping[Action, tuple[int, Energy]]:
        """Count and energy of every action, in order of first appearance."""
        if isinstance(self.rows, PricedRows):
            return self.rows.sums()
        sums: dict[Action, tuple[int, Energy]] = {}
        for row in self.rows:
            action = (row.component, row.action, row.role)
            count, energy = sums.get(action, (0, Energy()))
            sums[action] = (count + row.count, energy + row.energy)
        return sums

    def _costs(self) -> Iterable[tuple[OpKey, int, Energy]]:
        """Energies of ops in program order, each of one ``first_scope``."""
        if isinstance(self.rows, PricedRows):
            return self.rows.costs()
        return (
            (OpKey(row.op, row.layer, row.phase, row.kind), first_scope(row.component), row.energy) for row in self.rows
        )

    @cached_property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """How often everything was done, by component and action; cycles for what costs energy per cycle."""
        counts: dict[tuple[str, str], int] = {}
        for (component, action, _), (count, _) in self._sums.items():
            counts[component, action] = counts.get((component, action), 0) + count
        return counts

    def total(self, scope: Scope = "board") -> Energy:
        """Everything within the scope."""
        return sum(self.by("component", scope).values(), Energy())

    def by(self, group: str, scope: Scope = "board") -> dict[str, Energy]:
        """Sums per op, layer, phase, kind, component, action or role, in order of first appearance.

        Raises :class:`UsageError` for any other group.
        """
        last = SCOPES.index(scope)
        if group in _OF_OPS:
            of = _OF_OPS.index(group)
            return _summed((key[of], energy) for key, first, energy in self._costs() if first <= last)
        if group in _OF_ACTIONS:
            of = _OF_ACTIONS.index(group)
            return _summed((key[of], energy) for key, (_, energy) in self._sums.items() if first_scope(key[0]) <= last)
        raise UsageError(
            f"energy cannot be grouped by {group!r}; groups are {', '.join(GROUPS)}{did_you_mean(group, GROUPS)}"
        )

    @property
    def seconds(self) -> float:
        return float(Fraction(self.cycles, self.clock_hz))

    def mean_power_w(self, scope: Scope = "board") -> float:
        """Energy over time, in watts; 0 for an empty step."""
        if not self.cycles:
            return 0.0
        return float(Fraction(self.total(scope).energy_aj * self.clock_hz, self.cycles * 10**18))

    def energy_per_sample_pj(self, samples: int, scope: Scope = "board") -> float:
        """Energy of one of the batch's samples, in picojoules."""
        return float(Fraction(self.total(scope).energy_aj, samples * 10**6))

    def __add__(self, other: Breakdown) -> Breakdown:
        """One after the other, on the same clock; equal rows are merged."""
        if self.clock_hz != other.clock_hz:
            raise UsageError(
                f"energies at {self.clock_hz} Hz and {other.clock_hz} Hz cannot be added: "
                "their cycles differ in length; add results of one hardware"
            )
        return Breakdown(_joined(self.rows, other.rows), self.cycles + other.cycles, self.clock_hz)

    def times(self, n: int) -> Breakdown:
        """The same, ``n`` times over."""
        if isinstance(self.rows, PricedRows) and n:
            return Breakdown(self.rows.times(n), self.cycles * n, self.clock_hz)
        rows = (replace(row, count=row.count * n, energy=row.energy.times(n)) for row in self.rows)
        return Breakdown(tuple(rows), self.cycles * n, self.clock_hz)

    def in_phase(self, phase: str) -> Breakdown:
        """The same with all ops in a phase of that name."""
        if isinstance(self.rows, PricedRows):
            return replace(self, rows=self.rows.in_phase(phase))
        return replace(self, rows=tuple(replace(row, phase=phase) for row in self.rows))


def _summed(parts: Iterable[tuple[str, Energy]]) -> dict[str, Energy]:
    sums: dict[str, Energy] = {}
    for key, energy in parts:
        sums[key] = sums[key] + energy if key in sums else energy
    return sums


def _joined(first: Sequence[Row], then: Sequence[Row]) -> Sequence[Row]:
    """All rows, equal ones merged."""
    if isinstance(then, PricedRows):
        before = first or PricedRows(Tally((), 0), then.prices)
        both = before.plus(then) if isinstance(before, PricedRows) else None
        if both is not None:
            return both
    merged: dict[tuple[str, ...], Row] = {}
    for row in (*first, *then):
        key = (row.op, row.layer, row.phase, row.kind, row.component, row.action, row.role)
        seen = merged.get(key)
        merged[key] = (
            row if seen is None else replace(seen, count=seen.count + row.count, energy=seen.energy + row.energy)
        )
    return tuple(merged.values())
