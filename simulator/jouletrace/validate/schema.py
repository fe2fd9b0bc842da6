"""The JSON schema of measurement files, for editors: ``python -m jouletrace.validate.schema`` writes it again."""

from __future__ import annotations

import json

from jouletrace.files import write_file
from jouletrace.resources import folder
from jouletrace.validate.measurements import Measurements

__all__ = ["schema"]


def schema() -> str:
    """Text of ``validation/schema.json``.

    Rows may leave out what ``defaults`` gives, so that no field of a row is required on its own.
    """
    made = Measurements.model_json_schema()
    row = made["$defs"]["Row"]
    row["required"] = ["id", "value"]
    made["properties"]["defaults"] = {
        "type": "object", "description": "fields that every row has unless it says otherwise",
        "properties": {name: field for name, field in row["properties"].items() if name not in ("id", "value")},
        "additionalProperties": False,
    }  # fmt: skip
    return json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(write_file(folder("validation") / "schema.json", schema()))
