"""The same program gives the same result, whatever order simultaneous events come in."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from heapq import heappush
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simpy import Event
from simpy.events import NORMAL, EventPriority

from jouletrace.engine import events
from jouletrace.engine.counts import Counts
from jouletrace.mapping.program import Program

from .programs import cases, live_programs


def assert_equal(one: Counts, other: Counts) -> None:
    assert one.intervals.start.tolist() == other.intervals.start.tolist()
    assert one.intervals.end.tolist() == other.intervals.end.tolist()
    assert (one.cycles, one.ops) == (other.cycles, other.ops)


class ShuffledClock(events.Clock):
    """Simultaneous events of the same priority come in random order, the beginnings of processes too."""

    random = Random(0)
    tie = count()

    def schedule(self, event: Event, priority: EventPriority = NORMAL, delay: float = 0) -> None:
        heappush(self._queue, (self._now + delay, priority, (self.random.random(), next(self.tie)), event))


@pytest.mark.parametrize("dynamic", [False, True])
def test_order_of_simultaneous_events(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    @cases(500)
    @given(live_programs(dynamic=dynamic))
    def check(program: Program) -> None:
        with monkeypatch.context() as patch:
            ordered = events.simulate(program)
            patch.setattr(events, "Clock", ShuffledClock)
            for _ in range(2):
                assert_equal(events.simulate(program), ordered)

    check()


@cases(500)
@given(live_programs(), st.randoms(use_true_random=False))
def test_order_of_engines_and_pools(program: Program, random: Random) -> None:
    """Under a fixed order engines and pools may be numbered in any way."""
    engine = random.sample(range(len(program.engines)), len(program.engines))
    pool = random.sample(range(len(program.pools)), len(program.pools))
    renumbered = Program.of(
        program.hardware,
        engines=tuple(program.engines[engine.index(i)] for i in range(len(engine))),
        pools=tuple(program.pools[pool.index(i)] for i in range(len(pool))),
        ops=program.ops,
        commands=tuple(
            replace(
                command,
                holds=tuple((engine[e], cycles) for e, cycles in command.holds),
                takes=tuple((pool[p], n) for p, n in reversed(command.takes)),
                gives=tuple((pool[p], n) for p, n in reversed(command.gives)),
            )
            for command in program.commands
        ),
        sequence=program.sequence,
    )
    assert_equal(events.simulate(renumbered), events.simulate(program))


SCRIPT = """
from hashlib import sha256
from jouletrace.engine.events import simulate
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import OpInfo, Port

builder = ProgramBuilder("toy")
streams = [builder.engine(f"dma {name}", "dma") for name in ("input", "weight", "output")]
port, pe = builder.engine("dram", "dram"), builder.engine("array", "array")
pools = [(builder.pool(f"{i}.free", 2, buffer=f"{i}"), builder.pool(f"{i}.full", 0)) for i in range(2)]
for op in range(9):
    with builder.op(OpInfo(f"op{op}", "layer", "forward", "conv", macs=0), after=range(max(0, op - 2), op)):
        for tile in range(20):
            for (free, full), stream in zip(pools, streams):
                load = [(stream, 3), (port, 2 + tile % 5)]
                counts = [(("dram", "read", role), tile) for role in ("activation", "param")]
                builder.emit([builder.command("load", load, [(free, 1)], [(full, 1)], counts=counts)])
            takes, gives = [(full, 1) for _, full in pools], [(free, 1) for free, _ in pools]
            builder.emit([builder.command("mac", [(pe, 7)], takes, gives)])
digest = sha256()
for shared in (Port(), Port("round_robin", port, 2)):
    counts = simulate(builder.build(shared))
    digest.update(repr((counts.cycles, counts.ops, counts.engine_busy, counts.events)).encode())
    digest.update(counts.intervals.start.tobytes() + counts.intervals.end.tobytes())
print(counts.cycles, digest.hexdigest())
"""


def test_hash_seed() -> None:
    """Byte-identical in processes of their own, with different orders of sets and dicts of strings."""

    def output(seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    first, second = output("0"), output("4242")
    assert first == second
    assert int(first.split()[0]) >= 9 * 20 * 2 * 2  # at least the port's shortest transfers
