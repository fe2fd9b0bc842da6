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
Numbers = NDArray[np.int64 | np.float64]
Energy = Callable[[int], float] | Sequence[float]


def write_timeline(
    file: TextIO,
    program: Program,
    counts: Counts,
    *,
    energy_pj: Energy | None = None,
    max_slices: int = 200_000,
) -> None:
    """Writes the timeline of a step.

    ``energy_pj`` is the dynamic energy of each distinct command in pJ, by its index in
    ``program.commands``. Beyond ``max_slices`` slices, equal commands that follow each other on an engine
    without a gap become one slice; if that is not enough, all that one op does in a row on an engine.
    No counter has more than ``max_slices`` points. The file's ``otherData`` says what was merged.
    """
    tracks, slices = _tracks(program, counts, max_slices)
    counters = list(_counters(program, counts, energy_pj))
    about = {
        "hardware": program.hardware,
        "engine": counts.engine,
        "port_model": counts.port_model,
        "cycles": counts.cycles,
        "commands": len(program.sequence),
        "time": "1 us is 1 cycle",
        "slices": slices,
        "counters": {c.name: f"1 change in {nth}" for c in counters if (nth := _nth(c, max_slices)) > 1}
        or "every change",
    }
    file.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(about)},"traceEvents":[\n')
    separator = ""
    for piece in _pieces(program, tracks, counters, max_slices):
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
    by_op: bool = False


class _Counter(NamedTuple):
    pid: int
    name: str
    unit: str
    cycles: Integers
    values: Numbers


def _tracks(program: Program, counts: Counts, max_slices: int) -> tuple[list[_Track], str]:
    """The slices of all engines at the finest level that keeps to the limit, and that level in words."""
    tracks = [_track(program, counts, engine) for engine in range(len(program.engines))]
    if _number(tracks) <= max_slices:
        return tracks, "one per command"
    runs = [_merge(track, _equal_runs(program, track)) for track in tracks]
    if _number(runs) <= max_slices:
        return runs, "one per run of equal commands without a gap"
    ops = [_merge(track, _op_runs(program, track))._replace(by_op=True) for track in tracks]
    return ops, "one for all that an op does in a row on an engine"


def _number(tracks: list[_Track]) -> int:
    return sum(len(track.first) for track in tracks)


def _track(program: Program, counts: Counts, engine: int) -> _Track:
    """One slice per command that holds an engine; none on a round-robin port."""
    dynamic = _dynamic_port(program)
    cycles = np.full(len(program.commands), -1, dtype=np.int64)
    served = np.zeros(len(program.commands), dtype=bool)
    if engine != dynamic:
        for index, command in enumerate(program.commands):
            holds = dict(command.holds)
            cycles[index] = holds.get(engine, -1)
            served[index] = command.holds[0][0] == engine and dynamic in holds
    at = np.flatnonzero(cycles[program.sequence] >= 0)
    command = program.sequence[at]
    start, busy = counts.intervals.start[at], cycles[command]
    # A round-robin port holds the stream that it serves, but never beyond the stream's next command.
    end = np.where(served[command], counts.intervals.end[at], start + busy)
    end[:-1] = np.minimum(end[:-1], start[1:])
    return _Track(engine, at, start, end, np.ones(len(at), dtype=np.int64), busy)


def _dynamic_port(program: Program) -> int | None:
    return program.port.engine if program.port.arbitration == "round_robin" else None


def _equal_runs(program: Program, track: _Track) -> NDArray[np.bool_]:
    command = program.sequence[track.first]
    return (command[1:] != command[:-1]) | (track.start[1:] != track.end[:-1])


def _op_runs(program: Program, track: _Track) -> NDArray[np.bool_]:
    op = np.array([command.op for command in program.commands], dtype=np.int64)[program.sequence[track.first]]
    return op[1:] != op[:-1]


def _merge(track: _Track, new: NDArray[np.bool_]) -> _Track:
    """One slice per run; ``new`` says for each slice but the first whether it begins a run."""
    if not len(track.first):
        return track
    at = np.concatenate([[0], np.flatnonzero(new) + 1])
    after = np.append(at[1:], len(track.first))
    busy = np.add.reduceat(track.busy, at)
    return _Track(track.engine, track.first[at], track.start[at], track.end[after - 1], after - at, busy)


def _counters(program: Program, counts: Counts, energy_pj: Energy | None) -> Iterator[_Counter]:
    start, end = counts.intervals.start, counts.intervals.end
    for index, pool in enumerate(program.pools):
        if pool.buffer:
            taken = _amounts([command.takes for command in program.commands], index)[program.sequence]
            given = _amounts([command.gives for command in program.commands], index)[program.sequence]
            # Credits arrive in the order of the giver's commands.
            arrival = np.maximum.accumulate(end[given > 0])
            cycles = np.concatenate([start[taken > 0], arrival])
            changes = np.concatenate([taken[taken > 0], -given[given > 0]])
            yield _counter(BUFFERS, f"{pool.buffer} ({pool.name})", "slots", cycles, changes)
    port = _dynamic_port(program)
    if port is not None:
        asks = _amounts([command.holds for command in program.commands], port)[program.sequence] > 0
        ones = np.ones(int(np.count_nonzero(asks)), dtype=np.int64)
        cycles, changes = np.concatenate([start[asks], end[asks]]), np.concatenate([ones, -ones])
        yield _counter(BUFFERS, f"{program.engines[port].name} (shared)", "commands", cycles, changes)
    if energy_pj is not None:
        price = energy_pj if callable(energy_pj) else energy_pj.__getitem__
        prices = np.array([price(index) for index in range(len(program.commands))], dtype=np.float64)
        yield _counter(ENERGY, "dynamic energy", "pJ", end, prices[program.sequence])


def _amounts(transfers: list[tuple[tuple[int, int], ...]], index: int) -> Integers:
    """How much of one pool, or engine, each distinct command takes, gives, or holds."""
    return np.array([sum(n for to, n in pairs if to == index) for pairs in transfers], dtype=np.int64)


def _counter(pid: int, name: str, unit: str, cycles: Integers, changes: Numbers) -> _Counter:
    """The sum of all changes up to the end of each cycle that has one, from 0 at cycle 0."""
    order = np.argsort(cycles, kind="stable")
    cycles, values = cycles[order], np.cumsum(changes[order])
    last = (
        np.flatnonzero(np.append(cycles[1:] != cycles[:-1], True)) if len(cycles) else np.zeros(0, np.int64)
    )
    cycles, values = cycles[last], values[last]
    if not len(cycles) or cycles[0] > 0:
        cycles, values = np.insert(cycles, 0, 0), np.insert(values, 0, 0)
    return _Counter(pid, name, unit, cycles, values)


def _pieces(
    program: Program, tracks: list[_Track], counters: list[_Counter], max_slices: int
) -> Iterator[str]:
    """The events of the file, some thousands in a piece."""
    yield ",\n".join(_names(program))
    for track in tracks:
        yield from _slices(program, track)
    for counter in counters:
        yield from _points(counter, max_slices)


def _names(program: Program) -> Iterator[str]:
    def meta(kind: str, pid: int, tid: int, **args: str | int) -> str:
        return json.dumps({"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args})

    for pid, name in ((ENGINES, "engines"), (BUFFERS, "buffers"), (ENERGY, "energy")):
        yield meta("process_name", pid, 0, name=name)
        yield meta("process_sort_index", pid, 0, sort_index=pid)
    for tid, engine in enumerate(program.engines, start=1):
        yield meta("thread_name", ENGINES, tid, name=engine.name)
        yield meta("thread_sort_index", ENGINES, tid, sort_index=tid)


def _slices(program: Program, track: _Track) -> Iterator[str]:
    described: dict[int, str] = {}
    for at in range(0, len(track.first), CHUNK):
        some = slice(at, at + CHUNK)
        columns = (program.sequence[track.first[some]], track.start[some], track.end[some])
        rows = zip(
            *(column.tolist() for column in (*columns, track.commands[some], track.busy[some])), strict=True
        )
        lines: list[str] = []
        for index, start, end, commands, busy in rows:
            if index not in described:
                described[index] = _describe(program, index, track.by_op)
            lines.append(
                f'{{"ph":"X","pid":{ENGINES},"tid":{track.engine + 1},"ts":{start},"dur":{end - start},'
                f'{described[index]},"commands":{commands},"busy cycles":{busy}}}}}'
            )
        yield ",\n".join(lines)


def _describe(program: Program, index: int, by_op: bool) -> str:
    """Name, category and arguments of a slice, up to the open brace of the arguments."""
    command = program.commands[index]
    op = program.ops[command.op]
    args: dict[str, str | int] = {"op": op.name, "layer": op.layer, "phase": op.phase, "kind": op.kind}
    if not by_op:
        args["start cycles, each"] = command.start_cycles
        args |= {".".join(filter(None, action)) + ", each": n for action, n in command.counts}
    name = op.name if by_op else f"{command.name} {op.name}"
    return f'"name":{json.dumps(name)},"cat":{json.dumps(op.phase)},"args":{json.dumps(args)[:-1]}'


def _points(counter: _Counter, max_points: int) -> Iterator[str]:
    name, unit = json.dumps(counter.name), json.dumps(counter.unit)
    nth = _nth(counter, max_points)
    # the last value always stands, so that a thinned counter still ends where it should
    kept = np.unique(np.append(np.arange(0, len(counter.cycles), nth), len(counter.cycles) - 1))
    for at in range(0, len(kept), CHUNK):
        some = kept[at : at + CHUNK]
        rows = zip(counter.cycles[some].tolist(), counter.values[some].tolist(), strict=True)
        yield ",\n".join(
            f'{{"ph":"C","pid":{counter.pid},"name":{name},"ts":{cycle},"args":{{{unit}:{value}}}}}'
            for cycle, value in rows
        )


def _nth(counter: _Counter, max_points: int) -> int:
    """Every how many changes a counter gets a point."""
    return max(1, -(-len(counter.cycles) // max_points))
