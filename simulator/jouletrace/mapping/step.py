"""A whole step on one hardware: every op mapped, in trace order, into one Program."""

from __future__ import annotations

from jouletrace.errors import MappingError, UsageError, did_you_mean
from jouletrace.hardware.spec import ChannelParallel, Hardware
from jouletrace.mapping.channel_parallel import ChannelParallelMapper
from jouletrace.mapping.fusion import FusionPlan, plan_fusion
from jouletrace.mapping.program import OpInfo, Program, ProgramBuilder
from jouletrace.mapping.systolic import map_systolic
from jouletrace.mapping.transfer import Memory
from jouletrace.mapping.vector import map_vector
from jouletrace.trace.model import PHASES, Attention, Conv, Gemm, Op, Trace

__all__ = ["map_step", "select"]


def select(trace: Trace, only: str) -> tuple[Op, ...]:
    """The ops of ``LAYER`` or ``LAYER:PHASE``; a layer path also selects everything below it.

    Raises :class:`UsageError` with a suggestion if nothing is selected.
    """
    layer, _, phase = only.partition(":")
    if phase and phase not in PHASES:
        raise UsageError(
            f"--only {only!r}: there is no phase {phase!r}; phases are {', '.join(PHASES)}"
            f"{did_you_mean(phase, PHASES)}"
        )
    below = f"{layer}."
    found = tuple(
        op
        for op in trace.ops
        if (op.layer == layer or op.layer.startswith(below)) and (not phase or op.phase == phase)
    )
    if found:
        return found
    parts = [op.layer.split(".") for op in trace.ops]
    paths = sorted({".".join(path[:n]) for path in parts for n in range(1, len(path) + 1)})
    if layer in paths:
        here = {op.phase for op in trace.ops if op.layer == layer or op.layer.startswith(below)}
        has = [p for p in PHASES if p in here]
        raise UsageError(f"--only {only!r}: layer {layer!r} has no {phase} op; it has {', '.join(has)}")
    raise UsageError(
        f"--only {only!r}: the trace {trace.header.name!r} has no layer {layer!r}"
        f"{did_you_mean(layer, paths)}; 'jouletrace show {trace.header.name}' lists its layers"
    )


def map_step(trace: Trace, hardware: Hardware, *, only: str | None = None) -> Program:
    """Maps the ops of a step (or the selected ones) to commands.

    Every op waits for the ops that wrote what it reads and for those it names in ``after``; an update also
    waits for the last reader of the parameter that it replaces. Where the schedule stops prefetching at a
    loop inside the op or at its end, an op waits for the one before it as well.

    Raises :class:`MappingError` with the problems of all ops at once.
    """
    builder = ProgramBuilder(hardware.name)
    memory = Memory(hardware, builder)
    if isinstance(hardware.array, ChannelParallel):
        channels = ChannelParallelMapper(hardware, builder, memory)
        in_turn = hardware.array.schedule.prefetch_stops_at != "never"
    else:
        channels, in_turn = None, False
    ops = select(trace, only) if only is not None else trace.ops
    fusion = plan_fusion(trace, hardware, ops)
    riders = {host: rider for rider, host in fusion.hosts.items()}
    waits: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    previous: tuple[int, ...] = ()
    for op in ops:
        needed = _needed(op, trace)
        rider = riders.get(op.name)
        while rider is not None:  # what rides on this op's store must have all that it reads
            needed += [name for name in _needed(trace.op[rider], trace) if name not in (op.name, fusion.hosts[rider])]
            rider = riders.get(rider)
        host = fusion.hosts.get(op.name)
        needed = [name for name in needed if name != host]
        after = {i for name in needed for i in waits.get(name, ())}
        info = OpInfo(op.name, op.layer, op.phase, op.kind, op.macs)
        with builder.op(info, after=after | set(previous if in_turn else ())) as index:
            before = builder.emitted
            try:
                builder.set_tiles(_map(op, trace, hardware, memory, channels, fusion))
            except MappingError as error:
                problems += error.problems
        # An op without commands passes on what it waits for.
        waits[op.name] = (index,) if builder.emitted > before else tuple(sorted(after))
        if host is not None:  # its result leaves with its host's store
            waits[op.name] += waits[host]
        previous = waits[op.name] or previous
    if problems:
        raise MappingError(problems)
    return builder.build(memory.port())


def _needed(op: Op, trace: Trace) -> list[str]:
    """Names of the ops that must have ended before this one starts."""
    needed = [trace.writer[t].name for t in op.reads if t in trace.writer]
    if op.phase == "update":
        needed += [
            reader.name
            for t in op.reads
            if trace.tensor[t].role == "param"
            for reader in trace.readers[t]
            if reader.name != op.name
        ]
    return needed + list(op.after)


def _map(
    op: Op, trace: Trace, hardware: Hardware, memory: Memory, channels: ChannelParallelMapper | None, fusion: FusionPlan
) -> int:
    on_host = hardware.host is not None and op.kind in hardware.host.kinds
    if on_host or not isinstance(op.nest, Conv | Gemm | Attention):
        return map_vector(op, trace, hardware, memory, fusion)
    if channels is None:
        return map_systolic(op, trace, hardware, memory)
    return channels.map(op, trace)
