"""One picture of a result: the energy of each phase, split by component, as an SVG without any library."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TextIO

from jouletrace.ledger.breakdown import Scope
from jouletrace.result.model import Result
from jouletrace.units import show_energy

__all__ = ["export_svg"]

_SCOPE: Scope = "chip+dram"
# Colours that differ for colour-blind readers too (Okabe and Ito), on light and on dark ground.
_COLOURS = {
    "array": "#0072b2", "buffers": "#56b4e9", "vector": "#009e73", "host": "#f0e442", "DRAM": "#e69f00",
    "chip static": "#999999",
}  # fmt: skip
_PARTS = {"array": "array", "vector": "vector", "host": "host", "dram": "DRAM", "chip": "chip static"}
_LEFT, _WIDTH, _BAR, _STEP, _TOP = 130, 560, 26, 40, 78


def export_svg(file: TextIO, result: Result) -> None:
    """Writes a bar per phase; its length is the energy of chip and DRAM, its colours are the components."""
    file.write("\n".join(_svg(result)) + "\n")


def _svg(result: Result) -> Iterator[str]:
    bars: dict[str, dict[str, int]] = {}
    for row in result.breakdown.rows:
        if row.within(_SCOPE):
            parts = bars.setdefault(row.phase, dict.fromkeys(_COLOURS, 0))
            parts[_PARTS.get(row.component, "buffers")] += row.energy.energy_aj
    longest = max((sum(parts.values()) for parts in bars.values()), default=1) or 1
    shown = [part for part in _COLOURS if any(parts[part] for parts in bars.values())]
    height = _TOP + _STEP * len(bars) + 8
    total = result.energy(_SCOPE)
    title = f"{result.trace.name} on {result.hardware['name']}"
    if result.options.only is not None:
        title += f", only {result.options.only}"

    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 100} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#555">'
    )
    yield '<style>@media (prefers-color-scheme: dark) { svg { fill: #bbb } }</style>'
    yield f"<title>Energy of {escape(title)}</title>"
    interval = f"{show_energy(total.low_aj)} to {show_energy(total.high_aj)}"
    yield _text(14, 24, f'<tspan font-weight="600">{escape(title)}</tspan>', size=15)
    yield _text(14, 44, f"{show_energy(total.energy_aj)} on chip and in DRAM ({interval})")
    x = _LEFT
    for part in shown:
        yield f'<rect x="{x}" y="56" width="11" height="11" fill="{_COLOURS[part]}"/>'
        yield _text(x + 16, 66, part, size=12)
        x += 34 + 7 * len(part)
    for i, (phase, parts) in enumerate(bars.items()):
        y = _TOP + _STEP * i + 6
        yield _text(_LEFT - 10, y + 18, phase.replace("_", " "), anchor="end")
        x = 0
        for part in shown:
            begin, x = x, x + parts[part]
            left, right = begin * _WIDTH / longest, x * _WIDTH / longest
            yield (
                f'<rect x="{_LEFT + left:.1f}" y="{y}" width="{right - left:.1f}" height="{_BAR}" '
                f'fill="{_COLOURS[part]}">'
                f"<title>{phase}: {part} {show_energy(parts[part])}</title></rect>"
            )
        yield _text(f"{_LEFT + x * _WIDTH / longest + 8:.1f}", y + 18, show_energy(x))
    yield "</svg>"


def _text(x: float | str, y: float, content: str, *, size: int = 13, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{content}</text>'
