"""Maps and executes one op alone."""

from __future__ import annotations

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.trace.model import Trace


def run_op(trace: Trace, hardware: Hardware) -> tuple[Program, Counts]:
    """The program and its counts under the events engine."""
    program = map_step(trace, hardware)
    return program, simulate(program)


def macs_executed(counts: Counts) -> int:
    """MACs times passes of all ops, from the access counts."""
    return sum(n for (_, action, _), n in counts.total().items() if action.startswith("mac_"))
