"""Which rows together are one op of a trace: updates, cells, losses, dropout masks, slices, pointwise chains.

A :class:`Unit` is one or more rows. Every row is in exactly one unit; the order of units does not matter
yet, the tensors that they exchange decide.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jouletrace.capture.aten import LOSS_NODES, POINTWISE, fills_mask
from jouletrace.capture.facts import Facts
from jouletrace.capture.rows import Key, Ref, Row

__all__ = ["Unit", "parameter_gradients", "regroup"]


Kind = Literal["row", "update", "cell", "cross_entropy", "loss", "rng", "pad", "chain", "accumulate"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that become one op (``kind`` "row" may become several, as a conv backward does).

    ``name`` is the parameter of an update, and the function of a chain.
    """

    kind: Kind
    rows: tuple[Row, ...]
    name: str = ""


class _Flow:
    """Who makes and who reads which tensor version, by row number."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.maker: dict[Key, int] = {}
        self.readers: dict[Key, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            for ref in row.reads:
                self.readers[ref.key].append(i)
            for key in row.produced:
                self.maker[key] = i

    def components(self, members: Iterable[int]) -> list[list[int]]:
        """Parts of ``members`` that are tied by what they hand to one another."""
        members = list(members)
        parent = {i: i for i in members}

        def root(i: int) -> int:
            while parent[i] != i:
                i = parent[i]
            return i

        for i in members:
            for ref in self.rows[i].reads:
                j = self.maker.get(ref.key)
                if j in parent and j != i:
                    low, high = sorted((root(i), root(j)))
                    parent[high] = low
        parts: dict[int, list[int]] = defaultdict(list)
        for i in members:
            parts[root(i)].append(i)
        return list(parts.values())


def parameter_gradients(rows: list[Row], facts: Facts) -> set[Key]:
    """Versions that are gradients of parameters, or on the way to one by sums and pointwise steps."""
    found = set(facts.gradients)
    backward = {key for row in rows if row.stage == "backward" for key in row.produced}
    for row in reversed(rows):
        if row.stage != "optimizer" and found & row.produced.keys():
            size = {r.elements for r in row.outputs}
            if row.base in POINTWISE or row.base in ("clone", "_to_copy"):
                found |= {r.key for r in row.reads if r.key in backward and r.elements in size}
    return found


def regroup(rows: list[Row], facts: Facts, weight_gradients: set[Key]) -> list[Unit]:
    """Units in the order of their first rows."""
    flow = _Flow(rows)
    taken: dict[int, int] = {}
    units: list[tuple[int, Unit]] = []

    def take(kind: Kind, members: list[int], name: str = "") -> None:
        for i in members:
            taken[i] = len(units)
        units.append((members[0], Unit(kind, tuple(rows[i] for i in members), name)))

    for name, members in _updates(rows, facts):
        take("update", members, name)
    for members in _cells(flow, facts, weight_gradients):
        take("cell", members)
    for members in _cross_entropies(flow):
        take("cross_entropy", members)
    for members in _masks(flow):
        take("rng", members)
    for members in _slices(flow):
        take("pad", members)
    free = [i for i in range(len(rows)) if i not in taken]
    for i in free:
        if _accumulates(rows[i]):
            take("accumulate", [i])
    for members in _chains(flow, [i for i in free if i not in taken]):
        row = rows[members[0]]
        kind = "loss" if row.node in LOSS_NODES else "chain"
        take(kind, members, LOSS_NODES.get(row.node, backward_function(row)))
    for i in range(len(rows)):
        if i not in taken:
            take("row", [i])
    return [unit for _, unit in sorted(units, key=lambda u: u[0])]


def backward_function(row: Row) -> str:
    """The function name of pointwise work in an autograd node.

    >>> from jouletrace.capture.rows import Place
    >>> row = Row("aten::mul", {}, (), (), "backward", "", Place("", 0), "LeakyReluBackward0")
    >>> backward_function(row)
    'leaky_relu_backward'
    """
    if row.base == "hardtanh_backward":
        limits = row.arguments["min_val"], row.arguments["max_val"]
        return "relu6_backward" if limits == (0, 6) else "hardtanh_backward"
    words = re.sub(r"Backward\d*$", "", row.node)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower() + "_backward"


def _accumulates(row: Row) -> bool:
    """The sum of two gradients of one tensor, which the autograd engine makes between nodes."""
    a = row.arguments
    if row.stage != "backward" or row.base != "add" or a.get("alpha", 1) != 1:
        return False
    one, two = a["self"], a["other"]
    return isinstance(one, Ref) and isinstance(two, Ref) and one.shape == two.shape


def _updates(rows: list[Row], facts: Facts) -> list[tuple[str, list[int]]]:
    """Optimizer rows by parameter: runs of pointwise rows, of which the one that writes it is the update.

    What a step does to a parameter outside its optimizer (clipping weights) belongs to its update too.
    """
    parameters = {s: t.name for s, t in facts.existing.items() if t.role == "param"}
    owner: dict[int, str] = {s: t.owner for s, t in facts.existing.items() if t.owner}
    owner |= {storage: name for (storage, _), name in facts.gradients.items()}
    made: dict[int, set[str]] = {}
    runs: dict[str, list[list[int]]] = defaultdict(lambda: [[]])
    for i, row in enumerate(rows):
        outside = row.stage == "forward" and any(w.storage in parameters for w in row.writes)
        if row.stage != "optimizer" and not outside:
            continue
        storages = [r.storage for r in (*row.reads, *row.outputs)]
        owners = {owner[s] for s in storages if s in owner}
        owners = owners or set[str]().union(*(made.get(s, set()) for s in storages))
        for ref in row.outputs:
            made.setdefault(ref.storage, set()).update(owners)
        if len(owners) != 1:
            continue
        name = next(iter(owners))
        if row.base in (*POINTWISE, "clone", "copy", "_to_copy") or fills_mask(row):
            runs[name][-1].append(i)
        elif runs[name][-1]:
            runs[name].append([])
    return [
        (name, run)
        for name, parts in runs.items()
        for run in parts
        if any(parameters.get(w.storage) == name for i in run for w in rows[i].writes)
    ]


def _cells(flow: _Flow, facts: Facts, weight_gradients: set[Key]) -> list[list[int]]:
    """The pointwise rows of one layer and time step, told apart by how many products lie before them."""
    cells: list[list[int]] = []
    for layer in facts.recurrent:
        depth: dict[Key, int] = {}
        steps: dict[tuple[str, int], list[int]] = defaultdict(list)
        for i, row in enumerate(flow.rows):
            here = row.layer == layer
            product = here and row.base in ("addmm", "mm")
            level = max((depth.get(r.key, 0) for r in row.reads), default=0) + product
            depth |= dict.fromkeys(row.produced, level)
            gates = row.base == "cat" and row.node.startswith("UnsafeSplitBackward")
            pointwise = row.base in POINTWISE or row.base == "clone" or gates
            if here and pointwise and row.stage != "optimizer" and not weight_gradients & row.produced.keys():
                steps[row.stage, level].append(i)
        for members in steps.values():
            cells += [
                part for part in flow.components(members)
                if any(flow.rows[i].base in ("tanh", "tanh_backward") for i in part)
            ]  # fmt: skip
    return cells


def _cross_entropies(flow: _Flow) -> list[list[int]]:
    """log-softmax whose only forward use is the loss, and the two backward."""
    found: list[list[int]] = []
    for i, row in enumerate(flow.rows):
        if row.base in ("nll_loss_forward", "nll_loss2d_forward"):
            source = row.arguments["self"].key
            j = flow.maker.get(source)
            uses = [k for k in flow.readers[source] if flow.rows[k].stage == "forward"]
            if j is not None and flow.rows[j].base == "_log_softmax" and uses == [i]:
                found.append([j, i])
        elif row.base == "_log_softmax_backward_data":
            source = row.arguments["grad_output"].key
            j = flow.maker.get(source)
            if j is not None and flow.rows[j].base.startswith("nll_loss") and flow.readers[source] == [i]:
                found.append([j, i])
    return found


def _masks(flow: _Flow) -> list[list[int]]:
    """Random values and the pointwise steps in place that scale them."""
    found: list[list[int]] = []
    for i, row in enumerate(flow.rows):
        if row.base not in ("bernoulli", "rand", "uniform"):
            continue
        members, key = [i], row.outputs[0].key
        while len(readers := flow.readers[key]) == 1 and flow.rows[readers[0]].base in POINTWISE:
            scaled = flow.rows[readers[0]]
            if len(scaled.reads) != 1 or not scaled.writes:
                break
            members.append(readers[0])
            key = scaled.outputs[0].key
        found.append(members)
    return found


def _slices(flow: _Flow) -> list[list[int]]:
    """The gradient of a slice over several axes, which takes one row per axis."""
    found: list[list[int]] = []
    inside: set[int] = set()
    for i, row in enumerate(flow.rows):
        if row.base not in ("slice_backward", "select_backward") or i in inside:
            continue
        members = [i]
        while len(readers := flow.readers[flow.rows[members[-1]].outputs[0].key]) == 1:
            if flow.rows[readers[0]].base not in ("slice_backward", "select_backward"):
                break
            members.append(readers[0])
        inside |= set(members)
        found.append(members)
    return found


def _chains(flow: _Flow, free: list[int]) -> list[list[int]]:
    """Pointwise rows of one autograd node that feed one another, and nobody else in between."""
    nodes: dict[int, list[int]] = defaultdict(list)
    for i in free:
        row = flow.rows[i]
        if row.stage == "backward" and row.base in POINTWISE:
            nodes[row.node_id].append(i)
    chains: list[list[int]] = []
    for members in nodes.values():
        for part in flow.components(members):
            inside = Counter(r.key for i in part for r in flow.rows[i].reads)
            handed = [k for i in part for k in flow.rows[i].produced if inside[k]]
            if all(set(flow.readers[k]) <= set(part) for k in handed):
                chains.append(part)
            else:
                chains += [[i] for i in part]
    return chains
