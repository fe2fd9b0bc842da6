"""Which entry of ``provenance`` stands behind each value of a spec, and what a result should own up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jouletrace.hardware.spec import Certainty
from jouletrace.hardware.yaml_text import Path, as_list, as_mapping

__all__ = ["WEAK", "Claim", "claims", "covering", "leaves"]

# certainties that a reader of a result should know of
WEAK: tuple[Certainty, ...] = ("assumed", "fitted", "recalled", "user")

# parts with a provenance of their own; what is outside overrules what is inside, as --set does
_SECTIONS: tuple[Path, ...] = (("board",), ("dram", "device"), ())
# keys that name or cite something, and so need no source
_NAMES = frozenset({
    "schema_version", "name", "description", "citation", "technology", "standard", "kind", "provenance",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """One provenance path, absolute, with what stands behind it; ``place`` is where the spec says so."""

    path: Path
    certainty: Certainty
    source: str
    place: Path


def claims(data: Any) -> dict[Path, Claim]:
    """All provenance paths of a spec's data; of equal paths the later one holds."""
    found: dict[Path, Claim] = {}
    for section in _SECTIONS:
        part = data
        for key in section:
            part = (as_mapping(part) or {}).get(str(key))
        entries = as_list((as_mapping(part) or {}).get("provenance")) or []
        for i, entry in enumerate(as_mapping(entry) or {} for entry in entries):
            for j, text in enumerate(as_list(entry.get("paths")) or []):
                if isinstance(text, str):
                    path = (*section, *(int(key) if key.isdecimal() else key for key in text.split(".")))
                    place = (*section, "provenance", i, "paths", j)
                    source = str(entry.get("source"))
                    found[path] = Claim(path, entry.get("certainty", "assumed"), source, place)
    return found


def leaves(data: Any) -> Iterator[Path]:
    """Paths of all values that need a source: numbers, quantities and choices.

    Energy tables carry a source at every price and are left out.
    """
    stack: list[tuple[Path, Any]] = [((), data)]
    while stack:
        path, node = stack.pop()
        mapping, members = as_mapping(node), as_list(node)
        if mapping is not None:
            below = [(*path, key) for key in mapping if key not in _NAMES and (*path, key) != ("energy",)]
            stack += [(under, mapping[str(under[-1])]) for under in reversed(below)]
        elif members is not None:
            stack += [((*path, i), members[i]) for i in reversed(range(len(members)))]
        elif node is not None and path != ("board", "device"):
            yield path


def covering(leaf: Path, stated: Mapping[Path, Claim]) -> Claim | None:
    """The claim with the longest path over this leaf."""
    return next((stated[leaf[:n]] for n in range(len(leaf), 0, -1) if leaf[:n] in stated), None)
