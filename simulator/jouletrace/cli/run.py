"""``jouletrace run``: replay a step, print the report, write the files that were asked for."""

from __future__ import annotations

import argparse
from typing import Any

from jouletrace.cli.options import add_hardware, progress_bar
from jouletrace.errors import UsageError

__all__ = ["add", "execute"]


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "run", help="replay a training step on an accelerator",
        description="Replays a captured training step, or a part of it, and prices every access.",
    )  # fmt: skip
    parser.add_argument("trace", metavar="TRACE", nargs="?", help="a shipped trace (see 'jouletrace traces') or a file")
    parser.add_argument("--from", dest="source", metavar="RESULT.json", help="repeat the run that made this result")
    add_hardware(parser)
    parser.add_argument("--engine", default="events", choices=["events"], help="the engine that counts cycles")
    parser.add_argument("--only", metavar="LAYER[:PHASE]", help="replay these ops alone, as in --only layer1.0:forward")
    parser.add_argument("--micro-batch", metavar="N", type=int, help="process N samples at a time, to need less DRAM")
    parser.add_argument("--allow-dram-overflow", action="store_true", help="replay although the step exceeds the DRAM")
    parser.add_argument("--json", metavar="FILE", help="write the result file")
    parser.add_argument("--csv", metavar="FILE", help="write one row per op and component")
    parser.add_argument("--timeline", metavar="FILE", help="write a Chrome trace; open it in ui.perfetto.dev")
    parser.add_argument("--svg", metavar="FILE", help="write a picture of the energy by phase and component")
    parser.add_argument("--top", metavar="N", type=int, default=10, help="how many of the dearest layers to show (10)")
    parser.add_argument(
        "--by", choices=["layer", "phase", "component", "role", "kind"], help="one more table, grouped by this"
    )
    parser.add_argument("--describe-stats", action="store_true", help="print what every statistic means, and stop")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> None:
    if arguments.describe_stats:
        from jouletrace.report.table import print_statistics

        print_statistics()
        return
    result = _replay(arguments)
    _write(arguments, result)

    from jouletrace.report.table import print_report

    print_report(result, top=arguments.top, by=arguments.by)
    for what in ("json", "csv", "timeline", "svg"):
        if getattr(arguments, what):
            print(f"{what}: {getattr(arguments, what)}")


def _replay(arguments: argparse.Namespace) -> Any:
    from jouletrace.replay import reproduce, simulate

    if arguments.source:
        if arguments.trace or arguments.hardware or arguments.overrides or arguments.only or arguments.micro_batch:
            raise UsageError("--from takes everything from the result file; leave TRACE and the other inputs out")
        from jouletrace.result import load_result

        with progress_bar("replaying") as progress:
            return reproduce(load_result(arguments.source), progress=progress)
    if not arguments.trace:
        raise UsageError("run needs a TRACE; 'jouletrace traces' lists the shipped ones")
    if not arguments.hardware:
        raise UsageError("run needs --hardware SPEC; 'jouletrace hardware' lists the shipped ones")

    from jouletrace.hardware.load import load_hardware
    from jouletrace.trace.io import load_trace

    trace = load_trace(arguments.trace)
    hardware = load_hardware(arguments.hardware, arguments.overrides)
    with progress_bar("replaying") as progress:
        return simulate(
            trace, hardware, engine=arguments.engine, only=arguments.only, micro_batch=arguments.micro_batch,
            allow_dram_overflow=arguments.allow_dram_overflow, progress=progress,
        )  # fmt: skip


def _write(arguments: argparse.Namespace, result: Any) -> None:
    """Makes every file's content first and writes then, so that a failure leaves all old files as they are."""
    from jouletrace.files import write_file

    contents: dict[str, str | bytes] = {}
    if arguments.json:
        contents[arguments.json] = result.to_json()
    if arguments.csv:
        from jouletrace.report.export import to_csv

        contents[arguments.csv] = to_csv(result)
    if arguments.svg:
        from jouletrace.report.svg import energy_picture

        contents[arguments.svg] = energy_picture(result)
    if arguments.timeline:
        from jouletrace.report.timeline import timeline

        contents[arguments.timeline] = timeline(result)
    for path, content in contents.items():
        write_file(path, content)
