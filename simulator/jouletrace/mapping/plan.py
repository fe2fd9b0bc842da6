"""What an op takes over from the whole op that it stands for, and which share of its results is wanted.

An accelerator is programmed for the shapes of a network once. A step that a strategy has changed runs the same
program with shorter loops: fewer samples, fewer channels, narrower operands. So the tile of such an op is that of the
*base* op, the op of the same name in the step as it was; searching anew would give it a tile that nobody planned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction

from jouletrace.trace.model import NESTS, Conv, Gemm, Nest, Op, Pool, Trace

__all__ = ["Base", "base_of", "part", "wanted_share"]

# Dimensions that may be shorter than those of the base, where not all may: a kernel or a map is another shape.
_LOOPS: dict[type[Nest], frozenset[str]] = {Conv: frozenset("NKCG"), Pool: frozenset("NC")}
_FIELDS = {nest: tuple(field.name for field in fields(nest)) for nest in NESTS.values()}


@dataclass(frozen=True, slots=True)
class Base:
    """An op of the step for which the accelerator was planned."""

    op: Op
    trace: Trace


def base_of(op: Op, base: Trace | None) -> Base | None:
    """The op of the same name in ``base`` if the loops of ``op`` are its loops, or shorter."""
    whole = None if base is None else base.op.get(op.name)
    return Base(whole, base) if base is not None and whole is not None and _is_shorter(op.nest, whole.nest) else None


def _is_shorter(nest: Nest, whole: Nest) -> bool:
    """Do two nests of one kind differ by the length of loops at most, and none is longer than the whole one's?

    >>> _is_shorter(Gemm(1, 6, 4, 5), Gemm(1, 8, 4, 5)), _is_shorter(Gemm(1, 8, 4, 5, ta=True), Gemm(1, 8, 4, 5))
    (True, False)
    """
    if type(nest) is not type(whole):
        return False
    if nest is whole:
        return True
    loops = _LOOPS.get(type(nest))
    for name in _FIELDS[type(nest)]:
        own, other = getattr(nest, name), getattr(whole, name)
        is_loop = type(own) is int and (loops is None or name in loops)
        if own > other if is_loop else own != other:
            return False
    return True


def wanted_share(op: Op) -> Fraction:
    """The share of the results of a conv or gemm that are wanted (``write_elements``); 1 for other kinds."""
    if not op.write_elements or not isinstance(op.nest, Conv | Gemm):
        return Fraction(1)
    return Fraction(op.write_elements[0], op.nest.results)


def part(count: int, share: Fraction) -> int:
    """A share of a count, rounded up.

    >>> part(7, Fraction(1, 2))
    4
    """
    return -(-count * share.numerator // share.denominator)
