"""Families of programs: a step whose ops may each be absent, or be one of several variants.

A training run repeats one step with other decisions in every iteration. The commands of an op depend on its own shape
only, so an iteration is a choice, for every slot of the step, among command lists that are known in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import UsageError
from jouletrace.mapping.program import Action, Command, Engine, OpInfo, Pool, Program, Sequence32

__all__ = ["ABSENT", "Family", "OpProgram", "Slot", "concatenate", "split"]

# The choice of an iteration that leaves a slot out.
ABSENT = -1


@dataclass(frozen=True, eq=False)
class OpProgram:
    """The commands of one op, free of its place in the step: their ``op`` is 0 and their ``after`` empty.

    Equal contents are equal values, whichever programs they come from, if these number engines and pools alike.
    """

    commands: tuple[Command, ...]
    sequence: Sequence32

    @cached_property
    def _key(self) -> tuple[tuple[Command, ...], bytes]:
        return self.commands, self.sequence.tobytes()

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpProgram) and self._hash == other._hash and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def repeats(self) -> NDArray[np.int64]:
        """How often each distinct command stands in the sequence."""
        return np.bincount(self.sequence, minlength=len(self.commands)).astype(np.int64)

    @cached_property
    def counts(self) -> dict[Action, int]:
        """Accesses of all its commands, exact."""
        total: dict[Action, int] = {}
        for command, times in zip(self.commands, self.repeats.tolist(), strict=True):
            for action, n in command.counts:
                total[action] = total.get(action, 0) + n * times
        return dict(sorted(total.items()))


@dataclass(frozen=True, eq=False)
class Slot:
    """One op of the step.

    ``variants`` are what it may be. ``after`` are earlier slots whose end it awaits. ``instead`` are earlier slots that
    are awaited in its place where it is absent. A variant without commands passes on what it waits for, as an absent
    slot passes on ``instead``.
    """

    variants: tuple[OpProgram, ...]
    after: tuple[int, ...] = ()
    instead: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Family:
    """A step with choices. ``serial``: every op also awaits the one before it that is present."""

    slots: tuple[Slot, ...]
    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    ops: tuple[OpInfo, ...]
    serial: bool = False

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """Per slot, the slots that it awaits."""
        return tuple(self._linked(j, slot.after) for j, slot in enumerate(self.slots))

    @cached_property
    def instead(self) -> tuple[tuple[int, ...], ...]:
        """Per slot, the slots that are awaited in its place."""
        return tuple(self._linked(j, slot.instead) for j, slot in enumerate(self.slots))

    def _linked(self, slot: int, awaited: tuple[int, ...]) -> tuple[int, ...]:
        # The slot before stands for all before it, absent or not: it passes on what came before.
        return tuple(sorted({*awaited, *((slot - 1,) if self.serial and slot else ())}))


def split(program: Program) -> tuple[OpProgram, ...]:
    """The commands of each op of a program, in order of its ops; equal ones are one object.

    Raises UsageError if commands of different ops alternate.

    >>> from jouletrace.mapping.program import ProgramBuilder
    >>> builder = ProgramBuilder("toy")
    >>> pe = builder.engine("pe", "array")
    >>> for name in ("one", "two"):
    ...     with builder.op(OpInfo(name, "layer", "forward", "conv", macs=0)):
    ...         builder.emit([builder.command("work", [(pe, 3)])], times=2)
    >>> one, two = split(builder.build())
    >>> one is two, one.sequence.tolist()
    (True, [0, 0])
    """
    of = np.array([c.op for c in program.commands], dtype=np.int64)[program.sequence]
    if len(of) and (np.diff(of) < 0).any():
        place = int(np.flatnonzero(np.diff(of) < 0)[0]) + 1
        raise UsageError(
            f"command {place} of the sequence belongs to {program.ops[int(of[place])].name!r}, and the one before it "
            f"to {program.ops[int(of[place - 1])].name!r}, a later op; issue the commands of an op together"
        )
    bounds = np.searchsorted(of, np.arange(len(program.ops) + 1))
    parts: list[OpProgram] = []
    known: dict[OpProgram, OpProgram] = {}
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        used: list[int] = np.unique(program.sequence[first:last]).tolist()
        commands = tuple(replace(program.commands[c], op=0, after=()) for c in used)
        sequence = np.searchsorted(used, program.sequence[first:last]).astype(np.int32)
        sequence.setflags(write=False)
        part = OpProgram(commands, sequence)
        parts.append(known.setdefault(part, part))
    return tuple(parts)


def concatenate(family: Family, row: Sequence[int]) -> Program:
    """The step of one iteration as a Program: what ``compose`` computes, by definition.

    Op j is slot j, without commands where it is absent. ``row`` is the variant of every slot, or -1.
    """
    awaited: list[frozenset[int]] = []  # ops with commands that stand for a slot
    commands: list[Command] = []
    pieces: list[Sequence32] = [np.zeros(0, dtype=np.int32)]
    for j, (slot, choice) in enumerate(zip(family.slots, row, strict=True)):
        edges = family.instead[j] if choice == ABSENT else family.after[j]
        after = frozenset[int]().union(*(awaited[a] for a in edges))
        if choice == ABSENT or not len(slot.variants[choice].sequence):
            awaited.append(after)
            continue
        part = slot.variants[choice]
        pieces.append(part.sequence + np.int32(len(commands)))
        commands += [replace(c, op=j, after=tuple(sorted(after))) for c in part.commands]
        awaited.append(frozenset({j}))
    return Program("family", family.engines, family.pools, family.ops, tuple(commands), np.concatenate(pieces))
