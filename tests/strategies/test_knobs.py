"""Knobs as text: what is written on a command line and in a header comes back as the same value."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.errors import RewriteError
from jouletrace.strategies.base import Strategy
from jouletrace.strategies.knobs import MAX_TEXT, describe, from_texts, parameters


@dataclass(frozen=True)
class Every(Strategy):
    """One knob of every kind."""

    name: ClassVar[str] = "every"
    number: int = 3
    flag: bool = False
    share: Fraction = Fraction(1, 2)
    word: Literal["full", "half"] = "full"
    text: str | None = None
    shares: tuple[Fraction, ...] = (Fraction(1),)
    layers: tuple[str, ...] = ()


WORDS = st.text("abc.*_-0", min_size=1, max_size=8).filter(lambda text: text != "none")


@given(st.builds(
    Every, st.integers(), st.booleans(), st.fractions(), st.sampled_from(["full", "half"]), st.none() | WORDS,
    st.lists(st.fractions(), min_size=1).map(tuple), st.lists(WORDS).map(tuple),
))  # fmt: skip
def test_parameters_of_a_header_give_the_same_strategy(strategy: Every) -> None:
    texts = {knob: str(text) for knob, text in parameters(strategy)}
    assert from_texts(Every, texts) == strategy


@pytest.mark.parametrize(("knob", "text", "value"), [
    ("share", "0.4", Fraction(2, 5)),
    ("share", "2/5", Fraction(2, 5)),
    ("share", "1e-3", Fraction(1, 1000)),
    ("shares", "0.2:2/5", (Fraction(1, 5), Fraction(2, 5))),
    ("flag", "on", True),
    ("flag", "No", False),
    ("layers", "layer1.*:fc", ("layer1.*", "fc")),
    ("layers", "", ()),
    ("text", "none", None),
])  # fmt: skip
def test_texts_and_values(knob: str, text: str, value: object) -> None:
    assert getattr(from_texts(Every, {knob: text}), knob) == value


def test_every_wrong_knob_is_told_at_once() -> None:
    wrong = {
        "numbr": "1", "number": "1.5", "flag": "maybe", "share": "1/0", "word": "ful", "shares": "1:x",
        "text": "x" * (MAX_TEXT + 1),
    }  # fmt: skip
    with pytest.raises(RewriteError) as refused:
        from_texts(Every, wrong)
    unknown, number, flag, share, word, shares, text = refused.value.problems
    assert "has no knob 'numbr', did you mean 'number'?" in unknown or "did you mean 'number'" in unknown
    assert "number has to be a whole number (got '1.5')" in number
    assert "on or off" in flag
    assert "share has to be a number (got '1/0')" in share
    assert "did you mean 'full'" in word
    assert "a number such as 0.4 or 2/3" in shares
    assert "not longer than 65,536 characters" in text


def test_a_strategy_without_knobs_says_so() -> None:
    @dataclass(frozen=True)
    class Plain(Strategy):
        name: ClassVar[str] = "plain"

    with pytest.raises(RewriteError, match="it has none"):
        from_texts(Plain, {"p": "1"})


def test_knobs_are_described_with_their_defaults() -> None:
    assert describe(Every) == [
        ("number", "a whole number", "3"),
        ("flag", "on or off", "off"),
        ("share", "a number such as 0.4 or 2/3", "1/2"),
        ("word", "one of full, half", "full"),
        ("text", "a text or none", "none"),
        ("shares", "a number such as 0.4 or 2/3, several separated by colons", "1"),
        ("layers", "a text, several separated by colons", ""),
    ]


def test_only_changed_knobs_are_printed() -> None:
    assert str(Every()) == "every"
    assert str(Every(flag=True, shares=(Fraction(1, 5), Fraction(2)))) == "every:flag=on,shares=1/5:2"
