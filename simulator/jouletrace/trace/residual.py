"""Residual units: the branch F of every ``out = shortcut + F(x)``, found from the data flow.

A branch may be left out for a batch, or for some of its samples: the output is then the shortcut, and the gradient
of the output that of the shortcut (Huang et al., Deep Networks with Stochastic Depth, ECCV 2016, section 3; Wang et
al., E2-Train, NeurIPS 2019, section 3.2). A projection on the shortcut is not part of the unit: it always runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jouletrace.trace.branches import Branch, Branches
from jouletrace.trace.model import Copy, Elementwise, Op, Pool, Trace

__all__ = ["Residuals", "Unit", "residual_units", "residuals"]


@dataclass(frozen=True)
class Unit:
    """One residual branch with all that goes when it is skipped.

    ``forward`` are the ops of F, the add, and a relu behind it where that cannot change the shortcut; ``backward``
    what differentiates them, ``updates`` those of parameters that no other op uses. ``params`` are all parameters
    that F reads. ``source`` is the tensor x, ``shortcut`` the operand of ``add`` that stays, ``output`` what it stands
    for when the unit is skipped. ``kind`` says whether the shortcut is x or a projection of it.
    """

    name: str
    kind: Literal["identity", "projection"]
    source: str
    shortcut: str
    output: str
    add: str
    forward: tuple[str, ...]
    backward: tuple[str, ...]
    updates: tuple[str, ...]
    params: tuple[str, ...]

    @property
    def ops(self) -> tuple[str, ...]:
        """All its ops, in the order of the step."""
        return (*self.forward, *self.backward, *self.updates)


@dataclass(frozen=True)
class Residuals:
    """The units of a step in forward order, and for every other sum of two activations why it is none."""

    units: tuple[Unit, ...]
    left: Mapping[str, str]


def residual_units(trace: Trace) -> tuple[Unit, ...]:
    """The residual units of a step, in forward order.

    >>> from jouletrace.trace.io import load_trace
    >>> [unit.name for unit in residual_units(load_trace("resnet20-cifar10-b32"))][:4]
    ['layer1.0', 'layer1.1', 'layer1.2', 'layer2.0']
    """
    return residuals(trace).units


def residuals(trace: Trace) -> Residuals:
    """The residual units of a step, and a reason for every add that belongs to none.

    Ops that carry a gate of kind ``block`` belong to the unit of that name; its structure is found all the same.
    """
    known = trace.__dict__.get("_residuals")  # kept as a cached property of the frozen trace
    if isinstance(known, Residuals):
        return known
    search = _Assembly(trace)
    found: list[Branch] = []
    left: dict[str, str] = {}
    for op in search.forward:
        if isinstance(op.nest, Elementwise) and op.nest.function == "add":
            branch = search.branch(op)
            if isinstance(branch, Branch):
                found.append(branch)
            elif branch:
                left[op.name] = f"Op {op.name!r} closes no residual unit: {branch}."
    outermost: list[Branch] = []
    for branch in found:
        outer = next((o for o in found if branch.add.name in o.ops), None)
        if outer is None:
            outermost.append(branch)
        else:
            left[branch.add.name] = f"Op {branch.add.name!r} lies inside the unit that {outer.add.name!r} closes."
    names = _names(search.trace, outermost)
    units = tuple(search.unit(name, branch) for name, branch in zip(names, outermost, strict=True))
    return trace.__dict__.setdefault("_residuals", Residuals(units, MappingProxyType(left)))


class _Assembly(Branches):
    """From branches to units: what else belongs to them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self.claimed = set[str]()  # additions that belong to a unit

    def unit(self, name: str, branch: Branch) -> Unit:
        add, members = branch.add, set(branch.ops) | {branch.add.name}
        relu = self._trailing(branch)
        if relu is not None:
            members.add(relu.name)
        output = add.writes[0] if relu is None else relu.writes[0]
        made = {t for op in members for t in self.trace.op[op].writes} - {output}
        members |= {b for b, f in self.pairs.differentiates.items() if f in members}
        members |= {b for b, t in self.pairs.accumulates.items() if t in made}
        members |= self._boundary(members, self.pairs.gradient.get(add.writes[0]))
        members |= {op.name for op in self.whole.ops if self.gated_alike(add, op)}
        params = self.params(op.name for op in self.forward if op.name in members)
        own = params - self.params(op.name for op in self.forward if op.name not in members)
        members |= {op.name for op in self.trace.ops if op.kind == "update" and op.reads[0] in own}
        for op in reversed(self.whole.ops):  # copies for this unit alone
            if op.name in self.pairs.copies:
                readers = [reader.name in members for name in op.writes for reader in self.whole.readers[name]]
                members.update([op.name] if readers and all(readers) else [])
        ops = [op for op in self.whole.ops if op.name in members]
        return Unit(
            name, branch.kind, branch.source, branch.shortcut, output, add.name,
            tuple(op.name for op in ops if op.phase == "forward"),
            tuple(op.name for op in ops if op.phase.startswith("backward")),
            tuple(op.name for op in ops if op.phase == "update"),
            tuple(t.name for t in self.trace.tensors if t.name in params),
        )  # fmt: skip

    def _boundary(self, members: set[str], passed: str | None) -> set[str]:
        """Additions of what F gives to a gradient outside; what the add passes on to its shortcut is outside too."""
        own = {name for op in members for name in self.trace.op[op].writes} - {passed}
        found = set[str]()
        for op in self.trace.ops:
            if op.name in self.pairs.accumulates and op.name not in members | self.claimed:
                mine = [name in own for name in op.reads]
                if all(mine) or (any(mine) and len(mine) == 2 and isinstance(op.nest, Elementwise)):
                    found.add(op.name)
                own.update(op.writes if all(mine) else ())
        self.claimed |= found
        return found

    def _trailing(self, branch: Branch) -> Op | None:
        """The relu behind the add, if it alone reads the sum and leaves the shortcut as it is."""
        total = branch.add.writes[0]
        readers = self.trace.readers.get(total, ())
        forward = [op for op in readers if op.phase == "forward"]
        if len(forward) != 1 or _clips(forward[0]) is None:
            return None
        relu = forward[0]
        alone = all(self.pairs.differentiates.get(op.name) == relu.name for op in readers if op is not relu)
        return relu if alone and self._within(branch.shortcut, _clips(relu) or 0) else None

    def _within(self, name: str, most: int) -> bool:
        """Is a tensor certainly not negative, and at most ``most`` (relu: without bound, relu6: 6)?"""
        writer = self.trace.writer.get(name)
        if writer is None:
            return False
        if isinstance(writer.nest, Pool) or (isinstance(writer.nest, Copy) and len(writer.reads) == 1):
            return self._within(writer.reads[0], most)
        clips = _clips(writer)
        return clips is not None and clips <= most


_CLIPS = {"relu6": 6, "relu": 1 << 62}


def _clips(op: Op) -> int | None:
    """The largest result of a function that has no negative ones; None for all others."""
    return _CLIPS.get(op.nest.function) if isinstance(op.nest, Elementwise) else None


def _common(paths: list[list[str]]) -> str:
    """The longest path that all begin with."""
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _names(trace: Trace, branches: list[Branch]) -> list[str]:
    """The common layer path of each unit; of several with the same path, what tells their adds apart."""
    names: list[str] = []
    for branch in branches:
        gate = branch.add.gate
        layers = [trace.op[name].layer.split(".") for name in (*branch.ops, branch.add.name)]
        path, plain = _common(layers), branch.add.name.replace(":forward", "")
        number = plain.rpartition("#")[1:] if "#" in plain else ()
        if gate is not None and gate.unit == "block":
            names.append(gate.name)
        else:
            names.append("".join((path, *number)) if path else plain)
    plain = [branch.add.name.replace(":forward", "") for branch in branches]
    return [own if names.count(name) > 1 else name for name, own in zip(names, plain, strict=True)]
