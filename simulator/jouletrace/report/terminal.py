"""Printing for people: colour, bars and box lines on a terminal, plain ASCII text everywhere else."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["bar", "heading", "print_page", "table"]

_PIPE_WIDTH = 100
_EIGHTHS = " ▏▎▍▌▋▊▉"
# What the reports print beyond ASCII, in ASCII.
_ASCII = str.maketrans({
    "µ": "u", "×": "x", "–": "-", "·": "*", "←": "<-", "…": "...", "█": "#", **dict.fromkeys(_EIGHTHS[1:], ""),
})  # fmt: skip


def print_page(parts: Iterable[RenderableType], file: TextIO | None = None) -> None:
    """Prints parts to ``file``, by default standard output.

    A pipe gets ASCII without colour, 100 columns wide or as wide as ``COLUMNS`` says.
    """
    stream = file or sys.stdout
    terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if terminal else _columns()
    text = io.StringIO()
    console = Console(
        file=text, force_terminal=terminal, width=max(60, width), highlight=False,
        color_system="auto" if terminal else None, no_color=not terminal or "NO_COLOR" in os.environ,
    )  # fmt: skip
    console.print(Group(*parts))
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    page = "\n".join(lines) + "\n"
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    stream.write(page if terminal and utf8 else page.translate(_ASCII).encode("ascii", "backslashreplace").decode())


def _columns() -> int:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and len(columns) < 5 else _PIPE_WIDTH


def heading(title: str, remark: str = "") -> Text:
    """A line above a table."""
    return Text.assemble("\n", (title, "bold"), (f"  {remark}" if remark else "", "dim"))


def table(*columns: str, header: bool = True) -> Table:
    """A table without lines; a column whose name begins with ``>`` is aligned to the right.

    Where the page is too narrow, texts are wrapped, and neither numbers nor the names in the first column.
    """
    made = Table(box=None, show_header=header, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for i, name in enumerate(columns):
        right = name.startswith(">")
        made.add_column(
            name.removeprefix(">"), justify="right" if right else "left", no_wrap=right or i == 0, overflow="fold"
        )
    return made


def bar(share: float, width: int = 24, style: str = "cyan") -> Text:
    """A bar as long as a share of ``width``.

    >>> bar(0.5, 8).plain
    '████'
    """
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return Text("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip(), style=style)
