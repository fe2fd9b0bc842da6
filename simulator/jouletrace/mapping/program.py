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

What an op becomes is an :class:`~jouletrace.mapping.op_program.OpProgram`. Ops with equal commands share one, and a
program says for each which of its engines and pools are meant, and which ops it awaits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np

from jouletrace.errors import MappingError
from jouletrace.mapping.arrays import Arrays, joined
from jouletrace.mapping.op_program import (
    Action,
    Command,
    Commands,
    Engine,
    EngineKind,
    Integers,
    OpProgram,
    Pool,
    Run,
    Sequence32,
)
from jouletrace.trace.model import Phase

__all__ = [
    "Action", "Command", "Engine", "EngineKind", "Integers", "OpInfo", "OpProgram", "Place", "Placed", "Pool", "Port",
    "Program", "ProgramBuilder", "Run", "Sequence32",
]  # fmt: skip


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

    ``bytes_per_cycle`` move over the port, or over each stream's share of it.
    """

    arbitration: Literal["program_order", "round_robin"] = "program_order"
    engine: int = -1
    grant_cycles: int = 1
    bytes_per_cycle: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Which engines and pools of a program those of an op program are, by index."""

    engines: tuple[int, ...]
    pools: tuple[int, ...]


class Placed(NamedTuple):
    """An op program in its place, and how many ops execute it."""

    body: OpProgram
    place: Place
    times: int


@dataclass(frozen=True, eq=False)
class Program:
    """Ops in program order, with everything needed to execute and report them.

    Op i executes ``bodies[i]`` with the engines and pools that ``places[i]`` names, once the ops ``after[i]`` have
    ended.
    """

    hardware: str
    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    ops: tuple[OpInfo, ...]
    bodies: tuple[OpProgram, ...]
    places: tuple[Place, ...]
    after: tuple[tuple[int, ...], ...]
    port: Port = Port()

    @classmethod
    def of(
        cls, hardware: str, engines: tuple[Engine, ...], pools: tuple[Pool, ...], ops: tuple[OpInfo, ...],
        commands: Sequence[Command], sequence: Sequence[int] | Sequence32, port: Port | None = None,
    ) -> Program:  # fmt: skip
        """A program written out: distinct commands that name their ops, and their sequence.

        Raises MappingError where a later op's command stands before an earlier one's: each op has its turn.
        """
        indices = [int(index) for index in sequence]
        if any(not 0 <= index < len(commands) for index in indices):
            raise MappingError(f"the sequence names commands outside 0 .. {len(commands) - 1}")
        chunks: list[list[int]] = [[] for _ in ops]
        reached = 0
        for op, some in groupby(indices, key=lambda index: commands[index].op):
            if not reached <= op < len(ops):
                raise MappingError(
                    f"commands of op {op} stand behind those of op {reached}, of {len(ops)} ops; issue the commands of "
                    "an op together, in the order of the ops"
                )
            reached = op
            chunks[op] = list(some)
        bodies: list[OpProgram] = []
        after: list[tuple[int, ...]] = []
        for chunk in chunks:
            own = sorted(set(chunk))
            after.append(tuple(sorted({op for index in own for op in commands[index].after})))
            body = tuple(replace(commands[index], op=0, after=()) for index in own)
            local = np.searchsorted(own, chunk).astype(np.int32) if own else np.zeros(0, dtype=np.int32)
            bodies.append(OpProgram(engines, pools, body, (Run(local, 1),) if own else ()))
        place = Place(tuple(range(len(engines))), tuple(range(len(pools))))
        return cls(hardware, engines, pools, ops, tuple(bodies), (place,) * len(ops), tuple(after), port or Port())

    @property
    def tiles(self) -> int:
        """Load-compute-store groups of all ops."""
        return sum(op.tiles for op in self.ops)

    def __len__(self) -> int:
        """Commands that it executes."""
        return self._length

    @cached_property
    def _length(self) -> int:
        return sum(map(len, self.bodies))

    @cached_property
    def which(self) -> tuple[int, ...]:
        """For each op the index of what it executes among ``distinct``."""
        known: dict[tuple[int, int], int] = {}
        pairs = zip(map(id, self.bodies), map(id, self.places), strict=True)
        return tuple([known.setdefault(pair, len(known)) for pair in pairs])

    @cached_property
    def distinct(self) -> tuple[Placed, ...]:
        """What ops execute, once for all that share it."""
        first: dict[int, int] = {}
        for op, i in enumerate(self.which):
            first.setdefault(i, op)
        times = Counter(self.which)
        return tuple(Placed(self.bodies[op], self.places[op], times[i]) for i, op in first.items())

    @cached_property
    def arrays(self) -> Arrays:
        """What is ``distinct`` as arrays."""
        bodies, places, _ = zip(*self.distinct, strict=True) if self.distinct else ((), (), ())
        return joined(bodies, [place.engines for place in places], [place.pools for place in places])

    @cached_property
    def timed(self) -> Commands:
        """The commands of ``arrays`` with all their cycles."""
        return self.arrays.timed(self.port.bytes_per_cycle)

    def on(self, hardware: str, port: Port) -> Program:
        """The same commands on a hardware of this name, whose port may move more or less in a cycle."""
        other = replace(self, hardware=hardware, port=port)
        known = {name: getattr(self, name) for name in ("which", "distinct", "arrays")}
        other.__dict__.update(known | {name: self.__dict__[name] for name in _WRITTEN_OUT if name in self.__dict__})
        return other

    # -- written out, for those who look at every command

    @cached_property
    def commands(self) -> tuple[Command, ...]:
        """The distinct commands of all ops, with this program's engines, pools, ops and cycles."""
        cycles = self.timed.hold_cycles.tolist()
        at = self.timed.hold_at.tolist()
        first = self.arrays.first.tolist()
        return tuple(
            Command(
                op, c.name,
                tuple([(place.engines[e], n) for (e, _), n in zip(c.holds, cycles[at[i] : at[i + 1]], strict=True)]),
                _renumbered(c.takes, place.pools), _renumbered(c.gives, place.pools), after, c.start_cycles, c.counts,
            )
            for op, (body, place, after) in enumerate(zip(self.bodies, self.places, self.after, strict=True))
            for i, c in enumerate(body.commands, start=first[self.which[op]])
        )  # fmt: skip

    @cached_property
    def sequence(self) -> Sequence32:
        """Indices of ``commands`` in program order."""
        pieces, first = [np.zeros(0, dtype=np.int32)], 0
        for body in self.bodies:
            pieces.append(body.sequence + np.int32(first))
            first += len(body.commands)
        sequence = np.concatenate(pieces)
        sequence.setflags(write=False)
        return sequence

    @cached_property
    def repeats(self) -> Integers:
        """How often each distinct command is executed."""
        return np.array([times for body in self.bodies for times in body.repeats], dtype=np.int64)


# What is the same at any rate of the port, and worked out for few.
_WRITTEN_OUT = ("_length", "sequence", "repeats")


def _renumbered(pairs: tuple[tuple[int, int], ...], numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple([(numbers[i], n) for i, n in pairs])


class ProgramBuilder:
    """Collects engines, pools and commands; the only mutable thing in the mapping.

    >>> builder = ProgramBuilder("toy")
    >>> dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    >>> free, full = builder.pool("x.free", 2, buffer="x"), builder.pool("x.full", 0)
    >>> with builder.op(OpInfo("conv:forward", "conv", "forward", "conv", macs=9)):
    ...     load = builder.command("load", [(dma, 5)], takes=[(free, 1)], gives=[(full, 1)])
    ...     compute = builder.command("compute", [(pe, 9)], takes=[(full, 1)], gives=[(free, 1)])
    ...     builder.emit([load, compute], times=3)
    >>> program = builder.build()
    >>> program.sequence.tolist(), [(run.chunk.tolist(), run.times) for run in program.bodies[0].runs]
    ([0, 1, 0, 1, 0, 1], [([0, 1], 3)])
    """

    def __init__(self, hardware: str) -> None:
        self._hardware = hardware
        self._engines: dict[str, tuple[int, Engine]] = {}
        self._pools: dict[str, tuple[int, Pool]] = {}
        self._ops: list[OpInfo] = []
        self._bodies: list[OpProgram] = []
        self._places: list[Place] = []
        self._after: list[tuple[int, ...]] = []
        # Where the same op program stood last; most stand where they stood before.
        self._placed: dict[int, tuple[OpProgram, Place]] = {}
        # Of the open op: its commands, their runs, and the engines and pools that it asked for.
        self._commands: dict[Command, int] = {}
        self._runs: list[Run] = []
        self._asked: tuple[dict[int, None], dict[int, None]] = ({}, {})
        self._body: OpProgram | None = None

    def engine(self, name: str, kind: EngineKind) -> int:
        """The index of the engine of this name, made on first use."""
        known = self._engines.get(name)
        if known is None:
            known = self._engines[name] = (len(self._engines), Engine(name, kind))
        self._asked[0][known[0]] = None
        return known[0]

    def pool(self, name: str, credits: int, buffer: str = "") -> int:
        """The index of the pool of this name, made on first use."""
        known = self._pools.get(name)
        if known is None:
            known = self._pools[name] = (len(self._pools), Pool(name, credits, buffer))
        self._asked[1][known[0]] = None
        return known[0]

    @contextmanager
    def op(self, info: OpInfo, after: Iterable[int] = ()) -> Generator[int, None, None]:
        """Opens an op: commands made inside belong to it, and none starts before ``after`` have ended."""
        self._commands, self._runs, self._asked, self._body = {}, [], ({}, {}), None
        yield len(self._ops)
        body = self.recorded(info.tiles) if self._body is None else self._body
        self._ops.append(OpInfo(info.name, info.layer, info.phase, info.kind, info.macs, body.tiles))
        self._bodies.append(body)
        self._places.append(self._place(body))
        self._after.append(tuple(sorted(set(after))))

    def command(
        self,
        name: str,
        holds: Iterable[tuple[int, int]],
        takes: Iterable[tuple[int, int]] = (),
        gives: Iterable[tuple[int, int]] = (),
        start_cycles: int = 0,
        counts: Iterable[tuple[Action, int]] = (),
        size_bytes: int = 0,
    ) -> int:
        """The index of a command among those of the open op; equal commands are stored once."""
        command = Command(
            0, name, tuple(holds), tuple(takes), tuple(gives), (), start_cycles,
            tuple((action, n) for action, n in counts if n), size_bytes,
        )  # fmt: skip
        return self._commands.setdefault(command, len(self._commands))

    def emit(self, commands: Iterable[int] | Sequence32, times: int = 1) -> None:
        """Appends commands to the open op, the whole list ``times`` times."""
        chunk = np.asarray(commands if isinstance(commands, np.ndarray) else list(commands), dtype=np.int32)
        if len(chunk) and times > 0:
            self._runs.append(Run(chunk, times))

    def recorded(self, tiles: int = 0) -> OpProgram:
        """What the open op has become, with ``tiles`` load-compute-store groups; nothing more may be added to it."""
        if self._body is None:
            engines, pools = dict(self._asked[0]), dict(self._asked[1])
            for command in self._commands:  # some engines and pools were made before all ops
                engines.update((engine, None) for engine, _ in command.holds if 0 <= engine < len(self._engines))
                pools.update((pool, None) for pool, _ in command.takes + command.gives if 0 <= pool < len(self._pools))
            engine, pool = ({index: i for i, index in enumerate(some)} for some in (engines, pools))
            made = [e for _, e in self._engines.values()], [p for _, p in self._pools.values()]
            self._body = OpProgram(
                tuple(made[0][index] for index in engines),
                tuple(made[1][index] for index in pools),
                tuple(
                    Command(
                        0, c.name, tuple([(engine.get(e, e), n) for e, n in c.holds]),
                        tuple([(pool.get(p, p), n) for p, n in c.takes]),
                        tuple([(pool.get(p, p), n) for p, n in c.gives]), (), c.start_cycles, c.counts, c.size_bytes,
                    )
                    for c in self._commands
                ),
                tuple(_merged(self._runs)),
                tiles,
            )  # fmt: skip
        return self._body

    def has_commands(self, op: int) -> bool:
        """Whether an op that was closed executes anything."""
        return bool(self._bodies[op].runs)

    def repeat(self, body: OpProgram) -> None:
        """Lets the open op become what another has become."""
        self._body = body

    def _place(self, body: OpProgram) -> Place:
        known = self._placed.get(id(body))
        if known is None:
            place = Place(
                tuple(self.engine(e.name, e.kind) for e in body.engines),
                tuple(self.pool(p.name, p.credits, p.buffer) for p in body.pools),
            )
            known = self._placed[id(body)] = (body, place)
        return known[1]

    def build(self, port: Port | None = None) -> Program:
        """The finished, frozen program."""
        return Program(
            self._hardware,
            tuple(engine for _, engine in self._engines.values()),
            tuple(pool for _, pool in self._pools.values()),
            tuple(self._ops),
            tuple(self._bodies),
            tuple(self._places),
            tuple(self._after),
            port or Port(),
        )


def _merged(runs: list[Run]) -> list[Run]:
    """The same commands in fewer runs: a chunk that follows itself is one run."""
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last is not None and (last.chunk is run.chunk or np.array_equal(last.chunk, run.chunk)):
            merged[-1] = Run(last.chunk, last.times + run.times)
        else:
            merged.append(run)
    for run in merged:
        run.chunk.setflags(write=False)
    return merged
