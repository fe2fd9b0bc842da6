"""The Program: what the accelerator's engines are told to do, as one frozen value.

A program is a sequence of commands. Every engine (a DMA stream, the DRAM port, the PE array, the
vector unit, the host, the sequencer) executes its commands in program order. A command

* holds one or more engines, each for an integer number of cycles, from one common start;
* starts when all its engines are free and at this command, the credits that it takes are there, and
  the ops named by ``after`` have ended;
* ends when its longest hold ends, and then gives its credits.

Credits are how buffers and hand-shakes are written down: a load takes one credit of ``ifm.free`` and
gives one of ``ifm.full``. A pool has one taking and one giving engine, so with a fixed order the k-th
take waits for one known give: the program is a max-plus linear system, and every engine that respects
it finds the same cycles.

Real steps repeat few distinct commands very often, so distinct commands are stored once and the
sequence is an array of indices into them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jouletrace.trace.model import Phase

__all__ = [
    "Action", "Command", "Engine", "EngineKind", "OpCommands", "OpInfo", "Pool", "Port", "Program", "ProgramBuilder",
]  # fmt: skip

# (component, action, tensor role); the role is "" where no tensor is meant
Action = tuple[str, str, str]
EngineKind = Literal["dma", "dram", "array", "vector", "host", "control"]
Sequence32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    kind: EngineKind


@dataclass(frozen=True, slots=True)
class Pool:
    """Credits that one engine takes and one engine gives.

    ``buffer`` names the buffer whose free slots these credits are (its fill is ``credits`` minus what
    is left), or is empty for hand-shakes.
    """

    name: str
    credits: int
    buffer: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One distinct command of one op.

    ``holds`` are (engine index, cycles), the driving engine first. ``takes`` and ``gives`` are (pool
    index, credits). ``start_cycles`` is the part of the hold that is a start cost (address
    discontinuity, row miss), for the report. ``after`` are indices of ops. ``counts`` are the accesses
    that the command makes.
    """

    op: int
    name: str
    holds: tuple[tuple[int, int], ...]
    takes: tuple[tuple[int, int], ...] = ()
    gives: tuple[tuple[int, int], ...] = ()
    after: tuple[int, ...] = ()
    start_cycles: int = 0
    counts: tuple[tuple[Action, int], ...] = ()

    @property
    def cycles(self) -> int:
        return max((cycles for _, cycles in self.holds), default=0)


@dataclass(frozen=True, slots=True)
class OpInfo:
    """What the report needs to know of an op."""

    name: str
    layer: str
    phase: Phase
    kind: str
    macs: int
    tiles: int = 0


@dataclass(frozen=True, slots=True)
class Port:
    """How streams share the DRAM port.

    ``program_order``: commands hold the port engine like any other, in program order (also used where
    every stream has a fixed share, and so no command holds the port). ``round_robin``: a command's hold
    of ``engine`` is served in grants of ``grant_cycles``, to the waiting streams in turn; only the
    events engine can do that, and program order is not kept on the port.
    """

    arbitration: Literal["program_order", "round_robin"] = "program_order"
    engine: int = -1
    grant_cycles: int = 1


@dataclass(frozen=True, eq=False)
class Program:
    """Commands in program order, with everything needed to execute and report them."""

    hardware: str
    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    ops: tuple[OpInfo, ...]
    commands: tuple[Command, ...]
    sequence: Sequence32
    port: Port = Port()

    @property
    def tiles(self) -> int:
        """Load-compute-store groups of all ops."""
        return sum(op.tiles for op in self.ops)

    @cached_property
    def repeats(self) -> NDArray[np.int64]:
        """How often each distinct command stands in the sequence."""
        return np.bincount(self.sequence, minlength=len(self.commands)).astype(np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class OpCommands:
    """What one op became, free of its program: to become the same again, in this program or another.

    ``engines`` and ``pools`` stand in the order in which the op asked for them, and commands number those; ``sequence``
    counts from the op's first command.
    """

    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    commands: tuple[Command, ...]
    sequence: Sequence32
    tiles: int


class ProgramBuilder:
    """Collects engines, pools and commands; the only mutable thing in the mapping.

    >>> builder = ProgramBuilder("toy")
    >>> dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    >>> free, full = builder.pool("x.free", 2, buffer="x"), builder.pool("x.full", 0)
    >>> with builder.op(OpInfo("conv:forward", "conv", "forward", "conv", macs=9)):
    ...     load = builder.command("load", [(dma, 5)], takes=[(free, 1)], gives=[(full, 1)])
    ...     compute = builder.command("compute", [(pe, 9)], takes=[(full, 1)], gives=[(free, 1)])
    ...     builder.emit([load, compute], times=3)
    >>> builder.build().sequence.tolist()
    [0, 1, 0, 1, 0, 1]
    """

    def __init__(self, hardware: str) -> None:
        self._hardware = hardware
        self._engines: dict[str, tuple[int, Engine]] = {}
        self._pools: dict[str, tuple[int, Pool]] = {}
        self._ops: list[OpInfo] = []
        self._commands: list[Command] = []
        self._sequence: list[Sequence32] = []
        self._emitted = 0
        self._after: tuple[int, ...] = ()
        # Of the open op: its commands, where it begins, and the engines and pools that it asked for.
        self._own: dict[Command, int] = {}
        self._first = (0, 0)
        self._asked: tuple[dict[str, None], dict[str, None]] = ({}, {})

    def engine(self, name: str, kind: EngineKind) -> int:
        """The index of the engine of this name, made on first use."""
        self._asked[0][name] = None
        return self._engines.setdefault(name, (len(self._engines), Engine(name, kind)))[0]

    def pool(self, name: str, credits: int, buffer: str = "") -> int:
        """The index of the pool of this name, made on first use."""
        self._asked[1][name] = None
        return self._pools.setdefault(name, (len(self._pools), Pool(name, credits, buffer)))[0]

    @property
    def emitted(self) -> int:
        """Commands in the sequence so far."""
        return self._emitted

    @property
    def op_index(self) -> int:
        """The op that is being mapped."""
        return len(self._ops) - 1

    @contextmanager
    def op(self, info: OpInfo, after: Iterable[int] = ()) -> Generator[int, None, None]:
        """Opens an op: commands made inside belong to it, and none starts before ``after`` have ended."""
        self._ops.append(info)
        self._after = tuple(sorted(set(after)))
        self._own = {}
        self._first = (len(self._commands), len(self._sequence))
        self._asked = ({}, {})
        yield self.op_index
        self._after = ()

    def set_tiles(self, tiles: int) -> None:
        """States the number of load-compute-store groups of the current op."""
        self._ops[-1] = replace(self._ops[-1], tiles=tiles)

    def command(
        self,
        name: str,
        holds: Iterable[tuple[int, int]],
        takes: Iterable[tuple[int, int]] = (),
        gives: Iterable[tuple[int, int]] = (),
        start_cycles: int = 0,
        counts: Iterable[tuple[Action, int]] = (),
    ) -> int:
        """The index of a command of the current op; equal commands are stored once."""
        command = Command(
            self.op_index, name, tuple(holds), tuple(takes), tuple(gives), self._after, start_cycles,
            tuple((action, n) for action, n in counts if n),
        )  # fmt: skip
        known = self._own.get(command)
        if known is None:
            known = self._own[command] = len(self._commands)
            self._commands.append(command)
        return known

    def emit(self, commands: Iterable[int] | Sequence32, times: int = 1) -> None:
        """Appends commands to the program, the whole list ``times`` times."""
        chunk = np.asarray(
            commands if isinstance(commands, np.ndarray) else list(commands), dtype=np.int32
        )
        self._sequence.append(np.tile(chunk, times) if times != 1 else chunk)
        self._emitted += len(chunk) * times

    def recorded(self) -> OpCommands:
        """What the open op has become so far."""
        first, chunk = self._first
        own = self._commands[first:]
        engines, pools = dict(self._asked[0]), dict(self._asked[1])
        made = tuple(engine.name for _, engine in self._engines.values()), tuple(self._pools)
        for command in own:  # some engines and pools were made before all ops
            engines.update((made[0][engine], None) for engine, _ in command.holds)
            pools.update((made[1][pool], None) for pool, _ in (*command.takes, *command.gives))
        engine = {self._engines[name][0]: i for i, name in enumerate(engines)}
        pool = {self._pools[name][0]: i for i, name in enumerate(pools)}
        sequence = np.concatenate([np.zeros(0, dtype=np.int32), *self._sequence[chunk:]])
        return OpCommands(
            tuple(self._engines[name][1] for name in engines),
            tuple(self._pools[name][1] for name in pools),
            tuple(_renumbered(command, 0, (), engine, pool) for command in own),
            sequence - np.int32(first),
            self._ops[-1].tiles,
        )

    def repeat(self, op: OpCommands) -> None:
        """Lets the open op become what another has become."""
        engine = {i: self.engine(e.name, e.kind) for i, e in enumerate(op.engines)}
        pool = {i: self.pool(p.name, p.credits, p.buffer) for i, p in enumerate(op.pools)}
        first, index, after = len(self._commands), self.op_index, self._after
        self._commands += [_renumbered(command, index, after, engine, pool) for command in op.commands]
        self.emit(op.sequence + np.int32(first))
        self.set_tiles(op.tiles)

    def build(self, port: Port | None = None) -> Program:
        """The finished, frozen program."""
        sequence = (
            np.concatenate(self._sequence) if self._sequence else np.zeros(0, dtype=np.int32)
        )
        sequence.setflags(write=False)
        return Program(
            self._hardware,
            tuple(engine for _, engine in self._engines.values()),
            tuple(pool for _, pool in self._pools.values()),
            tuple(self._ops),
            tuple(self._commands),
            sequence,
            port or Port(),
        )


def _renumbered(
    command: Command, op: int, after: tuple[int, ...], engine: Mapping[int, int], pool: Mapping[int, int]
) -> Command:
    """The command in another place, with other numbers for its engines and pools."""
    return Command(
        op, command.name, tuple([(engine[e], cycles) for e, cycles in command.holds]),
        tuple([(pool[p], n) for p, n in command.takes]), tuple([(pool[p], n) for p, n in command.gives]), after,
        command.start_cycles, command.counts,
    )  # fmt: skip
