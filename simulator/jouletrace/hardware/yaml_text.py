"""Spec text to plain data, with the place of every value.

The dialect is a small, safe part of YAML: YAML 1.2 scalars (``1e-12`` is a number; ``no``, ``on`` and
``12:30`` are text; ``017`` is 17), no aliases, no tags, no duplicate keys, at most 1 MiB and 64 levels. The
text is read event by event, so a hostile file is refused where it turns hostile and never expanded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, NoReturn, cast

import yaml

from jouletrace.errors import SpecError

__all__ = [
    "MAX_BYTES", "MAX_DEPTH", "Document", "Path", "as_list", "as_mapping", "one_line", "read_file", "read_text",
    "short",
]  # fmt: skip

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
_MAX_PROBLEMS = 100
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class Document:
    """Plain data and ``file:line:column`` of every value (and, for members of a mapping, of its key)."""

    name: str
    data: Any
    values: dict[Path, str] = field(default_factory=dict[Path, str])
    keys: dict[Path, str] = field(default_factory=dict[Path, str])


def as_mapping(value: Any) -> dict[str, Any] | None:
    """The value if it is a mapping."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_list(value: Any) -> list[Any] | None:
    """The value if it is a list."""
    return cast("list[Any]", value) if isinstance(value, list) else None


def short(value: object) -> str:
    """A value as an error shows it.

    >>> short("x" * 100)[-5:], short([1, 2])
    ("xxx…'", 'a list')
    """
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(f"{value[:60]}…" if isinstance(value, str) and len(value) > 64 else value)


def one_line(text: str) -> str:
    """Text of a file as it may be printed: control characters escaped.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def read_file(path: FilePath) -> Document:
    """Reads a spec file. Raises :class:`SpecError` with every problem of its text."""
    name = os.fspath(path)
    try:
        if not path.is_file():
            raise SpecError(f"{name}: there is no such file; name a shipped spec, or give the path of a YAML file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SpecError(f"{name!r}: cannot be read: {error}") from None
    return read_text(raw, name)


def read_text(raw: bytes | str, name: str) -> Document:
    """Reads spec text.

    >>> document = read_text("clock: 100 MHz\\nscale: 1e-12\\nanswer: no", "a.yaml")
    >>> document.data
    {'clock': '100 MHz', 'scale': 1e-12, 'answer': 'no'}
    >>> document.values[("scale",)]
    'a.yaml:2:8'
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    if len(data) > MAX_BYTES:
        raise SpecError(f"{name}: is larger than {MAX_BYTES} bytes; a spec is a few kilobytes of text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    reader = _Reader(name)
    try:
        for event in _events(text):
            reader.take(event)
    except _RefusedError as error:
        reader.problems.append(str(error))
    except yaml.YAMLError as error:
        reader.problems.append(_syntax(error, name))
    except RecursionError:  # of the pure Python parser; the C parser keeps its own stack
        reader.problems.append(f"{name}: is nested too deeply; {MAX_DEPTH} levels are allowed")
    if not reader.problems and not reader.found:
        reader.problems.append(f"{name}: is empty; a spec is a mapping of keys to values")
    if reader.problems:
        raise SpecError([one_line(problem) for problem in reader.problems])
    return Document(name, reader.root, reader.values, reader.keys)


def _events(text: str) -> Iterator[Any]:
    parser = _PARSER(text)
    try:
        while parser.check_event():
            yield parser.get_event()
    finally:
        parser.dispose()


def _syntax(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "is no YAML"
    context = getattr(error, "context", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    return f"{place}: cannot be read as YAML: {problem}{f' ({context})' if context else ''}"


class _RefusedError(Exception):
    """Stops the reading: what follows could only be guessed at."""


class _Frame:
    """A mapping or sequence that is being filled."""

    def __init__(self, node: dict[str, Any] | list[Any], path: Path) -> None:
        self.node = node
        self.path = path
        self.key: str | None = None
        self.skip = False


class _Reader:
    """Builds data from events with a stack of its own; problems that do not hide others are collected."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Any = None
        self.found = False
        self.problems: list[str] = []
        self.values: dict[Path, str] = {}
        self.keys: dict[Path, str] = {}
        self._stack: list[_Frame] = []

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, f"uses the alias *{event.anchor}; write the value out")
            self._put(event, None)
        elif isinstance(event, yaml.DocumentStartEvent):
            if self.found:
                self._stop(event, "starts a second document; one file is one spec")
            self.found = True
        elif isinstance(event, yaml.NodeEvent):
            if event.anchor is not None:
                self._problem(event, f"defines the anchor &{event.anchor}; write values out where they belong")
            tag = getattr(event, "tag", None)
            if tag is not None:
                self._problem(event, f"has the tag {tag[:64]!r}; plain values are enough")
            self._node(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._stack.pop()

    def _node(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            frame = self._stack[-1] if self._stack else None
            if frame is not None and isinstance(frame.node, dict) and frame.key is None:
                self._key(event, frame)
            else:
                self._put(event, self._scalar(event))
            return
        if len(self._stack) == MAX_DEPTH:
            self._stop(event, f"is nested more than {MAX_DEPTH} levels deep")
        node: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Frame(node, self._put(event, node)))

    def _key(self, event: Any, frame: _Frame) -> None:
        key: str = event.value
        if len(key) > 256:
            self._problem(event, f"is a key of {len(key)} characters; 256 are allowed")
        frame.skip = key in frame.node
        if frame.skip:
            self._problem(event, f"repeats the key {key[:64]!r}; each key may stand once")
        else:
            self.keys[(*frame.path, key)] = self._place(event)
        frame.key = key

    def _put(self, event: Any, value: Any) -> Path:
        """Stores a value where the innermost open collection wants it; returns its path."""
        if not self._stack:
            self.root, path = value, ()
        else:
            frame = self._stack[-1]
            if isinstance(frame.node, list):
                path = (*frame.path, len(frame.node))
                frame.node.append(value)
            elif frame.key is None:
                self._stop(event, "is a key that is no plain text; keys are words")
            else:
                path = (*frame.path, frame.key)
                if not frame.skip:
                    frame.node[frame.key] = value
                frame.key = None
        self.values.setdefault(path, self._place(event))
        return path

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if not event.implicit[0]:
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if not _FLOAT.fullmatch(text):
            return text
        if len(text) > 64:
            self._problem(event, f"is a number of {len(text)} characters; 64 are allowed")
            return 0
        number = int(text) if _INT.fullmatch(text) else float(text)
        if isinstance(number, float) and not math.isfinite(number):
            self._problem(event, f"is no finite number (got {text})")
            return 0
        return number

    def _place(self, event: Any) -> str:
        mark = event.start_mark
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}"

    def _problem(self, event: Any, sentence: str) -> None:
        self.problems.append(f"{self._place(event)}: {sentence}")
        if len(self.problems) == _MAX_PROBLEMS:
            self._stop(event, "is where reading stopped, after too many problems")

    def _stop(self, event: Any, sentence: str) -> NoReturn:
        raise _RefusedError(f"{self._place(event)}: {sentence}")
