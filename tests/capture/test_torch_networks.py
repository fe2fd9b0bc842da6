"""Whole networks: MACs, parameters and ops, against closed forms and published figures."""

from collections import Counter
from functools import cache

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

from jouletrace.capture.torch import capture_recipe  # noqa: E402
from jouletrace.trace.model import Gemm, Norm, Pool, Trace, Update  # noqa: E402


@cache
def capture(recipe: str, batch: int) -> Trace:
    return capture_recipe(f"workloads/{recipe}", batch)


def macs(trace: Trace, kind: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for op in trace.ops:
        if op.kind == kind:
            found[op.phase] += op.macs
    return dict(found)


def counts(trace: Trace) -> Counter[tuple[str, str]]:
    return Counter((op.kind, op.phase) for op in trace.ops)


def parameters(trace: Trace) -> int:
    return sum(t.elements for t in trace.tensors if t.role == "param" and t.name not in trace.writer)


def saved_bytes(trace: Trace) -> int:
    return sum(t.size_bytes for t in trace.tensors if t.saved and t.role in ("activation", "mask"))


def test_resnet74_identity() -> None:
    """Closed forms for 6n+2 layers, n = 12: 442,368 + 2,359,296·(6n - 1) MACs per image."""
    trace = capture("resnet_cifar.py:resnet74_identity", 128)
    forward = 128 * (442_368 + 2_359_296 * 71)
    assert forward == 21_497_905_152
    assert macs(trace, "conv") == {
        "forward": forward, "backward_data": forward - 128 * 442_368, "backward_weight": forward,
    }  # fmt: skip
    assert macs(trace, "conv")["backward_data"] == 21_441_282_048
    assert counts(trace) == {
        ("conv", "forward"): 73, ("conv", "backward_data"): 72, ("conv", "backward_weight"): 73,
        ("norm", "forward"): 73, ("norm", "backward_data"): 73,
        ("elementwise", "forward"): 73 + 36,  # relu, residual add
        ("elementwise", "backward_data"): 73 + 36,  # relu, sum of the two gradients of a block's input
        ("copy", "forward"): 2, ("copy", "backward_data"): 2 * 2,  # pad; cut out of the padding, and spread
        ("gemm", "forward"): 1, ("gemm", "backward_data"): 1, ("gemm", "backward_weight"): 1,
        ("reduce", "backward_weight"): 1, ("pool", "forward"): 1, ("pool", "backward_data"): 1,
        ("loss", "forward"): 1, ("loss", "backward_data"): 1, ("update", "update"): 3 * 73 + 2,
    }  # fmt: skip
    assert parameters(trace) == 1_144_666


def test_resnet74_identity_saves_what_autograd_saves() -> None:
    """Per norm its input, per relu its output (also the next convolution's input), the pooled features
    and the log-probabilities. The saved statistics of a norm are buffers and not counted."""
    trace = capture("resnet_cifar.py:resnet74_identity", 128)
    stem_and_first_stage, other = 25, 24
    maps = 128 * 4 * (2 * stem_and_first_stage * 16 * 1024 + 2 * other * (32 * 256 + 64 * 64))
    assert saved_bytes(trace) == maps + 128 * 4 * (64 + 10) == 721_458_176


def test_resnet74_projection() -> None:
    """E2-Train's ResNet-74: 168.22 M MACs per image, 36 blocks of which 3 change shape or begin a stage."""
    trace = capture("resnet_cifar.py:resnet74", 128)
    forward = macs(trace, "conv")["forward"] // 128 + macs(trace, "gemm")["forward"] // 128
    assert forward == 168_215_168
    blocks = Counter[str]()
    for op in trace.ops:
        if op.kind == "conv" and op.phase == "forward" and op.layer.startswith("layer"):
            blocks[".".join(op.layer.split(".")[:2])] += op.macs // 128
    assert blocks["layer1.0"] == blocks["layer3.5"] == 4_718_592
    assert blocks["layer2.0"] == blocks["layer3.0"] == 3_538_944 + 131_072
    assert len(blocks) == 36


def test_updates_count_the_operations_of_their_rule() -> None:
    """Decay 2, momentum 2, step 2."""
    trace = capture("resnet_cifar.py:resnet74", 128)
    rules = {(op.nest.rule, op.nest.flops_per_element) for op in trace.ops if isinstance(op.nest, Update)}
    assert rules == {("sgd_momentum", 6)}
    update = trace.op["layer3.11.conv2.weight:update"]
    assert update.layer == "layer3.11.conv2"
    assert update.reads == (
        "layer3.11.conv2.weight", "layer3.11.conv2:backward_weight.gw", "layer3.11.conv2.weight.momentum_buffer",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "convolutions", "relus", "adds", "expected"),
    [("mobilenetv2", 52, 35, 10, 2_236_682), ("mobilenetv2_eic", 57, 36, 14, 2_296_922)],
)
def test_mobilenet(recipe: str, convolutions: int, relus: int, adds: int, expected: int) -> None:
    """Copies before ReLU6 in place are no ops, and grouped backward MACs equal the forward ones."""
    trace = capture(f"mobilenet_cifar.py:{recipe}", 128)
    found = counts(trace)
    assert (found["conv", "forward"], found["conv", "backward_data"]) == (convolutions, convolutions - 1)
    assert found["copy", "forward"] == 0
    assert found["elementwise", "forward"] == relus + adds
    assert macs(trace, "conv")["forward"] == macs(trace, "conv")["backward_weight"]
    assert parameters(trace) == expected


def test_mobilenet_macs() -> None:
    assert macs(capture("mobilenet_cifar.py:mobilenetv2", 128), "conv") == {
        "forward": 11_259_346_944, "backward_data": 11_146_100_736, "backward_weight": 11_259_346_944,
    }  # fmt: skip
    trace = capture("mobilenet_cifar.py:mobilenetv2_eic", 128)
    total = sum(op.macs for op in trace.ops if op.phase == "forward")
    assert total == 128 * 91_154_944  # 91.15 M, the figure of E2-Train's authors
    identity = [f"features.{n}." for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    inside = sum(op.macs for op in trace.ops if op.phase == "forward" and op.layer.startswith(tuple(identity)))
    assert round(100 * inside / total, 1) == 55.5


def test_lstm() -> None:
    """Products of 32 steps and 2 layers; the first steps have a constant state, which needs no gradient."""
    trace = capture("lstm.py:lstm2", 128)
    step = 128 * 1024
    forward = 32 * (step * (128 + 256) + step * (256 + 256)) + 32 * 128 * 256 * 1000
    assert macs(trace, "gemm") == {
        "forward": forward, "backward_data": forward - 2 * step * 256, "backward_weight": forward,
    }  # fmt: skip
    assert sum(macs(trace, "gemm").values()) == 14_352_908_288
    assert parameters(trace) == 1_306_600
    found = counts(trace)
    assert found["cell", "forward"] == found["cell", "backward_data"] == 64
    assert found["elementwise", "forward"] == found["elementwise", "backward_data"] == 0
    assert found["elementwise", "backward_weight"] == 8 * 31  # eight parameters, used 32 times each


def test_vit() -> None:
    trace = capture("transformer.py:vit_tiny6", 128)
    products = macs(trace, "gemm")
    assert products["forward"] == 23_329_259_520 == 128 * 182_259_840
    assert products["backward_data"] + products["backward_weight"] == 46_658_519_040
    assert parameters(trace) == 2_693_578
    attention = [op for op in trace.ops if isinstance(op.nest, Gemm) and op.nest.B == 128 * 3]
    assert Counter(op.phase for op in attention) == {"forward": 12, "backward_data": 24}
    assert {op.nest.function for op in trace.ops if isinstance(op.nest, Norm)} == {"layer"}


def test_gpt_is_causal_by_a_constant_mask() -> None:
    trace = capture("transformer.py:gpt_char", 8)
    masks = [t for t in trace.tensors if t.role == "buffer" and t.shape == (256, 256)]
    assert len(masks) == 6
    assert all(t.name not in trace.writer for t in masks)
    assert parameters(trace) == 65 * 384 * 2 + 256 * 384 + 6 * (12 * 384**2 + 13 * 384) + 2 * 384


def test_eftrain_networks() -> None:
    """The layer tables of EF-Train: 2·(3·Σ M N R C K² - first layer) operations per image."""
    alexnet = capture("eftrain.py:alexnet", 4)
    first = 96 * 3 * 55 * 55 * 121
    convolutions = first + 256 * 96 * 27 * 27 * 25 + (384 * 256 + 384 * 384 + 256 * 384) * 13 * 13 * 9
    assert macs(alexnet, "conv") == {
        "forward": 4 * convolutions, "backward_data": 4 * (convolutions - first),
        "backward_weight": 4 * convolutions,
    }  # fmt: skip
    assert [op.name for op in alexnet.ops if op.kind == "conv" and op.phase == "forward"] == [
        f"conv{i}:forward" for i in range(1, 6)
    ]
    assert macs(alexnet, "gemm")["forward"] == 4 * (9216 * 4096 + 4096 * 4096 + 4096 * 1000)
    cnn1x = capture("eftrain.py:cnn1x", 128)
    assert round(2 * sum(macs(cnn1x, "conv").values()) / 128 / 1e6, 2) == 58.39
    assert {op.nest.rule for op in cnn1x.ops if isinstance(op.nest, Update)} == {"sgd"}
    lenet = capture("eftrain.py:lenet10", 128)
    pools = [op.layer for op in lenet.ops if isinstance(op.nest, Pool) and op.phase == "forward"]
    assert pools == ["pool1", "pool2", "pool3"]


def test_resnet18_and_vgg() -> None:
    """Published sizes: 11,689,512 and 138,357,544 parameters; 1.81 and 15.47 GMACs per image."""
    resnet, vgg = capture("resnet_imagenet.py:resnet18", 1), capture("eftrain.py:vgg16", 16)
    assert (parameters(resnet), parameters(vgg)) == (11_689_512, 138_357_544)
    assert sum(op.macs for op in resnet.ops if op.phase == "forward") == 1_814_073_344
    assert sum(op.macs for op in vgg.ops if op.phase == "forward") == 16 * 15_470_264_320
    assert not any(isinstance(op.nest, Norm) for op in vgg.ops)


@pytest.mark.parametrize("recipe", ["resnet_cifar.py:resnet20", "transformer.py:vit_tiny6", "lstm.py:lstm2"])
def test_every_backward_op_stands_in_the_layer_of_its_forward_op(recipe: str) -> None:
    """By weight identity, which no part of the attribution uses; and PyTorch's own tracker agrees."""
    trace = capture(recipe, 128)
    assert trace.header.warnings == ()
    users = [(op, t) for op in trace.ops for t in op.reads if trace.tensor[t].role == "param"]
    forward = {weight: op.layer for op, weight in users if op.phase == "forward"}
    backward = [(op.layer, weight) for op, weight in users if op.phase == "backward_data"]
    assert len(backward) > 20
    assert all(layer == forward[weight] for layer, weight in backward)
