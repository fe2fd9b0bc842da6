"""Hypothesis strategies that draw small training steps, valid by construction.

They shrink towards fewer blocks, smaller layers and a smaller batch. Sizes are a handful of samples, channels and
rows, so that mapping and executing a step takes milliseconds.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from jouletrace.testing import blocks
from jouletrace.testing.steps import OPTIMIZERS, Step
from jouletrace.trace.model import Gate, Op, Sync, Trace
from jouletrace.trace.prune import prune

__all__ = [
    "dense_traces", "gated", "image_traces", "recurrent_traces", "residual_traces", "sequence_traces", "traces",
]  # fmt: skip

_SMALL = st.integers(1, 3)
_BATCH = st.integers(1, 4)
_WIDTH = st.integers(1, 4)
_CLASSES = st.integers(2, 4)
_OPTIMIZER = st.sampled_from(sorted(OPTIMIZERS))
_IMAGE_BLOCKS = ("none", "plain", "grouped", "depthwise", "squeeze_excite", "pool", "dropout")
_RESIDUAL_BLOCKS = ("basic", "preactivation", "bottleneck", "inverted")
_SEQUENCE_BLOCKS = ("none", "mlp", "attention", "both")


def _step(draw: st.DrawFn, name: str) -> Step:
    return Step(name, draw(_BATCH), draw(_OPTIMIZER))


def _classified(draw: st.DrawFn, step: Step, x: str) -> Trace:
    """A dense layer to a few classes, and the loss."""
    classes = draw(_CLASSES)
    step.loss(step.linear("fc", x, classes), classes)
    return step.trace()


def _classified_image(draw: st.DrawFn, step: Step, x: str) -> Trace:
    """Global average pooling or none, then a classifier."""
    if draw(st.booleans()):
        x = step.pool("avgpool", "average", x, (step.shape(x)[2], step.shape(x)[3]))
    return _classified(draw, step, x)


@st.composite
def dense_traces(draw: st.DrawFn, max_layers: int = 3) -> Trace:
    """A classifier of one to ``max_layers`` dense layers, some with dropout between."""
    step = _step(draw, "dense")
    x = step.given("features", (step.batch, draw(_WIDTH)), "input")
    for index in range(draw(st.integers(0, max_layers - 1))):
        x = step.function(f"hidden.{index}", "relu", step.linear(f"hidden.{index}", x, draw(_WIDTH)))
        if draw(st.booleans()):
            x = step.dropout(f"drop.{index}", x)
    return _classified(draw, step, x)


@st.composite
def image_traces(draw: st.DrawFn, max_blocks: int = 2) -> Trace:
    """A convolution, up to ``max_blocks`` layers without a skip, global pooling or none, a classifier.

    Layers are convolutions with norm and ReLU (some grouped or depthwise, some with a stride), squeeze-and-excitation,
    max pooling and dropout.
    """
    step, channels, size = _step(draw, "images"), draw(_SMALL), draw(st.integers(1, 6))
    x = step.given("images", (step.batch, channels, size, size + draw(st.integers(0, 1))), "input")
    x = step.conv("conv1", x, draw(_SMALL), draw(st.sampled_from([1, 3])))
    for index in range(max_blocks):
        x = _image_block(draw, step, draw(st.sampled_from(_IMAGE_BLOCKS)), f"features.{index}", x)
    return _classified_image(draw, step, x)


def _image_block(draw: st.DrawFn, step: Step, kind: str, layer: str, x: str) -> str:
    channels = step.shape(x)[1]
    match kind:
        case "plain":
            kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2))
            return step.function(layer, "relu", blocks.conv_norm(step, layer, x, draw(_SMALL), kernel, stride))
        case "grouped":
            return step.conv(layer, step.conv(f"{layer}.up", x, 2 * channels, 1), 2 * channels, 3, groups=2)
        case "depthwise":
            return step.conv(layer, x, channels * draw(_SMALL), draw(st.sampled_from([3, 5])), 2, channels)
        case "squeeze_excite":
            return blocks.squeeze_excite(step, layer, x, draw(_SMALL))
        case "pool":
            return step.pool(layer, "max", x, 2 if min(step.shape(x)[2:]) > 1 else 1)
        case "dropout":
            return step.dropout(layer, x)
        case _:
            return x


@st.composite
def residual_traces(draw: st.DrawFn, max_blocks: int = 2) -> Trace:
    """A stem, one to ``max_blocks`` residual blocks, global pooling or none, a classifier.

    Blocks are basic, pre-activated, bottlenecks or inverted residuals, with an identity shortcut or a projection, some
    with a stride; a block may be followed by itself, with the same parameters.
    """
    step, size, width = _step(draw, "residual"), draw(st.integers(1, 5)), draw(_SMALL)
    x = step.given("images", (step.batch, draw(_SMALL), size, size), "input")
    x = step.function("", "relu", step.norm("bn1", "batch", step.conv("conv1", x, width)))
    left = draw(st.integers(1, max_blocks))
    stage, index = 1, 0
    while left:
        kind, twice = draw(st.sampled_from(_RESIDUAL_BLOCKS)), left > 1 and draw(st.booleans())
        channels, stride = step.shape(x)[1], 1
        if not twice:
            channels, stride = draw(st.sampled_from([channels, width, 2 * width])), draw(st.integers(1, 2))
        if stride > 1 or channels != step.shape(x)[1]:
            stage, index = stage + 1, 0
        layer = f"layer{stage}.{index}"
        y = _residual_block(step, kind, layer, x, channels, stride)
        if twice and step.shape(y) == step.shape(x):  # once more, with the same parameters
            y = _residual_block(step, kind, layer, y, channels, stride)
            left -= 1
        left -= 1
        x, index = y, index + 1
    return _classified_image(draw, step, x)


def _residual_block(step: Step, kind: str, layer: str, x: str, channels: int, stride: int) -> str:
    match kind:
        case "basic":
            return blocks.basic(step, layer, x, channels, stride)
        case "preactivation":
            return blocks.preactivation(step, layer, x, channels, stride)
        case "bottleneck":  # its output is twice as wide
            return blocks.bottleneck(step, layer, x, max(1, channels // 2), stride)
        case _:
            return blocks.inverted(step, layer, x, channels, stride)


@st.composite
def sequence_traces(draw: st.DrawFn, max_blocks: int = 1) -> Trace:
    """An embedding, then up to ``max_blocks`` attention or feed-forward blocks or both, and a classifier."""
    step, length, width = _step(draw, "tokens"), draw(_WIDTH), draw(_WIDTH)
    tokens = step.given("tokens", (step.batch, length), "input", 64)
    x = step.embedding("embedding", tokens, draw(st.integers(2, 20)), width)
    for index in range(max_blocks):
        kind = draw(st.sampled_from(_SEQUENCE_BLOCKS))
        if kind in ("attention", "both"):
            x = blocks.attention(step, f"blocks.{index}", x)
        if kind in ("mlp", "both"):
            x = blocks.mlp(step, f"blocks.{index}", x, 2 * draw(_SMALL))
    return _classified(draw, step, x)


@st.composite
def recurrent_traces(draw: st.DrawFn) -> Trace:
    """An embedding, one or two time steps of an LSTM, time-major, and a classifier of its last output."""
    step, length, width = _step(draw, "words"), draw(st.integers(1, 2)), draw(_WIDTH)
    tokens = step.given("tokens", (length, step.batch), "input", 64)
    x = step.embedding("embedding", tokens, draw(st.integers(2, 20)), width)
    return prune(_classified(draw, step, step.lstm("lstm", x, draw(_SMALL))))  # nothing reads the last cell state


@st.composite
def gated(draw: st.DrawFn, steps: st.SearchStrategy[Trace]) -> Trace:
    """A step one of whose layers waits for a decision, which is its first op."""
    trace = draw(steps)
    decision = Op("decide:forward", "forward", "", Sync("decision"), (), ())
    layer = draw(st.sampled_from(sorted({op.layer for op in trace.ops})))
    gate = Gate("block", layer or "root", decision.name)
    ops = (replace(op, gate=gate, after=(decision.name,)) if op.layer == layer else op for op in trace.ops)
    return replace(trace, ops=(decision, *ops))


def traces(*, gates: bool = False) -> st.SearchStrategy[Trace]:
    """Any of the steps of this module, of 7 to about 100 ops; with ``gates`` some have a gated layer."""
    steps = (dense_traces() | image_traces() | residual_traces(max_blocks=1) | residual_traces()
             | sequence_traces() | recurrent_traces())  # fmt: skip
    return steps | gated(steps) if gates else steps
