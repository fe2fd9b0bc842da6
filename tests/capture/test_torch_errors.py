"""What cannot be captured is refused with the place in the user's program and a cure."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

from torch import nn  # noqa: E402

from jouletrace.capture.torch import capture_recipe  # noqa: E402
from jouletrace.errors import CaptureError, UsageError  # noqa: E402

RECIPE = """\
import torch
from torch import nn

def recipe(batch):
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(batch, 8)

    def step():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        {line}
        loss.backward()
        optimizer.step()

    return model, step
"""
LINE = 12


def refusal(tmp_path: Path, line: str) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(line=line))
    with pytest.raises(CaptureError) as caught:
        capture_recipe(f"{path}:recipe", 4)
    return str(caught.value)


@pytest.mark.parametrize("line", ["print(loss.item())", "loss *= float(loss.detach())", "assert loss > 0"])
def test_values_do_not_exist(tmp_path: Path, line: str) -> None:
    message = refusal(tmp_path, line)
    place = f"{tmp_path}/recipe.py:{LINE}"
    assert message.startswith(f"{place}: aten::_local_scalar_dense reads a value of a tensor, as .item(), float()")
    assert message.endswith("take the value out of the step (a constant, torch.where, a log line outside)")


def test_shapes_that_depend_on_values(tmp_path: Path) -> None:
    message = refusal(tmp_path, "loss = loss + x[x > 0].sum()")
    assert message.startswith(f"{tmp_path}/recipe.py:{LINE}: aten::nonzero has as many results as ")


def test_unknown_ops_are_told_together(tmp_path: Path) -> None:
    weight = "model.weight"
    message = refusal(tmp_path, f"loss = loss + {weight}.cumprod(0).sum() + torch.linalg.svdvals({weight}).sum()")
    place = f"{tmp_path}/recipe.py:{LINE}"
    first, *others = message.splitlines()
    assert first == (
        f"{place}: aten::cumprod in layer '<model>' (forward) has no energy model; did you mean 'prod'?; write it "
        "with supported ops (see docs/capture.md), or add it to the table in jouletrace/capture/aten.py"
    )
    assert any(line.startswith(f"{place}: aten::_linalg_svd in layer") for line in others)


def test_other_failures_keep_their_reason(tmp_path: Path) -> None:
    message = refusal(tmp_path, "loss = loss + model(torch.randn(3, 3)).sum()")
    assert message.startswith(f"{tmp_path}/recipe.py:{LINE}: the step failed with RuntimeError: ")


def test_data_on_another_device_names_the_cure(tmp_path: Path) -> None:
    message = refusal(tmp_path, "loss = loss + model(torch.ones(4, 8, device='cpu')).sum()")
    assert message.startswith(f"{tmp_path}/recipe.py:{LINE}: ")
    assert message.endswith("make data and model inside the recipe, so that they lie on the meta device")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:recipe", "the recipe file 'nowhere.py' does not exist"),
        ("recipe.py", "'recipe.py' names no recipe; write path/to/file.py:function"),
        ("workloads/resnet_cifar.py:resnet47", "no function 'resnet47' in this recipe file; did you mean 'resnet74'?"),
        ("workloads/README.md:recipe", "is not a Python file"),
    ],
)  # fmt: skip
def test_recipes_that_are_not_there(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        capture_recipe(spec, 4)
    assert message in str(caught.value)


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(CaptureError, match="could not be loaded: ModuleNotFoundError: No module named"):
        capture_recipe(f"{path}:recipe", 4)


def test_a_recipe_that_returns_something_else(tmp_path: Path) -> None:
    path = tmp_path / "recipe.py"
    path.write_text("def recipe(batch):\n    return 3\n")
    with pytest.raises(CaptureError, match=r"recipe\.py:1: the recipe 'recipe' has to return \(model, step\)"):
        capture_recipe(f"{path}:recipe", 4)


def test_an_empty_batch() -> None:
    with pytest.raises(UsageError, match=r"a batch has at least one sample \(got 0\)"):
        capture_recipe("workloads/resnet_cifar.py:resnet20", 0)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a device nor a recorder stays switched on, wherever the step fails."""
    for line in ("raise ValueError", "optimizer.step = lambda: 1 / 0", "nn.Linear(8, 4)(3)"):
        refusal(tmp_path, line)
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(line="optimizer.param_groups[0]['lr'] = None"))
    with pytest.raises(CaptureError, match="the step failed with TypeError"):
        capture_recipe(f"{path}:recipe", 4)
    assert torch.ones(2).device.type == "cpu"
    assert nn.Linear(2, 2)(torch.ones(1, 2)).sum().item() is not None
    assert not nn.Linear(2, 2)(torch.ones(1, 2)).grad_fn.metadata
