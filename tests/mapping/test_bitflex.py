"""Lanes made of bricks: narrower operands, more products at once, of one sum."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.errors import SpecError
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware, Multiplier
from jouletrace.mapping.step import map_step
from jouletrace.trace.model import Conv, Gemm, Trace

from .one_op import conv_trace, gemm_trace, square_conv
from .run_op import macs_executed, run_op
from .systolic_bench import DATAFLOWS, convs
from .systolic_bench import hardware as systolic

WIDTHS = (2, 3, 4, 6, 8, 12, 16, 32)


def bricks(board: Hardware, brick_bits: int | None) -> Hardware:
    """The same array with lanes of 8 bits that are made of bricks."""
    lane = Multiplier(format="int", bits=8, dsp=0, brick=brick_bits and f"{brick_bits} bit")  # type: ignore[call-arg]
    return board.model_copy(update={"array": board.array.model_copy(update={"multiplier": lane})})


def grid(rows: int, columns: int, dataflow: str = "weight_stationary") -> Hardware:
    return bricks(systolic(rows, columns, dataflow, multiplier=("int", 8), word="4 bit"), 2)


ZEDBOARD = bricks(load_hardware("zedboard-int8", ["word=4 bit"]), 2)
BOARDS = {
    "channel_parallel": ZEDBOARD,
    "full edges": bricks(load_hardware("eftrain-zcu102", ["word=4 bit"]), 2),
    **{dataflow: grid(4, 4, dataflow) for dataflow in DATAFLOWS},
}


def at(trace: Trace, first: int, second: int) -> Trace:
    """The op with operands of these widths."""
    op = trace.ops[0]
    widths = dict(zip(op.reads, (first, second), strict=True))
    return replace(trace, tensors=tuple(replace(t, bits=widths.get(t.name, t.bits)) for t in trace.tensors))


def array_cycles(counts: Counts) -> int:
    return counts.engine_busy["array"]


# -- the lane


@pytest.mark.parametrize(
    ("first", "second", "at_once", "why"),
    [
        (8, 8, 1, "all 16 bricks"),
        (8, 4, 2, "4 × 2 bricks each"),
        (4, 4, 4, "2 × 2 bricks each"),
        (2, 2, 16, "a brick each"),
        (6, 4, 2, "6 bits take as much as 8: bricks fuse by powers of two"),
        (16, 4, 2, "16 bits are two passes of 8"),
    ],
)
def test_products_at_once(first: int, second: int, at_once: int, why: str) -> None:
    lane = ZEDBOARD.array.multiplier
    assert lane.fused(first, second) == lane.fused(second, first) == at_once, why


@pytest.mark.parametrize(
    ("lane", "sentence"),
    [
        ({"format": "fp", "bits": 32, "brick": "2 bit"}, "bricks in fp lanes"),
        ({"format": "int", "bits": 8, "brick": "3 bit"}, "8 bit of bricks of 3 bit"),
        ({"format": "int", "bits": 12, "brick": "4 bit"}, "12 bit of bricks of 4 bit"),
    ],
)
def test_lanes_that_no_bricks_make(lane: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Multiplier.model_validate({"dsp": 1, **lane})


def test_row_stationary_elements_have_no_bricks() -> None:
    with pytest.raises(SpecError, match="row_stationary"):
        load_hardware("eyeriss", ["array.multiplier.brick=2 bit"])


# -- a systolic array


@pytest.mark.parametrize(
    ("dataflow", "bits", "folds_of_cycles"),
    [
        # 4 × 4 elements, 10 × 16 by 16 × 4. Of 8 bits, 4 steps of K a fold: preload 4, 10 vectors, skew 3 + 3.
        ("weight_stationary", 8, 4 * (4 + 10 + 6)),
        ("weight_stationary", 4, 1 * (4 + 10 + 6)),
        ("weight_stationary", 2, 1 * (4 + 10 + 6)),
        # Columns hold the 10 vectors, 4 filters stream through.
        ("input_stationary", 8, 3 * 4 * (4 + 4 + 6)),
        ("input_stationary", 4, 3 * 1 * (4 + 4 + 6)),
        # 4 results of a row stay; K streams, four steps at a time, or all 16 at once.
        ("output_stationary", 8, 3 * (16 + 6)),
        ("output_stationary", 4, 3 * (4 + 6)),
        ("output_stationary", 2, 3 * (1 + 6)),
    ],
)
def test_a_fold_is_deeper_or_shorter(dataflow: str, bits: int, folds_of_cycles: int) -> None:
    trace = at(gemm_trace(Gemm(1, 10, 4, 16)), bits, bits)
    counts = run_op(trace, grid(4, 4, dataflow))[1]
    assert array_cycles(counts) == folds_of_cycles
    assert macs_executed(counts) * (8 // bits) ** 2 == trace.macs


def test_a_rest_takes_a_whole_element() -> None:
    """K = 9 of 4 × 4 bits: two elements are full and one holds a single weight."""
    counts = run_op(at(gemm_trace(Gemm(1, 10, 4, 9)), 4, 4), grid(4, 4))[1]
    assert macs_executed(counts) == 10 * 4 * 3


def test_blocks_planned_for_wide_operands_are_cut_anew() -> None:
    """Buffers of 48 bytes: blocks of 12 bytes of K, which hold no whole fold of 16 half-bytes; blocks of 16 do."""
    wide = at(gemm_trace(Gemm(1, 4, 4, 96)), 8, 8)
    narrow = at(wide, 4, 4)
    board = bricks(systolic(4, 4, sizes=("48 B", "48 B", "64 B"), multiplier=("int", 8), word="4 bit"), 2)
    tiles = [
        map_step(step, board, base=base).tiles for step, base in ((wide, None), (narrow, None), (narrow, wide))
    ]  # fmt: skip
    assert tiles == [96 // 12, 96 // 16, 96 // 16]
    assert macs_executed(simulate(map_step(narrow, board, base=wide))) == 4 * 4 * 96 // 4


# -- channel-parallel lanes


@pytest.mark.parametrize("role", ["forward", "backward_data"])
def test_lanes_take_in_more_channels(role: str) -> None:
    """14 lanes of 4 × 4 bits take in 56 channels at once; in and out stay equal in both roles."""
    whole = conv_trace(square_conv(M=56, N=56, R=4, K=3, role=role))
    eight, four = (run_op(at(whole, bits, bits), ZEDBOARD)[1] for bits in (8, 4))
    assert array_cycles(eight) == 4 * 4 * 16 * 9
    assert array_cycles(four) == 4 * 1 * 16 * 9
    assert macs_executed(four) * 4 == macs_executed(eight) == whole.macs


def test_kernel_gradients_take_in_more_of_the_map() -> None:
    """backward_weight adds up over the map: 16 positions, four at once."""
    whole = conv_trace(square_conv(M=14, N=14, R=4, K=3, role="backward_weight"))
    eight, four = (run_op(at(whole, bits, bits), ZEDBOARD)[1] for bits in (8, 4))
    assert array_cycles(eight) == 16 * 9
    assert array_cycles(four) == 4 * 9
    assert macs_executed(four) * 4 == macs_executed(eight) == whole.macs


def test_depthwise_channels_are_sums_of_their_own() -> None:
    """A channel a group: nothing else belongs to its sum, so that a narrow product takes a whole lane."""
    whole = conv_trace(square_conv(M=14, N=14, R=4, K=3, groups=14))
    assert macs_executed(run_op(at(whole, 4, 4), ZEDBOARD)[1]) == whole.macs


# -- laws

ops = st.one_of(
    convs().map(conv_trace),
    st.builds(Gemm, st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)).map(gemm_trace),
)
widths = st.sampled_from(WIDTHS)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
@settings(max_examples=60)
@given(trace=ops, first=widths, second=widths)
def test_lane_cycles_cover_all_products(board: Hardware, trace: Trace, first: int, second: int) -> None:
    narrow = at(trace, first, second)
    counts = run_op(narrow, board)[1]
    done, at_once = macs_executed(counts), board.array.multiplier.fused(first, second)
    work = trace.macs * board.passes(first, second)
    assert work <= done * at_once <= work * at_once
    lane_cycles = array_cycles(counts) * board.array.lanes
    assert done + counts.total().get(("array", "idle", ""), 0) == lane_cycles


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
@settings(max_examples=30)
@given(trace=ops, first=widths, second=widths)
def test_one_brick_a_lane_is_no_bricks(board: Hardware, trace: Trace, first: int, second: int) -> None:
    narrow = at(trace, first, second)
    whole, solid = (run_op(narrow, bricks(board, brick))[0] for brick in (8, None))
    assert whole.commands == solid.commands
    assert whole.sequence.tolist() == solid.sequence.tolist()


@settings(max_examples=60)
@given(trace=ops, first=widths, second=widths)
def test_bricks_never_take_longer(trace: Trace, first: int, second: int) -> None:
    """On a free array of folds: with the same blocks, fusing only shortens what the array does."""
    narrow = at(trace, first, second)
    board = grid(4, 4)
    op = narrow.ops[0]
    assert isinstance(op.nest, Conv | Gemm)
    fused, solid = (run_op(narrow, bricks(board, brick))[1] for brick in (2, None))
    assert array_cycles(fused) <= array_cycles(solid)
    assert macs_executed(fused) <= macs_executed(solid)
