"""Stochastic depth: every batch trains a shorter network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

from jouletrace.strategies.base import Notes, Strategy
from jouletrace.strategies.skipping import BlockSkipping
from jouletrace.trace.model import Trace
from jouletrace.trace.units import Unit, gated

__all__ = ["StochasticDepth", "survival"]


@dataclass(frozen=True)
class StochasticDepth(BlockSkipping):
    """A batch skips the l-th of L residual units with probability ``(l/L)·(1 - survive_last)``, forward and backward.

    Huang et al., ECCV 2016. The decision is drawn outside the step, for the whole batch, and costs nothing. ``skip``
    sets one probability for all units instead, as E2-Train does to compare at equal shares of skipped units. The
    scaling of outputs in evaluation is not counted.
    """

    name: ClassVar[str] = "stochastic-depth"
    source: ClassVar[str] = "G. Huang et al., Deep Networks with Stochastic Depth, ECCV 2016 (arXiv 1603.09382)"

    survive_last: Fraction = Fraction(1, 2)
    skip: Fraction | None = None

    def __post_init__(self) -> None:
        out = self.skip is not None and not 0 <= self.skip < 1
        self.refuse(
            (not 0 <= self.survive_last <= 1, "survive_last has to lie in [0, 1]; it is the probability that the last "
             f"unit runs (got {self.survive_last})"),
            (out, f"skip has to lie in [0, 1), or be none (got {self.skip})"),
        )  # fmt: skip

    def neutral(self) -> Strategy:
        return replace(self, survive_last=Fraction(1), skip=None)

    def chosen(self, units: Sequence[Unit], notes: Notes) -> Sequence[Unit]:
        if all(share == 1 for share in self.shares([unit.name for unit in units])):
            notes.leave(units[0].name, "no unit is ever skipped")
            return ()
        return units

    def shares(self, units: Sequence[str]) -> tuple[Fraction, ...]:
        if self.skip is not None:
            return (1 - self.skip,) * len(units)
        return survival(len(units), self.survive_last)

    def equipped(self, trace: Trace, units: Sequence[Unit]) -> Trace:
        return gated(trace, units)


def survival(units: int, last: Fraction) -> tuple[Fraction, ...]:
    """With which probability each of so many units runs, decaying linearly to that of the last.

    >>> sum(survival(54, Fraction(1, 2))) == Fraction(3 * 54 - 1, 4)
    True
    """
    return tuple(1 - Fraction(place, units) * (1 - last) for place in range(1, units + 1))
