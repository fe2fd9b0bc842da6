"""Rows beside what was simulated: errors, verdicts, and what they come to for each system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeVar, cast

from jouletrace.errors import JouletraceError, UsageError, did_you_mean
from jouletrace.validate.fits import Fitted, Key, at_fit, fit_rows, fitted_rows, is_fitted
from jouletrace.validate.load import Entry, Loaded, load
from jouletrace.validate.quantities import Group, Simulated, quantity
from jouletrace.validate.simulate import Case, Progress, cases_of, simulate_all, simulated_value

__all__ = ["Outcome", "Summary", "Validation", "validate"]

T = TypeVar("T")
Verdict = Literal["ok", "miss", "shown", "fitted"]
# Ranks of fewer points say nothing.
_RANKED = 3


@dataclass(frozen=True)
class Outcome:
    """One row and its simulated value, in the row's unit."""

    entry: Entry
    simulated: float
    cases: tuple[Case, ...]

    @property
    def group(self) -> Group:
        return quantity(self.entry.row.quantity).group

    @property
    def error(self) -> float:
        """Relative to the measured value."""
        return self.simulated / self.entry.row.value - 1

    @property
    def in_points(self) -> bool:
        """Whether errors are differences in percentage points, as the tolerance says or, without one, the unit."""
        row = self.entry.row
        return row.allowed[1] or (row.tolerance is None and row.unit == "%")

    @property
    def deviation(self) -> float:
        """What the tolerance is about: the relative error, or the difference in percentage points; without its sign.

        Of a bound, 0 on the side that it allows.
        """
        row = self.entry.row
        off = self.simulated - row.value
        if (row.bound == "above" and off >= 0) or (row.bound == "below" and off <= 0):
            return 0.0
        return abs(off) if row.allowed[1] else abs(off / row.value)

    @property
    def within(self) -> bool:
        return self.deviation <= self.entry.row.allowed[0]

    @property
    def verdict(self) -> Verdict:
        if is_fitted(self.entry):
            return "fitted"
        if not self.entry.row.gates:
            return "shown"
        return "ok" if self.within else "miss"


@dataclass(frozen=True)
class Summary:
    """Rows of one system, quantity and kind, at the coefficients of the same fits, that gate, that are only shown, or
    that were fitted.

    ``mean`` and ``worst`` are errors without their sign, relative or ``in_points`` of a percentage; bounds are left
    out. ``rank`` is Spearman's correlation of measured with simulated values, None where fewer than three differ.
    """

    system: str
    group: Group
    quantity: str
    kind: str
    gating: bool
    fitted: bool
    in_points: bool
    rows: int
    misses: int
    mean: float | None
    worst: float | None
    rank: float | None


@dataclass(frozen=True)
class Validation:
    """All rows that could be compared, in order of files and lines, and sentences about those that could not.

    ``fits`` are those that the rows name.
    """

    outcomes: tuple[Outcome, ...]
    problems: tuple[str, ...]
    replays: int
    fits: tuple[Fitted, ...] = ()

    @property
    def misses(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.verdict == "miss")

    @property
    def exit_code(self) -> int:
        """0 if no gating row misses, 1 if one does, 2 if there are problems with the input."""
        return 2 if self.problems else 1 if self.misses else 0

    @property
    def systems(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(outcome.entry.file.system for outcome in self.outcomes))

    def of(self, system: str) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.entry.file.system == system)

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """By system, quantity and how they were obtained; gating rows apart from shown and from fitted ones."""
        grouped: dict[tuple[str, str, str, bool, bool, bool], list[Outcome]] = {}
        for outcome in self.outcomes:
            row = outcome.entry.row
            name = f"{row.quantity} {row.relation}" if row.relation is not None else row.quantity
            name += f" per {row.per}" if row.per is not None else ""
            name += f", fit {', '.join(row.fit)}" if row.fit else ""
            key = outcome.entry.file.system, name, row.kind, row.gates, outcome.verdict == "fitted", outcome.in_points
            grouped.setdefault(key, []).append(outcome)
        return tuple(_summary(*key, outcomes) for key, outcomes in grouped.items())


def validate(
    place: Path | None = None,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    progress: Progress | None = None,
) -> Validation:
    """Simulates every row of a folder (by default the shipped one) or file, and compares.

    ``only`` leaves rows whose file, system or ``system/id`` holds one of these texts, and problems of their files. Rows
    and files that make no sense become problems; the others are still compared. Raises :class:`UsageError` if there is
    no file or no row.
    """
    loaded = load(place)
    entries = tuple(entry for entry in loaded.entries if not only or any(_named(entry, text) for text in only))
    if only and not entries:
        names = list(dict.fromkeys([Path(e.place.rpartition(":")[0]).stem for e in loaded.entries]
                                   + [e.row.id for e in loaded.entries]))  # fmt: skip
        raise UsageError(f"no row is named by --only {', '.join(only)}"
                         f"{''.join(did_you_mean(text, names) for text in only)}")  # fmt: skip
    files = {entry.place.rpartition(":")[0] for entry in entries}
    problems = tuple(p for p in loaded.problems if not only or any(p.startswith(f"{file}:") for file in files))
    return _compared(Loaded(entries, problems), fitted_rows(entries, loaded.entries), jobs, progress)


def _named(entry: Entry, text: str) -> bool:
    file = Path(entry.place.rpartition(":")[0]).stem
    return text in file or text.lower() in f"{entry.file.system}/{entry.row.id}".lower()


def _compared(loaded: Loaded, fitted: Sequence[Entry], jobs: int, progress: Progress | None) -> Validation:
    """``fitted`` are rows that fits rest on; those that are not among the loaded ones are simulated for them alone."""
    problems = list(loaded.problems)
    wanted: list[tuple[Entry, tuple[Case, ...]]] = []
    everything = list({(entry.place, entry.row.id): entry for entry in (*loaded.entries, *fitted)}.values())
    for entry in everything:
        tried = _tried(lambda e=entry: cases_of(e), entry, problems)
        if tried is not None:
            wanted.append((entry, tried))
    found = simulate_all([case for _, cases in wanted for case in cases], jobs=jobs, progress=progress)
    replayed: dict[tuple[str, str], list[Simulated]] = {}
    for entry, cases in wanted:
        simulations = [found[case.key] for case in cases]
        failed = [sentence for each in simulations if isinstance(each, tuple) for sentence in each]
        problems += [f"{entry.place}: {entry.row.id}: {sentence}" for sentence in dict.fromkeys(failed)]
        if not failed:
            replayed[entry.place, entry.row.id] = [each for each in simulations if isinstance(each, Simulated)]
    fits = fit_rows(everything, lambda e: next(iter(replayed.get((e.place, e.row.id), ())), None), problems)
    outcomes: list[Outcome] = []
    chosen = {(entry.place, entry.row.id) for entry in loaded.entries}
    for entry, cases in wanted:
        good = replayed.get((entry.place, entry.row.id))
        if good is not None and (entry.place, entry.row.id) in chosen:
            value = _tried(lambda e=entry, g=good: _value(e, g, fits), entry, problems)
            if value is not None:
                outcomes.append(Outcome(entry, float(value), cases))
    return Validation(tuple(outcomes), tuple(dict.fromkeys(problems)), len(found), tuple(fits.values()))


def _value(entry: Entry, simulated: Sequence[Simulated], fits: Mapping[Key, Fitted]) -> Fraction:
    """At the coefficients of the row's fits, which go with rows of one case."""
    return simulated_value(entry, [at_fit(entry, each, fits) for each in simulated] if entry.row.fit else simulated)


def _tried(function: Callable[[], T], entry: Entry, problems: list[str]) -> T | None:
    try:
        return function()
    except JouletraceError as error:
        problems += [f"{entry.place}: {entry.row.id}: {sentence}" for sentence in error.problems]
        return None


def _summary(
    system: str, name: str, kind: str, gating: bool, fitted: bool, in_points: bool, outcomes: Sequence[Outcome]
) -> Summary:
    exact = [outcome for outcome in outcomes if outcome.entry.row.bound is None]
    errors = [abs(o.simulated - o.entry.row.value if in_points else o.error) for o in exact]
    return Summary(
        system, outcomes[0].group, name, kind, gating, fitted, in_points,
        len(outcomes), sum(o.verdict == "miss" for o in outcomes),
        fmean(errors) if errors else None, max(errors, default=None),
        _rank([o.entry.row.value for o in exact], [o.simulated for o in exact]),
    )  # fmt: skip


def _rank(measured: Sequence[float], simulated: Sequence[float]) -> float | None:
    """
    >>> _rank([1.0, 2.0, 3.0], [10.0, 30.0, 20.0]), _rank([1.0, 2.0], [1.0, 2.0])
    (0.5, None)
    """
    if len(set(measured)) < _RANKED or len(set(simulated)) < 2:
        return None
    from scipy.stats import spearmanr  # pyright: ignore

    correlation = float(cast("Any", spearmanr(measured, simulated)).statistic)  # pyright: ignore
    return None if isnan(correlation) else round(correlation, 12)
