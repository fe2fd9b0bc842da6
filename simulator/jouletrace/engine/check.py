"""What a program must keep to so that its cycles are well defined."""

from __future__ import annotations

from itertools import pairwise
from weakref import WeakSet

from jouletrace.errors import MappingError
from jouletrace.mapping.arrays import Arrays
from jouletrace.mapping.program import Program

__all__ = ["check", "problems", "serial_cycles"]


def serial_cycles(program: Program) -> list[int]:
    """For each distinct op program its cycles if its commands followed one another, exactly."""
    arrays = program.arrays
    each = [n * repeats for n, repeats in zip(program.timed.longest.tolist(), arrays.repeats.tolist(), strict=True)]
    first = arrays.first.tolist()
    return [sum(each[begin:end]) for begin, end in pairwise(first)]


# Programs whose commands keep to the rules, by their arrays: other rates of the port change nothing about that.
_SOUND: WeakSet[Arrays] = WeakSet()


def check(program: Program) -> None:
    """Raises MappingError with everything that is wrong with a program.

    A command holds at least one engine, each once; cycles are not negative, credits positive, indices
    known; all takers of a pool have one driver, and so have all givers.
    """
    found = _of_port(program)
    if found or any(body.problems for body, _, _ in program.distinct) or program.arrays not in _SOUND:
        found += _problems(program)
    if found:
        raise MappingError(list(dict.fromkeys(found)))
    _SOUND.add(program.arrays)
    # A serial run, with every transfer's port cycles apart from its own, bounds the cycles of any run.
    each = zip(serial_cycles(program), program.distinct, strict=True)
    if 2 * sum(cycles * placed.times for cycles, placed in each) >= 2**63:
        raise MappingError("the commands take more cycles than 64 bits can count; split the step")


def problems(program: Program) -> list[str]:
    """What :func:`check` refuses, except for too many cycles; a sentence for each."""
    return list(dict.fromkeys([*_of_port(program), *_problems(program)]))


def _of_port(program: Program) -> list[str]:
    """What is wrong with a program at its port."""
    problems: list[str] = []
    port = program.port.engine if program.port.arbitration == "round_robin" else None
    if port is not None and not 0 <= port < len(program.engines):
        problems.append("a round-robin port needs the index of an engine; name one in Port(engine=...)")
    if program.port.grant_cycles < 1:
        problems.append(f"grant_cycles must be at least 1 (got {program.port.grant_cycles})")
    if any(not body.problems and body.moves for body, _, _ in program.distinct) and not program.port.bytes_per_cycle:
        problems.append("commands move bytes over a port without a rate; name one in Port(bytes_per_cycle=...)")
    for body, place, _ in program.distinct if port is not None else ():
        problems += [
            f"command {c.name!r} is driven by the round-robin port; put the stream that moves the data first"
            for c in body.commands if c.holds and place.engines[c.holds[0][0]] == port
        ]  # fmt: skip
    return problems


def _problems(program: Program) -> list[str]:
    """What is wrong with a program whatever its port."""
    problems: list[str] = []
    takers: dict[int, int] = {}
    givers: dict[int, int] = {}
    n = len(program.ops)
    if len(program.bodies) != n or len(program.places) != n or len(program.after) != n:
        problems.append(f"each of the {n} ops needs what it executes, where, and whom it awaits")
    for body, after in zip(program.bodies, program.after, strict=False):
        if after and not 0 <= min(after) <= max(after) < n:
            problems += [f"command {c.name!r} names an op outside 0 .. {n - 1}" for c in body.commands[:1]]
    for body, place, _ in program.distinct:
        problems += body.problems
        for ends, pairs, verb in ((takers, body.takers, "take"), (givers, body.givers, "give")):
            for pool, engine in pairs:
                if not (0 <= pool < len(place.pools) and 0 <= engine < len(place.engines)):
                    continue
                pool, driver = place.pools[pool], place.engines[engine]
                if ends.setdefault(pool, driver) != driver:
                    names = sorted(program.engines[i].name for i in (ends[pool], driver))
                    problems.append(
                        f"pool {program.pools[pool].name!r}: both {names[0]!r} and {names[1]!r} {verb} "
                        "its credits; give each of them a pool of its own"
                    )
    return problems
