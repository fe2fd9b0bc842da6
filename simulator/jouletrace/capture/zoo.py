"""Built-in networks: training steps of well-known models, without a framework and without data.

Each network is a short list of layers over :class:`jouletrace.capture.forward.Forward`, with the layer names
of its PyTorch recipe in ``workloads/``. :func:`zoo` gives the whole training step.

=========================  =====================================================================
name                       source
=========================  =====================================================================
resnet{6n+2}-cifar10       He et al., CVPR 2016, section 4.2, with 1×1 convolutions where the shape
                           changes (as E2-Train has it); ``-cifar100`` with 100 classes
resnet{6n+2}-identity-…    the same with the paper's option A: strided slice, zero channels
resnet18-imagenet          He et al., CVPR 2016, table 1
mobilenetv2-cifar10        Sandler et al., CVPR 2018, strides 1 in the stem and the 24-channel stage
mobilenetv2-eic-cifar10    the variant of FracTrain and E2-Train: expansion everywhere, 1×1
                           convolutions on shortcuts whose channels change
vgg16-imagenet, vgg16bn-…  Simonyan and Zisserman, ICLR 2015, configuration D
alexnet-eftrain            Tang et al. (EF-Train), TODAES 27(5), 2022: ungrouped, 227×227
cnn1x-cifar10              the same paper, 1X CNN
lenet10-cifar10            the same paper, LeNet-10
lstm2                      2 layers of 256 over 32 tokens of a vocabulary of 1000
vit-tiny6-cifar10          Dosovitskiy et al., ICLR 2021, width 192, 6 blocks, 4×4 patches
gpt-char                   a causal decoder over 65 characters, context 256, width 384, 6 blocks
=========================  =====================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from jouletrace.capture.forward import Array, Forward
from jouletrace.capture.reverse import train_step
from jouletrace.errors import UsageError, did_you_mean
from jouletrace.trace.model import Trace

__all__ = ["ZOO", "Network", "zoo", "zoo_forward"]


@dataclass(frozen=True, slots=True)
class Network:
    """A built-in network and the optimizer that its step ends with."""

    build: Callable[[Forward], None]
    optimizer: str = "sgd_momentum"
    weight_decay: bool = True


def zoo(name: str, batch: int = 128) -> Trace:
    """The training step of a built-in network.

    Raises UsageError for a name that is not in :data:`ZOO`; ResNets for CIFAR are known for every depth 6n+2.

    >>> step = zoo("resnet20-cifar10", batch=128)
    >>> sum(op.macs for op in step.ops if op.phase == "forward") // 128
    40813184
    >>> zoo("resnet21-cifar10")
    Traceback (most recent call last):
    jouletrace.errors.UsageError: No built-in network 'resnet21-cifar10'; did you mean 'resnet20-cifar10'?
    """
    network = _network(name)
    return train_step(zoo_forward(name, batch), network.optimizer, network.weight_decay)


def zoo_forward(name: str, batch: int = 128) -> Trace:
    """The forward pass of a built-in network, loss included."""
    network = _network(name)
    if batch < 1:
        raise UsageError(f"The batch must be at least 1, got {batch}.")
    forward = Forward(f"{name}-b{batch}", batch, producer=(("tool", "jouletrace zoo"),))
    network.build(forward)
    return forward.trace()


def _network(name: str) -> Network:
    if name in ZOO:
        return ZOO[name]
    match = re.fullmatch(r"resnet(\d{1,4})(-identity)?-cifar(100?)", name)
    if match is None or int(match[1]) < 8 or int(match[1]) % 6 != 2:
        raise UsageError(f"No built-in network {name!r}{did_you_mean(name, tuple(ZOO))}")
    return _cifar_resnet_of(int(match[1]), int(match[3]), match[2] is not None)


def _images(f: Forward, size: int) -> Array:
    return f.input("images", (f.header.batch, 3, size, size))


def _classify(f: Forward, x: Array, layer: str, classes: int) -> None:
    """Flatten, one dense layer, the loss."""
    f.cross_entropy(f.linear(layer, x.reshape(f.header.batch, x.elements // f.header.batch), classes))


# -- residual networks


def _basic_block(f: Forward, name: str, x: Array, channels: int, identity: bool = False) -> Array:
    """Two 3×3 convolutions; more channels mean half the map, and a shortcut that follows."""
    stride = 1 if x.shape[1] == channels else 2
    y = f.batch_norm(f"{name}.bn1", f.conv(f"{name}.conv1", x, channels, 3, stride, pad=1))
    y = f.relu(name, y)
    y = f.batch_norm(f"{name}.bn2", f.conv(f"{name}.conv2", y, channels, 3, pad=1))
    if stride == 2 and identity:
        every_other = x.view(*x.shape[:2], *y.shape[2:])
        x = f.copy(f"{name}.downsample", "pad", [every_other], y.shape)
    elif stride == 2:
        x = f.conv(f"{name}.downsample.0", x, channels, 1, stride)
        x = f.batch_norm(f"{name}.downsample.1", x)
    return f.relu(name, f.add(name, y, x))


def _cifar_resnet(f: Forward, n: int, classes: int, identity: bool) -> None:
    x = f.relu("", f.batch_norm("bn1", f.conv("conv1", _images(f, 32), 16, 3, pad=1)))
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(n):
            x = _basic_block(f, f"layer{stage + 1}.{block}", x, channels, identity)
    _classify(f, f.global_average("avgpool", x), "fc", classes)


def _cifar_resnet_of(depth: int, classes: int, identity: bool) -> Network:
    return Network(partial(_cifar_resnet, n=(depth - 2) // 6, classes=classes, identity=identity))


def _resnet18(f: Forward) -> None:
    x = _images(f, 224)
    x = f.relu("", f.batch_norm("bn1", f.conv("conv1", x, 64, 7, 2, pad=3)))
    x = f.pool("maxpool", "max", x, 3, 2, pad=1)
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = _basic_block(f, f"layer{stage + 1}.{block}", x, channels)
    _classify(f, f.global_average("avgpool", x), "fc", 1000)


# -- MobileNetV2: (expansion, channels, blocks, stride) per stage

_MOBILENET = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _mobilenetv2(f: Forward, eic: bool) -> None:
    def unit(name: str, x: Array, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Array:
        x = f.conv(f"{name}.0", x, channels, kernel, stride, pad=kernel // 2, groups=groups)
        return f.unary(f"{name}.2", "relu6", f.batch_norm(f"{name}.1", x))

    def block(name: str, x: Array, channels: int, expansion: int, stride: int) -> Array:
        hidden, index, y = x.shape[1] * expansion, 0, x
        if expansion > 1 or eic:
            y, index = unit(f"{name}.conv.0", y, hidden), 1
        y = unit(f"{name}.conv.{index}", y, hidden, 3, stride, groups=hidden)
        y = f.conv(f"{name}.conv.{index + 1}", y, channels, 1)
        y = f.batch_norm(f"{name}.conv.{index + 2}", y)
        if stride == 1 and x.shape == y.shape:
            return f.add(name, x, y)
        if stride == 1 and eic:
            shortcut = f.batch_norm(f"{name}.shortcut.1", f.conv(f"{name}.shortcut.0", x, channels, 1))
            return f.add(name, shortcut, y)
        return y

    x = unit("features.0", _images(f, 32), 32, 3)
    index = 1
    for expansion, channels, blocks, stride in _MOBILENET:
        for i in range(blocks):
            x = block(f"features.{index}", x, channels, expansion, stride if i == 0 else 1)
            index += 1
    x = unit(f"features.{index}", x, 1280)
    _classify(f, f.global_average("avgpool", x), "classifier", 10)


# -- plain networks: convolution with bias, optional batch norm, ReLU


def _unit(f: Forward, name: str, x: Array, channels: int, kernel: int = 3, stride: int = 1, pad: int = 1,
          norm: bool = False, bias: bool = False) -> Array:  # fmt: skip
    x = f.conv(f"conv{name}", x, channels, kernel, stride, pad, bias=bias)
    return f.relu(f"relu{name}", f.batch_norm(f"bn{name}", x) if norm else x)


def _dense(f: Forward, x: Array, *widths: int) -> None:
    """Dense layers with ReLU in between, and the loss."""
    x = x.reshape(f.header.batch, x.elements // f.header.batch)
    *hidden, classes = widths
    for i, width in enumerate(hidden, start=1):
        x = f.relu(f"relu_fc{i}", f.linear(f"fc{i}", x, width))
    _classify(f, x, f"fc{len(widths)}" if hidden else "fc", classes)


def _vgg16(f: Forward, norm: bool) -> None:
    x = _images(f, 224)
    for stage, (convs, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for i in range(convs):
            x = _unit(f, f"{stage}_{i + 1}", x, channels, norm=norm, bias=True)
        x = f.pool(f"pool{stage}", "max", x, 2, 2)
    _dense(f, x, 4096, 4096, 1000)


def _alexnet(f: Forward) -> None:
    x = f.pool("pool1", "max", _unit(f, "1", _images(f, 227), 96, 11, 4, 0), 3, 2)
    x = f.pool("pool2", "max", _unit(f, "2", x, 256, 5, pad=2), 3, 2)
    x = _unit(f, "5", _unit(f, "4", _unit(f, "3", x, 384), 384), 256)
    _dense(f, f.pool("pool5", "max", x, 3, 2), 4096, 4096, 1000)


def _cnn1x(f: Forward) -> None:
    x = _images(f, 32)
    for stage, channels in enumerate((16, 32, 64), start=1):
        x = _unit(f, str(2 * stage - 1), x, channels)
        x = _unit(f, str(2 * stage), x, channels)
        x = f.pool(f"pool{stage}", "max", x, 2, 2)
    _dense(f, x, 10)


def _lenet10(f: Forward) -> None:
    x = _images(f, 32)
    for stage, channels in enumerate((32, 32, 64), start=1):
        x = f.pool(f"pool{stage}", "max", _unit(f, str(stage), x, channels), 2, 2)
    _dense(f, x, 64, 10)


# -- sequences


def _lstm2(f: Forward) -> None:
    T, N, H, vocabulary = 32, f.header.batch, 256, 1000
    x = f.embedding("embedding", f.input("tokens", (T, N), 64, "int"), vocabulary, 128)
    zeros = [f.buffer(f"lstm.{state}", (N, H)) for state in ("h0", "c0")]
    for layer in range(2):
        shapes = {
            "weight_ih": (4 * H, x.shape[2]),
            "weight_hh": (4 * H, H),
            "bias_ih": (4 * H,),
            "bias_hh": (4 * H,),
        }
        operands = [f.parameter(f"lstm.{p}_l{layer}", shape) for p, shape in shapes.items()]
        x = f.recurrent("lstm", "lstm", x, operands, zeros)
    f.cross_entropy(f.linear("fc", x, vocabulary), "targets")


def _attention(f: Forward, name: str, x: Array, heads: int, causal: bool) -> Array:
    """Scaled dot-product attention as PyTorch computes it without a fused kernel.

    Queries and keys are scaled; heads lie strided in the joint projection, so every operand of a product and
    the merged result are copied once.
    """
    N, T, width = x.shape
    D = width // heads
    dense = partial(f.copy, name, "contiguous")
    qkv = f.linear(f"{name}.qkv", x, 3 * width)
    q = f.unary(name, "mul", qkv.view(N, heads, T, D))
    k = f.unary(name, "mul", qkv.view(N, heads, D, T))
    scores = f.matmul(name, dense([q], q.shape), dense([k], k.shape))
    if causal:
        scores = f.add(name, scores, f.buffer(f"{name}.mask", (T, T)))
    weights = f.softmax(name, scores)
    y = f.matmul(name, weights, dense([qkv.view(N, heads, T, D)], (N, heads, T, D)))
    return f.linear(f"{name}.proj", dense([y], (N, T, heads, D)).reshape(N, T, width), width)


def _blocks(f: Forward, x: Array, blocks: int, heads: int, causal: bool) -> Array:
    """Pre-norm transformer blocks and the last norm."""
    width = x.shape[-1]
    for name in (f"blocks.{i}" for i in range(blocks)):
        x = f.add(name, x, _attention(f, f"{name}.attn", f.layer_norm(f"{name}.norm1", x), heads, causal))
        y = f.linear(f"{name}.mlp.0", f.layer_norm(f"{name}.norm2", x), 4 * width)
        x = f.add(name, x, f.linear(f"{name}.mlp.2", f.unary(f"{name}.mlp.1", "gelu", y), width))
    return f.layer_norm("norm", x)


def _vit_tiny6(f: Forward) -> None:
    N, width = f.header.batch, 192
    token, position = f.parameter("token", (1, 1, width)), f.parameter("position", (1, 65, width))
    x = f.conv("patches", _images(f, 32), width, 4, 4, bias=True)
    x = f.add("", f.copy("", "cat", [token, x], (N, 65, width)), position)
    x = _blocks(f, x, blocks=6, heads=3, causal=False)
    _classify(f, x.view(N, width), "head", 10)


def _gpt_char(f: Forward) -> None:
    N, context, width = f.header.batch, 256, 384
    position = f.parameter("position", (context, width))
    x = f.embedding("embedding", f.input("characters", (N, context), 64, "int"), 65, width)
    x = _blocks(f, f.add("", x, position), blocks=6, heads=6, causal=True)
    f.cross_entropy(f.linear("head", x, 65, bias=False), "targets")


ZOO: Mapping[str, Network] = MappingProxyType({
    **{f"resnet{depth}{'-identity' * identity}-cifar{classes}": _cifar_resnet_of(depth, classes, identity)
       for depth in (20, 38, 74, 110) for identity in (False, True) for classes in (10, 100)},
    "resnet18-imagenet": Network(_resnet18),
    "mobilenetv2-cifar10": Network(partial(_mobilenetv2, eic=False)),
    "mobilenetv2-eic-cifar10": Network(partial(_mobilenetv2, eic=True)),
    "vgg16-imagenet": Network(partial(_vgg16, norm=False), "sgd", weight_decay=False),
    "vgg16bn-imagenet": Network(partial(_vgg16, norm=True), "sgd", weight_decay=False),
    "alexnet-eftrain": Network(_alexnet, "sgd", weight_decay=False),
    "cnn1x-cifar10": Network(_cnn1x, "sgd", weight_decay=False),
    "lenet10-cifar10": Network(_lenet10, "sgd", weight_decay=False),
    "lstm2": Network(_lstm2, weight_decay=False),
    "vit-tiny6-cifar10": Network(_vit_tiny6, "adamw"),
    "gpt-char": Network(_gpt_char, "adamw"),
})  # fmt: skip
"""The built-in networks by name."""
