"""A finished step as a Chrome trace in JSON, for https://ui.perfetto.dev: tracks, buffer fill, energy.

One cycle is shown as 1 µs. Every engine is a track with a slice per command that holds it; every buffer is
a counter of slots in use; dynamic energy is a counter that only rises. A port with round-robin arbitration
serves several commands by turns and is a counter of those that it has not finished.

The file is written piece by piece: a step with millions of commands needs some arrays, not its whole text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from jouletrace.engine.counts import Counts
from jouletrace.mapping.program import Program

__all__ = ["write_timeline"]

ENGINES, BUFFERS, ENERGY = 1, 2, 3
CHUNK = 4096

Integers = NDArray[np.int64]


def write_timeline(
    file: TextIO,
    program: Program,
    counts: Counts,
    *,
    energy_pj: Callable[[int], float] | Sequence[float] | None = None,
    max_slices: int = 200_000,
) -> None:
    """Writes the timeline of a step.

    ``energy_pj`` is the dynamic energy of each distinct command in pJ, by its index in
    ``program.commands``. Beyond ``max_slices`` slices, equal commands that follow each other on an engine
    without a gap become one slice; if that is not enough, all that one op does in a row on an engine.
    No counter has more than ``max_slices`` points. The file's ``otherData`` says what was merged.
    """
    tracks, merged = _tracks(program, counts, max_slices)
    counters = list(_counters(program, counts, energy_pj))
    thinned = {c.name: -(-len(c.cycles) // max_slices) for c in counters if len(c.cycles) > max_slices}
    about = {
        "hardware": program.hardware,
        "engine": counts.engine,
        "port_model": counts.port_model,
        "cycles": counts.cycles,
        "commands": len(program.sequence),
        "time": "1 us is 1 cycle",
        "slices": merged,
        "counters": {name: f"every {nth}th change" for name, nth in thinned.items()} or "every change",
    }
    file.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(about)},"traceEvents":[\n')
    separator = ""
    for piece in _pieces(program, tracks, counters, thinned):
        file.write(separator + piece)
        separator = ",\n"
    file.write("\n]}\n")


class _Track(NamedTuple):
    """Slices of one engine. ``first`` is the position of a slice's first command in the sequence."""

    engine: int
    first: Integers
    start: Integers
    end: Integers
    commands: Integers
    busy: Integers
    by_op: bool


class _Counter(NamedTuple):
    pid: int
    name: str
    unit: str
    cycles: Integers
    values: NDArray[np.int64] | NDArray[np.float64]


def _tracks(program: Program, counts: Counts, max_slices: int) -> tuple[list[_Track], str]:
    """The slices of all engines at the finest level that keeps to the limit, and that level in words."""
    dynamic = program.port.engine if program.port.arbitration == "round_robin" else None
    held = [_held(program, counts, engine, dynamic) for engine in range(len(program.engines)) if engine != dynamic]
    op_of = np.array([command.op for command in program.commands], dtype=np.int64)
    tracks: list[_Track] = []
    for by_op, words in enumerate(("one per command", "runs of equal commands without a gap", "one op in a row")):
        tracks = []
        for track in held:
            if by_op == 0:
                tracks.append(track)
                continue
            command = program.sequence[track.first]
            if by_op == 1:
                new = (np.diff(command) != 0) | (track.start[1:] != track.end[:-1])
            else:
                new = np.diff(op_of[command]) != 0
            at = np.flatnonzero(np.concatenate([np.ones(min(1, len(command)), dtype=bool), new]))
            last = np.append(at[1:], len(command)) - 1
            tracks.append(
                _Track(
                    track.engine, track.first[at], track.start[at], track.end[last], last - at + 1,
                    np.add.reduceat(track.busy, at) if len(at) else track.busy, by_op == 2,
                )
            )  # fmt: skip
        if sum(len(track.first) for track in tracks) <= max_slices:
            return tracks, words
    return tracks, "one op in a row"
