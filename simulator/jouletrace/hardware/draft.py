"""A spec on its way to a value: everything inlined, every value with its place, and what is wrong so far."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from jouletrace.errors import SpecError, did_you_mean
from jouletrace.hardware.sentences import keys_at, path_in, sentence
from jouletrace.hardware.spec import Hardware
from jouletrace.hardware.yaml_text import (
    Document,
    Path,
    as_list,
    as_mapping,
    one_line,
    read_file,
    read_text,
)
from jouletrace.resources import folder

__all__ = ["Draft", "dotted"]

# where a name stands for a file, and the folder of the shipped ones
_REFERENCES: dict[Path, str] = {
    ("board",): "boards",
    ("dram", "device"): "dram",
    ("energy", "array"): "energy",
    ("energy", "buffers"): "energy",
    ("energy", "vector"): "energy",
    ("energy", "host"): "energy",
    ("energy", "dram"): "energy",
}
_ENOUGH = 100


def dotted(path: Path) -> str:
    """
    >>> dotted(("array", "tilings", 0, "rows"))
    'array.tilings.0.rows'
    """
    return ".".join(str(part) for part in path)


class Draft:
    """Collects problems instead of raising them, so that a user sees all of a file at once.

    ``home`` is the folder below which files named by path must lie; ``None`` allows none.
    """

    def __init__(self, document: Document, home: FilePath | None) -> None:
        self.name = document.name
        self.data: Any = document.data
        self.problems: list[str] = []
        self._home = home
        self._values = dict(document.values)
        self._keys = dict(document.keys)
        self._missing: set[Path] = set()
        self._files: dict[FilePath, Document] = {}

    def problem(self, path: Path, text: str, *, at_key: bool = False) -> None:
        """Notes a problem at the value (or the key) of ``path``, or at the nearest place above it.

        After enough of them no more are noted: a file of nothing but slips is not worth a megabyte of text.
        """
        if self.is_full:
            return
        place = self._keys.get(path) if at_key else None
        above = path
        while place is None:
            place = self._values.get(above) if above else self._values.get((), self.name)
            above = above[:-1]
        self.problems.append(f"{place}: {dotted(path)}: {text}" if path else f"{place}: {text}")

    @property
    def is_full(self) -> bool:
        return len(self.problems) >= _ENOUGH

    def is_missing(self, path: Path) -> bool:
        """Whether the path lies in a file that could not be read, which is a problem already noted."""
        return any(path[: len(missing)] == missing for missing in self._missing)

    def fail(self) -> None:
        """Raises :class:`SpecError` with all problems, in the order of the text, if there are any."""
        if self.problems:
            raise SpecError([one_line(problem) for problem in sorted(dict.fromkeys(self.problems), key=_place)])

    # -- references --------------------------------------------------------------------------------

    def inline(self) -> None:
        """Puts the files that the spec names in the places of their names."""
        for path in _REFERENCES:
            self._inline(path)

    def _inline(self, path: Path) -> None:
        parent = as_mapping(self._at(path[:-1])) or {}
        key = str(path[-1])
        name = parent.get(key)
        if not isinstance(name, str):
            return
        try:
            document = self._read(self._file(path, name))
        except SpecError as error:
            self.problems += error.problems
            self._missing.add(path)
            return
        parent[key] = deepcopy(document.data)
        self._values.update({path + below: place for below, place in document.values.items()})
        self._keys.update({path + below: place for below, place in document.keys.items()})

    def _read(self, file: FilePath) -> Document:
        """A file's content, read once however many components name it."""
        if file not in self._files:
            self._files[file] = read_file(file)
        return self._files[file]

    def _file(self, path: Path, name: str) -> FilePath:
        """The file that a reference means: a shipped one by name, else one below the folder of the spec."""
        place = f"{self._values.get(path, self.name)}: {dotted(path)}"
        shipped = folder("hwspecs") / _REFERENCES[path]
        if "/" not in name and not name.endswith((".yaml", ".yml")):
            known = sorted(file.stem for file in shipped.glob("*.yaml"))
            if name not in known:
                others = f"; there are {', '.join(known)}, and files of your own by path, as in ./mine.yaml"
                hint = did_you_mean(name, known) or others
                raise SpecError(f"{place}: {name[:64]!r} is not in hwspecs/{shipped.name}{hint}")
            return shipped / f"{name}.yaml"
        home = self._home or shipped
        try:
            found = (home / name).is_file()
            below = (home / name).resolve().is_relative_to(home.resolve())
        except (OSError, ValueError):  # too long, or not the name of any file
            found, below = False, True
        if self._home is None or not below:
            raise SpecError(f"{place}: {name[:64]!r} lies outside the spec's folder; keep its files below it")
        if not found:
            raise SpecError(f"{place}: there is no file {name[:64]!r} in the spec's folder")
        return home / name

    # -- overrides ---------------------------------------------------------------------------------

    def override(self, setting: str) -> None:
        """Applies one ``path=value``; the value then counts as the user's own in the provenance."""
        label = f"--set {setting[:80]}"
        text, _, value = (part.strip() for part in setting.partition("="))
        if not text or not value:
            self.problems.append(f"{label}: is no PATH=VALUE, as in dram.bandwidth='1 GB/s'")
            return
        path = self._path_of(text, label)
        if path is None:
            return
        try:
            new = read_text(value, f"--set {text[:80]}").data
        except SpecError as error:
            self.problems += error.problems
            return
        parent, key = self._at(path[:-1]), path[-1]
        if path[0] == "energy":
            _own_price(parent, str(key), new)
        else:
            entry = {"paths": [dotted(path)], "certainty": "user", "source": "--set"}
            (as_list(self.data.get("provenance")) or []).append(entry)
        parent[key] = new
        self._values = {known: place for known, place in self._values.items() if known[: len(path)] != path}
        self._values[path] = self._keys[path] = label
        if path in _REFERENCES:
            self._missing.discard(path)
            self._inline(path)

    def _path_of(self, text: str, label: str) -> Path | None:
        """The path that a setting names: it exists, or its last key is one that the schema knows there."""
        path: Path = ()
        node: Any = self.data
        parts = text.split(".")
        for i, part in enumerate(parts):
            mapping, members = as_mapping(node), as_list(node)
            known: list[str] = []
            if mapping is not None:
                known = sorted({*mapping, *keys_at(path, self.data)})
                if part in mapping or (part in known and i == len(parts) - 1):
                    node, path = mapping.get(part), (*path, part)
                    continue
            elif members is not None:
                known = [str(n) for n in range(len(members))]
                if part in known:
                    node, path = members[int(part)], (*path, int(part))
                    continue
            where = repr(dotted(path)) if path else "the spec"
            hint = did_you_mean(part, known) or f"; {where} has {', '.join(known) or 'nothing below it'}"
            if part in known:
                hint = " in this spec; write the whole part into the file"
            self.problems.append(f"{label}: there is no {dotted((*path, part))!r}{hint}")
            return None
        return path

    # -- validation --------------------------------------------------------------------------------

    def validate(self) -> Hardware | None:
        """The value that the data describes, or ``None`` after noting every problem."""
        try:
            return Hardware.model_validate(self.data)
        except ValidationError as error:
            for found in error.errors(include_url=False)[: 10 * _ENOUGH]:
                path = path_in(self.data, found["loc"])
                if not self.is_missing(path) and not self.is_full:
                    text = sentence(dict(found), path, self.data)
                    self.problem(path, text, at_key=found["type"] == "extra_forbidden")
            return None

    def _at(self, path: Path) -> Any:
        """The node at a path, or ``None`` where the data has another form."""
        node = self.data
        for part in path:
            mapping, members = as_mapping(node), as_list(node)
            if mapping is not None:
                node = mapping.get(str(part))
            else:
                node = members[part] if members is not None and isinstance(part, int) else None
        return node


def _own_price(parent: Any, key: str, value: object) -> None:
    """A price set by the user is the user's: its source changes, and the published band no longer holds."""
    if key in ("energy", "low", "high") and "source" in parent:
        parent["source"], parent["certainty"] = "--set", "user"
        if key == "energy":
            parent["low"] = parent["high"] = value


def _place(problem: str) -> tuple[str, int, int]:
    match = re.match(r"(.*?):([0-9]+):([0-9]+): ", problem)
    return (match[1], int(match[2]), int(match[3])) if match else (problem, 0, 0)
