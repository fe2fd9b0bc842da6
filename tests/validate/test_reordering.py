"""Words that EF-Train's host reorders, as validation/ef-train-steps.yaml assumes them, counted from the trace.

The tables give two totals, for two layouts. One cost per word cancels in their ratio; which maps are moved does not.
"""

from __future__ import annotations

from itertools import product

import pytest

from jouletrace import load_trace
from jouletrace.resources import folder
from jouletrace.validate.load import load
from jouletrace.validate.measurements import Copy
from jouletrace.validate.workloads import step

STEPS = folder("validation") / "ef-train-steps.yaml"
# What a phase reads and writes: maps and their gradients, or kernels and theirs.
MAPS, KERNELS = {"input", "activation", "gradient"}, {"param", "weight_gradient"}
PHASES = ("forward", "backward_data", "backward_weight")


def words(layer: str, phases: tuple[str, ...], roles: set[str], *, read: bool, written: bool) -> int:
    """Of all samples of AlexNet's batch of 4."""
    trace = load_trace("alexnet-eftrain-b4")
    ops = [op for op in trace.ops if op.kind == "conv" and op.phase in phases and layer in ("", op.layer)]
    names = [name for op in ops for name in (*(op.reads if read else ()), *(op.writes if written else ()))]
    return sum(trace.tensor[name].elements for name in names if trace.tensor[name].role in roles)


@pytest.mark.parametrize(("workload", "phases"), [("reordered_bchw", PHASES), ("reordered_bhwc", PHASES[2:])])
def test_copies_are_the_maps_of_the_phases(workload: str, phases: tuple[str, ...]) -> None:
    found = load(STEPS).entries[0].file.workloads[workload]
    for layer in found.layers:
        assert isinstance(layer, Copy)
        expected = words(layer.name.lower(), phases, MAPS, read=True, written=True)
        assert 4 * layer.elements == expected, layer.name
    assert [op.kind for op in step(found, STEPS.parent, None).ops] == ["copy"] * 5


def test_of_24_readings_one_has_the_published_ratio() -> None:
    """Three for BCHW; the same and five more for BHWC, of which one phase alone has the ratio within 5 %."""
    maps = words("", PHASES, MAPS, read=True, written=True)
    operands = words("", PHASES, MAPS, read=True, written=False)
    gradient = words("", PHASES[2:], MAPS, read=True, written=True)
    results = maps - operands
    bchw = {"maps": maps, "operands": operands, "all": maps + words("", PHASES, KERNELS, read=True, written=True)}
    bhwc = bchw | {
        "one phase": gradient, "two phases": maps - gradient, "operands of two": operands - gradient, "results": results,
        "results, one phase": results + gradient,
    }  # fmt: skip
    ratios = {(a, b): bchw[a] / bhwc[b] for a, b in product(bchw, bhwc)}
    assert len(ratios) == 24
    published = 1494958747 / 578865955
    assert [pair for pair, ratio in ratios.items() if abs(ratio / published - 1) < 0.05] == [("maps", "one phase")]
    assert [round(end(ratios.values()), 2) for end in (min, max)] == [0.33, 7.26]
    assert 1494958747 / maps == pytest.approx(138.5, abs=0.05)  # cycles for each word
