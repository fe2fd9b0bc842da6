"""What pydantic finds wrong with a spec, as sentences; and which keys the schema knows at a path."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jouletrace.errors import did_you_mean
from jouletrace.hardware.spec import Hardware
from jouletrace.hardware.yaml_text import Path, as_list, as_mapping, short

__all__ = ["keys_at", "path_in", "sentence"]


def path_in(data: Any, loc: tuple[str | int, ...]) -> Path:
    """The path of a problem in the data; pydantic's has names of union members and ``[key]`` in between."""
    path: Path = ()
    node = data
    for i, part in enumerate(loc):
        mapping, members = as_mapping(node), as_list(node)
        if mapping is not None and part in mapping:
            node, path = mapping[str(part)], (*path, part)
        elif members is not None and isinstance(part, int):
            node, path = (members[part] if part < len(members) else None), (*path, part)
        elif mapping is not None and i == len(loc) - 1 and part != "[key]":
            path = (*path, part)
    return path


def sentence(problem: dict[str, Any], path: Path, data: Any) -> str:
    """One of pydantic's errors in the words of this package, with what was given and, if known, a cure."""
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        known = keys_at(path[:-1], data)
        return f"is no known key{did_you_mean(str(path[-1]), known) or '; keys here are ' + ', '.join(known)}"
    if kind == "value_error":
        return str(context["error"]).replace(repr(given), short(given))
    if kind == "union_tag_not_found":
        return f"needs the key {context['discriminator']}"
    if kind == "union_tag_invalid":
        return f"must have one of {context['expected_tags']} as its kind (got {short(context['tag'])})"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = did_you_mean(given, choices) if isinstance(given, str) else ""
        return f"must be {context['expected']} (got {short(given)}){hint}"
    if kind == "string_pattern_mismatch":
        return f"must be made of letters, digits, '-' and '_', at most 64 of them (got {short(given)})"
    words = {
        "Input should be": "must be",
        "valid dictionary or instance of": "mapping of the form of",
        "a valid dictionary": "a mapping of keys to values",
        "a valid tuple": "a list",
        "integer": "whole number",
        "string": "text",
    }
    message = str(problem["msg"])
    for theirs, ours in words.items():
        message = message.replace(theirs, ours)
    return f"{message[0].lower()}{message[1:]} (got {short(given)})"


def keys_at(path: Path, data: Any) -> list[str]:
    """Keys that the schema knows at a path of the data; in the array, those of its kind."""
    schema = _schema()
    nodes: list[Any] = [schema]
    value = data
    for part in path:
        targets = [target for node in nodes for target in _targets(node, schema, value)]
        nodes = [below for target in targets for below in _below(target, part)]
        value = (as_mapping(value) or {}).get(str(part))
    targets = [target for node in nodes for target in _targets(node, schema, value)]
    return sorted({key for target in targets for key in target.get("properties", {})})


@cache
def _schema() -> dict[str, Any]:
    return Hardware.model_json_schema()


def _targets(node: Any, schema: dict[str, Any], value: Any) -> list[Any]:
    """What a schema node stands for, behind references and unions."""
    if "$ref" in node:
        return _targets(schema["$defs"][node["$ref"].rpartition("/")[2]], schema, value)
    if "discriminator" in node:
        named = node["discriminator"]["mapping"]
        kind = (as_mapping(value) or {}).get("kind")
        chosen = [named[kind]] if isinstance(kind, str) and kind in named else list(named.values())
        return [schema["$defs"][reference.rpartition("/")[2]] for reference in chosen]
    if "anyOf" in node:
        return [target for choice in node["anyOf"] for target in _targets(choice, schema, value)]
    return [node]


def _below(node: Any, part: str | int) -> list[Any]:
    if isinstance(part, int):
        return [node["items"]] if "items" in node else []
    if part in node.get("properties", {}):
        return [node["properties"][part]]
    named = list(node.get("patternProperties", {}).values())
    return named + ([node["additionalProperties"]] if as_mapping(node.get("additionalProperties")) else [])
