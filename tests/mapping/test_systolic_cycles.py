"""Cycles of the systolic mapping: against an array of registers, and against SCALE-Sim's closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.mapping.matrix import products
from jouletrace.trace.io import load_trace
from jouletrace.trace.model import Conv, Gemm

from .grid import Grid
from .one_op import conv_trace, gemm_trace, square_conv
from .systolic_bench import DATAFLOWS, array_busy, convs, hardware, run

sizes = st.integers(1, 14)


@given(
    sizes,
    sizes,
    sizes,
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(DATAFLOWS),
    st.integers(0, 10**6),
)
def test_the_mapping_takes_the_cycles_of_an_array_of_registers(
    m: int, n: int, k: int, rows: int, columns: int, dataflow: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-9, 10, (m, k)), rng.integers(-9, 10, (k, n))
    grid = Grid(rows, columns, dataflow)
    result, folds = grid.product(left, right)
    assert np.array_equal(result, left @ right)
    assert grid.multiplications == m * n * k

    program, counts = run(gemm_trace(Gemm(1, m, n, k)), hardware(rows, columns, dataflow))
    mapped = [program.commands[c].cycles for c in program.sequence.tolist() if program.commands[c].name == "fold"]
    assert mapped == folds
    # Nothing stalls: from the first fold's start to the last one's end the array is never free.
    assert array_busy(program, counts) == (len(folds), grid.cycle, grid.cycle)
    assert counts.total()["array", "mac_fp32", ""] == grid.multiplications
    idle = counts.total().get(("array", "idle", ""), 0)
    assert idle == rows * columns * grid.cycle - grid.multiplications


def scale_sim_cycles(dataflow: str, m: int, n: int, k: int, rows: int, columns: int) -> int:
    """What SCALE-Sim 3 prints under ideal bandwidth: the index of the last cycle, hence the - 1."""
    spread_rows, spread_columns, streamed, fill = {
        "weight_stationary": (k, n, m, 2 * rows),
        "input_stationary": (k, m, n, 2 * rows),
        "output_stationary": (m, n, k, rows),
    }[dataflow]
    folds = -(-spread_rows // rows) * -(-spread_columns // columns)
    return folds * (streamed + fill + columns - 2) - 1


@settings(max_examples=1000, deadline=None)
@given(
    convs("forward", largest=12),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(DATAFLOWS),
)
def test_cycles_are_those_of_scale_sim_plus_one(conv: Conv, scale: int, rows: int, columns: int, dataflow: str) -> None:
    conv = replace(conv, G=1, K=conv.K * scale, C=conv.C * scale)
    pixels, taps = conv.N * conv.OY * conv.OX, conv.C * conv.R * conv.S
    program, counts = run(conv_trace(conv), hardware(rows, columns, dataflow))
    _, busy, span = array_busy(program, counts)
    printed = scale_sim_cycles(dataflow, pixels, conv.K, taps, rows, columns)
    assert busy == span == printed + 1, f"{busy} cycles here, {printed} in SCALE-Sim"


def test_one_layer_by_hand() -> None:
    """ResNet-18 layer1 at 224 on 32×32: 18 folds of K = 576, 2 of N = 64, 3136 pixels: 36·(3136 + 94)."""
    trace = conv_trace(square_conv(64, 64, 56, 3))
    program, counts = run(trace, hardware(32, 32))
    assert array_busy(program, counts) == (36, 116_280, 116_280)
    total = counts.total()
    assert total["array", "mac_fp32", ""] == 64 * 64 * 9 * 56 * 56
    assert total["array", "idle", ""] == 1024 * 116_280 - 64 * 64 * 9 * 56 * 56
    # Every pixel enters once per tap and per group of 32 filters; all sums but the first are read back.
    assert total["buffer.input", "read", "activation"] == 3136 * 576 * 2
    assert total["buffer.weight", "read", "param"] == 576 * 64
    assert total["buffer.output", "write", "activation"] == 3136 * 64 * 18
    # 17 folds of K read sums back, and the store reads the finished ones.
    assert total["buffer.output", "read", "activation"] == 3136 * 64 * (17 + 1)
    assert total["dram", "read", "activation"] == 64 * 56 * 56 * 4
    assert total["dram", "read", "param"] == 64 * 576 * 4
    assert total["dram", "write", "activation"] == 64 * 56 * 56 * 4


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_resnet18_at_224_takes_the_cycles_of_scale_sim_plus_one_per_layer(dataflow: str) -> None:
    """All 21 layers of a forward pass on 32×32; the sums of SCALE-Sim's closed form, one more per layer."""
    trace, machine = load_trace("resnet18-imagenet-b1"), hardware(32, 32, dataflow)
    ops = [op for op in trace.ops if op.phase == "forward" and op.kind in ("conv", "gemm")]
    assert len(ops) == 21
    busy = printed = 0
    for op in ops:
        program, counts = run(replace(trace, ops=(op,)), machine)
        (part,) = products(op, trace)
        busy += array_busy(program, counts)[2]
        printed += scale_sim_cycles(dataflow, part.M, part.N, part.K, 32, 32)
    assert busy == printed + 21
