"""The built-in networks against closed forms, published sizes and independent captures.

The figures of ResNet-74, MobileNetV2, the LSTM and the transformer were taken from captures of the same
networks by two other ways (a recorded PyTorch step, an ONNX export); the closed forms of ResNet-(6n+2) are
arithmetic on its table of layers.
"""

from collections import Counter

import pytest

from jouletrace.capture.zoo import ZOO, zoo, zoo_forward
from jouletrace.errors import UsageError
from jouletrace.trace.check import check
from jouletrace.trace.model import Conv, Trace


def macs(step: Trace, kind: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for op in step.ops:
        if op.kind == kind:
            total[op.phase] += op.macs
    return total


def counts(step: Trace) -> Counter[tuple[str, str]]:
    return Counter((op.kind, op.phase) for op in step.ops)


def parameters(step: Trace) -> int:
    return sum(t.elements for t in step.tensors if t.role == "param" and t.name not in step.writer)


def saved_bytes(step: Trace) -> int:
    return sum(t.size_bytes for t in step.tensors if t.saved and t.role in ("activation", "mask"))


@pytest.mark.parametrize("name", ZOO)
def test_every_network_is_a_valid_step(name: str) -> None:
    step = zoo(name, batch=2)
    check(step)
    assert step.header.name == f"{name}-b2"
    assert counts(step)["update", "update"] == len({t.name for t in step.tensors if t.role == "param"}) / 2


@pytest.mark.parametrize("n", [1, 2, 3, 6, 12, 18])
def test_resnet_6n_plus_2_in_closed_form(n: int) -> None:
    step = zoo(f"resnet{6 * n + 2}-identity-cifar10", batch=4)
    number, conv = counts(step), macs(step, "conv")
    assert number["conv", "forward"] == number["conv", "backward_weight"] == 6 * n + 1
    assert number["conv", "backward_data"] == 6 * n  # none for the stem
    assert number["norm", "forward"] == number["norm", "backward_data"] == 6 * n + 1
    assert number["update", "update"] == 3 * (6 * n + 1) + 2
    # ReLU after every norm, and one sum per block; backward: the same ReLUs, and one accumulation per block.
    assert number["elementwise", "forward"] == number["elementwise", "backward_data"] == 6 * n + 1 + 3 * n
    per_image = 442_368 + 2_359_296 * (6 * n - 1)
    assert conv["forward"] == conv["backward_weight"] == 4 * per_image
    assert conv["backward_data"] == 4 * (per_image - 442_368)


def test_resnet74_identity() -> None:
    step = zoo("resnet74-identity-cifar10", batch=128)
    assert macs(step, "conv") == {
        "forward": 21_497_905_152,
        "backward_data": 21_441_282_048,
        "backward_weight": 21_497_905_152,
    }
    assert [counts(step)["conv", p] for p in ("forward", "backward_data", "backward_weight")] == [73, 72, 73]
    assert parameters(step) == 1_144_666
    # 73 convolution inputs and 73 norm inputs: 2 × 704 512 values per image of 4 bytes, then the classifier's.
    assert saved_bytes(step) == 128 * 4 * (2 * 704_512 + 64 + 10)


@pytest.mark.parametrize(("depth", "mega_macs"), [(20, 40.81), (38, 83.28), (74, 168.22), (110, 253.15)])
def test_projection_resnets_have_the_sizes_of_e2train(depth: int, mega_macs: float) -> None:
    """Wang et al., NeurIPS 2019: forward MACs per image with 1×1 convolutions on the shortcuts."""
    forward = zoo_forward(f"resnet{depth}-cifar10", batch=1)
    assert round(forward.macs / 1e6, 2) == mega_macs


def test_identity_and_classes_change_what_they_should() -> None:
    projected, plain = zoo("resnet20-cifar10", 1), zoo("resnet20-identity-cifar10", 1)
    # Two shortcuts: 16×32 and 32×64 weights, at 16×16 and 8×8 pixels.
    extra = 512 * 256 + 2048 * 64
    assert macs(projected, "conv")["forward"] - macs(plain, "conv")["forward"] == extra
    assert parameters(projected) - parameters(plain) == 512 + 2048 + 2 * 32 + 2 * 64
    assert parameters(zoo("resnet20-cifar100", 1)) - parameters(projected) == 90 * 65


def test_mobilenetv2() -> None:
    step = zoo("mobilenetv2-cifar10", batch=128)
    conv = macs(step, "conv")
    assert conv["forward"] == 128 * 87_963_648
    assert conv["backward_data"] == 11_146_100_736
    assert parameters(step) == 2_236_682
    depthwise = [op.nest for op in step.ops if isinstance(op.nest, Conv) and op.nest.G > 1]
    assert len(depthwise) == 3 * 17
    assert all((nest.K, nest.C) == (1, 1) for nest in depthwise)
    assert saved_bytes(step) == 2_438_599_680


def test_mobilenetv2_eic() -> None:
    forward = zoo_forward("mobilenetv2-eic-cifar10", batch=1)
    assert forward.macs == 91_154_944  # 91.15 M in FracTrain's variant
    sizes = {t.name: t.elements for t in forward.tensors if t.role == "param"}
    norms = sum(n for name, n in sizes.items() if len(forward.tensor[name].shape) == 1)
    assert sum(sizes.values()) == 2_296_922
    assert round((sum(sizes.values()) - norms) / 1e6, 2) == 2.26


def test_lstm2() -> None:
    step = zoo("lstm2", batch=128)
    assert parameters(step) == 1_306_600
    assert sum(macs(step, "gemm").values()) == 14_352_908_288
    number = counts(step)
    assert number["cell", "forward"] == number["cell", "backward_data"] == 2 * 32
    assert number["gemm", "forward"] == 2 * 2 * 32 + 1
    # The first state of a layer is a constant: its product has no gradient of data.
    assert number["gemm", "backward_data"] == number["gemm", "forward"] - 2
    # 8 parameters are shared by 32 steps.
    assert number["elementwise", "backward_weight"] == 8 * 31


def test_vit_tiny6() -> None:
    step = zoo("vit-tiny6-cifar10", batch=128)
    gemm = macs(step, "gemm")
    assert parameters(step) == 2_693_578
    assert gemm["forward"] == 128 * 182_259_840 == 23_329_259_520
    assert gemm["backward_data"] + gemm["backward_weight"] == 46_658_519_040
    assert macs(step, "conv") == {"forward": 128 * 589_824, "backward_weight": 128 * 589_824}


def test_gpt_char() -> None:
    forward = zoo_forward("gpt-char", batch=1)
    T, width = 256, 384
    linear = T * 12 * width**2
    attention = 2 * T * T * width
    assert forward.macs == 6 * (linear + attention) + T * width * 65


@pytest.mark.parametrize(
    ("name", "parameters_", "forward_macs"),
    [
        ("vgg16-imagenet", 138_357_544, 15_470_264_320),
        ("vgg16bn-imagenet", 138_365_992, 15_470_264_320),
        ("resnet18-imagenet", 11_689_512, 1_814_073_344),
        ("alexnet-eftrain", 62_376_968, 1_135_256_096),
    ],
)
def test_imagenet_networks_have_their_known_sizes(name: str, parameters_: int, forward_macs: int) -> None:
    forward = zoo_forward(name, batch=1)
    assert sum(t.elements for t in forward.tensors if t.role == "param") == parameters_
    assert forward.macs == forward_macs


def test_eftrain_networks_follow_its_layer_tables() -> None:
    """M N R C K of EF-Train's tables: output and input channels, rows, columns, kernel."""

    def layers(name: str) -> list[tuple[int, ...]]:
        nests = [op.nest for op in zoo_forward(name, 1).ops]
        return [(n.K, n.C, n.OY, n.OX, n.R) for n in nests if isinstance(n, Conv)]

    assert layers("cnn1x-cifar10") == [
        (16, 3, 32, 32, 3), (16, 16, 32, 32, 3), (32, 16, 16, 16, 3),
        (32, 32, 16, 16, 3), (64, 32, 8, 8, 3), (64, 64, 8, 8, 3),
    ]  # fmt: skip
    assert layers("lenet10-cifar10") == [(32, 3, 32, 32, 3), (32, 32, 16, 16, 3), (64, 32, 8, 8, 3)]
    assert layers("alexnet-eftrain") == [
        (96, 3, 55, 55, 11), (256, 96, 27, 27, 5), (384, 256, 13, 13, 3),
        (384, 384, 13, 13, 3), (256, 384, 13, 13, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["resnet20-cifar10", "lstm2", "vit-tiny6-cifar10"])
def test_work_grows_with_the_batch_and_parameters_do_not(name: str) -> None:
    two, eight = zoo(name, 2), zoo(name, 8)
    assert 4 * two.macs == eight.macs
    assert counts(two) == counts(eight)
    assert parameters(two) == parameters(eight)
    assert 4 * saved_bytes(two) == saved_bytes(eight)


def test_unknown_names_and_batches_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'mobilnetv2-cifar10'; did you mean 'mobilenetv2-cifar10'\?"):
        zoo("mobilnetv2-cifar10")
    for name in ("resnet21-cifar10", "resnet2-cifar10", "resnet20-cifar", "resnet074-cifar10x"):
        with pytest.raises(UsageError, match="No built-in network"):
            zoo(name)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        zoo("resnet20-cifar10", 0)
