"""Finds a recipe: ``path/to/file.py:function``, loaded by path and never imported as a package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jouletrace.errors import CaptureError, UsageError, did_you_mean
from jouletrace.resources import folder

__all__ = ["load_recipe"]


def load_recipe(spec: str) -> Callable[[int], Any]:
    """The function of a recipe file, which may also lie in the shipped ``workloads`` folder.

    Loading runs the file: it is the user's own program, not data. Raises ``UsageError`` if the file or
    the function does not exist.

    >>> load_recipe("workloads/resnet_cifar.py")
    Traceback (most recent call last):
    ...
    jouletrace.errors.UsageError: 'workloads/resnet_cifar.py' names no recipe; write path/to/file.py:function
    """
    path_text, colon, name = spec.rpartition(":")
    if not colon or not path_text or not name.isidentifier():
        raise UsageError(f"{spec!r} names no recipe; write path/to/file.py:function")
    path = Path(path_text)
    if not path.is_file() and path_text.startswith("workloads/"):
        path = folder("workloads") / path.name
    if not path.is_file():
        raise UsageError(f"the recipe file {path_text!r} does not exist; give the path to a Python file")
    module_spec = importlib.util.spec_from_file_location(f"jouletrace_recipe_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{path_text!r} is not a Python file; a recipe file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise CaptureError(f"{path}: the recipe file could not be loaded: {why}") from error
    recipe = getattr(module, name, None)
    if not callable(recipe):
        functions = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
        raise UsageError(
            f"{path}: there is no function {name!r} in this recipe file{did_you_mean(name, functions)}; "
            f"it has {', '.join(functions) or 'none'}"
        )
    return recipe
