"""What a program must keep to so that its cycles are well defined."""

from __future__ import annotations

from jouletrace.errors import MappingError
from jouletrace.mapping.program import Command, Program

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
    sequence = program.sequence
    if len(sequence) and not (sequence.min() >= 0 and sequence.max() < len(program.commands)):
        raise MappingError(
            [*problems, f"the sequence names commands outside 0 .. {len(program.commands) - 1}"]
        )
    # A serial run, with every transfer's port cycles apart from its own, bounds the cycles of any run.
    longest: dict[tuple[tuple[int, int], ...], int] = {}
    serial = 0
    for command, n in zip(program.commands, program.repeats.tolist(), strict=True):
        cycles = longest.get(command.holds)
        if cycles is None:
            cycles = longest[command.holds] = command.cycles
        serial += cycles * n
    if 2 * serial >= 2**63:
        problems.append("the commands take more cycles than 64 bits can count; split the step")

    # Equal ops of a step have equal commands, so that each is looked at once.
    seen: set[object] = set()
    for command in program.commands:
        place, work = (command.op, command.after), (command.name, command.holds, command.takes, command.gives)
        if place in seen and work in seen:
            continue
        seen |= {place, work}
        for problem in _command_problems(program, command, port):
            problems.append(f"command {command.name!r} {problem}")
        for ends, transfers, verb in ((takers, command.takes, "take"), (givers, command.gives, "give")):
            for pool, _ in transfers:
                if not (command.holds and 0 <= pool < len(program.pools)):
                    continue
                driver = command.holds[0][0]
                if ends.setdefault(pool, driver) != driver:
                    names = sorted(program.engines[i].name for i in (ends[pool], driver))
                    problems.append(
                        f"pool {program.pools[pool].name!r}: both {names[0]!r} and {names[1]!r} {verb} "
                        "its credits; give each of them a pool of its own"
                    )
    if problems:
        raise MappingError(list(dict.fromkeys(problems)))


def _command_problems(program: Program, command: Command, port: int | None) -> list[str]:
    problems: list[str] = []
    held = [engine for engine, _ in command.holds]
    if not held:
        return ["holds no engine; name the one that executes it, with 0 cycles if it takes no time"]
    if len(set(held)) < len(held):
        problems.append("holds an engine twice; add up its cycles in one hold")
    if any(not 0 <= engine < len(program.engines) for engine in held):
        problems.append(f"holds an engine outside 0 .. {len(program.engines) - 1}")
    if any(cycles < 0 for _, cycles in command.holds):
        problems.append("holds an engine for a negative number of cycles")
    if held[0] == port:
        problems.append("is driven by the round-robin port; put the stream that moves the data first")
    for pool, credits in command.takes + command.gives:
        if not 0 <= pool < len(program.pools):
            problems.append(f"names pool {pool} of {len(program.pools)}")
        if credits < 1:
            problems.append(f"takes or gives {credits} credits; the number must be positive")
    if any(not 0 <= op < len(program.ops) for op in (command.op, *command.after)):
        problems.append(f"names an op outside 0 .. {len(program.ops) - 1}")
    return problems
