"""Rows of a running step become a :class:`~jouletrace.trace.model.Trace`; no framework is needed for it."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence

from jouletrace.capture.assemble import assemble
from jouletrace.capture.aten import LOWER, Draft
from jouletrace.capture.clean import clean, losses
from jouletrace.capture.facts import Facts
from jouletrace.capture.regroup import parameter_gradients, regroup
from jouletrace.capture.rows import Key, Ref, Row
from jouletrace.capture.units import unit_drafts
from jouletrace.capture.versions import Versions
from jouletrace.errors import CaptureError, did_you_mean
from jouletrace.trace.model import Elementwise, Header, Loss, Reduce, Trace, Update

__all__ = ["lower_rows"]


def lower_rows(rows: Iterable[Row], facts: Facts, header: Header) -> Trace:
    """Lowers a recorded step.

    Raises :class:`CaptureError` with one sentence per aten op that cannot be expressed.
    """
    rows = tuple(rows)
    kept, constants = clean(rows, facts)
    _refuse_unknown(kept)
    gradients = parameter_gradients(kept, facts)
    versions = Versions(kept, facts, constants, gradients)
    drafts: list[Draft] = []
    for unit in regroup(kept, facts, gradients):
        first = unit.rows[0]
        for draft in unit_drafts(unit, versions):
            draft.layer, draft.order = draft.layer or first.layer, len(drafts)
            draft.phase = draft.phase or versions.phase(first, draft)
            drafts.append(draft)
    _mark_losses(drafts, losses(rows))
    return assemble(_sorted(_needed(drafts, versions)), versions, header)


def _refuse_unknown(rows: Sequence[Row]) -> None:
    unknown: dict[str, Row] = {}
    for row in rows:
        if row.base not in LOWER:
            unknown.setdefault(row.name, row)
    if unknown:
        raise CaptureError([
            f"{row.place}: {name} in layer {row.layer or '<model>'!r} ({row.stage}) has no energy model"
            f"{did_you_mean(row.base, tuple(LOWER))}; write it with supported ops (see docs/capture.md), "
            "or add it to the table in jouletrace/capture/aten.py"
            for name, row in unknown.items()
        ])  # fmt: skip


def _mark_losses(drafts: Sequence[Draft], roots: set[Key]) -> None:
    """A sum or mean that a loss consists of is a loss op, also through arithmetic on single numbers."""
    maker = {ref.key: draft for draft in drafts for _, ref in draft.writes}
    todo = sorted(roots)
    for key in todo:  # grows while it is read
        draft = maker.get(key)
        if draft is None or draft.phase != "forward":
            continue
        if isinstance(draft.nest, Reduce) and draft.nest.outputs == 1:
            rows = draft.reads[0].shape[0] if draft.reads[0].shape else 1
            draft.nest = Loss(draft.nest.function, rows, draft.nest.elements // rows)
        elif isinstance(draft.nest, Elementwise) and draft.nest.elements == 1:
            todo += [ref.key for ref in draft.reads if ref.elements == 1]


def _needed(drafts: list[Draft], versions: Versions) -> list[Draft]:
    """Drops ops and results that neither a loss nor an update nor anything that outlives the step needs."""
    maker = {ref.key: draft for draft in drafts for _, ref in draft.writes}
    existing = versions.facts.existing

    def final(draft: Draft, ref: Ref) -> bool:
        stays = ref.storage in existing and existing[ref.storage].role != "input"
        return stays or (isinstance(draft.nest, Loss) and draft.phase == "forward")

    todo = [d for d in drafts if isinstance(d.nest, Update) or any(final(d, r) for _, r in d.writes)]
    live: set[int] = set()
    while todo:
        draft = todo.pop()
        if draft.order not in live:
            live.add(draft.order)
            todo += [maker[r.key] for r in draft.reads if r.key in maker]
    kept = [d for d in drafts if d.order in live]
    read = {ref.key for draft in kept for ref in draft.reads}
    for draft in kept:
        norm = draft.nest.kind == "norm" and draft.phase == "forward"  # its statistics come in one
        draft.writes = [(label, r) for label, r in draft.writes if norm or r.key in read or final(draft, r)]
    return kept


def _sorted(drafts: list[Draft]) -> list[Draft]:
    """Topological order; among ops that are ready, the one that was recorded first."""
    maker = {ref.key: i for i, draft in enumerate(drafts) for _, ref in draft.writes}
    waits = [{maker[r.key] for r in d.reads if r.key in maker} for d in drafts]
    followers: dict[int, list[int]] = defaultdict(list)
    for i, sources in enumerate(waits):
        for j in sources:
            followers[j].append(i)
    missing = [len(sources) for sources in waits]
    ready = [i for i, n in enumerate(missing) if n == 0]
    order: list[Draft] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(drafts[i])
        for j in followers[i]:
            missing[j] -= 1
            if missing[j] == 0:
                heapq.heappush(ready, j)
    if len(order) < len(drafts):
        stuck = next(draft for draft, n in zip(drafts, missing, strict=True) if n)
        raise CaptureError(
            f"{stuck.what!r} in layer {stuck.layer or '<model>'!r} is one op that waits for its own result; "
            "please report the recipe"
        )
    return order
