"""Several op programs as one set of arrays, which the engines without events walk through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jouletrace.mapping.op_program import Commands, Integers, Moves, OpProgram, Runs

__all__ = ["Arrays", "joined"]

Numbers = tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Arrays:
    """Op programs in their places. ``first[b]`` is the first command of body b, ``repeats`` how often each command is
    executed by one op; ``least`` are the commands before any byte has moved."""

    least: Commands
    runs: Runs
    first: Integers
    repeats: Integers
    moves: tuple[Moves, ...]

    def timed(self, bytes_per_cycle: Fraction | None) -> Commands:
        """The commands, where so many bytes cross the DRAM port in a cycle."""
        if not self.moves or bytes_per_cycle is None:
            return self.least
        per, in_cycles = bytes_per_cycle.numerator, bytes_per_cycle.denominator
        cycles = [m.start_cycles + -(-m.size_bytes * in_cycles // per) for m in self.moves]
        hold_cycles = self.least.hold_cycles.copy()
        at = [m.row for m in self.moves]
        hold_cycles[at] = np.maximum(hold_cycles[at], np.array(cycles, dtype=np.int64))
        longest = np.maximum.reduceat(hold_cycles, self.least.hold_at[:-1])
        return self.least._replace(hold_cycles=hold_cycles, longest=longest)


def joined(bodies: Sequence[OpProgram], engines: Sequence[Numbers], pools: Sequence[Numbers]) -> Arrays:
    """The arrays of op programs as one; those of body b are the engines ``engines[b]`` and the pools ``pools[b]``."""
    commands = [body.arrays for body in bodies]
    runs = [body.run_arrays for body in bodies]

    def flat(arrays: Sequence[Integers]) -> Integers:
        return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])

    def index(at: list[Integers], ends: list[Integers]) -> Integers:
        """Where rows begin, counted from the first body."""
        firsts = _firsts(ends)
        return np.concatenate([*(a[:-1] + first for a, first in zip(at, firsts[:-1], strict=True)), firsts[-1:]])

    def named(names: Sequence[Numbers], arrays: list[Integers]) -> Integers:
        numbers = [np.array(some, dtype=np.int64) for some in names]
        return flat([number[array] for number, array in zip(numbers, arrays, strict=True)])

    first = _firsts([c.longest for c in commands])
    holds = _firsts([c.hold_engine for c in commands])
    least = Commands(
        flat([c.longest for c in commands]),
        index([c.hold_at for c in commands], [c.hold_engine for c in commands]),
        named(engines, [c.hold_engine for c in commands]), flat([c.hold_cycles for c in commands]),
        index([c.take_at for c in commands], [c.take_pool for c in commands]),
        named(pools, [c.take_pool for c in commands]), flat([c.take_credits for c in commands]),
        index([c.give_at for c in commands], [c.give_pool for c in commands]),
        named(pools, [c.give_pool for c in commands]), flat([c.give_credits for c in commands]),
    )  # fmt: skip
    whole = Runs(
        _firsts([r.times for r in runs]),
        index([r.chunk_at for r in runs], [r.sequence for r in runs]), flat([r.times for r in runs]),
        index([r.engine_at for r in runs], [r.engine for r in runs]), named(engines, [r.engine for r in runs]),
        index([r.pool_at for r in runs], [r.pool for r in runs]), named(pools, [r.pool for r in runs]),
        flat([r.sequence + start for r, start in zip(runs, first[:-1], strict=True)]),
    )  # fmt: skip
    repeats = np.array([times for body in bodies for times in body.repeats], dtype=np.int64)
    starts = zip(bodies, holds[:-1].tolist(), strict=True)
    moves = tuple([m._replace(row=m.row + start) for body, start in starts for m in body.moves])
    return Arrays(least, whole, first, repeats, moves)


def _firsts(arrays: Sequence[Integers]) -> Integers:
    """Where each of the arrays begins when they stand one behind the other, and where the last one ends."""
    return np.cumsum([0, *map(len, arrays)]).astype(np.int64)
