"""A step in micro-batches: forward and backward several times over a part of the batch, one update.

    forward, backward, update       becomes       (forward, backward, accumulate) × batch/n, update

The first micro-batch leaves its weight gradients; each later one adds its own, which reads both and writes
the sum. Weights are read anew by every micro-batch. Running statistics go from one to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from jouletrace.errors import TraceError, UsageError
from jouletrace.trace.batch import with_batch
from jouletrace.trace.check import check
from jouletrace.trace.graph import successors
from jouletrace.trace.model import Elementwise, Header, Norm, Op, Tensor, Trace

__all__ = ["micro_batched"]


def micro_batched(trace: Trace, size: int) -> Trace:
    """The same step over the same batch in micro-batches of ``size``; the trace itself if that is its batch.

    Ops and tensors of micro-batch k are called ``name@k``; parameters, their final gradients and the update
    keep their names. MACs are the same, exactly. The header keeps the whole batch and tells what differs:
    batch norm takes its statistics per micro-batch.

    Raises UsageError if ``size`` does not divide the batch, and TraceError where an update reads what
    belongs to a single micro-batch.
    """
    batch = trace.header.batch
    if not 1 <= size <= batch or batch % size:
        near = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise UsageError(f"Micro-batches of {size} do not divide the batch of {batch}; possible are {near}.")
    if size == batch:
        return trace
    split = _Split(trace, with_batch(trace, size), batch // size)
    result = replace(trace, header=_header(trace, size), tensors=split.tensors(), ops=split.ops())
    check(result)
    return result


def _header(trace: Trace, size: int) -> Header:
    header = trace.header
    policy = tuple(entry for entry in header.policy if entry[0] != "batch_axes")  # names have changed
    warnings = header.warnings
    if any(isinstance(op.nest, Norm) and op.nest.function == "batch" for op in trace.ops):
        warnings += (
            f"micro-batches of {size}: batch norm takes its statistics over {size} samples instead of "
            f"{header.batch}, so that training differs",
        )
    policy += (("micro_batch", str(size)),)
    return replace(header, name=f"{header.name}-mb{size}", policy=policy, warnings=warnings)


class _Split:
    """One step cut into ``repeats`` micro-batches; ``part`` is the step over one of them."""

    def __init__(self, whole: Trace, part: Trace, repeats: int) -> None:
        self.whole, self.part, self.repeats = whole, part, repeats
        self.repeated = [op for op in part.ops if op.phase != "update"]
        self.updates = [op for op in whole.ops if op.phase == "update"]
        self.names = {op.name for op in self.repeated}
        self.made = {name for op in self.repeated for name in op.writes}
        data = {t.name for t in part.tensors if t.role == "input" and t != whole.tensor[t.name]}
        self.own = self.made | data  # what every micro-batch has for itself
        self.summed = self._summed()
        self.carried = self._carried()

    def tensors(self) -> tuple[Tensor, ...]:
        """Shared tensors as they are, those of a micro-batch once for each, and sums of weight gradients."""
        result: list[Tensor] = []
        for tensor in self.part.tensors:
            if tensor.name in self.own:
                result += (replace(tensor, name=_at(tensor.name, k)) for k in self._all())
            if tensor.name in self.summed:
                result += (replace(tensor, name=_sum(tensor.name, k)) for k in range(2, self.repeats))
            if tensor.name not in self.own or tensor.name in self.summed:
                result.append(tensor)
        return tuple(result)

    def ops(self) -> tuple[Op, ...]:
        """All micro-batches in turn, then the update."""
        result: list[Op] = []
        for k in self._all():
            for op in self.repeated:
                result.append(self._op(op, k))
                if k > 1:
                    result += (self._accumulate(op, name, k) for name in op.writes if name in self.summed)
        result += (self._update(op) for op in self.updates)
        return tuple(result)

    def _update(self, op: Op) -> Op:
        """Runs once, after everything that it waits for; a gate's last decision comes after the others."""
        gate = op.gate
        if gate is not None and gate.decision in self.names:
            gate = replace(gate, decision=_at(gate.decision, self.repeats))
        return replace(op, after=tuple(self._every(op.after)), gate=gate)

    def _all(self) -> range:
        return range(1, self.repeats + 1)

    def _summed(self) -> frozenset[str]:
        """What the update reads of the backward pass."""
        read = {name for op in self.updates for name in op.reads} & self.made
        problems = [
            f"The update reads {t.name!r} of role {t.role}, which every micro-batch makes anew; only weight "
            "gradients can be summed over micro-batches."
            for t in map(self.part.tensor.__getitem__, sorted(read))
            if t.role != "weight_gradient"
        ]
        problems += [
            f"The update reads {t.name!r}, whose elements are signs; signs of micro-batches do not add up to the sign "
            "of the sum. Take whole batches."
            for t in map(self.part.tensor.__getitem__, sorted(read))
            if t.format == "sign"
        ]
        if problems:
            raise TraceError(problems)
        return frozenset(read)

    def _carried(self) -> Mapping[str, str]:
        """Running statistics: what exists before the step -> its last version within a micro-batch."""
        following = {old: new for old, new in successors(self.part).items() if new in self.made}
        carried: dict[str, str] = {}
        for old in following:
            if old not in self.made:
                carried[old] = following[old]
                while carried[old] in following:
                    carried[old] = following[carried[old]]
        return carried

    def _name(self, tensor: str, k: int) -> str:
        """What micro-batch ``k`` calls a tensor that it reads or writes."""
        if tensor in self.carried and k > 1:
            return _at(self.carried[tensor], k - 1)
        return _at(tensor, k) if tensor in self.own else tensor

    def _op(self, op: Op, k: int) -> Op:
        gate = op.gate
        if gate is not None and gate.decision in self.names:
            gate = replace(gate, decision=_at(gate.decision, k))
        return replace(
            op,
            name=_at(op.name, k),
            reads=tuple(self._name(name, k) for name in op.reads),
            writes=tuple(_at(name, k) for name in op.writes),
            after=tuple(_at(name, k) if name in self.names else name for name in op.after),
            gate=gate,
        )

    def _accumulate(self, op: Op, gradient: str, k: int) -> Op:
        """Adds the gradient of micro-batch ``k`` to the sum so far; the last sum has the gradient's name."""
        before = _at(gradient, 1) if k == 2 else _sum(gradient, k - 1)
        after = gradient if k == self.repeats else _sum(gradient, k)
        nest = Elementwise("accumulate", self.part.tensor[gradient].elements)
        name = _at(f"{gradient}.accumulate", k)
        return Op(name, "backward_weight", op.layer, nest, (before, _at(gradient, k)), (after,))

    def _every(self, names: Iterable[str]) -> Iterable[str]:
        """An op of the step, or all its copies."""
        for name in names:
            yield from (_at(name, k) for k in self._all()) if name in self.names else (name,)


def _at(name: str, k: int) -> str:
    return f"{name}@{k}"


def _sum(name: str, k: int) -> str:
    return f"{name}@1-{k}"
