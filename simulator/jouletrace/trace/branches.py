"""The search for closed branches: the ops of F in ``out = shortcut + F(x)``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from jouletrace.trace.adjoint import Adjoint, adjoint
from jouletrace.trace.copies import plain
from jouletrace.trace.graph import STATE_ROLES, successors
from jouletrace.trace.model import Conv, Copy, Elementwise, Gemm, Norm, Op, Pool, Tensor, Trace

__all__ = ["Branch", "Branches"]


@dataclass(frozen=True)
class Branch:
    """A branch before it has a name: the ops of F, their MACs, and the add, source and shortcut around them."""

    add: Op
    kind: Literal["identity", "projection"]
    source: str
    shortcut: str
    ops: frozenset[str]
    macs: int


class Branches:
    """The search for branches in one step, without copies (``trace``); ``whole`` is the step itself."""

    def __init__(self, trace: Trace) -> None:
        self.whole, self.trace = trace, plain(trace)[0]
        self.pairs: Adjoint = adjoint(trace)
        self.place = {op.name: i for i, op in enumerate(self.trace.ops)}
        self.forward = [op for op in self.trace.ops if op.phase == "forward"]
        self.versions = frozenset(successors(trace).values())

    # -- one add

    def branch(self, add: Op) -> Branch | str:
        """The branch that an add closes, or why there is none; empty for a sum that is no candidate at all."""
        tensors = [self.trace.tensor[name] for name in add.reads]
        data = all(map(_is_data, tensors))
        same = {*self.trace.elements_read(add)} == {*self.trace.elements_written(add)}
        if len(tensors) != 2 or not data or not same:
            return ""
        first, second = add.reads
        if first == second:
            return "both its operands are the same tensor"
        options = [*self._identity(add, first, second), *self._identity(add, second, first)]
        options = options or self._projection(add, first, second)
        if not options:
            return "its operands have no tensor in common from which two closed branches lead to them"
        options.sort(key=lambda option: -option.macs)
        if len(options) > 1 and options[0].macs == options[1].macs:
            return f"its two branches have {options[0].macs} MACs each, so that neither is the shortcut"
        return self._outside(options[0]) or options[0]

    def _identity(self, add: Op, branch: str, shortcut: str) -> list[Branch]:
        """F ends in ``branch``, and ``shortcut`` is x, or a sum that has x as one of its terms."""
        terms, seen = [shortcut], set[str]()
        for source in terms:
            writer = self.trace.writer.get(source)
            if writer is not None and isinstance(writer.nest, Elementwise) and writer.nest.function == "add":
                terms += (name for name in writer.reads if name not in seen)
                seen.update(writer.reads)
            ops = self._between(source, branch)
            if ops:
                return [self._made(add, "identity", source, shortcut, ops)]
        return []

    def _projection(self, add: Op, first: str, second: str) -> list[Branch]:
        """Both operands are computed from x; the cheaper branch is the shortcut if it is a plain projection."""
        common = self._ancestors(first) & self._ancestors(second)
        for source in sorted(common, key=lambda name: -self._written(name)):
            mine, other = self._between(source, first), self._between(source, second)
            if mine and other and mine.isdisjoint(other):
                return [
                    self._made(add, "projection", source, shortcut, ops)
                    for ops, shortcut, rest in ((mine, second, other), (other, first, mine))
                    if self._projects(rest) and self.params(ops).isdisjoint(self.params(rest))
                ]
        return []

    def _made(self, add: Op, kind: Literal["identity", "projection"], source: str, shortcut: str,
              ops: frozenset[str]) -> Branch:  # fmt: skip
        return Branch(add, kind, source, shortcut, ops, sum(self.trace.op[name].macs for name in ops))

    def _projects(self, ops: Iterable[str]) -> bool:
        """At most one product, with norms and movements around it."""
        nests = [self.trace.op[name].nest for name in ops]
        products = [n for n in nests if isinstance(n, Conv | Gemm)]
        return len(products) < 2 and all(isinstance(n, Conv | Gemm | Norm | Copy | Pool) for n in nests)

    # -- ways through the forward pass

    def _written(self, name: str) -> int:
        writer = self.trace.writer.get(name)
        return -1 if writer is None else self.place[writer.name]

    def _ancestors(self, name: str) -> set[str]:
        """The data that a tensor is computed from."""
        found, waiting = set[str](), [name]
        while waiting:
            writer = self.trace.writer.get(waiting.pop())
            for read in writer.reads if writer is not None else ():
                if read not in found and _is_data(self.trace.tensor[read]):
                    found.add(read)
                    waiting.append(read)
        return found

    def _between(self, source: str, end: str) -> frozenset[str]:
        """The ops that compute ``end`` from ``source``; none if they need other data that is trained or given."""
        reached = {source}
        for op in self.trace.ops[max(0, self._written(source)) :]:
            if op.phase == "forward" and not reached.isdisjoint(op.reads):
                reached.update(op.writes)
        if end not in reached or end == source:
            return frozenset()
        ops, waiting = dict[str, Op](), [end]
        while waiting:
            name = waiting.pop()
            writer = self.trace.writer.get(name)
            if name == source or writer is None or writer.name in ops:
                if name != source and writer is None and self.trace.tensor[name].role == "input":
                    return frozenset()
                continue
            if name in reached:
                ops[writer.name] = writer
                waiting += writer.reads
            elif name in self.pairs.gradient or not self._private(writer, ops):
                if name in self.pairs.gradient:
                    return frozenset()
            else:  # drawn or computed for this branch alone, such as a dropout mask
                ops[writer.name] = writer
                waiting += (read for read in writer.reads if read in self.trace.writer)
        return frozenset(ops)

    def _private(self, op: Op, ops: Mapping[str, Op]) -> bool:
        readers = {r.name for t in op.writes for r in self.trace.readers.get(t, ()) if r.phase == "forward"}
        return readers <= ops.keys()

    def _outside(self, branch: Branch) -> str:
        """What of a branch is read by others than itself, the add and its own backward ops; empty if nothing."""
        mine = branch.ops | {branch.add.name}
        for name in sorted(branch.ops, key=self.place.__getitem__):
            for tensor in self.trace.op[name].writes:
                if self.trace.tensor[tensor].role in STATE_ROLES and tensor in self.versions:
                    continue  # a new version of a running statistic: the old one passes through
                for reader in self.trace.readers.get(tensor, ()):
                    owner = self.pairs.differentiates.get(reader.name, reader.name)
                    if owner not in mine and not self.gated_alike(branch.add, reader):
                        return f"op {reader.name!r} reads {tensor!r} inside its branch"
        return ""

    def gated_alike(self, add: Op, op: Op) -> bool:
        gates = [(gate.unit, gate.name) for gate in (add.gate, op.gate) if gate is not None]
        return len(gates) == 2 and gates[0] == gates[1] and gates[0][0] == "block"

    def params(self, ops: Iterable[str]) -> frozenset[str]:
        return frozenset(t for name in ops for t in self.trace.op[name].reads if self.trace.tensor[t].role == "param")


def _is_data(tensor: Tensor) -> bool:
    """Maps and their like; not the indices of a table."""
    return tensor.role == "activation" or (tensor.role == "input" and tensor.format != "int")
