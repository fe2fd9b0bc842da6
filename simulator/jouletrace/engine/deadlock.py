"""Who waits for whom when nothing can start any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import Deadlock
from jouletrace.mapping.program import Command, Program

__all__ = ["explain"]


def explain(program: Program, started: NDArray[np.bool_], cycle: int) -> Deadlock:
    """The Deadlock error for a program in which no further command can start.

    ``started`` says, for each command of the sequence, whether it has started; all those have ended.
    Nothing else of the engine that got stuck is needed: the rest follows from the Program.
    """
    return Deadlock(_Stuck(program, started).sentences(cycle))


@dataclass(frozen=True, slots=True)
class _Wait:
    """One unmet condition, and the engine that would have to act (None: there is nobody)."""

    reason: str
    cause: int | None


class _Stuck:
    """The state of a program that cannot go on."""

    def __init__(self, program: Program, started: NDArray[np.bool_]) -> None:
        self._program = program
        self._ended = int(np.count_nonzero(started))
        # the commands that are left: where they stand in the sequence, and which distinct one each is
        self._positions = np.flatnonzero(~started)
        self._commands = program.sequence[self._positions]
        self._driver = np.array([c.holds[0][0] for c in program.commands], dtype=np.int64)
        self._free = [pool.credits for pool in program.pools]
        repeats = np.bincount(program.sequence[started], minlength=len(program.commands)).tolist()
        for command, times in zip(program.commands, repeats, strict=True):
            for pool, credits in command.takes:
                self._free[pool] -= credits * times
            for pool, credits in command.gives:
                self._free[pool] += credits * times

    def sentences(self, cycle: int) -> list[str]:
        """The report: the circle first, then the other blocked engines, the buffers, and a cure."""
        program = self._program
        drivers, at = np.unique(self._driver[self._commands], return_index=True)
        blocked = dict(zip(drivers.tolist(), at.tolist(), strict=True))
        waits = {driver: list(self._waits(driver, index)) for driver, index in blocked.items()}
        chain, closed = _follow({driver: unmet[0].cause for driver, unmet in waits.items()})
        names = [program.engines[driver].name for driver in chain]

        said = [
            f"deadlock at cycle {cycle}: {self._ended} of {len(program.sequence)} commands have ended, and "
            "no other can ever start"
        ]
        for driver in [*chain, *(driver for driver in blocked if driver not in chain)]:
            unmet = waits[driver][:1] if driver in chain else waits[driver]
            reasons = ", and for ".join(wait.reason for wait in unmet)
            said.append(f"{self._place(driver, blocked[driver])} waits for {reasons}")
        said.append(
            f"the circle is {' -> '.join([*names, names[0]])}"
            if closed
            else f"the waiting ends at {names[-1]}, for which nobody can do anything"
        )
        fills = [
            f"{pool.buffer} {pool.credits - free} of {pool.credits} ({pool.name})"
            for pool, free in zip(program.pools, self._free, strict=True)
            if pool.buffer
        ]
        if fills:
            said.append(f"slots in use: {', '.join(fills)}")
        said.append(
            "give the buffers named above more slots or smaller tiles, or issue the command that gives "
            "before the one that waits for it"
        )
        return said

    def _place(self, driver: int, index: int) -> str:
        command = self._program.commands[int(self._commands[index])]
        return (
            f"{self._program.engines[driver].name}, at command {self._positions[index]} "
            f"({command.name!r} of {self._program.ops[command.op].name!r}),"
        )

    def _waits(self, driver: int, index: int) -> Iterator[_Wait]:
        """Every unmet condition of the next command of a driver; there is at least one."""
        program = self._program
        command = program.commands[int(self._commands[index])]
        needs: dict[int, int] = {}
        for pool, credits in command.takes:
            needs[pool] = needs.get(pool, 0) + credits
        for pool, credits in needs.items():
            if self._free[pool] >= credits:
                continue
            giver = self._first(lambda c, pool=pool: any(given == pool for given, _ in c.gives))
            who = "nobody gives any more" if giver is None else f"{program.engines[giver].name} would give"
            name, total = program.pools[pool].name, program.pools[pool].credits
            left = f"{self._free[pool]} are left ({total} at the start)"
            yield _Wait(f"{credits} of {name!r}, of which {left} and {who}", giver)
        for op in command.after:
            worker = self._first(lambda c, op=op: c.op == op)
            if worker is not None:
                name = program.engines[worker].name
                yield _Wait(f"the end of {program.ops[op].name!r}, in which {name} has work left", worker)
        for engine, _ in command.holds:
            if program.port.arbitration == "round_robin" and engine == program.port.engine:
                continue
            earlier = self._first(lambda c, engine=engine: any(held == engine for held, _ in c.holds))
            if earlier is not None and earlier != driver:
                name = program.engines[earlier].name
                yield _Wait(
                    f"its turn on {program.engines[engine].name}, which comes after {name}'s", earlier
                )

    def _first(self, chosen: Callable[[Command], bool]) -> int | None:
        """The driver of the first command left for which ``chosen`` holds."""
        mask = np.array([chosen(command) for command in self._program.commands])
        left = np.flatnonzero(mask[self._commands])
        return int(self._driver[self._commands[left[0]]]) if len(left) else None


def _follow(causes: dict[int, int | None]) -> tuple[list[int], bool]:
    """A circle of waiting drivers and True; or a chain to one for whom nobody can act, and False."""
    chain: list[int] = []
    for driver in causes:
        chain = [driver]
        while (cause := causes[chain[-1]]) is not None:
            if cause in chain:
                return chain[chain.index(cause) :], True
            chain.append(cause)
    return chain, False
