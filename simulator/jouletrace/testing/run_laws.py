"""Laws of what is drawn and of what is combined: the same seed, longer runs, closed forms, other orders."""

from __future__ import annotations

from math import nextafter
from typing import TypeVar

import numpy as np
from scipy.stats import binom  # pyright: ignore[reportMissingTypeStubs]

from jouletrace.errors import RewriteError, TraceError
from jouletrace.strategies.base import Strategy, apply
from jouletrace.testing.case import Case, broken, difference, repeated
from jouletrace.trace.model import Trace
from jouletrace.trace.run import Run

__all__ = ["FALSE_ALARM", "law_closed_form", "law_commutes", "law_repeatable", "law_streams"]

V = TypeVar("V", Trace, Run)

# How often a strategy that draws as it says may fail law_closed_form: once in a billion runs.
FALSE_ALARM = 1e-9


def law_repeatable(case: Case) -> None:
    """The same seed gives the same step and run; a strategy that does not draw gives them for every seed."""
    for stage in case.stages:
        seed, why = _again(stage.strategy, case.seed)
        once, again = stage.after, apply(stage.strategy, stage.before, seed=seed).value
        if what := difference(once, again) or ("" if once.header == again.header else "the header"):
            broken(f"{stage.strategy.name} gives another step for {why}: {what}.")
    for part, before, after in case.run_stages:
        seed, why = _again(part, case.seed)
        if what := run_difference(after, apply(part, before, seed=seed).value):
            broken(f"{part.name} gives another run for {why}: {what}.")


def _again(part: Strategy, seed: int) -> tuple[int, str]:
    """The seed for which a strategy has to do the same once more."""
    return (seed, "the same seed") if part.random else (seed + 1, "another seed, though it does not draw")


def law_streams(case: Case) -> None:
    """What is drawn for an iteration does not depend on how many follow: a longer run begins with the shorter one.

    Holds of strategies that say how often they expect what they draw.
    """
    short = repeated(case.trace, max(1, case.iterations // 3))
    for part in case.strategy.parts:
        if list(part.expected(case.run)):
            begun, whole = (apply(part, run, seed=case.seed).value for run in (short, case.run))
            n = min(begun.iterations, whole.iterations)
            for name in ("step_of", "samples"):
                ours, theirs = getattr(begun, name)[:n], getattr(whole, name)[:n]
                if unequal := np.flatnonzero((ours != theirs).reshape(n, -1).any(axis=1)).tolist():
                    broken(f"{part.name}: iteration {unequal[0]} of a run of {begun.iterations} differs in {name} from "
                           f"iteration {unequal[0]} of one of {whole.iterations}; draw per iteration, from a named "
                           "stream.")  # fmt: skip


def law_closed_form(strategy: Strategy, trace: Trace, *, seed: int = 0, iterations: int = 20_000) -> None:
    """Counts of a strategy that draws are those of a binomial distribution, by its exact tails.

    Of a run of ``iterations``, each count of :meth:`~jouletrace.strategies.base.Strategy.outcomes` has to lie where
    its distribution has all but :data:`FALSE_ALARM` of its weight, shared by all counts and both tails.
    """
    for part in strategy.parts:
        if not part.random:
            continue
        before = repeated(trace, iterations)
        after = apply(part, before, seed=seed).value
        expected, outcomes = list(part.expected(before)), list(part.outcomes(before, after))
        if (wanted := [what for what, *_ in expected]) != (reported := [what for what, _ in outcomes]):
            broken(f"{part.name} expects {wanted}, and reports {reported}.")
        if not expected and run_difference(after, apply(part, before, seed=seed + 1).value):
            broken(f"{part.name} draws, and says of nothing how often it is expected; write expected() and outcomes().")
        for (what, draws, probability), (_, n) in zip(expected, outcomes, strict=True):
            tail = FALSE_ALARM / (2 * len(expected))
            if not 0 <= n <= draws or _tail(n, draws, float(probability)) < tail:
                broken(f"{part.name}: {what} happened {n} times of {draws}; with a probability of {probability} about "
                       f"{float(probability * draws):.6g} were expected.")  # fmt: skip


def _tail(n: int, draws: int, probability: float) -> float:
    """The smaller of the chances of at most n and of at least n."""
    if probability in (0.0, 1.0):
        return float(n == draws * probability)
    # a probability that is no binary fraction is rounded: take the kinder neighbour
    low, high = nextafter(probability, 0.0), nextafter(probability, 1.0)
    below, above = binom.cdf(n, draws, low), binom.sf(n - 1, draws, high)  # pyright: ignore[reportUnknownMemberType]
    return min(float(below), float(above))


def law_commutes(case: Case, other: Strategy) -> None:
    """This strategy, then the other, is the other, then this one: equal steps and equal runs, but for the header.

    Says nothing where one of the two refuses.
    """
    name = f"{case.strategy.name} and {other.name} do not commute, though that is declared"
    try:
        orders = [(case.strategy, other), (other, case.strategy)]
        ours, theirs = (_both(case.trace, pair, case.seed) for pair in orders)
        our_run, their_run = (_both(case.run, pair, case.seed) for pair in orders)
    except RewriteError:
        return
    except TraceError as error:
        broken(f"{name}: {error}")
    if what := difference(ours, theirs):
        broken(f"{name}: {what}.")
    if what := run_difference(our_run, their_run):
        broken(f"{name} in a run: {what}.")


def _both(value: V, pair: tuple[Strategy, Strategy], seed: int) -> V:
    for strategy in pair:
        value = apply(strategy, value, seed=seed).value
    return value


def run_difference(one: Run, other: Run) -> str:
    """The first difference of two runs, as half a sentence; empty if there is none."""
    if len(one.steps) != len(other.steps):
        return f"{len(one.steps)} distinct steps are not {len(other.steps)}"
    if one.units != other.units:
        return f"units {one.units} are not {other.units}"
    for name in ("step_of", "samples"):
        if not np.array_equal(getattr(one, name), getattr(other, name)):
            return f"{name} differs"
    ours, theirs = ([(a.name, a.times, a.step.ops) for a in run.activities] for run in (one, other))
    if ours != theirs:
        return "activities differ"
    differences = (difference(ours, theirs) for ours, theirs in zip(one.steps, other.steps, strict=True))
    return next((what for what in differences if what), "")
