"""The ops of one unit of rows."""

from __future__ import annotations

from dataclasses import replace

from jouletrace.capture.aten import LOWER, Draft, flops
from jouletrace.capture.regroup import Unit, backward_function
from jouletrace.capture.rows import Key, Ref, Row
from jouletrace.capture.versions import Versions
from jouletrace.trace.model import Cell, Copy, Elementwise, Loss, Pool, Rng, Update

__all__ = ["unit_drafts"]


def _boundary(unit: Unit, versions: Versions) -> tuple[list[Ref], list[Ref]]:
    """What a unit reads from outside, and what it makes that others read or that stays."""
    inside = {key for row in unit.rows for key in row.produced}
    mine = {id(row) for row in unit.rows}
    reads: list[Ref] = []
    given: dict[int, int] = {}  # storage -> the version that came from outside
    written: set[tuple[object, ...]] = set()
    for row in unit.rows:
        for ref in row.reads:
            if ref.key not in inside:
                given[ref.storage] = ref.version
                reads.append(ref)
            elif ref.storage in given and ref.part not in written:  # a part that no write in place reached
                reads.append(replace(ref, version=given[ref.storage]))
        written |= {ref.part for ref in row.writes}
    writes: dict[Key, Ref] = {}
    for row in unit.rows:
        for key, ref in row.produced.items():
            stays = ref.storage in versions.facts.existing and versions.last[ref.storage] == ref.version
            if stays or any(r not in mine for r in versions.readers[key]):
                writes[key] = ref
    return reads, list(writes.values())


def unit_drafts(unit: Unit, versions: Versions) -> list[Draft]:
    """The ops of one unit."""
    first, last = unit.rows[0], unit.rows[-1]
    if unit.kind == "row":
        return _row(first, versions)
    reads, outputs = _boundary(unit, versions)
    writes = [("", ref) for ref in outputs]
    elements = max(r.elements for row in unit.rows for r in row.produced.values())
    match unit.kind:
        case "update":
            return [_update(unit, versions, reads, outputs)]
        case "cell":
            layer = versions.facts.recurrent[first.layer]
            tanh = next(row for row in unit.rows if row.base in ("tanh", "tanh_backward"))
            nest = Cell(layer.function, tanh.outputs[0].elements // layer.hidden, layer.hidden)
            return [Draft(layer.function, nest, reads, writes[::-1])]  # the new state comes last
        case "cross_entropy":
            return [_cross_entropy(first, last)]
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
            return [_chain(unit, reads, writes, elements)]


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


def _row(row: Row, versions: Versions) -> list[Draft]:
    drafts = LOWER[row.base](row)
    for ref in row.writes:  # an op that changes a part of a tensor leaves the rest as it was
        previous = (ref.storage, ref.version - 1)
        partial = ref.distinct < versions.whole[ref.key].elements
        known = previous in versions.whole and previous not in versions.constants
        if partial and known and all(r.key != previous for r in drafts[0].reads):
            drafts[0].reads.append(replace(ref, version=ref.version - 1))
    return drafts


def _update(unit: Unit, versions: Versions, reads: list[Ref], outputs: list[Ref]) -> Draft:
    name = unit.name
    layer, _, leaf = name.rpartition(".")
    existing = versions.facts.existing
    parameter = next(s for s, t in existing.items() if t.name == name)
    elements = versions.whole[next(r.key for r in outputs if r.storage == parameter)].elements
    reads.sort(key=lambda r: 0 if r.storage == parameter else 1 if r.key in versions.gradients else 2)
    outputs.sort(key=lambda r: r.storage != parameter)
    labels = {s: t.name.removeprefix(f"{name}.") for s, t in existing.items()} | {parameter: "param"}
    writes = [(labels.get(ref.storage, ""), ref) for ref in outputs]
    rule = versions.facts.rules.get(name, "own")
    nest = Update(rule, elements, sum(flops(row) for row in unit.rows))
    return Draft(leaf, nest, reads, writes, "update", layer)


def _chain(unit: Unit, reads: list[Ref], writes: list[tuple[str, Ref]], elements: int) -> Draft:
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
