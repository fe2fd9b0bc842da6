"""The tile search: never worse than trying every tile, and never a tile that does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.errors import MappingError
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.loops import Loops, loops
from jouletrace.mapping.tile_costs import scores
from jouletrace.mapping.tiles import Tile, choose, footprint_bytes
from jouletrace.trace.model import Conv, Gemm, Trace

from .one_op import conv_trace, gemm_trace, square_conv
from .run_op import macs_executed, run_op


@pytest.fixture(scope="module")
def zedboard() -> Hardware:
    return load_hardware("zedboard-fp32")


def with_buffers(hardware: Hardware, kib: int, objective: str = "cycles") -> Hardware:
    buffers = {n: b.model_copy(update={"size_bytes": kib * 1024}) for n, b in hardware.buffers.items()}
    schedule = hardware.array.schedule.model_copy(update={"objective": objective})  # type: ignore[union-attr]
    array = hardware.array.model_copy(update={"schedule": schedule})
    return hardware.model_copy(update={"buffers": buffers, "array": array})


def every_tile(problem: Loops, hardware: Hardware) -> list[Tile]:
    """Every integer tile that fits, in steps of whole folds of the array."""
    m, n = hardware.array.out_channels, hardware.array.in_channels  # type: ignore[union-attr]
    outs = range(m, problem.out_channels + m, m)
    tiles = [
        Tile(out, in_, rows, columns, resident)
        for out in outs
        for in_ in range(n, problem.in_channels + n, n)
        for rows in range(1, problem.rows + 1)
        for columns in range(1, problem.columns + 1)
        for resident in [0, *range(out, problem.out_channels + out, out)]
    ]
    return [
        t for t in tiles
        if all(size <= hardware.buffers[b].size_bytes for b, size in footprint_bytes(t, problem, hardware).items())
    ]  # fmt: skip


def score(problem: Loops, hardware: Hardware, tiles: list[Tile]) -> np.ndarray:
    axes = np.array([[t.out_channels, t.in_channels, t.rows, t.columns, t.resident] for t in tiles], dtype=np.int64).T
    return scores(problem, hardware, *axes)


roles = st.sampled_from(["forward", "backward_data", "backward_weight"])
shapes = st.builds(
    square_conv,
    M=st.integers(1, 20), N=st.integers(1, 20), R=st.integers(1, 8), K=st.sampled_from([1, 3]),
    S=st.sampled_from([1, 2]), batch=st.integers(1, 3), role=roles,
)  # fmt: skip


@given(nest=shapes, kib=st.integers(2, 8), objective=st.sampled_from(["cycles", "energy", "product"]))
def test_the_search_is_never_worse_than_trying_every_tile(
    zedboard: Hardware, nest: Conv, kib: int, objective: str
) -> None:
    hardware = with_buffers(zedboard, kib, objective)
    trace = conv_trace(nest)
    problem = loops(trace.ops[0], trace, hardware)
    chosen = choose(trace.ops[0], problem, hardware)
    brute = score(problem, hardware, every_tile(problem, hardware)).min()
    assert score(problem, hardware, [chosen])[0] <= brute


@given(nest=shapes, kib=st.integers(2, 8))
def test_a_chosen_tile_fits_and_executes_every_mac_once(zedboard: Hardware, nest: Conv, kib: int) -> None:
    hardware = with_buffers(zedboard, kib)
    trace = conv_trace(nest)
    problem = loops(trace.ops[0], trace, hardware)
    need = footprint_bytes(choose(trace.ops[0], problem, hardware), problem, hardware)
    assert all(size <= hardware.buffers[name].size_bytes for name, size in need.items())
    _, counts = run_op(trace, hardware)
    assert macs_executed(counts) == trace.macs


def test_the_score_tells_the_order_that_execution_finds(zedboard: Hardware) -> None:
    """Tiles sampled over the whole range: the chosen one runs within 2 % of the fastest of them."""
    trace = conv_trace(square_conv(16, 16, 32, 3, batch=4))
    problem = loops(trace.ops[0], trace, zedboard)
    _, best = run_op(trace, zedboard)
    sample = every_tile(problem, zedboard)[:: 997]
    fastest = min(executed(trace, zedboard, tile) for tile in sample)
    assert best.cycles <= fastest * 102 // 100


def executed(trace: Trace, hardware: Hardware, tile: Tile) -> int:
    from unittest.mock import patch

    with patch("jouletrace.mapping.channel_parallel.choose", lambda *_: tile):
        return run_op(trace, hardware)[1].cycles


@pytest.mark.parametrize("nest", [Gemm(1, 128, 1000, 256), Gemm(4, 65, 65, 64), Gemm(1, 1, 10, 64)], ids=str)
def test_matrix_products_execute_every_mac_once(zedboard: Hardware, nest: Gemm) -> None:
    _, counts = run_op(gemm_trace(nest), zedboard)
    assert macs_executed(counts) == nest.macs


@pytest.mark.parametrize(("groups", "M", "N"), [(32, 32, 32), (20, 20, 20), (4, 16, 8), (3, 9, 9)])
@pytest.mark.parametrize("role", ["forward", "backward_data", "backward_weight"])
def test_small_groups_share_a_tile_and_do_no_more_than_their_macs(
    zedboard: Hardware, groups: int, M: int, N: int, role: str
) -> None:
    trace = conv_trace(square_conv(M, N, 8, 3, batch=2, role=role, groups=groups))
    _, counts = run_op(trace, zedboard)
    assert macs_executed(counts) == trace.macs
    idle = counts.total()[("array", "idle", "")]
    assert idle + trace.macs == counts.engine_busy["array"] * 36


def test_a_layer_that_fits_no_tiling_names_the_buffer(zedboard: Hardware) -> None:
    hardware = with_buffers(zedboard, 1)
    trace = conv_trace(square_conv(8, 8, 16, 11, batch=1))
    with pytest.raises(MappingError, match=r"op 'conv:forward' fits no tiling .*buffer 'weight' holds 1\.024 kB"):
        run_op(trace, hardware)
