"""How often an op that is no matrix product passes over its data, and what it does on the way.

A *sweep* streams operands through the vector unit once: what it loads, what it stores, and the primitive
operations in between. Most ops are one sweep. A second one is needed where a result depends on statistics of
a whole set: batch norm always (a channel is spread over the batch), a row-wise function (layer norm, softmax)
only if a row is longer than a chunk. Scattering writes its table first, then adds row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from jouletrace.errors import MappingError, did_you_mean
from jouletrace.mapping.primitives import (
    CELLS,
    ELEMENTWISE,
    FROZEN_NORM,
    LOSSES,
    NORMS,
    REDUCTIONS,
    Work,
    elementwise_work,
    together,
    update_work,
    work,
)
from jouletrace.trace.model import (
    Cell,
    Copy,
    Elementwise,
    Gather,
    Loss,
    Norm,
    Op,
    Pool,
    Reduce,
    Rng,
    Scatter,
    Softmax,
    Sync,
    Trace,
    Update,
)

__all__ = ["Operand", "Sweep", "operands", "sweeps"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operand:
    """What one sweep moves of one tensor: ``words`` elements; in scattered rows of ``row`` elements, or (0)
    in one run."""

    tensor: str
    words: int
    row: int = 0


Operands = tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over data.

    ``work`` is done ``elements`` times, ``set_work`` once for each of ``sets`` (a channel, a row, an output).
    Chunks are whole multiples of ``row`` elements where a row fits one. ``in_step``: operands of different
    length advance together (the two maps of a pool); else short ones come first, and short results last.
    ``after_stores``: loads what the sweep before it stored.
    """

    loads: Operands
    stores: Operands
    elements: int
    work: Work = ()
    sets: int = 0
    set_work: Work = ()
    row: int = 1
    in_step: bool = False
    after_stores: bool = False

    @property
    def longest(self) -> int:
        """Elements of its longest operand or result."""
        return max((o.words for o in (*self.loads, *self.stores)), default=0)


def sweeps(op: Op, trace: Trace, chunk: int) -> tuple[Sweep, ...]:
    """The sweeps of one op for chunks of at most ``chunk`` elements; none for a ``sync``.

    The formulas of phase ``forward`` are the forward ones. Windows of a pool count whole at the border.

    Raises MappingError for functions that no table lists, and for kinds that are matrix products.

    >>> from jouletrace.trace.model import Header, Op, Tensor
    >>> x, y = (Tensor(n, (4, 8), 32, "fp", "activation") for n in "xy")
    >>> op = Op("act:forward", "forward", "act", Elementwise("silu", 32), ("x",), ("y",))
    >>> sweep, = sweeps(op, Trace(Header("toy", 4), (x, y), (op,)), chunk=16)
    >>> sweep.work
    (('add', 1), ('mul', 1), ('div', 1), ('exp', 1))
    """
    loads, stores = operands(op, trace)
    forward = op.phase == "forward"
    match op.nest:
        case Elementwise(function, elements):
            per_element = elementwise_work(function)
            if per_element is None:
                _known(op, "elementwise function", function, ELEMENTWISE)
            return (Sweep(loads, stores, elements, per_element or ()),)
        case Copy(_, elements):
            return _copy(loads, stores, elements)
        case Rng(elements):
            return (Sweep(loads, stores, elements, work(random=1, compare=1)),)
        case Update(rule, elements, operations):
            return (Sweep(loads, stores, elements, update_work(rule, operations)),)
        case Cell(function, batch, hidden):
            return (Sweep(loads, stores, batch * hidden, CELLS[function, forward], in_step=True),)
        case Reduce(function, elements, outputs):
            per_element, per_output = _known(op, "reduction", function, REDUCTIONS)
            whole = Sweep(loads, stores, elements, per_element, outputs, per_output)
            return _one_by_one(whole) if sum(o.words for o in loads) == elements else (whole,)
        case Pool() as pool:
            outputs = pool.N * pool.C * pool.OY * pool.OX
            return (Sweep(loads, stores, outputs, _pool(op, pool, forward), in_step=True),)
        case Norm() as norm:
            return _norm(op, norm, loads, stores, chunk)
        case Softmax(rows, width):
            return _softmax(loads, stores, rows, width, chunk, forward)
        case Loss() as loss:
            return _loss(op, loss, loads, stores, chunk)
        case Gather(rows, width):
            table = Operand(loads[0].tensor, rows * width, row=width)
            return (Sweep((table, *loads[1:]), stores, rows * width, row=width),)
        case Scatter(rows, width):
            return _scatter(trace, loads, stores, rows, width)
        case Sync():
            return ()
        case _:
            raise MappingError(
                f"op {op.name!r} is of kind {op.kind!r}, which the vector unit cannot execute; "
                "map it to the array"
            )


def operands(op: Op, trace: Trace) -> tuple[Operands, Operands]:
    """What an op reads and writes. Views of one tensor are one operand, and never more than the tensor."""
    touched: dict[str, int] = {}
    for name, elements in zip(op.reads, trace.elements_read(op), strict=True):
        touched[name] = min(touched.get(name, 0) + elements, trace.tensor[name].elements)
    loads = tuple(Operand(name, words) for name, words in touched.items())
    computed = zip(op.writes, trace.elements_written(op), strict=True)
    return loads, tuple(Operand(name, elements) for name, elements in computed)


def _known(op: Op, what: str, function: str, table: Mapping[str, T]) -> T:
    if function not in table:
        raise MappingError(
            f"op {op.name!r} has the {what} {function!r}, which the vector unit does not know"
            f"{did_you_mean(function, list(table))}; use one of mapping/primitives.py, or add its row there"
        )
    return table[function]


def _one_by_one(whole: Sweep) -> tuple[Sweep, ...]:
    """What is reduced together (a global norm) streams one by one; the result comes with the last."""
    *first, last = (replace(whole, loads=(o,), elements=o.words) for o in whole.loads)
    return (*(replace(s, stores=(), sets=0) for s in first), last)


def _copy(loads: Operands, stores: Operands, elements: int) -> tuple[Sweep, ...]:
    """Pieces that make up the result (cat, stack) are copied one after the other."""
    if len(stores) == 1 and sum(o.words for o in loads) == stores[0].words:
        return tuple(Sweep((o,), (Operand(stores[0].tensor, o.words),), o.words) for o in loads)
    return (Sweep(loads, stores, elements),)


def _pool(op: Op, pool: Pool, forward: bool) -> Work:
    """Per output: its window; in backward a sum into every element that several windows may reach."""
    window = pool.R * pool.S
    overlaps = pool.stride[0] < pool.R or pool.stride[1] < pool.S
    table = {
        "max": (work(compare=window), work(add=1)),
        "average": (work(add=window, mul=1), work(mul=1, add=window * overlaps)),
    }
    return _known(op, "pooling", pool.function, table)[0 if forward else 1]


def _norm(op: Op, norm: Norm, loads: Operands, stores: Operands, chunk: int) -> tuple[Sweep, ...]:
    forward = op.phase == "forward"
    direction = {function: costs for (function, way), costs in NORMS.items() if way == forward}
    first, per_set, second = _known(op, "norm", norm.function, direction)
    if norm.function != "batch":
        width = norm.elements // norm.groups
        return _reduce_then_apply(loads, stores, norm.groups, width, chunk, first, per_set, second)
    if forward and len(stores) == 1:  # only the result is written: the statistics are given
        per_set, per_element = FROZEN_NORM
        return (Sweep(loads, stores, norm.elements, per_element, norm.groups, per_set),)
    return _twice(loads, stores, norm.groups, norm.elements, norm.groups, first, per_set, second)


def _softmax(
    loads: Operands, stores: Operands, rows: int, width: int, chunk: int, forward: bool
) -> tuple[Sweep, ...]:
    if not forward:  # y · (gy - Σ y gy)
        half = work(add=1, mul=1)
        return _reduce_then_apply(loads, stores, rows, width, chunk, half, (), half)
    first = work(compare=1, add=2, exp=1)
    # exp(x - max) is kept for a row on chip, and computed again for a longer one
    second = work(mul=1) if width <= chunk else work(add=1, exp=1, mul=1)
    return _reduce_then_apply(loads, stores, rows, width, chunk, first, work(div=1), second)


def _loss(op: Op, loss: Loss, loads: Operands, stores: Operands, chunk: int) -> tuple[Sweep, ...]:
    first, per_row, backward, per_row_backward = _known(op, "loss", loss.function, LOSSES)
    elements = loss.rows * loss.width
    if op.phase != "forward":
        return (Sweep(loads, stores, elements, backward, loss.rows, per_row_backward),)
    return _reduce_then_apply(loads, stores, loss.rows, loss.width, chunk, first, per_row, ())


def _reduce_then_apply(
    loads: Operands,
    stores: Operands,
    rows: int,
    width: int,
    chunk: int,
    first: Work,
    per_row: Work,
    second: Work,
) -> tuple[Sweep, ...]:
    """Every row is reduced, then changed: in one sweep if a row fits a chunk, else in two."""
    if width <= chunk:
        return (Sweep(loads, stores, rows * width, together(first, second), rows, per_row, row=width),)
    return _twice(loads, stores, rows, rows * width, max(rows, width), first, per_row, second)


def _twice(
    loads: Operands,
    stores: Operands,
    sets: int,
    elements: int,
    short: int,
    first: Work,
    per_set: Work,
    second: Work,
) -> tuple[Sweep, ...]:
    """Statistics, then their use. Operands of up to ``short`` elements stay on chip, others are loaded again.

    Where nothing per element is written (the first layer needs no gradient of its input), statistics are all.
    """
    if all(o.words < elements for o in stores):
        return (Sweep(loads, stores, elements, first, sets, per_set),)
    again = tuple(o for o in loads if o.words > short)
    return Sweep(loads, (), elements, first, sets, per_set), Sweep(again, stores, elements, second)


def _scatter(trace: Trace, loads: Operands, stores: Operands, rows: int, width: int) -> tuple[Sweep, ...]:
    """The table is written (zeros, or what it is added to); then each row is loaded, added to, and stored."""
    floats = [o for o in loads if trace.tensor[o.tensor].format != "int"]
    base = tuple(floats[:-1])
    table = tuple(Operand(s.tensor, rows * width, row=width) for s in stores)
    added = (*(o for o in loads if o not in base), *table)
    fill = Sweep(base, stores, sum(s.words for s in stores))
    return fill, Sweep(added, table, rows * width, work(add=1), row=width, after_stores=True)
