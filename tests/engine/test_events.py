"""The events engine: timing diagrams by hand, and a machine that looks at every cycle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from jouletrace.engine.events import simulate
from jouletrace.errors import Deadlock, LimitExceeded, MappingError
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Port, Program, Run

from .harness import run
from .interpreter import Interpreter
from .programs import any_programs, cases, info, live_programs, pipeline

MAC = ("array", "mac", "")


def assert_agrees(program: Program) -> None:
    """Every start, end and cycle as in the interpreter, and a deadlock where that one is stuck."""
    truth = Interpreter(program)
    if not truth.run():
        with pytest.raises(Deadlock):
            simulate(program)
        return
    counts = simulate(program)
    positions = range(len(program.sequence))
    assert counts.intervals.start.tolist() == [truth.start[p] for p in positions]
    assert counts.intervals.end.tolist() == [truth.end[p] for p in positions]
    assert counts.cycles == max(truth.end.values(), default=0)


@cases(600)
@given(live_programs())
def test_interpreter_fixed_order(program: Program) -> None:
    assert_agrees(program)


@cases(600)
@given(live_programs(dynamic=True))
def test_interpreter_round_robin(program: Program) -> None:
    assert_agrees(program)


@cases(300)
@given(any_programs(dynamic=True))
def test_interpreter_round_robin_with_deadlocks(program: Program) -> None:
    assert_agrees(program)


def test_double_buffer() -> None:
    """Two slots: the third load waits for the first compute's end, not for its start."""
    run(pipeline(tiles=4, load=5, compute=9, store=2)).assert_busy(
        "dma in", [(0, 5), (5, 10), (14, 19), (23, 28)]
    ).assert_busy("array", [(5, 14), (14, 23), (23, 32), (32, 41)]).assert_busy(
        "dma out", [(14, 16), (23, 25), (32, 34), (41, 43)]
    ).assert_cycles(43).assert_counts({("dram", "read", "activation"): 4 * 64, MAC: 4 * 81})


def test_single_buffer() -> None:
    run(pipeline(tiles=3, load=5, compute=9, store=2, depth=1)).assert_busy(
        "dma in", [(0, 5), (14, 19), (28, 33)]
    ).assert_busy("array", [(5, 14), (19, 28), (33, 42)])


def test_empty_program() -> None:
    assert run(ProgramBuilder("toy")).assert_cycles(0).counts.events == 0


def test_commands_of_one_engine_follow_each_other() -> None:
    builder = ProgramBuilder("toy")
    pe = builder.engine("pe", "array")
    with builder.op(info()):
        builder.emit([builder.command("a", [(pe, 3)]), builder.command("b", [(pe, 4)])], times=2)
    run(builder).assert_busy("pe", [(0, 3), (3, 7), (7, 10), (10, 14)])


def test_program_order_on_a_shared_port() -> None:
    """Two streams hold the port in program order, also where the second could go first.

    ``late`` cannot start before the compute has ended; ``ready`` stands behind it and waits.
    """
    builder = ProgramBuilder("toy")
    a, b, port = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("dram", "dram")
    pe, done = builder.engine("pe", "array"), builder.pool("done", 0)
    with builder.op(info()):
        builder.emit(
            [
                builder.command("first", [(a, 2), (port, 2)]),
                builder.command("compute", [(pe, 10)], gives=[(done, 1)]),
                builder.command("late", [(a, 3), (port, 3)], takes=[(done, 1)]),
                builder.command("ready", [(b, 4), (port, 4)]),
            ]
        )
    run(builder).assert_busy("dram", [(0, 2), (10, 13), (13, 17)]).assert_busy("b", [(13, 17)])


def test_a_command_starts_when_all_its_engines_are_free() -> None:
    """Transfers that hold the array do not overlap compute."""
    builder = ProgramBuilder("toy")
    dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    with builder.op(info()):
        builder.emit(
            [builder.command("load", [(dma, 4), (pe, 4)]), builder.command("mac", [(pe, 6)])], times=2
        )
    run(builder).assert_busy("pe", [(0, 4), (4, 10), (10, 14), (14, 20)]).assert_busy(
        "dma", [(0, 4), (10, 14)]
    )


def test_an_engine_held_longer_than_its_driver() -> None:
    """The driver goes on after 2 cycles; the port, and so the command, takes 5."""
    builder = ProgramBuilder("toy")
    dma, port, full = builder.engine("dma", "dma"), builder.engine("dram", "dram"), builder.pool("full", 0)
    pe = builder.engine("pe", "array")
    with builder.op(info()):
        load = builder.command("load", [(dma, 2), (port, 5)], gives=[(full, 1)])
        start = builder.command("start", [(dma, 1)])
        mac = builder.command("mac", [(pe, 1)], takes=[(full, 1)])
        builder.emit([load, start, mac], times=2)
    run(builder).assert_busy("dma", [(0, 2), (2, 3), (5, 7), (7, 8)]).assert_busy(
        "dram", [(0, 5), (5, 10)]
    ).assert_spans("mac", [(5, 6), (10, 11)])


def test_credits_arrive_in_the_order_of_the_givers_commands() -> None:
    """``quick`` ends at 3, before ``slow`` at 9; its credit waits behind that of ``slow``."""
    builder = ProgramBuilder("toy")
    dma, port, pe = (
        builder.engine("dma", "dma"),
        builder.engine("dram", "dram"),
        builder.engine("pe", "array"),
    )
    full = builder.pool("full", 0)
    with builder.op(info()):
        builder.emit(
            [
                builder.command("slow", [(dma, 1), (port, 9)], gives=[(full, 1)]),
                builder.command("quick", [(dma, 2)], gives=[(full, 1)]),
                *[builder.command("mac", [(pe, 4)], takes=[(full, 1)])] * 2,
            ]
        )
    run(builder).assert_spans("quick", [(1, 3)]).assert_busy("pe", [(9, 13), (13, 17)])


def test_several_credits_at_once() -> None:
    """Compute needs three tiles and gives three slots back; the buffer holds four."""
    builder = ProgramBuilder("toy")
    dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    free, full = builder.pool("free", 4, buffer="x"), builder.pool("full", 0)
    with builder.op(info()):
        load = builder.command("load", [(dma, 2)], takes=[(free, 1)], gives=[(full, 1)])
        mac = builder.command("mac", [(pe, 10)], takes=[(full, 3)], gives=[(free, 3)])
        builder.emit([load, load, load, mac], times=2)
    run(builder).assert_busy("pe", [(6, 16), (20, 30)]).assert_busy(
        "dma", [(0, 2), (2, 4), (4, 6), (6, 8), (16, 18), (18, 20)]
    )


def test_after_waits_for_every_command_of_an_op() -> None:
    builder = ProgramBuilder("toy")
    a, b, pe = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("pe", "array")
    with builder.op(info("loads")):
        builder.emit([builder.command("load a", [(a, 3)]), builder.command("load b", [(b, 8)])])
    with builder.op(info("nothing"), after=[0]):
        pass
    with builder.op(info("gated"), after=[0, 1]):
        builder.emit([builder.command("mac", [(pe, 1)])])
    with builder.op(info("free"), after=[1]):  # an op without commands has ended before the step begins
        builder.emit([builder.command("prefetch", [(a, 1)])])
    run(builder).assert_busy("pe", [(8, 9)]).assert_spans("prefetch", [(3, 4)])


def test_an_op_may_wait_for_a_later_one_of_another_engine() -> None:
    builder = ProgramBuilder("toy")
    a, b = builder.engine("a", "array"), builder.engine("b", "vector")
    with builder.op(info("first"), after=[1]):
        builder.emit([builder.command("x", [(a, 3)])])
    with builder.op(info("second")):
        builder.emit([builder.command("y", [(b, 5)])])
    run(builder).assert_spans("x", [(5, 8)])


def test_commands_that_take_no_time() -> None:
    """A chain of decisions of 0 cycles passes within one cycle, and still in order."""
    builder = ProgramBuilder("toy")
    control, pe = builder.engine("control", "control"), builder.engine("pe", "array")
    go = builder.pool("go", 0)
    with builder.op(info("decide")):
        builder.emit([builder.command("work", [(pe, 3)])])
        builder.emit([builder.command("decide", [(control, 0)], gives=[(go, 1)])], times=3)
    with builder.op(info("use"), after=[0]):
        builder.emit([builder.command("skip", [(pe, 0)], takes=[(go, 1)])], times=3)
        builder.emit([builder.command("last", [(pe, 2)])])
    run(builder).assert_spans("decide", [(0, 0)] * 3).assert_spans("skip", [(3, 3)] * 3).assert_spans(
        "last", [(3, 5)]
    )


def two_streams(loads_a: list[int], loads_b: list[int]) -> ProgramBuilder:
    """Two streams that load over one port; the vector engine works 4 cycles on each load of b."""
    builder = ProgramBuilder("toy")
    a, b, port = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("dram", "dram")
    vector, full = builder.engine("vector", "vector"), builder.pool("b.full", 0)
    with builder.op(info()):
        for cycles in loads_a:
            builder.emit([builder.command("load a", [(a, 0), (port, cycles)])])
        for cycles in loads_b:
            builder.emit([builder.command("load b", [(b, 0), (port, cycles)], gives=[(full, 1)])])
            builder.emit([builder.command("work", [(vector, 4)], takes=[(full, 1)])])
    return builder


def test_round_robin_is_fair() -> None:
    """Grants of 2 cycles in turn, aabbaabbab: a short stream is not kept waiting by a long one.

    In program order the second stream has to wait for all of the first.
    """
    builder = two_streams([5], [5])
    run(builder, Port("round_robin", engine=2, grant_cycles=2)).assert_spans("load a", [(0, 9)]).assert_spans(
        "load b", [(0, 10)]
    )
    run(builder, Port("round_robin", engine=2, grant_cycles=5)).assert_spans("load a", [(0, 5)]).assert_spans(
        "load b", [(0, 10)]
    )
    run(builder).assert_spans("load a", [(0, 5)]).assert_spans("load b", [(5, 10)])


def test_round_robin_keeps_the_turn_of_the_stream_that_was_served_last() -> None:
    """b asks 1 cycle after a; c asks with a. aabbccaa: the turn goes on by engine index, not by arrival."""
    builder = ProgramBuilder("toy")
    a, b, c = (builder.engine(name, "dma") for name in "abc")
    port = builder.engine("dram", "dram")
    with builder.op(info()):
        builder.emit([builder.command("load a", [(a, 0), (port, 4)])])
        builder.emit([builder.command("set up", [(b, 1)]), builder.command("load b", [(b, 0), (port, 2)])])
        builder.emit([builder.command("load c", [(c, 0), (port, 2)])])
    run(builder, Port("round_robin", engine=port, grant_cycles=2)).assert_spans(
        "load a", [(0, 8)]
    ).assert_spans("load b", [(1, 4)]).assert_spans("load c", [(0, 6)])


def test_round_robin_holds_the_stream_until_both_are_done() -> None:
    """The stream's own 7 cycles outlast its grants, and the next command waits for them."""
    builder = ProgramBuilder("toy")
    a, port = builder.engine("a", "dma"), builder.engine("dram", "dram")
    with builder.op(info()):
        builder.emit(
            [
                builder.command("slow source", [(a, 7), (port, 3)]),
                builder.command("next", [(a, 1), (port, 4)]),
            ]
        )
    run(builder, Port("round_robin", engine=port)).assert_spans("slow source", [(0, 7)]).assert_spans(
        "next", [(7, 11)]
    )


def test_round_robin_is_not_monotone() -> None:
    """Graham's anomaly: a's first load gets 1 cycle shorter, and the step 1 cycle longer.

    With 3 cycles the port serves aabba, then b's last cycle, and b's work starts at 6. With 2 cycles
    a's second load asks at 2 and is served, after bb, before b's last cycle: aabbaab.
    """
    port = Port("round_robin", engine=2, grant_cycles=2)
    run(two_streams([3, 3], [3]), port).assert_spans("load b", [(0, 6)]).assert_cycles(10)
    run(two_streams([2, 3], [3]), port).assert_spans("load b", [(0, 7)]).assert_cycles(11)


def test_number_of_events() -> None:
    """An event only where somebody waits.

    Three processes begin and end (6). 4 loads, computes and stores end (12). The array waits for its first
    tile, the store four times for a result, the loads twice for a slot (7). 25 in all.
    """
    assert run(pipeline(tiles=4, load=5, compute=9, store=2)).counts.events == 25


def test_events_grow_linearly() -> None:
    events = [run(pipeline(tiles=n, load=5, compute=9, store=2)).counts.events for n in (100, 200, 400)]
    assert events[2] - events[1] == 2 * (events[1] - events[0]) == 200 * 5


def test_limits() -> None:
    program = pipeline(tiles=3000, load=5, compute=9, store=2).build()
    with pytest.raises(
        LimitExceeded, match=r"limit of 1000 events at cycle \d+, with \d{3} of 9000 commands started"
    ):
        simulate(program, max_events=1000)
    with pytest.raises(LimitExceeded, match=r"limit of 0 s"):
        simulate(program, max_seconds=0)
    free = simulate(program)
    assert simulate(program, max_events=free.events, max_seconds=600).cycles == free.cycles
    with pytest.raises(LimitExceeded):
        simulate(program, max_events=free.events - 1)


def test_progress_is_reported_up_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    simulate(
        pipeline(tiles=20_000, load=5, compute=9, store=2).build(), progress=lambda *at: calls.append(at)
    )
    assert calls[-1] == (60_000, 60_000)
    assert calls == sorted(calls)
    assert len({done for done, _ in calls}) > 3


def test_everything_wrong_with_a_program_is_said_at_once() -> None:
    builder = ProgramBuilder("toy")
    a, b, port = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("dram", "dram")
    pool = builder.pool("full", 0)
    with builder.op(info()):
        builder.emit(
            [
                builder.command("nothing", []),
                builder.command("twice", [(a, 1), (a, 1)]),
                builder.command("back in time", [(a, -1)], takes=[(pool, 0)]),
                builder.command("elsewhere", [(a, 1), (9, 1)], gives=[(7, 1)]),
                builder.command("port", [(port, 1)]),
                builder.command("give", [(a, 1)], gives=[(pool, 1)]),
                builder.command("give too", [(b, 1)], gives=[(pool, 1)]),
            ]
        )
    with pytest.raises(MappingError) as error:
        simulate(builder.build(Port("round_robin", engine=port, grant_cycles=0)))
    said = str(error.value)
    for part in (
        "grant_cycles must be at least 1",
        "'nothing' holds no engine",
        "'twice' holds an engine twice",
        "'back in time' holds an engine for a negative",
        "'back in time' takes or gives 0 credits",
        "'elsewhere' holds an engine outside 0 .. 2",
        "'elsewhere' names pool 7 of 1",
        "'port' is driven by the round-robin port",
        "pool 'full': both 'a' and 'b' give its credits",
    ):
        assert part in said


def test_a_program_that_does_not_fit_together() -> None:
    program = pipeline(tiles=1, load=5, compute=9, store=2).build()
    parts = (program.hardware, program.engines, program.pools, program.ops, program.commands)
    with pytest.raises(MappingError, match=r"the sequence names commands outside 0 \.\. 2"):
        Program.of(*parts, sequence=[0, 3])
    body = replace(program.bodies[0], runs=(Run(np.array([0, 3], dtype=np.int32), 1),))
    with pytest.raises(MappingError, match=r"the sequence names commands outside 0 \.\. 2"):
        simulate(replace(program, bodies=(body,)))
    with pytest.raises(MappingError, match=r"command 'load' names an op outside 0 \.\. 0"):
        simulate(replace(program, after=((4,),)))
    with pytest.raises(MappingError, match="each of the 1 ops needs what it executes, where, and whom it awaits"):
        simulate(replace(program, after=()))
    with pytest.raises(MappingError, match="a round-robin port needs the index of an engine"):
        simulate(replace(program, port=Port("round_robin")))


def test_more_cycles_than_64_bits_hold() -> None:
    with pytest.raises(MappingError, match="more cycles than 64 bits can count"):
        simulate(pipeline(tiles=1, load=2**62, compute=9, store=2).build())
