"""What whole steps of EF-Train (arXiv 2202.10935) need beside its tile pipeline: layouts of maps, a search that knows
what a synchronous pipeline does not hide, and vector work that uses the channels that convolutions leave free.

Published figures themselves are compared by ``jouletrace validate`` (validation/ef-train-steps.yaml).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware, Layout
from jouletrace.mapping.layout import bursts, group_of
from jouletrace.mapping.step import map_step
from jouletrace.trace.io import load_trace
from jouletrace.trace.model import Elementwise, Header, Op, Phase, Pool, Tensor, Trace

from .eftrain_equations import EQUATIONS, Layer
from .one_op import conv_trace, square_conv
from .run_op import run_op

LAYOUTS: tuple[Layout, ...] = ("tiles", "channel_groups", "channels_first", "channels_last")


# -- layouts ---------------------------------------------------------------------------------------------------------


def addresses(layout: Layout, lanes: int, whole: tuple[int, int, int], tile: tuple[int, int, int]) -> Iterator[int]:
    """Addresses of the first tile of a map, element by element."""
    channels, rows, columns = whole
    for c, y, x in product(*map(range, tile)):
        if layout == "channels_first":
            yield (c * rows + y) * columns + x
        elif layout == "channels_last":
            yield (y * columns + x) * channels + c
        else:
            yield ((c // lanes * rows + y) * columns + x) * lanes + c % lanes


@given(
    layout=st.sampled_from(LAYOUTS[1:]), lanes=st.sampled_from([1, 2, 4]), groups=st.integers(1, 4),
    tile_groups=st.integers(1, 4), rows=st.integers(1, 5), columns=st.integers(1, 5), tile_rows=st.integers(1, 5),
    tile_columns=st.integers(1, 5),
)  # fmt: skip
def test_bursts_are_the_breaks_between_addresses(
    layout: Layout, lanes: int, groups: int, tile_groups: int, rows: int, columns: int, tile_rows: int,
    tile_columns: int,
) -> None:  # fmt: skip
    """No more than the closed form says, and exactly as many where no neighbouring pieces happen to touch."""
    whole = (groups * lanes, rows, columns)
    tile = (min(tile_groups, groups) * lanes, min(tile_rows, rows), min(tile_columns, columns))
    used = sorted(addresses(layout, lanes, whole, tile))
    breaks = 1 + sum(b != a + 1 for a, b in pairwise(used))
    stated = bursts(group_of(layout, lanes, whole[0]), *tile, tile[1] == rows, tile[2] == columns)
    assert breaks == stated


@pytest.mark.parametrize(
    ("layout", "pieces"),
    [
        ("tiles", (1, 1, 1)),
        ("channel_groups", (1, 1, 14)),  # 16 channels side by side; a row where columns are cut
        ("channels_first", (1, 16, 16 * 14)),  # whole maps lie one behind the other
        ("channels_last", (28 * 28, 14 * 28, 14 * 14)),  # 16 of 64 channels: each pixel is a piece
    ],
)
def test_a_tile_of_16_of_64_channels(layout: Layout, pieces: tuple[int, int, int]) -> None:
    """The whole map of 28 × 28, its upper half, and its upper left quarter."""
    group = group_of(layout, 16, 64)
    tiles = (((28, 28), (True, True)), ((14, 28), (False, True)), ((14, 14), (False, False)))
    assert tuple(int(bursts(group, 16, *size, *whole)) for size, whole in tiles) == pieces


def loaded(layout: Layout) -> tuple[int, int]:
    """Cycles that one load of 16 of 32 channels, 4 × 4 pixels, takes on EF-Train's streams, and rows opened in all."""
    tile = (
        "{phase: forward, out_channels: 16, in_channels: 32, rows: 4, columns: 4, kernel: 1, tile_rows: 4, "
        "tile_columns: 4, resident_channels: 16}"
    )
    hardware = load_hardware("eftrain-zcu102", [f"array.layout={layout}", f"array.tilings.0={tile}"])
    program, counts = run_op(conv_trace(square_conv(16, 32, 4, 1)), hardware)
    loads = {c.holds[0][1] for c in program.commands if c.name == "load input"}
    return loads.pop(), counts.total()["dram", "activate", "activation"]


def test_every_burst_pays_a_start_and_opens_a_row() -> None:
    """64 words for four of a beat; BHWC breaks at each of 16 pixels, in both loads; the store is of all its channels."""
    assert loaded("channel_groups") == (400 + 64, 3)
    assert loaded("channels_first") == (400 + 64, 3)
    assert loaded("channels_last") == (16 * 400 + 64, 2 * 16 + 1)


# -- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["forward", "backward_data", "backward_weight"])
@pytest.mark.parametrize(("channels", "size"), [((64, 64), 224), ((256, 256), 56), ((512, 512), 14)], ids=str)
def test_the_search_finds_what_the_equations_find(phase: str, channels: tuple[int, int], size: int) -> None:
    """Layers of VGG-16, batch 4, with the words a bank of the design's header: all Tr under whole rows, by Eq. 15-29."""
    M, N = channels
    found = run_op(conv_trace(square_conv(M, N, size, 3, batch=4, role=phase)), load_hardware("eftrain-zcu102"))[1]
    resident = min(M, 576 // 9 // (N // 16) * 16)
    layers = (
        Layer(M, N, size, size, 3, 1, 4, rows, size, resident)
        for rows in range(1, size + 1)
        if (rows + 2) * (size + 2) <= 2486 and rows * size <= 2016
    )
    # The spec keeps more weights on chip than the header does, so it may be a little faster.
    assert 0.99 <= found.cycles / min(EQUATIONS[phase](layer) for layer in layers) <= 1.01


# -- vector work -----------------------------------------------------------------------------------------------------


def vector_trace(nest: Elementwise | Pool, phase: Phase, reads: list[Tensor], writes: list[Tensor]) -> Trace:
    op = Op(f"op:{phase}", phase, "op", nest, tuple(t.name for t in reads), tuple(t.name for t in writes))
    return Trace(Header("toy", 1), (*reads, *writes), (op,))


def fp32(name: str, *shape: int) -> Tensor:
    return Tensor(name, shape, 32, "fp", "activation")


def run(trace: Trace, *settings: str) -> Counts:
    return simulate(map_step(trace, load_hardware("eftrain-zcu102", settings)))


def test_operands_are_loaded_side_by_side_on_channels_that_are_free() -> None:
    """2^20 words of each of two operands: 2^18 cycles on a channel of four words, and as long for the result."""
    n = 2**20
    trace = vector_trace(
        Elementwise("relu_backward", n), "backward_data", [fp32("gy", n), fp32("y", n)], [fp32("gx", n)]
    )
    beside, one = run(trace), run(trace, "vector.load_also=[input]")
    assert beside.engine_busy["dma input"] == beside.engine_busy["dma operand"] == n // 4 + 400  # one address, one start
    assert one.engine_busy["dma input"] >= n // 2
    assert n // 4 < beside.cycles < 1.1 * n // 4
    assert one.cycles > 1.9 * beside.cycles


def test_a_pool_keeps_two_bits_of_each_output() -> None:
    """The first pool of VGG-16, one image: 802816 positions in a window of 2 × 2 are the header's 100352 × 16 bit."""
    pool = Pool("max", 1, 64, 224, 224, 112, 112, 2, 2, (2, 2), (0, 0, 0, 0))
    index = Tensor("i", (1, 64, 112, 112), 64, "int", "mask")
    trace = vector_trace(pool, "forward", [fp32("x", 1, 64, 224, 224)], [fp32("y", 1, 64, 112, 112), index])
    assert run(trace).total()["dram", "write", "mask"] == 100352 * 2
    assert run(trace, "vector.pool_index=8 bit").total()["dram", "write", "mask"] == 802816


def test_streams_beside_move_the_same_bytes_and_do_the_same_work() -> None:
    trace = load_trace("lenet10-cifar10-b128")
    beside, one = (run(trace, *settings).total() for settings in ((), ("vector.load_also=[input]",)))
    assert beside == one


def test_a_stream_that_is_no_stream_is_refused() -> None:
    with pytest.raises(Exception, match="load_also: names no stream of the spec: 'wieght'; did you mean 'weight'"):
        load_hardware("eftrain-zcu102", ["vector.load_also=[wieght]"])


# -- Tables 3 and 4: AlexNet on [Tm, Tn] = [32, 8], batch 4 ----------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> Hardware:
    return load_hardware("eftrain-zcu102", ["array.out_channels=32", "array.in_channels=8"])


def convolutions(hardware: Hardware) -> int:
    trace = load_trace("alexnet-eftrain-b4")
    return sum(simulate(map_step(trace, hardware, ops=(op,))).cycles for op in trace.ops if op.kind == "conv")


def test_maps_in_the_order_of_tiles_take_as_long_as_after_the_host_has_reordered_them(wide: Hardware) -> None:
    """Table 4 with data reuse: 64,527,471 cycles of the accelerator, reordering apart."""
    assert convolutions(wide) == pytest.approx(64_527_471, rel=0.05)


def test_reading_some_channels_of_each_pixel_costs_more_than_reordering() -> None:
    """Table 4: the host reorders BHWC in 578,865,955 cycles. Without that, starts alone would be more."""
    settings = ["array.out_channels=32", "array.in_channels=8", "array.layout=channels_last"]
    assert convolutions(load_hardware("eftrain-zcu102", settings)) > 64_527_471 + 578_865_955
