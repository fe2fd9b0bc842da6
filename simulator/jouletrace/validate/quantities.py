"""What a row may state, in which units, and how it follows from a replay.

Values are exact fractions in the base unit of the quantity: cycles, seconds, joules, watts, bytes, plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from jouletrace.errors import UsageError, did_you_mean
from jouletrace.ledger.breakdown import SCOPES, Scope
from jouletrace.trace.counting import FULL_WIDTH

__all__ = ["QUANTITIES", "Group", "Part", "Quantity", "Simulated", "quantity", "unit_factor"]

# Errors of these are reported apart.
Group = Literal["time", "power", "energy", "traffic", "count"]


@dataclass(frozen=True, slots=True)
class Part:
    """Actions of one kind in one component, with the narrowest scope that holds them.

    ``access_bits`` is what one access of a buffer or of the DRAM moves; 0 for any other action.
    """

    component: str
    action: str
    scope: Scope
    count: int
    access_bits: int
    energy_aj: int


@dataclass(frozen=True, slots=True)
class Simulated:
    """What one replay (or, without parts, one count) gives; samples are those of all nominal iterations.

    ``clock_hz`` is a fraction where a pace was fitted. ``array_cycles`` are those in which the array works, None of
    whole trainings. ``normalised_to`` is what energies are multiples of (1 pJ each), None where they are joules.
    """

    samples: int
    macs: int
    bit_operations: int
    cycles: int = 0
    clock_hz: int | Fraction = 1
    parts: tuple[Part, ...] = ()
    array_cycles: int | None = None
    normalised_to: str | None = None

    @property
    def seconds(self) -> Fraction:
        return Fraction(self.cycles, self.clock_hz)

    def chosen(self, scope: Scope, components: tuple[str, ...]) -> tuple[Part, ...]:
        """Parts within a scope, or those of some components: ``array``, or one action as in ``array:mac_int16``.

        Raises :class:`UsageError` for a component or an action that there is none of.
        """
        there = sorted({part.component for part in self.parts})
        known = [*there, *sorted({f"{part.component}:{part.action}" for part in self.parts})]
        if unknown := [name for name in components if name not in known]:
            raise UsageError([f"no component {name!r} did anything here{did_you_mean(name, known)}; there are "
                              f"{', '.join(there)}" for name in unknown])  # fmt: skip
        widest = SCOPES.index(scope)
        return tuple(
            part for part in self.parts
            if (not {part.component, f"{part.component}:{part.action}"}.isdisjoint(components) if components
                else SCOPES.index(part.scope) <= widest)
        )  # fmt: skip

    def per(self, unit: str | None) -> Fraction:
        """What a value is divided by."""
        of = {None: 1, "sample": self.samples, "mac": self.macs,
              "effective_mac": Fraction(self.bit_operations, FULL_WIDTH**2)}  # fmt: skip
        return Fraction(of[unit])


@dataclass(frozen=True, slots=True)
class Quantity:
    """``of`` takes what was simulated, the scope and the components; ``replayed`` is false for what is only counted."""

    group: Group
    meaning: str
    units: Mapping[str, Fraction]
    of: Callable[[Simulated, Scope, tuple[str, ...]], Fraction]
    replayed: bool = True


def _scaled(unit: str, **prefixes: int) -> dict[str, Fraction]:
    """``unit`` with prefixes, as powers of ten of the base unit; ``_`` is none."""
    return {("" if p == "_" else p) + unit: Fraction(10) ** n for p, n in prefixes.items()}


_SECONDS = {"s": Fraction(1), "ms": Fraction(1, 1000), "us": Fraction(1, 10**6), "min": Fraction(60)}
_JOULES = _scaled("J", p=-12, n=-9, u=-6, m=-3, _=0, k=3)
_BYTES = _scaled("B", _=0, k=3, M=6, G=9) | {f"{p}iB": Fraction(1024) ** n for n, p in enumerate("KMG", start=1)}
_PLAIN = {"count": Fraction(1)}
# Actions that move bytes of the DRAM.
_MOVES = ("read", "write")


def _energy(s: Simulated, scope: Scope, components: tuple[str, ...]) -> Fraction:
    return Fraction(sum(part.energy_aj for part in s.chosen(scope, components)), 10**18)


def _power(s: Simulated, scope: Scope, components: tuple[str, ...]) -> Fraction:
    return _energy(s, scope, components) / s.seconds


def _normalised(s: Simulated, scope: Scope, components: tuple[str, ...]) -> Fraction:
    """1 pJ stands for 1 of what the table's prices are multiples of."""
    return _energy(s, scope, components) * 10**12


def _array_seconds(s: Simulated, _: Scope, __: tuple[str, ...]) -> Fraction:
    if s.array_cycles is None:
        raise UsageError("is known of a step and not of a whole training; leave out iterations")
    return Fraction(s.array_cycles, s.clock_hz)


def _dram(*actions: str) -> Callable[[Simulated, Scope, tuple[str, ...]], Fraction]:
    return lambda s, _, __: Fraction(sum(p.count for p in s.parts if p.component == "dram" and p.action in actions))


def _buffers(s: Simulated, _: Scope, components: tuple[str, ...]) -> Fraction:
    """Bytes that the named buffers read and write, in whole words."""
    return sum((Fraction(p.count * p.access_bits, 8) for p in _accesses(s, components)), Fraction(0))


def _accesses(s: Simulated, components: tuple[str, ...]) -> tuple[Part, ...]:
    if not components:
        raise UsageError("needs components, as in [buffer.input, buffer.output]: the buffers that are meant")
    return tuple(part for part in s.chosen("board", components) if part.action in _MOVES)


QUANTITIES: Mapping[str, Quantity] = MappingProxyType({
    "cycles": Quantity("time", "clock cycles of the accelerator", _scaled("cycles", _=0),
                       lambda s, _, __: Fraction(s.cycles)),
    "latency": Quantity("time", "time of what is selected", _SECONDS, lambda s, _, __: s.seconds),
    "array_latency": Quantity("time", "time in which the array works, without waits for transfers", _SECONDS,
                              _array_seconds),
    "rate": Quantity("time", "samples in a second", {"fps": Fraction(1)}, lambda s, _, __: s.samples / s.seconds),
    "throughput": Quantity("time", "operations in a second, two for each MAC",
                           _scaled("OP/s", M=6, G=9, T=12) | _scaled("FLOPS", M=6, G=9, T=12),
                           lambda s, _, __: 2 * s.macs / s.seconds),
    "power": Quantity("power", "mean power within the scope, or of the components", _scaled("W", m=-3, _=0), _power),
    "energy": Quantity("energy", "energy within the scope, or of the components", _JOULES, _energy),
    "normalised_energy": Quantity("energy", "energy in multiples of a MAC, where the spec's prices are such",
                                  _scaled("MAC", _=0, k=3, M=6, G=9, T=12), _normalised),
    "dram_bytes": Quantity("traffic", "bytes read from and written to DRAM", _BYTES, _dram(*_MOVES)),
    "dram_read_bytes": Quantity("traffic", "bytes read from DRAM", _BYTES, _dram("read")),
    "dram_write_bytes": Quantity("traffic", "bytes written to DRAM", _BYTES, _dram("write")),
    "buffer_bytes": Quantity("traffic", "bytes that the buffers in components read and write", _BYTES, _buffers),
    "accesses": Quantity("traffic", "reads and writes of the components", _PLAIN,
                         lambda s, _, components: Fraction(sum(p.count for p in _accesses(s, components)))),
    "macs": Quantity("count", "multiply-accumulates, padding included", _scaled("MAC", _=0, k=3, M=6, G=9, T=12),
                     lambda s, _, __: Fraction(s.macs), replayed=False),
    "operations": Quantity("count", "two for each MAC", _scaled("OP", _=0, M=6, G=9) | _scaled("FLOP", _=0, M=6, G=9),
                           lambda s, _, __: Fraction(2 * s.macs), replayed=False),
    "bit_operations": Quantity("count", "MACs times the bits of both operands", _PLAIN,
                               lambda s, _, __: Fraction(s.bit_operations), replayed=False),
    "effective_macs": Quantity("count", "MACs of 32 x 32 bit with as many bit-operations",
                               _scaled("MAC", _=0, k=3, M=6, G=9, T=12),
                               lambda s, _, __: Fraction(s.bit_operations, FULL_WIDTH**2), replayed=False),
})  # fmt: skip

# Of savings, changes and ratios.
_RELATIVE = {"%": Fraction(1, 100), "x": Fraction(1)}


def quantity(name: str) -> Quantity:
    """By name; :class:`UsageError` for any other."""
    if name not in QUANTITIES:
        known = list(QUANTITIES)
        raise UsageError(f"there is no quantity {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return QUANTITIES[name]


def unit_factor(name: str, unit: str, *, relative: bool) -> Fraction:
    """How many of the base unit this unit is; :class:`UsageError` for one of another quantity.

    >>> unit_factor("latency", "ms", relative=False), unit_factor("energy", "%", relative=True)
    (Fraction(1, 1000), Fraction(1, 100))
    """
    units = _RELATIVE if relative else quantity(name).units
    if unit not in units:
        what = "a saving, a change or a ratio" if relative else name
        raise UsageError(f"{what} has no unit {unit!r}; one of {', '.join(units)} is needed")
    return units[unit]
