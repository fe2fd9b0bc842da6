"""The reference engine: a discrete-event simulation of a Program with SimPy.

One process per driving engine executes that engine's commands in program order. An event is a command's
end or the end of a wait, at an exact cycle; there is none per cycle. Integers only, and a result that
does not depend on the order of simultaneous events.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event
from simpy.core import EmptySchedule

from jouletrace.engine.check import check
from jouletrace.engine.counts import Counts, Intervals, spans
from jouletrace.engine.credits import Alarm, Credits
from jouletrace.engine.deadlock import explain
from jouletrace.engine.ports import RoundRobin, Turnstile
from jouletrace.errors import LimitExceeded
from jouletrace.mapping.program import Program

__all__ = ["simulate"]

# Events between two looks at the clock and the limits.
BATCH = 4096
# Commands of a stream that are Python integers at the same time.
CHUNK = 8192


def simulate(
    program: Program,
    *,
    max_events: int | None = None,
    max_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Executes a program, all engines idle at the end.

    ``progress`` is called now and then with the commands done and the commands in all.

    Raises MappingError for a program that breaks its own rules, Deadlock when commands are left that
    can never start, LimitExceeded after ``max_events`` events or ``max_seconds`` of wall time.

    >>> from jouletrace.mapping.builder import ProgramBuilder
    >>> from jouletrace.mapping.program import OpInfo
    >>> builder = ProgramBuilder("toy")
    >>> dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    >>> free, full = builder.pool("x.free", 2, buffer="x"), builder.pool("x.full", 0)
    >>> with builder.op(OpInfo("conv:forward", "conv", "forward", "conv", macs=9)):
    ...     load = builder.command("load", [(dma, 5)], takes=[(free, 1)], gives=[(full, 1)])
    ...     compute = builder.command("compute", [(pe, 9)], takes=[(full, 1)], gives=[(free, 1)])
    ...     builder.emit([load, compute], times=3)
    >>> counts = simulate(builder.build())
    >>> counts.cycles, counts.intervals.start.tolist()
    (32, [0, 5, 5, 14, 14, 23])
    """
    deadline = None if max_seconds is None else monotonic() + max_seconds
    check(program)
    run = _Run(program)
    total = len(program.sequence)

    def beyond(limit: str, option: str) -> LimitExceeded:
        started = sum(cycle >= 0 for cycle in run.start)
        return LimitExceeded(
            f"the simulation reached its limit of {limit} at cycle {run.env.now}, with {started} of {total} "
            f"commands started; raise {option}"
        )

    step, events = run.env.step, 0
    try:
        while True:
            batch = BATCH if max_events is None else min(BATCH, max_events + 1 - events)
            for _ in range(batch):
                step()
                events += 1
            if max_events is not None and events > max_events:
                raise beyond(f"{max_events} events", "max_events")
            if deadline is not None and monotonic() > deadline:
                raise beyond(f"{max_seconds} s", "max_seconds")
            if progress is not None:
                progress(run.done, total)
    except EmptySchedule:
        pass
    started = np.frombuffer(run.start, dtype=np.int64)
    if len(started) and int(started.min()) < 0:
        raise explain(program, started >= 0, run.env.now)
    if progress is not None:
        progress(total, total)
    intervals = run.intervals()
    return Counts(program, *spans(program, intervals), "events", events, lambda: intervals)


class Clock(Environment):
    """SimPy's environment; here its time is always an integer, the cycle."""

    if TYPE_CHECKING:

        @property
        def now(self) -> int: ...


class _Step(NamedTuple):
    """A distinct command, resolved to the objects of one run."""

    takes: tuple[tuple[Credits, int], ...]
    after: tuple[int, ...]
    shared: tuple[Turnstile, ...]
    reserved: tuple[tuple[Turnstile, int], ...]  # for how long; not the driver while a port decides that
    own_cycles: int  # of the driver
    longest: int  # of all engines but a round-robin port
    port_cycles: int  # to be served by a round-robin port
    gives: tuple[tuple[Credits, int], ...]
    op: int  # -1 where no command waits for the op's end


class _Run:
    """The mutable state of one simulation, which ends with it."""

    def __init__(self, program: Program) -> None:
        self.env = Clock()
        self.done = 0
        # -1: not started
        self.start = array("q", [-1]) * len(program.sequence)
        self._program = program
        self._driver = np.array([c.holds[0][0] for c in program.commands], dtype=np.int32)
        dynamic = program.port.arbitration == "round_robin"
        self._port_engine = program.port.engine if dynamic else None
        self._port = RoundRobin(self.env, program.port.grant_cycles)
        # end of service on the round-robin port, 0 where a command does not use it
        self._served = array("q", [0]) * (len(program.sequence) if dynamic else 0)
        ops = np.array([c.op for c in program.commands], dtype=np.int64)[program.sequence]
        self._left = np.bincount(ops, minlength=len(program.ops)).tolist()
        self._op_waiting: defaultdict[int, list[Alarm]] = defaultdict(list)
        self._steps = self._resolve()
        for driver in np.unique(self._driver[program.sequence]).tolist():
            self.env.process(self._drive(driver))

    def intervals(self) -> Intervals:
        """Start and end of every command, once all have ended."""
        cycles = np.array([c.cycles for c in self._program.commands], dtype=np.int64)
        start = np.frombuffer(self.start, dtype=np.int64)
        end = start + cycles[self._program.sequence]
        if self._served:
            np.maximum(end, np.frombuffer(self._served, dtype=np.int64), out=end)
        return Intervals(start, end)

    def _resolve(self) -> list[_Step]:
        program = self._program
        pools = [Credits(pool.credits) for pool in program.pools]
        self._turnstiles = {
            engine: Turnstile(_integers(self._driver[program.sequence[visits[program.sequence]]]))
            for engine, visits in self._shared_engines().items()
        }
        watched = {op for command in program.commands for op in command.after}
        steps: list[_Step] = []
        for command in program.commands:
            driver, own_cycles = command.holds[0]
            holds = [hold for hold in command.holds if hold[0] != self._port_engine]
            port_cycles = sum(cycles for engine, cycles in command.holds if engine == self._port_engine)
            shared = [(engine, cycles) for engine, cycles in holds if engine in self._turnstiles]
            steps.append(
                _Step(
                    takes=tuple((pools[pool], credits) for pool, credits in command.takes),
                    after=command.after,
                    shared=tuple(self._turnstiles[engine] for engine, _ in shared),
                    reserved=tuple(
                        (self._turnstiles[engine], cycles)
                        for engine, cycles in shared
                        if not (port_cycles and engine == driver)
                    ),
                    own_cycles=own_cycles,
                    longest=max(cycles for _, cycles in holds),
                    port_cycles=port_cycles,
                    gives=tuple((pools[pool], credits) for pool, credits in command.gives),
                    op=command.op if command.op in watched else -1,
                )
            )
        return steps

    def _shared_engines(self) -> dict[int, NDArray[np.bool_]]:
        """Engines that need a turnstile, and for each which distinct commands hold it.

        An engine whose commands all have one driver, and that is free again when the driver is, has the
        order of that driver and needs none.
        """
        program = self._program
        visits = np.zeros((len(program.engines), len(program.commands)), dtype=np.bool_)
        drivers: dict[int, set[int]] = {}
        outlasts: set[int] = set()
        for index, command in enumerate(program.commands):
            driver, own_cycles = command.holds[0]
            for engine, cycles in command.holds:
                visits[engine, index] = True
                drivers.setdefault(engine, set()).add(driver)
                if cycles > own_cycles:
                    outlasts.add(engine)
        return {
            engine: visits[engine]
            for engine, of in sorted(drivers.items())
            if engine != self._port_engine and (len(of) > 1 or engine in outlasts)
        }

    def _drive(self, driver: int) -> Generator[Event, None, None]:
        """The process of one driving engine: its commands, one after the other.

        Every condition of a start stays true once it is, so they are waited for in turn.
        """
        env, steps, left, start = self.env, self._steps, self._left, self.start
        alarm = Alarm(env)
        for position, command in self._stream(driver):
            takes, after, shared, reserved, own_cycles, longest, port_cycles, gives, op = steps[command]
            for pool, credits in takes:
                if pool.free >= credits:
                    pool.free -= credits
                else:
                    yield pool.wait(credits, alarm)
            for awaited in after:
                if left[awaited]:
                    self._op_waiting[awaited].append(alarm)
                    yield alarm.arm()
            for turnstile in shared:
                if turnstile.turn != driver:
                    yield turnstile.wait(driver, alarm)

            now = begin = env.now
            for turnstile in shared:
                if turnstile.free_at > begin:
                    begin = turnstile.free_at
            for turnstile, cycles in reserved:
                turnstile.hold(begin + cycles)
            start[position] = begin

            if port_cycles:
                yield from self._transfer(driver, begin - now, own_cycles, port_cycles, alarm)
                self._served[position] = env.now
                if driver in self._turnstiles:
                    self._turnstiles[driver].hold(env.now)
            elif busy := begin - now + own_cycles:
                yield alarm.ring_in(busy)

            if longest > own_cycles and begin + longest > env.now:
                self._end_later(begin + longest - env.now, gives, op)
                continue
            for pool, credits in gives:
                pool.give(credits)
            if op >= 0:
                left[op] -= 1
                if not left[op]:
                    self._end_op(op)

    def _transfer(
        self, driver: int, delay: int, own_cycles: int, port_cycles: int, alarm: Alarm
    ) -> Generator[Event, None, None]:
        """A command on a round-robin port: holds its driver until its own cycles and its grants are over."""
        if delay:
            yield alarm.ring_in(delay)
        self._port.request(driver, port_cycles)
        if own_cycles:
            yield alarm.ring_in(own_cycles)
        if self._port.serves(driver):
            yield self._port.wait(driver, alarm)

    def _end_later(self, cycles: int, gives: tuple[tuple[Credits, int], ...], op: int) -> None:
        """Ends a command whose driver is free before its other engines are."""
        promises = [(pool, pool.promise(credits)) for pool, credits in gives]

        def end(_: Event) -> None:
            for pool, promise in promises:
                pool.redeem(promise)
            if op >= 0:
                self._left[op] -= 1
                if not self._left[op]:
                    self._end_op(op)

        Alarm(self.env).ring_in(cycles).call(end)

    def _end_op(self, op: int) -> None:
        """Wakes those who wait for an op whose last command has ended."""
        for alarm in self._op_waiting.pop(op, ()):
            alarm.set()

    def _stream(self, driver: int) -> Iterator[tuple[int, int]]:
        """Positions and distinct commands of one driver, as plain integers."""
        sequence = self._program.sequence
        positions = np.flatnonzero(self._driver[sequence] == driver).astype(np.int32)

        def pieces() -> Iterator[Iterator[tuple[int, int]]]:
            for some in _chunks(positions):
                yield zip(some.tolist(), sequence[some].tolist(), strict=True)
                self.done += len(some)

        return chain.from_iterable(pieces())


def _chunks(numbers: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """Pieces small enough that their Python integers do not matter."""
    return (numbers[first : first + CHUNK] for first in range(0, len(numbers), CHUNK))


def _integers(numbers: NDArray[np.int32]) -> Iterator[int]:
    return chain.from_iterable(some.tolist() for some in _chunks(numbers))
