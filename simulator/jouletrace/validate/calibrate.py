"""Prices from meter readings: a few factors on the prices that a spec has, fitted to measured rows.

A coefficient is one factor on the prices of some parts of the machine, such as ``static`` or ``array+buffers``. What
the parts of one coefficient cost relative to one another stays as the spec has it, and so do the prices of parts that
no coefficient names. With the energy of coefficient g in row i at the spec's prices, e_ig, the factors f solve

    minimise  sum over rows of ((fixed_i + sum_g f_g e_ig) / measured_i - 1)^2,   f >= 0

(Lawson and Hanson's non-negative least squares, by SciPy). A row is judged by a fit that has not seen it: each fitted
row by the fit of all others, and a row that is left out by the whole fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np

from jouletrace.errors import UsageError, did_you_mean
from jouletrace.hardware.load import digest, load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.validate.factors import Vector, fit
from jouletrace.validate.load import Entry, load
from jouletrace.validate.quantities import Simulated, unit_factor
from jouletrace.validate.simulate import Case, Progress, cases_of, simulate_all
from jouletrace.validate.workloads import below

__all__ = ["PARTS", "Calibration", "Coefficient", "Reading", "calibrate", "part_of", "parts_of"]

# A part of the machine, and the components that belong to it: by their name, or by what stands before a dot.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "array": ("array", "scratchpad", "network"), "buffers": ("buffer",), "vector": ("vector",), "host": ("host",),
    "dram": ("dram",), "chip": ("chip",), "board": ("board",),
})  # fmt: skip
_TOGETHER = {"static": ("chip", "board"), "dynamic": ("array", "buffers", "vector", "host", "dram")}


@dataclass(frozen=True)
class Coefficient:
    """A factor on the prices of some parts, with its 95 % confidence interval.

    There is no interval where there are only as many rows as coefficients. ``untouched`` parts cost nothing in any
    fitted row, so their prices stay as they were.
    """

    name: str
    parts: tuple[str, ...]
    factor: float
    low: float | None
    high: float | None
    untouched: tuple[str, ...] = ()

    @property
    def scaled(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if part not in self.untouched)


@dataclass(frozen=True)
class Reading:
    """One row, in its own unit: measured, at the spec's prices, at the fitted prices.

    ``unseen`` is what a fit without this row says: of a fitted row None where the other rows fix no coefficients.
    """

    entry: Entry
    before: float
    after: float
    unseen: float | None
    fitted: bool

    @property
    def measured(self) -> float:
        return self.entry.row.value

    @property
    def error(self) -> float:
        """Of the fitted prices, relative to the measured value."""
        return self.after / self.measured - 1

    @property
    def unseen_error(self) -> float | None:
        """Of a fit that has not seen the row."""
        return None if self.unseen is None else self.unseen / self.measured - 1


@dataclass(frozen=True)
class Calibration:
    """What a fit gives; ``condition`` is that of its matrix with columns of length 1."""

    hardware: Hardware
    coefficients: tuple[Coefficient, ...]
    readings: tuple[Reading, ...]
    condition: float

    @property
    def fitted(self) -> tuple[Reading, ...]:
        return tuple(reading for reading in self.readings if reading.fitted)

    @property
    def worst_unseen(self) -> float | None:
        """The largest error, without its sign, of rows that their fit has not seen."""
        errors = [reading.unseen_error for reading in self.readings]
        return max((abs(error) for error in errors if error is not None), default=None)

    @property
    def rows(self) -> str:
        """The fitted rows and their systems, for a provenance."""
        by_system: dict[str, list[str]] = {}
        for reading in self.fitted:
            by_system.setdefault(reading.entry.file.system, []).append(reading.entry.row.id)
        return "; ".join(f"{_listed(ids)} of {system}" for system, ids in by_system.items())


def calibrate(
    place: Path,
    hardware: Hardware,
    coefficients: Sequence[str] = ("static", "dynamic"),
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress | None = None,
) -> Calibration:
    """Fits coefficients to the energy and power rows of a measurement file or folder.

    Rows count if their build is of this hardware. Relative rows, bounds, other quantities, and rows that name a fit of
    their own file are left out. Rows that ``only`` does not name by a part of their id, and recalled ones, are judged
    and not fitted. Raises :class:`UsageError` for bad rows, and where the rows do not fix the coefficients.
    """
    groups = parts_of(coefficients)
    loaded = load(place)
    if loaded.problems:
        raise UsageError(list(loaded.problems))
    entries = _readings_of(loaded.entries, hardware)
    chosen = [entry.row.certainty != "recalled" and (not only or any(text in entry.row.id for text in only))
              for entry in entries]  # fmt: skip
    if only and not any(chosen):
        ids = [entry.row.id for entry in entries]
        raise UsageError(f"no row is named by --only {', '.join(only)}"
                         f"{''.join(did_you_mean(text, ids) for text in only)}; rows are {_listed(ids)}")  # fmt: skip
    simulated = _simulated(entries, jobs, progress)
    rows = [_columns(entry, each, list(groups.values())) for entry, each in zip(entries, simulated, strict=True)]
    matrix = np.array([row[1] for row in rows])
    fixed, measured = np.array([row[0] for row in rows]), np.array([entry.row.value for entry in entries])
    names = list(groups)
    seen = np.array(chosen)
    whole = fit(matrix[seen], fixed[seen], measured[seen], names)
    after = fixed + matrix @ whole.factors
    readings: list[Reading] = []
    for i, entry in enumerate(entries):
        unseen = float(after[i])
        if chosen[i]:
            others = seen & (np.arange(len(entries)) != i)
            unseen = _predicted(matrix[others], fixed[others], measured[others], names, float(fixed[i]), matrix[i])
        readings.append(Reading(entry, float(fixed[i] + matrix[i].sum()), float(after[i]), unseen, chosen[i]))
    used = {part for row, fitted in zip(rows, chosen, strict=True) if fitted for part in row[2]}
    return Calibration(
        hardware,
        tuple(
            Coefficient(name, parts, float(whole.factors[g]), *whole.interval(g),
                        tuple(part for part in parts if part not in used))
            for g, (name, parts) in enumerate(groups.items())
        ),
        tuple(readings),
        whole.condition,
    )  # fmt: skip


def parts_of(coefficients: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The parts that each coefficient scales, by its name.

    Raises :class:`UsageError` for unknown parts, for one in two coefficients, and for none at all.

    >>> parts_of(["static", "array+buffers"])
    {'static': ('chip', 'board'), 'array+buffers': ('array', 'buffers')}
    """
    problems: list[str] = []
    groups: dict[str, tuple[str, ...]] = {}
    everything: list[str] = []
    known = (*PARTS, *_TOGETHER)
    for text in coefficients:
        words = [word.strip() for word in text.split("+")]
        problems += [f"{word!r} is no part of the machine{did_you_mean(word, known)}; there are {', '.join(known)}"
                     for word in words if word not in known]  # fmt: skip
        groups[text] = tuple(part for word in words for part in _TOGETHER.get(word, (word,)))
        everything += groups[text]
    problems += [f"{part!r} is in two coefficients; give it to one" for part in PARTS if everything.count(part) > 1]
    if not groups:
        problems.append("there is no coefficient to fit; name one, as in --fit static")
    if problems:
        raise UsageError(problems)
    return groups


# -- rows


def _readings_of(entries: Iterable[Entry], hardware: Hardware) -> list[Entry]:
    """Energies and powers of this hardware."""
    wanted = digest(hardware)
    digests: dict[tuple[Path, str], str] = {}
    found: list[Entry] = []
    for entry in entries:
        row, build = entry.row, entry.build
        if row.quantity not in ("energy", "power") or build is None or row.relation or row.bound or row.fit:
            continue
        key = entry.folder, build.hardware
        if key not in digests:
            digests[key] = _base_digest(*key)
        if digests[key] == wanted:
            found.append(entry)
    if not found:
        of = f"; builds of such rows are {', '.join(name for _, name in digests)}" if digests else ""
        raise UsageError(f"no row is an energy or power of {hardware.name!r}{of}; rows are needed whose build is this "
                         "hardware, with what differs under set")  # fmt: skip
    return found


def _base_digest(folder: Path, name: str) -> str:
    file = "/" in name or name.endswith((".yaml", ".yml"))
    return digest(load_hardware(below(folder, name) if file else name))


def _simulated(entries: Sequence[Entry], jobs: int, progress: Progress | None) -> list[Simulated]:
    cases: list[Case] = [cases_of(entry)[0] for entry in entries]
    found = simulate_all(cases, jobs=jobs, progress=progress)
    simulated: list[Simulated] = []
    problems: list[str] = []
    for entry, case in zip(entries, cases, strict=True):
        each = found[case.key]
        if isinstance(each, Simulated):
            simulated.append(each)
        else:
            problems += [f"{entry.place}: {entry.row.id}: {sentence}" for sentence in each]
    if problems:
        raise UsageError(list(dict.fromkeys(problems)))
    return simulated


def _columns(
    entry: Entry, simulated: Simulated, groups: Sequence[tuple[str, ...]]
) -> tuple[float, list[float], frozenset[str]]:
    """In the row's unit: what stays fixed, and the share of each coefficient; then the parts that took energy."""
    row = entry.row
    divisor = simulated.per(row.per) * unit_factor(row.quantity, row.unit, relative=False) * 10**18
    if row.quantity == "power":
        divisor *= simulated.seconds
    if not divisor:
        raise UsageError(f"{entry.place}: {row.id}: nothing is executed here, so that it has no {row.quantity}")
    energies: dict[str, int] = {}
    for part in simulated.chosen(row.scope, row.components):
        name = part_of(part.component)
        energies[name] = energies.get(name, 0) + part.energy_aj
    shares = [sum(energies.get(part, 0) for part in group) for group in groups]
    fixed = sum(energies.values()) - sum(shares)
    return (
        float(Fraction(fixed) / divisor), [float(Fraction(share) / divisor) for share in shares],
        frozenset(name for name, energy in energies.items() if energy),
    )  # fmt: skip


def part_of(component: str) -> str:
    """The part that a component belongs to.

    >>> part_of("buffer.input"), part_of("array")
    ('buffers', 'array')
    """
    return next(part for part, names in PARTS.items() if component.partition(".")[0] in names)


def _predicted(
    matrix: Vector, fixed: Vector, measured: Vector, names: Sequence[str], fixed_here: float, row: Vector
) -> float | None:
    """What the fit of these rows says of another one; None where they do not fix every factor."""
    try:
        return fixed_here + float(row @ fit(matrix, fixed, measured, names).factors)
    except UsageError:
        return None


def _listed(names: Sequence[str], most: int = 40) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
