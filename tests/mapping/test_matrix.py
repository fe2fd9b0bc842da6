"""Convolutions as matrix products: the work, the numbers, and the elements that blocks need."""

from __future__ import annotations

from itertools import product as combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.errors import MappingError
from jouletrace.mapping.blocks import block_elements
from jouletrace.mapping.matrix import Axis, Channels, Dense, Measure, Product, Spatial, products, residues
from jouletrace.trace.model import Attention, Conv, Elementwise, Gemm, Header, Op, Tensor, Trace

from .one_op import conv_trace, gemm_trace, square_conv
from .systolic_bench import convs, with_bias


def parts(trace: Trace) -> tuple[Product, ...]:
    return products(trace.ops[0], trace)


@settings(max_examples=1000, deadline=None)
@given(convs())
def test_products_hold_every_mac_of_the_nest_and_no_other(conv: Conv) -> None:
    found = parts(conv_trace(conv))
    assert sum(part.macs for part in found) == conv.macs
    assert all(part.useful_rows <= part.M for part in found)


def backward_data_by_classes(conv: Conv, gy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """gx of one group, a dense product per residue class: patches of gy by the class' weights."""
    gx = np.zeros((conv.N, conv.C, conv.IY, conv.IX), dtype=np.int64)
    axes = [
        residues(out, kernel, stride, dilation, pad, size)
        for out, kernel, stride, dilation, pad, size in zip(
            (conv.OY, conv.OX), (conv.R, conv.S), conv.stride, conv.dilation, conv.padding[::2],
            (conv.IY, conv.IX),
            strict=True,
        )
    ]  # fmt: skip
    for y, x in combinations(*axes):
        patches = np.zeros((conv.N, y.inside, x.inside, conv.K, len(y.taps), len(x.taps)), dtype=np.int64)
        for (i, dy), (j, dx) in combinations(enumerate(y.offsets), enumerate(x.offsets)):
            for p, q in combinations(range(y.inside), range(x.inside)):
                if 0 <= p + dy < conv.OY and 0 <= q + dx < conv.OX:
                    patches[:, p, q, :, i, j] = gy[:, :, p + dy, q + dx]
        weights = w[:, :, list(y.taps)][:, :, :, list(x.taps)].transpose(0, 2, 3, 1)
        M, K = conv.N * y.inside * x.inside, conv.K * len(y.taps) * len(x.taps)
        part = (patches.reshape(M, K) @ weights.reshape(K, conv.C)).reshape(conv.N, y.inside, x.inside, conv.C)
        gx[:, :, y.first :: conv.stride[0], x.first :: conv.stride[1]] = part.transpose(0, 3, 1, 2)
    return gx


@settings(deadline=None)
@given(convs("backward_data", largest=5), st.integers(0, 10**6))
def test_residue_classes_give_the_gradient_of_the_input(conv: Conv, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gy = rng.integers(-9, 10, (conv.N, conv.K, conv.OY, conv.OX))
    w = rng.integers(-9, 10, (conv.K, conv.C, conv.R, conv.S))
    gx = np.zeros((conv.N, conv.C, conv.IY, conv.IX), dtype=np.int64)
    for oy, ox, r, s in combinations(range(conv.OY), range(conv.OX), range(conv.R), range(conv.S)):
        iy = oy * conv.stride[0] + r * conv.dilation[0] - conv.padding[0]
        ix = ox * conv.stride[1] + s * conv.dilation[1] - conv.padding[2]
        if 0 <= iy < conv.IY and 0 <= ix < conv.IX:
            gx[:, :, iy, ix] += gy[:, :, oy, ox] @ w[:, :, r, s]
    assert np.array_equal(backward_data_by_classes(conv, gy, w), gx)


def test_a_strided_same_convolution_wastes_no_row() -> None:
    """3×3, stride 2, 56 to 28: taps 1 + 2 per axis, so 1 + 2 + 2 + 4 in four classes of 28×28 positions."""
    conv = Conv(1, 8, 4, 28, 28, 3, 3, 1, 56, 56, (2, 2), (1, 1, 1, 1), (1, 1), "backward_data")
    found = parts(conv_trace(conv))
    assert [(p.M, p.N, p.K, p.useful_rows) for p in found] == [(784, 4, 8 * taps, 784) for taps in (1, 2, 2, 4)]


def test_positions_without_a_tap_are_zeros_to_store() -> None:
    """1×1 with stride 2: three of four positions get no gradient."""
    conv = Conv(2, 8, 4, 28, 28, 1, 1, 1, 56, 56, (2, 2), role="backward_data")
    found = parts(conv_trace(conv))
    assert [(p.M, p.N, p.K) for p in found] == [(2 * 784, 4, 8), (2 * 3 * 784, 4, 0)]


def test_rows_beyond_the_output_are_idle_and_rows_of_the_frame_are_work() -> None:
    bare = parts(conv_trace(Conv(1, 1, 1, 6, 1, 3, 1, 1, 8, 1, role="backward_data")))
    assert [(p.M, p.useful_rows) for p in bare] == [(8, 6)]
    wide = parts(conv_trace(Conv(1, 1, 1, 12, 1, 1, 1, 1, 8, 1, padding=(2, 2, 0, 0), role="backward_data")))
    assert [(p.M, p.useful_rows) for p in wide] == [(12, 12)]


def test_forward_and_backward_weight_shapes() -> None:
    forward = parts(with_bias(conv_trace(square_conv(20, 6, 9, 3, batch=2, groups=2))))
    assert [(p.batches, p.M, p.N, p.K, p.bias) for p in forward] == [(2, 162, 10, 27, True)]
    weight = parts(conv_trace(square_conv(20, 6, 9, 3, batch=2, groups=2, role="backward_weight")))
    assert [(p.batches, p.M, p.N, p.K) for p in weight] == [(2, 10, 27, 162)]


def test_attention_is_two_products_and_the_scores_go_from_one_to_the_other() -> None:
    tensors = [Tensor(name, (6, 10, 8), 16, "fp", "activation") for name in "qkvy"]
    op = Op("attention", "forward", "a", Attention(6, 10, 12, 8), ("q", "k", "v"), ("y",))
    first, second = products(op, Trace(Header("t", 1), tuple(tensors), (op,)))
    assert (first.batches, first.M, first.N, first.K) == (6, 10, 12, 8)
    assert (second.batches, second.M, second.N, second.K) == (6, 10, 8, 12)
    assert first.result == second.left
    assert first.macs + second.macs == op.macs


def test_an_op_that_does_not_multiply_is_refused() -> None:
    x = Tensor("x", (4,), 32, "fp", "activation")
    op = Op("relu:forward", "forward", "relu", Elementwise("relu", 4), ("x",), ("x",))
    with pytest.raises(MappingError, match=r"'relu:forward'.*elementwise"):
        products(op, Trace(Header("t", 1), (x,), (op,)))


def elements(measure: Measure, start: int, stop: int) -> int:
    return int(measure.elements(np.array([start]), np.array([stop]))[0])


def test_blocks_of_gemm_operands_are_their_own_size() -> None:
    (part,) = parts(with_bias(gemm_trace(Gemm(1, 30, 20, 10))))
    assert elements(part.left.rows, 4, 9) * elements(part.left.columns, 0, 10) == 50
    # The bias is one more row of the right operand, in its first block.
    assert elements(part.right.rows, 0, 4) * elements(part.right.columns, 0, 20) == 100
    assert elements(part.right.rows, 4, 10) * elements(part.right.columns, 0, 20) == 120


@settings(max_examples=300, deadline=None)
@given(convs("forward", largest=6), st.data())
def test_a_block_of_pixels_counts_what_it_touches_or_a_little_more(conv: Conv, data: st.DataObject) -> None:
    (part,) = parts(conv_trace(conv))
    window = part.left.rows
    assert isinstance(window, Spatial)
    start = data.draw(st.integers(0, part.M - 1))
    stop = data.draw(st.integers(start + 1, part.M))
    touched: set[tuple[int, int, int]] = set()
    in_bounds = 0
    for position in range(start, stop):
        image, pixel = divmod(position, conv.OY * conv.OX)
        for dy, dx in combinations(window.rows.offsets, window.columns.offsets):
            y = pixel // conv.OX * conv.stride[0] + dy
            x = pixel % conv.OX * conv.stride[1] + dx
            if 0 <= y < conv.IY and 0 <= x < conv.IX:
                touched.add((image, y, x))
                in_bounds += 1
    counted = elements(window, start, stop)
    assert len(touched) <= counted <= conv.N * conv.IY * conv.IX
    if conv.R == conv.S == 1:
        assert counted == len(touched)
    dense = all(s <= k and d == 1 for s, k, d in zip(conv.stride, (conv.R, conv.S), conv.dilation, strict=True))
    if dense and (start, stop) == (0, part.M):
        assert counted == len(touched)


@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_channels_that_a_block_cuts_count_whole(channels: int, taps: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, channels * taps - 1))
    stop = data.draw(st.integers(start + 1, channels * taps))
    assert elements(Channels(taps), start, stop) == len({i // taps for i in range(start, stop)})


def test_an_axis_with_holes_counts_touches() -> None:
    """Stride 4 under a kernel of 3: three touches per position, not the hull of four."""
    axis = Axis(positions=10, stride=4, offsets=(0, 1, 2), size=40)
    assert axis.touched(np.array([0, 2]), np.array([9, 2])).tolist() == [30, 3]
    assert Dense().elements(np.array([3]), np.array([7])).tolist() == [4]


axes = st.builds(
    Axis, st.integers(1, 7), st.integers(1, 3),
    st.lists(st.integers(-2, 2), min_size=1, max_size=3).map(tuple), st.integers(1, 14),
)  # fmt: skip


@given(st.builds(Spatial, axes, axes), st.integers(1, 6), st.data())
def test_blocks_of_many_images_are_summed_by_what_repeats(window: Spatial, images: int, data: st.DataObject) -> None:
    size = images * window.image
    step = data.draw(st.integers(1, size))
    each = [elements(window, start, min(start + step, size)) for start in range(0, size, step)]
    assert block_elements(size, step, window) == (sum(each), max(each))
