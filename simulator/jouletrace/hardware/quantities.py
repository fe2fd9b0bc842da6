"""Quantities as fields of a spec: text with a unit in YAML, an integer inside, exact text again in JSON."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from jouletrace.units import UNITS, parse_quantity, round_half_even

__all__ = [
    "Bandwidth", "ClockHz", "CurrentNa", "EnergyAj", "PositiveAj", "PowerAw", "Ratio", "SizeBytes", "TimePs",
    "VoltageUv", "WidthBits",
]  # fmt: skip

# dimension -> (unit of the integer inside, as text; the largest number that makes sense)
_INSIDE: dict[str, tuple[str, int]] = {
    "energy_aj": (" aJ", 10**18),
    "clock_hz": (" Hz", 10**11),
    "size_bytes": (" B", 2**50),
    "size_bits": (" bit", 2**24),
    "bandwidth_bytes_per_second": (" B/s", 10**17),
    "power_aw": ("e-18 W", 10**24),
    "current_na": (" nA", 10**12),
    "voltage_uv": (" uV", 10**9),
    "time_ps": (" ps", 10**12),
}
_WHOLE = ("size_bytes", "size_bits")


def _quantity(dimension: str, *, positive: bool = True):
    unit, largest = _INSIDE[dimension]

    def read(value: object) -> int:
        exact = parse_quantity(value, dimension)
        number = round_half_even(exact)
        if exact < 0 or (positive and number == 0):
            raise ValueError(f"must {'be greater than 0' if positive else 'not be negative'} (got {value!r})")
        if number > largest:
            raise ValueError(f"must be at most {largest}{unit} (got {value!r})")
        if dimension in _WHOLE and exact != number:
            raise ValueError(f"must be a whole number of {unit.strip()} (got {value!r})")
        return number

    units = ", ".join(UNITS[dimension])
    return (
        BeforeValidator(read),
        PlainSerializer(lambda number: f"{number}{unit}", return_type=str, when_used="json"),
        WithJsonSchema({"type": "string", "description": f"a number with a unit: {units}"}),
    )


ClockHz = Annotated[int, *_quantity("clock_hz")]
SizeBytes = Annotated[int, *_quantity("size_bytes")]
WidthBits = Annotated[int, *_quantity("size_bits")]
Bandwidth = Annotated[int, *_quantity("bandwidth_bytes_per_second")]
EnergyAj = Annotated[int, *_quantity("energy_aj", positive=False)]
PositiveAj = Annotated[int, *_quantity("energy_aj")]
PowerAw = Annotated[int, *_quantity("power_aw", positive=False)]
CurrentNa = Annotated[int, *_quantity("current_na", positive=False)]
VoltageUv = Annotated[int, *_quantity("voltage_uv")]
TimePs = Annotated[int, *_quantity("time_ps")]

# Bounded in length and exponent: Fraction("1e999999999") would compute until the memory is full.
_RATIO = re.compile(r"[0-9]{1,12}(?:/[0-9]{1,12}|(?:\.[0-9]{1,18})?(?:[eE][-+]?[0-9]{1,2})?)")


def _ratio(value: object) -> Fraction:
    number = isinstance(value, int | float | str) and not isinstance(value, bool)
    if not number or not _RATIO.fullmatch(str(value)):
        raise ValueError(f"must be a number of at least 0, or a ratio such as '3/4' (got {value!r})")
    try:
        return Fraction(str(value))
    except ZeroDivisionError:
        raise ValueError(f"divides by 0 (got {value!r})") from None


Ratio = Annotated[
    Fraction,
    BeforeValidator(_ratio),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]
