"""The timeline file: what Perfetto reads, against the program that was run."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter, defaultdict
from io import StringIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.engine.counts import Counts, Intervals, spans
from jouletrace.engine.events import simulate
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import OpInfo, Port, Program
from jouletrace.report.timeline import write_timeline


def double_buffer(tiles: int, ops: int = 1) -> Program:
    """Loads into two slots, computes, for each of some ops."""
    builder = ProgramBuilder("toy")
    dma, pe = builder.engine("dma", "dma"), builder.engine("array", "array")
    free, full = builder.pool("in.free", 2, buffer="in"), builder.pool("in.full", 0)
    for op in range(ops):
        with builder.op(OpInfo(f"conv{op}:forward", f"conv{op}", "forward", "conv", macs=9)):
            read = [(("dram", "read", "activation"), 64)]
            load = builder.command("load", [(dma, 5)], [(free, 1)], [(full, 1)], start_cycles=2, counts=read)
            builder.emit([load, builder.command("mac", [(pe, 9)], [(full, 1)], [(free, 1)])], times=tiles)
    return builder.build()


def written(program: Program, counts: Counts | None = None, **options: Any) -> dict[str, Any]:
    file = StringIO()
    write_timeline(file, program, counts or simulate(program), **options)
    return json.loads(file.getvalue())


def slices(trace: dict[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Start and end of every slice, per track name."""
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names.values()}
    for e in trace["traceEvents"]:
        if e["ph"] == "X":
            found[names[e["tid"]]].append((e["ts"], e["ts"] + e["dur"]))
    return found


def counters(trace: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for e in trace["traceEvents"]:
        if e["ph"] == "C":
            (value,) = e["args"].values()
            found[e["name"]].append((e["ts"], value))
    return dict(found)


def test_tracks() -> None:
    assert slices(written(double_buffer(3))) == {
        "dma": [(0, 5), (5, 10), (14, 19)],
        "array": [(5, 14), (14, 23), (23, 32)],
    }


def test_a_slice_says_what_it_is() -> None:
    trace = written(double_buffer(1))
    load, mac = (e for e in trace["traceEvents"] if e["ph"] == "X")
    assert load == {
        "ph": "X",
        "pid": 1,
        "tid": 1,
        "ts": 0,
        "dur": 5,
        "name": "load conv0:forward",
        "cat": "forward",
        "args": {
            "op": "conv0:forward",
            "layer": "conv0",
            "phase": "forward",
            "kind": "conv",
            "start cycles, each": 2,
            "dram.read.activation, each": 64,
            "commands": 1,
            "busy cycles": 5,
        },
    }
    assert (mac["tid"], mac["name"]) == (2, "mac conv0:forward")


def test_buffer_fill() -> None:
    """A slot is in use from the start of its load to the end of the compute that frees it."""
    assert counters(written(double_buffer(3))) == {
        "in (in.free)": [(0, 1), (5, 2), (14, 2), (23, 1), (32, 0)],
    }


def test_energy_rises_to_its_sum() -> None:
    program = double_buffer(3)
    expected = [(0, 0.0), (5, 10.0), (10, 20.0), (14, 20.5), (19, 30.5), (23, 31.0), (32, 31.5)]
    assert counters(written(program, energy_pj=[10.0, 0.5]))["dynamic energy"] == expected
    prices = {0: 10, 1: 0.5}
    assert counters(written(program, energy_pj=prices.__getitem__))["dynamic energy"] == expected


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.floats(0, 1e9), min_size=12, max_size=12),
)
def test_energy_never_falls(cycles: list[int], prices: list[float]) -> None:
    builder = ProgramBuilder("toy")
    pe, vector = builder.engine("pe", "array"), builder.engine("vector", "vector")
    with builder.op(OpInfo("op", "layer", "forward", "conv", macs=0)):
        for i, n in enumerate(cycles):
            builder.emit([builder.command(f"c{i}", [((pe, vector)[i % 2], n)])])
    points = counters(written(builder.build(), energy_pj=prices))["dynamic energy"]
    values = [value for _, value in points]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(sum(prices[: len(cycles)]))
    assert len({ts for ts, _ in points}) == len(points)


def test_a_shared_port_has_a_slice_per_transfer() -> None:
    builder = ProgramBuilder("toy")
    a, b, port = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("dram", "dram")
    with builder.op(OpInfo("op", "layer", "forward", "conv", macs=0)):
        builder.emit(
            [builder.command("load a", [(a, 4), (port, 6)]), builder.command("load b", [(b, 4), (port, 4)])]
        )
    assert slices(written(builder.build())) == {"a": [(0, 4)], "b": [(6, 10)], "dram": [(0, 6), (6, 10)]}


def test_a_round_robin_port_is_a_counter() -> None:
    """Grants are not recorded: the streams show how long a transfer took, the port how many it served."""
    builder = ProgramBuilder("toy")
    a, b, port = builder.engine("a", "dma"), builder.engine("b", "dma"), builder.engine("dram", "dram")
    with builder.op(OpInfo("op", "layer", "forward", "conv", macs=0)):
        builder.emit(
            [builder.command("load a", [(a, 1), (port, 6)]), builder.command("load b", [(b, 1), (port, 4)])]
        )
    trace = written(builder.build(Port("round_robin", engine=port, grant_cycles=2)))
    assert slices(trace) == {"a": [(0, 10)], "b": [(0, 8)], "dram": []}
    assert counters(trace) == {"dram (shared)": [(0, 2), (8, 1), (10, 0)]}
    assert trace["otherData"]["port_model"] == "round_robin"


def test_metadata() -> None:
    trace = written(double_buffer(3))
    assert trace["otherData"] == {
        "hardware": "toy",
        "engine": "events",
        "port_model": "program_order",
        "cycles": 32,
        "commands": 6,
        "time": "1 us is 1 cycle",
        "slices": "one per command",
        "counters": "every change",
    }
    sorted_names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert sorted_names == ["engines", "buffers", "energy"]


def test_names_are_escaped() -> None:
    builder = ProgramBuilder('a "board"')
    pe = builder.engine("pe\\1", "array")
    with builder.op(OpInfo('op "x"\n', "schicht ü", "forward", "conv", macs=0)):
        builder.emit([builder.command("c\t", [(pe, 1)])])
    trace = written(builder.build())
    assert slices(trace) == {"pe\\1": [(0, 1)]}
    assert trace["traceEvents"][-1]["name"] == 'c\t op "x"\n'
    assert trace["otherData"]["hardware"] == 'a "board"'


def test_empty_program() -> None:
    trace = written(ProgramBuilder("toy").build(), energy_pj=[])
    assert slices(trace) == {}
    assert counters(trace) == {"dynamic energy": [(0, 0)]}


def test_equal_commands_without_a_gap_merge_beyond_the_limit() -> None:
    """The array never pauses after its first tile: one slice. The loads pause, but the first two do not."""
    program = double_buffer(4)
    trace = written(program, max_slices=5)
    assert slices(trace) == {"dma": [(0, 10), (14, 19), (23, 28)], "array": [(5, 41)]}
    assert trace["otherData"]["slices"] == "one per run of equal commands without a gap"
    array = trace["traceEvents"][-1 - len(counters(trace)["in (in.free)"])]
    assert (array["args"]["commands"], array["args"]["busy cycles"]) == (4, 36)
    assert slices(written(program, max_slices=8))["array"] == [(5, 14), (14, 23), (23, 32), (32, 41)]


def test_one_slice_per_op_where_that_is_not_enough() -> None:
    trace = written(double_buffer(4, ops=2), max_slices=4)
    assert slices(trace) == {"dma": [(0, 28), (32, 64)], "array": [(5, 41), (41, 77)]}
    assert trace["otherData"]["slices"] == "one for all that an op does in a row on an engine"
    args = [e["args"] for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [(a["commands"], a["busy cycles"]) for a in args] == [(4, 20), (4, 20), (4, 36), (4, 36)]


def test_counters_are_thinned_beyond_the_limit() -> None:
    program = double_buffer(50)
    full = counters(written(program, energy_pj=[1, 2]))
    trace = written(program, energy_pj=[1, 2], max_slices=10)
    for name, points in counters(trace).items():
        assert len(points) <= 11
        assert set(points) <= set(full[name])
        assert points[-1] == full[name][-1]
    # 52 points of fill and 101 of energy
    assert trace["otherData"]["counters"] == {
        "in (in.free)": "1 change in 6",
        "dynamic energy": "1 change in 11",
    }


def test_work_is_the_same_however_much_is_merged() -> None:
    program = double_buffer(30, ops=5)
    counts = simulate(program)
    for limit in (1, 100, 10_000):
        busy: Counter[int] = Counter()
        for e in written(program, counts, max_slices=limit)["traceEvents"]:
            if e["ph"] == "X":
                busy[e["tid"]] += e["args"]["busy cycles"]
        assert busy == {1: counts.engine_busy["dma"], 2: counts.engine_busy["array"]}


def test_a_million_commands_need_no_gigabytes() -> None:
    """Arrays, about 300 bytes per command, and never the text of the file."""

    class Discard(StringIO):
        size = 0

        def write(self, text: str) -> int:
            self.size += len(text)
            return len(text)

    builder = ProgramBuilder("toy")
    pe = builder.engine("pe", "array")
    with builder.op(OpInfo("op", "layer", "forward", "conv", macs=0)):
        builder.emit([builder.command("a", [(pe, 1)]), builder.command("b", [(pe, 2)])], times=500_000)
    program = builder.build()
    end = np.cumsum(np.tile([1, 2], 500_000))
    intervals = Intervals(end - np.tile([1, 2], 500_000), end)
    counts = Counts(program, *spans(program, intervals), "by hand", 0, lambda: intervals)
    file = Discard()
    tracemalloc.start()
    write_timeline(file, program, counts, energy_pj=[1, 2], max_slices=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 1_000_000 < file.size < 50_000_000
    assert peak < 300_000_000
