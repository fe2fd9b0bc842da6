"""The tensor versions of a step: how large they are, which phase makes them, what role they play."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from jouletrace.capture.aten import Draft
from jouletrace.capture.facts import Facts
from jouletrace.capture.rows import Key, Ref, Row
from jouletrace.trace.model import Format, Phase, Rng, Role

__all__ = ["BITS", "Versions"]

BITS: dict[str, tuple[int, Format]] = {
    "bool": (1, "int"), "float8_e4m3fn": (8, "fp"), "float8_e5m2": (8, "fp"), "float16": (16, "fp"),
    "bfloat16": (16, "fp"), "float32": (32, "fp"), "float64": (64, "fp"), "uint8": (8, "int"),
    "int8": (8, "int"), "int16": (16, "int"), "int32": (32, "int"), "int64": (64, "int"),
}  # fmt: skip


@dataclass(slots=True)
class Versions:
    """What the rows of a step say about its tensors, gathered in one pass.

    ``whole`` is a version at its full size, ``readers`` are the ids of the rows that read it, ``last`` is the
    last version of a storage.
    """

    rows: Sequence[Row]
    facts: Facts
    constants: set[Key]
    gradients: set[Key]
    whole: dict[Key, Ref] = field(default_factory=dict[Key, Ref])
    readers: dict[Key, list[int]] = field(default_factory=lambda: defaultdict[Key, list[int]](list))
    late: set[Key] = field(default_factory=set[Key])  # made of gradients or of updated parameters
    last: dict[int, int] = field(default_factory=dict[int, int])
    only_parameters: set[Key] = field(default_factory=set[Key])
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])  # of parameters

    def __post_init__(self) -> None:
        shapes: dict[int, Ref] = {}
        for storage, tensor in self.facts.existing.items():
            shapes[storage] = Ref(storage, 0, tensor.shape, (1,) * len(tensor.shape), tensor.dtype)
            if tensor.role == "param":
                self.shape[tensor.name] = tensor.shape
                self.only_parameters.add((storage, 0))
        for row in self.rows:
            reads = [r.key for r in row.reads]
            for ref in row.reads:
                self.readers[ref.key].append(id(row))
                self._grow(shapes, ref)
            for key, ref in row.produced.items():
                self._grow(shapes, ref)
                self.whole[key] = replace(shapes[ref.storage], version=ref.version)
                self.last[ref.storage] = ref.version
                if row.stage != "forward" or self.part_of(row) == "update":
                    self.late.add(key)
                elif reads and all(k in self.only_parameters for k in reads):
                    self.only_parameters.add(key)
            for ref in row.reads:
                self.whole.setdefault(ref.key, replace(shapes[ref.storage], version=ref.version))

    @staticmethod
    def _grow(shapes: dict[int, Ref], ref: Ref) -> None:
        """A storage is as large as the largest use of it."""
        if ref.storage not in shapes or ref.distinct > shapes[ref.storage].elements:
            shapes[ref.storage] = ref

    def whole_of(self, key: Key) -> Ref:
        """The tensor at its full size; the gradient of a parameter has the shape of the parameter."""
        name = self.facts.gradients.get(key)
        return replace(self.whole[key], shape=self.shape[name]) if name in self.shape else self.whole[key]

    def part_of(self, row: Row) -> Literal["forward", "backward", "update"]:
        """The part of the step; work without gradients on gradients or new parameters is update."""
        if row.stage == "optimizer" or (
            row.stage == "forward" and not row.grad_enabled and any(r.key in self.late for r in row.reads)
        ):
            return "update"
        return "forward" if row.stage == "forward" else "backward"

    def phase(self, row: Row, draft: Draft) -> Phase:
        """A backward op that makes nothing but gradients of parameters is backward-weight."""
        part = self.part_of(row)
        if part != "backward":
            return part
        weight = all(ref.key in self.gradients for _, ref in draft.writes)
        return "backward_weight" if weight else "backward_data"

    def role(self, key: Key, draft: Draft) -> Role:
        """The role of what ``draft`` writes."""
        if key in self.gradients:
            return "weight_gradient"
        existing = self.facts.existing.get(key[0])
        if existing is not None:
            return existing.role
        if draft.phase == "update":
            return "buffer"
        if draft.phase != "forward":
            return "gradient"
        if isinstance(draft.nest, Rng) or BITS[self.whole[key].dtype][1] == "int":
            return "mask"
        return "buffer" if key in self.only_parameters else "activation"
