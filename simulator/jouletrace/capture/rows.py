"""The record of a running step as plain rows, with nothing of a framework in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

__all__ = ["Key", "Place", "Ref", "Row", "Stage", "references", "touched"]

Stage = Literal["forward", "backward", "optimizer"]
Key = tuple[int, int]  # storage, version


@dataclass(frozen=True, slots=True)
class Ref:
    """A use of a tensor: which storage at which write version, and which part of it.

    >>> Ref(0, 0, (4, 3), (0, 1), "float32").distinct  # an expanded axis touches one element
    3
    """

    storage: int
    version: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def key(self) -> Key:
        return self.storage, self.version

    @property
    def part(self) -> tuple[object, ...]:
        """Which elements of the storage."""
        return self.storage, self.offset, self.shape, self.strides

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def distinct(self) -> int:
        """Elements of the storage that the use touches."""
        return prod(n for n, stride in zip(self.shape, self.strides, strict=True) if stride != 0)


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the user's program."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """One aten op: its arguments by schema name (tensors as Refs), results, and writes in place.

    ``node`` and ``node_id`` name the autograd node that a backward op computes ("" and -1 in forward).
    """

    name: str
    arguments: dict[str, Any]
    outputs: tuple[Ref, ...]
    writes: tuple[Ref, ...]
    stage: Stage
    layer: str
    place: Place
    node: str = ""
    node_id: int = -1
    grad_enabled: bool = True

    @property
    def reads(self) -> tuple[Ref, ...]:
        return tuple(references(tuple(self.arguments.values())))

    @property
    def produced(self) -> dict[Key, Ref]:
        """New tensor versions: results, and what was written in place (as the whole that it is part of)."""
        return {r.key: r for r in (*self.outputs, *self.writes)}

    @property
    def base(self) -> str:
        """``add`` for both ``aten::add`` and ``aten::add_``."""
        name = self.name.removeprefix("aten::")
        return name if name.startswith("__") else name.removesuffix("_")


def touched(uses: Iterable[Ref], whole: int) -> int:
    """Elements of one tensor that several uses of it touch together, at most the ``whole``.

    Different parts count one by one, the same part once; parts that overlap count twice.
    """
    parts = {use.part: use.distinct for use in uses}
    return min(sum(parts.values()), whole)


def references(value: object) -> Iterator[Ref]:
    """All Refs in nested tuples."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from references(item)  # pyright: ignore[reportUnknownArgumentType]
