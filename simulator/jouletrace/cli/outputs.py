"""Files that a command writes: all of them or none."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from typing import BinaryIO, NamedTuple, TextIO, cast

from jouletrace.errors import UsageError

__all__ = ["Output", "outputs", "text_into"]


class Output(NamedTuple):
    """A place that was asked for, and the open file that goes there."""

    path: str
    file: BinaryIO


@contextmanager
def outputs(places: Mapping[str, str]) -> Generator[dict[str, Output]]:
    """Opens a file for every place, by what it is to hold.

    Places are tried before anything is computed; files are renamed into place after the last one is complete, and not
    at all after an exception. Raises :class:`UsageError` if a place cannot be written, or is named twice.
    """
    from jouletrace.files import replacing

    if len({os.path.realpath(path) for path in places.values()}) < len(places):
        raise UsageError(f"two outputs go to the same file: {', '.join(places.values())}; name a file for each")
    with ExitStack() as stack:
        yield {what: Output(path, stack.enter_context(replacing(path))) for what, path in places.items()}


@contextmanager
def text_into(file: BinaryIO | object) -> Generator[TextIO]:
    """A file of bytes as one of UTF-8 text, with line ends as they are written; the bytes stay open."""
    text = TextIOWrapper(cast(BinaryIO, file), "utf-8", newline="", write_through=True)
    yield text
    text.detach()
