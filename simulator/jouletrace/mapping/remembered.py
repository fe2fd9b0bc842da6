"""What was worked out for a step on a hardware is kept, and found again for whatever equals them.

A comparison replays few distinct steps many times: every seed of a training has the same ones, and so has every
combination that ends in the same rewrite. A sweep over designs replays one step on hardwares that are alike in most.
Inputs are frozen values, so nothing that was kept grows stale. The environment variable ``JOULETRACE_NO_CACHE=1`` turns
it off; the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from jouletrace.hardware.spec import Hardware
from jouletrace.store.settings import is_off
from jouletrace.trace.model import Trace

__all__ = ["Seen", "remembered"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Seen:
    """A hardware as a function sees it that looks at nothing but ``what``: equal where that is equal.

    >>> from jouletrace.hardware.load import load_hardware
    >>> slow, fast = (load_hardware("zedboard-int8", [f"clock={mhz} MHz"]) for mhz in (50, 100))
    >>> Seen(slow.word_bits, slow) == Seen(fast.word_bits, fast)
    True
    """

    what: Hashable
    hardware: Hardware = field(compare=False)


class _Key:
    """A large value that is looked up: equal ones are equal keys, and its hash looks at little of it."""

    def __init__(self, value: Trace | Hardware) -> None:
        self.value = value
        parts = (value.header, len(value.tensors), len(value.ops)) if isinstance(value, Trace) else (value.name,)
        self.hash = hash(parts)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and (self.value is other.value or self.value == other.value)


def remembered(size: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keeps the last ``size`` results of a function of traces, hardware, and whatever else can be hashed.

    Arguments have to be given by position. What it returns must not be changed by anybody.

    >>> calls = []
    >>> @remembered(2)
    ... def twice(n: int) -> int:
    ...     calls.append(n)
    ...     return 2 * n
    >>> (twice(3), twice(3), len(calls))
    (6, 6, 1)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @lru_cache(maxsize=size)
        def kept(*arguments: object) -> R:
            given: tuple[Any, ...] = tuple(a.value if isinstance(a, _Key) else a for a in arguments)
            return function(*given)  # pyright: ignore[reportCallIssue]

        @wraps(function)
        def find(*arguments: P.args, **keywords: P.kwargs) -> R:
            if is_off():
                return function(*arguments, **keywords)
            given: tuple[object, ...] = arguments
            return kept(*(_Key(a) if isinstance(a, Trace | Hardware) else a for a in given))

        return find

    return decorate
