"""Learnable dynamic precision: the widths that each layer learnt, as a table or as a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Notes, Published
from jouletrace.strategies.precision import Widths
from jouletrace.strategies.products import layers
from jouletrace.strategies.schedule import (
    PrecisionSchedule,
    bad_bits,
    bad_boundaries,
    equal_parts,
    stage_of,
)
from jouletrace.trace.decisions import Decisions, read_decisions
from jouletrace.trace.model import Trace

__all__ = ["LearnableDynamicPrecision"]


@dataclass(frozen=True)
class LearnableDynamicPrecision(PrecisionSchedule):
    """Widths of activations and weights that grow as a training demands.

    Z. Yu et al., LDP, arXiv 2203.07713. What a training learns is an input here: ``bits`` for each phase of the run,
    the same in all layers, phases ending at ``boundaries`` (shares of the run, equally long if there are none); or
    ``log``, the decision log of a real training, with bits of each layer. A log of another length than the run is
    stretched to it; layers that it does not name keep their widths. Gradients have ``gradient`` bits; a log has its
    own. The learning of the widths, a few operations per layer, is not modelled.

    ``position`` is the share of the run that has passed; ``none`` is its middle.
    """

    name: ClassVar[str] = "ldp"
    source: ClassVar[str] = "Z. Yu et al., LDP: Learnable Dynamic Precision, arXiv 2203.07713"
    published: ClassVar[tuple[Published, ...]] = (
        Published("training_cost_saving", "39.1", "%", "ResNet-20, CIFAR-10, against the best before", "seen", "LDP"),
        Published("top1_accuracy_gain", "0.31", "points", "ResNet-20, CIFAR-10", "seen", "LDP"),
    )

    bits: tuple[int, ...] = (3, 4, 5)
    gradient: int = 8
    boundaries: tuple[Fraction, ...] = ()
    log: str | None = None

    def __post_init__(self) -> None:
        self.refuse(
            *self.common_refusals(),
            *bad_bits(bits=self.bits, gradient=[self.gradient]),
            (not self.bits, "bits has to have a value for each phase"),
            (list(self.bits) != sorted(self.bits), "bits may not fall from phase to phase"),
            *bad_boundaries(self.boundaries, len(self.bits)),
            (self.log is not None and self.scope == "activations",
             "a log has widths of layers, which scope=activations has not; write scope=operands"),
        )  # fmt: skip

    def ends(self) -> tuple[Fraction, ...]:
        """Where each phase but the last ends, as shares of the run."""
        return self.boundaries or equal_parts(len(self.bits))

    def schedule(self, iterations: int) -> tuple[tuple[Fraction, ...], NDArray[np.int64]]:
        if self.log is None:
            return (Fraction(0), *self.ends()), stage_of(self.ends(), iterations)
        log = read_decisions(self.log)
        starts = np.unique(np.append(log.precision[:, 0], 0))
        settings = [log.bits_at(start).tobytes() for start in starts.tolist()]
        distinct = list(dict.fromkeys(settings))
        which = np.array([distinct.index(setting) for setting in settings], dtype=np.int64)
        at = np.arange(iterations) * log.iterations // iterations
        positions = tuple(Fraction(int(starts[settings.index(s)]), log.iterations) for s in distinct)
        return positions, which[np.searchsorted(starts, at, side="right") - 1]

    def step(self, trace: Trace, notes: Notes) -> Trace:
        position = Fraction(1, 2) if self.position is None else self.position
        if self.log is not None:
            return self.narrowed(trace, self._logged(read_decisions(self.log), position, trace), notes)
        bits = self.bits[sum(position >= end for end in self.ends())]
        return self.narrowed(trace, Widths(bits, bits, self.gradient), notes)

    def _logged(self, log: Decisions, position: Fraction, trace: Trace) -> Mapping[str, Widths]:
        known = set(layers(trace).values())
        if not known.intersection(log.layers):
            raise RewriteError(f"ldp: {self.log} names no layer of {trace.header.name}; it was recorded with "
                               f"{log.model!r}")  # fmt: skip
        bits = zip(log.layers, log.bits_at(int(position * log.iterations)).tolist(), strict=True)
        return {layer: Widths(activation, weight, gradient) for layer, (weight, activation, gradient) in bits if weight}

    def neutral(self) -> LearnableDynamicPrecision | None:
        return None if self.log is not None else replace(self, bits=(32,) * len(self.bits), gradient=32)
