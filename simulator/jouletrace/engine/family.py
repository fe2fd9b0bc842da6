"""Families of programs: a step whose ops may each be absent, or be one of several variants.

A training run repeats one step with other decisions in every iteration. The commands of an op depend on its own shape
only, so an iteration is a choice, for every slot of the step, among op programs that are known in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jouletrace.errors import UsageError
from jouletrace.mapping.op_program import Engine, OpProgram, Pool
from jouletrace.mapping.program import OpInfo, Place, Port, Program

__all__ = ["ABSENT", "Family", "Slot", "concatenate"]

# The choice of an iteration that leaves a slot out.
ABSENT = -1
_NOTHING = OpProgram((), (), (), ())
NO_PORT = Port()


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
    """A step with choices, whose ops use these engines and pools, by name. ``serial``: every op also awaits the one
    before it that is present. ``port`` is that of the program."""

    slots: tuple[Slot, ...]
    engines: tuple[Engine, ...]
    pools: tuple[Pool, ...]
    ops: tuple[OpInfo, ...]
    serial: bool = False
    port: Port = NO_PORT

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

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        return {e.name: i for i, e in enumerate(self.engines)}, {p.name: i for i, p in enumerate(self.pools)}

    def place(self, body: OpProgram) -> Place:
        """Which of the family's engines and pools those of an op program are.

        Raises UsageError for one that the family does not have.
        """
        engines, pools = self._numbers
        unknown = [e.name for e in body.engines if e.name not in engines]
        unknown += [p.name for p in body.pools if p.name not in pools]
        if unknown:
            raise UsageError(f"an op uses {', '.join(map(repr, unknown))}, which its family does not list; add them")
        return Place(tuple(engines[e.name] for e in body.engines), tuple(pools[p.name] for p in body.pools))


def concatenate(family: Family, row: Sequence[int]) -> Program:
    """The step of one iteration as a Program: what ``compose`` computes, by definition.

    Op j is slot j, without commands where it is absent. ``row`` is the variant of every slot, or -1.
    """
    awaited: list[frozenset[int]] = []  # ops with commands that stand for a slot
    bodies: list[OpProgram] = []
    afters: list[tuple[int, ...]] = []
    for j, (slot, choice) in enumerate(zip(family.slots, row, strict=True)):
        body = _NOTHING if choice == ABSENT else slot.variants[choice]
        edges = family.instead[j] if choice == ABSENT else family.after[j]
        after = frozenset[int]().union(*(awaited[a] for a in edges))
        awaited.append(frozenset({j}) if body.runs else after)
        bodies.append(body)
        afters.append(tuple(sorted(after)))
    places = tuple(map(family.place, bodies))
    parts = family.engines, family.pools, family.ops, tuple(bodies), places, tuple(afters), family.port
    return Program("family", *parts)
