"""Vector work: timing diagrams by hand, and what every op must keep: bytes, counts, and free buffers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.errors import MappingError
from jouletrace.mapping.sweeps import operands
from jouletrace.trace.model import (
    Cell,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Loss,
    Norm,
    Pool,
    Reduce,
    Rng,
    Scatter,
    Softmax,
    Sync,
    Trace,
    Update,
)

from .vector_bench import counted, one, run, tensor, toy, traffic


def relu(n: int) -> Trace:
    return one(Elementwise("relu", n), [tensor("x", n)], [tensor("y", n)])


# -- timing diagrams


def test_loading_computing_and_storing_overlap() -> None:
    """20 elements are chunks of 8, 8 and 4. One run on each stream: 5 cycles of start once."""
    bench = run(relu(20), toy())
    bench.assert_busy("dma input", [(0, 13), (13, 21), (21, 25)])
    bench.assert_busy("vector", [(13, 15), (21, 23), (28, 29)])  # the third result waits for a copy
    bench.assert_busy("dma output", [(15, 28), (28, 36), (36, 40)])
    assert bench.program.ops[0].tiles == 3


def test_a_stream_that_restarts_at_each_transfer() -> None:
    bench = run(relu(20), toy(restarts="transfer"))
    bench.assert_busy("dma input", [(0, 13), (13, 26), (26, 35)])
    bench.assert_busy("dma output", [(15, 28), (28, 41), (41, 50)])


def test_a_start_paid_where_the_run_closes() -> None:
    bench = run(relu(20), toy(start_paid_at="close"))
    bench.assert_busy("dma input", [(0, 8), (8, 16), (16, 25)])


def test_one_copy_of_the_buffer_is_no_overlap_of_load_and_compute() -> None:
    """The second load waits until the first chunk is computed; storing goes on beside it."""
    bench = run(relu(16), toy(copies=1))
    bench.assert_busy("dma input", [(0, 13), (15, 23)])
    bench.assert_busy("vector", [(13, 15), (28, 30)])  # the second result waits for its copy
    bench.assert_busy("dma output", [(15, 28), (30, 38)])


def test_two_operands_take_turns_on_their_stream() -> None:
    """Each transfer starts anew, since the stream changes its operand."""
    x, z, y = tensor("x", 16), tensor("z", 16), tensor("y", 16)
    bench = run(one(Elementwise("add", 16), [x, z], [y]), toy())
    bench.assert_busy("dma input", [(0, 13), (13, 26), (26, 39), (39, 52)])
    bench.assert_busy("vector", [(26, 28), (52, 54)])


def test_a_short_operand_is_loaded_once_and_first() -> None:
    """Four channel factors before 16 elements; then x goes on as one run."""
    scale = tensor("scale", 4, role="param")
    bench = run(one(Elementwise("mul", 16), [tensor("x", 4, 4), scale], [tensor("y", 4, 4)]), toy())
    bench.assert_busy("dma input", [(0, 9), (9, 22), (22, 30)])


def test_a_short_result_is_stored_last() -> None:
    bench = run(one(Reduce("sum", 24, 3), [tensor("gy", 8, 3)], [tensor("gb", 3)]), toy())
    bench.assert_busy("dma output", [(31, 39)])  # after the third load at 29 and 8 additions on 4 lanes


def test_batch_norm_loads_x_twice_and_stores_once() -> None:
    """Statistics over two chunks, then the same two chunks again; y is stored from the third on."""
    x, y = tensor("x", 4, 4), tensor("y", 4, 4)
    bench = run(one(Norm("batch", 16, 4), [x], [y, tensor("mean", 4)]), toy(start_cycles=0))
    bench.assert_busy("dma input", [(0, 8), (8, 16), (16, 24), (38, 46)])  # the last waits for a copy
    # 3 operations on 8 elements; in chunk 2 also 16 on each of 4 channels; then 2 on 8 elements
    bench.assert_busy("vector", [(8, 14), (16, 38), (38, 42), (46, 50)])
    bench.assert_busy("dma output", [(42, 50), (50, 58), (58, 62)])


def test_a_row_that_fits_a_chunk_is_normalised_in_one_sweep() -> None:
    x, y = tensor("x", 4, 6), tensor("y", 4, 6)
    short = run(one(Norm("layer", 24, 4), [x], [y]), toy())
    assert traffic(short) == (96, 96)
    assert short.program.ops[0].tiles == 4  # one row of 6 per chunk of at most 8
    wide = [tensor("x", 2, 12), tensor("y", 2, 12)]
    assert traffic(run(one(Norm("layer", 24, 2), wide[:1], wide[1:]), toy())) == (192, 96)


def test_scattering_waits_until_the_table_is_written() -> None:
    """Eight zeros first; only then are rows loaded, added to and stored, each with its own start."""
    gy, indices = tensor("gy", 2, 2), tensor("indices", 2, bits=64, format="int", role="input")
    table = tensor("gw", 4, 2, role="weight_gradient")
    trace = one(Scatter(2, 2), [gy, indices], [table], "backward_weight")
    bench = run(trace, toy())
    bench.assert_busy("dma output", [(2, 15), (48, 55), (55, 62)])
    # two 64-bit indices, two rows of gy in one run, two rows of the table
    bench.assert_busy("dma input", [(15, 24), (24, 33), (33, 40), (40, 47)])
    assert traffic(bench) == (16 + 16 + 16, 32 + 16)


def test_gathering_starts_anew_for_every_row() -> None:
    table, indices = tensor("w", 100, 4, role="param"), tensor("i", 3, bits=64, format="int", role="input")
    trace = one(Gather(3, 4), [table, indices], [tensor("y", 3, 4)], read_elements=(12, 3))
    bench = run(trace, toy())
    assert bench.busy("dma input") == [(0, 11), (11, 20), (20, 29), (29, 38)]
    assert traffic(bench) == (3 * 16 + 3 * 8, 48)


def test_a_shared_port_is_served_in_program_order() -> None:
    """Loads run one chunk ahead, so the second load (8) comes before the first store (ready at 10)."""
    bench = run(relu(16), toy(port="program_order", start_cycles=0))
    bench.assert_busy("dram port", [(0, 4), (8, 12), (12, 16), (20, 24)])


def test_one_stream_for_both_directions() -> None:
    bench = run(relu(16), toy(store="input"))
    bench.assert_busy("dma input", [(0, 13), (13, 26), (26, 39), (39, 52)])


def test_a_barrier_takes_no_time_and_can_be_waited_for() -> None:
    trace = one(Sync("decision"), [], [])
    bench = run(trace, toy())
    bench.assert_cycles(0)
    assert [op.tiles for op in bench.program.ops] == [0]
    assert len(bench.program.sequence) == 1


def test_the_host_has_its_own_clock() -> None:
    """2 cycles per element of a clock ten times slower; DRAM traffic is counted, no stream is held."""
    bench = run(relu(7), toy(host=("elementwise",)))
    bench.assert_cycles(140)
    assert counted(bench, "host") == {"element": 7}
    assert traffic(bench) == (28, 28)
    assert bench.busy("dma input") == []


def test_a_chunk_shrinks_until_every_operand_has_a_place() -> None:
    """A copy of 48 bytes holds 4 elements of two operands and a result, though a chunk may have 8."""
    x, z, y = tensor("x", 16), tensor("z", 16), tensor("y", 16)
    bench = run(one(Elementwise("add", 16), [x, z], [y]), toy(buffer="48 B"))
    assert bench.program.ops[0].tiles == 4


# -- laws


def cases() -> dict[str, Trace]:
    """One op of every kind, with the operands that a captured step gives it."""
    x, y, gy, gx = tensor("x", 4, 8, 6), tensor("y", 4, 8, 6), tensor("gy", 4, 8, 6), tensor("gx", 4, 8, 6)
    w, b, rm, rv, mean, invstd, rm2, rv2, gw, gb = (tensor(f"v{i}", 8, role="buffer") for i in range(10))
    labels = tensor("labels", 24, bits=64, format="int", role="input")
    small, gsmall = tensor("small", 4, 2, 2, 6), tensor("gsmall", 4, 2, 2, 6)
    big, gbig = tensor("big", 4, 2, 4, 12), tensor("gbig", 4, 2, 4, 12)
    indices = tensor("indices", 4, 2, 2, 6, bits=64, format="int", role="mask")
    pool = ("max", 4, 2, 4, 12, 2, 6, 2, 2, (2, 2))
    gates, c, h, c2 = tensor("gates", 4, 32), tensor("c", 4, 8), tensor("h", 4, 8), tensor("c2", 4, 8)
    return {
        "relu": one(Elementwise("relu", 192), [x], [y]),
        "relu_backward": one(Elementwise("relu_backward", 192), [gy, y], [gx], "backward_data"),
        "mask": one(Elementwise("mul", 192), [x, tensor("m", 192, bits=1, role="mask")], [y]),
        "square": one(Elementwise("mul", 192), [x, x], [y]),
        "batch": one(Norm("batch", 192, 8), [x, w, b, rm, rv], [y, mean, invstd, rm2, rv2]),
        "batch_backward": one(Norm("batch", 192, 8), [gy, x, w, mean, invstd], [gx, gw, gb], "backward_data"),
        "layer": one(Norm("layer", 192, 32), [x, w, b], [y]),
        "max": one(Pool(*pool), [big], [small, indices]),
        "max_backward": one(Pool(*pool), [gsmall, indices], [gbig], "backward_data"),
        "sum": one(Reduce("sum", 192, 8), [gy], [gb], "backward_weight"),
        "softmax": one(Softmax(32, 6), [x], [y]),
        "loss": one(Loss("cross_entropy", 24, 8), [x, labels], [tensor("loss"), y]),
        "loss_backward": one(Loss("cross_entropy", 24, 8), [y, labels], [gx], "backward_data"),
        "cat": one(Copy("cat", 384), [x, gy], [tensor("xx", 384)]),
        "pad": one(Copy("pad", 300), [x], [tensor("padded", 300)]),
        "lstm": one(Cell("lstm", 4, 8), [gates, tensor("g2", 4, 32), c], [h, c2, tensor("kept", 4, 32)]),
        "update": one(Update("sgd_momentum", 8, 6), [w, gw, b], [rm, rv], "update"),
        "rng": one(Rng(192), [], [tensor("m", 192, role="mask")]),
        "bf16": one(Elementwise("relu", 192), [tensor("x", 192, bits=16)], [tensor("y", 192, bits=16)]),
        "scalar": one(Elementwise("exp", 1), [tensor("x")], [tensor("y")]),
    }


TWO_SWEEPS = {"batch": ("x",), "batch_backward": ("gy", "x")}
# In the tiny buffer a chunk has 5 elements of these, and a row has more.
TWO_SWEEPS_IF_TINY = {"layer": ("x",), "loss": ("x",)}
HARDWARE = {
    "plain": toy(),
    "single": toy(copies=1),
    "triple": toy(copies=3),
    "tiny": toy(buffer="80 B"),
    "whole": toy(chunk="4 KiB", buffer="64 KiB"),
    "narrow": toy(word_bits=16),
    "port": toy(port="program_order"),
    "one stream": toy(store="input"),
}


@pytest.mark.parametrize("name", HARDWARE)
@pytest.mark.parametrize("case", cases())
def test_dram_bytes_are_sweeps_times_stored_bytes(case: str, name: str) -> None:
    """Whatever the chunks, each operand is moved as often as the op sweeps over it, and not a byte more."""
    trace, hardware = cases()[case], HARDWARE[name]
    bench = run(trace, hardware)

    def stored(tensor: str, words: int) -> int:
        return words * hardware.storage_bits(trace.tensor[tensor].bits) // 8

    loads, stores = operands(trace.ops[0], trace)
    again = TWO_SWEEPS.get(case, ())
    again += TWO_SWEEPS_IF_TINY.get(case, ()) if name == "tiny" else ()
    expected = sum(stored(o.tensor, o.words) * (1 + (o.tensor in again)) for o in loads)
    assert traffic(bench) == (expected, sum(stored(o.tensor, o.words) for o in stores))


@pytest.mark.parametrize("case", cases())
def test_counts_do_not_depend_on_chunks(case: str) -> None:
    """Primitive operations belong to the op: buffers, copies, streams and ports change none."""
    names = [n for n in HARDWARE if n != "tiny"]  # a row that fits no chunk is computed twice
    found = [counted(run(cases()[case], HARDWARE[name]), "vector") for name in names]
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("name", HARDWARE)
def test_ops_leave_their_buffers_as_they_found_them(name: str) -> None:
    """Takes and gives of every pool are equal in number, op by op."""
    for case, trace in cases().items():
        program = run(trace, HARDWARE[name]).program
        balance = [0] * len(program.pools)
        for command, repeats in zip(program.commands, program.repeats.tolist(), strict=True):
            for pool, credits in command.takes:
                balance[pool] -= credits * repeats
            for pool, credits in command.gives:
                balance[pool] += credits * repeats
        assert not any(balance), case


@given(st.integers(1, 3000), st.sampled_from(["relu", "gelu", "tanh", "add"]), st.integers(1, 4))
def test_elementwise_work_is_linear_in_elements(n: int, function: str, copies: int) -> None:
    bench = run(one(Elementwise(function, n), [tensor("x", n)], [tensor("y", n)]), toy(copies=copies))
    single = run(one(Elementwise(function, 1), [tensor("x", 1)], [tensor("y", 1)]), toy())
    assert counted(bench, "vector") == {a: n * k for a, k in counted(single, "vector").items()}
    assert traffic(bench) == (4 * n, 4 * n)
    assert bench.program.ops[0].tiles == -(-n // 8)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
    st.integers(1, 400),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_mix_of_operand_lengths_is_moved_exactly(
    lengths: list[int], result: int, copies: int, in_step: bool
) -> None:
    reads = [tensor(f"x{i}", n) for i, n in enumerate(lengths)]
    nest = Cell("gru", 1, max(lengths)) if in_step else Elementwise("add", max(lengths))
    bench = run(one(nest, reads, [tensor("y", result)]), toy(copies=copies))
    assert traffic(bench) == (4 * sum(lengths), 4 * result)


def test_long_ops_have_few_distinct_commands() -> None:
    """A million elements are 125,000 chunks, and no more commands than twenty."""
    million = run(relu(1_000_000), toy())
    assert million.program.ops[0].tiles == 125_000
    assert len(million.program.commands) <= 20
    million.assert_cycles(5 + 8 + 2 + 5 + 1_000_000)  # first load, compute, start of the store, then storing


def test_more_copies_are_never_slower() -> None:
    for case, trace in cases().items():
        cycles = [run(trace, toy(copies=copies)).counts.cycles for copies in (1, 2, 3)]
        assert cycles == sorted(cycles, reverse=True), case


# -- errors


@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        (one(Elementwise("rleu", 4), [tensor("x", 4)], [tensor("y", 4)]), "did you mean 'relu'"),
        (one(Reduce("summ", 4, 1), [tensor("x", 4)], [tensor("y", 1)]), "did you mean 'sum'"),
        (one(Norm("bach", 4, 1), [tensor("x", 4)], [tensor("y", 4)]), "did you mean 'batch'"),
        (one(Loss("msee", 4, 1), [tensor("x", 4)], [tensor("y", 4)]), "did you mean 'mse'"),
        (one(Pool("maxi", 1, 1, 2, 2, 1, 1, 2, 2), [tensor("x", 4)], [tensor("y")]), "did you mean 'max'"),
        (one(Gemm(1, 2, 2, 2), [tensor("x", 4)], [tensor("y", 4)]), "kind 'gemm'"),
    ],
)  # fmt: skip
def test_unknown_functions_name_the_op_and_the_nearest(trace: Trace, sentence: str) -> None:
    with pytest.raises(MappingError, match=sentence) as error:
        run(trace, toy())
    assert "op 'op'" in str(error.value)


def test_a_buffer_too_small_for_one_element_is_named() -> None:
    with pytest.raises(MappingError, match=r"buffers\.vector .* too small for one element of each"):
        run(relu(4), toy(buffer="4 B"))


def test_a_hardware_without_vector_buffer_is_refused() -> None:
    with pytest.raises(MappingError, match=r"no buffers\.vector"):
        run(relu(4), toy().model_copy(update={"buffers": {}}))
