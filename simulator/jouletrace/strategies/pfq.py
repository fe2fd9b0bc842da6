"""Progressive fractional quantisation: widths that rise in stages."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import RewriteError, UsageError
from jouletrace.strategies.base import Notes, Published
from jouletrace.strategies.precision import Widths
from jouletrace.strategies.schedule import (
    PrecisionSchedule,
    bad_bits,
    bad_boundaries,
    equal_parts,
    one_length,
    stage_of,
)
from jouletrace.trace.model import Trace

__all__ = ["ProgressiveFractionalQuantisation", "StagedSchedule", "read_losses", "turning_points"]

MAX_LOSSES_BYTES = 1 << 20


def turning_points(
    losses: Iterable[float], count: int, *, epsilon: Fraction, alpha: Fraction, window: int
) -> tuple[int, ...]:
    """After how many epochs training has settled, up to ``count`` times.

    An epoch is a turning point if its loss differs from each of the ``window - 1`` losses before by at most
    ``epsilon``, which is multiplied by ``alpha`` after every turning point (Fu et al., FracTrain, and its code).

    >>> turning_points([2, 1, 1, 1, 1], 1, epsilon=Fraction(1, 20), alpha=Fraction(3, 10), window=3)
    (4,)
    """
    found: list[int] = []
    recent: deque[float] = deque(maxlen=window)
    for epoch, loss in enumerate(losses, 1):
        recent.append(loss)
        if len(found) < count and len(recent) == window and all(abs(loss - e) <= epsilon for e in recent):
            found.append(epoch)
            epsilon *= alpha
    return tuple(found)


def read_losses(path: str) -> tuple[float, ...]:
    """The mean losses of epochs in a text file, one a line.

    Raises UsageError for a file that cannot be read, RewriteError for every line that is no number.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_LOSSES_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    if len(data) > MAX_LOSSES_BYTES:
        raise RewriteError(f"{path} has more than {MAX_LOSSES_BYTES:,} bytes; one loss for each epoch is expected")
    losses: list[float] = []
    problems: list[str] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        try:
            losses += [float(line)] if line.strip() else []
        except ValueError:
            problems.append(f"{path}:{number}: a loss has to be a number (got {line[:40]!r})")
    problems += [f"{path}: a loss has to be finite"] if not all(map(isfinite, losses)) else []
    problems += [f"{path}: holds no losses"] if not losses and not problems else []
    if problems:
        raise RewriteError(problems[:20])
    return tuple(losses)


@dataclass(frozen=True)
class StagedSchedule(PrecisionSchedule):
    """Base class of schedules whose stages end at turning points of the loss, or where the user says.

    Stages end at the ``boundaries``, shares of the run, or at the turning points of the epoch losses in the file
    ``losses``, with the published indicator (:func:`turning_points`); if neither is given, stages are equally long. A
    stage whose turning point never comes is not reached.
    """

    boundaries: tuple[Fraction, ...] = ()
    losses: str | None = None
    epsilon: Fraction = Fraction(1, 20)
    alpha: Fraction = Fraction(3, 10)
    window: int = 5

    @property
    @abstractmethod
    def stages(self) -> int:
        """How many there are."""

    def ends(self) -> tuple[Fraction, ...]:
        """Where each stage but the last ends, as shares of the run; fewer if turning points never come."""
        if self.losses is None:
            return self.boundaries or equal_parts(self.stages)
        losses = read_losses(self.losses)
        points = turning_points(losses, self.stages - 1, epsilon=self.epsilon, alpha=self.alpha, window=self.window)
        return tuple(Fraction(epoch, len(losses)) for epoch in points if epoch < len(losses))

    def stage_refusals(self) -> tuple[tuple[bool, str], ...]:
        """Checks of the knobs that all of these schedules have."""
        return (
            *self.common_refusals(),
            *bad_boundaries(self.boundaries, self.stages),
            (self.losses is not None and bool(self.boundaries), "boundaries and losses both end stages; leave one out"),
            (self.epsilon <= 0, f"epsilon has to be above 0 (got {self.epsilon})"),
            (not 0 < self.alpha <= 1, f"alpha has to lie above 0, up to 1 (got {self.alpha})"),
            (self.window < 2, f"window has to be at least 2 (got {self.window})"),
        )


@dataclass(frozen=True)
class ProgressiveFractionalQuantisation(StagedSchedule):
    """One width of activations and weights, and one of gradients, for each stage of the training.

    Y. Fu et al., FracTrain, NeurIPS 2020 (PFQ). ``bits`` and ``gradient`` have one value for each stage. Stages end at
    the ``boundaries`` (shares of the run), or at the turning points of the epoch losses in the file ``losses``, which
    ``epsilon``, ``alpha`` and ``window`` define; if neither is given, they are equally long. Stem, 1×1 shortcuts and
    classifier keep their widths unless ``edges`` is on (the code leaves the former two). ``position`` is the share of
    the run that has passed; ``none`` is its middle.
    """

    name: ClassVar[str] = "pfq"
    source: ClassVar[str] = "Y. Fu et al., FracTrain, NeurIPS 2020"
    published: ClassVar[tuple[Published, ...]] = (
        Published("effective_macs_saving", "48.8", "%", "ResNet-38, CIFAR-10", "seen", "FracTrain, figures"),
        Published("effective_macs_saving", "52.6", "%", "ResNet-38, CIFAR-100", "seen", "FracTrain, figures"),
    )

    bits: tuple[int, ...] = (3, 4, 6, 8)
    gradient: tuple[int, ...] = (6, 6, 8, 8)

    def __post_init__(self) -> None:
        falling = [k for k in ("bits", "gradient") if list(getattr(self, k)) != sorted(getattr(self, k))]
        self.refuse(
            *one_length(bits=self.bits, gradient=self.gradient),
            *bad_bits(bits=self.bits, gradient=self.gradient),
            *self.stage_refusals(),
            *((True, f"{knob} may not fall from stage to stage") for knob in falling),
        )

    @property
    def stages(self) -> int:
        return len(self.bits)

    def schedule(self, iterations: int) -> tuple[tuple[Fraction, ...], NDArray[np.int64]]:
        ends = self.ends()
        return (Fraction(0), *ends), stage_of(ends, iterations)

    def step(self, trace: Trace, notes: Notes) -> Trace:
        position = Fraction(1, 2) if self.position is None else self.position
        stage = sum(position >= end for end in self.ends())
        return self.narrowed(trace, Widths(self.bits[stage], self.bits[stage], self.gradient[stage]), notes)

    def neutral(self) -> ProgressiveFractionalQuantisation:
        return replace(self, bits=(32,) * self.stages, gradient=(32,) * self.stages)
