"""Figures of a comparison that its terminal report, its files and its picture share."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from jouletrace.comparison.model import Column, Comparison, Spread, saving
from jouletrace.ledger.breakdown import Energy, Scope
from jouletrace.result.run import RunResult
from jouletrace.strategies.base import Published

__all__ = ["IDLE", "PARTS", "energy_by_part", "part_of", "reasons", "rows_published", "saving_over_seeds", "way"]

# What costs energy, in the order in which it is shown.
PARTS = ("array", "buffers", "vector unit", "host", "DRAM", "chip static", "board idle")
_PART_OF = {
    "array": "array", "vector": "vector unit", "host": "host", "dram": "DRAM", "chip": "chip static",
    "board": "board idle",
}  # fmt: skip
# How much more or less the idle board may draw, to see what a saving owes to it.
IDLE = (Fraction(1, 2), Fraction(1), Fraction(2))


def part_of(component: str) -> str:
    """One of :data:`PARTS`; all buffers are one.

    >>> part_of("dram"), part_of("buffer.weights")
    ('DRAM', 'buffers')
    """
    return _PART_OF.get(component, "buffers")


def energy_by_part(result: RunResult, scope: Scope = "board") -> dict[str, Energy]:
    """Energy of each of :data:`PARTS` that is within a scope."""
    found: dict[str, Energy] = {}
    for component, energy in result.by("component", scope).items():
        part = part_of(component)
        found[part] = found.get(part, Energy()) + energy
    return {part: found[part] for part in PARTS if part in found}


def way(comparison: Comparison) -> Iterator[tuple[str, Column]]:
    """Labels and columns from the baseline to the combination; a label says where the hardware changes."""
    before = comparison.baseline
    yield before.label, before
    for column in comparison.waterfall:
        changed = column.hardware != before.hardware
        yield (f"{column.label} @{column.hardware}" if changed else column.label), column
        before = column


def rows_published(comparison: Comparison) -> list[tuple[str, Published]]:
    """Every published number of the strategies compared, and whose it is, each once."""
    return list(dict.fromkeys(pair for column in comparison.columns for pair in column.published))


def reasons(column: Column) -> dict[str, list[str]]:
    """Places that a strategy left alone, by the reason."""
    found: dict[str, list[str]] = {}
    for left in column.left:
        found.setdefault(left.reason, []).append(left.place)
    return found


def saving_over_seeds(comparison: Comparison, column: Column, scope: Scope) -> Spread:
    """What a column saves of the baseline's training, over its seeds."""
    before = comparison.baseline.runs[0].energy(scope).energy_aj
    return column.over_seeds(lambda run: saving(before, run.energy(scope).energy_aj))
