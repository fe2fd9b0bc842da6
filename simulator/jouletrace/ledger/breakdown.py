"""Where the energy of a step went: one row per op, component, action and tensor role, summed any way.

Energies are integers of 1 aJ, so every grouping adds up to the same total to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, cast

from jouletrace.errors import UsageError, did_you_mean

__all__ = ["GROUPS", "SCOPES", "Breakdown", "Energy", "Row", "Scope"]

Scope = Literal["chip", "chip+dram", "board"]
# Chip: array, buffers, vector unit, host (on an FPGA with processors it is on the chip) and chip static
# power. Chip + DRAM adds the DRAM with its background and refresh; board adds what the board draws when it
# idles.
SCOPES: tuple[Scope, ...] = ("chip", "chip+dram", "board")
_FIRST_SCOPE: dict[str, int] = {"dram": 1, "board": 2}
GROUPS = ("op", "layer", "phase", "kind", "component", "action", "role")


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
        return _FIRST_SCOPE.get(self.component, 0) <= SCOPES.index(scope)


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The energy of a step or a run, in rows in program order.

    >>> row = Row("conv:forward", "conv", "forward", "conv", "array", "mac_int8", "", 10, Energy(30, 20, 50))
    >>> step = Breakdown((row,), cycles=2, clock_hz=10**6)
    >>> (step + step).total().energy_aj, step.times(3).by("layer")
    (60, {'conv': Energy(energy_aj=90, low_aj=60, high_aj=150)})
    """

    rows: tuple[Row, ...]
    cycles: int
    clock_hz: int

    def total(self, scope: Scope = "board") -> Energy:
        """Everything within the scope."""
        return sum((row.energy for row in self.rows if row.within(scope)), Energy())

    def by(self, group: str, scope: Scope = "board") -> dict[str, Energy]:
        """Sums per op, layer, phase, kind, component, action or role, in order of first appearance.

        Raises :class:`UsageError` for any other group.
        """
        if group not in GROUPS:
            raise UsageError(
                f"energy cannot be grouped by {group!r}; groups are {', '.join(GROUPS)}{did_you_mean(group, GROUPS)}"
            )
        sums: dict[str, Energy] = {}
        for row in self.rows:
            if row.within(scope):
                key = cast(str, getattr(row, group))
                sums[key] = sums.get(key, Energy()) + row.energy
        return sums

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
        merged: dict[tuple[str, ...], Row] = {}
        for row in (*self.rows, *other.rows):
            key = (row.op, row.layer, row.phase, row.kind, row.component, row.action, row.role)
            seen = merged.get(key)
            merged[key] = (
                row if seen is None else replace(seen, count=seen.count + row.count, energy=seen.energy + row.energy)
            )
        return Breakdown(tuple(merged.values()), self.cycles + other.cycles, self.clock_hz)

    def times(self, n: int) -> Breakdown:
        """The same, ``n`` times over."""
        rows = (replace(row, count=row.count * n, energy=row.energy.times(n)) for row in self.rows)
        return Breakdown(tuple(rows), self.cycles * n, self.clock_hz)
