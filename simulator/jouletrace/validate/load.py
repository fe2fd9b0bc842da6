"""Measurement files to rows, each with its place; and every problem as a sentence with file and line.

A row that is wrong is left out and its problems are told; the others of its file are read. So are other files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from jouletrace.errors import SpecError, UsageError, did_you_mean
from jouletrace.hardware.draft import dotted
from jouletrace.hardware.sentences import path_in, sentence
from jouletrace.hardware.yaml_text import Document, Path, as_list, as_mapping, one_line, read_file
from jouletrace.resources import folder
from jouletrace.validate.measurements import Build, Measurements, Reference, Row, Workload

__all__ = ["Entry", "Loaded", "load"]

M = TypeVar("M", bound=BaseModel)

MAX_ROWS = 10_000
# Keys that make a mapping a measurement file. Hardware files share the others with it.
_OWN = {*Measurements.model_fields, "defaults"} - {"schema_version", "citation"}


@dataclass(frozen=True)
class Entry:
    """A row of a file, and where it stands."""

    file: Measurements
    folder: FilePath
    row: Row
    place: str

    @property
    def workload(self) -> Workload:
        return self.file.workloads[self.row.workload]

    @property
    def build(self) -> Build | None:
        return None if self.row.build is None else self.file.builds[self.row.build]


@dataclass(frozen=True)
class Loaded:
    """All rows of a folder, in order of files and lines, and the sentences about what could not be read."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...]


def load(place: FilePath | None = None) -> Loaded:
    """All measurement files of a folder (by default the shipped one), or one file.

    Specs and energy tables may lie in the folder too: a file with none of the keys that only measurement files have is
    left to the builds that name it. Raises :class:`UsageError` if there is no measurement file.
    """
    where = folder("validation") if place is None else place
    files = sorted(where.glob("*.yaml")) if where.is_dir() else [where]
    if not files or not all(file.is_file() for file in files):
        raise UsageError(f"{str(where)!r} is neither a file nor a folder with .yaml files of measurements")
    entries: list[Entry] = []
    problems: list[str] = []
    others = 0
    for file in files:
        try:
            document = read_file(file)
            if _other(document):
                others += 1
                continue
            loaded = _rows(document, file.parent)
        except SpecError as error:
            problems += error.problems
            continue
        entries += loaded.entries
        problems += loaded.problems
    if others == len(files):
        raise UsageError(f"{str(where)!r} holds no measurements; a file of measurements has system, citation, "
                         "boundary, workloads and rows, as validation/README.md says")  # fmt: skip
    return Loaded(tuple(entries), tuple(problems))


def _other(document: Document) -> bool:
    """Whether a file is not meant to be one of measurements."""
    data = as_mapping(document.data)
    return data is not None and not _OWN & data.keys()


def _rows(document: Document, beside: FilePath) -> Loaded:
    """One file. Raises :class:`SpecError` where nothing of it can be used: a bad head."""
    data = as_mapping(document.data)
    if data is None:
        raise SpecError(f"{document.name}: is no mapping; a measurement file has system, citation, workloads and rows")
    head = {key: value for key, value in data.items() if key not in ("rows", "defaults")}
    file = _validated(Measurements, head, document, ())
    if isinstance(file, list):
        raise SpecError(file)
    rows = as_list(data.get("rows"))
    if not rows or len(rows) > MAX_ROWS:
        raise SpecError(f"{document.values.get(('rows',), document.name)}: rows: has to be a list of 1 to {MAX_ROWS}")
    defaults = as_mapping(data.get("defaults", {}))
    if defaults is None:
        raise SpecError(f"{document.values['defaults',]}: defaults: is a mapping of fields that rows have")
    entries: list[Entry] = []
    problems: list[str] = []
    seen: set[str] = set()
    for i, given in enumerate(rows):
        place = _line(document.values["rows", i])
        own = as_mapping(given)
        if own is None:
            problems.append(f"{place}: rows.{i}: is a mapping with id, quantity, unit, value and so on")
            continue
        row = _validated(Row, {**defaults, **own}, document, ("rows", i))
        if isinstance(row, list):
            problems += row
            continue
        found = [*_unknown(row, file), *([f"repeats the id {row.id!r}"] if row.id in seen else [])]
        seen.add(row.id)
        problems += [f"{place}: {row.id}: {problem}" for problem in found]
        if not found:
            entries.append(Entry(file, beside, row, place))
    return Loaded(tuple(entries), tuple(map(one_line, problems)))


def _unknown(row: Row, file: Measurements) -> list[str]:
    """Builds and workloads that a row names and its file does not define."""
    found: list[str] = []
    named: list[Row | Reference] = [row, *([] if row.against is None else [row.against])]
    for what in named:
        for key, known in (("build", file.builds), ("workload", file.workloads)):
            name: str | None = getattr(what, key)
            if name is not None and name not in known:
                names = list(known)
                hint = did_you_mean(name, names) or f"; it has {', '.join(names) or 'none'}"
                found.append(f"there is no {key} {name!r} in this file{hint}")
    return found


def _line(place: str) -> str:
    """``file:line`` of ``file:line:column``."""
    return place.rpartition(":")[0]


def _validated(model: type[M], data: dict[str, Any], document: Document, above: Path) -> M | list[str]:
    """The value, or its problems as ``file:line: path: sentence``."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found: dict[Path, str] = {}
        for problem in error.errors(include_url=False)[:100]:
            path = path_in(data, problem["loc"])
            if path in found:  # of a value that may have several forms, the first one is told
                continue
            name = dotted((*above, *path)) or document.name
            text = _unknown_key(model, data, path) if problem["type"] == "extra_forbidden" else None
            found[path] = one_line(f"{_place(document, above, path)}: {name}: "
                                   f"{text or sentence(dict(problem), path, data)}")  # fmt: skip
        return list(found.values())


def _place(document: Document, above: Path, path: Path) -> str:
    """The line of a value or of the nearest thing around it; of a row's default, that of the default."""
    full = (*above, *path)
    if above and path and full[: len(above) + 1] not in document.values:
        full = ("defaults", *path) if ("defaults", path[0]) in document.values else above
    while full and full not in document.values:
        full = full[:-1]
    return _line(document.values.get(full, f"{document.name}:1:1"))


def _unknown_key(model: type[BaseModel], data: dict[str, Any], path: Path) -> str:
    """The sentence about a key that the schema does not know; nearest among all its keys."""
    names = sorted({name for part in _models(model) for name in part.model_fields})
    here = sorted(model.model_fields) if len(path) == 1 else names
    return f"is no known key{did_you_mean(str(path[-1]), here) or '; see validation/README.md'}"


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    from jouletrace.validate import measurements

    parts = (getattr(measurements, name) for name in measurements.__all__)
    return [model, *(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))]
