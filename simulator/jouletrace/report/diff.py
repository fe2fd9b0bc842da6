"""Two results side by side: what changed, by how much, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.ledger.breakdown import SCOPES, Energy
from jouletrace.report.terminal import heading, print_page, table
from jouletrace.result.model import Result
from jouletrace.units import show_bytes, show_energy

__all__ = ["difference", "print_difference"]


def print_difference(a: Result, b: Result, *, top: int = 10) -> None:
    """Prints :func:`difference`."""
    print_page(difference(a, b, top=top))


def difference(a: Result, b: Result, *, top: int = 10) -> Iterator[RenderableType]:
    """Totals, phases and components of ``a`` and ``b``, and the ``top`` layers whose energy changed most."""
    made = table("", ">A", ">B", ">change")
    for name, one, other in _inputs(a, b):
        if one != other:
            made.add_row(name, one, other, "")
    rows: list[tuple[str, int, int, Callable[[int], str]]] = [
        ("cycles", a.cycles, b.cycles, "{:,}".format),
        ("MACs", a.macs, b.macs, "{:,}".format),
        ("DRAM read", a.dram_read_bytes, b.dram_read_bytes, show_bytes),
        ("DRAM written", a.dram_write_bytes, b.dram_write_bytes, show_bytes),
        ("peak memory", a.peak_memory_bytes, b.peak_memory_bytes, show_bytes),
    ]
    rows += [(f"energy, {s}", a.energy(s).energy_aj, b.energy(s).energy_aj, show_energy) for s in SCOPES]
    for name, before, after, show in rows:
        made.add_row(name, show(before), show(after), _change(before, after))
    yield Padding(made, (0, 0, 0, 2))
    for group in ("phase", "component"):
        yield from _groups(f"By {group}", group, a.by(group), b.by(group), None)
    yield from _groups("Layers that changed most", "layer", a.by("layer"), b.by("layer"), top)


def _inputs(a: Result, b: Result) -> Iterator[tuple[str, str, str]]:
    yield "trace", f"{a.trace.name} {a.trace.digest[:8]}", f"{b.trace.name} {b.trace.digest[:8]}"
    yield "hardware", f"{a.hardware['name']} {a.hardware_digest[:8]}", f"{b.hardware['name']} {b.hardware_digest[:8]}"
    yield "only", a.options.only or "the whole step", b.options.only or "the whole step"
    yield "engine", a.engine, b.engine
    yield "model version", str(a.model_version), str(b.model_version)
    for path in dict.fromkeys(u.path for u in (*a.user, *b.user)):
        one, other = (str(_value(result.hardware, path)) for result in (a, b))
        yield path, one, other


def _value(hardware: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a resolved spec, or the empty string."""
    found: Any = hardware
    for part in path.split("."):
        try:
            found = found[int(part) if part.isdecimal() else part]
        except (KeyError, IndexError, TypeError, ValueError):
            return ""
    return found


def _groups(
    title: str, name: str, a: Mapping[str, Energy], b: Mapping[str, Energy], top: int | None
) -> Iterator[RenderableType]:
    both = {key: (a.get(key, Energy()).energy_aj, b.get(key, Energy()).energy_aj) for key in {**a, **b}}
    if top is not None:
        both = dict(sorted(both.items(), key=lambda item: -abs(item[1][1] - item[1][0]))[:top])
        both = {key: pair for key, pair in both.items() if pair[0] != pair[1]}
    if not both:
        return
    made = table(name, ">A", ">B", ">change")
    for key, (before, after) in both.items():
        made.add_row(key or "<model>", show_energy(before), show_energy(after), _change(before, after))
    yield heading(title, "board")
    yield Padding(made, (0, 0, 0, 2))


def _change(before: int, after: int) -> Text:
    """The relative change, green where something went down.

    >>> _change(200, 150).plain
    '-25.0%'
    """
    if before == after:
        return Text("=")
    if not before:
        return Text("new")
    return Text(f"{(after - before) / before:+.1%}", style="green" if after < before else "red")
