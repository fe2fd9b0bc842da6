"""E2-Train in small: a ResNet that really drops batches, skips blocks and predicts signs of gradients.

Three techniques of E2-Train (Wang et al., NeurIPS 2019, arXiv 1910.13349), written for reading, not for speed:

* SMD, stochastic mini-batch dropping: an iteration is left out with probability ``drop``.
* SLU, selective layer update: a gate decides for every sample whether a residual block runs. Samples that skip it are
  not computed: the block gets the rows of the others.
* PSG, predictive sign gradient: the sign of a weight gradient comes from a product of most significant bits where that
  is large enough, otherwise from the full product. (Here both products are computed; on hardware the second is not.)

The data is made on the spot: ten random patterns under noise. ``python workloads/e2train.py --iterations 300 --out
e2train.decisions.jsonl.gz`` trains for some seconds and writes what was decided. ``resnet8`` is the recipe of the plain
step; its residual blocks have the names that stand in the log.
"""

import argparse
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

CLASSES, SIZE = 10, 16


# -- PSG


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers of so many bits, and the step between them: symmetric, the largest value on the last code."""
    step = x.abs().amax().clamp(min=1e-30) / (2 ** (bits - 1) - 1)
    return (x / step).round(), step


def most_significant(codes: Tensor, bits: int, kept: int) -> Tensor:
    """Codes rounded to their first ``kept`` bits."""
    unit = 2 ** (bits - kept)
    return (codes / unit).round() * unit


class PredictiveSign(torch.autograd.Function):
    """A convolution with integers; backward gives signs of weight gradients and tells how many were predicted."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, conv: "PSGConv2d") -> Tensor:
        weight_bits, activation_bits, _ = conv.jouletrace_bits
        x_codes, x_step = quantise(x, activation_bits)
        w_codes, w_step = quantise(weight, weight_bits)
        ctx.save_for_backward(x_codes, w_codes * w_step)
        ctx.conv = conv
        return functional.conv2d(x_codes, w_codes, None, conv.stride, conv.padding) * (x_step * w_step)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        conv, (x_codes, weight) = ctx.conv, ctx.saved_tensors
        _, activation_bits, gradient_bits = conv.jouletrace_bits
        g_codes, g_step = quantise(gradient, gradient_bits)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = conv2d_input(x_codes.shape, weight, g_codes * g_step, conv.stride, conv.padding)
        x_first = most_significant(x_codes, activation_bits, min(4, activation_bits))
        g_first = most_significant(g_codes, gradient_bits, min(10, gradient_bits))
        predicted = conv2d_weight(x_first, weight.shape, g_first, conv.stride, conv.padding)
        full = conv2d_weight(x_codes, weight.shape, g_codes, conv.stride, conv.padding)
        sure = predicted.abs() >= conv.threshold * predicted.abs().amax()
        conv.jouletrace_predictor = (sure.sum(), sure.numel())
        return x_gradient, torch.where(sure, predicted, full).sign(), None


class PSGConv2d(nn.Conv2d):
    """8 bits forward, 16 bits backward, a predictor of 4 and 10 bits, and τ = 0.05 of the largest prediction."""

    threshold = 0.05

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.jouletrace_bits = (8, 8, 16)  # of weights, activations and gradients: read here and by the recorder

    def forward(self, x: Tensor) -> Tensor:
        return PredictiveSign.apply(x, self.weight, self)


def cyclic_bits(iteration: int, iterations: int, cycles: int = 8, low: int = 3, high: int = 8) -> int:
    """The bits of CPT, cyclic precision training (Fu et al., ICLR 2021): half a cosine up from ``low``, then back."""
    period = max(1, iterations // cycles)
    return round(low + (high - low) / 2 * (1 + math.cos(math.pi * (iteration % period) / period + math.pi)))


# -- SLU


class Gate(nn.Module):
    """Which samples run a block: averages, ten numbers per sample, one LSTM for all gates, a coin with that bias."""

    def __init__(self, channels: int, lstm: nn.LSTMCell, last: nn.Linear) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 10, 1)
        self.shared = (lstm, last)  # a tuple, so that only the network owns their parameters

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The mask (0 or 1 forward, its probability backward) and the next state of the LSTM."""
        lstm, last = self.shared
        state = lstm(self.reduce(functional.adaptive_avg_pool2d(x, 1)).flatten(1), state)
        chance = last(state[0]).sigmoid().flatten()
        return torch.bernoulli(chance.detach()) + chance - chance.detach(), state


class Block(nn.Module):
    """A residual block; its shortcut always runs."""

    def __init__(self, channels_in: int, channels: int, conv: type[nn.Conv2d]) -> None:
        super().__init__()
        stride = channels // channels_in
        self.conv1 = conv(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride == 2:
            self.downsample = nn.Sequential(
                conv(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.jouletrace_samples = 0  # how many samples ran the block: read by the recorder after each call

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        shortcut = self.downsample(x)
        if mask is None:
            self.jouletrace_samples = len(x)
            return functional.relu(self.branch(x) + shortcut)
        rows = mask.detach().round().nonzero().flatten()
        self.jouletrace_samples = len(rows)
        if len(rows):
            y = self.branch(x[rows]) * mask[rows].view(-1, 1, 1, 1)
            shortcut = shortcut.index_add(0, rows, y)
        return functional.relu(shortcut)


class ResNet(nn.Module):
    """6n+2 layers for small images. With gates every block but the first may be skipped, as in E2-Train's code."""

    def __init__(self, blocks: int, conv: type[nn.Conv2d] = nn.Conv2d, gates: bool = False) -> None:
        super().__init__()
        self.conv1 = conv(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (before, channels) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
            first = Block(before, channels, conv)
            rest = (Block(channels, channels, conv) for _ in range(blocks - 1))
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, CLASSES)
        self.gates = nn.ModuleList()
        if gates:
            self.lstm, self.last = nn.LSTMCell(10, 10), nn.Linear(10, 1)
            nn.init.constant_(self.last.bias, 2.0)  # at first nearly every block runs
            widths = [block.conv1.in_channels for block in self.blocks()[1:]]
            self.gates.extend(Gate(width, self.lstm, self.last) for width in widths)

    def blocks(self) -> list[Block]:
        return [*self.layer1, *self.layer2, *self.layer3]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.blocks()
        x = first(functional.relu(self.bn1(self.conv1(x))))
        self.masks, state = [], None
        if self.gates:
            for block, gate in zip(others, self.gates, strict=True):
                mask, state = gate(x, state)
                self.masks.append(mask)
                x = block(x, mask)
        else:
            for block in others:
                x = block(x)
        return self.fc(self.avgpool(x).flatten(1))


# -- training


class Patterns:
    """Images of ten fixed random patterns under noise."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        coarse = torch.randn(CLASSES, 3, SIZE // 4, SIZE // 4, generator=self.random)
        self.patterns = functional.interpolate(coarse, scale_factor=4.0)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (size,), generator=self.random)
        return self.patterns[labels] + 1.5 * torch.randn(size, 3, SIZE, SIZE, generator=self.random), labels


def train(
    model: ResNet,
    data: Patterns,
    iterations: int,
    batch: int = 32,
    drop: float = 0.5,
    executed_share: float = 0.6,
    cyclic: bool = False,
) -> Iterator[float | None]:
    """Trains, and yields after every nominal iteration: the loss, or None if its batch was dropped.

    ``executed_share`` is the set-point of the gates' regulariser: it raises the loss by every sample that runs a gated
    block while more than this share of them does, and lowers it while fewer do.
    """
    signed = [conv.weight for conv in model.modules() if isinstance(conv, PSGConv2d)]
    others = [p for p in model.parameters() if all(p is not weight for weight in signed)]
    groups = [{"params": others, "lr": 0.03}]
    if signed:
        groups.append({"params": signed, "lr": 0.001})  # a sign has no size: the learning rate is the step
    optimizer = torch.optim.SGD(groups, lr=0.03, momentum=0.9, weight_decay=1e-4)
    model.train()
    for iteration in range(iterations):
        if torch.rand(()) < drop:
            yield None
            continue
        if cyclic:
            bits = cyclic_bits(iteration, iterations)
            for conv in (m for m in model.modules() if isinstance(m, PSGConv2d)):
                conv.jouletrace_bits = (bits, bits, 16)
        images, labels = data.batch(batch)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        if model.masks:
            masks = torch.stack(model.masks)
            towards = 1 if masks.detach().mean() > executed_share else -1
            (loss + 0.2 * towards * masks.mean()).backward()
        else:
            loss.backward()
        optimizer.step()
        yield loss.item()


@torch.no_grad()
def accuracy(model: ResNet, data: Patterns, images: int = 512) -> float:
    model.eval()
    x, labels = data.batch(images)
    return (model(x).argmax(1) == labels).float().mean().item()


def resnet8(batch: int):
    """The plain step, with nothing skipped, dropped or predicted."""
    model = ResNet(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, SIZE, SIZE), torch.randint(CLASSES, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return model, step


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a ResNet-8 with SMD, SLU and PSG and logs what was decided.")
    parser.add_argument("--iterations", type=int, default=300, help="nominal iterations (default 300)")
    parser.add_argument("--batch", type=int, default=32, help="samples in a batch (default 32)")
    parser.add_argument("--drop", type=float, default=0.5, help="probability that a batch is dropped (default 0.5)")
    parser.add_argument("--executed", type=float, default=0.6, help="set-point: share of gated blocks (default 0.6)")
    parser.add_argument("--cyclic", action="store_true", help="cycle the bits of weights and activations (3 to 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="e2train.decisions.jsonl.gz", help="the log")
    options = parser.parse_args()

    from jouletrace.capture.recorder import record
    from jouletrace.trace.decisions import read_decisions

    torch.set_num_threads(1)  # so small a network only waits for further threads
    torch.manual_seed(options.seed)
    model, data = ResNet(1, PSGConv2d, gates=True), Patterns(options.seed)
    losses = []
    with record(model, options.out, options.batch, density_every=50) as recorder:
        for loss in train(
            model, data, options.iterations, options.batch, options.drop, options.executed, options.cyclic
        ):
            recorder.step()
            losses += [loss] if loss is not None else []
    log = read_decisions(options.out)
    first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
    print(f"loss       {first:.2f} in the first ten iterations, {last:.2f} in the last")
    print(f"accuracy   {accuracy(model, data):.1%}")
    print(f"executed   {log.executed_count} of {log.iterations} iterations")
    for unit, mean in zip(log.units, log.mean_samples(), strict=True):
        print(f"samples    {float(mean):.1f} of {log.batch} ran {unit}")
    print(f"predictor  {float(log.predictor_share()):.1%} of weight gradients")


if __name__ == "__main__":
    main()
