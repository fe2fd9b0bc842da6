"""Strategies that keep the laws pass; each mutant breaks the law that is meant for it, and is told why."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from jouletrace import testing
from jouletrace.hardware.load import load_hardware
from jouletrace.strategies.base import Strategy
from jouletrace.testing import Case, assert_laws, residual_traces, traces

from . import specimens
from .specimens import Drop, Narrow, SkipFirst, SkipSome, residual_step

SOUND = [SkipFirst(), SkipFirst(2), Drop(), SkipSome(), Narrow(), SkipFirst() | Narrow(8), Drop() | SkipSome() | Narrow()]
# What is broken, by which law it shows, and words of the sentence.
MUTANTS: list[tuple[Strategy, str, str]] = [
    (specimens.GradientLeftBehind(), "law_nothing_left_behind", "'layer1.0.conv2.conv:backward_weight' survives"),
    (specimens.WrongShortcut(), "law_survivors", "changes reads of op 'layer1.1.conv1.conv:forward'"),
    (specimens.WrongGradient(), "law_nothing_left_behind", "reads what makes no sense there"),
    (specimens.UpdateKept(), "law_parameters", "which no forward op reads any more"),
    (specimens.ParameterLost(), "law_parameters", "loses the parameter 'layer1.0.conv1.weight'"),
    (specimens.SkippedTwice(), "law_macs", "reports .* MACs that it took off"),
    (specimens.UnrelatedBatch(), "law_valid", "is not valid"),
    (specimens.NeutralWrites(), "law_neutral", "said to be neutral, yet it changes a step"),
    (specimens.GateNotCounted(), "law_macs", "reports 0 MACs that it added, .* in 'gate:forward'"),
    (specimens.GatedTooMuch(), "law_nothing_left_behind", "decides what cannot be executed, such as {'layer1.0': 0} samples"),
    (specimens.Undeclared(), "law_survivors", "does not declare tensor.bits"),
    (specimens.KnobLost(), "law_header", "does not come back from the knobs"),
    (specimens.Moody(), "law_repeatable", "gives another step for another seed, though it does not draw"),
    (specimens.Shifted(), "law_streams", "differs in step_of"),
]  # fmt: skip


def case(strategy: Strategy) -> Case:
    return Case(strategy, residual_step(), seed=3)


@pytest.mark.parametrize("strategy", SOUND, ids=str)
def test_a_strategy_that_keeps_the_laws_passes(strategy: Strategy) -> None:
    assert_laws(strategy, cases=25)


@pytest.mark.parametrize(("mutant", "law", "words"), MUTANTS, ids=lambda p: type(p).__name__ if isinstance(p, Strategy) else "")
def test_a_mutant_breaks_its_law(mutant: Strategy, law: str, words: str) -> None:
    check: Callable[[Case], None] = getattr(testing, law)
    check(case(type(mutant).__mro__[1]()))  # what it is a mutant of keeps it
    with pytest.raises(AssertionError, match=words):
        check(case(mutant))


@pytest.mark.parametrize("mutant", [m for m, _, _ in MUTANTS], ids=lambda m: type(m).__name__)
def test_a_mutant_is_found_on_drawn_steps(mutant: Strategy) -> None:
    with pytest.raises(AssertionError, match=r"The smallest step found has a batch of \d and the forward ops"):
        assert_laws(mutant, cases=25, traces=residual_traces())


@pytest.mark.parametrize("mutant", [specimens.WrongProbability(), specimens.Silent()])
def test_draws_are_held_against_their_closed_form(mutant: Strategy) -> None:
    testing.law_closed_form(Drop(), residual_step())
    testing.law_closed_form(SkipSome(), residual_step(), iterations=2000)
    with pytest.raises(AssertionError, match=r"happened \d+ times of 20000|says of nothing how often"):
        testing.law_closed_form(mutant, residual_step())


def test_the_bound_is_tight() -> None:
    """The true tails of a binomial count of 20,000 draws at 1/3: one standard deviation is 67."""
    from jouletrace.testing.run_laws import FALSE_ALARM, _tail

    inside, outside = (min(_tail(round(20000 / 3) + d, 20000, 1 / 3) for d in (-n, n)) for n in (350, 450))
    assert outside < FALSE_ALARM / 2 < inside


def test_order_matters_where_the_order_was_said_not_to_matter() -> None:
    testing.law_commutes(case(SkipFirst(2)), Narrow())
    testing.law_commutes(case(Drop()), Narrow())
    with pytest.raises(AssertionError, match=r"do not commute, though that is declared: tensor .* differs in bits"):
        testing.law_commutes(case(SkipFirst(2)), specimens.FirstFive())


@pytest.mark.parametrize("name", ["zedboard-int8", "eftrain-pynq-z1", "systolic-32x32"])
def test_what_survives_never_costs_more(name: str) -> None:
    board = load_hardware(name)
    for strategy in (SkipFirst(), SkipFirst(2), Narrow(8)):
        testing.law_energy(case(strategy), board)
    with pytest.raises(AssertionError, match=r"op 'relu:forward' costs \d+ aJ on .* though it reads"):
        testing.law_energy(case(specimens.Dearer()), board)


def test_a_strategy_that_matches_nothing_proves_nothing() -> None:
    with pytest.raises(AssertionError, match="changes none of 5 steps, so its laws were not tested"):
        assert_laws(SkipFirst(), cases=5, traces=testing.dense_traces())


def test_the_smallest_step_is_told() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_laws(specimens.Undeclared(), cases=30, traces=traces())
    layers = re.findall(r"[\w.]+:forward", str(caught.value).splitlines()[-1])
    assert layers == ["fc.gemm:forward", "cross_entropy:forward"]
    assert caught.value.__cause__ is None
