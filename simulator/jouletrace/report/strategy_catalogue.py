"""Which strategies there are, and what each does: a list, and a page for one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.errors import JouletraceError
from jouletrace.report.terminal import heading, print_page, table
from jouletrace.strategies.base import Published, Strategy
from jouletrace.strategies.knobs import describe
from jouletrace.strategies.registry import known, strategy

__all__ = ["print_strategies", "print_strategy", "published_table"]


def print_strategies() -> None:
    """One line per strategy and named combination."""
    made = table("strategy", "stage", "what it does")
    for name in known():
        try:
            found = strategy(name)
        except JouletraceError as error:  # of an installed package, and no reason to hide the others
            made.add_row(name, "", f"cannot be used: {error.problems[0]}")
            continue
        if _is_preset(name, found):
            made.add_row(name, "", f"stands for {found}")
        else:
            made.add_row(name, found.stage, _doc(found).partition("\n")[0])
    print_page([made, Text("\n'jouletrace strategies NAME' describes one; 'jouletrace compare' compares them")])


def print_strategy(name: str) -> None:
    """Describes a strategy, or each of a combination: its docstring, its knobs, what its publication measured.

    Raises :class:`RewriteError` for an unknown name.
    """
    found = strategy(name)
    parts: list[RenderableType] = []
    if _is_preset(name, found):
        parts.append(Text(f"{name} stands for {found}\n"))
    for i, part in enumerate(found.parts):
        parts += [Text("")] if i else []
        parts += _description(part)
    print_page(parts)


def _description(found: Strategy) -> Iterator[RenderableType]:
    yield Text.assemble((found.name, "bold"), (f"  {found.stage}", "dim"))
    yield from _prose(_doc(found))
    if found.source:
        yield Padding(Text(f"Source: {found.source}"), (1, 0, 0, 2))
    if knobs := describe(type(found)):
        yield heading("Knobs")
        made = table("knob", "default", "takes")
        for knob, takes, default in knobs:
            made.add_row(knob, default, takes)
        yield Padding(made, (0, 0, 0, 2))
    if found.published:
        yield heading("Published", "cited, not computed here")
        yield Padding(published_table([(found.name, row) for row in found.published]), (0, 0, 0, 2))


def published_table(rows: list[tuple[str, Published]]) -> RenderableType:
    """Published numbers, with what they are of, and whose strategy they are about."""
    made = table("strategy", "quantity", "of", header=False)
    for name, row in rows:
        what = f"{row.quantity.replace('_', ' ')} {row.value} {row.unit}".strip()
        made.add_row(name, what, f"{row.setting}; {row.source} ({row.certainty})")
    return made


def _prose(doc: str) -> Iterator[RenderableType]:
    """Paragraphs and items of a docstring, to be wrapped anew, without markup."""
    for paragraph in doc.split("\n\n"):
        first, *items = re.split(r"^\* ", paragraph, flags=re.MULTILINE)
        if first:
            yield Padding(Text(" ".join(first.split())), (1, 0, 0, 2))
        for i, item in enumerate(items):
            row = table("", "", header=False)
            row.columns[1].no_wrap = False
            row.add_row("*", " ".join(item.split()))
            yield Padding(row, (0 if i or first else 1, 0, 0, 2))


def _doc(found: Strategy) -> str:
    return cleandoc(type(found).__doc__ or "").replace("`", "")


def _is_preset(name: str, found: Strategy) -> bool:
    """A name that stands for a combination, or for a strategy with knobs."""
    return name in known() and str(found) != name and [part.name for part in found.parts] != [name]
