"""Hypothesis strategies for small programs: up to four engines, four pools, and about 15 commands.

A program is decoded from lists of small integers, which are quick to draw and shrink well. A live program
can run serially in program order, so no engine can block for good; any program takes what it likes.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st

from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import OpInfo, Port, Program

KINDS = ("dma", "array", "vector", "dram")
COMMANDS_PER_OP = 4
# one command: driver, its cycles, a second engine, its cycles, pools taken, pools given, amounts, flags
GENE = st.tuples(*[st.integers(0, high) for high in (3, 5, 7, 6, 15, 15, 15, 15)])
# one pool: taker, giver, credits
POOL = st.tuples(*[st.integers(0, 3)] * 3)


def cases(n: int) -> settings:
    """At least n generated cases, more where the profile asks for more."""
    return settings(max_examples=max(n, settings().max_examples), deadline=None)


def info(name: str = "op") -> OpInfo:
    return OpInfo(name, "layer", "forward", "conv", macs=0)


def live_programs(*, dynamic: bool = False) -> st.SearchStrategy[Program]:
    """Programs that end; dynamic ones share their last engine in round-robin order."""
    return _programs(live=True, dynamic=dynamic)


def any_programs(*, dynamic: bool = False) -> st.SearchStrategy[Program]:
    """Programs of which many end in a deadlock."""
    return _programs(live=False, dynamic=dynamic)


@st.composite
def _programs(draw: st.DrawFn, live: bool, dynamic: bool) -> Program:
    n_engines = draw(st.integers(2, 4))
    drivers = n_engines - 1 if dynamic else n_engines
    pools = [(t % drivers, g % drivers, free) for t, g, free in draw(st.lists(POOL, min_size=1, max_size=4))]
    genes = draw(st.lists(GENE, min_size=4, max_size=16))
    grant_cycles = draw(st.integers(1, 3)) if dynamic else 1

    builder = ProgramBuilder("generated")
    for i in range(n_engines):
        builder.engine(f"e{i}", KINDS[i])
    for i, (_, _, credits) in enumerate(pools):
        builder.pool(f"p{i}", credits, buffer="" if i % 2 else f"b{i}")
    free = Counter({pool: credits for pool, (_, _, credits) in enumerate(pools)})

    for op, first in enumerate(range(0, len(genes), COMMANDS_PER_OP)):
        mine = genes[first : first + COMMANDS_PER_OP]
        after = [o for o in range(op) if mine[0][7] >> o & 1]
        if not live and mine[0][6] == 15:
            after.append(op)  # waits for itself
        with builder.op(info(f"op{op}"), after):
            for driver, own, second, cycles, taken, given, amounts, flags in mine:
                driver %= drivers
                if dynamic and flags & 1:
                    second = n_engines - 1
                holds = [(driver, own)]
                if second < n_engines and second != driver:
                    holds.append((second, cycles))
                takes = {
                    pool: 1 + (amounts >> pool & 1)
                    for pool, (taker, _, _) in enumerate(pools)
                    if taker == driver and taken >> pool & 1
                }
                gives = {
                    pool: 1 + (amounts >> pool & 1)
                    for pool, (_, giver, _) in enumerate(pools)
                    if giver == driver and given >> pool & 1
                }
                if live:
                    takes = {pool: n for pool, n in takes.items() if free[pool] >= n}
                command = builder.command(
                    f"c{own}",
                    holds,
                    takes.items(),
                    gives.items(),
                    counts=[(("array", "mac", ""), 1 + amounts)],
                )
                for _ in range(1 + (flags >> 3)):
                    if not live or all(free[pool] >= n for pool, n in takes.items()):
                        builder.emit([command])
                        free.subtract(takes)
                        free.update(gives)
    return builder.build(Port("round_robin", n_engines - 1, grant_cycles) if dynamic else None)


@st.composite
def repeating_programs(draw: st.DrawFn) -> Program:
    """Programs that end, of chunks that repeat as often as credits let them, at most 60 times."""
    n_engines = draw(st.integers(2, 4))
    pools = [(t % n_engines, g % n_engines, free) for t, g, free in draw(st.lists(POOL, min_size=1, max_size=4))]
    chunks = draw(st.lists(st.tuples(st.lists(GENE, min_size=1, max_size=5), st.integers(1, 60)), min_size=1, max_size=5))
    builder = ProgramBuilder("generated")
    for i in range(n_engines):
        builder.engine(f"e{i}", KINDS[i])
    for i, (_, _, credits) in enumerate(pools):
        builder.pool(f"p{i}", credits)
    free = [credits for _, _, credits in pools]
    for op, (genes, times) in enumerate(chunks):
        with builder.op(info(f"op{op}"), [o for o in range(op) if genes[0][7] >> o & 1]):
            # What is taken is given back or was given before, mostly: so that chunks can repeat.
            moves: list[tuple[int, list[tuple[int, int]], dict[int, int], dict[int, int]]] = []
            for driver, own, second, cycles, taken, given, amounts, _ in genes:
                driver %= n_engines
                holds = [(driver, own), *([(second, cycles)] if second < n_engines and second != driver else [])]
                takes = {p: 1 + (amounts >> p & 1) for p, (t, _, _) in enumerate(pools) if t == driver and taken >> p & 1}
                gives = {p: 1 + (amounts >> p & 1) for p, (_, g, _) in enumerate(pools) if g == driver and given >> p & 1}
                moves.append((own, holds, takes, gives))
            balance = [sum(gives.get(p, 0) - takes.get(p, 0) for *_, takes, gives in moves) for p in range(len(pools))]
            for p, (taker, giver, _) in enumerate(pools):
                if balance[p] > 0:
                    moves.append((0, [(taker, 1)], {p: balance[p]}, {}))
                elif balance[p] < 0:
                    moves.insert(0, (0, [(giver, 1)], {}, {p: -balance[p]}))
            level, lowest = list(free), [0] * len(pools)
            for *_, takes, gives in moves:
                for p in range(len(pools)):
                    level[p] -= takes.get(p, 0)
                    lowest[p] = min(lowest[p], level[p])
                    level[p] += gives.get(p, 0)
            for p, (_, giver, _) in enumerate(pools):
                if lowest[p] < 0:  # lent by a command before the chunk, and never taken back
                    builder.emit([builder.command("lend", [(giver, 2)], gives=[(p, -lowest[p])])])
                    free[p] -= lowest[p]
            builder.emit([builder.command(f"c{own}", holds, takes.items(), gives.items()) for own, holds, takes, gives in moves], times)
    return builder.build()


def pipeline(tiles: int, load: int, compute: int, store: int, depth: int = 2) -> ProgramBuilder:
    """Load, compute, store with buffers of ``depth`` tiles on both sides of the array."""
    builder = ProgramBuilder("toy")
    source, array, sink = (
        builder.engine("dma in", "dma"),
        builder.engine("array", "array"),
        builder.engine("dma out", "dma"),
    )
    in_free, in_full = builder.pool("in.free", depth, buffer="in"), builder.pool("in.full", 0)
    out_free, out_full = builder.pool("out.free", depth, buffer="out"), builder.pool("out.full", 0)
    with builder.op(info("conv:forward")):
        commands = [
            builder.command(
                "load", [(source, load)], [(in_free, 1)], [(in_full, 1)],
                counts=[(("dram", "read", "activation"), 64)],
            ),
            builder.command(
                "compute", [(array, compute)], [(in_full, 1), (out_free, 1)], [(in_free, 1), (out_full, 1)],
                counts=[(("array", "mac", ""), compute * compute)],
            ),
            builder.command("store", [(sink, store)], [(out_full, 1)], [(out_free, 1)]),
        ]  # fmt: skip
        builder.emit(commands, times=tiles)
    return builder
