"""What one op becomes: a few distinct commands, and runs of them, free of the program that they stand in.

Real steps repeat few distinct commands very often, and groups of them too: every image of a batch, every tile of a row.
So distinct commands are stored once, and their sequence as *runs*: a short chunk of indices, and how often it is
repeated. Engines read the arrays; nothing is made per tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Action", "Command", "Commands", "Engine", "EngineKind", "Integers", "Moves", "OpProgram", "Pool", "Run",
    "Runs", "Sequence32", "rows",
]  # fmt: skip

# (component, action, tensor role); the role is "" where no tensor is meant
Action = tuple[str, str, str]
EngineKind = Literal["dma", "dram", "array", "vector", "host", "control"]
Sequence32 = NDArray[np.int32]
Integers = NDArray[np.int64]
Pairs = tuple[tuple[int, int], ...]


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
    discontinuity, row miss). ``after`` are indices of ops. ``counts`` are the accesses that the command makes.

    ``size_bytes`` cross the DRAM port, at the rate that the program states: as long as that takes the command holds
    the engine of kind ``dram`` that it names, or else its driver, behind the start cost. What stands in ``holds`` is
    the least that an engine is held. A program's own commands have their cycles, and no bytes.
    """

    op: int
    name: str
    holds: Pairs
    takes: Pairs = ()
    gives: Pairs = ()
    after: tuple[int, ...] = ()
    start_cycles: int = 0
    counts: tuple[tuple[Action, int], ...] = ()
    size_bytes: int = 0

    @property
    def cycles(self) -> int:
        return max((cycles for _, cycles in self.holds), default=0)


class Moves(NamedTuple):
    """Bytes over the DRAM port: how many, which row of the holds they may prolong, and behind which start cost."""

    size_bytes: int
    row: int
    start_cycles: int


class Commands(NamedTuple):
    """Distinct commands as arrays. What command c holds stands in rows ``hold_at[c]`` to ``hold_at[c + 1]``."""

    longest: Integers
    hold_at: Integers
    hold_engine: Integers
    hold_cycles: Integers
    take_at: Integers
    take_pool: Integers
    take_credits: Integers
    give_at: Integers
    give_pool: Integers
    give_credits: Integers


class Runs(NamedTuple):
    """Runs as arrays. Body b has the runs ``run_at[b]`` to ``run_at[b + 1]``; run r repeats the commands in
    ``sequence[chunk_at[r]]`` to ``sequence[chunk_at[r + 1]]``, which hold the engines and move credits of the pools in
    its rows."""

    run_at: Integers
    chunk_at: Integers
    times: Integers
    engine_at: Integers
    engine: Integers
    pool_at: Integers
    pool: Integers
    sequence: Integers


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """A chunk of a sequence, int32 indices of commands, repeated ``times`` times."""

    chunk: Sequence32
    times: int


@dataclass(frozen=True, eq=False)
class OpProgram:
    """The commands of one op: their ``op`` is 0 and their ``after`` empty.

    ``engines`` and ``pools`` stand in the order in which the op asked for them, and commands number those. ``tiles``
    are its load-compute-store groups. Equal contents are equal values, whichever programs they come from.
    """

    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    commands: tuple[Command, ...]
    runs: tuple[Run, ...]
    tiles: int = 0

    @cached_property
    def _of_commands(self) -> tuple[object, ...]:
        """All but how often runs are repeated, and the hash of it."""
        chunks = tuple([run.chunk.tobytes() for run in self.runs])
        parts = self.engines, self.pools, self.commands, chunks
        return hash(parts), *parts

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return tuple([run.times for run in self.runs]), self.tiles, *self._of_commands

    @cached_property
    def _hash(self) -> int:
        return hash(self._key[:3])

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, OpProgram) and self._hash == other._hash and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __len__(self) -> int:
        """Commands that it executes."""
        return self._length

    @cached_property
    def _length(self) -> int:
        return sum(len(run.chunk) * run.times for run in self.runs)

    @property
    def sequence(self) -> Sequence32:
        """All of its commands, in order."""
        pieces = [np.tile(run.chunk, run.times) if run.times > 1 else run.chunk for run in self.runs]
        return np.concatenate([np.zeros(0, dtype=np.int32), *pieces])

    @cached_property
    def repeats(self) -> list[int]:
        """How often each distinct command is executed."""
        total = np.zeros(len(self.commands), dtype=np.int64)
        for run in self.runs:
            total += np.bincount(run.chunk, minlength=len(self.commands))[: len(self.commands)] * run.times
        return total.tolist()

    @cached_property
    def arrays(self) -> Commands:
        """Its distinct commands, before any byte has moved."""
        return Commands(
            np.array([c.cycles for c in self.commands], dtype=np.int64),
            *_pair_rows([c.holds for c in self.commands]),
            *_pair_rows([c.takes for c in self.commands]),
            *_pair_rows([c.gives for c in self.commands]),
        )

    @cached_property
    def moves(self) -> tuple[Moves, ...]:
        """Transfers over the DRAM port."""
        found: list[Moves] = []
        row = 0
        for command in self.commands:
            if command.size_bytes:
                kinds = [self.engines[e].kind for e, _ in command.holds if 0 <= e < len(self.engines)]
                port = kinds.index("dram") if "dram" in kinds else 0
                start = 0 if kinds[port] == "dram" else command.start_cycles
                found.append(Moves(command.size_bytes, row + port, start))
            row += len(command.holds)
        return tuple(found)

    @cached_property
    def run_arrays(self) -> Runs:
        """Its runs."""
        engines: list[set[int]] = []
        pools: list[set[int]] = []
        for run in self.runs:
            distinct: set[int] = set(run.chunk.tolist())
            used = [self.commands[c] for c in distinct]
            engines.append({e for command in used for e, _ in command.holds})
            pools.append({p for command in used for p, _ in command.takes + command.gives})
        chunks = [np.zeros(0, dtype=np.int32), *(run.chunk for run in self.runs)]
        return Runs(
            np.array([0, len(self.runs)], dtype=np.int64),
            np.cumsum([len(chunk) for chunk in chunks]).astype(np.int64),
            np.array([run.times for run in self.runs], dtype=np.int64),
            *rows([sorted(some) for some in engines]),
            *rows([sorted(some) for some in pools]),
            np.concatenate(chunks).astype(np.int64),
        )

    def repeated(self, times: Sequence[int], tiles: int) -> OpProgram:
        """The same runs, repeated otherwise.

        >>> run = Run(np.array([0, 0], dtype=np.int32), times=2)
        >>> once = OpProgram((Engine("pe", "array"),), (), (Command(0, "work", ((0, 3),)),), (run,))
        >>> len(once.repeated([5], tiles=5))
        10
        """
        runs = tuple([Run(run.chunk, n) for run, n in zip(self.runs, times, strict=True)])
        other = OpProgram(self.engines, self.pools, self.commands, runs, tiles)
        other.__dict__.update({name: getattr(self, name) for name in _OF_COMMANDS})
        other.__dict__["run_arrays"] = self.run_arrays._replace(times=np.array(times, dtype=np.int64))
        return other

    # -- what it costs, exact

    @cached_property
    def counts(self) -> Mapping[Action, int]:
        """Accesses of all its commands."""
        total: dict[Action, int] = {}
        for command, times in zip(self.commands, self.repeats, strict=True):
            if times:
                for action, n in command.counts:
                    total[action] = total.get(action, 0) + n * times
        return dict(sorted(total.items()))

    @cached_property
    def gives(self) -> tuple[int, ...]:
        """How many commands give to each of its pools."""
        total = [0] * len(self.pools)
        for command, times in zip(self.commands, self.repeats, strict=True):
            for pool, _ in command.gives:
                total[pool] += times
        return tuple(total)

    @cached_property
    def start_cycles(self) -> int:
        """The largest sum of start costs on one engine."""
        total = [0] * len(self.engines)
        for command, times in zip(self.commands, self.repeats, strict=True):
            if command.start_cycles:
                total[command.holds[0][0]] += command.start_cycles * times
        return max(total, default=0)

    # -- what it must keep to

    @cached_property
    def takers(self) -> Pairs:
        """Pools that are taken from, and the engines that drive the takes: (pool, engine), each pair once."""
        return _ends((c.holds, c.takes) for c in self.commands)

    @cached_property
    def givers(self) -> Pairs:
        """Pools that are given to, and the engines that drive the gives."""
        return _ends((c.holds, c.gives) for c in self.commands)

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """What no command may be, wherever it stands: a sentence for each that is."""
        found: list[str] = []
        for command in dict.fromkeys(self.commands):
            found += [f"command {command.name!r} {problem}" for problem in self._problems(command)]
        for run in self.runs:
            if len(run.chunk) and not (run.chunk.min() >= 0 and run.chunk.max() < len(self.commands)):
                found.append(f"the sequence names commands outside 0 .. {len(self.commands) - 1}")
        return tuple(dict.fromkeys(found))

    def _problems(self, command: Command) -> list[str]:
        held = [engine for engine, _ in command.holds]
        if not held:
            return ["holds no engine; name the one that executes it, with 0 cycles if it takes no time"]
        problems: list[str] = []
        if command.op or command.after:
            problems.append("names an op; which op executes it and whom that awaits stand in its program")
        if len(set(held)) < len(held):
            problems.append("holds an engine twice; add up its cycles in one hold")
        if any(not 0 <= engine < len(self.engines) for engine in held):
            problems.append(f"holds an engine outside 0 .. {len(self.engines) - 1}")
        if any(cycles < 0 for _, cycles in command.holds):
            problems.append("holds an engine for a negative number of cycles")
        for pool, credits in command.takes + command.gives:
            if not 0 <= pool < len(self.pools):
                problems.append(f"names pool {pool} of {len(self.pools)}")
            if credits < 1:
                problems.append(f"takes or gives {credits} credits; the number must be positive")
        return problems


# What is the same however often runs are repeated.
_OF_COMMANDS = ("_of_commands", "arrays", "moves", "takers", "givers", "problems")


def rows(lists: Sequence[Sequence[int]]) -> tuple[Integers, Integers]:
    """Lists of different lengths as one: list i stands from ``at[i]`` to ``at[i + 1]``."""
    at = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(some) for some in lists], out=at[1:])
    return at, np.array([n for some in lists for n in some], dtype=np.int64)


def _pair_rows(lists: list[Pairs]) -> tuple[Integers, Integers, Integers]:
    at, first = rows([[one for one, _ in some] for some in lists])
    return at, first, rows([[other for _, other in some] for some in lists])[1]


def _ends(commands: Iterable[tuple[Pairs, Pairs]]) -> Pairs:
    return tuple(dict.fromkeys((pool, holds[0][0]) for holds, moved in commands if holds for pool, _ in moved))
