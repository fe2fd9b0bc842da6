"""YOLOv2 for 416×416 images (Redmon and Farhadi, CVPR 2017; layers of the public darknet configuration).

Inference alone: batch norm is folded into the convolutions, as the accelerators execute it. The loss stands for whoever
reads the result.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

# Channels and kernel of every convolution, or a 2×2 max pool: up to the map that is passed on, and after it.
SHALLOW = (
    (32, 3), "pool", (64, 3), "pool", (128, 3), (64, 1), (128, 3), "pool", (256, 3), (128, 1), (256, 3), "pool",
    (512, 3), (256, 1), (512, 3), (256, 1), (512, 3),
)  # fmt: skip
DEEP = ("pool", (1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3), (1024, 3), (1024, 3))


class YoloV2(nn.Module):
    def __init__(self, outputs: int = 425) -> None:
        super().__init__()
        self.channels = 3
        self.convs = 0
        self.pools = 0
        self.shallow = [self._layer(entry) for entry in SHALLOW]
        passed_on = self.channels
        self.deep = [self._layer(entry) for entry in DEEP]
        deep, self.channels = self.channels, passed_on
        self.passthrough = [self._layer((64, 1))]
        self.reorganise = nn.PixelUnshuffle(2)
        self.channels = 4 * self.channels + deep
        self.head = [self._layer((1024, 3))]
        self.convs += 1
        self.conv23 = nn.Conv2d(self.channels, outputs, 1)

    def _layer(self, entry: str | tuple[int, int]) -> tuple[str, ...]:
        """Adds a layer under its number; returns the names of its modules."""
        if isinstance(entry, str):
            self.pools += 1
            self.add_module(f"pool{self.pools}", nn.MaxPool2d(2))
            return (f"pool{self.pools}",)
        channels, kernel = entry
        self.convs += 1
        self.add_module(f"conv{self.convs}", nn.Conv2d(self.channels, channels, kernel, padding=kernel // 2))
        self.add_module(f"leaky{self.convs}", nn.LeakyReLU(0.1))
        self.channels = channels
        return f"conv{self.convs}", f"leaky{self.convs}"

    def _run(self, x: Tensor, layers: list[tuple[str, ...]]) -> Tensor:
        for names in layers:
            for name in names:
                x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        shallow = self._run(x, self.shallow)
        deep = self._run(shallow, self.deep)
        passed_on = self.reorganise(self._run(shallow, self.passthrough))
        return self.conv23(self._run(torch.cat((passed_on, deep), 1), self.head))


def yolov2(batch: int):
    model = YoloV2()
    images, target = torch.randn(batch, 3, 416, 416), torch.randn(batch, 425, 13, 13)

    @torch.no_grad()
    def infer() -> None:
        functional.mse_loss(model(images), target)

    return model, infer
