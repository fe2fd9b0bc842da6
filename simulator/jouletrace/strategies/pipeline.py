"""Strategies one after the other: ``smd | slu | psg``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import STAGES, Strategy

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline(Strategy):
    """A combination, in the order in which it is applied.

    Raises :class:`RewriteError` for an order that makes no sense, and for strategies that set the same thing.

    >>> from jouletrace.strategies.registry import strategy
    >>> str(strategy("smd") | strategy("slu:skip=0.6") | strategy("psg"))
    'smd+slu:skip=3/5+psg'
    """

    name: ClassVar[str] = "combination"
    members: tuple[Strategy, ...] = ()

    @classmethod
    def of(cls, *strategies: Strategy) -> Pipeline:
        """A combination of strategies and combinations."""
        return cls(tuple(part for strategy in strategies for part in strategy.parts))

    def __post_init__(self) -> None:
        if problems := [sentence for first, second in combinations(self.members, 2)
                        for sentence in _conflicts(first, second)]:  # fmt: skip
            raise RewriteError(list(dict.fromkeys(problems)))

    @property
    def parts(self) -> tuple[Strategy, ...]:
        return self.members

    def __str__(self) -> str:
        return "+".join(map(str, self.members))

    def neutral(self) -> Strategy | None:
        neutral = [member.neutral() for member in self.members]
        return None if None in neutral else Pipeline(tuple(n for n in neutral if n is not None))


def _conflicts(first: Strategy, second: Strategy) -> Iterator[str]:
    if first.name == second.name:
        yield f"{first.name} stands twice in the combination; leave one out"
    elif both := sorted(first.claims & second.claims):
        yield (f"{first.name} and {second.name} both decide about {', '.join(both)}; "
               "leave one of them out")  # fmt: skip
    elif second.name in first.commutes_with or first.name in second.commutes_with:
        return
    elif STAGES.index(second.stage) < STAGES.index(first.stage):
        yield (f"{second.name} ({second.stage}) cannot come after {first.name} ({first.stage}), which rewrites what "
               f"it has to see; write {second.name}+{first.name}")  # fmt: skip
