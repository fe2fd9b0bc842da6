"""What capture records of convolutions, against a loop over every index and against PyTorch's counter."""

import random
from itertools import product

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from jouletrace.capture.torch import capture_step  # noqa: E402
from jouletrace.errors import CaptureError  # noqa: E402
from jouletrace.trace.model import Conv, Trace  # noqa: E402

CASES = 40


def random_network(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """One convolution behind a first one, so that it has all three roles, and its input shape."""
    rng = random.Random(seed)
    dimensions, groups = rng.choice([1, 2, 2, 2]), rng.choice([1, 1, 2, 4])
    kernel, stride, dilation = ([rng.randint(1, 3) for _ in range(dimensions)] for _ in range(3))
    padding = [rng.randint(0, 2) for _ in range(dimensions)]
    size = [rng.randint(7, 11) for _ in range(dimensions)]
    kind = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dimensions - 1]
    layer = transposed if rng.random() < 0.25 else kind
    shape = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    tested = layer(4, 4 * rng.randint(1, 2), kernel, bias=rng.random() < 0.5, **shape)
    return nn.Sequential(kind(3, 4, 1), tested), (3, *size)


def train(network: nn.Module, shape: tuple[int, ...]):
    def recipe(batch: int):
        optimizer = torch.optim.SGD(network.to("meta").parameters(), lr=0.1)
        x = torch.randn(batch, *shape)

        def step() -> None:
            optimizer.zero_grad()
            functional.mse_loss(y := network(x), torch.zeros_like(y)).backward()
            optimizer.step()

        return network, step

    return recipe


def visit(layer: nn.Module, shape: tuple[int, ...], out: tuple[int, ...], batch: int) -> tuple[int, int]:
    """(all, in bounds) products of a layer by its definition, from its attributes alone."""
    small, large = (shape, out) if layer.transposed else (out, shape)
    axes = range(len(layer.kernel_size))
    every = inside = 0
    for position in product(*(range(n) for n in small[-len(layer.kernel_size) :])):
        for tap in product(*(range(n) for n in layer.kernel_size)):
            at = [position[a] * layer.stride[a] + tap[a] * layer.dilation[a] - layer.padding[a] for a in axes]
            every += 1
            inside += all(0 <= at[a] < large[a - len(at)] for a in axes)
    pairs = batch * layer.in_channels * layer.out_channels // layer.groups
    return every * pairs, inside * pairs


def ops_of(trace: Trace, layer: str) -> dict[str, Conv]:
    return {op.phase: op.nest for op in trace.ops if op.layer == layer and isinstance(op.nest, Conv)}


@pytest.mark.parametrize("seed", range(CASES))
def test_recorded_nests_equal_a_visit_of_every_index(seed: int) -> None:
    network, shape = random_network(seed)
    trace = capture_step(train(network, shape), 2, "conv")
    out = network.to("meta")(torch.randn(2, *shape, device="meta")).shape
    recorded = ops_of(trace, "1")
    assert set(recorded) == {"forward", "backward_data", "backward_weight"}
    for nest in recorded.values():
        assert (nest.macs, nest.macs_in_bounds) == visit(network[1], shape, tuple(out), 2)
    bias = [op for op in trace.ops if op.layer == "1" and op.kind == "reduce"]
    assert [(op.phase, op.nest.outputs) for op in bias] == (
        [("backward_weight", network[1].out_channels)] if network[1].bias is not None else []
    )


def test_roles_of_a_transposed_convolution_are_swapped() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 3, 2, 1))
    nests = ops_of(capture_step(train(network, (3, 5, 5)), 1), "1")
    assert {phase: nest.role for phase, nest in nests.items()} == {
        "forward": "backward_data", "backward_data": "forward", "backward_weight": "backward_weight",
    }  # fmt: skip


def test_forward_products_equal_the_flop_counter() -> None:
    """Its forward count is right (two operations per product); its grouped backward is not."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, groups=8), nn.Flatten(),
        nn.Linear(8 * 7 * 7, 16), nn.Linear(16, 4),
    )  # fmt: skip
    trace = capture_step(train(network, (3, 16, 16)), 4)
    with FlopCounterMode(display=False) as counter:
        y = network(torch.randn(4, 3, 16, 16, device="meta"))
    forward = sum(op.macs for op in trace.ops if op.phase == "forward")
    assert 2 * forward == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    backward = sum(op.macs for op in trace.ops if op.phase.startswith("backward"))
    assert 2 * backward < counter.get_total_flops()  # ours is 3 products less the first layer's data


def test_three_dimensional_convolutions_are_refused() -> None:
    with pytest.raises(CaptureError, match="3 dimensions; write it as 2-D convolutions"):
        capture_step(train(nn.Conv3d(3, 4, 1), (3, 4, 4, 4)), 1)
