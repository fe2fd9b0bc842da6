"""ResNets for CIFAR (He et al., CVPR 2016, section 4.2): 6n+2 layers, 16, 32 and 64 channels.

``resnet20`` to ``resnet110`` change the shape between stages by a 1×1 convolution with batch norm, as
E2-Train's released code does; ``resnet74_identity`` by taking every other pixel and padding channels
with zeros (option A of the paper). SGD, learning rate 0.1, momentum 0.9, weight decay 1e-4.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Shortcut(nn.Module):
    """Every other pixel, and zeros for the new channels: no parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.pad = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, identity: bool) -> None:
        super().__init__()
        stride = channels // channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride == 2 and identity:
            self.downsample = Shortcut(channels - channels_in)
        elif stride == 2:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x))


class ResNet(nn.Module):
    def __init__(self, blocks: int, classes: int, identity: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, identity)
        self.layer2 = self._stage(16, 32, blocks, identity)
        self.layer3 = self._stage(32, 64, blocks, identity)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, identity: bool) -> nn.Sequential:
        first = Block(channels_in, channels, identity)
        return nn.Sequential(first, *(Block(channels, channels, identity) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.avgpool(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.flatten(1))


def _recipe(batch: int, layers: int, classes: int = 10, identity: bool = False):
    model = ResNet((layers - 2) // 6, classes, identity)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(classes, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return model, step


def resnet20(batch: int):
    return _recipe(batch, 20)


def resnet38(batch: int):
    return _recipe(batch, 38)


def resnet74(batch: int):
    return _recipe(batch, 74)


def resnet74_identity(batch: int):
    return _recipe(batch, 74, identity=True)


def resnet110(batch: int):
    """ResNet-110 for the 100 classes of CIFAR-100."""
    return _recipe(batch, 110, classes=100)
