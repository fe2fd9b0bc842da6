"""Predictive sign gradients: the sign of a weight gradient, mostly from its operands' most significant bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import ClassVar, Literal

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Notes, Published, Strategy
from jouletrace.strategies.int8 import CHANGES, Int8Training
from jouletrace.strategies.precision import Range, Scope
from jouletrace.strategies.products import beside, has_integer_products, unique
from jouletrace.trace.decisions import read_decisions
from jouletrace.trace.model import Conv, Elementwise, Gemm, Nest, Op, Reduce, Sync, Tensor, Trace, Update

__all__ = ["PredictiveSignGradient"]

# Widths of the released code: gradients, and the predictor's part of them.
_CODE = {"gradient": 32, "predictor_gradient": 16, "threshold": "fixed"}


@dataclass(frozen=True)
class PredictiveSignGradient(Strategy):
    """Weight gradients leave as one bit per element, most of them predicted from a few bits of their operands.

    Y. Wang et al., E2-Train, NeurIPS 2019, section 3.3. Where a step has no integer products yet, 8-bit training
    (:class:`Int8Training` with ``activation``, ``weight``, ``gradient`` and one copy of the gradient) goes before.
    Then the weight gradient of every convolution becomes

        predictor -> max -> decision -> compare -> (fall-back) -> where -> update

    * the predictor computes all elements from ``predictor_activation`` and ``predictor_gradient`` bits;
    * with the ``adaptive`` threshold, ``beta`` times the largest result, nothing is settled before all elements are
      there: the fall-back waits for the decision; with a ``fixed`` one there is neither reduction nor barrier;
    * elements at or above the threshold take the predictor's sign, one bit of choice each says which;
    * the fall-back computes the others in full width; it is left out if there are none;
    * the update reads signs.

    ``predicted`` is the share of elements settled by the predictor, one for all layers; ``log`` is the decision log of
    a real training, whose measured share of each layer replaces it. The fall-back's elements are rounded up. ``linear``
    does the same to matrix products (the paper signs convolutions only). ``bits=code`` takes the released code's 32-bit
    gradients, 16-bit predictor and fixed threshold instead of the paper's knobs. Parameters that several ops share add
    up gradients with their magnitude and are left alone. ``beta`` decides about the share in a training and changes
    nothing here but the record.
    """

    name: ClassVar[str] = "psg"
    source: ClassVar[str] = "Y. Wang et al., E2-Train, NeurIPS 2019 (arXiv 1910.13349), section 3.3"
    stage: ClassVar[str] = "precision"
    claims: ClassVar[frozenset[str]] = frozenset({"widths", "signs"})
    changes: ClassVar[frozenset[str]] = CHANGES | {"op.writes", "op.read_elements", "op.write_elements", "op.after"}
    published: ClassVar[tuple[Published, ...]] = (
        Published("energy_saving", "63.28", "%", "ResNet-74, CIFAR-10, against 32 bits", "recalled", "E2-Train"),
        Published("predicted_share", ">= 0.6", "of elements", "ResNet-74, CIFAR-10", "recalled", "E2-Train"),
        Published("top1_accuracy", "~92.6", "%", "ResNet-74, CIFAR-10", "recalled", "E2-Train, section 4.4"),
    )

    activation: int = 8
    weight: int = 8
    gradient: int = 16
    predictor_activation: int = 4
    predictor_gradient: int = 10
    threshold: Literal["adaptive", "fixed"] = "adaptive"
    beta: Fraction = Fraction(1, 20)
    predicted: Fraction = Fraction(3, 5)
    log: str | None = None
    linear: bool = False
    scope: Scope = "activations"
    range: Range = "delayed"
    bits: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        defaults = {knob: PredictiveSignGradient.__dataclass_fields__[knob].default for knob in _CODE}
        contradicted = [k for k, value in _CODE.items() if getattr(self, k) not in (defaults[k], value)]
        widths = ("activation", "weight", "gradient")
        self.refuse(
            *((not 2 <= getattr(self, w) <= 32, f"{w} has to lie between 2 and 32 bits (got {getattr(self, w)})")
              for w in widths),
            *((not 1 <= getattr(self, f"predictor_{w}") <= getattr(self, w),
               f"predictor_{w} has to lie between 1 and {w}={getattr(self, w)} (got {getattr(self, f'predictor_{w}')})")
              for w in ("activation", "gradient")),
            (not 0 <= self.predicted <= 1, f"predicted has to lie between 0 and 1 (got {self.predicted})"),
            (not 0 <= self.beta <= 1, f"beta has to lie between 0 and 1 (got {self.beta})"),
            (self.bits == "code" and bool(contradicted),
             f"bits=code sets {', '.join(contradicted)}; leave one of the two out"),
        )  # fmt: skip
        if self.bits == "code":
            for knob, value in _CODE.items():
                object.__setattr__(self, knob, value)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        if any(tensor.format == "sign" for tensor in trace.tensors):
            raise RewriteError(f"psg: gradients of {trace.header.name} are signs already; apply it to the step without")
        if not has_integer_products(trace):
            under = Int8Training(self.activation, self.weight, self.gradient, biprecision=False,
                                 scope=self.scope, range=self.range)  # fmt: skip
            trace = under.step(trace, notes)
        shares = self._shares()
        split = _Split(self, trace)
        for op in trace.ops:
            if op.phase != "backward_weight" or not isinstance(op.nest, Conv | Gemm):
                split.ops.append(op)
            elif reason := self._obstacle(trace, op, shares):
                notes.leave(op.name, reason)
                split.ops.append(op)
            else:
                fallback = split.predict(op, self.predicted if shares is None else shares[op.layer])
                notes.match(op.name, f"{op.macs - fallback} of {op.macs} MACs settled by the predictor")
                notes.added_macs += op.macs
                notes.skipped_macs += op.macs - fallback
        return replace(trace, tensors=tuple(split.tensors.values()), ops=tuple(split.ops))

    def _obstacle(self, trace: Trace, op: Op, shares: dict[str, Fraction] | None) -> str:
        """Why this weight gradient stays as it is, or nothing."""
        readers = trace.readers.get(op.writes[0], ())
        others = [reader.name for reader in readers if not isinstance(reader.nest, Update)]
        if not isinstance(op.nest, Conv) and not self.linear:
            return "it is no convolution, which alone are signed; linear=on signs matrix products, too"
        if others or not readers:
            return f"{others[0] if others else 'what comes after the step'} needs its magnitude"
        if not any(trace.tensor[name].format == "int" for name in op.reads[:2]):
            return "its operands are no integers"
        if shares is not None and op.layer not in shares:
            return f"{self.log} has no share of the layer {op.layer!r}"
        return ""

    def neutral(self) -> None:
        return None

    def _shares(self) -> dict[str, Fraction] | None:
        if self.log is None:
            return None
        decisions = read_decisions(self.log)
        told = {int(row[1]) for row in decisions.predictor}
        return {name: decisions.predictor_share(name) for i, name in enumerate(decisions.layers) if i in told}


class _Split:
    """Weight gradients taken apart: the ops and tensors of the step so far."""

    def __init__(self, strategy: PredictiveSignGradient, trace: Trace) -> None:
        self.strategy = strategy
        self.tensors: dict[str, Tensor] = dict(trace.tensor)
        self.ops: list[Op] = []
        self.names = set(trace.op)

    def predict(self, op: Op, share: Fraction) -> int:
        """Appends the ops that compute one gradient; returns the MACs of the fall-back."""
        gradient = self.tensors[op.writes[0]]
        n, missing = gradient.elements, ceil((1 - share) * gradient.elements)
        adaptive = self.strategy.threshold == "adaptive"
        self.tensors[gradient.name] = replace(gradient, bits=1, format="sign")
        sums = self._tensor(replace(gradient, name=f"{gradient.name}.msb", format="int"))
        fetched = tuple(self._predictor_bits(self.tensors[name]) for name in op.reads[:2])
        rest = tuple(self.tensors[name].bits for name in op.reads[2:])
        name = unique(beside(op.name, "predictor"), self.names)
        self._append(replace(op, name=name, writes=(sums,), read_bits=fetched + rest))

        compared, after = (sums,), op.after
        if adaptive:
            limit = self._tensor(Tensor(f"{gradient.name}.threshold", (), 32, "int", "buffer"))
            self._beside(op, "max", Reduce("max", n, 1), (sums,), (limit,))
            compared = (sums, limit)
        if missing and adaptive:
            after = (*after, self._beside(op, "decision", Sync("decision"), compared[1:], ()))
        if not missing:
            self._beside(op, "compare", Elementwise("compare", n), compared, (gradient.name,))
            return 0
        sign = self._tensor(replace(gradient, name=f"{gradient.name}.sign", bits=1, format="sign"))
        choice = self._tensor(replace(gradient, name=f"{gradient.name}.choice", bits=1, format="int", role="buffer"))
        self._beside(op, "compare", Elementwise("compare", n), compared, (sign, choice))
        full = self._tensor(replace(gradient, name=f"{gradient.name}.full", bits=1, format="sign"))
        partly = (missing,) if missing < n else ()
        fallback = replace(op, reads=(*op.reads, choice), writes=(full,), after=after, write_elements=partly,
                           read_elements=(*op.read_elements, n) if op.read_elements else ())  # fmt: skip
        self.ops.append(fallback)
        self._beside(op, "where", Elementwise("where", n), (sign, full, choice), (gradient.name,))
        return fallback.macs

    def _predictor_bits(self, tensor: Tensor) -> int:
        gradient = tensor.role == "gradient"
        bits = self.strategy.predictor_gradient if gradient else self.strategy.predictor_activation
        return min(bits, tensor.bits)

    def _tensor(self, tensor: Tensor) -> str:
        name = unique(tensor.name, self.tensors)
        self.tensors[name] = replace(tensor, name=name)
        return name

    def _beside(self, op: Op, what: str, nest: Nest, reads: tuple[str, ...], writes: tuple[str, ...]) -> str:
        name = unique(beside(op.name, what), self.names)
        self._append(Op(name, op.phase, op.layer, nest, reads, writes, gate=op.gate))
        return name

    def _append(self, op: Op) -> None:
        self.names.add(op.name)
        self.ops.append(op)
