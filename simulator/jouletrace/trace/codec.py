"""Strict JSON, and records: how one line of a trace file becomes a dataclass, and back.

JSON itself allows what a trace must not hold: floats, NaN, integers without end, keys that stand twice,
nesting that exhausts the stack. :func:`parse` refuses these with a sentence. :func:`decode` then follows
the type annotations of a frozen dataclass, so that a new field needs no code here.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jouletrace.errors import did_you_mean

__all__ = [
    "MAX_DEPTH",
    "MAX_INTEGER",
    "MAX_PROBLEMS",
    "FieldError",
    "canonical",
    "decode",
    "encode",
    "field_names",
    "parse",
]

MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MAX_PROBLEMS = 20

T = TypeVar("T")
Reader = Callable[[Any], Any]

# A string up to its closing quote or the end of the text, or one bracket.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|([\[{])|[\]}]', re.DOTALL)


class FieldError(ValueError):
    """What is wrong with a value: pairs of a path to a field (empty: all of it) and half a sentence."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("; ".join(self.sentences()))

    def sentences(self, place: str = "") -> list[str]:
        """The problems, each behind its path below ``place``.

        >>> FieldError(("nest.N", "must be an integer (got '3')")).sentences("op")
        ["op.nest.N: must be an integer (got '3')"]
        """
        return [f"{path}: {text}" if (path := _join(place, step)) else text for step, text in self.problems]

    def under(self, step: str) -> FieldError:
        """The same problems, seen from one level further out."""
        return FieldError(*((_join(step, path), text) for path, text in self.problems))


def _join(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer and inner and not inner.startswith("[") else outer + inner


# -- strict JSON


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise FieldError(("", f"the key {reprlib.repr(twice)} stands twice in one object"))
    return result


def _small_integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else MAX_INTEGER + 1
    if abs(value) > MAX_INTEGER:
        raise FieldError(("", f"the integer {reprlib.repr(digits)[1:-1]} is larger than 2**63 - 1"))
    return value


def _no_float(number: str) -> Any:
    raise FieldError(("", f"{reprlib.repr(number)[1:-1]} is not an integer; a trace holds integers only"))


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_small_integer, parse_float=_no_float, parse_constant=_no_float
)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse(text: str) -> Any:
    """The value of a JSON text of integers, strings, truth values, lists and objects; raises FieldError.

    >>> parse('{"bits": 32}')
    {'bits': 32}
    >>> parse('{"bits": 3.2}')
    Traceback (most recent call last):
    ...
    jouletrace.trace.codec.FieldError: 3.2 is not an integer; a trace holds integers only
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise FieldError(("", f"the JSON is nested more than {MAX_DEPTH} levels deep"))
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise FieldError(("", f"this is not JSON: {error.msg} at column {error.colno}")) from None


def _depth(text: str) -> int:
    """How deep a text nests, strings set aside; stops looking one level beyond the limit."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0][0] != '"':
            depth += 1 if match[1] else -1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
    return deepest


def canonical(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, ASCII only.

    >>> canonical({"b": (1, 2), "a": "µ"})
    '{"a":"\\\\u00b5","b":[1,2]}'
    """
    return _ENCODER.encode(value)


# -- records


@cache
def field_names(record: type) -> tuple[str, ...]:
    """The names of a dataclass's fields, in order."""
    return tuple(f.name for f in fields(record))


def _tag(record: type) -> str | None:
    """The word that tells a record from the others of its union: its class attribute ``kind``."""
    kind = getattr(record, "kind", None)
    return kind if isinstance(kind, str) else None


@cache
def _defaults(record: type) -> tuple[tuple[str, Any], ...]:
    return tuple((f.name, f.default) for f in fields(record))


def encode(record: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values; fields that have their default value are left out.

    >>> from jouletrace.trace.model import Gemm
    >>> encode(Gemm(1, 2, 3, 4, tb=True))
    {'kind': 'gemm', 'B': 1, 'M': 2, 'N': 3, 'K': 4, 'tb': True}
    """
    kind = _tag(record.__class__)
    out: dict[str, Any] = {} if kind is None else {"kind": kind}
    for name, default in _defaults(record.__class__):
        value = getattr(record, name)
        if value != default:
            out[name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return encode(value) if hasattr(value, "__dataclass_fields__") else value


def decode(record: type[T], value: Any) -> T:
    """The dataclass ``record`` from plain JSON values; raises FieldError with every problem of this value.

    >>> from jouletrace.trace.model import Gate
    >>> decode(Gate, {"unit": "block", "name": "layer1.0"})
    Gate(unit='block', name='layer1.0', decision=None)
    >>> decode(Gate, {"unit": "block", "name": 3})
    Traceback (most recent call last):
    ...
    jouletrace.trace.codec.FieldError: name: must be a text (got 3)
    """
    return _reader(record)(value)


@dataclass(frozen=True)
class _Record:
    """Reads an object with the fields of one dataclass."""

    type: type
    readers: dict[str, Reader]
    required: frozenset[str]
    tag: str | None

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise FieldError(("", f"must be an object (got {reprlib.repr(value)})"))
        given: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        problems: list[tuple[str, str]] = []
        arguments: dict[str, Any] = {}
        for key, item in given.items():
            reader = self.readers.get(key)
            if reader is not None:
                try:
                    arguments[key] = reader(item)
                except FieldError as error:
                    problems.extend(error.under(key).problems)
            elif key != "kind" or self.tag is None:
                known = tuple(self.readers)
                hint = _hint(key, known) or f"; there are {', '.join(known)}"
                problems.append(("", f"the field {reprlib.repr(key)} is unknown{hint}"))
            if len(problems) >= MAX_PROBLEMS:
                break
        if missing := [name for name in self.readers if name in self.required and name not in given]:
            problems.append(("", f"the field {missing[0]!r} is missing" if len(missing) == 1 else
                             f"the fields {', '.join(map(repr, missing))} are missing"))  # fmt: skip
        if problems:
            raise FieldError(*problems)
        return self.type(**arguments)


@dataclass(frozen=True)
class _Tagged:
    """Reads one of several dataclasses, told apart by the field ``kind``."""

    records: dict[str, _Record]

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise FieldError(("", f"must be an object (got {reprlib.repr(value)})"))
        given: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        kind = given.get("kind")
        if not isinstance(kind, str) or kind not in self.records:
            raise FieldError(("kind", _not_among(tuple(self.records), kind)))
        return self.records[kind](given)


@cache
def _reader(hint: Any) -> Reader:
    """A function that turns plain JSON into a value of the annotated type, or raises FieldError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin is Literal:
        return lambda value: _choice(arguments, value)
    if origin is tuple and arguments[-1] is Ellipsis:
        each = _reader(arguments[0])
        return lambda value: tuple(_items(each, _list(value)))
    if origin is tuple:
        readers = tuple(_reader(a) for a in arguments)
        return lambda value: _fixed(readers, value)
    if origin in (Union, UnionType):
        options = tuple(_reader(a) for a in arguments)
        if all(isinstance(o, _Record) and o.tag for o in options):
            return _Tagged({o.tag: o for o in options if isinstance(o, _Record) and o.tag})
        return lambda value: _either(options, value)
    return _record(hint)


def _record(record: type) -> _Record:
    hints = get_type_hints(record)
    readers = {name: _reader(hints[name]) for name in field_names(record)}
    required = frozenset(f.name for f in fields(record) if f.default is MISSING)
    return _Record(record, readers, required, _tag(record))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise FieldError(("", f"must be a text (got {reprlib.repr(value)})"))
    if not value.isprintable():
        raise FieldError(("", f"must hold printable characters only (got {reprlib.repr(value)})"))
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise FieldError(("", f"must be an integer (got {reprlib.repr(value)})"))
    if abs(value) > MAX_INTEGER:
        raise FieldError(("", "must be smaller than 2**63"))
    return value


def _boolean(value: Any) -> bool:
    if value is not True and value is not False:
        raise FieldError(("", f"must be true or false (got {reprlib.repr(value)})"))
    return value


def _null(value: Any) -> None:
    if value is not None:
        raise FieldError(("", f"must be null (got {reprlib.repr(value)})"))


_SCALARS: dict[Any, Reader] = {str: _text, int: _integer, bool: _boolean, NoneType: _null}


def _choice(words: tuple[str, ...], value: Any) -> str:
    if not isinstance(value, str) or value not in words:
        raise FieldError(("", _not_among(words, value)))
    return value


def _not_among(words: tuple[str, ...], value: Any) -> str:
    return f"must be one of {', '.join(words)} (got {reprlib.repr(value)}){_hint(value, words)}"


def _hint(word: Any, known: tuple[str, ...]) -> str:
    """What was probably meant; long words are not compared, because that takes long."""
    return did_you_mean(word, known) if isinstance(word, str) and len(word) <= 64 else ""


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise FieldError(("", f"must be a list (got {reprlib.repr(value)})"))
    return value  # pyright: ignore[reportUnknownVariableType]


def _items(reader: Reader, values: list[Any]) -> list[Any]:
    try:
        return [reader(v) for v in values]
    except FieldError:
        for index, value in enumerate(values):
            try:
                reader(value)
            except FieldError as error:
                raise error.under(f"[{index}]") from None
        raise


def _fixed(readers: tuple[Reader, ...], value: Any) -> tuple[Any, ...]:
    values = _list(value)
    if len(values) != len(readers):
        raise FieldError(("", f"must be a list of {len(readers)} (got {reprlib.repr(value)})"))
    return tuple(reader(v) for reader, v in zip(readers, values, strict=True))


def _either(options: tuple[Reader, ...], value: Any) -> Any:
    problems: list[tuple[str, str]] = []
    for option in options:
        try:
            return option(value)
        except FieldError as error:
            # Of `Gate | None` only what is wrong with the gate is worth telling.
            problems = list(error.problems) if option is not _null else problems
    raise FieldError(*problems)
