"""A whole step on one hardware: every op mapped, in trace order, into one Program."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from jouletrace.errors import MappingError, UsageError, did_you_mean
from jouletrace.hardware.spec import ChannelParallel, Hardware, RowStationary
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.channel_parallel import ChannelParallelMapper, tile_of
from jouletrace.mapping.designs import built, vector_part
from jouletrace.mapping.fusion import FusionPlan, as_stored, plan_fusion
from jouletrace.mapping.loops import Loops, loops
from jouletrace.mapping.memory import Known, Wanted, content, is_off
from jouletrace.mapping.plan import Base, base_of
from jouletrace.mapping.program import OpInfo, Program
from jouletrace.mapping.remembered import Seen, remembered
from jouletrace.mapping.tiles import Tile, choose
from jouletrace.mapping.transfer import Memory, port
from jouletrace.mapping.vector import map_vector
from jouletrace.trace.check import waits_for
from jouletrace.trace.model import PHASES, Attention, Conv, Gemm, Op, Trace

__all__ = ["Edges", "map_step", "riders", "select", "serial"]


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


def map_step(
    trace: Trace, hardware: Hardware, *, only: str | None = None, base: Trace | None = None,
    ops: Collection[Op] | None = None,
) -> Program:  # fmt: skip
    """Maps the ops of a step (or the ones that ``only`` selects, or the given ``ops`` of it) to commands.

    Every op waits for the ops that wrote what it reads and for those it names in ``after``; an update also
    waits for the last reader of the parameter that it replaces. Where the schedule stops prefetching at a
    loop inside the op or at its end, an op waits for the one before it as well.

    ``base`` is the step for which the accelerator was planned: an op whose loops are those of the op of the same
    name there, or shorter, gets that op's tiles, blocks and chunks, unless its operands are too wide for them.

    Raises :class:`MappingError` with the problems of all ops at once.
    """
    if only is not None or base is not None or ops is not None or is_off():
        some = trace.ops if ops is None else ops
        return _mapped(trace, hardware, some if only is None else select(trace, only), base)
    seen = Seen((vector_part(hardware), built(hardware)), hardware)
    try:
        tiles = tuple([choose(op, loop, hardware) for op, loop in _tiled(trace, seen)])
    except MappingError:
        return _mapped(trace, hardware, trace.ops, None)  # raises the problems of all ops
    program = _whole(trace, seen, tiles)
    return program.on(hardware.name, port(hardware, program.port.engine))


@remembered(8)
def _tiled(trace: Trace, seen: Seen) -> tuple[tuple[Op, Loops], ...]:
    """The loops of a whole step that get a tile, each once, and an op that has them."""
    hardware = seen.hardware
    if not isinstance(hardware.array, ChannelParallel):
        return ()
    fusion = plan_fusion(trace, hardware)
    stored, rides = as_stored(trace, fusion), riders(fusion)
    found = {
        content(op, stored, fusion, rides): op
        for op in stored.ops if _on_array(op, hardware) and isinstance(op.nest, Conv | Gemm)
    }  # fmt: skip
    return tuple([(op, loops(op, stored, hardware)) for op in found.values()])


@remembered(8)
def _whole(trace: Trace, seen: Seen, tiles: tuple[Tile, ...]) -> Program:
    """A whole step, which is the same on all hardwares that are built alike and choose the same tiles."""
    return _mapped(trace, seen.hardware, trace.ops, None)


def _mapped(trace: Trace, hardware: Hardware, ops: Collection[Op], base: Trace | None) -> Program:
    builder = ProgramBuilder(hardware.name)
    memory = Memory(hardware, builder)
    channels = None
    if isinstance(hardware.array, ChannelParallel):
        channels = ChannelParallelMapper(hardware, builder, memory)
    in_turn = serial(hardware)
    planned_fusion = None if base is None else plan_fusion(base, hardware)
    fusion = plan_fusion(trace, hardware, ops, planned_fusion)
    stored = as_stored(trace, fusion)
    if base is not None and planned_fusion is not None:
        base = as_stored(base, planned_fusion)
    awaited = _awaited(trace, fusion)
    looks = _looks(ops, stored, hardware, fusion, base, planned_fusion)
    known = None if is_off() else Known(hardware, (look.wanted for look in looks.values()))
    waits: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    previous: tuple[int, ...] = ()
    for op in ops:
        host, look = fusion.hosts.get(op.name), looks[op.name]
        after = {i for name in awaited(op) if name != host for i in waits.get(name, ())}
        info = OpInfo(op.name, op.layer, op.phase, op.kind, op.macs)
        with builder.op(info, after=after | set(previous if in_turn else ())) as index:
            found = None if known is None else known.find(look.wanted)
            if look.problems:
                problems += look.problems
            elif found is not None:
                builder.repeat(found)
            else:
                try:
                    found = builder.recorded(
                        _map(op, stored, hardware, memory, channels, look.tile, fusion, look.planned)
                    )
                    if known is not None:
                        known.keep(look.wanted, found)
                except MappingError as error:
                    problems += error.problems
        # An op without commands passes on what it waits for.
        waits[op.name] = (index,) if builder.has_commands(index) else tuple(sorted(after))
        if host is not None:  # its result leaves with its host's store
            waits[op.name] += waits[host]
        previous = waits[op.name] or previous
    if problems:
        raise MappingError(problems)
    if known is not None:
        known.write()
    return builder.build(memory.port())


class _Look(NamedTuple):
    """What there is to say about an op before it is mapped: a tile if it gets one, or why it gets none."""

    planned: Base | None
    tile: Tile | None
    wanted: Wanted
    problems: tuple[str, ...]


def _looks(
    ops: Collection[Op], trace: Trace, hardware: Hardware, fusion: FusionPlan, base: Trace | None,
    planned_fusion: FusionPlan | None,
) -> dict[str, _Look]:  # fmt: skip
    rides = riders(fusion)
    planned_edges = None if planned_fusion is None else (planned_fusion, riders(planned_fusion))
    tiles: dict[object, Tile | None] = {}
    looks: dict[str, _Look] = {}
    for op in ops:
        planned = base_of(op, base)
        instead = None
        if planned is not None and planned_edges is not None:
            instead = content(planned.op, planned.trace, *planned_edges)
        like, on_array = (content(op, trace, fusion, rides), instead), _on_array(op, hardware)
        problems: tuple[str, ...] = ()
        if like not in tiles and on_array and isinstance(hardware.array, ChannelParallel):
            try:
                tiles[like] = tile_of(op, trace, hardware, planned)
            except MappingError as error:
                problems = error.problems
        tile = tiles.get(like)
        looks[op.name] = _Look(planned, tile, (on_array, (*like, tile)), problems)
    return looks


def _on_array(op: Op, hardware: Hardware) -> bool:
    """Whether the array computes an op, and not the vector unit or the host."""
    on_host = hardware.host is not None and op.kind in hardware.host.kinds
    return isinstance(op.nest, Conv | Gemm | Attention) and not on_host


def riders(fusion: FusionPlan) -> dict[str, str]:
    """What rides on each host."""
    return {host: rider for rider, host in fusion.hosts.items()}


def serial(hardware: Hardware) -> bool:
    """Whether every op waits for the one before it: where prefetching stops inside the op or at its end."""
    array = hardware.array
    return isinstance(array, ChannelParallel) and array.schedule.prefetch_stops_at != "never"


@remembered(8)
def _awaited(trace: Trace, fusion: FusionPlan) -> Callable[[Op], list[str]]:
    """Whom the ops of a step await, each worked out once."""
    edges = Edges(trace, fusion)
    known: dict[str, list[str]] = {}

    def awaited(op: Op) -> list[str]:
        found = known.get(op.name)
        if found is None:
            found = known[op.name] = edges.of(op)
        return found

    return awaited


class Edges:
    """Who awaits whom in a step, before ops without commands are replaced by what they wait for.

    An op awaits the writers of what it reads, the ops that it names in ``after``, and the decision of its gate; an
    update also awaits the other readers of the parameter that it replaces. An op that carries riders awaits what these
    await, and a rider its host.
    """

    def __init__(self, trace: Trace, fusion: FusionPlan) -> None:
        self.trace = trace
        self.fusion = fusion
        self.riders = riders(fusion)

    def of(self, op: Op) -> list[str]:
        """Names of the ops that must have ended before this one starts."""
        needed = self._own(op)
        chain, rider = {op.name}, self.riders.get(op.name)
        while rider is not None:
            chain.add(rider)
            needed += self._own(self.trace.op[rider])
            rider = self.riders.get(rider)
        return [name for name in dict.fromkeys(needed) if name not in chain]

    def _own(self, op: Op) -> list[str]:
        trace = self.trace
        needed = [trace.writer[t].name for t in op.reads if t in trace.writer]
        if op.phase == "update":
            params = (t for t in op.reads if trace.tensor[t].role == "param")
            needed += [reader.name for t in params for reader in trace.readers[t] if reader.name != op.name]
        return needed + list(waits_for(op))


def _map(
    op: Op, trace: Trace, hardware: Hardware, memory: Memory, channels: ChannelParallelMapper | None,
    tile: Tile | None, fusion: FusionPlan, base: Base | None,
) -> int:  # fmt: skip
    if not _on_array(op, hardware):
        return map_vector(op, trace, hardware, memory, fusion, base)
    if channels is not None and tile is not None:
        return channels.map(op, trace, tile, is_variant=base is not None)
    # Imported where it is needed: a run needs one array.
    if isinstance(hardware.array, RowStationary):
        from jouletrace.mapping.row_stationary import map_row_stationary

        return map_row_stationary(op, trace, hardware, memory, fusion, base)
    from jouletrace.mapping.systolic import map_systolic

    return map_systolic(op, trace, hardware, memory, base)
