"""A bench for programs: run one, then read its timing diagram."""

from __future__ import annotations

from dataclasses import dataclass

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Port, Program


@dataclass(frozen=True)
class Bench:
    """A finished run."""

    program: Program
    counts: Counts

    def busy(self, engine: str) -> list[tuple[int, int]]:
        """From when to when the engine is held, command by command; a hold of no cycles is left out."""
        intervals: list[tuple[int, int]] = []
        for position, index in enumerate(self.program.sequence.tolist()):
            for held, cycles in self.program.commands[index].holds:
                if self.program.engines[held].name == engine and cycles:
                    start = int(self.counts.intervals.start[position])
                    intervals.append((start, start + cycles))
        return intervals

    def spans(self, command: str) -> list[tuple[int, int]]:
        """Start and end of every command of a name."""
        return [
            (int(self.counts.intervals.start[position]), int(self.counts.intervals.end[position]))
            for position, index in enumerate(self.program.sequence.tolist())
            if self.program.commands[index].name == command
        ]

    def assert_busy(self, engine: str, expected: list[tuple[int, int]]) -> Bench:
        assert self.busy(engine) == expected, engine
        return self

    def assert_spans(self, command: str, expected: list[tuple[int, int]]) -> Bench:
        assert self.spans(command) == expected, command
        return self

    def assert_cycles(self, expected: int) -> Bench:
        assert self.counts.cycles == expected
        return self

    def assert_counts(self, expected: dict[tuple[str, str, str], int]) -> Bench:
        assert self.counts.total() == expected
        return self


def run(builder: ProgramBuilder, port: Port | None = None) -> Bench:
    program = builder.build(port)
    return Bench(program, simulate(program))
