"""A comparison as a picture: the way from the baseline to the combination, and where each column's energy goes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO

from jouletrace.comparison.model import Comparison
from jouletrace.errors import UsageError
from jouletrace.ledger.breakdown import Scope
from jouletrace.report.comparison_figures import PARTS, energy_by_part, way
from jouletrace.report.wide_table import folded
from jouletrace.units import show_energy

__all__ = ["PICTURES", "comparison_figure", "export_comparison_picture", "require_matplotlib"]

PICTURES = (".svg", ".png")
# Colours that differ for colour-blind readers too (Okabe and Ito).
_COLOURS = dict(
    zip(PARTS, ("#0072b2", "#56b4e9", "#009e73", "#f0e442", "#e69f00", "#999999", "#d5d5d5"), strict=True)
)
_TOTAL, _LESS, _MORE, _INK = "#444444", "#cc79a7", "#d55e00", "#333333"
_HALF = 0.34  # of a bar's height
_WIDTH_INCHES, _DOTS_PER_INCH = 10.0, 100
_UNITS = ((10**24, "MJ"), (10**21, "kJ"), (10**18, "J"), (10**15, "mJ"), (10**12, "µJ"), (10**9, "nJ"), (1, "aJ"))
# Texts stay texts, and identifiers do not depend on the hour: equal comparisons give equal files.
_SETTINGS: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "jouletrace", "font.size": 9}


def require_matplotlib() -> None:
    """Raises :class:`UsageError`, with what to install, where the library that draws is missing."""
    if find_spec("matplotlib") is None:
        raise UsageError("a picture needs matplotlib; install it with: pip install 'jouletrace[plots]'")


def export_comparison_picture(file: BinaryIO, comparison: Comparison, *, kind: str, scope: Scope = "board") -> None:
    """Writes the picture, 1000 pixels wide, as ``svg`` or ``png``.

    Raises :class:`UsageError` without matplotlib.
    """
    require_matplotlib()
    with _module("matplotlib").rc_context(_SETTINGS):
        figure = comparison_figure(comparison, scope=scope)
        stamp = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=_DOTS_PER_INCH, metadata=stamp)


def comparison_figure(comparison: Comparison, *, scope: Scope = "board") -> Any:
    """The way to the combination on the left (if there is one), energy by component on the right."""
    bars = max(len(comparison.all), len(comparison.waterfall) + 2 if comparison.waterfall else 0)
    height = max(3.2, 1.5 + 0.4 * bars)
    figure = _module("matplotlib.figure").Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    of = "one step" if not comparison.has_runs else f"{comparison.iterations:,} iterations"
    words = scope.replace("+dram", " + DRAM")
    figure.suptitle(f"{comparison.trace}, batch {comparison.batch}: energy of {of}, {words}", color=_INK, fontsize=11)
    largest = max(c.figure(run=comparison.has_runs).energy(scope).energy_aj for c in comparison.all)
    size, unit = next((size, unit) for size, unit in _UNITS if largest >= size or size == 1)
    if comparison.waterfall:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1])
        _waterfall(left, comparison, scope, size, unit)
    else:
        right = figure.subplots()
    _stacks(right, comparison, scope, size, unit)
    return figure


def _module(name: str) -> Any:
    """A module of matplotlib, which may be absent, and is not typed in full."""
    return import_module(name)


def _waterfall(axes: Any, comparison: Comparison, scope: Scope, size: int, unit: str) -> None:
    """Whole bars for both ends; between them each step begins where the one above ended."""
    steps = [(label, c.figure(run=comparison.has_runs).energy(scope).energy_aj) for label, c in way(comparison)]
    first, last = steps[0][1] or 1, steps[-1][1]
    _bar(axes, 0, 0, first / size, _TOTAL, show_energy(steps[0][1]))
    before = first
    for place, (_, energy) in enumerate(steps[1:], 1):
        begin, end = sorted((before / size, energy / size))
        points = f"{100 * (energy - before) / first:+.1f} points"
        _bar(axes, place, begin, end, _MORE if energy > before else _LESS, points)
        axes.plot([before / size] * 2, [place - 1 - _HALF, place + _HALF], color=_INK, linewidth=0.6)
        before = energy
    place = len(steps)
    axes.plot([last / size] * 2, [place - 1 - _HALF, place + _HALF], color=_INK, linewidth=0.6)
    _bar(axes, place, 0, last / size, _TOTAL, f"{show_energy(last)}, {last / first:.1%}")
    labels = [*(label for label, _ in steps), "combination"]
    _axes(axes, "from the baseline to the combination", labels, max(energy for _, energy in steps) / size * 1.3, unit)


def _bar(axes: Any, place: int, begin: float, end: float, colour: str, text: str) -> None:
    axes.barh(place, end - begin, left=begin, height=2 * _HALF, color=colour)
    _beside(axes, place, end, text)


def _beside(axes: Any, place: int, end: float, text: str) -> None:
    """A text to the right of a bar."""
    axes.annotate(
        text, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=_INK
    )  # fmt: skip


def _stacks(axes: Any, comparison: Comparison, scope: Scope, size: int, unit: str) -> None:
    """A bar per column, the baseline on top, split by component."""
    columns = comparison.all
    found = [energy_by_part(column.figure(run=comparison.has_runs), scope) for column in columns]
    places = list(range(len(columns)))
    begins = [0.0] * len(columns)
    for part in PARTS:
        lengths = [parts[part].energy_aj / size if part in parts else 0.0 for parts in found]
        if any(lengths):
            axes.barh(places, lengths, left=begins, height=2 * _HALF, color=_COLOURS[part], label=part)
            begins = [begin + length for begin, length in zip(begins, lengths, strict=True)]
    for place, end, parts in zip(places, begins, found, strict=True):
        _beside(axes, place, end, show_energy(sum(energy.energy_aj for energy in parts.values())))
    _axes(axes, "by component", [column.label for column in columns], max(begins) * 1.2, unit)
    axes.figure.legend(loc="outside lower right", ncols=len(PARTS), frameon=False, fontsize=8)


def _shortened(labels: Sequence[str]) -> list[str]:
    """Labels of at most two lines; the terminal and the files have them in full."""
    lines = [folded(label, 22).split("\n") for label in labels]
    return ["\n".join(found if len(found) < 3 else [found[0], f"{found[1]}…"]) for found in lines]


def _axes(axes: Any, title: str, labels: Sequence[str], longest: float, unit: str) -> None:
    """A label beside every bar, from above, and the unit below."""
    axes.set_title(title, fontsize=9, color=_INK)
    axes.set_yticks(range(len(labels)), _shortened(labels))
    axes.invert_yaxis()
    axes.set_xlim(0, longest or 1)
    axes.set_xlabel(unit, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)
