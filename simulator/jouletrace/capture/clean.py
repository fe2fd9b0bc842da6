"""Strips what a framework does and hardware would not: counters, constants, copies made to work in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jouletrace.capture.aten import RANDOM, SHAPE_ONLY
from jouletrace.capture.facts import Facts
from jouletrace.capture.rows import Key, Ref, Row

__all__ = ["clean", "losses"]


def losses(rows: Iterable[Row]) -> set[Key]:
    """What backward started from: autograd makes a one for it before the first node runs."""
    return {
        row.reads[0].key
        for row in rows
        if row.base == "ones_like" and row.stage == "forward" and row.reads[0].elements == 1
    }


def clean(rows: Iterable[Row], facts: Facts) -> tuple[list[Row], set[Key]]:
    """The rows that count, and the versions that are constants of the step.

    A constant depends on no data, parameter or random number. Arithmetic on constants is done once,
    not per step, so its rows go. Single constant values are no operands of a row any more.
    """
    rows = list(rows)
    constants = _constant_buffers(rows, facts)
    sizes: dict[int, int] = {}
    for row in rows:
        for r in (*row.reads, *row.outputs):
            sizes[r.storage] = max(sizes.get(r.storage, 0), r.distinct)
    names: dict[Key, Ref] = {}  # a copy made to work in place -> what it is a copy of
    kept: list[Row] = []
    for i, row in enumerate(rows):
        row = _substitute(row, names, constants)
        if _copy_before_write(row, rows[i + 1 : i + 2]) and row.outputs[0].elements == sizes[row.reads[0].storage]:
            names[row.outputs[0].key] = row.reads[0]
            continue
        reads = row.reads
        if row.base in SHAPE_ONLY or row.base == "copy":
            whole = all(w.elements == sizes[w.storage] for w in row.writes)
            reads = reads[row.base == "copy" :] if whole else reads  # what is overwritten is not read
            reads = () if row.base in SHAPE_ONLY and whole else reads
        if row.base not in RANDOM and all(r.key in constants for r in reads):
            constants |= row.produced.keys()
        else:
            kept.append(row)
    return kept, constants


def _constant_buffers(rows: list[Row], facts: Facts) -> set[Key]:
    written = {r.storage for row in rows for r in row.writes}
    return {
        (storage, 0)
        for storage, tensor in facts.existing.items()
        if tensor.counter or (tensor.role == "buffer" and storage not in written)
    }


def _copy_before_write(row: Row, following: list[Row]) -> bool:
    """A clone whose source is overwritten by the very next op, only so that backward can still read it."""
    if row.base != "clone" or row.stage != "forward" or not following:
        return False
    return any(w.storage == row.reads[0].storage for w in following[0].writes)


def _substitute(row: Row, names: dict[Key, Ref], constants: set[Key]) -> Row:
    def plain(value: Any) -> Any:
        if isinstance(value, Ref):
            if value.key in names:
                source = names[value.key]
                value = replace(value, storage=source.storage, version=source.version)
            if value.key in constants and value.distinct == 1:  # one number, or a tensor full of it
                return None if value.elements == 1 else replace(value, strides=(1,) * len(value.shape))
            return value
        return tuple(plain(v) for v in value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownVariableType]

    return replace(row, arguments={k: plain(v) for k, v in row.arguments.items()})
