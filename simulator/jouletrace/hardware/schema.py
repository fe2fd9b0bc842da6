"""JSON schemas for editors, generated from the data model: ``python -m jouletrace.hardware.schema``.

The first line of every spec names the schema beside it, so that an editor completes keys and marks slips.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from jouletrace.files import write_file
from jouletrace.hardware.spec import Board, DramDevice, EnergyTable, Hardware
from jouletrace.resources import folder

__all__ = ["schemas"]

_FILES: dict[str, type[BaseModel]] = {
    "schema.json": Hardware,
    "boards/schema.json": Board,
    "dram/schema.json": DramDevice,
    "energy/schema.json": EnergyTable,
}
# parts for which a spec may also name a file
_BY_NAME = ("Board", "DramDevice", "EnergyTable")


def schemas() -> dict[str, str]:
    """Path below ``hwspecs/`` and text of every schema file."""
    return {path: _text(model) for path, model in _FILES.items()}


def _text(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    for definition in schema.get("$defs", {}).values():
        _allow_names(definition)
    _allow_names(schema)
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _allow_names(definition: dict[str, Any]) -> None:
    for key, member in definition.get("properties", {}).items():
        if member.get("$ref", "").rpartition("/")[2] in _BY_NAME:
            named = {
                "type": "string",
                "description": "the name of a shipped file, or a path below the spec's folder",
            }
            definition["properties"][key] = {"anyOf": [named, member]}
        for choice in list(member.get("anyOf", ())):
            if choice.get("$ref", "").rpartition("/")[2] in _BY_NAME:
                member["anyOf"].append({"type": "string"})


if __name__ == "__main__":
    for path, text in schemas().items():
        print(write_file(folder("hwspecs") / path, text))
