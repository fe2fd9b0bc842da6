"""A table that never cuts a number: where the page is too narrow, columns go on below."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from jouletrace.report.terminal import table

__all__ = ["WideTable", "folded"]

_GAP = 2
# Behind which characters a label is broken, the best first.
_BREAKS = ("+, ", ":@", "=")


class WideTable:
    """Rows under names, as :func:`jouletrace.report.terminal.table` takes them.

    Columns that do not fit beside the first one follow in a further table, which repeats the first column.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
        self.names = names
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for i, columns in enumerate(self._pages(options.max_width)):
            made = table(*(self.names[column] for column in columns))
            for row in self.rows:
                made.add_row(*(row[column] for column in columns))
            yield from ((Text(""), made) if i else (made,))

    def _pages(self, width: int) -> list[list[int]]:
        """Columns of each table; at least one beside the first."""
        first, *others = (self._width(column) for column in range(len(self.names)))
        pages: list[list[int]] = [[0]]
        used = first
        for column, wide in enumerate(others, 1):
            if len(pages[-1]) > 1 and used + _GAP + wide > width:
                pages.append([0])
                used = first
            pages[-1].append(column)
            used += _GAP + wide
        return pages

    def _width(self, column: int) -> int:
        texts = (self.names[column].removeprefix(">"), *(str(row[column]) for row in self.rows))
        return max(cell_len(line) for text in texts for line in text.split("\n"))


def folded(label: str, width: int) -> str:
    """A label in lines of at most ``width``; broken between strategies and knobs, and inside of those if it has to be.

    >>> folded("smd+slu:skip=2/5+psg", 13).splitlines()
    ['smd+', 'slu:skip=2/5+', 'psg']
    """
    lines = [""]
    for piece in (p for whole in _split(label, _BREAKS[0]) for p in _pieces(whole, width, _BREAKS[1:])):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append(piece)
        else:
            lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def _pieces(text: str, width: int, breaks: Sequence[str]) -> Iterator[str]:
    """A text that is too long is cut behind the first of ``breaks``; what is too long still, behind the next."""
    if len(text) <= width:
        yield text
    elif breaks:
        for piece in _split(text, breaks[0]):
            yield from _pieces(piece, width, breaks[1:])
    else:
        yield from (text[i : i + width] for i in range(0, len(text), width))


def _split(text: str, characters: str) -> list[str]:
    """
    >>> _split("smd+slu", "+,")
    ['smd+', 'slu']
    """
    return re.findall(f"[^{characters}]*[{characters}]|[^{characters}]+", text)
