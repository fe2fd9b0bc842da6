"""Operands of chosen widths: the rewrite that all strategies of the precision stage share.

Rounding to integers is work of its own. A tensor that is wanted at b bits gets a copy, written by an op
``Elementwise("quantize")`` behind the op that writes the tensor, and its readers read the copy:

    conv -> y -> relu -> r -> conv     becomes     conv -> y -> relu -> r -> quantize -> r.int8 -> conv

A weight is quantised once per step; the update reads and writes the master copy. A tensor that is wanted at several
widths is quantised to the widest, whose most significant bits are the others. With a dynamic range, a reduction
reads the wide tensor first to find the scale.

Two scopes: products alone read copies, or every reader of an activation or gradient does (``kept``), so that nothing
wide is kept. In the second one, results that are chosen from narrow values (relu, pooling by maximum, copies) have
these codes to begin with and need no op. Floating-point units round on the way out, so that narrow floating-point
results need no op either; only what exists wide before the step (weights, data) and the gradient of the loss is cast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast

from jouletrace.strategies.base import Notes
from jouletrace.strategies.products import aside, beside, unique
from jouletrace.trace.batch import POLICY as BATCH_AXES
from jouletrace.trace.codec import FieldError, canonical, parse
from jouletrace.trace.model import (
    Attention,
    Conv,
    Copy,
    Elementwise,
    Format,
    Gate,
    Gemm,
    Header,
    Loss,
    Op,
    Pool,
    Reduce,
    Role,
    Tensor,
    Trace,
)

__all__ = ["Range", "Scope", "Widths", "with_widths"]

Scope = Literal["operands", "activations"]
Range = Literal["delayed", "dynamic"]

# Functions whose results are values of their first operand.
_CHOOSING = frozenset({"relu", "relu6", "relu_backward", "relu6_backward"})
# A copy of a parameter is no version of it: it is made in this step and does not grow with the batch. Buffers that
# products read are initial states, with a row per sample.
_ROLES_OF_COPIES: Mapping[Role, Role] = MappingProxyType(
    {"param": "buffer", "input": "activation", "buffer": "activation"}
)


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits of the operands of one product: activations, weights, and the gradient of its result.

    ``gradient_data`` is the width of that gradient where backward-data reads it (``gradient`` if None).
    """

    activation: int
    weight: int
    gradient: int
    gradient_data: int | None = None

    def of(self, op: Op, tensor: Tensor) -> int:
        """The width at which a product reads one of its operands."""
        if tensor.role == "param":
            return self.weight
        if tensor.role != "gradient":
            return self.activation
        return self.gradient if op.phase == "backward_weight" else (self.gradient_data or self.gradient)


# -- the rewrite


def with_widths(
    trace: Trace,
    widths: Mapping[str, Widths],
    notes: Notes,
    *,
    kept: Widths | None = None,
    format: Literal["int", "fp"] = "int",
    dynamic: bool = False,
) -> Trace:
    """The step in which products read operands of chosen widths; the trace itself if nothing becomes narrower.

    ``widths``: for each product by name; the others keep theirs. ``kept``: widths of *all* activations and gradients,
    for every reader (scope ``activations``); losses and what they read stay wide. ``dynamic``: the scale is found in
    the tensor itself, by one more pass. Widths at or above that of a tensor change nothing.

    >>> import jouletrace
    >>> from jouletrace.strategies.products import products
    >>> step = jouletrace.load_trace("resnet20-cifar10-b32")
    >>> eight = dict.fromkeys((op.name for op in products(step)), Widths(8, 8, 8))
    >>> narrow = with_widths(step, eight, Notes("", 0))
    >>> narrow.bits_read(narrow.op["layer1.0.conv1:forward"])
    (8, 8)
    """
    rewrite = _Narrowing(trace, widths, kept, format, dynamic)
    rewritten, apart = rewrite.trace(), aside(trace)
    for op in trace.ops:
        if op.name in widths:
            before, after = trace.bits_read(op)[:2], rewritten.bits_read(rewritten.op[op.name])[:2]
            if before == after:
                notes.leave(op.name, "its operands are not wider than that")
            else:
                notes.match(op.name, f"{before[0]} × {before[1]} bits to {after[0]} × {after[1]}")
        elif op.name in apart:
            if isinstance(op.nest, Conv | Gemm):
                notes.leave(op.name, "no data goes from its layer to the loss")
        elif isinstance(op.nest, Conv | Gemm):
            notes.leave(op.name, "its layer keeps its widths")
        elif isinstance(op.nest, Attention):
            notes.leave(op.name, "fused attention is not taken apart")
    return rewritten


class _Narrowing:
    """One rewrite: which copies there are, in the order of the ops."""

    def __init__(
        self, before: Trace, widths: Mapping[str, Widths], kept: Widths | None, format: Format, dynamic: bool
    ) -> None:
        self.before, self.widths, self.kept, self.format, self.dynamic = before, widths, kept, format, dynamic
        self.tensors: dict[str, Tensor] = dict(before.tensor)
        self.ops: list[Op] = []
        self.names = set(before.op)
        self.place = {op.name: i for i, op in enumerate(before.ops)}
        self.aside = aside(before)
        self.main = {t.name: bits for t in before.tensors if (bits := self._main(t)) is not None}
        # Of each tensor the ops that want it narrower, by width; without those whose copies stand already.
        self.pending: dict[str, dict[int, list[Op]]] = {}
        for op in before.ops:
            for index, name in enumerate(op.reads):
                if (bits := self._wanted(op, index)) is not None:
                    self.pending.setdefault(name, {}).setdefault(bits, []).append(op)
        # Of each copy the tensor that it is a copy of, and of each tensor its version at each width.
        self.origin: dict[str, str] = {}
        self.versions: dict[tuple[str, int], str] = {}

    def trace(self) -> Trace:
        """The rewritten step."""
        for op in self.before.ops:
            for index, name in enumerate(op.reads):
                if self._wanted(op, index) is not None:
                    self._copies(name, op)
            reads = tuple(self._version(op, i) for i in range(len(op.reads)))
            self._rounded(op)
            self.ops.append(op if reads == op.reads else replace(op, reads=reads))
            for name in op.writes:
                self._copies(name, op, behind=True)
        if self.tensors == self.before.tensor:
            return self.before
        return replace(self.before, header=self._header(), tensors=tuple(self._saved()), ops=tuple(self.ops))

    def _header(self) -> Header:
        """Where the header says which dimension of a tensor carries the batch, it says so of the copies, too."""
        header = self.before.header
        text = dict(header.policy).get(BATCH_AXES)
        try:
            axes = None if text is None else parse(text)
        except FieldError:  # whoever changes the batch says so
            axes = None
        if not isinstance(axes, dict):
            return header
        known = cast(dict[str, Any], axes)
        known |= {copy: known[name] for copy, name in self.origin.items() if name in known}
        policy = [(key, canonical(known) if key == BATCH_AXES else value) for key, value in header.policy]
        return replace(header, policy=tuple(policy))

    # which widths

    def _main(self, tensor: Tensor) -> int | None:
        """The width at which everything reads a tensor, if that is narrower than it is."""
        if self.kept is None or tensor.format != "fp" or tensor.role not in ("activation", "gradient"):
            return None
        writer = self.before.writer.get(tensor.name)
        if writer is not None and writer.name in self.aside:
            return None
        around = (*self.before.readers.get(tensor.name, ()), *(() if writer is None else (writer,)))
        if tensor.role == "activation" and any(isinstance(op.nest, Loss) for op in around):
            return None
        bits = self.kept.activation if tensor.role == "activation" else self.kept.gradient
        return bits if bits < tensor.bits else None

    def _wanted(self, op: Op, index: int) -> int | None:
        """The width at which an op reads one of its operands, if that is narrower than the tensor."""
        name = op.reads[index]
        tensor = self.before.tensor[name]
        if op.name in self.widths and index < 2 and tensor.format == "fp":
            bits = self.widths[op.name].of(op, tensor)
            return bits if bits < tensor.bits else self.main.get(name)
        return None if isinstance(op.nest, Loss) else self.main.get(name)

    def _version(self, op: Op, index: int) -> str:
        bits = self._wanted(op, index)
        return op.reads[index] if bits is None else self.versions.get((op.reads[index], bits), op.reads[index])

    # what becomes of results

    def _rounded(self, op: Op) -> None:
        """Results that are narrow to begin with."""
        for name in op.writes:
            bits = self.main.get(name)
            if bits is not None and self._is_narrow(op, bits):
                self.tensors[name] = replace(self.tensors[name], bits=bits, format=self.format)
                self.versions[name, bits] = name

    def _is_narrow(self, op: Op, bits: int) -> bool:
        if self.format == "fp":
            return not isinstance(op.nest, Loss)
        match op.nest:
            case Elementwise(function=function) if function in _CHOOSING:
                sources = op.reads[:1]
            case Pool(function="max"):
                sources = op.reads[:1]
            case Copy():
                sources = op.reads
            case _:
                return False
        read = [self.tensors[self._version(op, op.reads.index(name))] for name in sources]
        return bool(read) and all((t.bits, t.format) == (bits, self.format) for t in read)

    # copies

    def _copies(self, name: str, op: Op, *, behind: bool = False) -> None:
        """Appends the ops that write the narrow copies of a tensor: behind its writer, or before its first user."""
        wanted = self.pending.get(name)
        if wanted is None:
            return
        gate = _common_gate([user for users in wanted.values() for user in users])
        decided = self.place[gate.decision] if gate is not None and gate.decision is not None else -1
        if behind and decided > self.place[op.name]:
            return  # whether anything wants them is decided later
        del self.pending[name]
        source, around = name, self.before.writer.get(name, op)
        for bits in sorted(wanted, reverse=True):
            tensor = self.tensors[source]
            if tensor.bits > bits or tensor.format != self.format:
                scale: tuple[str, ...] = ()
                if self.dynamic and tensor.format != self.format:
                    scale = (self._range(tensor, around, gate),)
                users = [user for n in wanted if n <= bits for user in wanted[n]]
                source = self._copy(name, bits, (source, *scale), around, _common_gate(users))
            self.versions[name, bits] = source

    def _range(self, tensor: Tensor, around: Op, gate: Gate | None) -> str:
        scale = unique(f"{tensor.name}.range", self.tensors)
        self.tensors[scale] = Tensor(scale, (), 32, "fp", "buffer")
        self._add(tensor.name, "range", around, gate, Reduce("max", tensor.elements, 1), (tensor.name,), scale)
        return scale

    def _copy(self, name: str, bits: int, reads: tuple[str, ...], around: Op, gate: Gate | None) -> str:
        tensor = self.before.tensor[name]
        role: Role = _ROLES_OF_COPIES.get(tensor.role, tensor.role)
        copy = unique(f"{name}.{self.format}{bits}", self.tensors)
        self.tensors[copy] = replace(tensor, name=copy, bits=bits, format=self.format, role=role)
        self.origin[copy] = name
        what = "quantize" if self.format == "int" else "cast"
        self._add(name, what, around, gate, Elementwise(what, tensor.elements), reads, copy)
        return copy

    def _add(
        self, name: str, what: str, around: Op, gate: Gate | None, nest: Elementwise | Reduce,
        reads: tuple[str, ...], result: str,
    ) -> None:  # fmt: skip
        """An op that serves a tensor; named after the tensor's writer, or after a tensor that exists before."""
        writer = self.before.writer.get(name)
        text = f"{name}.{what}:{around.phase}" if writer is None else beside(writer.name, what)
        op_name = unique(text, self.names)
        self.names.add(op_name)
        self.ops.append(Op(op_name, around.phase, around.layer, nest, reads, (result,), gate=gate))

    def _saved(self) -> Iterator[Tensor]:
        """All tensors that are used; what backward reads of forward is saved."""
        forward, backward, used = set[str](), set[str](), set[str]()
        for op in self.ops:
            (forward if op.phase == "forward" else backward if op.phase != "update" else used).update(op.reads)
            (forward if op.phase == "forward" else used).update(op.writes)
        used |= forward | backward
        for name, tensor in self.tensors.items():
            if tensor is self.before.tensor.get(name) and tensor.saved <= (name in backward):
                yield tensor
            else:
                yield replace(tensor, saved=name in forward and name in backward)


def _common_gate(ops: list[Op]) -> Gate | None:
    """The gate of ops that all stand under the same one."""
    first = ops[0].gate
    return first if all(op.gate == first for op in ops) else None
