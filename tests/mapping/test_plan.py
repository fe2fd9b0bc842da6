"""Planned once: an op with shorter loops keeps the tiles of its whole op, and costs no more than it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trace.parts import on_fewer_samples

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.loops import loops
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.mapping.tiles import choose
from jouletrace.testing import traces
from jouletrace.trace.model import Conv, Gemm, Trace

from .one_op import conv_trace, gemm_trace, square_conv

SPECS = ["eftrain-zcu102", "zedboard-fp32", "zedboard-int8", "systolic-32x32"]


@lru_cache
def hardware(name: str) -> Hardware:
    return load_hardware(name)


def dynamic_energy_aj(counts: Counts, board: Hardware) -> dict[str, int]:
    """By op, without whatever flows while nothing is done."""
    prices = price_list(board)
    return {
        done.op.name: sum(n * prices[component, action].energy_aj for (component, action, _), n in done.counts.items())
        for done in counts.ops
    }


def largest_transfers(program: Program) -> dict[tuple[str, str], int]:
    """By op and name of the command: the most accesses that one makes."""
    found: dict[tuple[str, str], int] = {}
    for command in program.commands:
        if program.engines[command.holds[0][0]].kind == "dma":
            key = (program.ops[command.op].name, command.name)
            found[key] = max(found.get(key, 0), *(n for _, n in command.counts))
    return found


def commands_of(program: Program) -> set[object]:
    return {(c.name, c.counts) for c in program.commands}


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=50)
@given(trace=traces(), data=st.data())
def test_fewer_samples_cost_no_more(spec: str, trace: Trace, data: st.DataObject) -> None:
    """Dynamic energy of every op is monotone in the number of samples; tiles never get larger than planned."""
    board = hardware(spec)
    names = [op.name for op in trace.ops]
    more = data.draw(st.integers(1, trace.header.batch))
    fewer = data.draw(st.integers(1, more))
    programs = [map_step(on_fewer_samples(trace, names, n), board, base=trace) for n in (fewer, more)]
    less, whole = (dynamic_energy_aj(simulate(program), board) for program in programs)
    assert {name for name in names if less[name] > whole[name]} == set()
    planned = largest_transfers(map_step(trace, board))
    for key, size in largest_transfers(programs[0]).items():
        assert size <= planned[key], key


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=20)
@given(trace=traces())
def test_the_step_itself_is_planned_as_ever(spec: str, trace: Trace) -> None:
    planned, plain = map_step(trace, hardware(spec), base=trace), map_step(trace, hardware(spec))
    assert planned.commands == plain.commands
    assert planned.sequence.tolist() == plain.sequence.tolist()


def shorter(whole: Conv | Gemm, data: st.DataObject) -> Conv | Gemm:
    letters = "NKC" if isinstance(whole, Conv) else "BMNK"
    return replace(whole, **{x: data.draw(st.integers(1, getattr(whole, x)), label=x) for x in letters})


nests = st.builds(
    square_conv, M=st.integers(1, 40), N=st.integers(1, 40), R=st.integers(1, 12), K=st.sampled_from([1, 3]),
    S=st.sampled_from([1, 2]), batch=st.integers(1, 6),
    role=st.sampled_from(["forward", "backward_data", "backward_weight"]),
) | st.builds(Gemm, st.integers(1, 3), st.integers(1, 200), st.integers(1, 200), st.integers(1, 200))  # fmt: skip


def one_op(nest: Conv | Gemm) -> Trace:
    return conv_trace(nest) if isinstance(nest, Conv) else gemm_trace(nest)


@pytest.mark.parametrize("spec", ["eftrain-zcu102", "zedboard-fp32"])
@given(nest=nests, data=st.data())
def test_tile_of_a_shorter_op_is_that_of_the_whole(spec: str, nest: Conv | Gemm, data: st.DataObject) -> None:
    board, whole, part = hardware(spec), one_op(nest), one_op(shorter(nest, data))
    planned = choose(whole.ops[0], loops(whole.ops[0], whole, board), board)
    assert choose(part.ops[0], loops(part.ops[0], part, board), board, planned) == planned


@given(nest=nests, data=st.data())
def test_blocks_of_a_shorter_product_are_those_of_the_whole(nest: Conv | Gemm, data: st.DataObject) -> None:
    """Seen from outside: no command moves more than one of the whole op does, and there are no more of any."""
    board, whole, part = hardware("systolic-32x32"), one_op(nest), one_op(shorter(nest, data))
    planned, program = map_step(whole, board), map_step(part, board, base=whole)
    before = largest_transfers(planned)
    for key, size in largest_transfers(program).items():
        assert size <= before[key]
    assert program.tiles <= planned.tiles
    assert len(program.sequence) <= len(planned.sequence)


def test_fewer_images_run_the_same_commands_less_often() -> None:
    """Two of eight images: every load, fold and store is one of the whole op's."""
    nest = square_conv(M=48, N=32, R=16, K=3, batch=8)
    whole, part = conv_trace(nest), conv_trace(replace(nest, N=2))
    for spec in ("zedboard-fp32", "eftrain-zcu102"):
        planned, program = (map_step(t, hardware(spec), base=whole) for t in (whole, part))
        assert commands_of(program) <= commands_of(planned)
        assert program.tiles * 4 == planned.tiles


def test_what_does_not_fit_the_plan_is_searched_for() -> None:
    board = hardware("zedboard-int8")
    narrow, wide = (conv_trace(square_conv(M=128, N=128, R=56, K=3), bits=bits) for bits in (8, 32))
    assert map_step(wide, board, base=narrow).commands == map_step(wide, board).commands
    # The other way round the tile of the wide op is kept, although a larger one would fit.
    assert map_step(narrow, board, base=wide).tiles == map_step(wide, board).tiles
    assert map_step(narrow, board).tiles < map_step(wide, board).tiles


@pytest.mark.parametrize("spec", ["zedboard-fp32", "systolic-32x32"])
def test_another_shape_has_a_plan_of_its_own(spec: str) -> None:
    """A larger map, a smaller kernel, more samples: not the loops that were planned."""
    board, whole = hardware(spec), conv_trace(square_conv(M=32, N=32, R=16, K=3, batch=2))
    for nest in (
        square_conv(M=32, N=32, R=32, K=3, batch=2),
        square_conv(M=32, N=32, R=16, K=1, batch=2),
        square_conv(M=32, N=32, R=16, K=3, batch=4),
    ):
        trace = conv_trace(nest)
        assert map_step(trace, board, base=whole).commands == map_step(trace, board).commands


def test_a_base_without_the_op_changes_nothing() -> None:
    board, trace = hardware("zedboard-fp32"), gemm_trace(Gemm(1, 8, 40, 60))
    other = conv_trace(square_conv(M=32, N=32, R=16, K=3))
    assert map_step(trace, board, base=other).commands == map_step(trace, board).commands
