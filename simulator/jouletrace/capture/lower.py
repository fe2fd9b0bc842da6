"""Rows of a running step become a :class:`~jouletrace.trace.model.Trace`; no framework is needed for it."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from jouletrace.capture.aten import LOWER, Draft, flops
from jouletrace.capture.clean import clean
from jouletrace.capture.facts import Facts
from jouletrace.capture.regroup import Unit, backward_function, parameter_gradients, regroup
from jouletrace.capture.rows import Key, Ref, Row
from jouletrace.errors import CaptureError, did_you_mean
from jouletrace.trace.model import (
    Cell,
    Copy,
    Elementwise,
    Format,
    Header,
    Loss,
    Op,
    Phase,
    Pool,
    Rng,
    Role,
    Tensor,
    Trace,
    Update,
)

__all__ = ["lower_rows"]

_BITS: dict[str, tuple[int, Format]] = {
    "bool": (1, "int"), "float8_e4m3fn": (8, "fp"), "float8_e5m2": (8, "fp"), "float16": (16, "fp"),
    "bfloat16": (16, "fp"), "float32": (32, "fp"), "float64": (64, "fp"), "uint8": (8, "int"),
    "int8": (8, "int"), "int16": (16, "int"), "int32": (32, "int"), "int64": (64, "int"),
}  # fmt: skip


def lower_rows(rows: Iterable[Row], facts: Facts, header: Header) -> Trace:
    """Lowers a recorded step.

    Raises :class:`CaptureError` with one sentence per aten op that cannot be expressed.
    """
    kept, constants = clean(rows, facts)
    _refuse_unknown(kept)
    gradients = parameter_gradients(kept, facts)
    values = _Values(kept, facts, constants, gradients)
    drafts: list[Draft] = []
    for unit in regroup(kept, facts, gradients):
        first = unit.rows[0]
        for draft in values.drafts(unit):
            draft.layer, draft.order = draft.layer or first.layer, len(drafts)
            draft.phase = draft.phase or values.phase(first, draft)
            drafts.append(draft)
    return _assemble(_sorted(_needed(drafts, values)), values, header)


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


@dataclass(slots=True)
class _Values:
    """All tensor versions of a step: where they come from, how large they are, what role they play."""

    rows: Sequence[Row]
    facts: Facts
    constants: set[Key]
    gradients: set[Key]
    whole: dict[Key, Ref] = field(default_factory=dict[Key, Ref])
    stage: dict[Key, str] = field(default_factory=dict[Key, str])
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
                self.stage[key] = self.row_phase(row)
                self.last[ref.storage] = ref.version
                if row.stage != "forward" or self.row_phase(row) == "update":
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

    def row_phase(self, row: Row) -> str:
        """Forward, backward or update; work on gradients between backward and optimizer is update."""
        if row.stage == "optimizer" or (
            row.stage == "forward" and not row.grad_enabled and any(r.key in self.late for r in row.reads)
        ):
            return "update"
        return row.stage

    def phase(self, row: Row, draft: Draft) -> Phase:
        stage = self.row_phase(row)
        if stage == "forward":
            return "forward"
        if stage == "update":
            return "update"
        weight = all(ref.key in self.gradients for _, ref in draft.writes)
        return "backward_weight" if weight else "backward_data"

    def role(self, key: Key, draft: Draft) -> Role:
        """The role of what ``draft`` writes."""
        existing = self.facts.existing.get(key[0])
        if existing is not None:
            return existing.role
        if key in self.gradients:
            return "weight_gradient"
        if draft.phase == "update":
            return "buffer"
        if draft.phase != "forward":
            return "gradient"
        if isinstance(draft.nest, Rng) or _BITS[self.whole[key].dtype][1] == "int":
            return "mask"
        return "buffer" if key in self.only_parameters else "activation"

    def _boundary(self, unit: Unit) -> tuple[list[Ref], list[Ref]]:
        """What a unit reads from outside, and what it makes that others read or that stays."""
        inside = {key for row in unit.rows for key in row.produced}
        mine = Counter(id(row) for row in unit.rows)
        reads: dict[Key, Ref] = {}
        for row in unit.rows:
            for ref in row.reads:
                if ref.key not in inside:
                    reads[ref.key] = max(reads.get(ref.key, ref), ref, key=lambda r: r.distinct)
        writes: dict[Key, Ref] = {}
        for row in unit.rows:
            for key, ref in row.produced.items():
                stays = ref.storage in self.facts.existing and self.last[ref.storage] == ref.version
                if stays or any(r not in mine for r in self.readers[key]):
                    writes[key] = ref
        return list(reads.values()), list(writes.values())

    def drafts(self, unit: Unit) -> list[Draft]:
        """The ops of one unit."""
        first, last = unit.rows[0], unit.rows[-1]
        if unit.kind == "row":
            return self._row(first)
        reads, outputs = self._boundary(unit)
        writes = [("", ref) for ref in outputs]
        elements = max(r.elements for row in unit.rows for r in row.produced.values())
        match unit.kind:
            case "update":
                return [self._update(unit, reads, outputs)]
            case "cell":
                layer = self.facts.recurrent[first.layer]
                tanh = next(row for row in unit.rows if row.base in ("tanh", "tanh_backward"))
                nest = Cell(layer.function, tanh.outputs[0].elements // layer.hidden, layer.hidden)
                return [Draft(layer.function, nest, reads, writes[::-1])]  # the new state comes last
            case "cross_entropy":
                return [self._cross_entropy(first, last)]
            case "loss":
                rows = first.reads[0].shape[0]
                return [Draft(unit.name, Loss(unit.name, rows, elements // rows), reads, writes)]
            case "rng":
                return [Draft("random", Rng(elements), [], [("", last.outputs[0])])]
            case "pad":
                return [Draft("pad", Copy("pad", elements), reads, writes)]
            case "accumulate":
                return [Draft("accumulate", Elementwise("accumulate", elements), reads, writes)]
            case _:
                return [self._chain(unit, reads, writes, elements)]

    @staticmethod
    def _cross_entropy(first: Row, last: Row) -> Draft:
        """log-softmax and nll as one; the count of labels that nll hands on is no tensor of the step."""
        softmax, nll = (first, last) if first.stage == "forward" else (last, first)
        scores = softmax.reads[0]
        width = scores.shape[int(softmax.arguments["dim"])]
        nest = Loss("cross_entropy", scores.elements // width, width)
        labels = [a for a in (nll.arguments["target"], nll.arguments["weight"]) if isinstance(a, Ref)]
        if first.stage == "forward":
            writes = [("", nll.outputs[0]), ("log_probabilities", softmax.outputs[0])]
            return Draft("cross_entropy", nest, [scores, *labels], writes)
        seed = [a for a in (nll.arguments["grad_output"],) if isinstance(a, Ref)]
        reads = [softmax.arguments["output"], *labels, *seed]
        return Draft("cross_entropy", nest, reads, [("", softmax.outputs[0])])

    def _row(self, row: Row) -> list[Draft]:
        drafts = LOWER[row.base](row)
        for draft in drafts:  # a parameter that is clipped or scaled outside its optimizer
            owner = self.facts.existing.get(draft.writes[0][1].storage)
            if isinstance(draft.nest, Elementwise) and owner and owner.role == "param":
                draft.nest = Update(draft.nest.function, draft.nest.elements, flops(row))
                draft.layer, _, draft.what = owner.name.rpartition(".")
                draft.writes = [("param", draft.writes[0][1])]
        if row.writes:  # an op that changes a part of a tensor leaves the rest as it was
            for ref in row.writes:
                previous = (ref.storage, ref.version - 1)
                partial = ref.distinct < self.whole[ref.key].elements
                known = previous in self.whole and previous not in self.constants
                if partial and known and all(r.key != previous for r in drafts[0].reads):
                    drafts[0].reads.append(replace(ref, version=ref.version - 1))
        return drafts

    def _update(self, unit: Unit, reads: list[Ref], outputs: list[Ref]) -> Draft:
        name = unit.name
        layer, _, leaf = name.rpartition(".")
        existing = self.facts.existing
        parameter = next(s for s, t in existing.items() if t.name == name)
        elements = self.whole[next(r.key for r in outputs if r.storage == parameter)].elements
        rank = {"param": 0, "weight_gradient": 1}
        reads.sort(key=lambda r: rank.get(self._read_role(r), 2))
        outputs = [r for r in outputs if r.storage in existing]
        outputs.sort(key=lambda r: r.storage != parameter)
        names = ("param" if r.storage == parameter else existing[r.storage].name for r in outputs)
        writes = [(label.removeprefix(f"{name}."), ref) for label, ref in zip(names, outputs, strict=True)]
        nest = Update(self.facts.rules[name], elements, sum(flops(row) for row in unit.rows))
        return Draft(leaf, nest, reads, writes, "update", layer)

    def _read_role(self, ref: Ref) -> str:
        existing = self.facts.existing.get(ref.storage)
        return existing.role if existing else "weight_gradient" if ref.key in self.gradients else ""

    def _chain(self, unit: Unit, reads: list[Ref], writes: list[tuple[str, Ref]], elements: int) -> Draft:
        """Pointwise work of one autograd node; the gradient of a mean over a whole map is a pooling."""
        first = unit.rows[0]
        source = first.reads[0] if first.reads else None
        if first.node.startswith("MeanBackward") and source is not None and len(source.shape) == 4:
            n, c, iy, ix = source.shape
            if source.strides[2:] == (0, 0):
                nest = Pool("average", n, c, iy, ix, 1, 1, iy, ix, (iy, ix))
                return Draft("average", nest, reads, writes)
        function = unit.name or backward_function(first)
        return Draft(function, Elementwise(function, elements), reads, writes)


def _needed(drafts: list[Draft], values: _Values) -> list[Draft]:
    """Drops ops and results that neither a loss nor an update nor anything that outlives the step needs."""
    maker = {ref.key: draft for draft in drafts for _, ref in draft.writes}
    existing = values.facts.existing

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
    return order


_USUAL = {"forward": "y", "backward_data": "gx", "backward_weight": "gw", "update": "y"}


class _Names:
    """Unique names: the second ``a`` is ``a#2``."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}#{self._used[name]}"


def _assemble(drafts: list[Draft], values: _Values, header: Header) -> Trace:
    op_names, tensor_names = _Names(), _Names()
    existing = {
        (storage, 0): Tensor(tensor_names.unique(t.name), t.shape, *_BITS[t.dtype], t.role)
        for storage, t in values.facts.existing.items()
    }
    tensors: dict[Key, Tensor] = {}
    ops: list[Op] = []
    for draft in drafts:
        assert draft.phase is not None
        what = "" if draft.nest.kind in ("conv", "gemm") and draft.layer else draft.what
        name = op_names.unique(f"{draft.layer}{'.' if draft.layer and what else ''}{what}:{draft.phase}")
        reads: dict[Key, int] = {}
        for ref in draft.reads:
            if ref.key not in tensors:
                tensors[ref.key] = existing.get(ref.key) or Tensor(
                    tensor_names.unique(f"{draft.layer}{'.' if draft.layer else ''}constant"),
                    values.whole[ref.key].shape, *_BITS[ref.dtype], "buffer",
                )  # fmt: skip
            touched = min(ref.distinct, tensors[ref.key].elements)
            reads[ref.key] = max(touched, reads.get(ref.key, 0))
        for label, ref in draft.writes:
            bias = draft.nest.kind == "reduce" and draft.phase == "backward_weight"
            label = label or ("gb" if bias else _USUAL[draft.phase])
            whole = values.whole_of(ref.key)
            tensors[ref.key] = Tensor(
                tensor_names.unique(f"{name}.{label}"), whole.shape, *_BITS[whole.dtype],
                "buffer" if label in ("mean", "invstd") else values.role(ref.key, draft),
            )  # fmt: skip
        all_whole = all(n == tensors[k].elements for k, n in reads.items())
        ops.append(Op(
            name, draft.phase, draft.layer, draft.nest, tuple(tensors[k].name for k in reads),
            tuple(tensors[r.key].name for _, r in draft.writes),
            read_elements=() if all_whole else tuple(reads.values()),
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
