"""How fast a step is mapped and executed: ``make bench``.

Prints a table and writes ``build/bench.json``. Every rate stands beside the rate of bare SimPy in the same run
(ten processes that only wait), so that figures of different machines can be compared by their ratio.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
from pathlib import Path
from time import perf_counter

import simpy

from jouletrace.engine.events import simulate
from jouletrace.hardware.load import load_hardware
from jouletrace.ledger.price import price
from jouletrace.mapping.step import map_step
from jouletrace.trace.io import load_trace

STEPS = [
    ("resnet20-cifar10-b32", "eftrain-zcu102"),
    ("resnet74-cifar10-b128", "eftrain-zcu102"),
    ("resnet74-cifar10-b128", "zedboard-fp32"),
    ("resnet74-cifar10-b128", "zedboard-int8"),
    ("resnet18-imagenet-b1", "systolic-32x32"),
]


def bare_simpy(events: int = 200_000) -> float:
    """Events a second of ten SimPy processes that do nothing but wait."""
    env = simpy.Environment()

    def wait():
        for _ in range(events // 10):
            yield env.timeout(1)

    for _ in range(10):
        env.process(wait())
    begin = perf_counter()
    env.run()
    return events / (perf_counter() - begin)


def measure(trace_name: str, hardware_name: str) -> dict[str, float | int | str]:
    """One step: seconds to read, map, execute and price, and the rates that follow."""
    times = [perf_counter()]
    trace, hardware = load_trace(trace_name), load_hardware(hardware_name)
    times.append(perf_counter())
    program = map_step(trace, hardware)
    times.append(perf_counter())
    counts = simulate(program)
    times.append(perf_counter())
    price(counts, hardware)
    times.append(perf_counter())
    load_s, map_s, execute_s, price_s = (b - a for a, b in itertools.pairwise(times))
    return {
        "trace": trace_name,
        "hardware": hardware_name,
        "tiles": program.tiles,
        "commands": len(program.sequence),
        "events": counts.events,
        "load_s": round(load_s, 3),
        "map_s": round(map_s, 3),
        "execute_s": round(execute_s, 3),
        "price_s": round(price_s, 3),
        "tiles_per_s": round(program.tiles / execute_s),
        "commands_per_s": round(len(program.sequence) / execute_s),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    reference = bare_simpy()
    rows = [measure(*step) for step in STEPS]
    print(f"bare SimPy: {reference:,.0f} events/s")
    print(
        f"{'step':<24}{'hardware':<16}{'tiles':>9}{'commands':>11}{'map s':>8}{'run s':>8}"
        f"{'tiles/s':>10}{'commands/s':>12}{'per SimPy event':>17}"
    )
    for row in rows:
        row["commands_per_simpy_event"] = round(row["commands_per_s"] / reference, 3)  # type: ignore[operator]
        print(
            f"{row['trace']:<24}{row['hardware']:<16}{row['tiles']:>9,}{row['commands']:>11,}{row['map_s']:>8}"
            f"{row['execute_s']:>8}{row['tiles_per_s']:>10,}{row['commands_per_s']:>12,}"
            f"{row['commands_per_simpy_event']:>17}"
        )
    out = Path("build/bench.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"bare_simpy_events_per_s": round(reference), "steps": rows}, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    sys.exit(main())
