"""The networks of EF-Train (Tang et al., ACM TODAES 27(5), 2022), trained by plain SGD.

Shapes are those that its layer tables give, and there is no dropout. The convolutions have no bias: the
accelerator's streams are input, output-side operand, weights and results, and no equation has a bias in it
(``vgg16`` keeps the biases of the standard network; ``vgg16_unbiased`` is as the accelerator runs it).
AlexNet is the ungrouped one for 227×227 images without local response normalisation; VGG-16 has
224×224 images and the classifier 25088-4096-4096-1000.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


class Chain:
    """Collects named layers, so that a layer's path is exactly its name."""

    def __init__(self, channels: int, bias: bool = False) -> None:
        self.channels = channels
        self.bias = bias
        self.layers: OrderedDict[str, nn.Module] = OrderedDict()

    def conv(
        self, name: str, channels: int, kernel: int = 3, stride: int = 1, pad: int = 1, norm: bool = False
    ) -> None:
        self.layers[f"conv{name}"] = nn.Conv2d(self.channels, channels, kernel, stride, pad, bias=self.bias)
        if norm:
            self.layers[f"bn{name}"] = nn.BatchNorm2d(channels)
        self.layers[f"relu{name}"] = nn.ReLU()
        self.channels = channels

    def pool(self, name: str, window: int = 2) -> None:
        self.layers[f"pool{name}"] = nn.MaxPool2d(window, 2)

    def fully_connected(self, *widths: int) -> None:
        self.layers["flatten"] = nn.Flatten()
        for i in range(1, len(widths)):
            name = str(i) if len(widths) > 2 else ""
            self.layers[f"fc{name}"] = nn.Linear(widths[i - 1], widths[i])
            if i + 1 < len(widths):
                self.layers[f"relu_fc{name}"] = nn.ReLU()

    def recipe(self, batch: int, size: int, classes: int):
        model = nn.Sequential(self.layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.008)
        images, labels = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))

        def step() -> None:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

        return model, step


def cnn1x(batch: int):
    """Six convolutions and a classifier for CIFAR-10."""
    net = Chain(3)
    for stage, channels in enumerate((16, 32, 64)):
        net.conv(str(2 * stage + 1), channels)
        net.conv(str(2 * stage + 2), channels)
        net.pool(str(stage + 1))
    net.fully_connected(1024, 10)
    return net.recipe(batch, 32, 10)


def lenet10(batch: int):
    """Three convolutions and two fully connected layers for CIFAR-10."""
    net = Chain(3)
    for stage, channels in enumerate((32, 32, 64), start=1):
        net.conv(str(stage), channels)
        net.pool(str(stage))
    net.fully_connected(1024, 64, 10)
    return net.recipe(batch, 32, 10)


def alexnet(batch: int):
    net = Chain(3)
    net.conv("1", 96, 11, 4, 0)
    net.pool("1", 3)
    net.conv("2", 256, 5, 1, 2)
    net.pool("2", 3)
    net.conv("3", 384)
    net.conv("4", 384)
    net.conv("5", 256)
    net.pool("5", 3)
    net.fully_connected(9216, 4096, 4096, 1000)
    return net.recipe(batch, 227, 1000)


def _vgg16(batch: int, norm: bool, bias: bool = True):
    net = Chain(3, bias=bias)
    for stage, (convs, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for i in range(convs):
            net.conv(f"{stage}_{i + 1}", channels, norm=norm)
        net.pool(str(stage))
    net.fully_connected(25088, 4096, 4096, 1000)
    return net.recipe(batch, 224, 1000)


def vgg16(batch: int):
    return _vgg16(batch, norm=False)


def vgg16_unbiased(batch: int):
    return _vgg16(batch, norm=False, bias=False)


def vgg16bn(batch: int):
    return _vgg16(batch, norm=True)
