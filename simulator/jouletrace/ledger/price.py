"""Counts times prices.

Energy per cycle (chip static power, DRAM background and refresh, the idle board) goes to the op that moved
the end of the step: those cycles add up to the step's, so nothing is left over and nothing is charged
twice.
"""

from __future__ import annotations

from jouletrace.errors import EnergyError
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.breakdown import Breakdown
from jouletrace.ledger.rows import PricedRows
from jouletrace.ledger.tally import PER_CYCLE, CountedStep, Tally

__all__ = ["PER_CYCLE", "price"]


def price(counts: CountedStep | Tally, hardware: Hardware) -> Breakdown:
    """The energy of executed counts on a hardware, exactly. Who prices counts many times gives their tally.

    Raises :class:`EnergyError` naming every action that the hardware's tables do not price.
    """
    tally = counts if isinstance(counts, Tally) else Tally.of(counts)
    prices = price_list(hardware)
    unpriced: dict[str, None] = {}
    for component, action, _ in tally.total:
        try:
            prices.of(component, action)
        except EnergyError as error:
            unpriced.update(dict.fromkeys(error.problems))
    if unpriced:
        raise EnergyError(list(unpriced))
    return Breakdown(PricedRows(tally, prices), tally.cycles, hardware.clock_hz)
