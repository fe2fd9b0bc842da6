"""The JSON schemas for editors are those of the data model, and every shipped file names its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jouletrace.hardware.schema import schemas
from jouletrace.resources import folder

HWSPECS = folder("hwspecs")


@pytest.mark.parametrize("path", schemas())
def test_schema_files_are_fresh(path: str) -> None:
    current = (HWSPECS / path).read_text(encoding="utf-8")
    assert current == schemas()[path], "run: python -m jouletrace.hardware.schema"


@pytest.mark.parametrize("path", sorted(HWSPECS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_spec_names_the_schema_beside_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert (path.parent / "schema.json").is_file()


def test_the_schema_allows_names_where_the_loader_does_and_no_unknown_keys() -> None:
    schema = json.loads(schemas()["schema.json"])
    assert schema["additionalProperties"] is False
    for definition, key in (("Dram", "device"), ("EnergyRefs", "array"), ("EnergyRefs", "dram")):
        choices = schema["$defs"][definition]["properties"][key]["anyOf"]
        assert any(choice.get("type") == "string" for choice in choices)
    assert any(choice.get("type") == "string" for choice in schema["properties"]["board"]["anyOf"])


@pytest.mark.parametrize("path", sorted(HWSPECS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_specs_are_small(path: Path) -> None:
    assert path.stat().st_size < 16_000
