"""How fast a step and a training are replayed: ``make bench``.

All engines run in the same process, so that figures of different machines can be compared by their ratios, also to bare
SimPy (ten processes that only wait). Prints tables in Markdown and writes ``build/bench.json``; with ``--readme`` also
the tables of the README. Growth is shown as operations counted, which are the same on every machine.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TypeVar
from unittest.mock import patch

import simpy

from jouletrace.engine import compiled, events, parts
from jouletrace.hardware.load import load_hardware
from jouletrace.ledger.breakdown import Energy
from jouletrace.mapping.memory import SWITCH
from jouletrace.mapping.step import map_step
from jouletrace.replay.many import simulate_many
from jouletrace.replay.run import simulate_run
from jouletrace.replay.step import simulate
from jouletrace.result.model import Result
from jouletrace.strategies.base import apply
from jouletrace.strategies.registry import strategy
from jouletrace.trace.activities import training_run
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import load_trace

STEPS = [
    ("resnet20-cifar10-b32", "eftrain-zcu102"),
    ("resnet74-cifar10-b128", "eftrain-zcu102"),
    ("resnet74-cifar10-b128", "zedboard-fp32"),
    ("resnet74-cifar10-b128", "zedboard-int8"),
    ("resnet18-imagenet-b1", "systolic-32x32"),
]
TRAINING = ("resnet74-cifar10-b128", "eftrain-zcu102", "smd+slu")
ITERATIONS = (1000, 4000, 16_000, 64_000)
# Where the README keeps its tables, and what it leaves out of them.
BEGIN, END = "<!-- make bench writes this -->", "<!-- until here -->"
HIDDEN = ("map_op_by_op_ms", "map_first_ms", "map_again_ms", "commands", "events_over_intervals", "peak_mb")
T = TypeVar("T")
Row = dict[str, float | int | str]


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    begin = perf_counter()
    result = work()
    return perf_counter() - begin, result


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextmanager
def without_memory() -> Iterator[None]:
    with patch.dict(os.environ, {SWITCH: "1"}):
        yield


def bare_simpy(events: int = 200_000) -> float:
    """Events a second of ten SimPy processes that do nothing but wait."""
    env = simpy.Environment()

    def wait():
        for _ in range(events // 10):
            yield env.timeout(1)

    for _ in range(10):
        env.process(wait())
    return events / seconds(env.run)[0]


def step(trace_name: str, hardware_name: str) -> Row:
    """One step: mapped op by op, mapped with memory, and from memory; executed by both engines; and all of it.

    Every execution starts from a program that nothing is known about but its commands. The compiled engine finds cycles
    and counts first, and when asked the start and the end of every command, as the events engine does.
    """
    trace, hardware = load_trace(trace_name), load_hardware(hardware_name)
    with without_memory():
        alone_s, _ = seconds(lambda: map_step(trace, hardware))
    first_s, program = seconds(lambda: map_step(trace, hardware))
    again_s, _ = seconds(lambda: map_step(trace, hardware))
    compiled.simulate(program)  # loads what is compiled
    compiled_s = min(seconds(lambda: compiled.simulate(replace(program)).ops)[0] for _ in range(5))
    intervals_s = min(seconds(lambda: compiled.simulate(replace(program)).intervals)[0] for _ in range(5))
    events_s, _ = seconds(lambda: events.simulate(program).ops)

    def whole() -> Energy:
        return simulate(trace, hardware, allow_dram_overflow=True).breakdown.total()

    whole()
    whole_s = min(seconds(whole)[0] for _ in range(3))
    return {
        "trace": trace_name, "hardware": hardware_name, "tiles": program.tiles, "commands": len(program),
        "map_op_by_op_ms": round(1e3 * alone_s), "map_first_ms": round(1e3 * first_s),
        "map_again_ms": round(1e3 * again_s, 1), "events_ms": round(1e3 * events_s),
        "compiled_ms": round(1e3 * compiled_s, 1), "with_every_interval_ms": round(1e3 * intervals_s, 1),
        "events_over_compiled": round(events_s / compiled_s), "events_over_intervals": round(events_s / intervals_s),
        "million_tiles_per_s": round(program.tiles / compiled_s / 1e6, 1),
        "trace_to_breakdown_ms": round(1e3 * whole_s, 1), "peak_mb": peak_mb(),
    }  # fmt: skip


def training() -> Row:
    """A training whose samples skip units: the first time, and with another seed when all its ops are known."""
    name, hardware_name, strategies = TRAINING
    trace, hardware = load_trace(name), load_hardware(hardware_name)
    runs = [apply(strategy(strategies), training_run(trace), seed=seed).value for seed in (0, 1)]
    first_s, _ = seconds(lambda: simulate_run(runs[0], hardware))
    again_s, _ = seconds(lambda: simulate_run(runs[0], hardware))
    seed_s, _ = seconds(lambda: simulate_run(runs[1], hardware))
    return {
        "trace": name, "hardware": hardware_name, "strategies": strategies, "iterations": runs[0].iterations,
        "first_s": round(first_s, 2), "again_s": round(again_s, 2), "other_seed_s": round(seed_s, 2), "peak_mb": peak_mb(),
    }  # fmt: skip


def growth() -> list[Row]:
    """Distinct ops, and commands written down and executed, over depth and batch."""
    rows: list[Row] = []
    hardware = load_hardware("eftrain-zcu102")
    for name, batch in (("resnet20-cifar10-b32", 32), ("resnet20-cifar10-b32", 64), ("resnet20-cifar10-b32", 128),
                        ("resnet38-cifar10-b128", 128), ("resnet74-cifar10-b128", 128)):  # fmt: skip
        trace = with_batch(load_trace(name), batch)
        program = map_step(trace, hardware)
        rows.append({"trace": trace.header.name, "ops": len(trace.ops), "distinct_ops": len(program.distinct),
                     "written_commands": sum(len(run.chunk) for body in program.bodies for run in body.runs),
                     "commands": len(program)})  # fmt: skip
    return rows


def executions() -> list[Row]:
    """Ops that were executed to compose a training, over its length."""
    trace, hardware = load_trace("resnet20-cifar10-b32"), load_hardware("eftrain-zcu102")
    rows: list[Row] = []
    for iterations in ITERATIONS:
        run = apply(strategy("slu"), training_run(trace, iterations), seed=0).value
        executed: list[object] = []
        original = parts.Part._execute  # pyright: ignore[reportPrivateUsage]

        def counted(part: object, ready: object, executed: list[object] = executed, original=original) -> object:
            executed.append(part)
            return original(part, ready)  # type: ignore[arg-type]

        with without_memory(), patch.object(parts.Part, "_execute", counted):  # pyright: ignore[reportPrivateUsage]
            simulate_run(run, hardware)
        rows.append({"iterations": iterations, "op_executions": iterations * len(run.steps[0].ops),
                     "executed": len(executed)})  # fmt: skip
    return rows


def sweeps() -> list[Row]:
    """Design points a second, none of them seen before: a few alone and without memory, the rest as a sweep."""
    name = "eftrain-zcu102"
    trace = load_trace("resnet74-cifar10-b128")
    settings = {
        "prices": [f"board.board_idle=[1 W, {100 + i} W, 200 W]" for i in range(36)],
        "bandwidth": [f"dram.bandwidth={10_000 + 50 * i} MB/s" for i in range(36)],
        "clock": [f"clock={80 + i} MHz" for i in range(36)],
        "buffers": [f"buffers.input.size={190 - 2 * i} KiB" for i in range(36)],
        "array": [f"array.out_channels={6 + i}" for i in range(12)],
    }
    rows: list[Row] = []

    def totals(results: Iterable[Result]) -> list[int]:
        return [result.breakdown.total().energy_aj for result in results]

    for what, values in settings.items():
        alone, swept = [load_hardware(name, [v]) for v in values[:4]], [load_hardware(name, [v]) for v in values[4:]]
        with without_memory():
            alone_s, _ = seconds(lambda alone=alone: totals(simulate(trace, point) for point in alone))
        totals(simulate_many(trace, alone))
        many_s, _ = seconds(lambda swept=swept: totals(simulate_many(trace, swept)))
        rows.append({"trace": trace.header.name, "hardware": name, "sweep": what, "points": len(swept),
                     "alone_points_per_s": round(len(alone) / alone_s, 1),
                     "points_per_s": round(len(swept) / many_s, 1)})  # fmt: skip
    return rows


def cold_start() -> Row:
    """Wall seconds of fresh processes; the kernels are compiled already."""
    def run(*arguments: str) -> float:
        return round(seconds(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))[0], 2)

    def replay(trace: str) -> float:
        return run("-m", "jouletrace", "run", trace, "--hardware", "eftrain-zcu102")

    os.environ["JOULETRACE_CACHE"] = tempfile.mkdtemp()
    return {
        "import_s": run("-c", "import jouletrace"), "run_resnet74_s": replay("resnet74-cifar10-b128"),
        "run_resnet74_again_s": replay("resnet74-cifar10-b128"),
        "run_resnet18_imagenet_s": replay("resnet18-imagenet-b1"),
    }  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(key.replace("_", " ") for key in rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def into_readme(text: str) -> None:
    """Puts the tables where the README keeps them."""
    readme = Path("README.md")
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"README.md has lost the lines {BEGIN!r} and {END!r}; put them back where the tables belong")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    os.environ["JOULETRACE_CACHE"] = tempfile.mkdtemp()  # nothing is known from earlier
    figures: dict[str, object] = {"bare_simpy_events_per_s": round(bare_simpy())}
    print(f"bare SimPy: {figures['bare_simpy_events_per_s']:,} events/s\n")
    sections: dict[str, Callable[[], list[Row]]] = {
        "sweeps": sweeps, "steps": lambda: [step(*names) for names in STEPS], "growth": growth,
        "executions": executions, "training": lambda: [training()], "cold_start": lambda: [cold_start()],
    }  # fmt: skip
    shown: dict[str, str] = {}
    for name, measure in sections.items():
        rows = measure()
        figures[name], shown[name] = rows, table([{k: v for k, v in row.items() if k not in HIDDEN} for row in rows])
        print(table(rows), end="\n\n")
    out = Path("build/bench.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written: {out}")
    if "--readme" in sys.argv[1:]:
        into_readme("\n\n".join(shown[name] for name in ("steps", "training", "sweeps", "cold_start")))
        print("written: README.md")


if __name__ == "__main__":
    sys.exit(main())
