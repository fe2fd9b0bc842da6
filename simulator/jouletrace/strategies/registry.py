"""Strategies by name, and what is written on a command line: ``smd+slu:skip=0.4+psg``.

A name is one of this package, an entry point of the group ``jouletrace.strategies`` of an installed package, or a
Python file: ``mine.py`` where it defines one strategy, ``mine.py:Halve`` where it defines several. A combination may
name the hardware that it runs on behind an ``@``.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from jouletrace.errors import RewriteError, UsageError, did_you_mean
from jouletrace.strategies.base import Strategy
from jouletrace.strategies.knobs import from_texts
from jouletrace.strategies.pipeline import Pipeline

__all__ = ["GROUP", "known", "split_hardware", "strategy", "strategy_class"]

GROUP = "jouletrace.strategies"

# Module and class of each strategy of this package, in the order in which they are listed.
_BUILT_IN = {
    "smd": "smd.StochasticMiniBatchDropping",
    "slu": "slu.SelectiveLayerUpdate",
    "psg": "psg.PredictiveSignGradient",
    "stochastic-depth": "stochastic_depth.StochasticDepth",
    "signsgd": "signsgd.SignSGD",
    "int8": "int8.Int8Training",
    "mixed-precision": "mixed_precision.MixedPrecision",
    "cpt": "cpt.CyclicPrecision",
    "pfq": "pfq.ProgressiveFractionalQuantisation",
    "dfq": "dfq.DynamicFractionalQuantisation",
    "ldp": "ldp.LearnableDynamicPrecision",
    "checkpointing": "checkpointing.GradientCheckpointing",
    "accumulation": "accumulation.GradientAccumulation",
    "freeze": "freeze.FrozenLayers",
    "sparse-update": "freeze.SparseUpdate",
    "swa": "swa.StochasticWeightAveraging",
}
# Combinations with a name of their own; knobs are set by writing them out.
_PRESETS = {
    "e2train": "smd+slu+psg",
    "fractrain": "dfq:target=1.5:2:2.5:3,saturate=on",
}


@cache
def known() -> dict[str, str]:
    """Every name that can be written, and where it comes from."""
    names = dict.fromkeys(_BUILT_IN, "jouletrace") | _PRESETS
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        names.setdefault(point.name, point.dist.name if point.dist else "an installed package")
    return names


def strategy(text: str) -> Strategy:
    """The strategy, or the combination, that a text names.

    Raises :class:`RewriteError` for unknown names and knobs, and for combinations that make no sense.

    >>> strategy("slu:skip=0.4,granularity=per_batch").skip
    (Fraction(2, 5),)
    """
    problems: list[str] = []
    parts: list[Strategy] = []
    for term in text.split("+"):
        try:
            parts.append(_term(term.strip()))
        except RewriteError as error:
            problems += error.problems
    if problems:
        raise RewriteError(problems)
    return parts[0] if len(parts) == 1 else Pipeline.of(*parts)


def split_hardware(text: str) -> tuple[str, str | None]:
    """A combination and the hardware behind its ``@``.

    >>> split_hardware("slu+psg@zedboard-int8"), split_hardware("smd")
    (('slu+psg', 'zedboard-int8'), ('smd', None))
    """
    combination, at, hardware = text.rpartition("@")
    return (combination, hardware) if at else (text, None)


def _term(text: str) -> Strategy:
    name, knobs = _name_and_knobs(text)
    if name in _PRESETS:
        if knobs:
            raise RewriteError(f"{name} stands for {_PRESETS[name]}; write that out to set {', '.join(knobs)}")
        return strategy(_PRESETS[name])
    return from_texts(strategy_class(name), knobs)


def _name_and_knobs(text: str) -> tuple[str, dict[str, str]]:
    if not text:
        raise RewriteError("a strategy has no name; write NAME:knob=value,knob=value, and + between strategies")
    file, dot_py, rest = text.partition(".py")
    if dot_py and rest[:1] in ("", ":"):
        cls, _, settings = rest[1:].partition(":")
        if "=" in cls:
            cls, settings = "", rest[1:]
        name = f"{file}.py:{cls}" if cls else f"{file}.py"
    else:
        name, _, settings = text.partition(":")
    knobs: dict[str, str] = {}
    for setting in filter(None, settings.split(",")):
        knob, equals, value = setting.partition("=")
        if not equals or knob in knobs:
            what = "is set twice" if equals else "has no value; write knob=value"
            raise RewriteError(f"{name}: {knob!r} {what}")
        knobs[knob.strip()] = value.strip()
    return name, knobs


def strategy_class(name: str) -> type[Strategy]:
    """The class behind a name; :class:`RewriteError` if there is none."""
    if name in _BUILT_IN:
        module, _, cls = _BUILT_IN[name].partition(".")
        return getattr(import_module(f"jouletrace.strategies.{module}"), cls)
    if ".py" in name:
        return _from_file(name)
    for point in entry_points(group=GROUP, name=name):
        return _checked(point.load(), f"the entry point {name!r}")
    names = list(known())
    raise RewriteError(f"there is no strategy {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}, and a "
                       "Python file of your own can be given by its path")  # fmt: skip


def _from_file(name: str) -> type[Strategy]:
    """A class of a user's Python file, which is executed, as any program that the user runs."""
    path, _, cls = name.partition(".py:")
    file = Path(path if path.endswith(".py") else f"{path}.py")
    if not file.is_file():
        raise UsageError(f"there is no file {str(file)!r}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and type hints look a class's module up here.
    before = sys.modules.get(file.stem)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RewriteError(f"{file}: {type(error).__name__}: {error}") from error
    finally:
        if before is not None:
            sys.modules[file.stem] = before
    own = {n: v for n, v in vars(module).items()
           if isinstance(v, type) and issubclass(v, Strategy) and v.__module__ == module.__name__}  # fmt: skip
    if cls:
        if cls not in own:
            raise RewriteError(f"{file} has no strategy {cls!r}{did_you_mean(cls, list(own))}")
        return _checked(own[cls], f"{file}:{cls}")
    if len(own) != 1:
        raise RewriteError(f"{file} defines {len(own)} strategies{': ' if own else ''}{', '.join(own)}; "
                           "write FILE.py:CLASS")  # fmt: skip
    return _checked(next(iter(own.values())), str(file))


def _checked(found: object, place: str) -> type[Strategy]:
    if not (isinstance(found, type) and issubclass(found, Strategy)) or "name" not in vars(found):
        raise RewriteError(f"{place} is no strategy: derive it from jouletrace.Strategy and give it a name")
    return found
