"""What a program must keep to so that its cycles are well defined."""

from __future__ import annotations

from jouletrace.errors import MappingError
from jouletrace.mapping.program import Program

__all__ = ["check"]


def check(program: Program) -> None:
    """Raises MappingError with everything that is wrong with a program.

    A command holds at least one engine, each once; cycles are not negative, credits positive, indices
    known; all takers of a pool have one driver, and so have all givers.
    """
    problems: list[str] = []
    takers: dict[int, int] = {}
    givers: dict[int, int] = {}
    port = program.port.engine if program.port.arbitration == "round_robin" else None
    if port is not None and not 0 <= port < len(program.engines):
        problems.append("a round-robin port needs the index of an engine; name one in Port(engine=...)")
    if program.port.grant_cycles < 1:
        problems.append(f"grant_cycles must be at least 1 (got {program.port.grant_cycles})")
    # A serial run, with every transfer's port cycles apart from its own, bounds the cycles of any run.
    if 2 * sum(body.serial_cycles * times for body, _, times in program.distinct) >= 2**63:
        problems.append("the commands take more cycles than 64 bits can count; split the step")
    n = len(program.ops)
    if len(program.bodies) != n or len(program.places) != n or len(program.after) != n:
        problems.append(f"each of the {n} ops needs what it executes, where, and whom it awaits")

    for body, after in zip(program.bodies, program.after, strict=False):
        if after and not 0 <= min(after) <= max(after) < n:
            problems += [f"command {c.name!r} names an op outside 0 .. {n - 1}" for c in body.commands[:1]]
    for body, place, _ in program.distinct:
        problems += body.problems
        problems += [
            f"command {c.name!r} is driven by the round-robin port; put the stream that moves the data first"
            for c in body.commands if c.holds and port is not None and place.engines[c.holds[0][0]] == port
        ]  # fmt: skip
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
    if problems:
        raise MappingError(list(dict.fromkeys(problems)))
