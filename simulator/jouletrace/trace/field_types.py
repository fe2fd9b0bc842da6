"""Whether the fields of a record have the types of their annotations, without a word on what is wrong.

Most records are right, and are looked at again after every rewrite. :func:`jouletrace.trace.codec.decode` tells what is
wrong with the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from jouletrace.trace.codec import MAX_INTEGER, field_names

__all__ = ["well_typed"]

Test = Callable[[Any], bool]


@cache
def well_typed(hint: Any) -> Test:
    """A test that passes only values of the annotated type: printable texts, integers below 2**63, tuples and records.

    A few right values fail, such as those of a subclass.

    >>> from jouletrace.trace.model import Gate
    >>> well_typed(Gate)(Gate("block", "layer1.0")), well_typed(Gate)(Gate("block", 3))
    (True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return _SCALARS[hint]
    if origin is Literal:
        return lambda value: type(value) is str and value in arguments
    if origin is tuple and arguments[-1] is Ellipsis:
        return _texts if arguments[0] is str else _Items(well_typed(arguments[0]))
    if origin is tuple:
        return _Fields(tuple, tuple(map(well_typed, arguments)), tuple)
    if origin in (Union, UnionType):
        by_type = {option: well_typed(option) for option in arguments}
        return lambda value: (test := by_type.get(type(value))) is not None and test(value)
    hints = get_type_hints(hint)
    tests = tuple(well_typed(hints[name]) for name in field_names(hint))
    return _Fields(hint, tests, _parts(field_names(hint)))


@dataclass(frozen=True)
class _Fields:
    """A value of this type, each of its parts of its own type."""

    type: type
    tests: tuple[Test, ...]
    parts: Callable[[Any], tuple[Any, ...]]

    def __call__(self, value: Any) -> bool:
        if type(value) is not self.type:
            return False
        parts = self.parts(value)
        if len(parts) != len(self.tests):
            return False
        for test, part in zip(self.tests, parts, strict=True):  # noqa: SIM110 - all() of a generator takes longer
            if not test(part):
                return False
        return True


def _parts(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


@dataclass(frozen=True)
class _Items:
    """A tuple of values that all pass one test."""

    test: Test

    def __call__(self, value: Any) -> bool:
        return type(value) is tuple and all(map(self.test, cast(tuple[Any, ...], value)))


def _texts(value: Any) -> bool:
    try:
        return type(value) is tuple and "".join(cast(tuple[Any, ...], value)).isprintable()
    except TypeError:
        return False


_SCALARS: dict[Any, Test] = {
    str: lambda value: type(value) is str and value.isprintable(),
    int: lambda value: type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER,
    bool: lambda value: value is True or value is False,
    NoneType: lambda value: value is None,
}
