"""Coefficients that a measurement file fits to rows of its own, before its other rows are judged with them.

A fit of ``time`` is one factor on every time: the same cycles at another clock, and what is drawn all the time (chip,
board, background of the DRAM) for as much longer. Any other fit has factors on the prices of parts, as ``jouletrace
calibrate`` has them, and perhaps a ``constant`` power beside them. Energies are linear in those, so that the sum of
squared relative errors over the named rows is least by non-negative least squares (:mod:`.factors`). Times come first:
a row that names a fit of time and another one is an energy or power of the machine at its fitted pace.

A row that was fitted is never judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from jouletrace.errors import JouletraceError, UsageError, did_you_mean
from jouletrace.units import round_half_even
from jouletrace.validate.calibrate import part_of, parts_of
from jouletrace.validate.factors import fit
from jouletrace.validate.load import Entry
from jouletrace.validate.measurements import RowFit
from jouletrace.validate.quantities import Part, Simulated
from jouletrace.validate.simulate import simulated_value

__all__ = ["CONSTANT", "TIME", "Fitted", "Key", "Term", "at_fit", "fit_rows", "fitted_rows", "is_fitted"]

TIME, CONSTANT = "time", "constant"
# A fit by the name of its file and its own.
Key = tuple[str, str]
# Actions whose energy is a power times the time.
_ALL_THE_TIME = {("chip", "static"), ("board", "idle"), ("dram", "background")}
# What coefficients are fitted to; rates and normalised energies may still be judged.
_TIMES, _ENERGIES = ("latency", "array_latency"), ("energy", "power")


@dataclass(frozen=True)
class Term:
    """A coefficient, rounded to six digits, with its 95 % interval, or none where no row is left over.

    ``unit`` is ``times``, ``W``, or pJ for what the prices of the hardware are multiples of.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str


@dataclass(frozen=True)
class Fitted:
    """One fit of a file: what was fitted to which rows, and why to these."""

    system: str
    name: str
    terms: tuple[Term, ...]
    rows: tuple[str, ...]
    rule: str
    condition: float


@dataclass(frozen=True)
class _Scales:
    """What is changed of a simulation: factors, and a power in watts."""

    time: Fraction = Fraction(1)
    parts: Mapping[str, Fraction] = field(default_factory=dict[str, Fraction])
    watts: Fraction | None = None


def is_fitted(entry: Entry) -> bool:
    """Whether some fit of its file rests on this row."""
    return any(entry.row.id in each.rows for each in entry.file.fits.values())


def fitted_rows(entries: Iterable[Entry], known: Iterable[Entry]) -> tuple[Entry, ...]:
    """The rows among ``known`` that the fits of some entries rest on."""
    wanted = {(_file(entry), row) for entry in entries for name in entry.row.fit if name in entry.file.fits
              for row in entry.file.fits[name].rows}  # fmt: skip
    return tuple(entry for entry in known if (_file(entry), entry.row.id) in wanted)


def fit_rows(
    entries: Sequence[Entry], simulated: Callable[[Entry], Simulated | None], problems: list[str]
) -> dict[Key, Fitted]:
    """Every fit that some of these entries name, those of times first.

    ``simulated`` gives None for a row that has failed. Sentences about fits that make no sense are added to
    ``problems``.
    """
    by_id = {(_file(entry), entry.row.id): entry for entry in entries}
    named: dict[Key, tuple[Entry, RowFit]] = {}
    for entry in entries:
        for name in entry.row.fit:
            if name in entry.file.fits:
                named.setdefault((_file(entry), name), (entry, entry.file.fits[name]))
            else:
                hint = did_you_mean(name, list(entry.file.fits)) or f"; it has {', '.join(entry.file.fits) or 'none'}"
                problems.append(f"{entry.place}: {entry.row.id}: there is no fit {name!r} in this file{hint}")
    found: dict[Key, Fitted] = {}
    for (file, name), (entry, each) in sorted(named.items(), key=lambda item: TIME not in item[1][1].coefficients):
        try:
            rows = [_row(by_id.get((file, row)), row, name) for row in each.rows]
            there = [simulated(row) for row in rows]
            if failed := [row.row.id for row, one in zip(rows, there, strict=True) if one is None]:
                raise UsageError(f"{', '.join(failed)} could not be simulated")
            pairs = [(row, one) for row, one in zip(rows, there, strict=True) if one is not None]
            found[file, name] = _fitted(entry.file.system, name, each, pairs, found)
        except JouletraceError as error:
            problems += [f"{file}: fits.{name}: {sentence}" for sentence in error.problems]
    return found


def at_fit(entry: Entry, simulated: Simulated, fits: Mapping[Key, Fitted]) -> Simulated:
    """A simulation at the coefficients of the fits that its row names.

    Raises :class:`UsageError` where a fit has failed, or does not go with the row.
    """
    return _scaled(simulated, _scales(entry, fits, entry.row.fit))


def _file(entry: Entry) -> str:
    return entry.place.rpartition(":")[0]


def _row(entry: Entry | None, row: str, fit_name: str) -> Entry:
    """A row that can be fitted."""
    if entry is None or fit_name not in entry.row.fit:
        raise UsageError(f"{row!r} is no row of this file with fit: {fit_name}; a fit is to rows that name it")
    if entry.row.gates:
        raise UsageError(f"{row!r} is fitted and therefore cannot gate; say with shown: that it is fitted")
    if entry.row.certainty == "recalled" or entry.row.bound is not None:
        raise UsageError(f"{row!r} is {'a bound' if entry.row.bound else 'recalled'}, to which nothing is fitted")
    return entry


def _fitted(
    system: str, name: str, spec: RowFit, rows: Sequence[tuple[Entry, Simulated]], before: Mapping[Key, Fitted]
) -> Fitted:
    """Raises :class:`UsageError` for coefficients that there are not, and for rows that do not fix them."""
    priced = [each for each in spec.coefficients if each not in (TIME, CONSTANT)]
    groups = parts_of(priced) if priced else {}
    if TIME in spec.coefficients and len(spec.coefficients) > 1:
        raise UsageError("time is fitted alone; give the other coefficients a fit of their own")
    matrix: list[list[float]] = []
    fixed: list[float] = []
    for entry, simulated in rows:
        others = _scales(entry, before, [each for each in entry.row.fit if each != name])

        def value(scales: _Scales, one: Simulated = simulated, row: Entry = entry) -> Fraction:
            return simulated_value(row, [_scaled(one, scales)])

        if TIME in spec.coefficients:
            _check(entry, time=True)
            fixed.append(0.0)
            matrix.append([float(value(others))])
            continue
        _check(entry, time=False)
        none = dict(others.parts) | {part: Fraction(0) for parts in groups.values() for part in parts}
        watts = Fraction(0) if CONSTANT in spec.coefficients else others.watts
        rest = value(replace(others, parts=none, watts=watts))
        alone = [
            replace(others, parts=none, watts=Fraction(1)) if each == CONSTANT
            else replace(others, parts=none | dict.fromkeys(groups[each], Fraction(1)), watts=watts)
            for each in spec.coefficients
        ]  # fmt: skip
        fixed.append(float(rest))
        matrix.append([float(value(each) - rest) for each in alone])
    measured = np.array([entry.row.value for entry, _ in rows])
    result = fit(np.array(matrix), np.array(fixed), measured, spec.coefficients)
    of = rows[0][1].normalised_to
    units = {TIME: "times", CONSTANT: "W"}
    terms = tuple(
        Term(each, float(_six(float(result.factors[g]))), *result.interval(g),
             units.get(each, "times" if of is None else f"pJ for {of}"))
        for g, each in enumerate(spec.coefficients)
    )  # fmt: skip
    return Fitted(system, name, terms, spec.rows, spec.rule, result.condition)


def _check(entry: Entry, *, time: bool) -> None:
    row = entry.row
    if row.quantity not in (_TIMES if time else _ENERGIES):
        raise UsageError(f"{row.id!r} is of {row.quantity}, to which {'no time' if time else 'no price'} can be fitted")


def _scales(entry: Entry, fits: Mapping[Key, Fitted], names: Iterable[str]) -> _Scales:
    """What the named fits of a row's file change together."""
    scales = _Scales()
    for name in names:
        fitted = fits.get((_file(entry), name))
        if fitted is None:
            raise UsageError(f"is judged by the fit {name!r}, which there is not")
        for term in fitted.terms:
            value = _six(term.value)
            parts = () if term.name in (TIME, CONSTANT) else parts_of([term.name])[term.name]
            if (term.name == TIME and scales.time != 1) or (term.name == CONSTANT and scales.watts is not None) \
                    or not scales.parts.keys().isdisjoint(parts):  # fmt: skip
                raise UsageError(f"has {term.name!r} from two fits; name one")
            scales = _Scales(
                value if term.name == TIME else scales.time, dict(scales.parts) | dict.fromkeys(parts, value),
                value if term.name == CONSTANT else scales.watts,
            )  # fmt: skip
    return scales


def _scaled(simulated: Simulated, scales: _Scales) -> Simulated:
    """The same replay at other prices and at another pace.

    Multiples of a MAC become joules where every price is fitted.
    """
    seconds = simulated.seconds * scales.time
    parts = [replace(part, energy_aj=round_half_even(part.energy_aj * _factor(part, scales)))
             for part in simulated.parts]  # fmt: skip
    if scales.watts is not None:
        parts.append(Part(CONSTANT, "power", "chip", 1, 0, round_half_even(scales.watts * seconds * 10**18)))
    joules = all(part_of(part.component) in scales.parts for part in simulated.parts if part.energy_aj)
    return replace(
        simulated, clock_hz=simulated.clock_hz / scales.time if scales.time != 1 else simulated.clock_hz,
        parts=tuple(parts), normalised_to=None if joules else simulated.normalised_to,
    )  # fmt: skip


def _factor(part: Part, scales: _Scales) -> Fraction:
    factor = scales.parts.get(part_of(part.component), Fraction(1))
    return factor * scales.time if (part.component, part.action) in _ALL_THE_TIME else factor


def _six(value: float) -> Fraction:
    """To six digits, as it is printed.

    >>> _six(0.123456789)
    Fraction(123457, 1000000)
    """
    return Fraction(f"{value:.6g}")
