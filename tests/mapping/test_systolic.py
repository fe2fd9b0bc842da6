"""The systolic mapping: conserved work, compulsory traffic, bounds, residency, order of loads."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.matrix import products
from jouletrace.mapping.program import Program
from jouletrace.trace.model import Attention, Conv, Gemm, Header, Op, Tensor, Trace

from .one_op import conv_trace, gemm_trace
from .systolic_bench import DATAFLOWS, array_busy, build, convs, hardware, moved_bytes, run, with_bias

dataflows = st.sampled_from(DATAFLOWS)
gemms = st.builds(Gemm, st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
traces = st.one_of(convs().map(conv_trace), gemms.map(gemm_trace), gemms.map(gemm_trace).map(with_bias))


def touched(out: int, kernel: int, stride: int, dilation: int, pad: int, size: int) -> tuple[int, int, int]:
    """Distinct outputs, taps and inputs of one axis that take part in an in-bounds MAC."""
    pairs = [(o, r, o * stride + r * dilation - pad) for o in range(out) for r in range(kernel)]
    inside = [pair for pair in pairs if 0 <= pair[2] < size]
    return len({p[0] for p in inside}), len({p[1] for p in inside}), len({p[2] for p in inside})


def compulsory_elements(trace: Trace) -> int:
    """Elements that any machine without a cache from before has to move: each operand once."""
    op = trace.ops[0]
    stored = trace.tensor[op.writes[0]].elements
    if not isinstance(op.nest, Conv):
        return sum(trace.tensor[name].elements for name in op.reads) + stored
    c = op.nest
    oy, r, iy = touched(c.OY, c.R, c.stride[0], c.dilation[0], c.padding[0], c.IY)
    ox, s, ix = touched(c.OX, c.S, c.stride[1], c.dilation[1], c.padding[2], c.IX)
    needed = {"x": c.N * c.C * iy * ix, "w": c.K * c.C * r * s, "gy": c.N * c.K * oy * ox}
    return c.G * sum(needed[name] for name in op.reads) + stored


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    """Systolic arrays with buffers from too small to ample, and every way to share the DRAM."""

    def one_of(*choices: object) -> object:
        return draw(st.sampled_from(choices))

    sizes = tuple(f"{draw(st.integers(5, 14)) ** 3} B" for _ in range(3))
    return hardware(
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        draw(dataflows),
        sizes=sizes,  # type: ignore[arg-type]
        copies=draw(st.integers(1, 3)),
        width=f"{one_of(8, 32, 128, 4096)} bit",
        start_cycles=draw(st.integers(0, 40)),
        bandwidth=f"{one_of(100, 800, 6400)} MB/s",
        port=one_of("stream_share", "program_order", "round_robin"),  # type: ignore[arg-type]
        multiplier=one_of(("fp", 32), ("int", 8), ("int", 16)),  # type: ignore[arg-type]
    )


def mapped(trace: Trace, machine: Hardware) -> tuple[Program, Counts] | None:
    """The executed program, or None where a fold fits no buffer, which has to be said."""
    try:
        return run(trace, machine)
    except MappingError as error:
        assert "a fold needs" in str(error)
        return None


@settings(max_examples=400, deadline=None)
@given(traces, machines())
def test_work_traffic_and_time_stay_in_their_bounds(trace: Trace, machine: Hardware) -> None:
    if (found := mapped(trace, machine)) is None:
        return
    program, counts = found
    total, op = counts.total(), trace.ops[0]
    lanes = machine.array.rows * machine.array.columns  # type: ignore[union-attr]
    unit = machine.array.multiplier
    mac = ("array", f"mac_{unit.format}{unit.bits}", "")

    # Work: every MAC of the nest, once per pass; every other lane-cycle is idle.
    macs = op.macs * machine.passes(32, 32)
    assert total[mac] == macs
    assert macs + total.get(("array", "idle", ""), 0) == lanes * counts.engine_busy["array"]

    # Traffic: each operand at least once, the result exactly once; no fold loads what it already has.
    assert moved_bytes(counts) >= 4 * compulsory_elements(trace)
    written = sum(n for (where, what, _), n in total.items() if (where, what) == ("dram", "write"))
    assert written == trace.tensor[op.writes[0]].size_bytes
    for buffer in ("input", "weight"):
        loaded, used = (
            sum(n for (where, action, _), n in total.items() if (where, action) == (f"buffer.{buffer}", what))
            for what in ("write", "read")
        )
        assert loaded <= used

    # Time: no less than any resource needs, no more than everything after one another.
    bytes_per_cycle = Fraction(machine.dram.bandwidth_bytes_per_second, machine.clock_hz)
    assert counts.cycles >= max(counts.engine_busy.values())
    assert counts.cycles * lanes >= macs
    assert counts.cycles * bytes_per_cycle >= moved_bytes(counts)
    serial = sum(c.cycles * n for c, n in zip(program.commands, program.repeats.tolist(), strict=True))
    assert counts.cycles <= serial


def pools_return(program: Program) -> bool:
    balance: Counter[int] = Counter()
    for command, repeats in zip(program.commands, program.repeats.tolist(), strict=True):
        for pool, credits in command.gives:
            balance[pool] += credits * repeats
        for pool, credits in command.takes:
            balance[pool] -= credits * repeats
    return not any(balance.values())


@settings(max_examples=100, deadline=None)
@given(traces, machines())
def test_every_pool_is_left_as_it_was_found(trace: Trace, machine: Hardware) -> None:
    try:
        program = build(trace, machine)
    except MappingError:
        return
    assert pools_return(program)


def least_elements(gemm: Gemm, steps: tuple[int, int, int], room: tuple[int, int, int], streamed: str) -> int | None:
    """The least traffic of any blocking with K innermost, found by walking every one block by block."""
    best: int | None = None
    sizes = dict(zip("MNK", (gemm.M, gemm.N, gemm.K), strict=True))
    choices = {
        d: [sizes[d]] if d == streamed else [min(s, sizes[d]) for s in range(step, sizes[d] + step, step)]
        for d, step in zip("MNK", steps, strict=True)
    }
    for m in choices["M"]:
        for n in choices["N"]:
            for k in choices["K"]:
                if any(block > most for block, most in zip((m * k, k * n, m * n), room, strict=True)):
                    continue
                blocks = [
                    (i, j, depth)
                    for i in range(0, gemm.M, m) for j in range(0, gemm.N, n) for depth in range(0, gemm.K, k)
                ]  # fmt: skip
                for order in (blocks, sorted(blocks, key=lambda b: (b[1], b[0], b[2]))):
                    moved = gemm.M * gemm.N
                    left = right = None
                    for i, j, depth in order:
                        if left != (left := (i, depth)):
                            moved += min(m, gemm.M - i) * min(k, gemm.K - depth)
                        if right != (right := (depth, j)):
                            moved += min(k, gemm.K - depth) * min(n, gemm.N - j)
                    best = moved if best is None else min(best, moved)
    return best


@settings(max_examples=150, deadline=None)
@given(
    st.builds(Gemm, st.just(1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    st.integers(2, 4), st.integers(2, 4), st.tuples(*[st.integers(16, 90)] * 3), dataflows,
)  # fmt: skip
def test_no_blocking_moves_less_where_only_traffic_differs(
    gemm: Gemm, rows: int, columns: int, room: tuple[int, int, int], dataflow: str
) -> None:
    """With free bandwidth and T uncut, every blocking takes as long: the one of least traffic is chosen."""
    sizes = tuple(f"{4 * elements} B" for elements in room)
    machine = hardware(rows, columns, dataflow, sizes=sizes, copies=1)  # type: ignore[arg-type]
    steps, streamed = {
        "weight_stationary": ((1, columns, rows), "M"),
        "input_stationary": ((columns, 1, rows), "N"),
        "output_stationary": ((rows, columns, 1), "K"),
    }[dataflow]
    least = least_elements(gemm, steps, room, streamed)
    if least is None:
        return
    _, counts = run(gemm_trace(gemm), machine)
    assert moved_bytes(counts) == 4 * least


def test_what_fits_is_loaded_once_and_what_does_not_is_loaded_again() -> None:
    """64×64 by 64×64 on 8×8. Weights that fit stay; weights in quarters come again for every other block."""
    trace = gemm_trace(Gemm(1, 64, 64, 64))
    matrix = 64 * 64 * 4
    _, ample = run(trace, hardware(8, 8))
    assert moved_bytes(ample) == 3 * matrix
    # A quarter of each: T = 64 rows stay whole, so weights are loaded once, the input per block of N.
    _, small = run(trace, hardware(8, 8, sizes=("4 KiB", "4 KiB", "4 KiB"), copies=1))
    assert moved_bytes(small, "param") == matrix
    assert small.total()["dram", "read", "activation"] == 4 * matrix


def test_t_is_cut_only_if_no_fold_holds_all_of_it() -> None:
    """100 vectors through 4×4. A fold's sums take 1600 bytes: with less, T is cut and refills."""
    trace = gemm_trace(Gemm(1, 100, 4, 4))
    fits = build(trace, hardware(4, 4, sizes=("1 MB", "1 MB", "1600 B"), copies=1))
    assert [c.cycles for c in fits.commands if c.name == "fold"] == [100 + 2 * 4 + 4 - 2]
    cut = build(trace, hardware(4, 4, sizes=("1 MB", "1 MB", "800 B"), copies=1))
    assert [cut.commands[c].cycles for c in cut.sequence if cut.commands[c].name == "fold"] == [50 + 10] * 2


def test_wider_operands_take_more_passes_of_the_stream_only() -> None:
    """16-bit by 16-bit on 8-bit lanes: four passes; the preload and the skew stay."""
    trace = gemm_trace(Gemm(1, 100, 4, 4), bits=16)
    program, counts = run(trace, hardware(4, 4, multiplier=("int", 8), word="16 bit"))
    assert array_busy(program, counts) == (1, 4 + 400 + 6, 410)
    assert counts.total()["array", "mac_int8", ""] == 4 * 1600
    # 16-bit operands in 16-bit words; sums are kept in 32 bits, two words each.
    assert counts.total()["buffer.input", "read", "activation"] == 400
    assert counts.total()["buffer.output", "write", "activation"] == 800


def test_a_bias_is_loaded_and_read_with_the_first_fold_of_a_sum() -> None:
    plain, biased = (
        run(t, hardware(4, 4))[1] for t in (gemm_trace(Gemm(1, 10, 8, 12)), with_bias(gemm_trace(Gemm(1, 10, 8, 12))))
    )
    assert biased.cycles == plain.cycles
    more = {key: n - plain.total()[key] for key, n in biased.total().items() if n != plain.total()[key]}
    assert more == {
        ("buffer.weight", "read", "param"): 8,
        ("buffer.weight", "write", "param"): 8,
        ("dram", "read", "param"): 32,
    }


def test_the_next_block_is_loaded_while_this_one_is_computed() -> None:
    """One port, two copies: a load is never behind the store of the fold that it runs beside."""
    machine = hardware(
        4, 4, sizes=("1 MB", "64 B", "1 KiB"), width="32 bit", bandwidth="400 MB/s", port="program_order"
    )  # fmt: skip
    program, counts = run(gemm_trace(Gemm(1, 40, 16, 4)), machine)
    names = [program.commands[c].name for c in program.sequence.tolist()]
    assert names == [
        "load input", "load weight", "load weight",
        "fold", "load weight", "store output",
        "fold", "load weight", "store output",
        "fold", "store output", "fold", "store output",
    ]  # fmt: skip
    # 32 bits a cycle: input 160, weight block 16, store 160; folds of 40 + 10 run beside them.
    loads, fold, store = 160 + 16, 50, 160
    assert counts.cycles == loads + fold + 16 + store + 16 + store + store + store


def test_the_scores_of_attention_are_stored_before_they_are_read() -> None:
    tensors = [Tensor(name, (6, 10, 8), 32, "fp", "activation") for name in "qkvy"]
    op = Op("attention", "forward", "a", Attention(6, 10, 10, 8), ("q", "k", "v"), ("y",))
    trace = Trace(Header("t", 1), tuple(tensors), (op,))
    program, counts = run(trace, hardware(4, 4, sizes=("256 B", "512 B", "512 B"), copies=2))
    assert pools_return(program)
    assert counts.total()["array", "mac_fp32", ""] == op.macs
    first, second = products(op, trace)
    stores, loads = first.batches, second.batches
    spans = {
        name: [
            (int(counts.intervals.start[i]), int(counts.intervals.end[i]))
            for i, c in enumerate(program.sequence.tolist())
            if program.commands[c].name == name
        ]
        for name in ("store output", "load input")
    }
    assert spans["load input"][-loads][0] >= spans["store output"][stores - 1][1]


def test_a_fold_that_fits_no_buffer_is_refused_with_the_bytes_that_it_needs() -> None:
    machine = hardware(16, 16, sizes=("1 MB", "1000 B", "1 MB"))
    with pytest.raises(MappingError, match=r"'c': a fold needs 1024 bytes in a copy of 'weight' .has 1000.; enlarge"):
        build(gemm_trace(Gemm(1, 64, 64, 64)), machine)


def test_zeros_are_stored_without_the_array() -> None:
    conv = Conv(1, 2, 3, 4, 4, 1, 1, 1, 8, 8, (2, 2), role="backward_data")
    program, counts = run(conv_trace(conv), hardware(4, 4, sizes=("1 MB", "1 MB", "400 B")))
    zeros = [program.commands[c].counts[0][1] for c in program.sequence if program.commands[c].name == "store zeros"]
    assert zeros == [400, 176]  # 3 channels × 48 positions × 4 bytes
    assert counts.total()["dram", "write", "gradient"] == 3 * 64 * 4


def test_a_block_that_cuts_a_channel_loads_no_more_than_its_matrix() -> None:
    """Kernel 1×2 in two blocks of one tap: each loads the one pixel that its tap sees, not both."""
    conv = Conv(1, 3, 1, 1, 1, 1, 2, 1, 1, 2)
    machine = hardware(1, 1, "input_stationary", sizes=("8 B", "12 B", "1 KiB"), copies=1)
    program, counts = run(conv_trace(conv), machine)
    assert program.tiles == 2
    assert counts.total()["buffer.input", "write", "activation"] == 2
