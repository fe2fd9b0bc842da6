"""The mapping against an array of registers: the same products, folds and cycles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.trace.model import Gemm

from .grid import Grid
from .one_op import gemm_trace
from .systolic_bench import DATAFLOWS, array_busy, hardware, run

sizes = st.integers(1, 14)


@given(sizes, sizes, sizes, st.integers(1, 6), st.integers(1, 6), st.sampled_from(DATAFLOWS), st.integers(0, 10**6))
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
