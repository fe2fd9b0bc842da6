"""Every strategy keeps every law, on generated steps that it changes.

Each line draws its own steps: a strategy for residual units sees residual networks. Together at least 2,000 cases per
law; the nightly profile draws fifty times as many.
"""

import os

import pytest

from jouletrace.strategies.registry import known, strategy
from jouletrace.testing import assert_laws, image_traces, residual_traces, traces

NIGHTLY = os.environ.get("JOULETRACE_PROFILE") == "nightly"
CASES = 6250 if NIGHTLY else 125

ANY, IMAGES, RESIDUAL = traces(), image_traces(), residual_traces(max_blocks=3)

# A strategy with knobs with which it does something to small steps and short trainings, and the steps it is shown.
LINES = {
    "smd": ANY,
    "smd:drop=as_coded": ANY,
    "slu:skip=1/3": RESIDUAL,
    "slu:granularity=per_batch": RESIDUAL,
    "psg": IMAGES,
    "stochastic-depth": RESIDUAL,
    "signsgd": ANY,
    "int8": ANY,
    "mixed-precision": ANY,
    "cpt:cycles=4": ANY,
    "pfq": ANY,
    "dfq": ANY,
    "ldp:bits=4:8": ANY,
    "checkpointing": ANY,
    "accumulation:micro_batch=1": IMAGES,
    "freeze:layers=*conv1*:*0*": ANY,
    "sparse-update:layers=*conv1*:*0*": ANY,
    "swa:period=5": ANY,
    "smd+slu+psg": RESIDUAL,
}


def test_every_strategy_stands_here() -> None:
    """Presets are combinations of others; the one of E2-Train stands here written out."""
    names = {part.split(":")[0] for line in LINES for part in line.split("+")}
    presets = {name for name, home in known().items() if home != "jouletrace"}
    assert names == {*known()} - presets


@pytest.mark.parametrize("line", LINES)
def test_laws(line: str) -> None:
    assert_laws(strategy(line), cases=CASES, traces=LINES[line])
