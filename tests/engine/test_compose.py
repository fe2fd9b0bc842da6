"""A composed run is the sum of its iterations: before/after pictures, and equality with the events engine."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.engine import compiled, events
from jouletrace.engine.compose import compose
from jouletrace.engine.family import ABSENT, Family, Slot, concatenate
from jouletrace.engine.parts import Part, parts_of
from jouletrace.errors import MappingError, UsageError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.hardware.spec import ChannelParallel
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import OpProgram, Port, Program, Run
from jouletrace.mapping.step import map_step
from jouletrace.trace.io import load_trace

from .programs import GENE, KINDS, POOL, cases, info, live_programs, pipeline

# One slot: how many commands its variants have, the slots it awaits and those awaited in its place, as bits
SLOT = st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=2), st.integers(0, 255), st.integers(0, 255))


def toy(*holds: tuple[str, int]) -> ProgramBuilder:
    """One op per hold, of one command on the engine of that name."""
    builder = ProgramBuilder("toy")
    for engine, cycles in holds:
        with builder.op(info(engine)):
            builder.emit([builder.command("work", [(builder.engine(engine, "array"), cycles)])])
    return builder


def family(
    builder: ProgramBuilder,
    after: list[tuple[int, ...]],
    instead: list[tuple[int, ...]] | None = None,
    *,
    serial: bool = False,
) -> Family:
    program = builder.build()
    parts, places = program.bodies, instead or [()] * len(after)
    slots = tuple(Slot((part,), a, i) for part, a, i in zip(parts, after, places, strict=True))
    return Family(slots, program.engines, program.pools, program.ops, serial, program.port)


def cycles(family: Family, *rows: list[int]) -> list[int]:
    return compose(family, np.array(rows, dtype=np.int16)).cycles.tolist()


def assert_exact(family: Family, rows: list[list[int]]) -> None:
    """Cycles of every row, and sums per slot and variant, against the events engine on the concatenated steps."""
    run = compose(family, np.array(rows, dtype=np.int16).reshape(len(rows), len(family.slots)))
    steps = [events.simulate(concatenate(family, row)) for row in rows]
    assert run.cycles.tolist() == [step.cycles for step in steps]
    expected = [Counter[tuple[int, int]]() for _ in range(4)]
    for step, row in zip(steps, rows, strict=True):
        for j, (op, v) in enumerate(zip(step.ops, row, strict=True)):
            if v != ABSENT:
                for sums, n in zip(expected, (1, op.end_cycle, op.cycles, op.frontier_cycles), strict=True):
                    sums[j, v] += n
    places = [(j, v) for j, slot in enumerate(family.slots) for v in range(len(slot.variants))]
    for sums, found in zip(
        expected, (run.occurrences, run.end_cycles, run.span_cycles, run.frontier_cycles), strict=True
    ):
        assert {(j, v): found[j][v] for j, v in places} == {place: sums[place] for place in places}


def test_an_absent_op_takes_no_time_and_passes_waits_on() -> None:
    """a works, b awaits a, c awaits b; without b, c awaits a."""
    one = family(toy(("a", 5), ("b", 3), ("c", 4)), [(), (0,), (1,)], [(), (0,), ()])
    assert cycles(one, [0, 0, 0], [0, -1, 0], [-1, 0, 0], [-1, -1, -1]) == [12, 9, 7, 0]


def test_an_absent_op_without_a_stand_in_is_awaited_by_nobody() -> None:
    assert cycles(family(toy(("a", 5), ("b", 3), ("c", 4)), [(), (0,), (1,)]), [0, -1, 0]) == [5]


def test_a_step_is_shorter_than_the_sum_of_its_ops() -> None:
    """a: 0-5 and 5-9, b: 0-3 and 5-8: the third op awaits the first alone, and works beside the fourth."""
    one = family(toy(("a", 5), ("b", 3), ("b", 3), ("a", 4)), [(), (), (0,), ()])
    assert cycles(one, [0, 0, 0, 0], [0, -1, -1, 0], [-1, 0, 0, -1]) == [9, 9, 6]


def test_one_op_after_another() -> None:
    """Serial: each op awaits the one before it that is present, on whatever engine."""
    one = family(toy(("a", 5), ("b", 3), ("c", 4)), [(), (), ()], serial=True)
    assert cycles(one, [0, 0, 0], [0, -1, 0], [-1, -1, 0], [-1, 0, -1]) == [12, 9, 4, 3]


def test_an_op_without_commands_passes_waits_on() -> None:
    """c awaits b, which has no commands and awaits a."""
    program = toy(("a", 5), ("c", 4)).build()
    a, c = program.bodies
    slots = (Slot((a,)), Slot((OpProgram((), (), (), ()),), after=(0,)), Slot((c,), after=(1,)))
    one = Family(slots, program.engines, program.pools, (info("a"), info("b"), info("c")))
    run = compose(one, np.zeros((1, 3), dtype=np.int16))
    assert (run.cycles.tolist(), run.end_cycles, run.occurrences) == ([9], ((5,), (0,), (9,)), ((1,), (1,), (1,)))


def test_sums_per_variant() -> None:
    """b for all samples takes 6 cycles, for half of them 3; twice the one, once the other."""
    program = toy(("a", 5), ("b", 6), ("b", 3)).build()
    a, whole, half = program.bodies
    one = Family((Slot((a,)), Slot((whole, half), after=(0,))), program.engines, program.pools, program.ops[:2])
    run = compose(one, np.array([[0, 0], [0, 1], [0, 0], [-1, 1]], dtype=np.int16))
    assert run.cycles.tolist() == [11, 8, 11, 3]
    assert run.occurrences == ((3,), (2, 2))
    assert run.end_cycles == ((15,), (22, 11))
    assert run.span_cycles == ((15,), (12, 6))
    assert run.frontier_cycles == ((15,), (12, 6))


@st.composite
def families(draw: st.DrawFn) -> tuple[Family, list[list[int]]]:
    """A family of up to 8 slots whose ops return the credits they take, and up to 5 iterations of it."""
    n_engines = draw(st.integers(2, 4))
    pools = [(t % n_engines, g % n_engines, free) for t, g, free in draw(st.lists(POOL, min_size=1, max_size=4))]
    shapes = draw(st.lists(SLOT, min_size=2, max_size=8))
    n_genes = sum(n for variants, _, _ in shapes for n in variants)
    genes = iter(draw(st.lists(GENE, min_size=n_genes, max_size=n_genes)))

    builder = ProgramBuilder("generated")
    for i in range(n_engines):
        builder.engine(f"e{i}", KINDS[i])
    for i, (_, _, credits) in enumerate(pools):
        builder.pool(f"p{i}", credits)
    for variants, _, _ in shapes:
        for n in variants:
            with builder.op(info()):
                free = Counter({pool: credits for pool, (_, _, credits) in enumerate(pools)})
                for driver, own, second, hold, taken, given, amounts, _ in (next(genes) for _ in range(n)):
                    driver %= n_engines
                    holds = [(driver, own)]
                    if second < n_engines and second != driver:
                        holds.append((second, hold))
                    takes, gives = (
                        {
                            pool: 1 + (amounts >> pool & 1)
                            for pool, ends in enumerate(pools)
                            if ends[end] == driver and bits >> pool & 1
                        }
                        for end, bits in enumerate((taken, given))
                    )
                    takes = {pool: k for pool, k in takes.items() if free[pool] >= k}
                    builder.emit([builder.command("work", holds, takes.items(), gives.items())])
                    free.subtract(takes)
                    free.update(gives)
                for pool, (taker, giver, credits) in enumerate(pools):
                    if free[pool] > credits:
                        rest = [(pool, free[pool] - credits)]
                        builder.emit([builder.command("take the rest", [(taker, 1)], takes=rest)])
                    elif free[pool] < credits:
                        rest = [(pool, credits - free[pool])]
                        builder.emit([builder.command("give the rest", [(giver, 1)], gives=rest)])
    program = builder.build()
    parts = iter(program.bodies)
    slots = tuple(
        Slot(
            tuple(next(parts) for _ in variants),
            tuple(a for a in range(j) if after >> a & 1),
            tuple(a for a in range(j) if instead >> a & 1),
        )
        for j, (variants, after, instead) in enumerate(shapes)
    )
    choices = st.tuples(*(st.integers(ABSENT, len(slot.variants) - 1) for slot in slots)).map(list)
    rows = draw(st.lists(choices, min_size=1, max_size=5))
    one = Family(slots, program.engines, program.pools, (info(),) * len(slots), draw(st.booleans()))
    return one, rows


@cases(1500)
@given(families())
def test_equal_to_events(drawn: tuple[Family, list[list[int]]]) -> None:
    assert_exact(*drawn)


def test_equal_to_events_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOULETRACE_NO_NUMBA", "1")

    @cases(200)
    @given(families())
    def check(drawn: tuple[Family, list[list[int]]]) -> None:
        assert_exact(*drawn)

    check()


def test_iterations_that_are_too_many_side_by_side_go_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two seams are too many, every iteration that differs goes alone."""
    monkeypatch.setattr("jouletrace.engine.compose.ENTRIES", 1)

    @cases(300)
    @given(families())
    def check(drawn: tuple[Family, list[list[int]]]) -> None:
        assert_exact(*drawn)

    check()


@cases(500)
@given(families(), st.integers(0, 7))
def test_iterations_do_not_depend_on_one_another(drawn: tuple[Family, list[list[int]]], last: int) -> None:
    """Terms are raised by what the choices of all iterations have in common; none of them may notice."""
    one, rows = drawn
    together = cycles(one, *rows, rows[last % len(rows)])
    assert together == [cycles(one, row)[0] for row in (*rows, rows[last % len(rows)])]


@cases(300)
@given(live_programs())
def test_concatenate_gives_the_program_back(program: Program) -> None:
    parts, after = program.bodies, program.after
    one = Family(
        tuple(Slot((part,), a) for part, a in zip(parts, after, strict=True)),
        program.engines, program.pools, program.ops,
    )  # fmt: skip
    again = concatenate(one, [0] * len(parts))
    found, expected = events.simulate(again), events.simulate(program)
    assert found.intervals.start.tolist() == expected.intervals.start.tolist()
    for part, op in zip(parts, expected.ops, strict=True):
        assert part.counts == op.counts


FIXED = [name for name in list_hardware() if load_hardware(name).dram.port == "program_order"]
SHARED = [name for name in list_hardware() if load_hardware(name).dram.port == "stream_share"]


@pytest.mark.parametrize("name", [*FIXED, *SHARED])
def test_shipped_hardware(name: str) -> None:
    """The last stage of ResNet-20, of which every iteration leaves out other residual blocks."""
    hardware = load_hardware(name)
    program = map_step(load_trace("resnet20-cifar10-b32"), hardware, only="layer3")
    after = program.after
    slots = tuple(Slot((part,), a, a) for part, a in zip(program.bodies, after, strict=True))
    array = hardware.array
    serial = isinstance(array, ChannelParallel) and array.schedule.prefetch_stops_at != "never"
    one = Family(slots, program.engines, program.pools, program.ops, serial, program.port)
    blocks = [op.layer.split(".")[1] for op in program.ops]
    rows = [
        [ABSENT if block in absent else 0 for block in blocks] for absent in ((), ("1",), ("2",), ("1", "2"), ("2",))
    ]
    run = compose(one, np.array(rows, dtype=np.int16))
    assert run.cycles.tolist() == [compiled.simulate(concatenate(one, row)).cycles for row in rows]
    assert run.cycles[0] == compiled.simulate(program).cycles
    assert run.cycles[0] > run.cycles[1] > run.cycles[3]


def test_sums_beyond_64_bits() -> None:
    one = family(toy(("a", 2**58 + 1)), [()])
    run = compose(one, np.zeros((100, 1), dtype=np.int16))
    assert run.end_cycles == ((100 * (2**58 + 1),),)


def test_families_share_what_they_executed() -> None:
    """A run with further variants executes these alone; at another rate of the port, everything is another."""
    program = toy(("a", 5), ("b", 6), ("b", 3)).build()
    a, whole, half = program.bodies

    def parts(*variants: OpProgram, port: Port = program.port) -> list[Part]:
        slots = (Slot((a,)), Slot(variants, after=(0,)))
        one = Family(slots, program.engines, program.pools, program.ops[:2], port=port)
        return [placed.part for placed in parts_of(one).of[1]]

    few, more = parts(whole), parts(whole, half)
    assert more[0] is few[0]
    assert parts(whole, port=Port(bytes_per_cycle=Fraction(7)))[0] is not few[0]


def test_no_iterations_and_no_slots() -> None:
    assert cycles(family(toy(), []), [], []) == [0, 0]
    assert compose(family(toy(("a", 5)), [()]), np.zeros((0, 1), dtype=np.int16)).occurrences == ((0,),)


def test_progress() -> None:
    seen: list[tuple[int, int]] = []
    one = family(toy(("a", 5), ("a", 5), ("a", 5)), [(), (), ()])
    compose(one, np.array([[0, 0, 0], [0, -1, 0]], dtype=np.int16), progress=lambda k, n: seen.append((k, n)))
    assert (seen[0], seen[-1]) == ((0, 3), (3, 3))


class TestRefusals:
    def test_choices_that_do_not_exist(self) -> None:
        one = family(toy(("a", 5), ("b", 5)), [(), ()])
        with pytest.raises(UsageError, match="slot 1 has 1 variants, and the choices reach from -2 to 1"):
            cycles(one, [0, -2], [0, 1])
        with pytest.raises(UsageError, match=r"must be integers \[iterations, 2\]"):
            cycles(one, [0])

    def test_slots_that_await_later_ones(self) -> None:
        with pytest.raises(UsageError, match="slot 0 awaits slots that are not before it"):
            cycles(family(toy(("a", 5)), [(0,)]), [0])

    def test_ops_that_keep_credits(self) -> None:
        """What an op leaves behind would depend on who came before, and a step could end in a deadlock."""
        builder = ProgramBuilder("toy")
        pe, pool = builder.engine("pe", "array"), builder.pool("slots", 2)
        with builder.op(info("keeps")):
            builder.emit([builder.command("work", [(pe, 1)], takes=[(pool, 1)])])
        with pytest.raises(UsageError, match="'keeps'.*does not leave 'slots' with the 2 credits"):
            cycles(family(builder, [()]), [0])

    def test_ops_that_take_before_they_give(self) -> None:
        builder = ProgramBuilder("toy")
        a, b, pool = builder.engine("a", "dma"), builder.engine("b", "array"), builder.pool("full", 0)
        with builder.op(info()):
            builder.emit([builder.command("work", [(b, 1)], takes=[(pool, 1)])])
            builder.emit([builder.command("load", [(a, 1)], gives=[(pool, 1)])])
        with pytest.raises(UsageError, match=r"takes credits at command 0 \('work'\)"):
            cycles(family(builder, [()]), [0])

    def test_commands_that_still_know_their_op(self) -> None:
        program = toy(("a", 5), ("b", 5)).build()
        raw = OpProgram(program.engines, program.pools, program.commands, (Run(program.sequence, 1),))
        with pytest.raises(MappingError, match="command 'work' names an op"):
            cycles(Family((Slot((raw,)),), program.engines, program.pools, program.ops[:1]), [0])

    def test_two_takers_of_one_pool_in_different_ops(self) -> None:
        builder = ProgramBuilder("toy")
        pool = builder.pool("slots", 1)
        for name in ("a", "b"):
            with builder.op(info(name)):
                work = builder.command("work", [(builder.engine(name, "dma"), 1)], [(pool, 1)], [(pool, 1)])
                builder.emit([work])
        with pytest.raises(MappingError, match="both 'a' and 'b' take"):
            cycles(family(builder, [(), ()]), [0, 0])

    def test_engines_that_the_family_does_not_list(self) -> None:
        program = toy(("a", 5), ("b", 5)).build()
        slots = tuple(Slot((body,)) for body in program.bodies)
        with pytest.raises(UsageError, match="an op uses 'b', which its family does not list; add them"):
            cycles(Family(slots, program.engines[:1], program.pools, program.ops), [0, 0])

    def test_too_many_cycles(self) -> None:
        with pytest.raises(MappingError, match="more cycles than 64 bits can count"):
            cycles(family(toy(("a", 2**60), ("b", 2**60)), [(), ()]), [0, 0])


def test_equal_ops_are_one_op_program() -> None:
    """The two ops load, compute and store the same tiles."""
    builder = pipeline(3, 2, 5, 1)
    once = builder.build().bodies[0]
    assert once == pipeline(3, 2, 5, 1).build().bodies[0]
    assert once != pipeline(3, 2, 6, 1).build().bodies[0]
