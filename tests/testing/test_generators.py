"""Generated steps are valid, small, and hold every kind of layer and block often enough to be worth drawing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jouletrace.engine.events import simulate
from jouletrace.hardware.load import digest, list_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.ledger.price import price
from jouletrace.mapping.step import map_step
from jouletrace.testing import (
    dense_traces,
    hardware_specs,
    image_traces,
    recurrent_traces,
    residual_traces,
    sequence_traces,
    traces,
)
from jouletrace.trace.check import problems
from jouletrace.trace.model import NESTS, Conv, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.units import residual_units

DRAWS = 600
# Drawn only to be counted: nothing is shrunk, and the same draws every time.
COUNTED = settings(max_examples=DRAWS, derandomize=True, database=None, phases=[Phase.generate],
                   suppress_health_check=list(HealthCheck))  # fmt: skip

# Every kind of op but fused attention, which no capture of a training step writes, and syncs, which gates bring.
KINDS = set(NESTS) - {"attention", "sync"}
BLOCKS: dict[str, Callable[[Trace], bool]] = {
    "one dense layer": lambda t: len(t.ops) == 7,
    "dropout": lambda t: any(op.kind == "rng" for op in t.ops),
    "grouped convolution": lambda t: any(isinstance(n, Conv) and n.G > 1 and n.C > 1 for n in nests(t)),
    "depthwise convolution": lambda t: any(isinstance(n, Conv) and n.G > 1 and n.C == 1 for n in nests(t)),
    "stride": lambda t: any(isinstance(n, Conv) and n.stride != (1, 1) for n in nests(t)),
    "5 × 5 kernel": lambda t: any(isinstance(n, Conv) and n.R == 5 for n in nests(t)),
    "squeeze and excitation": lambda t: layer(t, ".scale_activation"),
    "identity shortcut": lambda t: any(unit.kind == "identity" for unit in residual_units(t)),
    "projected shortcut": lambda t: any(unit.kind == "projection" for unit in residual_units(t)),
    "bottleneck": lambda t: layer(t, ".conv3"),
    "pre-activated block": lambda t: any(op.name.endswith(".add:forward") and "layer" in op.name
                                         and t.writer[op.reads[0]].kind == "conv" for op in t.ops),
    "inverted residual": lambda t: layer(t, ".conv.1.0"),
    "inverted residual with a skip": lambda t: any(f"{unit.name}.conv.1.0" in layers(t) for unit in residual_units(t)),
    "attention": lambda t: layer(t, ".attn.q"),
    "two blocks of a transformer": lambda t: layer(t, ".attn.q") and layer(t, ".mlp.fc1"),
    "LSTM of two steps": lambda t: "lstm.cell:forward#2" in t.op,
    "block used twice": lambda t: any(op.name.startswith("layer") and op.kind == "conv" and op.name.endswith(":forward#2")
                                      for op in t.ops),
    "batch of one": lambda t: t.header.batch == 1,
    "gradient added up": lambda t: any(op.name.partition(":")[0].endswith(".accumulate") for op in t.ops),
    "sgd": lambda t: t.header.optimizer == "sgd",
    "momentum": lambda t: t.header.optimizer == "sgd_momentum",
    "adam": lambda t: t.header.optimizer == "adam",
}  # fmt: skip


def nests(trace: Trace) -> list[object]:
    return [op.nest for op in trace.ops if op.phase == "forward"]


def layers(trace: Trace) -> set[str]:
    return {op.layer for op in trace.ops}


def layer(trace: Trace, ending: str) -> bool:
    return any(name.endswith(ending) for name in layers(trace))


@pytest.mark.parametrize(
    "generator", [dense_traces, image_traces, residual_traces, sequence_traces, recurrent_traces], ids=lambda g: g.__name__
)
@settings(suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_step_is_valid_and_holds_no_dead_work(generator: Callable[[], st.SearchStrategy[Trace]], data: st.DataObject) -> None:
    trace = data.draw(generator())
    assert problems(trace) == []
    assert prune(trace) is trace
    assert len(trace.ops) <= 110


def test_every_kind_of_layer_and_block_is_drawn() -> None:
    """Each in at least one of a hundred steps; the rarest, a 5 × 5 kernel, was in one of sixty when this was written."""
    seen: Counter[str] = Counter()

    @COUNTED
    @given(traces())
    def count(trace: Trace) -> None:
        seen.update({op.kind for op in trace.ops})
        seen.update(name for name, holds in BLOCKS.items() if holds(trace))

    count()
    assert set(seen) >= KINDS
    assert {name: seen[name] for name in (*KINDS, *BLOCKS) if seen[name] < DRAWS // 100} == {}


def test_smallest_step_is_one_dense_layer() -> None:
    from hypothesis import find

    smallest = find(traces(), lambda t: True)
    assert [op.name for op in smallest.ops if op.phase == "forward"] == ["fc.gemm:forward", "cross_entropy:forward"]
    assert (smallest.header.batch, smallest.macs) == (1, 4)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_smallest_residual_step_is_one_basic_block() -> None:
    from hypothesis import find

    smallest = find(residual_traces(), lambda t: bool(residual_units(t)))
    assert [unit.name for unit in residual_units(smallest)] == ["layer1.0"]
    assert all(t.elements <= 9 for t in smallest.tensors)


@pytest.mark.parametrize("name", list_hardware())
def test_variations_of_every_accelerator_are_drawn_and_execute(name: str) -> None:
    seen: set[str] = set()

    @settings(COUNTED, max_examples=12)
    @given(hardware_specs([name]), dense_traces() | residual_traces(max_blocks=1))
    def execute(board: Hardware, trace: Trace) -> None:
        seen.add(digest(board))
        counts = simulate(map_step(trace, board))
        assert price(counts, board).total("board").energy_aj > 0

    execute()
    assert len(seen) > 4, "most draws set something otherwise"


def test_without_hypothesis_the_cure_is_told() -> None:
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'hypothesis' else find(name, *rest)\n"
        "import jouletrace.testing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "not installed here; run 'pip install jouletrace[testing]'" in done.stderr
