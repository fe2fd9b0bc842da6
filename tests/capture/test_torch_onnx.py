"""PyTorch's TorchScript exporter, in training mode, and the import of what it writes."""

import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")
pytest.importorskip("onnx", reason="the import of ONNX files needs the onnx package")

from jouletrace.capture.onnx import capture_onnx  # noqa: E402
from jouletrace.capture.recipe import load_recipe  # noqa: E402
from jouletrace.capture.zoo import zoo  # noqa: E402
from jouletrace.trace.model import Trace  # noqa: E402

from .test_torch_agrees import RECIPES, WORKLOADS, facts  # noqa: E402

BATCH = 4


def exported(folder: Path, name: str, data: torch.Tensor) -> Trace:
    model, _ = load_recipe(f"{WORKLOADS}/{RECIPES[name]}")(BATCH)
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces the end of this exporter
        torch.onnx.export(
            model, (data,), path, dynamo=False, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False
        )
    return capture_onnx(path, batch=BATCH)


@pytest.mark.parametrize("name", ["resnet20-cifar10", "resnet74-identity-cifar10", "mobilenetv2-cifar10"])
def test_exported_network_is_the_built_in_one(tmp_path: Path, name: str) -> None:
    step, built = exported(tmp_path, name, torch.zeros(BATCH, 3, 32, 32)), zoo(name, BATCH)
    assert facts(step) == facts(built)
    assert set(step.op) == set(built.op)


def test_exported_lstm(tmp_path: Path) -> None:
    """The exporter joins the weights of a layer; they are as large as their parts."""
    step = exported(tmp_path, "lstm2", torch.zeros(32, BATCH, dtype=torch.int64))
    ours, theirs = facts(step), facts(zoo("lstm2", BATCH))
    for facet in ("ops", "macs", "saved bytes"):
        assert ours[facet] == theirs[facet]
    assert sorted(ours["parameters"].values()) == sorted(theirs["parameters"].values())  # type: ignore[attr-defined]


def test_exported_transformer(tmp_path: Path) -> None:
    """Products of heads read them where they lie, without the copies that PyTorch makes; the rest agrees."""
    step, built = exported(tmp_path, "vit-tiny6-cifar10", torch.zeros(BATCH, 3, 32, 32)), zoo("vit-tiny6-cifar10", BATCH)
    ours, theirs = facts(step), facts(built)
    assert ours["macs"] == theirs["macs"]
    assert ours["parameters"] == theirs["parameters"]
    differing = {key[0] for key in ours["ops"] | theirs["ops"] if ours["ops"][key] != theirs["ops"][key]}  # type: ignore[index,operator]
    assert differing == {"copy"}


def test_export_for_inference_is_reported(tmp_path: Path) -> None:
    model, _ = load_recipe(f"{WORKLOADS}/{RECIPES['resnet20-cifar10']}")(BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(BATCH, 3, 32, 32),), tmp_path / "eval.onnx", dynamo=False)
    step = capture_onnx(tmp_path / "eval.onnx", batch=BATCH)
    assert not any(op.kind == "norm" for op in step.ops)
    assert "folded them into the convolutions" in step.header.warnings[0]
