"""Two ways to the same step: the built-in networks, and a recorded PyTorch step of their recipes."""

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="capture tests need PyTorch")

from jouletrace.capture.torch import capture_recipe
from jouletrace.capture.zoo import ZOO, zoo
from jouletrace.trace.model import Trace

WORKLOADS = Path(__file__).parents[2] / "workloads"

RECIPES = {
    "resnet20-cifar10": "resnet_cifar.py:resnet20",
    "resnet38-cifar10": "resnet_cifar.py:resnet38",
    "resnet74-cifar10": "resnet_cifar.py:resnet74",
    "resnet74-identity-cifar10": "resnet_cifar.py:resnet74_identity",
    "resnet110-cifar100": "resnet_cifar.py:resnet110",
    "resnet18-imagenet": "resnet_imagenet.py:resnet18",
    "mobilenetv2-cifar10": "mobilenet_cifar.py:mobilenetv2",
    "mobilenetv2-eic-cifar10": "mobilenet_cifar.py:mobilenetv2_eic",
    "vgg16-imagenet": "eftrain.py:vgg16",
    "vgg16bn-imagenet": "eftrain.py:vgg16bn",
    "alexnet-eftrain": "eftrain.py:alexnet",
    "cnn1x-cifar10": "eftrain.py:cnn1x",
    "lenet10-cifar10": "eftrain.py:lenet10",
    "lstm2": "lstm.py:lstm2",
    "vit-tiny6-cifar10": "transformer.py:vit_tiny6",
    "gpt-char": "transformer.py:gpt_char",
}


def facts(step: Trace) -> dict[str, object]:
    """What all ways of capture have to agree on, exactly."""
    macs: Counter[tuple[str, str, str]] = Counter()
    for op in step.ops:
        macs[op.kind, getattr(op.nest, "role", ""), op.phase] += op.macs
    parameters = [t for t in step.tensors if t.role == "param" and t.name not in step.writer]
    return {
        "ops": Counter((op.kind, op.phase) for op in step.ops),
        "macs": macs,
        "parameters": {t.name: t.size_bytes for t in parameters},
        "saved bytes": sum(t.size_bytes for t in step.tensors if t.saved and t.role in ("activation", "mask")),
        "updates": Counter(op.nest for op in step.ops if op.kind == "update"),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_zoo_and_recorded_step_agree(name: str) -> None:
    built, recorded = zoo(name, batch=4), capture_recipe(f"{WORKLOADS}/{RECIPES[name]}", batch=4)
    assert facts(built) == facts(recorded)
    assert Counter(op.nest for op in built.ops) == Counter(op.nest for op in recorded.ops)


@pytest.mark.parametrize("name", ["resnet20-cifar10", "mobilenetv2-cifar10", "vgg16bn-imagenet"])
def test_convolutional_networks_agree_op_by_op(name: str) -> None:
    built, recorded = zoo(name, batch=4), capture_recipe(f"{WORKLOADS}/{RECIPES[name]}", batch=4)
    assert set(built.op) == set(recorded.op)
    for op in built.ops:
        other = recorded.op[op.name]
        assert (op.nest, op.layer, op.reads, op.writes) == (other.nest, other.layer, other.reads, other.writes)

    def plain(step: Trace) -> dict[str, tuple[object, ...]]:
        """Shapes differ where a gradient is a flattened view; sizes do not."""
        return {t.name: (t.elements, t.bits, t.format, t.role, t.saved) for t in step.tensors}

    assert plain(built) == plain(recorded)


def test_every_recipe_has_its_network() -> None:
    """ResNets for CIFAR have recipes for some of their shortcuts and class counts only."""
    assert set(RECIPES) <= set(ZOO)
    assert all(name.startswith("resnet") for name in set(ZOO) - set(RECIPES))
