"""Specs for tests: the shipped ones as plain data, written out again as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jouletrace.errors import SpecError
from jouletrace.hardware.load import list_hardware, load_hardware, resolved

SHIPPED = list_hardware()


def plain(name: str = "zedboard-fp32") -> dict[str, Any]:
    """A shipped spec as data that may be changed."""
    return resolved(load_hardware(name))


def write(folder: Path, data: Any, name: str = "spec.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def problems_of(path: Path | str, *overrides: str) -> list[str]:
    """The sentences with which a spec is refused; none if it loads."""
    try:
        load_hardware(path, overrides)
    except SpecError as error:
        return list(error.problems)
    return []
