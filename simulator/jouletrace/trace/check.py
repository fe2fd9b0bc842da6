"""What makes a trace valid, as a list of sentences about whatever is not.

A trace that passes is a graph without cycles in which every tensor is written at most once, everything that
is read exists, every count fits the loop nest that it belongs to, and nothing is computed in vain. What a
step leaves behind, its *final values*, are

* the last version of every parameter, optimizer state and buffer (running statistics, counters), updated or
  passed through, and
* what a ``loss`` op of the forward phase writes.

Every other tensor has to be read by an op, unless it is a by-product: something else that its op writes is
used, or other ops wait for its op.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from jouletrace.errors import TraceError
from jouletrace.trace.codec import MAX_INTEGER, FieldError, canonical, decode, encode, field_names, parse
from jouletrace.trace.field_types import well_typed
from jouletrace.trace.graph import STATE_ROLES
from jouletrace.trace.model import Attention, Conv, Gemm, Header, Nest, Op, Pool, Tensor, Trace
from jouletrace.trace.operands import disagreements

__all__ = ["Finding", "check", "findings", "is_final", "problems", "waits_for"]

MAX_NAME = 256
MAX_BITS = 1024
MAX_KERNEL = 1 << 16
# Dimensions that may be zero; all others are at least one.
_MAY_BE_ZERO = frozenset({"padding", "flops_per_element"})
# Roles of tensors that may exist before the step begins.
_GIVEN = ("input", *STATE_ROLES)


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, and the header, tensor or op (by position) in which it shows."""

    kind: Literal["header", "tensor", "op"]
    index: int
    sentence: str


def check(trace: Trace) -> None:
    """Returns if the trace is valid, else raises TraceError with every problem, one sentence each."""
    if found := problems(trace):
        raise TraceError(found)


def problems(trace: Trace) -> list[str]:
    """Every rule that the trace breaks, each a sentence that names the op or the tensor.

    >>> from jouletrace.trace.model import Elementwise
    >>> relu = Op("relu:forward", "forward", "relu", Elementwise("relu", 4), ("x",), ("y",))
    >>> y = Tensor("y", (4,), 32, "fp", "buffer")
    >>> problems(Trace(Header("broken", 1), (y,), (relu,)))
    ["Op 'relu:forward' reads 'x', which is no tensor of this trace."]
    """
    return [finding.sentence for finding in findings(trace)]


def is_final(trace: Trace, tensor: Tensor) -> bool:
    """Does this tensor outlive the step whether or not an op reads it (see the top of this module)?"""
    if tensor.role in STATE_ROLES:
        return True
    writer = trace.writer.get(tensor.name)
    return writer is not None and writer.kind == "loss" and writer.phase == "forward"


def waits_for(op: Op) -> tuple[str, ...]:
    """The ops that have to end before ``op`` by its control edges and its gate."""
    decision = op.gate.decision if op.gate is not None else None
    return op.after if decision is None else (*op.after, decision)


def findings(trace: Trace, *, typed: bool = False) -> Iterator[Finding]:
    """The problems with their places, one after the other.

    Fields of a wrong type, or outside a closed set, are told first and alone: the other rules could not
    be read on them. ``typed`` says that the fields are known to be right, as after decoding a file.
    """
    wrong = [] if typed else list(_fields(trace))
    yield from wrong
    if not wrong:
        yield from _header(trace)
        bad = [tuple(_bad_values(tensor)) for tensor in trace.tensors]
        sound = frozenset(t.name for t, sentences in zip(trace.tensors, bad, strict=True) if not sentences)
        yield from _tensors(trace, bad)
        yield from _ops(trace, sound)


def _fields(trace: Trace) -> Iterator[Finding]:
    """Values of a wrong type; found by the same annotations that a file is decoded with."""
    for index, tensor in enumerate(trace.tensors):
        for sentence in _mistyped(Tensor, tensor):
            yield Finding("tensor", index, f"Tensor {tensor.name!r}: {sentence}.")
    for index, op in enumerate(trace.ops):
        for sentence in _mistyped(Op, op):
            yield Finding("op", index, f"Op {op.name!r}: {sentence}.")
    for sentence in _mistyped(Header, trace.header):
        yield Finding("header", 0, f"Header: {sentence}.")


def _mistyped(record: type, value: object) -> list[str]:
    if well_typed(record)(value):
        return []
    try:
        decode(record, encode(value))
    except FieldError as error:
        return error.sentences()
    return []


def _header(trace: Trace) -> Iterator[Finding]:
    header = trace.header
    for sentence in _bad_name("The trace", header.name):
        yield Finding("header", 0, sentence)
    if header.batch < 1:
        yield Finding("header", 0, f"The batch of the trace is {header.batch}; it has to be at least 1.")
    keys = [key for key, _ in trace.extensions]
    for key, text in trace.extensions:
        if key in (*field_names(Header), "format") or keys.count(key) > 1:
            yield Finding("header", 0, f"The extension {key!r} of the header stands there twice.")
        elif not _is_canonical(text):
            yield Finding("header", 0, f"The extension {key!r} of the header is not canonical JSON.")


def _is_canonical(text: str) -> bool:
    try:
        return canonical(parse(text)) == text
    except FieldError:
        return False


def _bad_name(what: str, name: str) -> Iterator[str]:
    if not name:
        yield f"{what} has an empty name."
    elif len(name) > MAX_NAME:
        yield f"{what} {name[:40]!r}… has a name of {len(name)} characters; {MAX_NAME} are allowed."


def _product(dimensions: tuple[int, ...]) -> int:
    """The product, or a number too large; never an integer without end."""
    result = 1
    for dimension in dimensions:
        result *= dimension
        if result > MAX_INTEGER:
            break
    return result


# -- tensors


def _tensors(trace: Trace, bad: Sequence[Sequence[str]]) -> Iterator[Finding]:
    seen: set[str] = set()
    used = _used(trace)
    for index, tensor in enumerate(trace.tensors):
        name = f"Tensor {tensor.name!r}"
        for sentence in _bad_name("A tensor", tensor.name):
            yield Finding("tensor", index, sentence)
        if tensor.name in seen:
            yield Finding("tensor", index, f"{name} stands twice in the trace.")
        seen.add(tensor.name)
        for sentence in bad[index]:
            yield Finding("tensor", index, f"{name} {sentence}.")
        if tensor.name not in used:
            yield Finding("tensor", index, f"{name} of role {tensor.role} is read by no op and is no final "
                          "value of the step; prune the trace.")  # fmt: skip


def _used(trace: Trace) -> set[str]:
    """Tensors that are read or final, and by-products of ops that are needed for another reason."""
    used = {name for op in trace.ops for name in op.reads}
    used |= {t.name for t in trace.tensors if is_final(trace, t)}
    awaited = {name for op in trace.ops for name in waits_for(op)}
    for op in trace.ops:
        if op.name in awaited or not used.isdisjoint(op.writes):
            used.update(op.writes)
    return used


def _bad_values(tensor: Tensor) -> Iterator[str]:
    if min(tensor.shape, default=1) < 1:
        yield f"has the shape {tensor.shape}; every dimension has to be at least 1"
    elif _product((*tensor.shape, max(1, tensor.bits))) > MAX_INTEGER:
        yield "has 2**63 bits or more"
    if not 1 <= tensor.bits <= MAX_BITS:
        yield f"has {tensor.bits} bits per element; 1 to {MAX_BITS} are allowed"
    present, of = tensor.density
    if of < 1 or not 0 <= present <= of:
        yield f"has the density {present}/{of}; it has to lie between 0 and 1"


# -- ops


@dataclass(frozen=True)
class _Seen:
    """What a rule for one op has to know of the others."""

    trace: Trace
    place: dict[str, int]  # the first op of each name
    writer: dict[str, int]  # the first op that writes each tensor
    sound: frozenset[str]  # tensors whose elements may be counted
    update: dict[str, str]  # the op that replaces each parameter version, as far as seen

    def name(self, index: int) -> str:
        return repr(self.trace.ops[index].name)


def _ops(trace: Trace, sound: frozenset[str]) -> Iterator[Finding]:
    seen = _Seen(trace, {}, {}, sound, {})
    for index, op in enumerate(trace.ops):
        seen.place.setdefault(op.name, index)
        for name in op.writes:
            seen.writer.setdefault(name, index)
    for index, op in enumerate(trace.ops):
        for rule in (_naming, _reading, _writing, _ordering, _versions, _nest):
            for sentence in rule(seen, op, index):
                yield Finding("op", index, f"Op {op.name!r} {sentence}.")


def _naming(seen: _Seen, op: Op, index: int) -> Iterator[str]:
    if not op.name or len(op.name) > MAX_NAME:
        yield f"has a name of {len(op.name)} characters; 1 to {MAX_NAME} are allowed"
    if seen.place[op.name] != index:
        yield "stands twice in the trace"
    if len(op.layer) > MAX_NAME:
        yield f"has a layer name of {len(op.layer)} characters; {MAX_NAME} are allowed"
    if op.gate is not None and not 1 <= len(op.gate.name) <= MAX_NAME:
        yield f"has a gate whose name has {len(op.gate.name)} characters; 1 to {MAX_NAME} are allowed"


def _reading(seen: _Seen, op: Op, index: int) -> Iterator[str]:
    tensors = seen.trace.tensor
    for name in dict.fromkeys(op.reads):
        writer = seen.writer.get(name)
        if name not in tensors:
            yield f"reads {name!r}, which is no tensor of this trace"
        elif writer == index:
            yield f"reads {name!r}, which it writes itself"
        elif writer is not None and writer > index:
            yield f"reads {name!r}, which is written only later, by op {seen.name(writer)}"
        elif writer is None and tensors[name].role not in _GIVEN:
            yield f"reads {name!r}, which no op writes and which is not an input, parameter, state or buffer"
    if op.read_elements and len(op.read_elements) != len(op.reads):
        yield f"has {len(op.read_elements)} read_elements for {len(op.reads)} reads"
    else:
        for name, touched in zip(op.reads, op.read_elements, strict=False):
            if name in seen.sound and not 1 <= touched <= tensors[name].elements:
                yield f"touches {touched} elements of {name!r}, which has {tensors[name].elements}"
    if op.read_bits and len(op.read_bits) != len(op.reads):
        yield f"has {len(op.read_bits)} read_bits for {len(op.reads)} reads"
    else:
        for name, bits in zip(op.reads, op.read_bits, strict=False):
            if name in seen.sound and not 1 <= bits <= tensors[name].bits:
                yield f"fetches {bits} bits of each element of {name!r}, which has {tensors[name].bits}"


def _writing(seen: _Seen, op: Op, index: int) -> Iterator[str]:
    for position, name in enumerate(op.writes):
        if name not in seen.trace.tensor:
            yield f"writes {name!r}, which is no tensor of this trace"
        elif seen.writer[name] != index:
            yield f"writes {name!r}, which op {seen.name(seen.writer[name])} has written already"
        elif name in op.writes[:position]:
            yield f"writes {name!r} twice"
    if op.write_elements and len(op.write_elements) != len(op.writes):
        yield f"has {len(op.write_elements)} write_elements for {len(op.writes)} writes"
    else:
        for name, computed in zip(op.writes, op.write_elements, strict=False):
            if name in seen.sound and not 1 <= computed <= seen.trace.tensor[name].elements:
                yield f"computes {computed} elements of {name!r}, which has {seen.trace.tensor[name].elements}"


def _ordering(seen: _Seen, op: Op, index: int) -> Iterator[str]:
    before = [(name, "names in its 'after'") for name in op.after]
    if op.gate is not None and op.gate.decision is not None:
        before.append((op.gate.decision, "is gated by"))
    for name, relation in before:
        if name not in seen.place:
            yield f"{relation} {name!r}, which is no op of this trace"
        elif seen.place[name] >= index:
            yield f"{relation} {name!r}, which is no earlier op"


def _versions(seen: _Seen, op: Op, index: int) -> Iterator[str]:
    """Every parameter has one chain of versions, hence one that is final."""
    tensors = seen.trace.tensor
    written = [n for n in op.writes if n in tensors and tensors[n].role == "param"]
    if not written:
        return
    if op.kind != "update" or len(written) > 1:
        yield f"writes {written[-1]!r} of role param; only update ops write parameters, each one"
    elif op.reads:
        old = op.reads[0]
        if old in seen.update:
            yield (f"updates {old!r}, which op {seen.update[old]!r} updates already; "
                   "a parameter has one final version")  # fmt: skip
        seen.update.setdefault(old, op.name)


def _nest(seen: _Seen, op: Op, index: int) -> Iterator[str]:
    """Dimensions in their bounds, and operands that fit them."""
    nest = op.nest
    bad = list(_bad_dimensions(nest))
    yield from bad
    known = all(name in seen.sound for name in (*op.reads, *op.writes))
    counted = all(
        len(part) in (0, len(names)) and all(n > 0 for n in part)
        for names, part in ((op.reads, op.read_elements), (op.writes, op.write_elements))
    )
    if known and counted and not bad:
        tensors = seen.trace.tensor
        reads, writes = (tuple(tensors[n] for n in names) for names in (op.reads, op.writes))
        yield from disagreements(op, reads, op.read_elements or tuple(t.elements for t in reads), writes)


def _bad_dimensions(nest: Nest) -> Iterator[str]:
    for name in field_names(type(nest)):
        value: object = getattr(nest, name)
        least = 0 if name in _MAY_BE_ZERO else 1
        numbers = cast(tuple[object, ...], value) if isinstance(value, tuple) else (value,)
        if any(type(n) is int and n < least for n in numbers):
            yield f"has {name} = {value}; it has to be at least {least}"
    if isinstance(nest, Conv | Pool) and max(nest.R, nest.S) > MAX_KERNEL:
        yield f"has a kernel of {nest.R} × {nest.S}; {MAX_KERNEL} is the most for each side"
    if _product(_loops(nest)) > MAX_INTEGER:
        yield "has a loop nest of 2**63 or more iterations"


def _loops(nest: Nest) -> tuple[int, ...]:
    """The dimensions whose product bounds every count of the nest."""
    match nest:
        case Conv():
            return (nest.N, nest.G, nest.K, nest.C, nest.OY, nest.OX, nest.R, nest.S)
        case Pool():
            return (nest.N, nest.C, nest.OY, nest.OX, nest.R, nest.S)
        case Gemm():
            return (nest.B, nest.M, nest.N, nest.K)
        case Attention():
            return (2, nest.B, nest.Q, nest.K, nest.D)
        case _:  # equal to the elements of an operand
            return ()
