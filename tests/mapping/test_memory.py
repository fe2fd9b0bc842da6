"""What the mapping of an op looks at: the same for equal ops of a step, and worked out anew for anything else."""

from __future__ import annotations

from dataclasses import replace

import pytest

import jouletrace
from jouletrace.mapping import memory
from jouletrace.mapping.fusion import NO_FUSION, FusionPlan, as_stored, plan_fusion
from jouletrace.mapping.memory import SWITCH, content
from jouletrace.mapping.step import riders
from jouletrace.trace.batch import with_batch
from jouletrace.trace.model import Trace

HARDWARE = jouletrace.load_hardware("eftrain-zcu102")


@pytest.fixture(scope="module")
def step() -> Trace:
    return with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 2)


def contents(trace: Trace, fusion: FusionPlan) -> list[object]:
    return [content(op, trace, fusion, riders(fusion)) for op in trace.ops]


def test_equal_ops_of_a_step_have_one_content(step: Trace) -> None:
    """Of 233 ops 62 are distinct, as many as of the 827 of ResNet-74: shapes and rides tell them apart, names do not."""
    fusion = plan_fusion(step, HARDWARE)
    stored = as_stored(step, fusion)
    first = contents(stored, fusion)
    assert len({id(value) for value in first}) == len(set(first)) == 62
    assert all(a is b for a, b in zip(first, contents(stored, fusion), strict=True))


def test_contents_tell_apart_what_is_mapped_otherwise(step: Trace) -> None:
    """A width changes what reads or writes the tensor; without fusion, riders move what they did not move."""
    fusion = plan_fusion(step, HARDWARE)
    first = contents(step, fusion)
    read = next(op.reads[0] for op in step.ops if op.kind == "loss")
    wide = replace(step, tensors=tuple(replace(t, bits=t.bits * (1 + (t.name == read))) for t in step.tensors))
    touched = {op.name for op in step.ops if read in (*op.reads, *op.writes)}
    changed = zip(step.ops, first, contents(wide, fusion), strict=True)
    assert {op.name for op, before, after in changed if before != after} == touched
    alone = zip(step.ops, first, contents(step, NO_FUSION), strict=True)
    assert {op.name for op, before, after in alone if before != after} == set(fusion.hosts)


def test_without_memory_they_are_equal(step: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STEPS", {})
    monkeypatch.setenv(SWITCH, "1")
    fusion = plan_fusion(step, HARDWARE)
    alone = contents(step, fusion)
    assert memory._STEPS == {}  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setenv(SWITCH, "0")
    kept = contents(step, fusion)
    pairs = {(a, b) for a, b in zip(alone, kept, strict=True)}
    assert len(pairs) == len(set(alone)) == len(set(kept))


def test_few_steps_are_kept(step: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STEPS", {})
    first = contents(step, NO_FUSION)
    for _ in range(2 * memory.STEPS):
        assert contents(replace(step), NO_FUSION) == first
    assert len(memory._STEPS) == memory.STEPS  # pyright: ignore[reportPrivateUsage]
