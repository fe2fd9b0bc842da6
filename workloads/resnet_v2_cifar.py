"""ResNet-20 v2 for CIFAR-10: the bottleneck network of Keras' example (He et al., ECCV 2016), 9n+2 layers.

Inference alone: batch norm is folded into the convolution before it. At the head of a block there is none, only the sum
of two branches: there it is one factor and one summand per channel. The loss stands for whoever reads the result.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scale(nn.Module):
    """Batch norm with fixed statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels, 1, 1))
        self.summand = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.summand


class Block(nn.Module):
    """1×1, 3×3, 1×1; the first block of a stage has a 1×1 convolution as its shortcut."""

    def __init__(self, channels_in: int, inner: int, channels: int, stride: int, head: bool, shortcut: bool) -> None:
        super().__init__()
        self.head = nn.Sequential(Scale(channels_in), nn.ReLU()) if head else nn.Sequential()
        self.conv1 = nn.Conv2d(channels_in, inner, 1, stride)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv3 = nn.Conv2d(inner, channels, 1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride) if shortcut else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv1(self.head(x)))
        y = functional.relu(self.conv2(y))
        return self.conv3(y) + self.shortcut(x)


class ResNetV2(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        channels = inner = 16
        for stage in range(3):
            out = 4 * inner if stage == 0 else 2 * inner
            for block in range(blocks):
                first = block == 0
                stride = 2 if first and stage > 0 else 1
                made = Block(channels, inner, out, stride, head=not (first and stage == 0), shortcut=first)
                self.add_module(f"block{stage + 1}_{block + 1}", made)
                channels = out
            inner = out
        self.tail = nn.Sequential(Scale(channels), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten())
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x))
        for name, child in self.named_children():
            if name.startswith("block"):
                x = child(x)
        return self.fc(self.tail(x))


def resnet20v2(batch: int):
    model = ResNetV2(2)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    @torch.no_grad()
    def infer() -> None:
        functional.cross_entropy(model(images), labels)

    return model, infer
