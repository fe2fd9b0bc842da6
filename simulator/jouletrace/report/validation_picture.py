"""A validation as a picture: measured against simulated values, as an SVG without any library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from math import floor, log10
from types import MappingProxyType
from typing import TextIO

from jouletrace.report.validation import MEASURED, number
from jouletrace.validate.outcome import Outcome, Validation
from jouletrace.validate.quantities import Group

__all__ = ["export_picture", "picture"]

# Colours that differ for colour-blind readers too (Okabe and Ito), on light and on dark ground.
_COLOURS: Mapping[Group, str] = MappingProxyType({
    "time": "#0072b2", "energy": "#e69f00", "power": "#d55e00", "traffic": "#009e73", "count": "#cc79a7",
})  # fmt: skip
_BANDS = (0.25, 0.10)
_LEFT, _TOP, _LEGEND, _BELOW = 64, 70, 236, 92
# No decade is wider than this, and the plot never higher than that.
_DECADE, _HIGHEST = 400.0, 560.0


def export_picture(file: TextIO, validation: Validation) -> None:
    """Writes simulated over measured values of all rows with a relative error; equal validations give equal bytes."""
    file.write("\n".join(picture(validation)) + "\n")


def picture(validation: Validation) -> Iterator[str]:
    """The lines of :func:`export_picture`.

    Units differ, so each row is divided by the power of ten that puts its measured value between 1 and 10; ratios,
    which are all that errors are about, stay. Bounds have no error, and what is compared in points has no relative
    one: both are left out, as are rows that were fitted, and the caption counts them. On the logarithmic axes an error
    is a distance from the diagonal, the same wherever a row stands. Filled: rows that gate; hollow: rows that are only
    shown; ringed: misses.
    """
    drawn = [outcome for outcome in validation.outcomes if _has_place(outcome)]
    points = [(outcome, *_scaled(outcome)) for outcome in drawn]
    low = min([log10(1 - max(_BANDS)), *(y for _, _, y in points)]) - 0.05
    high = max([1 + log10(1 + max(_BANDS)), *(y for _, _, y in points)]) + 0.05
    decade = min(_DECADE, _HIGHEST / (high - low))
    bottom, right = _TOP + (high - low) * decade, _LEFT + decade

    # Both take logarithms.
    def across(x: float) -> str:
        return f"{_LEFT + x * decade:.1f}"

    def down(y: float) -> str:
        return f"{bottom - (y - low) * decade:.1f}"

    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _DECADE + _LEGEND:.0f} {bottom + _BELOW:.0f}" '
        f'width="{_LEFT + _DECADE + _LEGEND:.0f}" role="img" font-family="system-ui, sans-serif" font-size="13" '
        'fill="#555">'
    )
    yield "<style>@media (prefers-color-scheme: dark) { svg { fill: #bbb } }</style>"
    yield "<title>Simulated over measured values</title>"
    yield _text(14, 24, '<tspan font-weight="600">Simulated over measured values</tspan>', size=15)
    yield _text(14, 44, "each in its own unit, times the power of ten that puts the measured one between 1 and 10")
    for band in _BANDS:
        under, over = log10(1 - band), log10(1 + band)
        corners = " ".join(f"{across(x)},{down(x + off)}" for x, off in ((0, under), (1, under), (1, over), (0, over)))
        yield f'<polygon points="{corners}" fill="#999" fill-opacity=".2"/>'
    for value in _ticks(low, high):
        y = down(log10(value))
        yield f'<path d="M{_LEFT} {y} H{right:.1f}" stroke="#999" stroke-opacity=".25"/>'
        yield _text(_LEFT - 8, f"{float(y) + 4:.1f}", f"{value:g}", anchor="end", size=12)
    for value in _ticks(0, 1):
        yield f'<path d="M{across(log10(value))} {_TOP} V{bottom:.1f}" stroke="#999" stroke-opacity=".25"/>'
        yield _text(across(log10(value)), f"{bottom + 18:.1f}", f"{value:g}", anchor="middle", size=12)
    yield f'<path d="M{across(0)} {down(0)} L{across(1)} {down(1)}" stroke="#999"/>'
    yield _text(f"{_LEFT + decade / 2:.1f}", f"{bottom + 38:.1f}", "measured", anchor="middle")
    yield _text(0, 0, "simulated", anchor="middle", turned=f"translate(22 {(_TOP + bottom) / 2:.1f}) rotate(-90)")
    # Hollow ones last: what lies under them can still be seen.
    for outcome, x, y in sorted(points, key=lambda point: not point[0].entry.row.gates):
        yield _point(outcome, across(x), down(y))
    yield from _legend(drawn, right + 24)
    fitted = sum(outcome.verdict == "fitted" for outcome in validation.outcomes)
    out = len(validation.outcomes) - len(drawn) - fitted
    below = (f"{_rows(len(drawn))}. Left out (bounds; changes and savings in points of a percentage): {_rows(out)}."
             + (f" Fitted: {_rows(fitted)}." if fitted else ""),
             "Measured is what was published; some of it was published as an equation or a simulation.")  # fmt: skip
    for i, line in enumerate(below):
        yield _text(14, f"{bottom + 62 + 18 * i:.1f}", line, size=12)
    yield "</svg>"


def _has_place(outcome: Outcome) -> bool:
    """Whether a row is compared by a relative error, and of two values that have logarithms."""
    row = outcome.entry.row
    if outcome.verdict == "fitted":
        return False
    return row.bound is None and not outcome.in_points and row.value > 0 and outcome.simulated > 0


def _scaled(outcome: Outcome) -> tuple[float, float]:
    """Logarithms of measured and simulated value over the power of ten below the measured one."""
    measured = log10(outcome.entry.row.value)
    return measured - floor(measured), log10(outcome.simulated) - floor(measured)


def _ticks(low: float, high: float) -> list[float]:
    """Numbers to write between two powers of ten: 1, 2 and 5 of every decade, of more than four decades 1 alone.

    >>> _ticks(-0.4, 1)
    [0.5, 1.0, 2.0, 5.0, 10.0]
    """
    digits = (1, 2, 5) if high - low <= 4 else (1,)
    return [value for power in range(floor(low), floor(high) + 1) for digit in digits
            if low <= log10(value := float(f"{digit}e{power}")) <= high]  # fmt: skip


def _point(outcome: Outcome, x: str, y: str) -> str:
    row, colour = outcome.entry.row, _COLOURS[outcome.group]
    values = f"{number(row.value, MEASURED)} measured, {number(outcome.simulated)} simulated, {row.unit}"
    title = escape(f"{outcome.entry.file.system}, {row.id}: {values}")
    ring = f'<circle cx="{x}" cy="{y}" r="8" fill="none" stroke="#888"/>' if outcome.verdict == "miss" else ""
    return f'{ring}<circle cx="{x}" cy="{y}" r="4" {_paint(colour, row.gates)}><title>{title}</title></circle>'


def _paint(colour: str, filled: bool) -> str:
    return f'fill="{colour}" fill-opacity=".75"' if filled else f'fill="none" stroke="{colour}" stroke-width="1.5"'


def _legend(drawn: Sequence[Outcome], x: float) -> Iterator[str]:
    """Groups that are there, each with its rows, then what filled, hollow and shaded means."""
    y = _TOP + 12
    for group, colour in _COLOURS.items():
        rows = [outcome for outcome in drawn if outcome.group == group]
        if rows:
            gating = sum(outcome.entry.row.gates for outcome in rows)
            yield f'<rect x="{x:.1f}" y="{y - 10}" width="11" height="11" fill="{colour}"/>'
            yield _text(f"{x + 18:.1f}", y, f"{group}: {gating} gating, {len(rows) - gating} shown", size=12)
            y += 20
    for text, filled in (("gates, within its tolerance", True), ("shown, fails nothing", False)):
        y += 20
        yield f'<circle cx="{x + 6:.1f}" cy="{y - 4}" r="4" {_paint("#888", filled)}/>'
        yield _text(f"{x + 18:.1f}", y, text, size=12)
    if any(outcome.verdict == "miss" for outcome in drawn):
        y += 20
        yield f'<circle cx="{x + 6:.1f}" cy="{y - 4}" r="8" fill="none" stroke="#888"/>'
        yield f'<circle cx="{x + 6:.1f}" cy="{y - 4}" r="4" {_paint("#888", True)}/>'
        yield _text(f"{x + 18:.1f}", y, "gates, misses its tolerance", size=12)
    # Bands lie over one another, and so do their keys.
    for band in _BANDS:
        y += 20
        layers = sum(band <= other for other in _BANDS)
        for _ in range(layers):
            yield f'<rect x="{x:.1f}" y="{y - 10}" width="11" height="11" fill="#999" fill-opacity=".2"/>'
        yield _text(f"{x + 18:.1f}", y, f"within ±{band:.0%}", size=12)


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _text(
    x: float | str, y: float | str, content: str, *, size: int = 13, anchor: str = "start", turned: str = ""
) -> str:
    turn = f' transform="{turned}"' if turned else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"{turn}>{content}</text>'
