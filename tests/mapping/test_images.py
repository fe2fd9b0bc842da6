"""A convolution over more images is the one over few whose middle images are repeated more often.

    2 images   first, last
    4 images   first, middle, middle, last
    9 images   first, middle × 7, last
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jouletrace.errors import MappingError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.channel_parallel import ChannelParallelMapper, tile_of
from jouletrace.mapping.op_program import OpProgram
from jouletrace.mapping.program import OpInfo
from jouletrace.mapping.tiles import Tile
from jouletrace.mapping.transfer import Memory
from jouletrace.store.settings import SWITCH
from jouletrace.trace.io import load_trace
from jouletrace.trace.model import Conv, Tensor, Trace

from .one_op import conv_trace, square_conv

SPECS = [name for name in list_hardware() if isinstance(load_hardware(name).array, ChannelParallel)]
ROLES = ("forward", "backward_data", "backward_weight")


def body(trace: Trace, hardware: Hardware, tile: Tile, *, from_few: bool) -> OpProgram:
    """What the only op of a trace becomes: issued image by image, or found from what it is for few images."""
    builder = ProgramBuilder(hardware.name)
    mapper = ChannelParallelMapper(hardware, builder, Memory(hardware, builder))
    with pytest.MonkeyPatch.context() as patch, builder.op(OpInfo("conv", "", "forward", "conv", macs=0)):
        patch.setenv(SWITCH, "0" if from_few else "1")
        return builder.recorded(mapper.map(trace.ops[0], trace, tile, is_variant=True))


def agree(trace: Trace, hardware: Hardware, tile: Tile) -> None:
    """Equal to the last command, with everything that was carried over from few images."""
    found, expected = (body(trace, hardware, tile, from_few=from_few) for from_few in (True, False))
    assert found == expected
    assert found.tiles == expected.tiles
    for name in ("counts", "gives", "repeats", "problems", "takers", "givers", "moves", "start_cycles"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("arrays", "run_arrays"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert one.tolist() == other.tolist()


def test_the_middle_images_are_one_run() -> None:
    """Weights come with the first image and leave with the last, so that these have runs of their own."""
    hardware = load_hardware("eftrain-zcu102")
    found: dict[int, OpProgram] = {}
    for images in (4, 9, 32):
        trace = conv_trace(square_conv(16, 16, 8, 3, batch=images))
        found[images] = body(trace, hardware, tile_of(trace.ops[0], trace, hardware), from_few=True)
    # Behind the last image the buffers swap.
    times = {images: [run.times for run in one.runs] for images, one in found.items()}
    assert times == {4: [1, 2, 1, 1], 9: [1, 7, 1, 1], 32: [1, 30, 1, 1]}
    assert found[9].commands is found[32].commands, "issued once"


@pytest.mark.parametrize("spec", SPECS)
def test_every_number_of_images_of_shipped_convolutions(spec: str) -> None:
    """The convolutions of ResNet-20, for a part of the batch, on the tiles of the whole one."""
    hardware, step = load_hardware(spec), load_trace("resnet20-cifar10-b32")
    nests = dict.fromkeys(op.nest for op in step.ops if isinstance(op.nest, Conv))
    for nest in nests:
        whole = conv_trace(nest)
        tile = tile_of(whole.ops[0], whole, hardware)
        for images in (*range(1, 8), 16, 31, 32):
            agree(conv_trace(replace(nest, N=images)), hardware, tile)


@settings(max_examples=100)
@given(
    spec=st.sampled_from(SPECS), role=st.sampled_from(ROLES), images=st.integers(1, 40), groups=st.integers(1, 3),
    outs=st.integers(1, 80), ins=st.integers(1, 80), rows=st.integers(1, 20), kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2), bits=st.sampled_from([8, 16, 32]), bias=st.booleans(), part=st.booleans(),
)  # fmt: skip
def test_every_number_of_images_of_any_convolution(
    spec: str, role: str, images: int, groups: int, outs: int, ins: int, rows: int, kernel: int, stride: int, bits: int,
    bias: bool, part: bool,
) -> None:  # fmt: skip
    """Grouped, strided, narrow, with a bias, or with a third of the results wanted."""
    hardware = load_hardware(spec)
    nest = square_conv(groups * outs, groups * ins, rows, kernel, stride, images, role, groups)
    trace = conv_trace(nest, bits=bits)
    op = trace.ops[0]
    if bias:
        trace = replace(trace, tensors=(*trace.tensors, Tensor("b", (nest.G * nest.K,), bits, "fp", "param")))
        op = replace(op, reads=(*op.reads, "b"))
    if part:
        op = replace(op, write_elements=(-(-nest.results // 3),))
    trace = replace(trace, ops=(op,))
    try:
        tile = tile_of(op, trace, hardware)
    except MappingError:
        assume(False)
        return
    agree(trace, hardware, tile)
