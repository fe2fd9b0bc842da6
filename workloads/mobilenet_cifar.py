"""MobileNetV2 (Sandler et al., CVPR 2018) for CIFAR-10, in two layouts. No dropout.

``mobilenetv2`` has torchvision's layout with a stem of stride 1 and stage strides 1 1 2 2 1 2 1.
``mobilenetv2_eic`` is the CIFAR variant that FracTrain and E2-Train use: the same strides, but its first
block also expands (by one), and a block that keeps the size but not the channels has a 1×1 convolution
with batch norm as its shortcut. SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def unit(channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU6 in place."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int, eic: bool) -> None:
        super().__init__()
        hidden = channels_in * expansion
        expand = [unit(channels_in, hidden)] if expansion > 1 or eic else []
        self.conv = nn.Sequential(
            *expand,
            unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.identity = stride == 1 and channels_in == channels
        self.shortcut = None
        if eic and stride == 1 and not self.identity:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.identity:
            return x + y
        return y if self.shortcut is None else self.shortcut(x) + y


class MobileNetV2(nn.Module):
    def __init__(self, eic: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [unit(3, 32, 3)]
        channels_in = 32
        for expansion, channels, blocks, stride in STAGES:
            for i in range(blocks):
                layers.append(Block(channels_in, channels, expansion, stride if i == 0 else 1, eic))
                channels_in = channels
        self.features = nn.Sequential(*layers, unit(channels_in, 1280))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _recipe(batch: int, eic: bool):
    model = MobileNetV2(eic)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return model, step


def mobilenetv2(batch: int):
    return _recipe(batch, eic=False)


def mobilenetv2_eic(batch: int):
    return _recipe(batch, eic=True)
