"""Ground truth: a machine that looks at every cycle and every command. Slow, short, no event queue."""

from __future__ import annotations

from dataclasses import dataclass, field

from jouletrace.mapping.program import Command, Program


@dataclass
class Interpreter:
    """What has happened so far: start and end per position, and what the round-robin port has left to do."""

    program: Program
    now: int = 0
    start: dict[int, int] = field(default_factory=dict)
    end: dict[int, int] = field(default_factory=dict)
    port_left: dict[int, int] = field(default_factory=dict)
    granted: tuple[int, int] | None = None  # position, last cycle of the grant
    last_served: int = -1  # driver

    def run(self) -> bool:
        """Runs until all commands have ended (True), or none is running and none can start (False)."""
        positions = range(len(self.program.sequence))
        while len(self.end) < len(positions):
            self.end_grant()
            moved = True
            while moved:
                moved = False
                for p in positions:
                    if p not in self.start and self.may_start(p):
                        self.start[p] = self.now
                        if self.port_cycles(p):
                            self.port_left[p] = self.port_cycles(p)
                        moved = True
                    if p in self.start and p not in self.end and self.is_over(p):
                        self.end[p] = self.now
                        moved = True
            if len(self.end) == len(self.start) < len(positions):
                return False
            self.begin_grant()
            self.now += 1
        return True

    def command(self, p: int) -> Command:
        return self.program.commands[self.program.sequence[p]]

    def driver(self, p: int) -> int:
        return self.command(p).holds[0][0]

    def is_dynamic(self, engine: int) -> bool:
        return self.program.port.arbitration == "round_robin" and engine == self.program.port.engine

    def port_cycles(self, p: int) -> int:
        return sum(cycles for engine, cycles in self.command(p).holds if self.is_dynamic(engine))

    def may_start(self, p: int) -> bool:
        command = self.command(p)
        return (
            all(self.is_dynamic(engine) or self.is_at(engine, p) for engine, _ in command.holds)
            and all(self.credits(pool) >= self.needs(command, pool) for pool, _ in command.takes)
            and all(self.has_ended(op) for op in command.after)
        )

    def is_at(self, engine: int, p: int) -> bool:
        """All earlier commands that hold the engine have let it go."""
        for q in range(p):
            for held, cycles in self.command(q).holds:
                if held == engine and not (q in self.start and self.now >= self.start[q] + cycles):
                    return False
            if self.driver(q) == engine and q in self.port_left:
                return False
        return True

    def is_over(self, p: int) -> bool:
        return p not in self.port_left and all(
            self.is_dynamic(engine) or self.now >= self.start[p] + cycles
            for engine, cycles in self.command(p).holds
        )

    def has_ended(self, op: int) -> bool:
        return all(p in self.end for p in range(len(self.program.sequence)) if self.command(p).op == op)

    @staticmethod
    def needs(command: Command, pool: int) -> int:
        return sum(credits for taken, credits in command.takes if taken == pool)

    def credits(self, pool: int) -> int:
        """What is left: gives count in the order of the giver's commands, up to the first that still runs."""
        left = self.program.pools[pool].credits
        for p in range(len(self.program.sequence)):
            given = sum(credits for to, credits in self.command(p).gives if to == pool)
            if given and p not in self.end:
                break
            left += given
        return left - sum(self.needs(self.command(p), pool) for p in self.start)

    def end_grant(self) -> None:
        if self.granted is not None and self.granted[1] == self.now:
            p = self.granted[0]
            if not self.port_left[p]:
                del self.port_left[p]
            self.granted = None

    def begin_grant(self) -> None:
        """At the end of a cycle: the next stream after the one served last, by engine index."""
        if self.granted is None and self.port_left:
            n = len(self.program.engines)
            p = min(self.port_left, key=lambda p: (self.driver(p) - self.last_served - 1) % n)
            cycles = min(self.program.port.grant_cycles, self.port_left[p])
            self.port_left[p] -= cycles
            self.granted, self.last_served = (p, self.now + cycles), self.driver(p)
