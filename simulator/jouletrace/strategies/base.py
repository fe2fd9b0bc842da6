"""What a strategy is: a frozen value whose fields are its knobs, and what it says about each rewrite.

A strategy rewrites a step (:meth:`Strategy.step`) or a whole training (:meth:`Strategy.run`, which by default rewrites
every distinct step of it). :func:`apply` does the rest, the same for all: dead ops are removed, validity is checked,
the header tells what was done. A rewrite that changes nothing returns the very value that it was given.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from jouletrace.errors import RewriteError, TraceError
from jouletrace.strategies.knobs import knobs, parameters
from jouletrace.strategies.streams import stream
from jouletrace.trace.activities import zero_gradient_update
from jouletrace.trace.check import problems
from jouletrace.trace.io import digest
from jouletrace.trace.model import Rewrite, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.run import Run

if TYPE_CHECKING:
    import numpy as np

    from jouletrace.strategies.pipeline import Pipeline

__all__ = ["STAGES", "Left", "Match", "Notes", "Published", "Rewritten", "Strategy", "apply"]

V = TypeVar("V", Trace, Run)

# Strategies apply in this order: which data is seen, which ops there are, how wide operands are, how parameters are
# updated, and how the step is laid out in time and memory.
STAGES = ("data", "graph", "precision", "update", "layout")


@dataclass(frozen=True, slots=True)
class Published:
    """One published number that travels with a strategy; never used by any model.

    ``quantity`` such as ``top1_accuracy``, in ``unit``; ``setting`` says for which network, data and knobs;
    ``certainty`` is ``seen`` (in the publication), ``code``, ``derived`` or ``recalled``.
    """

    quantity: str
    value: str
    unit: str
    setting: str
    certainty: str
    source: str


@dataclass(frozen=True, slots=True)
class Match:
    """A place that a strategy rewrote: an op, a unit or a tensor, and what happened to it."""

    place: str
    what: str


@dataclass(frozen=True, slots=True)
class Left:
    """A place that a strategy left alone, and why."""

    place: str
    reason: str


@dataclass
class Notes:
    """What one strategy writes down while it rewrites one value; lives no longer than that.

    ``skipped_macs`` and ``added_macs`` are the strategy's own count of what it took off a step and put onto it.
    """

    strategy: str
    seed: int
    matches: list[Match] = field(default_factory=list[Match])
    left: list[Left] = field(default_factory=list[Left])
    skipped_macs: int = 0
    added_macs: int = 0

    def match(self, place: str, what: str) -> None:
        """This place was rewritten."""
        self.matches.append(Match(place, what))

    def leave(self, place: str, reason: str) -> None:
        """This place was left alone."""
        self.left.append(Left(place, reason))

    def random(self, *names: str) -> np.random.Generator:
        """The strategy's own random stream of this name; others do not shift it."""
        return stream(self.seed, self.strategy, *names)


@dataclass(frozen=True)
class Rewritten(Generic[V]):
    """A rewritten step or run, where the strategy matched, and every place that it left alone, with the reason."""

    value: V
    matches: tuple[Match, ...] = ()
    left: tuple[Left, ...] = ()
    skipped_macs: int = 0
    added_macs: int = 0


@dataclass(frozen=True)
class Strategy:
    """Base class. A subclass is a frozen dataclass with knobs as fields, a docstring, and :meth:`step` or :meth:`run`.

    Class attributes declare what laws and reports need:

    * ``name``: as on the command line; ``source``: the publication.
    * ``stage``: one of :data:`STAGES`; in a combination stages may not go backwards.
    * ``claims``: what only one strategy of a combination may set, such as ``widths`` or ``blocks``.
    * ``changes``: fields of ops and tensors (``op.nest``, ``tensor.bits``) that may differ in what survives.
    * ``commutes_with``: names of strategies that may as well be applied after this one, with equal bodies.
    * ``random``: whether decisions are drawn, so that the seed matters.
    * ``published``: numbers of the publication, for reports.

    Knobs are ``int``, ``bool``, ``str``, ``Fraction``, ``Literal[...]``, tuples of those, or ``X | None``. Bounds are
    checked in ``__post_init__`` with :meth:`refuse`.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    stage: ClassVar[str] = "graph"
    claims: ClassVar[frozenset[str]] = frozenset()
    changes: ClassVar[frozenset[str]] = frozenset()
    commutes_with: ClassVar[frozenset[str]] = frozenset()
    random: ClassVar[bool] = False
    published: ClassVar[tuple[Published, ...]] = ()

    def step(self, trace: Trace, notes: Notes) -> Trace:
        """The rewritten step; the same trace where nothing matches. Raises RewriteError where it cannot be done."""
        return trace

    def run(self, run: Run, notes: Notes) -> Run:
        """The rewritten training: by default, every distinct step of it rewritten."""
        return self.rewritten(run, notes, self.step)

    def rewritten(self, run: Run, notes: Notes, rewrite: Callable[[Trace, Notes], Trace]) -> Run:
        """The run with every distinct step rewritten; the run itself if none changes.

        A step that only updates, on gradients of zero, is that of the step before it, rewritten.
        """
        steps: list[Trace] = []
        for trace in run.steps:
            idle = steps and all(op.phase == "update" for op in trace.ops)
            after = zero_gradient_update(steps[-1]) if idle else rewrite(trace, notes)
            steps.append(self._finished(trace, after, notes.seed))
        return run if tuple(steps) == run.steps else replace(run, steps=tuple(steps))

    def neutral(self) -> Strategy | None:
        """The setting that changes nothing, with every other knob as it is; None if there is no such setting."""
        return None

    def expected(self, run: Run) -> Iterable[tuple[str, int, Fraction]]:
        """For strategies that draw: (what, draws, probability) of every count that :func:`outcomes` reports."""
        return ()

    def outcomes(self, before: Run, after: Run) -> Iterable[tuple[str, int]]:
        """(what, how often it happened) in a rewritten run, in the order of :meth:`expected`."""
        return ()

    def __or__(self, other: Strategy) -> Pipeline:
        """This strategy, then the other."""
        from jouletrace.strategies.pipeline import Pipeline

        return Pipeline.of(self, other)

    def __str__(self) -> str:
        """As on the command line, with the knobs that differ from their defaults."""
        changed = [f"{k}={text}" for k, text, default in knobs(self) if text != default]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    @property
    def parts(self) -> tuple[Strategy, ...]:
        """The strategies to apply one after the other: this one."""
        return (self,)

    def refuse(self, *checks: tuple[bool, str]) -> None:
        """Raises RewriteError with the sentence of every check that is True."""
        if found := [f"{self.name}: {sentence}" for wrong, sentence in checks if wrong]:
            raise RewriteError(found)

    def _finished(self, before: Trace, after: Trace, seed: int) -> Trace:
        """A rewritten step without dead ops, checked, with a header that tells of the rewrite."""
        if after is before:
            return before
        after = prune(after)
        if (after.tensors, after.ops) == (before.tensors, before.ops):
            return before
        plain = replace(after, header=replace(after.header, rewrites=()))  # seeds rewrite alike
        if plain not in _SOUND:
            if found := problems(after):
                raise TraceError([f"after {self.name} the step is not valid, which is a defect of that strategy: {s}"
                                  for s in found])  # fmt: skip
            _SOUND.append(plain)
        entry = Rewrite(self.name, parameters(self), seed if self.random else None, digest(before))
        header = replace(after.header, rewrites=(*before.header.rewrites, entry))
        return replace(after, header=header)


# The last steps that passed the check, without their rewrites.
_SOUND: deque[Trace] = deque(maxlen=8)


def apply(strategy: Strategy, value: V, *, seed: int = 0) -> Rewritten[V]:
    """Rewrites a step or a run by a strategy, or by each part of a combination in turn.

    Raises :class:`RewriteError` where the strategy refuses, and TraceError where what it returns breaks a rule of
    :mod:`jouletrace.trace.check` (a defect of the strategy).

    >>> import jouletrace
    >>> from jouletrace.strategies.registry import strategy
    >>> step = jouletrace.load_trace("resnet20-cifar10-b32")
    >>> apply(strategy("signsgd"), step).value.header.rewrites[0].strategy
    'signsgd'
    """
    matches: list[Match] = []
    left: list[Left] = []
    skipped = added = 0
    for part in strategy.parts:
        notes = Notes(part.name, seed)
        if isinstance(value, Run):
            value = _applied_to_run(part, value, notes)
        else:
            value = part._finished(value, part.step(value, notes), seed)  # pyright: ignore[reportPrivateUsage]
        matches += notes.matches
        left += notes.left
        skipped += notes.skipped_macs
        added += notes.added_macs
    return Rewritten(value, tuple(matches), tuple(left), skipped, added)


def _applied_to_run(part: Strategy, run: Run, notes: Notes) -> Run:
    rewritten = part.run(run, notes)
    if rewritten is run:
        return run
    entry = Rewrite(part.name, parameters(part), notes.seed if part.random else None, run_digest(run))
    return replace(rewritten, rewrites=(*run.rewrites, entry))


def run_digest(run: Run) -> str:
    """The identity of a run: its steps, its activities, and every decision."""
    parts = hashlib.sha256()
    for trace in (*run.steps, *(a.step for a in run.activities)):
        parts.update(digest(trace).encode())
    parts.update(repr((run.units, [(a.name, a.times) for a in run.activities])).encode())
    parts.update(run.step_of.tobytes())
    parts.update(run.samples.tobytes())
    return parts.hexdigest()
