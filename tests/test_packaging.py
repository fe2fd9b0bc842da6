"""What a package index and a fresh machine need; .ci/run builds the wheel and runs it elsewhere."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jouletrace
from jouletrace.resources import KINDS, folder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def test_version_stands_in_one_place() -> None:
    stated = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{jouletrace.__version__}"' in stated.read_text()
    assert f"## {jouletrace.__version__}, model version {jouletrace.MODEL_VERSION}" in (ROOT / "CHANGES.md").read_text()


def test_wheel_takes_every_data_folder_and_one_package() -> None:
    assert WHEEL["packages"] == ["simulator/jouletrace"]
    assert WHEEL["force-include"] == {kind: f"jouletrace/_data/{kind}" for kind in KINDS}
    assert "force-include" not in PROJECT["tool"]["hatch"]["build"], "an sdist could not become a wheel"


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkout_uses_its_own_data_and_not_a_stale_copy(kind: str) -> None:
    assert folder(kind) == ROOT / kind
    assert not (ROOT / kind / "__init__.py").exists()


def test_command_exists() -> None:
    module, _, function = PROJECT["project"]["scripts"]["jouletrace"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert (ROOT / "simulator/jouletrace/py.typed").exists()


def test_every_dependency_is_used_and_every_import_is_a_dependency() -> None:
    named = {re.split(r"[<>=\[]", d)[0] for d in PROJECT["project"]["dependencies"]}
    optional = {re.split(r"[<>=\[]", d)[0] for extra in PROJECT["project"]["optional-dependencies"].values() for d in extra}
    imported: set[str] = set()
    for path in (ROOT / "simulator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("import_module", "_module"):
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    imported.add(name.value.partition(".")[0])
    # pandas serves result.frame() where it is installed; google.protobuf comes with onnx
    foreign = imported - sys.stdlib_module_names - {"jouletrace", "pandas", "google"}
    assert foreign - optional == {{"pyyaml": "yaml"}.get(name, name) for name in named}
    assert foreign & optional == optional


def test_no_address_of_a_package_index_anywhere() -> None:
    for name in ("pyproject.toml", "Makefile", ".ci/run", ".gitignore"):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|index-url|find-links", text), name
    assert not list(ROOT.glob("*.lock")) + list(ROOT.glob("requirements*.txt"))


def test_shipped_traces_are_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "traces").iterdir()) < 3 << 20


def test_build_scripts_are_sound() -> None:
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0
    assert os.access(ROOT / ".ci/run", os.X_OK)
    planned = subprocess.run(["make", "-n", "demo", "test", "nightly", "bench", "lint"], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
