"""Which backward op belongs to which forward op, found from what they read and write.

The forward ops are walked in reverse, as reverse-mode differentiation does (Griewank and Walther, Evaluating
Derivatives, 2nd edition, SIAM 2008, chapter 3). When an op is reached, all readers of its results are behind, so
the gradients of its results are known; its backward ops are those that read such a gradient together with nothing
but its own operands and results. Sums, copies and views have none: their operands share the gradient. Names decide
nothing except, last of all, the layer between two ops that compute alike from the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from jouletrace.trace.copies import plain
from jouletrace.trace.derivatives import fits, in_order, passes
from jouletrace.trace.model import (
    Attention,
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Loss,
    Norm,
    Op,
    Pool,
    Reduce,
    Softmax,
    Tensor,
    Trace,
)

__all__ = ["Adjoint", "adjoint"]


@dataclass(frozen=True)
class Adjoint:
    """The pairs of one step.

    ``differentiates`` maps a backward op to its forward op, ``accumulates`` one that adds up, joins or pads the
    gradients of a single tensor to that tensor. ``partials`` maps a forward tensor to the gradients that its readers
    give it, ``gradient`` to their total; the gradient of a piece may be the tensor that holds it as a part, and a
    recurrent cell that adds several up itself has no total. ``copies`` maps an op that only narrows a tensor to that
    tensor (see :mod:`jouletrace.trace.copies`). ``unpaired`` gives a sentence for every backward op whose place is not
    certain.
    """

    differentiates: Mapping[str, str]
    accumulates: Mapping[str, str]
    gradient: Mapping[str, str]
    partials: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, str]
    unpaired: Mapping[str, str]


def adjoint(trace: Trace) -> Adjoint:
    """Pairs every backward op of a step with the forward op or the tensor that it serves.

    >>> from jouletrace.trace.io import load_trace
    >>> pairs = adjoint(load_trace("resnet20-cifar10-b32"))
    >>> pairs.differentiates["layer1.0.relu_backward:backward_data"]
    'layer1.0.relu:forward#2'
    >>> pairs.accumulates["layer1.0.conv1.accumulate:backward_data"]
    'relu:forward.y'
    """
    known = trace.__dict__.get("_adjoint")  # kept as a cached property of the frozen trace
    if isinstance(known, Adjoint):
        return known
    step, copies = plain(trace)
    walk = _Walk(step)
    for op in reversed(step.ops):
        if op.phase == "forward":
            walk.forward(op)
    for tensor in step.tensors:
        if tensor.role == "param":
            walk.total(tensor)
    return trace.__dict__.setdefault("_adjoint", walk.result(copies))


class _Walk:
    """One walk: which backward ops are still free, and the gradients that every tensor has been given."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.free = {op.name: op for op in trace.ops if op.phase.startswith("backward")}
        self.needs = _needs(trace)
        self.param = _parameters(trace)
        self.given: dict[str, list[str]] = {}
        self.totals: dict[str, list[str]] = {}
        self.differentiates: dict[str, str] = {}
        self.accumulates: dict[str, str] = {}
        self.unsure: dict[str, str] = {}

    def result(self, copies: Mapping[str, str]) -> Adjoint:
        reasons = {
            name: self.unsure.get(name) or f"Op {name!r} reads {', '.join(map(repr, op.reads))}, which fits no op of "
            "the forward pass and no sum of gradients."
            for name, op in self.free.items()
        }
        whole = {t: g[0] for t, g in self.totals.items() if len(g) == 1}
        partials = {t: tuple(g) for t, g in self.given.items()}
        return Adjoint(
            MappingProxyType(self.differentiates), MappingProxyType(self.accumulates), MappingProxyType(whole),
            MappingProxyType(partials), copies, MappingProxyType(reasons),
        )  # fmt: skip

    # -- one forward op

    def forward(self, op: Op) -> None:
        incoming = [g for name in op.writes for g in self.total(self.trace.tensor[name])]
        kept = {*op.reads, *op.writes}
        if not incoming and op.kind != "loss":
            return
        wanted = [i for i, name in enumerate(op.reads) if self.needs[name]]
        found = self._candidates(op, incoming, kept)
        if isinstance(op.nest, Norm | Cell | Attention):
            given = self._joint(op, found, wanted)
        else:
            given = self._single(op, found, wanted)
        for index in wanted:
            gradients = given.get(index) or (incoming if passes(op, index) else [])
            for gradient in gradients:
                self._give(op, index, gradient)

    def _candidates(self, op: Op, incoming: Sequence[str], kept: set[str]) -> list[Op]:
        """Free ops of a fitting kind that read its gradient, and of the forward pass only what is its own."""
        sources = incoming or [*op.writes, *op.reads]
        readers = {r.name: r for t in sources for r in self.trace.readers.get(t, ()) if r.name in self.free}
        return [
            r for r in readers.values()
            if fits(op, r) and all(t in incoming or t in kept or self._constant(t) for t in r.reads)
        ]  # fmt: skip

    def _constant(self, name: str) -> bool:
        return name not in self.trace.writer and self.trace.tensor[name].role in ("buffer", "mask")

    def _joint(self, op: Op, found: list[Op], wanted: list[int]) -> dict[int, list[str]]:
        """One op computes the gradients of all operands."""
        chosen = self._one(op, found)
        if chosen is None:
            return {}
        self._take(chosen, op)
        given: dict[int, list[str]] = {}
        rest = list(wanted)
        for name in chosen.writes:
            parameter = self.param.get(name)
            index = op.reads.index(parameter) if parameter in op.reads else rest[0] if rest else None
            if index is None:
                continue
            given[index] = [name]
            rest = [i for i in rest if i != index]
            if isinstance(op.nest, Cell) and op.nest.function == "lstm" and index != 2:
                # Both products get the gradient of their sum; what is left is the state.
                given |= {i: [name] for i in wanted if i < 2}
                rest = [i for i in rest if i >= 2]
        return given

    def _single(self, op: Op, found: list[Op], wanted: list[int]) -> dict[int, list[str]]:
        """Each op computes the gradient of one operand."""
        given: dict[int, list[str]] = {}
        for index in wanted:
            mine = [b for b in found if b.name in self.free and self._serves(op, b, index)]
            alike = [i for i in wanted if i >= index and (op.reads[i] == op.reads[index] or in_order(op))]
            chosen = mine[0] if 0 < len(mine) <= len(alike) else self._one(op, mine)
            if chosen is not None:
                self._take(chosen, op)
                given[index] = [chosen.writes[0]]
        return given

    def _serves(self, op: Op, backward: Op, index: int) -> bool:
        """Can this op compute the gradient of operand ``index``?"""
        result = backward.writes[0]
        if result in self.param and self.param[result] != op.reads[index]:
            return False
        if isinstance(backward.nest, Reduce):
            return backward.nest.outputs == self.trace.elements_read(op)[index]
        match op.nest:
            case Conv() | Gemm():
                return index < 2 and op.reads[1 - index] in backward.reads
            case Elementwise(function="mul") if len(op.reads) > 1:
                return any(o in backward.reads for i, o in enumerate(op.reads) if i != index)
            case Elementwise(function="sub"):
                return index == 1
            case Loss() | Gather() | Pool() | Softmax():
                return index == 0
            case _:
                return True

    def _one(self, op: Op, found: list[Op]) -> Op | None:
        """The only candidate; of several the one of the op's own layer, if that settles it."""
        if len(found) > 1:
            near = [b for b in found if b.layer == op.layer] or found
            if any((b.nest, b.reads) != (near[0].nest, near[0].reads) for b in near) or near is found:
                for b in near:
                    self.unsure[b.name] = (f"Op {b.name!r} is one of {len(near)} that may differentiate {op.name!r}; "
                                           "they read the same gradient.")  # fmt: skip
                return None
            found = near
        return found[0] if found else None

    def _take(self, backward: Op, op: Op) -> None:
        del self.free[backward.name]
        self.differentiates[backward.name] = op.name

    def _give(self, op: Op, index: int, gradient: str) -> None:
        """Hands a gradient on; that of an operand which was repeated is summed first."""
        operand = op.reads[index]
        summed = (r for r in self.trace.readers.get(gradient, ()) if self._sums_for(op, index, r, gradient))
        if (reader := next(summed, None)) is not None:
            self._take(reader, op)
            gradient = reader.writes[0]
        self.given.setdefault(operand, []).append(gradient)

    def _sums_for(self, op: Op, index: int, reader: Op, gradient: str) -> bool:
        """Does this op sum a gradient over what repeated the operand? For a parameter even where that is once."""
        nest, elements = reader.nest, self.trace.elements_read(op)[index]
        if reader.name not in self.free or not isinstance(nest, Reduce) or len(reader.reads) > 1:
            return False
        result = self.trace.tensor[reader.writes[0]]
        mine = self.param.get(result.name, op.reads[index]) == op.reads[index] and nest.outputs == elements
        repeated = passes(op, index) or self.trace.tensor[gradient].elements > elements
        return mine and repeated and (result.role != "gradient" or nest.elements > elements)

    # -- adding up

    def total(self, tensor: Tensor) -> list[str]:
        """The gradients of a tensor whose readers are all behind, after whatever puts them together."""
        if tensor.name not in self.totals:
            pool = list(self.given.get(tensor.name, ()))
            while (op := next(self._sums(tensor, pool), None)) is not None:
                for name in op.reads:
                    pool.remove(name)
                pool.append(op.writes[0])
                del self.free[op.name]
                self.accumulates[op.name] = tensor.name
            if tensor.name in self.given:
                self.totals[tensor.name] = pool
        return self.totals.get(tensor.name, [])

    def _sums(self, tensor: Tensor, pool: list[str]) -> Iterator[Op]:
        """Free ops that turn some of these gradients into fewer, or parts of the tensor into the whole."""
        for gradient in dict.fromkeys(pool):
            for op in self.trace.readers.get(gradient, ()):
                inside = op.name in self.free and all(pool.count(n) >= op.reads.count(n) for n in op.reads)
                if inside and self._adds_up(tensor, op):
                    yield op

    def _adds_up(self, tensor: Tensor, op: Op) -> bool:
        touched = self.trace.elements_read(op)
        match op.nest:
            case Elementwise(function="accumulate" | "add"):
                return len(op.reads) > 1
            case Copy(function="cat" | "stack", elements=elements):
                return elements == tensor.elements and max(touched) < elements
            case Copy(function="pad", elements=elements):
                return elements == tensor.elements and touched[0] < elements
            case Copy(elements=elements):
                # Parts that are no slices along an axis are stacked, then put in order.
                source = self.trace.tensor[op.reads[0]]
                stack = self.trace.writer.get(source.name)
                if stack is None or self.accumulates.get(stack.name) != tensor.name or stack.kind != "copy":
                    return False
                return source.shape != tensor.shape and elements == tensor.elements
            case _:
                return False


def _needs(trace: Trace) -> dict[str, bool]:
    """Does a trained parameter reach this tensor, so that it has a gradient?"""
    trained = {op.reads[0] for op in trace.ops if op.kind == "update"}
    needs = {t.name: t.name in trained for t in trace.tensors}
    for op in trace.ops:
        if op.phase == "forward" and any(needs[name] for name in op.reads):
            for tensor in map(trace.tensor.__getitem__, op.writes):
                needs[tensor.name] = tensor.role == "activation"
    return needs


def _parameters(trace: Trace) -> dict[str, str]:
    """The parameter of each weight gradient, seen from its update through sums and scalings."""
    param = {op.reads[1]: op.reads[0] for op in trace.ops if op.kind == "update"}
    for op in reversed(trace.ops):
        owner = next((param[name] for name in op.writes if name in param), None)
        if owner is not None and isinstance(op.nest, Elementwise) and op.phase.startswith("backward"):
            roles = ((name, trace.tensor[name].role) for name in op.reads)
            param |= {name: owner for name, role in roles if role == "weight_gradient"}
    return param
