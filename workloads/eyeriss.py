"""AlexNet as the Eyeriss chip runs it: inference in 16 bits, 227×227 images.

The two-group original (Krizhevsky et al., NIPS 2012): 2nd, 4th and 5th convolution in two groups, biases, overlapping
max pooling. Local response normalisation and dropout are left out: the chip runs convolutions and ReLU. The loss stands
for whoever reads the result.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


def alexnet(batch: int):
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, 4),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3, 2),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(3, 2),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=nn.ReLU(),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=nn.ReLU(),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=nn.ReLU(),
        pool5=nn.MaxPool2d(3, 2),
        flatten=nn.Flatten(),
        fc6=nn.Linear(9216, 4096),
        relu6=nn.ReLU(),
        fc7=nn.Linear(4096, 4096),
        relu7=nn.ReLU(),
        fc8=nn.Linear(4096, 1000),
    )
    model = nn.Sequential(layers).half()
    images, labels = torch.randn(batch, 3, 227, 227, dtype=torch.float16), torch.randint(1000, (batch,))

    @torch.no_grad()
    def infer() -> None:
        functional.cross_entropy(model(images), labels)

    return model, infer
