"""Whatever is kept from earlier work changes no result: with and without memory, programs and runs are equal."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jouletrace
from jouletrace.engine.compose import Columns, compose
from jouletrace.errors import MappingError, RewriteError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping import memory
from jouletrace.mapping.program import Program
from jouletrace.mapping.remembered import remembered
from jouletrace.mapping.step import map_step
from jouletrace.strategies.registry import strategy
from jouletrace.testing import residual_traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.model import Header, Trace
from jouletrace.trace.units import residual_units, with_samples


def contents(program: Program) -> tuple[object, ...]:
    return (program.hardware, program.engines, program.pools, program.ops, program.commands, program.sequence.dtype,
            program.sequence.tolist(), program.port)  # fmt: skip


def mapped(trace: Trace, spec: str, base: Trace | None, *, keep: bool) -> object:
    """The program of a step, or why there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(memory.SWITCH, "0" if keep else "1")
        try:
            return contents(map_step(trace, load_hardware(spec), base=base))
        except MappingError as error:
            return error.problems


@given(residual_traces(), st.data())
@settings(max_examples=40, deadline=None)
def test_programs_of_remembered_ops_are_equal_to_the_last_command(trace: Trace, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(list_hardware()))
    units = [unit.name for unit in residual_units(trace)]
    some = {unit: data.draw(st.integers(1, trace.header.batch)) for unit in units}
    try:
        part = with_samples(trace, some)
    except RewriteError:
        part = trace
    for step, base in ((trace, None), (part, trace), (part, None)):
        alone = mapped(step, spec, base, keep=False)
        assert mapped(step, spec, base, keep=True) == alone, "as others of the step were mapped"
        assert mapped(step, spec, base, keep=True) == alone, "as this one was mapped before"


@pytest.mark.parametrize("spec", list_hardware())
def test_a_shipped_step_is_remembered_exactly(spec: str) -> None:
    step = with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 2)
    assert mapped(step, spec, None, keep=True) == mapped(step, spec, None, keep=False)


def test_a_training_is_the_same_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    step = with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 4)
    hardware = load_hardware("zedboard-int8")
    for what in ("smd+slu", "slu:granularity=per_batch"):
        run = jouletrace.apply(strategy(what), jouletrace.training_run(step, 5), seed=2).value
        results: list[jouletrace.RunResult] = []
        for switch in ("1", "0", "0"):
            monkeypatch.setenv(memory.SWITCH, switch)
            results.append(jouletrace.simulate_run(run, hardware))
        alone, first, again = results
        for kept in (first, again):
            assert kept.iteration_cycles.tolist() == alone.iteration_cycles.tolist()
            assert (kept.breakdown, kept.ops) == (alone.breakdown, alone.ops)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used op goes."""
    step = with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 2)
    hardware, kept = load_hardware("zedboard-int8"), memory.Mapped()
    monkeypatch.setattr(memory, "mapped", lambda _: kept)
    monkeypatch.setattr(memory, "PLACES", 20_000)
    once = contents(map_step(step, hardware, ops=step.ops))
    assert 0 < kept.places <= 20_000
    assert contents(map_step(step, hardware, ops=step.ops)) == once


def test_equal_arguments_are_looked_up_and_others_are_not() -> None:
    worked: list[str] = []

    @remembered(2)
    def name(trace: Trace) -> str:
        worked.append(trace.header.name)
        return trace.header.name

    one = Trace(Header("one", 1), (), ())
    assert [name(one), name(replace(one)), name(Trace(Header("two", 1), (), ()))] == ["one", "one", "two"]
    assert worked == ["one", "two"]


def test_columns_are_choices_by_slot() -> None:
    """Slots that choose alike share a column; the run is that of the whole table."""
    from jouletrace.engine.family import Family, Slot
    from jouletrace.mapping.builder import ProgramBuilder
    from jouletrace.mapping.program import OpInfo

    builder = ProgramBuilder("toy")
    dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    for engine, cycles in ((dma, 5), (pe, 3), (dma, 4)):
        with builder.op(OpInfo("op", "layer", "forward", "conv", macs=0)):
            builder.emit([builder.command("work", [(engine, cycles)])])
    program = builder.build()
    slots = tuple(Slot((part,), after) for part, after in zip(program.bodies, [(), (0,), (1,)], strict=True))
    family = Family(slots, program.engines, program.pools, program.ops)
    always, sometimes = np.array([0, 0, 0], dtype=np.int16), np.array([0, -1, 0], dtype=np.int16)
    columns = Columns((always, sometimes), (0, 1, 0), 3)
    table = np.stack([always, sometimes, always], axis=1)
    assert compose(family, columns).cycles.tolist() == compose(family, table).cycles.tolist() == [12, 9, 12]
