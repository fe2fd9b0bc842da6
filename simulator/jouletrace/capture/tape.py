"""What the reverse-mode rules write on: the ops so far, and the gradients given to every tensor."""

from __future__ import annotations

from collections.abc import Sequence

from jouletrace.capture.forward import Array, Names
from jouletrace.trace.model import Copy, Elementwise, Nest, Op, Phase, Reduce, Role, Tensor, Trace

__all__ = ["Tape"]

Given = tuple[str, Array]  # the layer whose rule gave it, the gradient


class Tape:
    """The unfinished step: rules ask it for gradients, append ops to it, and hand gradients on through it."""

    def __init__(self, forward: Trace) -> None:
        self.forward = forward
        self.approximate = dict(forward.header.policy).get("approximate") == "elementwise"
        self.tensors: dict[str, Tensor] = {t.name: t for t in forward.tensors}
        self.ops = list(forward.ops)
        self._names = Names()
        self._given: dict[str, list[Given]] = {}
        self._sums: dict[str, Array | None] = {}
        self._needs = self._reach_parameters()

    def _reach_parameters(self) -> dict[str, bool]:
        needs = {t.name: t.role == "param" for t in self.forward.tensors}
        for op in self.forward.ops:
            reached = any(needs[t] for t in op.reads)
            for name in op.writes:
                tensor = self.tensors[name]
                needs[name] = reached and tensor.format != "int" and tensor.role == "activation"
        return needs

    # -- what a rule asks

    def needs(self, op: Op, index: int) -> bool:
        """Does operand ``index`` of a forward op need a gradient?"""
        return index < len(op.reads) and self._needs[op.reads[index]]

    def operand(self, op: Op, index: int) -> Array:
        """Operand ``index`` of a forward op; a part of a tensor has lost its shape and comes as a vector."""
        name, elements = op.reads[index], self.forward.elements_read(op)[index]
        tensor = self.tensors[name]
        return Array(name, tensor.shape if elements == tensor.elements else (elements,))

    def operands(self, op: Op) -> tuple[Array, ...]:
        return tuple(self.operand(op, i) for i in range(len(op.reads)))

    def result(self, op: Op, index: int = 0) -> Array:
        name = op.writes[index]
        return Array(name, self.tensors[name].shape)

    def gradient(self, name: str) -> Array | None:
        """The gradient of a tensor whose readers have all been walked; None if nothing depends on it."""
        if name not in self._sums:
            self._sums[name] = self._sum(name, self._given.pop(name, []))
        return self._sums[name]

    def given(self, name: str) -> list[Array]:
        """The gradients of a tensor one by one, for a rule whose op adds them up itself."""
        return [gradient for _, gradient in self._given.pop(name, [])]

    # -- what a rule writes

    def emit(self, layer: str, nest: Nest, reads: Sequence[Array], shape: Sequence[int], of: str) -> Array:
        """Append an op that writes the gradient, of ``shape``, of tensor ``of``."""
        label = "gx" if not self._is_param(of) else "gb" if isinstance(nest, Reduce) else "gw"
        phase: Phase = "backward_weight" if self._is_param(of) else "backward_data"
        return self.emit_many(layer, nest, reads, [(label, shape, of)], phase)[0]

    def emit_many(self, layer: str, nest: Nest, reads: Sequence[Array],
                  writes: Sequence[tuple[str, Sequence[int], str]], phase: Phase) -> list[Array]:  # fmt: skip
        """Append an op that writes gradients, each by its label, its shape and the tensor it is of."""
        name = self._names.op(layer, nest, phase)
        outs = [Array(f"{name}.{label}", tuple(shape)) for label, shape, _ in writes]
        for out, (_, _, of) in zip(outs, writes, strict=True):
            role: Role = "weight_gradient" if self._is_param(of) else "gradient"
            self.tensors[out.tensor] = Tensor(out.tensor, out.shape, 32, "fp", role)
        self.append(name, phase, layer, nest, reads, tuple(out.tensor for out in outs))
        return outs

    def append(self, name: str, phase: Phase, layer: str, nest: Nest, reads: Sequence[Array],
               writes: tuple[str, ...]) -> None:  # fmt: skip
        """Append an op by name; ``read_elements`` follow from the shapes in which tensors are read."""
        touched = tuple(min(r.elements, self.tensors[r.tensor].elements) for r in reads)
        whole = all(n == self.tensors[r.tensor].elements for n, r in zip(touched, reads, strict=True))
        self.ops.append(Op(name, phase, layer, nest, tuple(r.tensor for r in reads), writes,
                           read_elements=() if whole else touched))  # fmt: skip

    def give(self, op: Op, index: int, gradient: Array) -> None:
        """Hand a gradient to operand ``index`` of a forward op; a broadcast operand gets its sum.

        A parameter of lower rank (a bias) is summed for even where the batch has one sample.
        """
        if not self.needs(op, index):
            return
        operand = self.operand(op, index)
        lower = self._is_param(operand.tensor) and len(operand.shape) < len(gradient.shape)
        if lower or gradient.elements > operand.elements:
            nest = Reduce("sum", gradient.elements, operand.elements)
            gradient = self.emit(op.layer, nest, (gradient,), operand.shape, operand.tensor)
        self.give_tensor(op, operand.tensor, gradient)

    def give_tensor(self, op: Op, name: str, gradient: Array) -> None:
        """Hand the gradient of a whole tensor on, whatever part of it the forward op touched."""
        self._given.setdefault(name, []).append((op.layer, gradient))

    def _is_param(self, name: str) -> bool:
        return self.tensors[name].role == "param"

    # -- adding up

    def _sum(self, name: str, given: list[Given]) -> Array | None:
        """Put parts together, then add up: k gradients of one tensor cost k - 1 additions.

        Gradients of parts that cover the tensor exactly once (chunks, time steps) are put together; the
        gradient of any other part is padded with zeros.
        """
        tensor = self.tensors[name]
        parts = [g for g in given if g[1].elements < tensor.elements]
        if parts and sum(g.elements for _, g in parts) == tensor.elements:
            whole = [*(g for g in given if g not in parts), self._join(tensor, parts)]
        else:
            whole = [self._pad(tensor, *g) if g in parts else g for g in given]
        if not whole:
            return None
        total = whole[0][1]
        for layer, other in whole[1:]:
            nest = Elementwise("accumulate", tensor.elements)
            total = self.emit(layer, nest, (total, other), tensor.shape, name)
        return total

    def _join(self, tensor: Tensor, parts: list[Given]) -> Given:
        """One copy; a second one if the parts are no slices along an axis, so that they come out permuted."""
        layer = parts[-1][0]
        gradients = [gradient for _, gradient in reversed(parts)]
        shapes = [g.shape for g in gradients]
        if any(_cut_along(axis, shapes, tensor.shape) for axis in range(len(tensor.shape))):
            return layer, self.emit(layer, Copy("cat", tensor.elements), gradients, tensor.shape, tensor.name)
        stacked = (len(shapes), *shapes[0])
        joined = self.emit(layer, Copy("stack", tensor.elements), gradients, stacked, tensor.name)
        if stacked != tensor.shape:
            nest = Copy("contiguous", tensor.elements)
            joined = self.emit(layer, nest, (joined,), tensor.shape, tensor.name)
        return layer, joined

    def _pad(self, tensor: Tensor, layer: str, part: Array) -> Given:
        nest = Copy("pad", tensor.elements)
        return layer, self.emit(layer, nest, (part,), tensor.shape, tensor.name)


def _cut_along(axis: int, shapes: list[tuple[int, ...]], whole: tuple[int, ...]) -> bool:
    return all(len(s) == len(whole) and (*s[:axis], whole[axis], *s[axis + 1 :]) == whole for s in shapes)
