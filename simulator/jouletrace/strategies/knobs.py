"""Knobs of a strategy as text and back: what stands on the command line and in a trace's header.

A share is exact: ``0.4`` and ``2/5`` are one value. Items of a list are separated by colons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from fractions import Fraction
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jouletrace.errors import RewriteError, did_you_mean

if TYPE_CHECKING:
    from jouletrace.strategies.base import Strategy

__all__ = ["describe", "from_texts", "knobs", "parameters"]

S = TypeVar("S", bound="Strategy")
_WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
MAX_TEXT = 65536


def from_texts(kind: type[S], texts: Mapping[str, str]) -> S:
    """A strategy with some knobs set from texts.

    Raises :class:`RewriteError` for every unknown knob and every text that is no value of its knob.
    """
    known = _types(kind)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            problems.append(f"{kind.name} has no knob {name!r}{did_you_mean(name, list(known))}; {has}")
            continue
        try:
            if len(text) > MAX_TEXT:
                raise ValueError("a text that is not longer than 65,536 characters")
            values[name] = _value(text, known[name])
        except (ValueError, ZeroDivisionError) as error:
            wanted = str(error) if isinstance(error, ValueError) else "a number"
            problems.append(f"{kind.name}: {name} has to be {wanted} (got {text[:80]!r})")
    if problems:
        raise RewriteError(problems)
    return kind(**values)


def knobs(strategy: Strategy) -> Iterator[tuple[str, str, str]]:
    """(knob, its value, its default), the latter two as text."""
    for knob in fields(strategy):
        yield knob.name, _text(getattr(strategy, knob.name)), _text(_default(knob))


def parameters(strategy: Strategy) -> tuple[tuple[str, str | int], ...]:
    """Every knob and its value, as a trace's header keeps them; :func:`from_texts` reads them back."""
    return tuple((name, text) for name, text, _ in knobs(strategy))


def describe(kind: type[Strategy]) -> list[tuple[str, str, str]]:
    """(knob, what it takes, its default) of a kind of strategy."""
    types = _types(kind)
    return [(knob.name, _wanted(types[knob.name]), _text(_default(knob))) for knob in fields(kind)]


@cache
def _types(kind: type[Strategy]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {knob.name: hints[knob.name] for knob in fields(kind)}


def _default(knob: Field[Any]) -> object:
    return knob.default_factory() if callable(knob.default_factory) else knob.default


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        items: tuple[object, ...] = value  # pyright: ignore[reportUnknownVariableType]
        return ":".join(map(_text, items))
    return "none" if value is None else str(value)


def _value(text: str, kind: Any) -> Any:
    """The value of a text; ValueError says what it should have been."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if NoneType in inner and text == "none":
            return None
        for option in (each for each in inner if each is not NoneType):
            try:
                return _value(text, option)
            except ValueError:
                continue
        raise ValueError(_wanted(kind))
    if origin is tuple:
        return tuple(_value(item, inner[0]) for item in text.split(":")) if text else ()
    if origin is Literal:
        if text not in inner:
            raise ValueError(_wanted(kind) + did_you_mean(text, [str(i) for i in inner]))
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError(_wanted(kind))
        return _WORDS[text.lower()]
    if kind is str:
        return text
    try:
        return int(text) if kind is int else Fraction(text)
    except ValueError:
        raise ValueError(_wanted(kind)) from None


def _wanted(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("none" if each is NoneType else _wanted(each) for each in inner)
    if origin is tuple:
        return f"{_wanted(inner[0])}, several separated by colons"
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    return {bool: "on or off", str: "a text", int: "a whole number", Fraction: "a number such as 0.4 or 2/3"}[kind]
