"""Laws that every finished program keeps, on generated ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Command, Program

from .programs import cases, info, live_programs, pipeline


def executed(program: Program) -> list[Command]:
    return [program.commands[index] for index in program.sequence.tolist()]


def longest_path(program: Program, *, credits: bool) -> list[int]:
    """End of every command by the max-plus recurrence, in program order.

    Valid for a fixed order and programs that can run serially. Without credits it is the critical path
    of engines and ops alone.
    """
    free = [0] * len(program.engines)
    op_end = [0] * len(program.ops)
    arrived: list[list[int]] = [[0] * pool.credits for pool in program.pools]  # a cycle per credit, in order
    taken = [0] * len(program.pools)
    ends: list[int] = []
    for command in executed(program):
        start = max([free[engine] for engine, _ in command.holds] + [op_end[op] for op in command.after])
        for pool, n in command.takes:
            taken[pool] += n
            if credits:
                start = max(start, arrived[pool][taken[pool] - 1])
        for engine, cycles in command.holds:
            free[engine] = start + cycles
        end = start + command.cycles
        op_end[command.op] = max(op_end[command.op], end)
        for pool, n in command.gives:
            arrived[pool] += [max([end, *arrived[pool][-1:]])] * n
        ends.append(end)
    return ends


def assert_sums(program: Program, counts: Counts) -> None:
    """Work, busy cycles and frontier cycles, against a plain walk over the sequence."""
    work: Counter[tuple[int, tuple[str, str, str]]] = Counter()
    busy: Counter[str] = Counter()
    for command in executed(program):
        for action, n in command.counts:
            work[command.op, action] += n
        for engine, cycles in command.holds:
            busy[program.engines[engine].name] += cycles
    assert {(i, action): n for i, op in enumerate(counts.ops) for action, n in op.counts.items()} == work
    assert sum(counts.total().values()) == sum(work.values())
    assert {name: n for name, n in counts.engine_busy.items() if n} == +busy
    assert sum(op.frontier_cycles for op in counts.ops) == counts.cycles
    assert all(0 <= op.frontier_cycles <= counts.cycles for op in counts.ops)
    assert all(op.start_cycle <= op.end_cycle <= counts.cycles for op in counts.ops)
    for i, op in enumerate(counts.ops):
        by_kind: Counter[str] = Counter()
        for engine, kind in enumerate(e.kind for e in program.engines):
            by_kind[kind] += sum(
                cycles for c in executed(program) if c.op == i for held, cycles in c.holds if held == engine
            )
        assert {kind: n for kind, n in op.busy.items() if n} == +by_kind


def assert_credits(program: Program, counts: Counts) -> list[list[int]]:
    """What is left of every pool at the end of every cycle, never less than nothing."""
    left: list[list[int]] = []
    for index, pool in enumerate(program.pools):
        changes: Counter[int] = Counter()
        for p, command in enumerate(executed(program)):
            changes[int(counts.intervals.start[p])] -= sum(n for to, n in command.takes if to == index)
            changes[int(counts.intervals.end[p])] += sum(n for to, n in command.gives if to == index)
        free, cycles = pool.credits, list[int]()
        for cycle in range(counts.cycles + 1):
            free += changes[cycle]
            cycles.append(free)
        assert min(cycles) >= 0
        left.append(cycles)
    return left


@cases(2000)
@given(live_programs())
def test_fixed_order(program: Program) -> None:
    """Sums; no pool overdrawn; exactly the longest path; between the busiest engine and the serial sum."""
    counts = simulate(program)
    assert_sums(program, counts)
    assert_credits(program, counts)
    assert counts.intervals.end.tolist() == longest_path(program, credits=True)
    assert counts.cycles >= max(counts.engine_busy.values())
    assert counts.cycles >= max(longest_path(program, credits=False))
    assert counts.cycles <= sum(command.cycles for command in executed(program))


@cases(2000)
@given(live_programs(dynamic=True))
def test_round_robin(program: Program) -> None:
    """Sums and bounds. The serial bound counts a transfer's own cycles and its port cycles apart."""
    counts = simulate(program)
    assert counts.port_model == "round_robin"
    assert_sums(program, counts)
    port = program.port.engine
    served = [[cycles for engine, cycles in c.holds if engine == port] for c in executed(program)]
    own = [max(cycles for engine, cycles in c.holds if engine != port) for c in executed(program)]
    assert counts.cycles >= max(counts.engine_busy.values())
    assert counts.cycles <= sum(own) + sum(map(sum, served))
    spans = (counts.intervals.end - counts.intervals.start).tolist()
    assert all(span >= command.cycles for span, command in zip(spans, executed(program), strict=True))


@cases(2000)
@given(live_programs(), st.integers(0, 999), st.integers(0, 999))
def test_monotone_under_fixed_order(program: Program, which: int, by: int) -> None:
    """A shorter hold, or more credits, never lets any command end later."""
    before = simulate(program)
    commands, pools = list(program.commands), list(program.pools)
    if which % 3:
        i = which % len(commands)
        j = by % len(commands[i].holds)
        holds = list(commands[i].holds)
        holds[j] = (holds[j][0], by % (holds[j][1] + 1))
        commands[i] = replace(commands[i], holds=tuple(holds))
    else:
        i = which % len(pools)
        pools[i] = replace(pools[i], credits=pools[i].credits + 1 + by % 3)
    changed = Program.of(program.hardware, program.engines, tuple(pools), program.ops, commands, program.sequence)
    after = simulate(changed)
    assert (after.intervals.end <= before.intervals.end).all()
    assert after.cycles <= before.cycles


@cases(2000)
@given(
    st.integers(1, 6), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3),
)  # fmt: skip
def test_buffers_hold_between_nothing_and_all_their_slots(
    tiles: int, load: int, compute: int, store: int, depth: int
) -> None:
    program = pipeline(tiles, load, compute, store, depth).build()
    counts = simulate(program)
    left = assert_credits(program, counts)
    for pool, cycles in zip(program.pools, left, strict=True):
        if pool.buffer:
            assert all(0 <= free <= pool.credits for free in cycles)
            assert cycles[-1] == pool.credits
    # one tile after the other at the slowest stage, which is the whole point of a second buffer
    if depth > 1:
        slowest = max(load, compute, store)
        assert counts.cycles == load + compute + store + (tiles - 1) * slowest


def test_large_integers_stay_exact() -> None:
    """Cycles beyond 2**53, where a float would lose the last digit, and counts beyond 64 bits."""
    builder = ProgramBuilder("toy")
    pe, mac = builder.engine("pe", "array"), ("array", "mac", "")
    with builder.op(info()):
        builder.emit([builder.command("long", [(pe, 2**60 + 1)], counts=[(mac, 2**63 - 1)])], times=3)
    counts = simulate(builder.build())
    assert counts.cycles == 3 * (2**60 + 1)
    assert counts.total() == {mac: 3 * (2**63 - 1)}
