"""Elementwise functions that ride on the store of the op before them.

    conv -> y -> (DRAM) -> relu -> z     becomes     conv -> relu -> z

The intermediate ``y`` never reaches DRAM: its producer's store carries ``z`` in its place, and the consumer neither
loads nor stores. It still computes: while its host runs, or behind it where a schedule executes one op after the
other. A consumer rides if *all* of this holds:

1. It is an elementwise op whose function the hardware lists in ``vector.fuses``.
2. Its host, the op that rides are taken on, is the last op that writes something it reads, and a convolution, gemm,
   norm or elementwise op. All else that it reads or waits for is there before the host begins.
3. It reads once, element by element, what its host computes of the intermediate, and writes as many values of the
   same width; nobody else reads the intermediate, now or in backward, and it is an activation or a gradient (never a
   result of the step).
4. Both stand under the same gate, and neither is left to the host CPU.

Since an intermediate has one reader, an op carries at most one rider; a rider may carry the next one, so that
conv -> add -> relu is one chain. Ops are looked at in trace order; no choice is ever made between two fusions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.remembered import Seen, remembered
from jouletrace.trace.model import Elementwise, Format, Op, Trace

__all__ = ["HOSTS", "NARROWING", "NO_FUSION", "FusionPlan", "as_stored", "plan_fusion"]

HOSTS = ("conv", "gemm", "norm", "elementwise")
# Functions that may leave the host's store with values of another width than they read.
NARROWING = frozenset({"quantize", "cast"})


@dataclass(frozen=True, slots=True)
class FusionPlan:
    """Which ops ride on which, and so which transfers every mapping function leaves out.

    ``hosts``: op -> the op that it rides on (which may itself ride). ``on_chip_reads`` and ``on_chip_writes``:
    (op, tensor). ``misses``: for each op that could ride by its function, why it does not.
    """

    hosts: Mapping[str, str]
    on_chip_reads: frozenset[tuple[str, str]]
    on_chip_writes: frozenset[tuple[str, str]]
    misses: Mapping[str, str]

    def __hash__(self) -> int:
        """Looks at little: plans are looked up often, and few are alike."""
        return hash((len(self.hosts), len(self.misses)))

    def looked_at(self, op: str) -> bool:
        """Whether this op could ride by its function."""
        return op in self.hosts or op in self.misses

    def reads_dram(self, op: str, tensor: str) -> bool:
        """Whether this operand is to be loaded."""
        return (op, tensor) not in self.on_chip_reads

    def writes_dram(self, op: str, tensor: str) -> bool:
        """Whether this result is to be stored."""
        return (op, tensor) not in self.on_chip_writes


NO_FUSION = FusionPlan(MappingProxyType({}), frozenset(), frozenset(), MappingProxyType({}))


def plan_fusion(
    trace: Trace, hardware: Hardware, ops: Collection[Op] | None = None, base: FusionPlan | None = None
) -> FusionPlan:
    """Everything that rides, by the rules above; with ``ops``, only pairs that both are among them.

    The plan depends on the trace and on ``vector.fuses``, ``host.kinds`` and ``word`` of the hardware only; that of a
    whole step is remembered. ``base`` is the plan of the step for which the accelerator was programmed: what it looked
    at rides as it did there, or not at all.
    """
    if ops is not None and ops is not trace.ops:
        return _plan(trace, hardware, ops, base)
    software = () if hardware.host is None else hardware.host.kinds
    return _whole_plan(trace, Seen((hardware.vector.fuses, software, hardware.word_bits), hardware), base)


@remembered(8)
def _whole_plan(trace: Trace, seen: Seen, base: FusionPlan | None) -> FusionPlan:
    return _plan(trace, seen.hardware, trace.ops, base)


def _plan(trace: Trace, hardware: Hardware, ops: Collection[Op], base: FusionPlan | None) -> FusionPlan:
    position = {op.name: i for i, op in enumerate(trace.ops)}
    hosts: dict[str, str] = {}
    reads: set[tuple[str, str]] = set()
    writes: set[tuple[str, str]] = set()
    misses: dict[str, str] = {}
    selected = {op.name for op in ops}
    fuses = hardware.vector.fuses
    for op in trace.ops:
        if op.name not in selected or not isinstance(op.nest, Elementwise) or op.nest.function not in fuses:
            continue
        host = _last_writer(op, trace, position)
        if host is None or host.name not in selected:
            misses[op.name] = "nothing that it reads is written in this step"
            continue
        between = [name for name in op.reads if trace.writer.get(name) is host]
        if base is not None and base.looked_at(op.name) and base.hosts.get(op.name) != host.name:
            misses[op.name] = f"the accelerator was programmed without a ride on {host.name}"
            continue
        if miss := _miss(op, host, between, trace, hardware, position):
            misses[op.name] = miss
            continue
        hosts[op.name] = host.name
        reads.add((op.name, between[0]))
        writes |= {(op.name, result) for result in op.writes}
    return FusionPlan(MappingProxyType(hosts), frozenset(reads), frozenset(writes), MappingProxyType(misses))


def _last_writer(op: Op, trace: Trace, position: Mapping[str, int]) -> Op | None:
    writers = [trace.writer[name] for name in op.reads if name in trace.writer]
    return max(writers, key=lambda writer: position[writer.name], default=None)


def _miss(
    op: Op, host: Op, between: list[str], trace: Trace, hardware: Hardware, position: Mapping[str, int]
) -> str:
    """Why ``op`` cannot ride on ``host``, or nothing."""
    name = between[0]
    tensor, touched = trace.tensor[name], trace.elements_read(op)[op.reads.index(name)]
    computed = dict(zip(host.writes, trace.elements_written(host), strict=True))[name]
    written = trace.elements_written(op)
    bits = {hardware.storage_bits(trace.tensor[t].bits) for t in (name, *op.writes)}
    narrows = isinstance(op.nest, Elementwise) and op.nest.function in NARROWING
    others = [reader.name for reader in trace.readers[name] if reader is not op]
    software = () if hardware.host is None else hardware.host.kinds
    late = [waited for waited in op.after if position[waited] > position[host.name]]
    rules = (
        (host.kind not in HOSTS, f"{host.name} is of kind {host.kind}, which carries no rider"),
        (host.kind in software or op.kind in software, f"it or {host.name} is left to the host CPU"),
        (len(between) > 1, f"it reads {len(between)} results of {host.name}"),
        (bool(others), f"{name} is also read by {', '.join(others)}"),
        (tensor.saved, f"{name} is saved for backward"),
        (tensor.role not in ("activation", "gradient"), f"{name} has the role {tensor.role}, which stays"),
        (any(n != touched for n in (computed, *written)), f"it does not read {name} one to one"),
        (len(bits) > 1 and not narrows, f"it writes values of another width than {name}"),
        (bool(late), f"it waits for {', '.join(late)}, after {host.name}"),
        (op.gate != host.gate, f"it and {host.name} stand under different gates"),
    )
    return next((reason for broken, reason in rules if broken), "")


@remembered(8)
def as_stored(trace: Trace, fusion: FusionPlan) -> Trace:
    """The step with intermediates as wide as what leaves in their place: a host stores the width of its last rider."""
    widths: dict[str, tuple[int, Format]] = {}
    intermediates = dict(fusion.on_chip_reads)
    for name in reversed(tuple(fusion.hosts)):  # riders of riders first
        result = trace.tensor[trace.op[name].writes[0]]
        widths[intermediates[name]] = widths.get(result.name, (result.bits, result.format))
    if all((trace.tensor[t].bits, trace.tensor[t].format) == width for t, width in widths.items()):
        return trace
    tensors = tuple(
        replace(t, bits=widths[t.name][0], format=widths[t.name][1]) if t.name in widths else t for t in trace.tensors
    )
    return replace(trace, tensors=tensors)
