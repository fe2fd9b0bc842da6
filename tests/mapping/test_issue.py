"""How load-compute-store groups follow one another, as timing diagrams: one image, two Tn tiles, 1×1 kernel.

On EF-Train's engine a tile of 16 channels of a 4 × 4 map loads in 400 + 4·16 cycles and computes in 16; a tile of
weights comes in 64 (400 more where a run begins), a result leaves in 64, and 400 more at the end of its run.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import ChannelParallel, Hardware, Tiling
from jouletrace.mapping.loops import loops
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.mapping.tiles import choose
from jouletrace.trace.model import Conv

from .one_op import conv_trace, square_conv
from .run_op import run_op

Spans = list[tuple[int, int]]


def busy(program: Program, counts: Counts, engine: str) -> Spans:
    """When an engine worked, in order."""
    index = next(i for i, e in enumerate(program.engines) if e.name == engine)
    driven = [i for i, c in enumerate(program.commands) if c.holds[0][0] == index]
    at = np.flatnonzero(np.isin(program.sequence, driven))
    times = counts.intervals
    return list(zip(times.start[at].tolist(), times.end[at].tolist(), strict=True))


def diagram(hardware: str, nest: Conv, *settings: str) -> dict[str, Spans]:
    program, counts = run_op(conv_trace(nest), load_hardware(hardware, list(settings)))
    names = ("dma input", "dma weight", "array", "dma output")
    return {name.removeprefix("dma "): busy(program, counts, name) for name in names}


def test_a_synchronous_engine_swaps_all_buffers_at_once() -> None:
    assert diagram("eftrain-zcu102", square_conv(16, 32, 4, 1)) == {
        "input": [(0, 464), (464, 928)],
        "weight": [(0, 464), (464, 528)],  # the second starts with its stage, not when its stream is free
        "array": [(464, 480), (928, 944)],
        "output": [(944, 1408)],
    }


def test_the_next_reduction_loop_is_not_prefetched_and_hides_the_store_before() -> None:
    """Two Tm tiles: nothing of the second loads while the first computes; its last compute hides the first store."""
    assert diagram("eftrain-zcu102", square_conv(32, 16, 4, 1)) == {
        "input": [(0, 464), (480, 944)],
        "weight": [(0, 464), (480, 544)],
        "array": [(464, 480), (944, 960)],
        "output": [(944, 1008), (1008, 1472)],  # the run's end costs 400, and nothing hides it
    }


def test_free_running_buffers_load_ahead_as_far_as_slots_allow() -> None:
    """The ZedBoard design, lanes 6 × 6, tiles as small as on EF-Train: loads never wait for computing."""
    spans = diagram(
        "zedboard-fp32", square_conv(6, 24, 4, 1),
        "array.schedule.tile_channels=unroll", "streams.input.start_cycles=10", "streams.weight.start_cycles=10",
        "streams.output.start_cycles=10",
    )  # fmt: skip
    loads, computes = spans["input"], spans["array"]
    assert loads == [(58 * i, 58 * (i + 1)) for i in range(len(loads))]  # 10 + 6·16 words of 32 bit over 64 bit
    assert [start for start, _ in computes] == [end for _, end in loads]


@pytest.mark.parametrize("spec", ["eftrain-zcu102", "zedboard-fp32"])
@given(
    M=st.integers(1, 40), N=st.integers(1, 40), R=st.integers(1, 8), K=st.sampled_from([1, 3]), batch=st.integers(1, 3),
    role=st.sampled_from(["forward", "backward_data", "backward_weight"]),
)  # fmt: skip
def test_free_running_is_never_slower_than_synchronous(
    spec: str, M: int, N: int, R: int, K: int, batch: int, role: str
) -> None:
    """The same tiles: what a barrier between stages costs is never negative."""
    trace = conv_trace(square_conv(M, N, R, K, batch=batch, role=role))
    free, synchronous = (
        load_hardware(spec, [f"array.schedule.{setting}" for setting in ("tile_channels=unroll", *manner)])
        for manner in (
            ("swap=free_running", "prefetch_stops_at=never", "store_overlaps=freely"),
            ("swap=synchronous", "prefetch_stops_at=reduction_loop"),
        )
    )
    tile = choose(trace.ops[0], loops(trace.ops[0], trace, free), free)
    assume(tile.resident)
    tiling = Tiling(
        phase=role, out_channels=M, in_channels=N, rows=R, columns=R, kernel=K,  # type: ignore[arg-type]
        tile_rows=tile.rows, tile_columns=tile.columns, resident_channels=tile.resident,
    )  # fmt: skip
    waiting, running = (run_op(trace, with_tiling(h, tiling))[1].cycles for h in (synchronous, free))
    assert running <= waiting


def with_tiling(hardware: Hardware, tiling: Tiling) -> Hardware:
    assert isinstance(hardware.array, ChannelParallel)
    return hardware.model_copy(update={"array": hardware.array.model_copy(update={"tilings": (tiling,)})})


def test_a_step_is_mapped_the_same_way_twice() -> None:
    trace, hardware = conv_trace(square_conv(20, 20, 8, 3, batch=4)), load_hardware("zedboard-fp32")
    first, second = map_step(trace, hardware), map_step(trace, hardware)
    assert first.commands == second.commands
    assert np.array_equal(first.sequence, second.sequence)
