"""The same step with another batch: every count that carries the batch grows with it, exactly.

Which tensors carry the batch, and in which dimension, cannot be read off sizes once two of them coincide.
It is inferred once, at the batch of the capture, by following the ops from the data; exceptions from "the
first dimension, for roles that grow" then stand in the header, as policy ``batch_axes``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from jouletrace.errors import TraceError
from jouletrace.trace.check import problems
from jouletrace.trace.codec import FieldError, canonical, parse
from jouletrace.trace.model import (
    Attention,
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Header,
    Loss,
    Nest,
    Norm,
    Op,
    Pool,
    Reduce,
    Rng,
    Role,
    Scatter,
    Softmax,
    Tensor,
    Trace,
)

__all__ = ["Scaling", "with_batch"]

GROWING: tuple[Role, ...] = ("input", "activation", "gradient", "mask")
POLICY = "batch_axes"

Axes = Mapping[str, int]


def with_batch(trace: Trace, batch: int) -> Trace:
    """The same step over ``batch`` samples; its name ends in ``-b<batch>``.

    Operations, MACs and the elements of all tensors that carry the batch grow by exactly
    ``batch / trace.header.batch``; parameters, their gradients and statistics keep their size. Scaling twice
    is scaling once: ``with_batch(with_batch(t, a), b) == with_batch(t, b)``.

    Where an op runs for some samples only (``read_elements``, ``write_elements``), it runs for the same share of
    the new batch. Raises TraceError, with every place, where a count does not divide by the batch, where a
    loop of such a share is no whole number, or where an op mixes samples in a way that is not understood.

    >>> from jouletrace.trace.model import Elementwise
    >>> x, y = (Tensor(n, (8, 3), 32, "fp", r) for n, r in (("x", "input"), ("y", "buffer")))
    >>> mean = Op("mean:forward", "forward", "", Reduce("mean", 24, 3), ("x",), ("y",))
    >>> smaller = with_batch(Trace(Header("tiny-b8", 8), (x, replace(y, shape=(3,))), (mean,)), 2)
    >>> smaller.header.name, smaller.tensor["x"].shape, smaller.ops[0].nest.elements
    ('tiny-b2', (2, 3), 6)
    """
    if batch < 1:
        raise TraceError(f"A batch of {batch} cannot be had; it has to be at least 1.")
    scaling = Scaling(trace, batch)
    ops = tuple(scaling.op(op) for op in trace.ops)
    if scaling.problems:
        raise TraceError(scaling.problems)
    scaled = Trace(_header(trace.header, batch, scaling), scaling.tensors, ops, trace.extensions)
    if found := problems(scaled):
        place = f"{trace.header.name} cannot be scaled to batch {batch}"
        raise TraceError([f"{place}: {sentence}" for sentence in found])
    return scaled


def _header(header: Header, batch: int, scaling: Scaling) -> Header:
    policy = tuple(entry for entry in header.policy if entry[0] != POLICY)
    policy += ((POLICY, canonical(scaling.exceptions())),)
    name = re.sub(r"-b[0-9]+$", "", header.name)
    return replace(header, name=f"{name}-b{batch}", batch=batch, policy=policy)


class Scaling:
    """One change of batch: which tensors carry it, and every count that did not divide."""

    def __init__(self, trace: Trace, batch: int) -> None:
        self.trace = trace
        self.old, self.new = trace.header.batch, batch
        self.problems: list[str] = []
        recorded = _recorded(trace)
        self.axes: Axes = _inferred(trace) if recorded is None else recorded
        self.tensors = tuple(self.tensor(t) for t in trace.tensors)
        self.elements = {t.name: t.elements for t in self.tensors}

    def exceptions(self) -> dict[str, int | None]:
        """Where a tensor carries the batch, if not where its role has it; None: it carries none."""
        unusual = [t.name for t in self.trace.tensors if self.axes.get(t.name) != _usual(t)]
        return {name: self.axes.get(name) for name in unusual}

    def times(self, count: int, what: str) -> int:
        """A count of an op that carries the batch, or a share of it."""
        if count * self.new % self.old:
            self.problems.append(f"{what} is {count}, which would be no whole number with a batch of {self.new} "
                                 f"instead of {self.old}; it cannot be given that batch.")  # fmt: skip
            return count
        return count * self.new // self.old

    def dimension(self, count: int, what: str) -> int:
        """A dimension that carries the whole batch."""
        if count % self.old:
            self.problems.append(f"{what} is {count}, which the batch of {self.old} does not divide; "
                                 "it cannot be given another batch.")  # fmt: skip
            return count
        return count // self.old * self.new

    def grows(self, name: str) -> bool:
        return name in self.axes

    def tensor(self, tensor: Tensor) -> Tensor:
        axis = self.axes.get(tensor.name)
        if axis is None:
            return tensor
        if axis >= len(tensor.shape):
            self.problems.append(f"Tensor {tensor.name!r} of shape {tensor.shape} has no dimension {axis}, "
                                 f"which has to carry the batch of {self.old}.")  # fmt: skip
            return tensor
        size = self.dimension(tensor.shape[axis], f"Dimension {axis} of tensor {tensor.name!r}")
        return replace(tensor, shape=(*tensor.shape[:axis], size, *tensor.shape[axis + 1 :]))

    def op(self, op: Op) -> Op:
        written = [
            self.times(n, f"What op {op.name!r} computes of {name!r}") if self.grows(name) else n
            for name, n in zip(op.writes, self.trace.elements_written(op), strict=True)
        ]
        nest = self.nest(op, written)
        touched = [
            self.times(n, f"What op {op.name!r} touches of {name!r}") if self.grows(name) else n
            for name, n in zip(op.reads, self.trace.elements_read(op), strict=True)
        ]
        if isinstance(op.nest, Gather) and isinstance(nest, Gather):
            table = self.elements[op.reads[0]]
            if touched[0] == min(op.nest.rows * op.nest.width, table):
                touched[0] = min(nest.rows * nest.width, table)
        whole = touched == [self.elements[name] for name in op.reads]
        return replace(
            op, nest=nest, read_elements=() if whole else tuple(touched),
            write_elements=tuple(written) if op.write_elements else (),
        )  # fmt: skip

    def nest(self, op: Op, written: list[int]) -> Nest:
        """The loop nest of an op that computes so much of its results; its letters grow as its operands do."""
        n, place = op.nest, f"of op {op.name!r}"
        if not any(map(self.grows, (*op.reads, *op.writes))):
            return n
        match n:
            case Conv() | Pool():
                return replace(n, N=self.times(n.N, f"N {place}"))
            case Gemm():
                return self._gemm(op, n)
            case Attention():
                return replace(n, B=self.times(n.B, f"B {place}"))
            case Elementwise() | Rng():
                return replace(n, elements=written[0])
            case Copy():
                return replace(n, elements=sum(written))
            case Norm():
                elements = self.times(n.elements, f"The element count {place}")
                if n.function.startswith("batch"):  # one set of statistics for all samples
                    return replace(n, elements=elements)
                return replace(n, elements=elements, groups=self.times(n.groups, f"The group count {place}"))
            case Reduce():
                return replace(n, elements=self._reduced(op, n), outputs=written[0])
            case Softmax() | Loss() | Gather() | Scatter():
                return replace(n, rows=self.times(n.rows, f"The row count {place}"))
            case Cell():
                return replace(n, batch=self.times(n.batch, f"The batch {place}"))
            case _:
                return n

    def _gemm(self, op: Op, n: Gemm) -> Gemm:
        operands = zip("abc", (*op.reads[:2], op.writes[0]), strict=True)
        grown = "".join(letter for letter, tensor in operands if self.grows(tensor))
        letter = {"abc": "B", "ac": "M", "bc": "N", "ab": "K"}.get(grown)
        if letter is None:
            self.problems.append(f"Of op {op.name!r} only {grown} would grow with the batch; no loop of a "
                                 "gemm does that.")  # fmt: skip
            return n
        return replace(n, **{letter: self.times(getattr(n, letter), f"{letter} of op {op.name!r}")})

    def _reduced(self, op: Op, n: Reduce) -> int:
        if not any(map(self.grows, op.reads)):
            return n.elements
        touched = self.trace.elements_read(op)
        if n.elements != sum(touched):
            return self.times(n.elements, f"The element count of op {op.name!r}")
        operands = zip(op.reads, touched, strict=True)
        return sum(self.times(e, f"What op {op.name!r} reduces") if self.grows(t) else e for t, e in operands)


def _usual(tensor: Tensor) -> int | None:
    return 0 if tensor.role in GROWING and tensor.shape else None


def _recorded(trace: Trace) -> Axes | None:
    """What an earlier change of batch wrote into the header."""
    text = dict(trace.header.policy).get(POLICY)
    if text is None:
        return None
    try:
        exceptions = parse(text)
    except FieldError:
        exceptions = None
    known = cast(dict[str, int | None], exceptions) if isinstance(exceptions, dict) else {"": -1}
    if any(axis is not None and (type(axis) is not int or axis < 0) for axis in known.values()):
        raise TraceError(f"The policy {POLICY} in the header of {trace.header.name} was not written by a change "
                         "of batch; remove it.")  # fmt: skip
    axes = {t.name: known.get(t.name, _usual(t)) for t in trace.tensors}
    return {name: axis for name, axis in axes.items() if axis is not None}


# -- following the batch


def _inferred(trace: Trace) -> Axes:
    """The dimension that carries the batch, for every tensor that does, at the batch of the capture."""
    batch = trace.header.batch
    data = [t.shape for t in trace.tensors if t.role == "input"]
    steps = {shape[0] for shape in data if shape[0:1] != (batch,) and shape[1:2] == (batch,)}
    axes = {t.name: _axis(t.shape, batch, steps) for t in trace.tensors if t.role == "input"}
    for op in trace.ops:
        axes |= {t.name: _axis(t.shape, batch, steps) for t in _growing_constants(trace, op, axes)}
        axes |= {t.name: _axis(t.shape, batch, steps) for t in _growing_results(trace, op, axes)}
    return axes


def _axis(shape: tuple[int, ...], batch: int, steps: set[int]) -> int:
    """The first dimension if it can be and is not the time of time-major data, else one of that size."""
    if shape[0:1] and shape[0] % batch == 0 and not (shape[0] in steps and shape[1:2] == (batch,)):
        return 0
    if batch in shape:
        return shape.index(batch)
    return next((axis for axis, size in enumerate(shape) if size % batch == 0), 0)


def _growing_constants(trace: Trace, op: Op, axes: Axes) -> list[Tensor]:
    """Constants with one row per sample, such as the initial state of a recurrent layer: role buffer."""
    batch = trace.header.batch
    given = [trace.tensor[name] for name in op.reads if name not in trace.writer]
    constants = [t for t in given if t.role == "buffer"]
    match op.nest:
        case Gemm(M=rows, K=width) if rows % batch == 0 and not any(r in axes for r in op.reads):
            first = constants[:1] if trace.elements_read(op)[0] == rows * width else []
            return [t for t in first if t.name == op.reads[0]]
        case Cell(batch=rows, hidden=width):
            return [t for t in constants if t.elements == rows * width]
        case Elementwise() if batch > 1:
            return [t for t in constants if t.shape == trace.tensor[op.writes[0]].shape]
        case _:
            return []


def _growing_results(trace: Trace, op: Op, axes: Axes) -> list[Tensor]:
    """The results that carry the batch: of a growing role, from such operands, not summed over samples."""
    batch = trace.header.batch
    results = [t for t in map(trace.tensor.__getitem__, op.writes) if t.shape]
    growing = [t for t in results if t.role in GROWING]
    carriers = [trace.tensor[t] for t in op.reads if t in axes]
    match op.nest:
        case Rng():
            return [t for t in growing if t.elements % batch == 0]
        case Copy(elements=elements) if not carriers:  # one copy per sample
            once = sum(trace.elements_read(op))
            return [t for t in growing if elements > once and t.shape[0] == batch]
        case _ if not carriers:
            return []
        case Reduce():
            summed = {t.shape[1:] for t in carriers}
            kept = [t for t in growing if t.shape not in summed and t.elements % batch == 0]
            return [t for t in kept if batch == 1 or t.shape[0] > 1]
        case Loss(rows=rows) if op.phase == "forward":
            return [t for t in growing if t.elements % rows == 0]
        case Norm(function=function, groups=groups) if not function.startswith("batch"):
            statistics = [t for t in results if t.role == "buffer" and t.elements == groups]
            return growing + statistics  # of each sample
        case _:
            return growing
