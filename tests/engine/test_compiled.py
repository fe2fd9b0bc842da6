"""The compiled engine is the events engine, only faster."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from jouletrace.engine import compiled, events, recurrence
from jouletrace.engine.counts import Counts
from jouletrace.errors import Deadlock, LimitExceeded, UsageError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Port, Program
from jouletrace.mapping.step import map_step
from jouletrace.trace.io import load_trace

from .programs import any_programs, cases, info, live_programs, pipeline, repeating_programs


def assert_same(program: Program) -> Counts:
    """Every start, end, count and sum, or the same error."""
    try:
        expected = events.simulate(program)
    except Deadlock as deadlock:
        with pytest.raises(Deadlock) as found:
            compiled.simulate(program)
        assert found.value.problems == deadlock.problems
        raise
    counts = compiled.simulate(program)
    assert counts.intervals.start.tolist() == expected.intervals.start.tolist()
    assert counts.intervals.end.tolist() == expected.intervals.end.tolist()
    assert (counts.cycles, counts.ops, counts.engine_busy) == (expected.cycles, expected.ops, expected.engine_busy)
    assert (counts.engine, counts.events) == ("compiled", len(program.sequence))
    return counts


@pytest.fixture(params=["numba", "python"])
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setenv("JOULETRACE_NO_NUMBA", "1")
        else:
            pytest.importorskip("numba")
            patch.delenv("JOULETRACE_NO_NUMBA", raising=False)
        yield


@pytest.mark.usefixtures("_kernels")
class TestEqualToEvents:
    def test_live_programs(self) -> None:
        @cases(1250)
        @given(live_programs())
        def check(program: Program) -> None:
            assert_same(program)

        check()

    def test_any_programs(self) -> None:
        """Programs that end in a deadlock, and programs that take before they give, on another engine."""
        ends = {True: 0, False: 0}

        @cases(1250)
        @given(any_programs())
        def check(program: Program) -> None:
            try:
                assert_same(program)
                ends[True] += 1
            except Deadlock:
                ends[False] += 1

        check()
        assert min(ends.values()) > 100

    def test_runs(self) -> None:
        """Chunks that repeat up to 60 times: settling at once, after a while, with a period of several, or never."""

        @cases(400 if os.environ.get("JOULETRACE_NO_NUMBA") else 2000)
        @given(repeating_programs())
        def check(program: Program) -> None:
            assert_same(program)

        check()

    def test_a_take_before_the_give_that_feeds_it(self) -> None:
        """The array's command stands first, and starts when the load has ended."""
        builder = ProgramBuilder("toy")
        dma, pe, full = builder.engine("dma", "dma"), builder.engine("pe", "array"), builder.pool("full", 0)
        with builder.op(info()):
            work = builder.command("work", [(pe, 3)], takes=[(full, 2)])
            load = builder.command("load", [(dma, 5)], gives=[(full, 1)])
            builder.emit([work, work, load, load, load, load])
        assert assert_same(builder.build()).intervals.start.tolist() == [10, 20, 0, 5, 10, 15]


@pytest.mark.parametrize("name", [name for name in list_hardware() if load_hardware(name).dram.port != "round_robin"])
def test_shipped_hardware(name: str) -> None:
    """A stage of a network that training uses, on every shipped spec whose port keeps program order."""
    assert_same(map_step(load_trace("resnet20-cifar10-b32"), load_hardware(name), only="layer3.2"))


def test_what_settles_is_not_executed_to_the_end() -> None:
    """A million tiles cost no more than a thousand: the same chunk, and the same few repetitions of it."""
    few, many = (compiled.simulate(pipeline(tiles, 5, 9, 2).build()) for tiles in (10**3, 10**6))
    assert (few.cycles, many.cycles) == (5 + 9 * 10**3 + 2, 5 + 9 * 10**6 + 2)
    assert executed(10**3) == executed(10**6) < 10


def executed(tiles: int) -> int:
    """How often the chunk of a pipeline is executed: its first command reads how long it holds its engine."""
    program = pipeline(tiles, 5, 9, 2).build()
    times = 0

    class Watched(list[int]):
        def __getitem__(self, index: Any) -> Any:
            nonlocal times
            times += index == 0
            return super().__getitem__(index)

    plan = compiled._planned(program)  # pyright: ignore[reportPrivateUsage]
    now = recurrence.clocks(program.pools, plan.ring_size, len(program.engines), len(program.ops))
    commands = program.timed._replace(longest=Watched(program.timed.longest.tolist()))  # type: ignore[arg-type]
    op_start, nothing = np.full(1, 1 << 62), np.zeros(0, dtype=np.int64)
    recurrence.execute(0, 1, plan.turns, commands, plan.runs, now, op_start, nothing, 0)
    return times


def test_what_was_planned_goes_with_the_program() -> None:
    """A sweep over designs makes thousands of programs; none may stay for what was worked out of it."""
    program = pipeline(5, 5, 9, 2).build()
    compiled.simulate(program)
    arrays = weakref.ref(program.arrays)
    del program
    gc.collect()
    assert arrays() is None


def test_credits_in_lots() -> None:
    """A pool of a million million credits takes no room: what a give adds is one entry, whatever its size."""
    builder = ProgramBuilder("toy")
    a, b, pool = builder.engine("a", "dma"), builder.engine("b", "array"), builder.pool("bytes", 10**12)
    with builder.op(info()):
        take = builder.command("take", [(a, 3)], takes=[(pool, 4 * 10**11)])
        give = builder.command("give", [(b, 7)], gives=[(pool, 10**11)])
        builder.emit([take, give, give, give], times=3)
    assert assert_same(builder.build()).intervals.start[::4].tolist() == [0, 3, 14]


def test_round_robin_is_left_to_the_events_engine() -> None:
    with pytest.raises(UsageError, match="use the events engine"):
        compiled.simulate(pipeline(1, 1, 1, 1).build(Port("round_robin", 0)))


def three_ops() -> Program:
    """Five commands each, one after another."""
    builder = ProgramBuilder("toy")
    pe = builder.engine("pe", "array")
    for name in "abc":
        with builder.op(info(name)):
            builder.emit([builder.command("work", [(pe, 1)])], times=5)
    return builder.build()


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    program = three_ops()
    assert compiled.simulate(program, max_events=15).events == 15
    with pytest.raises(LimitExceeded, match="15 commands, more than the limit of 14; raise max_events"):
        compiled.simulate(program, max_events=14)
    seconds = iter(range(99))
    monkeypatch.setattr(compiled, "BATCH", 5)
    monkeypatch.setattr(compiled, "monotonic", lambda: next(seconds))
    with pytest.raises(LimitExceeded, match="limit of 2 s with 10 of 15 commands started; raise max_seconds"):
        compiled.simulate(program, max_seconds=2)


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BATCH", 4)
    seen: list[tuple[int, int]] = []
    compiled.simulate(three_ops(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 15), (5, 15), (10, 15), (15, 15)]


def test_nothing_to_do() -> None:
    assert assert_same(ProgramBuilder("toy").build()).cycles == 0


def test_frontier_cycles_go_in_program_order() -> None:
    """The second op ends inside the first and is charged nothing; the third is charged what lies beyond the first."""
    builder = ProgramBuilder("toy")
    a, b = builder.engine("a", "dma"), builder.engine("b", "array")
    for name, engine, cycles in (("long", a, 10), ("inside", b, 4), ("beyond", b, 9)):
        with builder.op(info(name)):
            builder.emit([builder.command(name, [(engine, cycles)])])
    ops = assert_same(builder.build()).ops
    assert [(op.start_cycle, op.end_cycle, op.frontier_cycles) for op in ops] == [(0, 10, 10), (0, 4, 0), (4, 13, 3)]
