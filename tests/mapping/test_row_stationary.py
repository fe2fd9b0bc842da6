"""The row-stationary mapping against loops that know no formula, and its laws."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.errors import MappingError
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.program import Program
from jouletrace.mapping.row_convolution import RowConvolution, row_convolutions
from jouletrace.mapping.row_passes import Machine, Pass
from jouletrace.mapping.row_tiling import Letters, Room, Worth, choose_letters, fits
from jouletrace.mapping.step import map_step
from jouletrace.trace.model import Attention, Conv, Gemm, Header, Op, Tensor, Trace

from .one_op import conv_trace, gemm_trace, square_conv
from .row_bench import PLAIN, array_of, eyeriss, small, toy_cycles, walk
from .run_op import macs_executed, run_op


@st.composite
def convs(draw: st.DrawFn, dilated: bool = True) -> Conv:
    """Small convolutions in every role, with strides, padding, groups and odd shapes."""
    r, s = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = (1, 1) if not dilated or max(stride) > 1 else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pad = draw(st.integers(0, r - 1)), draw(st.integers(0, s - 1))
    oy, ox = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    iy = (oy - 1) * stride[0] + (r - 1) * dilation[0] + 1 - 2 * pad[0]
    ix = (ox - 1) * stride[1] + (s - 1) * dilation[1] + 1 - 2 * pad[1]
    if min(iy, ix) < 1:
        pad = 0, 0
        iy, ix = (oy - 1) * stride[0] + (r - 1) * dilation[0] + 1, (ox - 1) * stride[1] + (s - 1) * dilation[1] + 1
    return Conv(
        draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 5)), oy, ox, r, s, draw(st.integers(1, 2)),
        iy, ix, stride, (pad[0], pad[0], pad[1], pad[1]), dilation,
        draw(st.sampled_from(["forward", "backward_data", "backward_weight"])),
    )  # fmt: skip


gemms = st.builds(Gemm, st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
traces = st.one_of(convs().map(lambda c: conv_trace(c, bits=16)), gemms.map(lambda g: gemm_trace(g, bits=16)))
machines = st.builds(
    lambda rows, columns, copies: small(
        f"buffers.input.copies={copies}", f"buffers.output.copies={copies}", rows=rows, columns=columns
    ),
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 2),
)  # fmt: skip


def total(counts: Counts, component: str, *actions: str) -> int:
    return sum(n for (c, action, _), n in counts.total().items() if c == component and action in actions)


def letters_of(conv: RowConvolution, hardware: Hardware) -> Letters:
    dense = replace(conv.tensors, roles=("", "", ""), densities=(Fraction(1),) * 3)
    conv = replace(conv, tensors=dense, inside=Fraction(1))
    return choose_letters(conv, Room.of(conv, hardware), Worth.of(hardware))


@settings(max_examples=150)
@given(traces, machines)
# Maps with more rows than carry MACs, with and without a stride; and a 1 × 1 kernel that most positions never meet.
@example(conv_trace(Conv(1, 2, 2, 4, 4, 3, 3, 1, 6, 6, role="backward_data"), bits=16), small())
@example(conv_trace(Conv(2, 3, 2, 4, 4, 3, 3, 1, 9, 9, (2, 2), role="backward_data"), bits=16), small())
@example(conv_trace(Conv(2, 3, 2, 3, 3, 1, 1, 2, 7, 7, (3, 3), role="backward_data"), bits=16), small())
@example(conv_trace(Conv(2, 3, 2, 5, 5, 3, 3, 1, 11, 11, (2, 2), role="backward_weight"), bits=16), small())
def test_counts_are_those_of_the_loops(trace: Trace, machine: Hardware) -> None:
    """Every product once, by one element; every operand to every element that needs it; sums there and back."""
    op = trace.ops[0]
    program, counts = run_op(trace, machine)
    convolutions = row_convolutions(op, trace)
    walks = [walk(conv, letters_of(conv, machine)) for conv in convolutions]
    for conv, seen in zip(convolutions, walks, strict=True):
        slots = conv.groups * conv.images * conv.filters * conv.channels * conv.taps
        assert len(seen.products) == slots * conv.rows.positions * conv.columns.positions
        assert set(seen.products.values()) == {1}
    assert macs_executed(counts) == sum(conv.macs for conv in convolutions) == op.macs

    def every(name: str) -> int:
        return sum(getattr(seen, name) for seen in walks)

    maps, kernels, _ = convolutions[0].tensors.roles
    done = counts.total()
    assert done[("scratchpad.filter", "fill", kernels)] == every("kernel_copies")
    assert done[("scratchpad.ifmap", "fill", maps)] == every("map_copies")
    moved = every("sums_in") + every("sums_out") + every("sums_between")
    assert total(counts, "network", "word") == every("map_copies") + every("kernel_copies") + moved
    # The global buffer is read four values at a time.
    for buffer, words in (("input", every("delivered_maps")), ("output", every("sums_in") + every("sums_out"))):
        accesses = sum(
            n for command, times in zip(program.commands, program.repeats.tolist(), strict=True)
            for (component, _, _), n in ((a, k * times) for a, k in command.counts)
            if component == f"buffer.{buffer}" and command.name in ("fill", "pass")
        )  # fmt: skip
        assert words <= 4 * accesses <= words + 2 * 3 * every("passes")
    # DRAM: what is loaded is what lies under a pass, and nothing is loaded again that is still there.
    loads = [(c, n) for c, n in zip(program.commands, program.repeats.tolist(), strict=True) if c.name == "load input"]
    assert sum(n for _, n in loads) == every("map_loads")
    in_bytes = sum(n * dict(c.counts).get(("dram", "read", maps), 0) for c, n in loads)
    if isinstance(op.nest, Gemm) or op.nest.dilation == (1, 1):
        assert in_bytes == 2 * every("map_elements")
    assert in_bytes >= 2 * every("map_elements")
    read = total(counts, "dram", "read")
    assert read == in_bytes + 2 * every("kernel_elements")
    assert total(counts, "dram", "write") == 2 * trace.tensor[op.writes[0]].elements


@settings(max_examples=150)
@given(convs(dilated=False), st.data())
def test_a_pass_takes_as_long_as_stepping_it(nest: Conv, data: st.DataObject) -> None:
    forward = replace(nest, role="forward")
    conv = row_convolutions(conv_trace(forward, bits=16).ops[0], conv_trace(forward, bits=16))[0]

    def up_to(most: int) -> int:
        return data.draw(st.integers(1, most))

    widths = [data.draw(st.sampled_from([16, 32, 64])) for _ in range(3)]
    nets = zip(("filter", "psum_in", "psum_out"), widths, strict=True)
    machine = small(*(f"array.networks.{name}={bits} bit" for name, bits in nets))
    letters = Letters(1, 1, 1, 1, 1, up_to(3), up_to(3), nest.R, nest.S)
    rows = up_to(5)
    work = Pass(
        up_to(3), rows, rows, up_to(5), up_to(5), nest.R, nest.S, rows + nest.R - 1,
        data.draw(st.booleans()), data.draw(st.booleans()),
    )  # fmt: skip
    model = Machine(conv, letters, machine, Fraction(1))
    assert (model.fill_cycles(work), model.window_cycles(work)) == toy_cycles(work, conv, letters, machine)


def test_a_pass_on_the_time_axis() -> None:
    """One 3 × 3 kernel over 3 rows of one 5-wide map on 3 × 3 elements; one filter, one channel.

        0        15                                      24     31
        | window 0 | 3 MACs | 15 bits wait: 5 words a column | drain

    The networks bring one word a cycle: 5 rows × 3 columns fill the elements (15), each step needs a column of 5
    words, which takes longer than its 3 MACs; there are two of them, and the last window waits for nobody.
    """
    nest = Conv(1, 1, 1, 3, 3, 3, 3, 1, 5, 5)
    trace = conv_trace(nest, bits=16)
    program, counts = run_op(trace, eyeriss(*PLAIN, "array.networks.psum_out=16 bit"))
    fill = next(c for c in program.commands if c.name == "fill")
    windows = next(c for c in program.commands if c.name == "pass")
    assert fill.cycles == 5 * 3
    # two steps of 5, one window of 3 MACs, 3 stages, 2 elements upwards, 3 sums out one by one
    assert windows.cycles == 5 + 5 + 3 + 3 + 2 + 3
    assert macs_executed(counts) == 81


def test_one_copy_of_the_global_buffer_keeps_transfers_and_computing_apart() -> None:
    trace = conv_trace(square_conv(M=32, N=16, R=13, K=3, batch=4), bits=16)

    def overlap(hardware: Hardware) -> int:
        """Cycles in which the array works while maps or results are on their way."""
        program, counts = run_op(trace, hardware)
        busy, moving = set[int](), set[int]()
        for index, start, end in zip(program.sequence, counts.intervals.start, counts.intervals.end, strict=True):
            name = program.commands[index].name
            cycles = range(int(start), int(end))
            if name in ("fill", "pass"):
                busy.update(cycles)
            elif name in ("load input", "store output"):
                moving.update(cycles)
        assert moving
        return len(busy & moving)

    banks = [f"buffers.{name}.size=16 KiB" for name in ("input", "output")]
    two = [f"buffers.{name}.copies=2" for name in ("input", "output")]
    assert overlap(eyeriss(*PLAIN, *banks)) == 0
    assert overlap(eyeriss(*PLAIN, *banks, *two)) > 0


def cycles_of(program_and_counts: tuple[Program, Counts]) -> int:
    return program_and_counts[1].cycles


@pytest.mark.parametrize(
    "faster",
    ["array.networks.filter=128 bit", "array.networks.ifmap=64 bit", "array.networks.psum_out=256 bit",
     "array.pipeline_stages=1", "dram.bandwidth=960 MB/s"],
)  # fmt: skip
@settings(max_examples=40)
@given(trace=traces)
def test_more_bandwidth_is_never_slower(trace: Trace, faster: str) -> None:
    assert cycles_of(run_op(trace, eyeriss(*PLAIN, faster))) <= cycles_of(run_op(trace, eyeriss(*PLAIN)))


@settings(max_examples=60)
@given(convs(), st.integers(0, 8), st.integers(0, 8))
def test_more_zeros_never_cost_more(nest: Conv, few: int, many: int) -> None:
    """Denser maps mean more multiplications, more accesses and longer codes; cycles only by the DRAM."""
    few, many = sorted((few, many))

    def run(present: int) -> Counts:
        trace = conv_trace(nest, bits=16)
        tensors = tuple(replace(t, density=(present, 8)) if t.name != "w" else t for t in trace.tensors)
        return run_op(replace(trace, tensors=tensors), eyeriss())[1]

    sparse, dense = run(few).total(), run(many).total()
    for action in sparse:
        if action != ("array", "idle", ""):
            assert sparse[action] <= dense.get(action, 0), action
    slots = [sum(n for (c, _, _), n in t.items() if c == "array") for t in (sparse, dense)]
    assert slots[0] == slots[1]


def test_an_element_skips_what_a_zero_multiplies() -> None:
    """Of a map with one value in four, a quarter of products, kernel reads and sums; the map itself is read."""
    trace = conv_trace(square_conv(M=8, N=8, R=8, K=1), bits=16)
    trace = replace(trace, tensors=(replace(trace.tensors[0], density=(1, 4)), *trace.tensors[1:]))
    macs = 8 * 8 * 8 * 8
    for gating, share in (("true", 4), ("false", 1)):
        counts = run_op(trace, eyeriss(f"array.zero_gating={gating}"))[1]
        assert macs_executed(counts) == macs // share
        assert total(counts, "scratchpad.ifmap", "read") == macs
        assert total(counts, "scratchpad.filter", "read") == macs // share
        assert total(counts, "scratchpad.psum", "read", "write") == 2 * macs // share


@settings(max_examples=100)
@given(traces, machines)
def test_letters_fit_the_array(trace: Trace, machine: Hardware) -> None:
    array = array_of(machine)
    pads = array.scratchpads
    for conv in row_convolutions(trace.ops[0], trace):
        found, room = letters_of(conv, machine), Room.of(conv, machine)
        assert fits(found, conv, room)
        assert found.p * found.q * found.segment <= pads.filter_words
        assert found.q * found.segment <= pads.ifmap_words
        assert found.p <= pads.psum_words
        assert found.r * found.t * found.taps * found.e <= array.lanes
        assert found.m % (found.p * found.t) == 0
        # The maps of a pass and the sums of all resident filters lie in the banks of one buffer.
        rows, columns = conv.rows, conv.columns
        under = {o * rows.stride + tap for o in range(found.e) for tap in rows.offsets[: found.taps]}
        across = {
            f * columns.stride + tap for f in range(columns.positions) for tap in columns.offsets[: found.segment]
        }
        maps = 2 * found.n * min(found.q * found.r, conv.channels) * len(under) * len(across)
        sums = 2 * found.n * found.m * found.e * columns.positions
        bank = array.bank_bytes
        assert (-(-maps // bank) + -(-sums // bank)) * bank <= machine.buffers["input"].size_bytes


def test_attention_keeps_its_scores_in_dram_between_two_products() -> None:
    """4 heads of 6 queries on 5 keys, 8 wide: 4·6·5 scores are stored before any is loaded."""
    nest = Attention(4, 6, 5, 8)
    shapes = {"q": (4, 6, 8), "k": (4, 5, 8), "v": (4, 5, 8), "y": (4, 6, 8)}
    tensors = tuple(Tensor(name, shape, 16, "fp", "activation") for name, shape in shapes.items())
    op = Op("attention:forward", "forward", "attention", nest, ("q", "k", "v"), ("y",))
    program, counts = run_op(Trace(Header("one-op", 1), tensors, (op,)), eyeriss(*PLAIN))
    assert macs_executed(counts) == nest.macs == op.macs
    assert total(counts, "dram", "write") == 2 * 4 * (6 * 5 + 6 * 8)
    assert total(counts, "dram", "read") == 2 * 4 * (6 * 8 + 5 * 8 + 6 * 5 + 5 * 8)
    names = [program.commands[i].name for i in program.sequence]
    stored = [int(end) for name, end in zip(names, counts.intervals.end, strict=True) if name == "store output"]
    loaded = [int(start) for name, start in zip(names, counts.intervals.start, strict=True) if name == "load input"]
    half = len(stored) // 2
    assert loaded[len(loaded) // 2] >= stored[half - 1]


def test_fewer_samples_run_the_same_program_with_a_shorter_loop() -> None:
    """The plan of eight images serves three of them: the same letters, and never more of anything."""
    whole, part = (conv_trace(square_conv(M=32, N=16, R=13, K=3, batch=n), bits=16) for n in (8, 3))
    eight, three = (simulate(map_step(t, eyeriss(*PLAIN), base=whole)) for t in (whole, part))
    assert macs_executed(three) * 8 == macs_executed(eight) * 3
    for action, n in three.total().items():
        assert n <= eight.total()[action], action
    letters, whole_letters = (letters_of(row_convolutions(t.ops[0], t)[0], eyeriss(*PLAIN)) for t in (part, whole))
    assert letters != whole_letters  # planned alone, it would run another one


def test_a_row_that_fits_no_buffer_is_refused_with_the_cure() -> None:
    wide = Conv(1, 1, 1, 1, 3000, 1, 3, 1, 1, 3002)
    with pytest.raises(MappingError, match=r"'conv:forward' .* needs 6 kB .* enlarge buffers\.input\.size"):
        run_op(conv_trace(wide, bits=16), small())
