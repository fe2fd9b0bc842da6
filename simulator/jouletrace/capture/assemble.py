"""Drafts in order become a trace: names, roles, and which tensors backward keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from jouletrace.capture.aten import Draft
from jouletrace.capture.rows import Key, Ref, touched
from jouletrace.capture.versions import BITS, Versions
from jouletrace.trace.model import Header, Op, Tensor, Trace

__all__ = ["assemble"]

_USUAL = {"forward": "y", "backward_data": "gx", "backward_weight": "gw", "update": "y"}


class _Names:
    """Unique names: the second ``a`` is ``a#2``."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}#{self._used[name]}"


def assemble(drafts: Sequence[Draft], versions: Versions, header: Header) -> Trace:
    op_names, tensor_names = _Names(), _Names()
    existing = {
        (storage, 0): Tensor(tensor_names.unique(t.name), t.shape, *BITS[t.dtype], t.role)
        for storage, t in versions.facts.existing.items()
    }
    tensors: dict[Key, Tensor] = {}
    ops: list[Op] = []
    for draft in drafts:
        assert draft.phase is not None
        what = "" if draft.nest.kind in ("conv", "gemm") and draft.layer else draft.what
        name = op_names.unique(f"{draft.layer}{'.' if draft.layer and what else ''}{what}:{draft.phase}")
        for ref in draft.reads:
            if ref.key not in tensors:
                what, role = ("constant", "buffer") if ref.key in versions.constants else ("input", "input")
                tensors[ref.key] = existing.get(ref.key) or Tensor(
                    tensor_names.unique(f"{draft.layer}{'.' if draft.layer else ''}{what}"),
                    versions.whole[ref.key].shape, *BITS[ref.dtype], role,
                )  # fmt: skip
        # An operand that is read twice counts once, but a product keeps its two operands.
        uses: list[tuple[Key, list[Ref]]] = [(ref.key, [ref]) for ref in draft.reads]
        if draft.nest.kind not in ("conv", "gemm"):
            uses = [(key, [r for r in draft.reads if r.key == key]) for key in dict.fromkeys(k for k, _ in uses)]
        reads = [(tensors[key], touched(refs, tensors[key].elements)) for key, refs in uses]
        for label, ref in draft.writes:
            bias = draft.nest.kind == "reduce" and draft.phase == "backward_weight"
            label = label or ("gb" if bias else _USUAL[draft.phase])
            whole = versions.whole_of(ref.key)
            tensors[ref.key] = Tensor(
                tensor_names.unique(f"{name}.{label}"), whole.shape, *BITS[whole.dtype],
                "buffer" if label in ("mean", "invstd") else versions.role(ref.key, draft),
            )  # fmt: skip
        all_whole = all(count == tensor.elements for tensor, count in reads)
        ops.append(Op(
            name, draft.phase, draft.layer, draft.nest, tuple(tensor.name for tensor, _ in reads),
            tuple(tensors[r.key].name for _, r in draft.writes),
            read_elements=() if all_whole else tuple(count for _, count in reads),
        ))  # fmt: skip
    saved = _saved(ops)
    marked = (replace(t, saved=True) if t.name in saved else t for t in tensors.values())
    return Trace(header, tuple(marked), tuple(ops))


def _saved(ops: Sequence[Op]) -> set[str]:
    """What backward reads of the forward pass or of before it."""
    backward = {t for op in ops if op.phase.startswith("backward") for t in op.writes}
    return {
        t for op in ops if op.phase.startswith("backward") for t in op.reads if t not in backward
    }  # fmt: skip
