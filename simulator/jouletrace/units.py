"""Quantities at the YAML edge: ``"64 KiB"``, ``"1.1 pJ"``, ``"100 MHz"``.

Inside the package a quantity is an integer whose name carries the unit (``energy_aj``,
``size_bytes``, ``clock_hz``, ``cycles``). Text becomes such an integer once, at load, by exact
decimal arithmetic; a bare number is refused, because its unit would be a guess.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["UNITS", "parse_quantity", "round_half_even", "show_bytes", "show_energy", "show_power"]

_SI = {"f": -15, "p": -12, "n": -9, "u": -6, "µ": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12}


def _si(unit: str, base: int, prefixes: str) -> dict[str, Fraction]:
    """Unit names with SI prefixes, as multiples of 10**base units."""
    return {
        (p + unit): Fraction(10) ** (_SI[p] - base)
        for p in ("" if c == "_" else c for c in prefixes)
    }


# dimension -> {unit: how many of the internal unit}
UNITS: dict[str, dict[str, Fraction]] = {
    "energy_aj": {"aJ": Fraction(1)} | _si("J", -18, "fpnumµ_k"),
    "clock_hz": _si("Hz", 0, "_kMG"),
    "size_bytes": {"B": Fraction(1)}
    | {p + "B": Fraction(1000) ** (i + 1) for i, p in enumerate("kMG")}
    | {p + "iB": Fraction(1024) ** (i + 1) for i, p in enumerate("KMG")},
    "size_bits": {"b": Fraction(1), "bit": Fraction(1), "bits": Fraction(1), "Kib": Fraction(1024)},
    "bandwidth_bytes_per_second": {
        p + "B/s": Fraction(1000) ** i for i, p in enumerate(["", "k", "M", "G"])
    },
    "power_aw": _si("W", -18, "_numµk"),
    "current_na": _si("A", -9, "nuµm_"),
    "voltage_uv": _si("V", -6, "mµu_"),
    "time_ps": _si("s", -12, "pnuµm_"),
}

_QUANTITY = re.compile(r"\s*([-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?)\s*([^\s0-9]\S*)?\s*")


def parse_quantity(text: object, dimension: str) -> Fraction:
    """Reads one quantity as an exact multiple of the internal unit of ``dimension``.

    Raises ``ValueError`` with a full sentence if the unit is missing or of another dimension.

    >>> parse_quantity("64 KiB", "size_bytes")
    Fraction(65536, 1)
    >>> parse_quantity("1.1 pJ", "energy_aj")
    Fraction(1100000, 1)
    >>> parse_quantity("100", "clock_hz")
    Traceback (most recent call last):
    ...
    ValueError: needs a unit, one of Hz, kHz, MHz, GHz (got '100')
    """
    units = UNITS[dimension]
    choices = ", ".join(units)
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) and len(text) <= 64 else None
    if match is None:
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f"needs a unit, one of {choices} (got {text!r})")
        raise ValueError(f"is not a quantity such as '1.5 {next(iter(units))}' (got {text!r})")
    number, unit = match.groups()
    if unit is None:
        raise ValueError(f"needs a unit, one of {choices} (got {text!r})")
    if unit not in units:
        raise ValueError(f"has the unit {unit!r}; one of {choices} is needed (got {text!r})")
    return Fraction(number) * units[unit]


def round_half_even(value: Fraction) -> int:
    """The one rounding of the project: to the nearest integer, ties to even, at load."""
    return round(value)


def _scaled(value: float, unit: str, steps: tuple[tuple[float, str], ...]) -> str:
    for size, prefix in steps:
        if abs(value) >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def show_energy(energy_aj: int) -> str:
    """Energy for people.

    >>> show_energy(1_500_000_000_000_000_000)
    '1.5 J'
    >>> show_energy(2_500_000)
    '2.5 pJ'
    """
    steps = ((1e24, "M"), (1e21, "k"), (1e18, ""), (1e15, "m"), (1e12, "µ"), (1e9, "n"), (1e6, "p"), (1e3, "f"))
    for size, prefix in steps:
        if abs(energy_aj) >= size:
            return f"{energy_aj / int(size):.4g} {prefix}J"
    return f"{energy_aj} aJ"


def show_bytes(size_bytes: int) -> str:
    """
    >>> show_bytes(721_500_000)
    '721.5 MB'
    """
    return _scaled(size_bytes, "B", ((1e9, "G"), (1e6, "M"), (1e3, "k")))


def show_power(power_w: float) -> str:
    """
    >>> show_power(0.0123)
    '12.3 mW'
    """
    return _scaled(power_w * 1e6, "W", ((1e6, ""), (1e3, "m"), (1.0, "µ")))
