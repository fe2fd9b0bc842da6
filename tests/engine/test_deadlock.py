"""Every run ends: with a result, or with a Deadlock that names who waits for whom."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given

from jouletrace.engine.events import simulate
from jouletrace.errors import Deadlock
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Port, Program

from .interpreter import Interpreter
from .programs import any_programs, cases, info

# Far beyond what 32 commands of up to 6 cycles need: a run that gets there hangs.
ENOUGH = 5000


def next_command(truth: Interpreter, driver: int) -> int | None:
    """The position where a driver is stuck."""
    left = (
        p for p in range(len(truth.program.sequence)) if p not in truth.start and truth.driver(p) == driver
    )
    return next(left, None)


def could_free(truth: Interpreter, waiter: int, cause: int) -> bool:
    """Whether commands that are left to ``cause`` are something that ``waiter`` cannot start without."""
    at = next_command(truth, waiter)
    assert at is not None, "the engine has finished"
    command = truth.command(at)
    lacking = {pool for pool, _ in command.takes if truth.credits(pool) < truth.needs(command, pool)}
    held = {engine for engine, _ in command.holds if not truth.is_dynamic(engine)}
    for p in range(len(truth.program.sequence)):
        if p in truth.start or truth.driver(p) != cause:
            continue
        theirs = truth.command(p)
        gives = any(pool in lacking for pool, _ in theirs.gives)
        ends = theirs.op in command.after
        precedes = p < at and any(engine in held for engine, _ in theirs.holds)
        if gives or ends or precedes:
            return True
    return False


def assert_explained(program: Program, error: Deadlock, truth: Interpreter) -> None:
    """The message is about the interpreter's state, and its circle is a circle."""
    index = {engine.name: i for i, engine in enumerate(program.engines)}
    said = str(error)
    blocked = {driver for driver in index.values() if next_command(truth, driver) is not None}
    assert f": {len(truth.end)} of {len(program.sequence)} commands have ended" in error.problems[0]
    assert f"deadlock at cycle {max(truth.end.values(), default=0)}:" in error.problems[0]
    places = re.findall(r"^(\w+), at command (\d+) ", said, re.MULTILINE)
    assert {index[name]: int(at) for name, at in places} == {d: next_command(truth, d) for d in blocked}
    if circle := re.search(r"^the circle is (.*)$", said, re.MULTILINE):
        names = circle[1].split(" -> ")
        assert names[0] == names[-1]
        assert len(set(names)) == len(names) - 1
        assert all(could_free(truth, index[a], index[b]) for a, b in pairwise(names))
    else:
        last = re.search(r"^the waiting ends at (\w+),", said, re.MULTILINE)
        assert last is not None
        at = next_command(truth, index[last[1]])
        assert at is not None
        assert not truth.may_start(at)
        assert "nobody gives any more" in said
    for i, pool in enumerate(program.pools):
        if pool.buffer:
            fill = pool.credits - truth.credits(i)
            assert f"{pool.buffer} {fill} of {pool.credits} ({pool.name})" in said


@cases(1000)
@given(any_programs())
def test_no_hang_and_no_false_alarm(program: Program) -> None:
    """The interpreter knows which programs can go on; about half of these cannot."""
    truth = Interpreter(program)
    if truth.run():
        counts = simulate(program, max_events=ENOUGH)
        assert counts.intervals.end.tolist() == [truth.end[p] for p in range(len(program.sequence))]
    else:
        with pytest.raises(Deadlock) as error:
            simulate(program, max_events=ENOUGH)
        assert_explained(program, error.value, truth)


@cases(500)
@given(any_programs(dynamic=True))
def test_round_robin_too(program: Program) -> None:
    truth = Interpreter(program)
    if truth.run():
        simulate(program, max_events=ENOUGH)
    else:
        with pytest.raises(Deadlock) as error:
            simulate(program, max_events=ENOUGH)
        assert_explained(program, error.value, truth)


def stuck(builder: ProgramBuilder, port: Port | None = None) -> list[str]:
    with pytest.raises(Deadlock) as error:
        simulate(builder.build(port))
    return list(error.value.problems)


def test_a_tile_that_is_larger_than_its_buffer() -> None:
    """Compute wants three tiles at once; the buffer has room for two."""
    builder = ProgramBuilder("toy")
    dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    free, full = builder.pool("in.free", 2, buffer="in"), builder.pool("in.full", 0)
    with builder.op(info("conv:forward")):
        load = builder.command("load", [(dma, 5)], takes=[(free, 1)], gives=[(full, 1)])
        builder.emit([load] * 3)
        builder.emit([builder.command("mac", [(pe, 9)], takes=[(full, 3)], gives=[(free, 3)])])
    assert stuck(builder) == [
        "deadlock at cycle 10: 2 of 4 commands have ended, and no other can ever start",
        "dma, at command 2 ('load' of 'conv:forward'), waits for 1 of 'in.free', of which 0 are left "
        "(2 at the start) and pe would give",
        "pe, at command 3 ('mac' of 'conv:forward'), waits for 3 of 'in.full', of which 2 are left "
        "(0 at the start) and dma would give",
        "the circle is dma -> pe -> dma",
        "slots in use: in 2 of 2 (in.free)",
        "give the buffers named above more slots or smaller tiles, or issue the command that gives "
        "before the one that waits for it",
    ]


def test_more_credits_than_a_pool_can_ever_hold() -> None:
    builder = ProgramBuilder("toy")
    dma, free = builder.engine("dma", "dma"), builder.pool("in.free", 2, buffer="in")
    pe = builder.engine("pe", "array")
    with builder.op(info()):
        builder.emit([builder.command("load", [(dma, 5)], takes=[(free, 3)])])
        builder.emit([builder.command("bias", [(pe, 1), (dma, 1)])])
    said = stuck(builder)
    assert said[1].endswith("waits for its turn on dma, which comes after dma's")
    assert said[2].endswith(
        "waits for 3 of 'in.free', of which 2 are left (2 at the start) and nobody gives any more"
    )
    assert said[3] == "the waiting ends at dma, for which nobody can do anything"


def test_an_op_that_waits_for_itself() -> None:
    builder = ProgramBuilder("toy")
    pe = builder.engine("pe", "array")
    with builder.op(info("conv:forward"), after=[0]):
        builder.emit([builder.command("mac", [(pe, 5)])])
    said = stuck(builder)
    assert said[1].endswith("waits for the end of 'conv:forward', in which pe has work left")
    assert said[2] == "the circle is pe -> pe"


def test_a_port_in_an_order_that_cannot_be() -> None:
    """The store holds the port before the load that it needs; round robin has no such order."""
    builder = ProgramBuilder("toy")
    a, b, port = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("dram", "dram")
    full = builder.pool("full", 0)
    with builder.op(info()):
        builder.emit([builder.command("store", [(b, 5), (port, 5)], takes=[(full, 1)])])
        builder.emit([builder.command("load", [(a, 5), (port, 5)], gives=[(full, 1)])])
    said = stuck(builder)
    assert said[1].startswith(
        "a, at command 1 ('load' of 'op'), waits for its turn on dram, which comes after b's"
    )
    assert said[3] == "the circle is a -> b -> a"
    assert simulate(builder.build(Port("round_robin", engine=port))).cycles == 10
