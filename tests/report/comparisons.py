"""A comparison made by hand: every figure can be followed with pencil and paper.

The baseline needs 100 J on the chip's array, 60 J in its buffers, 120 J in DRAM and 200 J for the idle board, and does
that 1000 times, with 20 J of loading each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import numpy as np

from jouletrace.comparison.model import Column, Comparison
from jouletrace.hardware.load import Assumption
from jouletrace.ledger.breakdown import Breakdown, Energy, Row
from jouletrace.result.run import RunOp, RunResult
from jouletrace.strategies.base import Left, Published
from jouletrace.trace.model import Rewrite

JOULE = 10**18
BASELINE = {"array": 100, "buffer.weights": 50, "buffer.input": 10, "dram": 120, "board": 200}
ACCURACY = Published("top1_accuracy_gain", "0.2", "%", "two thirds of the iterations", "recalled", "A Paper, section 4.2")


def figure(
    share: Fraction = Fraction(1), times: int = 1, *, hardware: str = "small-fp32", parts: Mapping[str, int] = BASELINE,
    seed: int | None = None, loading: bool = False, added: int = 0, peak_bytes: int = 700,
) -> RunResult:
    """A result of ``share`` of the baseline's energy, work and time, ``times`` times."""
    rows = [
        Row("conv:forward", "conv", phase, "conv", component, "used", "", 1, _energy(joules * share * times / 2))
        for phase in ("forward", "backward_weight") for component, joules in parts.items()
    ]  # fmt: skip
    if loading:
        rows.append(Row("x.load:forward", "", "loading", "copy", "dram", "write", "", 1000, _energy(Fraction(20 * times))))
    ops = [RunOp("conv:forward", "conv", "forward", "conv", times, int(share * 10**6) * times,
                 int(share * 2**20) * 1000 * times, 10)]  # fmt: skip
    if added:
        ops.append(RunOp("conv.gate:forward", "conv", "forward", "linear", times, added * times, added * 1024 * times, 1))
    return RunResult(
        name="toy", hardware=hardware, hardware_digest=f"sha of {hardware}", engine="compose", iterations=times,
        executed=times, batch=32, micro_batch=None, iteration_cycles=np.full(times, 5000, dtype=np.int64),
        breakdown=Breakdown(tuple(rows), int(5000 * share) * times, 100_000_000), ops=tuple(ops),
        peak_memory_bytes=peak_bytes, dram_capacity_bytes=1000,
        rewrites=() if seed is None else (Rewrite("drop", (("p", "1/2"),), seed, "sha of the run"),),
        assumed=(Assumption("board.idle", "assumed", "a guess"), Assumption("clock", "user", "--set")), warnings=(),
    )  # fmt: skip


def _energy(joules: Fraction) -> Energy:
    aj = int(joules * JOULE)
    return Energy(aj, aj - aj // 10, aj + aj // 10)


def toy() -> Comparison:
    """``drop`` runs two thirds of the iterations, more or less by seed; ``skip`` saves a fifth of each; and both."""
    baseline = Column("baseline", "", "small-fp32", figure(), (figure(times=1000, loading=True),),
                      frozenset({"conv:forward", "x.load:forward"}))  # fmt: skip
    half, fifth = Fraction(2, 3), Fraction(4, 5)
    drawn = (660, 670, 668)
    drop = replace(
        baseline, label="drop", strategy="drop", published=(("drop", ACCURACY),), matches=1,
        runs=tuple(figure(times=n, loading=True, seed=seed) for seed, n in enumerate(drawn)),
    )  # fmt: skip
    skip = replace(
        baseline, label="skip:share=1/5,granularity=per_batch", strategy="skip:share=1/5,granularity=per_batch",
        step=figure(fifth, added=500), runs=(figure(fifth, 1000, loading=True, added=500),), matches=3,
        left=(*(Left(f"layer{i}.0", "its first convolution changes the shape") for i in range(1, 6)),
              Left("fc", "no residual connection")),
    )  # fmt: skip
    int8 = {"array": 10, "buffer.weights": 15, "buffer.input": 5, "dram": 30, "board": 200}
    both = replace(
        baseline, label="drop+skip+int8", strategy="drop+skip+int8", hardware="small-int8", matches=4,
        step=figure(fifth, hardware="small-int8", parts=int8, peak_bytes=300), published=(("drop", ACCURACY),),
        runs=tuple(figure(fifth, n, hardware="small-int8", parts=int8, loading=True, seed=seed, peak_bytes=300)
                   for seed, n in enumerate(drawn)),
    )  # fmt: skip
    way = (
        replace(drop, label="+ drop"),
        replace(drop, label="+ skip", runs=tuple(figure(half * fifth, 1000, loading=True, seed=s) for s in range(3))),
        replace(both, label="+ int8"),
    )
    return Comparison("toy", "sha of the trace", 32, 1000, baseline, (drop, skip, both), way)
