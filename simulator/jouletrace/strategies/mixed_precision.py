"""Mixed precision: 16-bit floating-point tensors around fp32 master weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Notes, Strategy
from jouletrace.strategies.int8 import CHANGES
from jouletrace.strategies.precision import Widths, with_widths
from jouletrace.strategies.products import products, require_wide, unique
from jouletrace.trace.model import (
    Conv,
    Elementwise,
    Gemm,
    Loss,
    Nest,
    Op,
    Reduce,
    Sync,
    Tensor,
    Trace,
    Update,
)

__all__ = ["MixedPrecision"]

SCALE = "loss_scale"
DECISION = "gradients.decision:update"


@dataclass(frozen=True)
class MixedPrecision(Strategy):
    """Activations, gradients and a copy of the weights in 16 bits; the update keeps fp32 weights.

    P. Micikevicius et al., ICLR 2018. Products and all other ops but the loss read and write 16 bits, statistics and
    sums inside them are fp32. Weights are cast once per step. Weight gradients of products leave in 16 bits and are
    cast to fp32 before the update.

    ``loss_scaling``: ``static`` multiplies the loss by a factor, which its derivative reads, and every weight gradient
    by the inverse (with the cast, where there is one). ``dynamic`` also looks for values that are not finite: a
    reduction of every weight gradient, and a decision that all updates wait for, so that none starts before the last
    gradient. That an overflow skips the update, and how the factor changes, is not modelled. ``automatic`` is dynamic
    for fp16 and none for bf16, whose range needs no scaling; in all else the two formats are alike here.
    """

    name: ClassVar[str] = "mixed-precision"
    source: ClassVar[str] = "P. Micikevicius et al., Mixed Precision Training, ICLR 2018 (arXiv 1710.03740)"
    stage: ClassVar[str] = "precision"
    claims: ClassVar[frozenset[str]] = frozenset({"widths"})
    changes: ClassVar[frozenset[str]] = CHANGES | {"op.after", "op.read_elements"}

    format: Literal["fp16", "bf16"] = "fp16"
    loss_scaling: Literal["automatic", "dynamic", "static", "none"] = "automatic"

    @property
    def scaling(self) -> Literal["dynamic", "static", "none"]:
        """The loss scaling that is meant."""
        if self.loss_scaling != "automatic":
            return self.loss_scaling
        return "dynamic" if self.format == "fp16" else "none"

    def step(self, trace: Trace, notes: Notes) -> Trace:
        require_wide(self.name, trace)
        if narrow := [op.name for op in products(trace) if min(trace.bits_read(op)[:2]) <= 16]:
            raise RewriteError(f"mixed-precision: {narrow[0]} of {trace.header.name} reads 16 bits already; apply it "
                               "to the step in fp32")  # fmt: skip
        widths = Widths(16, 16, 16)
        after = with_widths(trace, {op.name: widths for op in products(trace)}, notes, kept=widths, format="fp")
        if after is trace:
            return trace
        if self.scaling != "none" and any(isinstance(op.nest, Update) for op in trace.ops):
            after = _scaled_loss(after)
        return _wide_gradients(_narrow_gradients(after), self.scaling, notes)


def _scaled_loss(trace: Trace) -> Trace:
    """The gradients of losses are computed from the factor, too."""
    scaled = {op.name for op in trace.ops if isinstance(op.nest, Loss) and op.phase == "backward_data"}
    ops = list(trace.ops)
    for i, op in enumerate(ops):
        if op.name in scaled:
            touched = (*op.read_elements, 1) if op.read_elements else ()
            ops[i] = replace(op, reads=(*op.reads, SCALE), read_elements=touched)
    return replace(trace, tensors=(*trace.tensors, Tensor(SCALE, (), 32, "fp", "buffer")), ops=tuple(ops))


def _narrow_gradients(trace: Trace) -> Trace:
    """Weight gradients of products, of biases, and sums of such in 16 bits."""
    narrow: dict[str, Tensor] = {}
    for op in trace.ops:
        for tensor in map(trace.tensor.__getitem__, op.writes):
            made = isinstance(op.nest, Conv | Gemm | Reduce)
            summed = isinstance(op.nest, Elementwise) and narrow.keys() >= set(op.reads)
            if tensor.role == "weight_gradient" and tensor.format == "fp" and tensor.bits > 16 and (made or summed):
                narrow[tensor.name] = replace(tensor, bits=16)
    return replace(trace, tensors=tuple(narrow.get(t.name, t) for t in trace.tensors))


def _wide_gradients(trace: Trace, scaling: Literal["dynamic", "static", "none"], notes: Notes) -> Trace:
    """Casts and scaling between the backward pass and the updates."""
    updates = [op for op in trace.ops if isinstance(op.nest, Update)]
    if not updates:
        return trace
    first = trace.ops.index(updates[0])
    gradients = list(dict.fromkeys(op.reads[1] for op in updates))
    written = {name for op in trace.ops[:first] for name in op.writes}
    if late := [name for name in gradients if name in trace.writer and name not in written]:
        raise RewriteError(f"mixed-precision: {updates[0].name} stands before {late[0]} is computed; loss "
                           "scaling needs all gradients before the first update")  # fmt: skip
    tensors: dict[str, Tensor] = dict(trace.tensor)
    names = set(trace.op)
    added: list[Op] = []

    def add(update: Op, what: str, nest: Nest, reads: tuple[str, ...], result: Tensor) -> None:
        tensors[result.name] = result
        name = unique(f"{update.reads[0]}.{what}:update", names)
        names.add(name)
        added.append(Op(name, "update", update.layer, nest, reads, (result.name,), gate=update.gate))

    wide: dict[str, str] = {}
    checks: list[str] = []
    for update in updates:
        gradient = tensors[update.reads[1]]
        if gradient.name in wide or (scaling == "none" and gradient.bits > 16):
            continue
        function, factor = ("cast", ()) if scaling == "none" else ("scale", (SCALE,))
        result = replace(gradient, name=unique(f"{gradient.name}.fp32", tensors), bits=32, format="fp")
        wide[gradient.name] = result.name
        add(update, function, Elementwise(function, gradient.elements), (gradient.name, *factor), result)
        notes.match(gradient.name, f"{gradient.bits} bits to 32, {function}")
        if scaling == "dynamic":
            found = Tensor(unique(f"{gradient.name}.not_finite", tensors), (), 32, "fp", "buffer")
            add(update, "not_finite", Reduce("any", gradient.elements, 1), (result.name,), found)
            checks.append(added[-1].name)
    decision = (unique(DECISION, names),) if checks else ()
    added += [Op(name, "update", "", Sync("decision"), (), (), after=tuple(checks)) for name in decision]
    ops = [*trace.ops[:first], *added]
    for op in trace.ops[first:]:
        if isinstance(op.nest, Update):
            reads = (op.reads[0], wide.get(op.reads[1], op.reads[1]), *op.reads[2:])
            op = replace(op, reads=reads, after=(*op.after, *decision))
        ops.append(op)
    return replace(trace, tensors=tuple(tensors.values()), ops=tuple(ops))
