"""Ops on a part of their operands: fetched bits set passes and traffic, computed elements set stores and lanes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.fusion import plan_fusion
from jouletrace.trace.model import Conv, Elementwise, Gemm, Trace

from .one_op import conv_trace, gemm_trace, square_conv
from .run_op import macs_executed, run_op
from .systolic_bench import DATAFLOWS
from .systolic_bench import hardware as systolic
from .test_fusion import FUSING, E, step
from .vector_bench import one, run, tensor, toy, traffic

MANNERS = ("computed", "gated", "packed")
ZEDBOARD = load_hardware("zedboard-fp32")


def changed(trace: Trace, name: str, /, **changes: Any) -> Trace:
    return replace(trace, ops=tuple(replace(op, **changes) if op.name == name else op for op in trace.ops))


def that(board: Hardware, manner: str) -> Hardware:
    """The same array, with another way to treat unwanted results."""
    return board.model_copy(update={"array": board.array.model_copy(update={"unwanted_results": manner})})


def dram(counts: Counts, action: str, role: str) -> int:
    return counts.total().get(("dram", action, role), 0)


# -- bits that are fetched


def quantised(nest: Conv) -> Trace:
    """backward_weight of an 8-bit activation under a 16-bit gradient."""
    whole = conv_trace(nest)
    tensors = (replace(whole.tensor["gy"], bits=16), replace(whole.tensor["x"], bits=8), whole.tensor["gw"])
    return replace(whole, tensors=tensors)


@pytest.mark.parametrize("kind", ["channel_parallel", "systolic"])
def test_most_significant_bits_take_fewer_passes(kind: str) -> None:
    """Lanes of 4 bits: 16 × 8 bits are 4·2 = 8 passes, 10 × 4 bits are 3·1."""
    if kind == "systolic":
        board = systolic(8, 8, multiplier=("int", 4), word="8 bit")
    else:
        board = load_hardware("zedboard-int8")
        lane = board.array.multiplier.model_copy(update={"bits": 4})
        board = board.model_copy(update={"array": board.array.model_copy(update={"multiplier": lane}), "word_bits": 8})
    trace = quantised(square_conv(M=16, N=16, R=8, K=3, role="backward_weight"))
    most = changed(trace, "conv:backward_weight", read_bits=(10, 4))
    (_, full), (_, predicted) = run_op(trace, board), run_op(most, board)
    assert macs_executed(full) == 8 * trace.macs
    assert macs_executed(predicted) == 3 * trace.macs
    # A datapath of bytes moves 4 bits as 8 and 10 bits as 16: nothing is saved on the way.
    assert dram(predicted, "read", "gradient") == dram(full, "read", "gradient")
    assert dram(predicted, "read", "activation") == dram(full, "read", "activation")


@pytest.mark.parametrize("board", [load_hardware("zedboard-int8"), systolic(8, 8, multiplier=("int", 8), word="8 bit")])
def test_a_byte_of_two_is_half_the_traffic(board: Hardware) -> None:
    trace = quantised(square_conv(M=14, N=14, R=8, K=3, role="backward_weight"))
    high = changed(trace, "conv:backward_weight", read_bits=(8, 8))
    (_, full), (_, half) = run_op(trace, board), run_op(high, board)
    assert 2 * macs_executed(half) == macs_executed(full)
    assert 2 * dram(half, "read", "gradient") == dram(full, "read", "gradient")
    assert dram(half, "read", "activation") == dram(full, "read", "activation")


def test_bias_is_fetched_as_said() -> None:
    trace = gemm_trace(Gemm(1, 4, 8, 16))
    op = trace.ops[0]
    bias = tensor("bias", 16, role="buffer")
    trace = replace(trace, tensors=(*trace.tensors, bias), ops=(replace(op, reads=(*op.reads, "bias")),))
    part = changed(trace, op.name, read_elements=(64, 128, 8))
    assert dram(run_op(trace, ZEDBOARD)[1], "read", "buffer") == 16 * 4
    assert dram(run_op(part, ZEDBOARD)[1], "read", "buffer") == 8 * 4


# -- the vector unit


def test_vector_work_moves_what_is_touched_and_computed() -> None:
    """24 of 32 elements of x, the high byte of two, to 24 of y: 24 bytes in, 48 out."""
    board = toy(word_bits=8)
    x, y = tensor("x", 32, bits=16, format="int"), tensor("y", 32, bits=16, format="int")
    whole = one(Elementwise("relu", 32), [x], [y])
    part = one(
        Elementwise("relu", 24), [x], [y], read_elements=(24,), read_bits=(8,), write_elements=(24,)
    )  # fmt: skip
    assert traffic(run(whole, board)) == (64, 64)
    assert traffic(run(part, board)) == (24, 48)


def test_the_host_moves_what_is_touched_and_computed() -> None:
    x, y = tensor("x", 32), tensor("y", 32)
    part = one(Elementwise("relu", 24), [x], [y], read_elements=(24,), write_elements=(24,))
    assert traffic(run(part, toy(host=("elementwise",)))) == (96, 96)


def test_a_rider_takes_exactly_what_its_host_computes() -> None:
    """conv for 24 of 32 elements -> relu for 24 of 32: one to one. relu of all 32: of 8 nothing was computed."""
    trace = step("conv: x w -> y", "relu: y -> z")
    half = Elementwise("relu", 24)
    part = changed(trace, "conv", write_elements=(24,))
    rides = changed(part, "relu", nest=half, read_elements=(24,), write_elements=(24,))
    assert plan_fusion(rides, FUSING).hosts == {"relu": "conv"}
    for other in (part, changed(rides, "conv", write_elements=()), changed(rides, "relu", write_elements=(E,))):
        assert plan_fusion(other, FUSING).misses["relu"] == "it does not read y one to one"


# -- results that nobody wants

BOARDS = {
    "channel_parallel": ZEDBOARD,
    "full edges": load_hardware("eftrain-zcu102"),
    **{dataflow: systolic(8, 8, dataflow, sizes=("64 KiB",) * 3) for dataflow in DATAFLOWS},
}


def array_cycles(counts: Counts) -> int:
    return counts.engine_busy["array"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
@pytest.mark.parametrize("role", ["forward", "backward_data", "backward_weight"])
def test_a_quarter_of_the_results(board: Hardware, role: str) -> None:
    """32 × 32 channels, 8 × 8 map, two images: every loop divides by four, so shares are exact."""
    whole = conv_trace(square_conv(M=32, N=32, R=8, K=3, batch=2, role=role))
    op = whole.ops[0]
    assert isinstance(op.nest, Conv)
    part = changed(whole, op.name, write_elements=(op.nest.results // 4,))
    assert part.macs * 4 == whole.macs
    result = whole.tensor[op.writes[0]].role
    everything = run_op(whole, board)[1]
    computed, gated, packed = (run_op(part, that(board, manner))[1] for manner in MANNERS)
    for counts in (computed, gated, packed):  # loads are whole, stores are wanted
        for name in op.reads:
            role_ = whole.tensor[name].role
            assert dram(counts, "read", role_) == dram(everything, "read", role_)
        assert dram(counts, "write", result) * 4 == dram(everything, "write", result)
    assert array_cycles(computed) == array_cycles(gated) == array_cycles(everything)
    assert macs_executed(computed) == whole.macs
    assert macs_executed(gated) == part.macs
    assert macs_executed(packed) == part.macs
    commands = len(run_op(part, board)[0].sequence)
    assert 0 <= array_cycles(packed) - Fraction(array_cycles(everything), 4) < commands
    # What is no MAC is idle, in every manner.
    for counts in (computed, gated, packed):
        lane_cycles = array_cycles(counts) * board.array.lanes
        assert counts.total().get(("array", "idle", ""), 0) == lane_cycles - macs_executed(counts)


@pytest.mark.parametrize("manner", MANNERS)
@given(wanted=st.integers(1, 35 * 9), batch=st.integers(1, 3))
def test_any_share_is_rounded_up_by_less_than_one_a_command(manner: str, wanted: int, batch: int) -> None:
    trace = conv_trace(square_conv(M=7, N=5, R=6, K=3, batch=batch, role="backward_weight"))
    part = changed(trace, trace.ops[0].name, write_elements=(wanted,))
    for board in (that(ZEDBOARD, manner), that(systolic(4, 4, sizes=("2 KiB",) * 3), manner)):
        program, counts = run_op(part, board)
        done = macs_executed(counts)
        least = trace.macs if manner == "computed" else part.macs
        assert least <= done <= least + len(program.sequence)
        stored = dram(counts, "write", "weight_gradient")
        assert 4 * wanted <= stored <= 4 * (wanted + len(program.sequence))
        assert all(n >= 0 for op in counts.ops for n in op.counts.values())


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_all_results_wanted_is_the_whole_op(board: Hardware) -> None:
    trace = gemm_trace(Gemm(2, 9, 20, 30))
    asked = changed(trace, trace.ops[0].name, write_elements=(2 * 9 * 20,))
    for manner in MANNERS:
        assert run_op(asked, that(board, manner))[0].commands == run_op(trace, board)[0].commands
