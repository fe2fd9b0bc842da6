"""The energy of one access to an on-chip memory, between the memories that a table knows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from jouletrace.errors import EnergyError
from jouletrace.hardware.dram import Band
from jouletrace.hardware.spec import Buffer, Certainty, EnergyTable, SramPoint
from jouletrace.units import show_bytes

__all__ = ["EXTRAPOLATED", "access_energy"]

EXTRAPOLATED = "scaled by the square root of the size"
_NEAR = 2  # times beyond, and still about the same memory
_BEYOND = 16  # times beyond the smallest or largest memory of a table
_STRENGTH: tuple[Certainty, ...] = ("seen", "code", "derived", "fitted", "recalled", "assumed", "user")


def access_energy(table: EnergyTable, name: str, buffer: Buffer) -> tuple[Band, str, Certainty]:
    """One access to one copy of a buffer: energy in aJ, source and certainty.

    Energies lie on straight lines between the table's memories, in the logarithms of size and energy. A
    spline would be smoother, but then a larger entry can lower a price beside it. Beyond the table's memories
    energy grows with the square root of the size, for at most a factor of 16 in size; further off,
    :class:`EnergyError`.
    """
    points = sorted(table.sram, key=lambda point: point.size_bytes)
    size, width = buffer.size_bytes, buffer.word_bits
    if not points:
        raise EnergyError(
            f"buffers.{name}: needs sram points, which energy table {table.name!r} has none of; "
            "add at least one, or choose another table (--set energy.buffers=NAME)"
        )
    smallest, largest = points[0].size_bytes, points[-1].size_bytes
    if size * _BEYOND < smallest or size > largest * _BEYOND:
        raise EnergyError(
            f"buffers.{name}: {show_bytes(size)} lies more than {_BEYOND} times beyond the memories of "
            f"energy table {table.name!r} ({show_bytes(smallest)} to {show_bytes(largest)}); "
            "add a point of about its size with a source"
        )
    below = max((p for p in points if p.size_bytes <= size), key=lambda p: p.size_bytes, default=points[0])
    above = next((p for p in points if p.size_bytes >= size), points[-1])
    band = Band(*(_energy(size, below, low, above, high, width) for low, high in _ends(below, above)))
    certainty: Certainty = max(("derived", below.certainty, above.certainty), key=_STRENGTH.index)
    if below is not above:
        how = f"interpolated between {show_bytes(below.size_bytes)} and {show_bytes(above.size_bytes)}"
    elif size != below.size_bytes:
        near = below.size_bytes <= _NEAR * size and size <= _NEAR * below.size_bytes
        how = "a little beyond" if near else f"{EXTRAPOLATED} from"
        how, certainty = f"{how} {show_bytes(below.size_bytes)}", "assumed"
    elif width != below.width_bits:
        how = f"scaled from {below.width_bits} bit"
    else:
        return band, f"{table.name}: {below.source}", below.certainty
    return band, f"{table.name}: {how}, {width} bit; {below.source}", certainty


def _ends(below: SramPoint, above: SramPoint) -> tuple[tuple[int, int], ...]:
    return (
        (below.low_aj, above.low_aj),
        (below.energy_aj, above.energy_aj),
        (below.high_aj, above.high_aj),
    )


def _energy(size: int, below: SramPoint, low_aj: int, above: SramPoint, high_aj: int, width: int) -> Fraction:
    first = _at_width(low_aj, below.width_bits, width)
    last = _at_width(high_aj, above.width_bits, width)
    if size in (below.size_bytes, above.size_bytes):
        return first if size == below.size_bytes else last
    if not (first and last):
        return min(first, last)  # a price of nothing has no logarithm
    if below is above:
        return Fraction(float(first) * math.sqrt(size / below.size_bytes))
    return _between(size, (below.size_bytes, above.size_bytes), (first, last))


def _between(size: int, sizes: tuple[int, int], energies: tuple[Fraction, Fraction]) -> Fraction:
    logarithms = [math.log(float(energy)) for energy in energies]
    return Fraction(math.exp(float(np.interp(math.log(size), list(map(math.log, sizes)), logarithms))))


def _at_width(energy_aj: int, have_bits: int, want_bits: int) -> Fraction:
    """Energy at another width: 0.7 of it grows with the width (the factor of Accelergy's CACTI plug-in)."""
    return energy_aj * (Fraction(7 * want_bits, have_bits) + 3) / 10
