"""Imports point downwards, heavy packages are imported late, and nothing untrusted is ever executed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jouletrace

PACKAGE = Path(jouletrace.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# The same order as the contract in pyproject.toml, which import-linter checks over whole chains of imports.
LAYERS = [
    {"errors"},
    {"files", "resources", "units", "version"},
    {"store"},
    {"trace", "hardware"},
    {"mapping"},
    {"strategies", "capture", "engine", "ledger"},
    {"result"},
    {"replay"},
    {"comparison", "validate"},
    {"report"},
    {"cli", "testing"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def imports(path: Path) -> list[str]:
    """Names of all modules that a file imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return names


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if here == "__init__":
        return  # the public face names modules as strings and imports them on first use
    for name in imports(path):
        there = room(name)
        if name.startswith("jouletrace.") and there != here:
            assert LEVEL[there] < LEVEL[here], f"{path.name} imports {name}, which is not below it"


def test_frameworks_are_imported_in_capture_only() -> None:
    for path in MODULES:
        if "capture" not in path.relative_to(PACKAGE).parts:
            assert not {n.split(".")[0] for n in imports(path)} & {"torch", "onnx", "jax"}, path


def test_nothing_that_executes_a_file_is_called() -> None:
    forbidden = {"eval", "exec", "pickle", "marshal", "shelve", "jinja2", "subprocess", "socket", "urllib"}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        used = called | {name.split(".")[0] for name in imports(path)}
        assert not used & forbidden, path


@pytest.mark.parametrize("statement", ["import jouletrace", "import jouletrace.cli"])
def test_import_is_light(statement: str) -> None:
    heavy = {"numpy", "scipy", "pydantic", "simpy", "networkx", "rich", "torch", "onnx", "yaml"}
    code = f"{statement}; import sys; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
