"""Counts times prices.

Energy per cycle (chip static power, DRAM background and refresh, the idle board) goes to the op that moved
the end of the step: those cycles add up to the step's, so nothing is left over and nothing is charged
twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from jouletrace.errors import EnergyError
from jouletrace.hardware.energy import PriceList, price_list
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import Breakdown, Energy, Row
from jouletrace.mapping.program import Action, OpInfo

__all__ = ["PER_CYCLE", "CountedOp", "CountedStep", "price"]

# what costs energy in every cycle of the step
PER_CYCLE: tuple[Action, ...] = (("chip", "static", ""), ("dram", "background", ""), ("board", "idle", ""))


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


def price(counts: CountedStep, hardware: Hardware) -> Breakdown:
    """The energy of executed counts on a hardware, exactly.

    Raises :class:`EnergyError` naming every action that the hardware's tables do not price.
    """
    prices = price_list(hardware)
    rows: list[Row] = []
    unpriced: dict[str, None] = {}
    for counted in counts.ops:
        per_cycle = [(action, counted.frontier_cycles) for action in PER_CYCLE]
        for action, n in (*counted.counts.items(), *per_cycle):
            try:
                rows += [_row(counted.op, action, n, prices)] if n else []
            except EnergyError as error:
                unpriced.update(dict.fromkeys(error.problems))
    if unpriced:
        raise EnergyError(list(unpriced))
    return Breakdown(tuple(rows), counts.cycles, hardware.clock_hz)


def _row(op: OpInfo, action: Action, n: int, prices: PriceList) -> Row:
    component, what, role = action
    one = prices.of(component, what)
    energy = Energy(one.energy_aj, one.low_aj, one.high_aj).times(n)
    return Row(op.name, op.layer, op.phase, op.kind, component, what, role, n, energy)
