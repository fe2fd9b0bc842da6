"""Blocks of networks as they are published, written on a :class:`~jouletrace.testing.steps.Step`.

Each takes the step, the layer path of the block (``layer1.0``), the name of its input, and its sizes; it returns the
name of its output. Layers inside are named as the frameworks' model libraries name them.
"""

from __future__ import annotations

from jouletrace.testing.steps import Step
from jouletrace.trace.model import Gemm

__all__ = [
    "attention", "basic", "bottleneck", "conv_norm", "inverted", "mlp", "preactivation", "squeeze_excite",
]  # fmt: skip


def conv_norm(step: Step, layer: str, x: str, channels: int, kernel: int = 3, stride: int = 1, index: str = "1",
              groups: int = 1) -> str:  # fmt: skip
    """``layer.conv1`` and the batch norm of its results, ``layer.bn1``."""
    y = step.conv(f"{layer}.conv{index}", x, channels, kernel, stride, groups)
    return step.norm(f"{layer}.bn{index}", "batch", y)


def _shortcut(step: Step, layer: str, x: str, channels: int, stride: int) -> str:
    """The input itself, or a 1×1 projection of it where the shape of the output differs."""
    if stride == 1 and step.shape(x)[1] == channels:
        return x
    return step.norm(f"{layer}.downsample.1", "batch", step.conv(f"{layer}.downsample.0", x, channels, 1, stride))


def basic(step: Step, layer: str, x: str, channels: int, stride: int = 1) -> str:
    """Two 3×3 convolutions with norms, an addition, ReLU behind it (He et al., CVPR 2016, figure 2)."""
    y = step.function(layer, "relu", conv_norm(step, layer, x, channels, 3, stride))
    y = conv_norm(step, layer, y, channels, index="2")
    return step.function(layer, "relu", step.add(layer, y, _shortcut(step, layer, x, channels, stride)))


def bottleneck(step: Step, layer: str, x: str, channels: int, stride: int = 1) -> str:
    """1×1 down, 3×3, 1×1 up to twice the width (He et al., CVPR 2016, figure 5, with an expansion of 2)."""
    y = step.function(layer, "relu", conv_norm(step, layer, x, channels, 1))
    y = step.function(layer, "relu", conv_norm(step, layer, y, channels, 3, stride, "2"))
    y = conv_norm(step, layer, y, 2 * channels, 1, index="3")
    return step.function(layer, "relu", step.add(layer, y, _shortcut(step, layer, x, 2 * channels, stride)))


def preactivation(step: Step, layer: str, x: str, channels: int, stride: int = 1) -> str:
    """Norm and ReLU before each convolution, nothing behind the addition (He et al., ECCV 2016, figure 1b)."""
    y = step.function(layer, "relu", step.norm(f"{layer}.bn1", "batch", x))
    projected = stride > 1 or step.shape(x)[1] != channels
    shortcut = step.conv(f"{layer}.downsample.0", y, channels, 1, stride) if projected else x
    y = step.conv(f"{layer}.conv1", y, channels, 3, stride)
    y = step.function(layer, "relu", step.norm(f"{layer}.bn2", "batch", y))
    return step.add(layer, step.conv(f"{layer}.conv2", y, channels), shortcut)


def inverted(step: Step, layer: str, x: str, channels: int, stride: int = 1, expand: int = 2, kernel: int = 3) -> str:
    """1×1 up, k×k depthwise, linear 1×1 down; a skip where shapes agree (Sandler et al., CVPR 2018, figure 4)."""
    wide = step.shape(x)[1] * expand
    y = step.norm(f"{layer}.conv.0.1", "batch", step.conv(f"{layer}.conv.0.0", x, wide, 1))
    y = step.conv(f"{layer}.conv.1.0", step.function(f"{layer}.conv.0.2", "relu6", y), wide, kernel, stride, wide)
    y = step.function(f"{layer}.conv.1.2", "relu6", step.norm(f"{layer}.conv.1.1", "batch", y))
    y = step.norm(f"{layer}.conv.3", "batch", step.conv(f"{layer}.conv.2", y, channels, 1))
    return step.add(layer, x, y) if step.shape(x) == step.shape(y) else y


def squeeze_excite(step: Step, layer: str, x: str, squeezed: int = 1) -> str:
    """Maps weighted by what two 1×1 convolutions make of their means (Hu et al., CVPR 2018, figure 1)."""
    y = step.pool(f"{layer}.avgpool", "average", x, (step.shape(x)[2], step.shape(x)[3]))
    y = step.function(f"{layer}.activation", "relu", step.conv(f"{layer}.fc1", y, squeezed, 1))
    y = step.conv(f"{layer}.fc2", y, step.shape(x)[1], 1)
    return step.scale(layer, x, step.function(f"{layer}.scale_activation", "sigmoid", y))


def attention(step: Step, layer: str, x: str) -> str:
    """Norm, one head with explicit products over (N, T, D), projection, and the residual around them."""
    N, T, D = step.shape(x)
    y = step.norm(f"{layer}.norm1", "layer", x)
    q, k, v = (step.linear(f"{layer}.attn.{name}", y, D) for name in "qkv")
    scores = step.function(f"{layer}.attn", "scale", step.product(f"{layer}.attn.qk", q, k, Gemm(N, T, T, D, tb=True)))
    y = step.product(f"{layer}.attn.av", step.softmax(f"{layer}.attn", scores), v, Gemm(N, T, D, T))
    return step.add(layer, x, step.linear(f"{layer}.attn.proj", y, D))


def mlp(step: Step, layer: str, x: str, width: int) -> str:
    """Norm, a dense layer up, GELU, a dense layer down, and the residual around them."""
    y = step.linear(f"{layer}.mlp.fc1", step.norm(f"{layer}.norm2", "layer", x), width)
    y = step.linear(f"{layer}.mlp.fc2", step.function(f"{layer}.mlp", "gelu", y), step.shape(x)[-1])
    return step.add(layer, x, y)
