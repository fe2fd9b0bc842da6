"""Cyclic precision training: forward widths that rise and fall back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import cos, pi
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Notes, Published
from jouletrace.strategies.precision import Widths
from jouletrace.strategies.schedule import PrecisionSchedule, bad_bits
from jouletrace.trace.model import Trace

__all__ = ["CyclicPrecision"]


@dataclass(frozen=True)
class CyclicPrecision(PrecisionSchedule):
    """Activations and weights of ``low`` to ``high`` bits, rising by half a cosine in each of ``cycles`` cycles.

    Y. Fu et al., CPT, ICLR 2021. Of N iterations a cycle has T = floor(N / cycles), and iteration i has

        rint(low + (high - low) / 2 · (1 + cos(π · (i mod T) / T + π)))

    bits, halves to even, as in the released code. Gradients have ``gradient`` bits throughout. The stem, 1×1 shortcuts
    and the classifier keep their widths unless ``edges`` is on (the code leaves the former two), and products alone
    read narrow operands, as in the code, unless ``scope`` is ``activations``.

    ``position`` is the share of a cycle that has passed. A single step without one has the width whose cost,
    b² + 2 · b · gradient bit-operations per MAC of forward, lies nearest to the mean of a cycle.
    """

    name: ClassVar[str] = "cpt"
    source: ClassVar[str] = "Y. Fu et al., CPT: Efficient DNN Training via Cyclic Precision, ICLR 2021"
    published: ClassVar[tuple[Published, ...]] = (
        Published("bit_operations_saving", "36.67", "%", "3 to 8 bits, gradients of 8, against 8", "seen", "CPT"),
        Published("bit_operations_saving", "30.04", "%", "3 to 6 bits, gradients of 6, against 6", "seen", "CPT"),
        Published("top1_accuracy_gain", "0.44", "points", "ResNet-38, CIFAR-100, 3 to 8 bits", "seen", "CPT"),
        Published("top1_accuracy_gain", "0.91", "points", "ResNet-74, CIFAR-100, 3 to 8 bits", "seen", "CPT"),
        Published("top1_accuracy_gain", "0.73", "points", "ResNet-110, CIFAR-100, 3 to 8 bits", "seen", "CPT"),
    )

    low: int = 3
    high: int = 8
    gradient: int = 8
    cycles: int = 32

    def __post_init__(self) -> None:
        self.refuse(
            *self.common_refusals(),
            *bad_bits(low=[self.low], high=[self.high], gradient=[self.gradient]),
            (self.low > self.high, f"low={self.low} is above high={self.high}"),
            (self.cycles < 1, f"cycles has to be at least 1 (got {self.cycles})"),
        )

    def bits_at(self, position: Fraction) -> int:
        """Bits of activations and weights when a share of a cycle has passed."""
        angle = pi * position.numerator / position.denominator + pi
        return round(self.low + (self.high - self.low) / 2 * (1 + cos(angle)))

    def schedule(self, iterations: int) -> tuple[tuple[Fraction, ...], NDArray[np.int64]]:
        length = iterations // self.cycles
        if not length:
            raise RewriteError(f"cpt: {iterations} iterations have no {self.cycles} cycles; write cycles={iterations} "
                               "or fewer")  # fmt: skip
        passed = [Fraction(i, length) for i in range(length)]
        bits = [self.bits_at(position) for position in passed]
        distinct = list(dict.fromkeys(bits))
        cycle = np.array([distinct.index(b) for b in bits], dtype=np.int64)
        return tuple(passed[bits.index(b)] for b in distinct), cycle[np.arange(iterations) % length]

    def step(self, trace: Trace, notes: Notes) -> Trace:
        bits = self._mean() if self.position is None else self.bits_at(self.position)
        return self.narrowed(trace, Widths(bits, bits, self.gradient), notes)

    def _mean(self) -> int:
        parts = 2000  # of a cycle, as many as in the publication
        cycle = [self.bits_at(Fraction(i, parts)) for i in range(parts)]
        mean = Fraction(sum(map(self._cost, cycle)), parts)
        return min(sorted(set(cycle)), key=lambda b: abs(self._cost(b) - mean))

    def _cost(self, bits: int) -> int:
        return bits * bits + 2 * bits * self.gradient

    def neutral(self) -> CyclicPrecision:
        return replace(self, low=32, high=32, gradient=32)
