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
from collections.abc import Sequence
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
    "Program", "Run", "Sequence32",
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
