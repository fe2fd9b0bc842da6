"""Dynamic fractional quantisation: every block chooses its widths so that the step meets a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jouletrace.strategies.base import Notes, Published
from jouletrace.strategies.pfq import StagedSchedule
from jouletrace.strategies.precision import Widths, with_widths
from jouletrace.strategies.products import edges, layers, products, require_wide
from jouletrace.strategies.schedule import bad_bits, one_length, stage_of
from jouletrace.trace.model import Conv, Op, Trace
from jouletrace.trace.units import residual_units

__all__ = ["DynamicFractionalQuantisation"]

THREE_FULL_PRODUCTS = 3 * 32 * 32


@dataclass(frozen=True)
class DynamicFractionalQuantisation(StagedSchedule):
    """Each residual block, or layer outside of blocks, takes one of five pairs of widths.

    Y. Fu et al., FracTrain, NeurIPS 2020 (DFQ). Choice k has ``activations[k]`` and ``gradients[k]`` bits; weights have
    ``weight`` bits. A choice costs (a·w + g·w + a·g) / 3·32² of full width. In training a controller holds the mean
    cost at ``target`` per cent of 32 × 32 bits, which is why the target is an input here; a list of targets changes
    it in stages (FracTrain), which end as those of PFQ.

    The two choices that cost next to the target share the blocks, in the proportion that meets it. The published gate
    chooses for each sample; here the whole batch takes one choice in a step, and ``rotations`` distinct steps per
    stage take turns, in which every block sees both choices in proportion. Over all of them the mean is exactly the
    target if ``rotations`` times the proportion is whole, otherwise it is off by less than one block in one rotation
    (where blocks are equally large). Depthwise convolutions have ``depthwise`` bits (activations and weights,
    gradients) and do not count. The gate's own operations, below 0.1 % of the MACs of ResNet-38, are not modelled.

    A target below the cheapest choice cannot be met and is refused; with ``saturate`` all blocks take that choice, as
    a controller would do. ``position`` is the share of the run that has passed, and the share of its stage tells the
    rotation; ``none`` is the middle of the run.
    """

    name: ClassVar[str] = "dfq"
    source: ClassVar[str] = "Y. Fu et al., FracTrain, NeurIPS 2020"
    published: ClassVar[tuple[Published, ...]] = (
        Published("top1_accuracy", "92.49", "%", "ResNet-38, CIFAR-10, target 3", "seen", "FracTrain"),
        Published("energy", "23.97", "kJ", "ResNet-38, CIFAR-10, target 3", "seen", "FracTrain"),
        Published("energy", "33.55", "kJ", "ResNet-38, CIFAR-10, 8 bits throughout", "seen", "FracTrain"),
        Published("top1_accuracy", "92.54", "%", "ResNet-38, CIFAR-10, targets 1.5 to 3", "seen", "FracTrain"),
        Published("energy", "22.93", "kJ", "ResNet-38, CIFAR-10, targets 1.5 to 3", "seen", "FracTrain"),
    )

    activations: tuple[int, ...] = (3, 4, 4, 6, 6)
    gradients: tuple[int, ...] = (6, 6, 8, 8, 12)
    weight: int = 4
    depthwise: tuple[int, ...] = (8, 16)
    target: tuple[Fraction, ...] = (Fraction(3),)
    saturate: bool = False
    rotations: int = 5

    def __post_init__(self) -> None:
        same_length = one_length(activations=self.activations, gradients=self.gradients)
        self.refuse(
            *same_length,
            *bad_bits(activations=self.activations, gradients=self.gradients, weight=[self.weight],
                      depthwise=self.depthwise),
            (len(self.depthwise) != 2, "depthwise has two widths, of activations and of gradients"),
            (self.rotations < 1, f"rotations has to be at least 1 (got {self.rotations})"),
            (not self.target, "target has to have a value for each stage"),
            (self.scope == "activations", "widths of blocks differ, which scope=activations cannot; write operands"),
            *self.stage_refusals(),
        )  # fmt: skip
        low, high = (float(round(cost, 3)) for cost in (min(self.costs), max(self.costs)))
        self.refuse(*(
            (True, f"target={float(target):g} cannot be met; choices cost {low} to {high} % of 32 × 32 bits"
                   + ("" if target > max(self.costs) else ", and saturate=on takes the cheapest"))
            for target in self.target
            if target > max(self.costs) or (target < min(self.costs) and not self.saturate)
        ))  # fmt: skip

    @property
    def stages(self) -> int:
        return len(self.target)

    @property
    def costs(self) -> tuple[Fraction, ...]:
        """What each choice costs, in per cent of 32 × 32 bits."""
        w = self.weight
        pairs = zip(self.activations, self.gradients, strict=True)
        return tuple(Fraction(100 * (a * w + g * w + a * g), THREE_FULL_PRODUCTS) for a, g in pairs)

    def mix(self, target: Fraction) -> tuple[int, int, Fraction]:
        """The cheaper choice, the dearer one, and the share of work that takes the dearer one."""
        costs = self.costs
        target = max(target, min(costs))
        cheap = max((k for k, cost in enumerate(costs) if cost <= target), key=costs.__getitem__)
        dear = min((k for k, cost in enumerate(costs) if cost >= target), key=costs.__getitem__)
        apart = costs[dear] - costs[cheap]
        return cheap, dear, (target - costs[cheap]) / apart if apart else Fraction(0)

    def schedule(self, iterations: int) -> tuple[tuple[Fraction, ...], NDArray[np.int64]]:
        bounds = (Fraction(0), *self.ends(), Fraction(1))
        positions = [
            begin + (end - begin) * Fraction(r, self.rotations)
            for begin, end in pairwise(bounds)
            for r in range(self.rotations)
        ]
        rotation = np.arange(iterations) % self.rotations
        return tuple(positions), stage_of(self.ends(), iterations) * self.rotations + rotation

    def step(self, trace: Trace, notes: Notes) -> Trace:
        require_wide(self.name, trace)
        position = Fraction(1, 2) if self.position is None else self.position
        bounds = (Fraction(0), *self.ends(), Fraction(1))
        stage = sum(position >= end for end in bounds[1:-1])
        begin, end = bounds[stage : stage + 2]
        rotation = floor((position - begin) / (end - begin) * self.rotations)
        return with_widths(trace, self._chosen(trace, stage, rotation), notes, dynamic=self.range == "dynamic")

    def _chosen(self, trace: Trace, stage: int, rotation: int) -> Mapping[str, Widths]:
        """Widths of every product: those that its unit chooses in this rotation."""
        cheap, dear, share = self.mix(self.target[stage])
        left = frozenset[str]() if self.edges else edges(trace)
        unit = {op: u.name for u in residual_units(trace) for op in u.ops}
        layer = layers(trace)
        numbers: dict[str, int] = {}
        widths: dict[str, Widths] = {}
        for op in products(trace):
            if op.name in left:
                continue
            if _is_depthwise(op):
                activation, gradient = self.depthwise
                widths[op.name] = Widths(activation, activation, gradient)
                continue
            number = rotation + numbers.setdefault(unit.get(op.name, f"layer {layer[op.name]}"), len(numbers))
            choice = dear if floor((number + 1) * share) > floor(number * share) else cheap
            widths[op.name] = Widths(self.activations[choice], self.weight, self.gradients[choice])
        return widths

    def neutral(self) -> DynamicFractionalQuantisation:
        return replace(self, activations=(32,), gradients=(32,), weight=32, depthwise=(32, 32),
                       target=(Fraction(100),) * self.stages)  # fmt: skip


def _is_depthwise(op: Op) -> bool:
    return isinstance(op.nest, Conv) and op.nest.G > 1 and op.nest.C == 1
