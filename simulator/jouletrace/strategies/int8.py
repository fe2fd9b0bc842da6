"""8-bit training: integer weights, activations and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jouletrace.strategies.base import Notes, Published, Strategy
from jouletrace.strategies.precision import Range, Scope, Widths, with_widths
from jouletrace.strategies.products import edges, products, require_wide
from jouletrace.trace.model import Trace

__all__ = ["CHANGES", "Int8Training"]

# What the shared rewrite changes of ops and tensors that stay.
CHANGES = frozenset({"op.reads", "tensor.bits", "tensor.format", "tensor.saved"})


@dataclass(frozen=True)
class Int8Training(Strategy):
    """Products multiply integers: 8-bit weights and activations, and gradients of the layers' results.

    R. Banner et al., NeurIPS 2018. ``gradient`` is the width that backward-weight reads; with ``biprecision``
    backward-data reads a second copy of ``gradient_data`` bits, without it the same one. The update keeps its full
    widths. With the scope ``activations`` nothing wide is kept between ops; with ``operands`` products alone read
    integers, as a simulation of quantisation on a graphics processor does. A ``delayed`` range takes the scale of the
    iteration before and costs no pass; a ``dynamic`` one reads each tensor once more. ``edges``: the stem, 1×1
    shortcuts and the classifier too.

    Modelling choices: normalisation computes in fp32 between 8-bit tensors, and losses and what they read stay fp32.
    """

    name: ClassVar[str] = "int8"
    source: ClassVar[str] = (
        "R. Banner et al., Scalable Methods for 8-bit Training of Neural Networks, NeurIPS 2018 (arXiv 1805.11046)"
    )
    stage: ClassVar[str] = "precision"
    claims: ClassVar[frozenset[str]] = frozenset({"widths"})
    changes: ClassVar[frozenset[str]] = CHANGES
    published: ClassVar[tuple[Published, ...]] = (
        Published("top1_accuracy", "93.24", "%", "ResNet-74, CIFAR-10", "recalled", "E2-Train, section 4.4"),
        Published("energy_saving", "38.62", "%", "ResNet-74, CIFAR-10, against 32 bits", "recalled", "E2-Train"),
    )

    activation: int = 8
    weight: int = 8
    gradient: int = 16
    biprecision: bool = True
    gradient_data: int = 8
    scope: Scope = "activations"
    range: Range = "delayed"
    edges: bool = True

    def __post_init__(self) -> None:
        widths = ("activation", "weight", "gradient", "gradient_data")
        self.refuse(
            *((not 2 <= getattr(self, w) <= 32, f"{w} has to lie between 2 and 32 bits (got {getattr(self, w)})")
              for w in widths),
            (self.biprecision and self.gradient_data > self.gradient,
             f"gradient_data={self.gradient_data} is wider than gradient={self.gradient}, of which it is a copy"),
            (self.scope == "activations" and not self.edges,
             "edges=off keeps wide operands, and scope=activations keeps none; write scope=operands"),
        )  # fmt: skip

    @property
    def widths(self) -> Widths:
        """Bits of each operand of a product."""
        data = self.gradient_data if self.biprecision else self.gradient
        return Widths(self.activation, self.weight, self.gradient, data)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        require_wide(self.name, trace)
        left = frozenset[str]() if self.edges else edges(trace)
        widths = {op.name: self.widths for op in products(trace) if op.name not in left}
        kept = self.widths if self.scope == "activations" else None
        return with_widths(trace, widths, notes, kept=kept, dynamic=self.range == "dynamic")

    def neutral(self) -> Int8Training:
        return replace(self, activation=32, weight=32, gradient=32, gradient_data=32)
