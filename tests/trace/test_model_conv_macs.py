"""The closed forms of Conv against a loop that visits every index."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.trace.model import Conv

small = st.integers(1, 3)


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    kernel, stride, dilation = (draw(st.tuples(small, small)) for _ in range(3))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 4))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    out = []
    for axis in range(2):
        room = size[axis] + padding[2 * axis] + padding[2 * axis + 1] - dilation[axis] * (kernel[axis] - 1) - 1
        out.append(max(0, room) // stride[axis] + 1)
    return Conv(
        N=draw(small), K=draw(small), C=draw(small), G=draw(small), OY=out[0], OX=out[1], R=kernel[0],
        S=kernel[1], IY=size[0], IX=size[1], stride=stride, padding=padding, dilation=dilation,
        role=draw(st.sampled_from(["forward", "backward_data", "backward_weight"])),
    )  # fmt: skip


def visit(conv: Conv) -> tuple[int, int]:
    """(all, in bounds): one multiplication per sample, group, channel pair, output position and tap."""
    every = inside = 0
    for oy, ox, r, s in product(range(conv.OY), range(conv.OX), range(conv.R), range(conv.S)):
        iy = oy * conv.stride[0] + r * conv.dilation[0] - conv.padding[0]
        ix = ox * conv.stride[1] + s * conv.dilation[1] - conv.padding[2]
        every += 1
        inside += 0 <= iy < conv.IY and 0 <= ix < conv.IX
    channels = sum(1 for _ in product(range(conv.N), range(conv.G), range(conv.K), range(conv.C)))
    return every * channels, inside * channels


@settings(max_examples=1000, deadline=None)
@given(convolutions())
def test_macs_equal_a_visit_of_every_index(conv: Conv) -> None:
    assert (conv.macs, conv.macs_in_bounds) == visit(conv)


def test_padded_3x3_on_8x8() -> None:
    """(22/24)² of the taps lie inside: 3·8 - 2 per axis."""
    conv = Conv(N=1, K=1, C=1, OY=8, OX=8, R=3, S=3, G=1, IY=8, IX=8, padding=(1, 1, 1, 1))
    assert (conv.macs, conv.macs_in_bounds) == (576, 484)
