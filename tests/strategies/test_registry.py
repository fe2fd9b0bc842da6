"""Names of strategies: those of this package, of other packages, and of a user's file."""

from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from jouletrace import load_trace
from jouletrace.errors import RewriteError, UsageError
from jouletrace.strategies import registry
from jouletrace.strategies.base import STAGES, Strategy, apply
from jouletrace.strategies.knobs import from_texts
from jouletrace.strategies.pipeline import Pipeline
from jouletrace.strategies.registry import known, split_hardware, strategy, strategy_class
from jouletrace.strategies.signsgd import SignSGD

OWN = '''
from dataclasses import dataclass, replace
from typing import ClassVar
from jouletrace.strategies.base import Strategy

@dataclass(frozen=True)
class Halve(Strategy):
    """Parameters in half their bits."""
    name: ClassVar[str] = "halve"
    stage: ClassVar[str] = "precision"
    by: int = 2

    def step(self, trace, notes):
        return replace(trace, tensors=tuple(replace(t, bits=t.bits // self.by) if t.role == "param" else t
                                            for t in trace.tensors))
'''
STEP = load_trace("resnet20-cifar10-b32")


@pytest.fixture(autouse=True)
def fresh() -> None:
    registry.known.cache_clear()


@pytest.mark.parametrize("name", list(registry._BUILT_IN))  # pyright: ignore[reportPrivateUsage]
def test_every_strategy_of_the_package_says_what_it_is(name: str) -> None:
    kind = strategy_class(name)
    assert kind.name == name
    assert kind.stage in STAGES
    assert kind.source
    assert kind.__doc__
    assert str(strategy(name)) == name
    assert all(row.certainty in ("seen", "code", "derived", "recalled") for row in kind.published)


def test_presets_are_combinations() -> None:
    assert str(strategy("e2train")) == "smd+slu+psg"
    assert set(registry._PRESETS) <= set(known())  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(RewriteError, match=r"e2train stands for smd\+slu\+psg; write that out to set skip"):
        strategy("e2train:skip=0.2")


def test_a_combination_with_knobs() -> None:
    parsed = strategy("smd:p=0.5 + slu:skip=0.2:0.4,granularity=per_batch + signsgd")
    assert isinstance(parsed, Pipeline)
    assert str(parsed) == "smd+slu:skip=1/5:2/5,granularity=per_batch+signsgd"
    assert strategy(str(parsed)) == parsed


def test_hardware_stands_behind_an_at() -> None:
    assert split_hardware("smd+slu@zedboard-int8") == ("smd+slu", "zedboard-int8")
    assert split_hardware("e2train") == ("e2train", None)


def test_all_terms_that_cannot_be_read_are_told_at_once() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("smd:p=2+slux++freeze:layers+swa:period=1,period=2")
    bounds, unknown, empty, bare, twice = refused.value.problems
    assert "p has to lie in [0, 1)" in bounds
    assert "there is no strategy 'slux', did you mean 'slu'" in unknown or "did you mean 'slu'" in unknown
    assert "has no name" in empty
    assert "'layers' has no value" in bare
    assert "'period' is set twice" in twice


# -- a user's own


def test_a_file_with_one_strategy(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert str(strategy(f"{file}:by=4")) == "halve:by=4"
    assert str(strategy(f"slu+{file}:Halve:by=8+signsgd")) == "slu+halve:by=8+signsgd"
    after = apply(strategy(str(file)), STEP).value
    assert after.tensor["fc.weight"].bits == 16
    assert after.header.rewrites[0].strategy == "halve"


def test_files_that_do_not_say_which_strategy(tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(OWN + OWN[OWN.index("@dataclass") :].replace("Halve", "Again").replace('"halve"', '"again"'))
    assert strategy(f"{file}:Again").name == "again"
    with pytest.raises(RewriteError, match="defines 2 strategies: Halve, Again; write FILE.py:CLASS"):
        strategy(str(file))
    with pytest.raises(RewriteError, match="has no strategy 'Halv'.*did you mean 'Halve'"):
        strategy(f"{file}:Halv")
    with pytest.raises(UsageError, match="there is no file"):
        strategy(str(tmp_path / "none.py"))


@pytest.mark.parametrize(("text", "problem"), [
    ("1/0", "ZeroDivisionError"),
    ("x = 1", "defines 0 strategies"),
    (OWN.replace('    name: ClassVar[str] = "halve"\n', ""), "give it a name"),
])  # fmt: skip
def test_files_that_hold_no_strategy(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(RewriteError, match=problem):
        strategy(str(file))


def test_a_file_leaves_no_module_of_its_name_in_the_place_of_another(tmp_path: Path) -> None:
    import json
    import sys

    file = tmp_path / "json.py"
    file.write_text(OWN)
    assert strategy(str(file)).name == "halve"
    assert sys.modules["json"] is json


# -- other packages


def test_an_installed_package_adds_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("sign-too", "jouletrace.strategies.signsgd:SignSGD", registry.GROUP),
        EntryPoint("no-strategy", "fractions:Fraction", registry.GROUP),
        EntryPoint("smd", "jouletrace.strategies.signsgd:SignSGD", registry.GROUP),
    ]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [p for p in points if group == registry.GROUP and name in (None, p.name)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert strategy("sign-too") == SignSGD()
    assert strategy("smd").name == "smd"  # names of this package cannot be taken
    assert known()["sign-too"] == "an installed package"
    assert known()["smd"] == "jouletrace"
    with pytest.raises(RewriteError, match="'no-strategy' is no strategy"):
        strategy("no-strategy")


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(RewriteError) as refused:
        strategy("smdd")
    assert "did you mean 'smd'" in refused.value.problems[0]
    assert "e2train" in refused.value.problems[0]


def test_base_class_refuses_to_be_a_strategy() -> None:
    assert Strategy().neutral() is None
    assert from_texts(SignSGD, {}) == SignSGD()
