"""The tile search: never worse than trying every tile, and never a tile that does not fit."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jouletrace.errors import MappingError
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping import tiles
from jouletrace.mapping.loops import Loops, loops
from jouletrace.mapping.memory import SWITCH
from jouletrace.mapping.tile_costs import costs
from jouletrace.mapping.tile_scores import Costs, scores
from jouletrace.mapping.tiles import Tile, choose, footprint_bytes, part_sizes
from jouletrace.trace.model import Conv, Gemm, Trace

from .one_op import conv_trace, gemm_trace, square_conv
from .plain_search import candidates, plain_choice, plain_score
from .run_op import macs_executed, run_op


@pytest.fixture(scope="module")
def zedboard() -> Hardware:
    return load_hardware("zedboard-fp32")


@lru_cache
def board(spec: str) -> Hardware:
    return load_hardware(spec)


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
    return scores(costs(problem, hardware, *axes), problem, hardware)


roles = st.sampled_from(["forward", "backward_data", "backward_weight"])
shapes = st.builds(
    square_conv,
    M=st.integers(1, 20), N=st.integers(1, 20), R=st.integers(1, 8), K=st.sampled_from([1, 3]),
    S=st.sampled_from([1, 2]), batch=st.integers(1, 3), role=roles,
)  # fmt: skip


# -- the search and the plain one

designs = st.fixed_dictionaries({
    "swap": st.sampled_from(["synchronous", "free_running"]),
    "weights_stay_for": st.sampled_from(["batch", "image"]),
    "edge_tiles": st.sampled_from(["full", "trimmed"]),
    "strided_backward_data": st.sampled_from(["zero_insertion", "gather"]),
    "tile_channels": st.sampled_from(["unroll", "free"]),
    "objective": st.sampled_from(["cycles", "cycles", "energy", "product"]),
})  # fmt: skip
layouts = st.sampled_from(["tiles", "channel_groups", "channels_first", "channels_last"])
streams = st.tuples(st.sampled_from([32, 48, 64]), st.sampled_from([0, 7, 400]), st.sampled_from(["transfer", "run"]))
# MB/s and Hz: from a port that holds up everything to one that holds up nothing; no round numbers among them
memories = st.tuples(st.sampled_from([1, 30, 517, 100_000]), st.sampled_from([99_999_989, 100_000_000]))


def designed(
    hardware: Hardware, schedule: dict[str, str], layout: str, stream: tuple[int, int, str], kib: int
) -> Hardware:
    """The same board with an array that is scheduled otherwise, and one manner for all streams."""
    hardware = with_buffers(hardware, kib)
    old = hardware.array.schedule  # type: ignore[union-attr]
    array = hardware.array.model_copy(update={"schedule": old.model_copy(update=schedule), "layout": layout})
    fields = dict(zip(("width_bits", "start_cycles", "restarts"), stream, strict=True))
    fed = {name: spec.model_copy(update=fields) for name, spec in hardware.streams.items()}
    return hardware.model_copy(update={"array": array, "streams": fed})


def with_dram(hardware: Hardware, megabytes_per_second: int, clock_hz: int) -> Hardware:
    dram = hardware.dram.model_copy(update={"bandwidth_bytes_per_second": Fraction(megabytes_per_second * 10**6)})
    return hardware.model_copy(update={"dram": dram, "clock_hz": clock_hz})


@pytest.mark.parametrize("spec", ["eftrain-zcu102", "zedboard-fp32"])
@settings(max_examples=75)
@given(
    nest=shapes | st.builds(Gemm, st.integers(1, 2), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30)),
    schedule=designs, layout=layouts, stream=streams, kib=st.integers(2, 12),
    drams=st.lists(memories, min_size=2, max_size=2), first_layer=st.booleans(),
)  # fmt: skip
def test_the_search_finds_what_the_plain_one_finds(
    spec: str, nest: Conv | Gemm, schedule: dict[str, str], layout: str, stream: tuple[int, int, str], kib: int,
    drams: list[tuple[int, int]], first_layer: bool,
) -> None:  # fmt: skip
    """Candidates are scored again where only the DRAM or the clock differ, and searched for where more does."""
    design = designed(board(spec), schedule, layout, stream, kib)
    trace = conv_trace(nest, first_layer=first_layer) if isinstance(nest, Conv) else gemm_trace(nest)
    op = trace.ops[0]
    problem = loops(op, trace, design)
    fitting = list(candidates(problem, design))
    if not any(tile.rows == tile.columns == 1 and not tile.resident for tile in fitting):
        with pytest.raises(MappingError, match="fits no tiling"):
            choose(op, problem, design)
        return
    for bandwidth, clock_hz in drams:
        hardware = with_dram(design, bandwidth, clock_hz)
        expected = plain_choice(problem, hardware, fitting)
        assert choose(op, problem, hardware) == expected
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SWITCH, "1")
            assert choose(op, problem, hardware) == expected
        assert score(problem, hardware, [expected]) == plain_score(problem, hardware, expected)[0]


PLAIN: dict[str, str] = {"swap": "free_running", "edge_tiles": "trimmed", "tile_channels": "free"}
PARTS: dict[str, Any] = {"schedule": PLAIN, "layout": "tiles", "stream": (32, 400, "transfer"), "kib": 6}


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": PLAIN | {"swap": "synchronous"}}, {"schedule": PLAIN | {"edge_tiles": "full"}},
        {"schedule": PLAIN | {"tile_channels": "unroll"}}, {"layout": "channels_first"},
        {"stream": (32, 40_000, "transfer")}, {"stream": (48, 400, "transfer")}, {"kib": 12},
    ],
    ids=str,
)  # fmt: skip
def test_a_search_on_one_design_tells_nothing_of_another(zedboard: Hardware, change: dict[str, Any]) -> None:
    """The same loops on both: each design gets its own tile, also when it is asked for again."""
    trace = conv_trace(square_conv(20, 14, 13, 3, batch=2))
    designs = (designed(zedboard, **(PARTS | given)) for given in ({}, change))
    hardwares = [with_dram(design, 517, 10**8) for design in designs]
    problem, other = (loops(trace.ops[0], trace, hardware) for hardware in hardwares)
    assert problem == other
    expected = [plain_choice(problem, hardware, list(candidates(problem, hardware))) for hardware in hardwares]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [choose(trace.ops[0], problem, hardware) for hardware in hardwares] == expected


def test_kept_candidates_are_bounded(zedboard: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used go, the last stay however many they are; tiles are the same."""
    kept = tiles._Kept()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(tiles, "_KEPT", kept)
    monkeypatch.setattr(tiles, "CANDIDATES", 300)
    nests = [square_conv(M, 12, 9, 3, batch=2) for M in (6, 12, 18, 24, 12, 6)]
    for i, nest in enumerate(nests):
        trace = conv_trace(nest)
        problem, hardware = loops(trace.ops[0], trace, zedboard), with_dram(zedboard, 30 + i, 10**8)
        chosen = choose(trace.ops[0], problem, hardware)
        assert chosen == plain_choice(problem, hardware, list(candidates(problem, hardware)))
        assert kept.candidates <= 300 or len(kept) == 1


figures = st.integers(2, 60).flatmap(lambda most: st.lists(
    st.tuples(*[st.integers(0, n) for n in (most, 9, 200, most)]), min_size=1, max_size=8
))  # fmt: skip


@settings(max_examples=1000)
@example(figures=[(5, 0, 31, 0), (5, 0, 0, 3)], free_running=True, port=(1, 1))  # collides by one cycle, with the port
@given(figures=figures, free_running=st.booleans(), port=st.tuples(st.integers(0, 40), st.integers(1, 20)))
def test_whatever_the_port_takes_the_best_is_among_the_contenders(
    zedboard: Hardware, figures: list[tuple[int, int, int, int]], free_running: bool, port: tuple[int, int]
) -> None:
    """By the formula of a score, with any number of cycles a word; equal scores go to fewer words, then to the first."""
    busiest, first, together, words = np.array(figures, dtype=np.int64).T
    all_of = Costs(busiest + 1, first, together * free_running, words + 1)

    def best(of: Costs) -> tuple[int, ...]:
        cycles = of.words * port[0] // port[1]
        score = np.maximum(of.busiest, cycles) + of.first + (of.together + cycles * free_running) // 32
        return min(zip(score.tolist(), of.words.tolist(), range(len(score)), strict=True))

    contenders = all_of.contenders()
    assert best(all_of)[2] == contenders[best(all_of.at(contenders))[2]]


def test_a_clock_of_odd_hertz_overflows_nothing(zedboard: Hardware) -> None:
    """The bytes of a cycle are a fraction of large numbers; times many words, more than 64 bits hold."""
    trace = gemm_trace(Gemm(1, 40_000, 4000, 4000))
    problem = loops(trace.ops[0], trace, zedboard)
    slow, tile = with_dram(zedboard, 1, 99_999_989), Tile(6, 6, 1, 1, 0)
    found, words = plain_score(problem, slow, tile)
    assert words * slow.dram_bytes_per_cycle.denominator > 2**63
    assert score(problem, slow, [tile]) == found


@pytest.mark.parametrize(("unit", "phases"), [(1, 1), (1, 2), (3, 1), (16, 4)])
def test_part_sizes_are_the_smallest_of_every_number_of_parts(unit: int, phases: int) -> None:
    for total in range(1, 120):
        units = -(-total // unit)
        smallest = {-(-units // parts) for parts in range(1, units + 1)}
        assert part_sizes(total, unit, phases) == sorted(
            {min(size + i, units) * unit for size in smallest for i in range(phases)}
        )


# -- what a search is good for


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
