"""SignSGD: the update sees the signs of the gradients only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jouletrace.strategies.base import Notes, Published, Strategy
from jouletrace.trace.model import Tensor, Trace, Update

__all__ = ["SignSGD", "signed_gradients"]


@dataclass(frozen=True)
class SignSGD(Strategy):
    """Every weight gradient leaves as one bit per element, and the update reads that bit.

    Bernstein et al., ICML 2018. All MACs and all other widths stay: whoever computes a gradient in full takes its sign
    on the way out. States of the optimizer are kept.
    """

    name: ClassVar[str] = "signsgd"
    source: ClassVar[str] = "J. Bernstein et al., signSGD, ICML 2018 (arXiv 1802.04434)"
    stage: ClassVar[str] = "update"
    claims: ClassVar[frozenset[str]] = frozenset({"signs"})
    changes: ClassVar[frozenset[str]] = frozenset({"tensor.bits", "tensor.format"})
    commutes_with: ClassVar[frozenset[str]] = frozenset({"int8"})
    published: ClassVar[tuple[Published, ...]] = (
        Published("top1_accuracy", "92.54", "%", "ResNet-74, CIFAR-10", "recalled", "E2-Train, section 4.4"),
    )

    def step(self, trace: Trace, notes: Notes) -> Trace:
        signed = signed_gradients(trace, notes)
        return replace(trace, tensors=tuple(signed.get(t.name, t) for t in trace.tensors)) if signed else trace


def signed_gradients(trace: Trace, notes: Notes) -> dict[str, Tensor]:
    """One-bit versions of the weight gradients that nothing but an update reads."""
    signed: dict[str, Tensor] = {}
    for op in trace.ops:
        if not isinstance(op.nest, Update):
            continue
        gradient = trace.tensor[op.reads[1]]
        others = [reader.name for reader in trace.readers[gradient.name] if not isinstance(reader.nest, Update)]
        if others:
            notes.leave(gradient.name, f"{others[0]} needs its magnitude")
        elif gradient.format != "sign":
            signed[gradient.name] = replace(gradient, bits=1, format="sign")
            notes.match(gradient.name, f"{gradient.bits} bits to 1")
    return signed
