"""``jouletrace run``: replay a step, print the report, write the files that were asked for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from gzip import GzipFile
from typing import TYPE_CHECKING

from jouletrace.cli.options import Commands, add_overrides, natural, progress_bar
from jouletrace.cli.outputs import Output, outputs, text_into
from jouletrace.errors import UsageError

if TYPE_CHECKING:
    from jouletrace.result import Result

__all__ = ["add", "execute"]

FILES = ("json", "csv", "timeline", "svg")
INPUTS = ("trace", "hardware", "overrides", "only", "micro_batch", "allow_dram_overflow")


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "run", help="replay a training step on an accelerator",
        description="Replays a captured training step, or a part of it, and prices every access.",
    )  # fmt: skip
    parser.add_argument("trace", metavar="TRACE", nargs="?", help="a shipped trace (see 'jouletrace traces') or a file")
    parser.add_argument("--from", dest="source", metavar="RESULT.json", help="repeat the run that made this result")
    parser.add_argument("--hardware", metavar="SPEC", help="an accelerator (see 'jouletrace hardware') or a YAML file")
    add_overrides(parser)
    parser.add_argument(
        "--engine", default="auto", choices=["auto", "events", "compiled"],
        help="what counts cycles: all find the same, and auto takes the fastest that can execute the step",
    )  # fmt: skip
    parser.add_argument("--only", metavar="LAYER[:PHASE]", help="replay a part alone, as in --only layer1.0:forward")
    parser.add_argument("--micro-batch", metavar="N", type=int, help="process N samples at a time, to need less DRAM")
    parser.add_argument("--allow-dram-overflow", action="store_true", help="replay although the step exceeds the DRAM")
    parser.add_argument("--json", metavar="FILE", help="write the result file")
    parser.add_argument("--csv", metavar="FILE", help="write one row per op and component")
    parser.add_argument("--timeline", metavar="FILE", help="write a Chrome trace for Perfetto (.json or .json.gz)")
    parser.add_argument("--svg", metavar="FILE", help="write a picture of the energy by phase and component")
    parser.add_argument("--top", metavar="N", type=natural, default=10, help="how many dear layers to show (10)")
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
    with outputs({what: path for what in FILES if (path := getattr(arguments, what))}) as files:
        result = _replay(arguments)
        if files:
            _write(result, files)

    from jouletrace.report.table import print_report

    print_report(result, top=arguments.top, by=arguments.by)
    for what, output in files.items():
        print(f"{what}: {output.path}")


def _write(result: Result, files: Mapping[str, Output]) -> None:
    from jouletrace.report.export import EXPORTS

    for what, output in files.items():
        packed = what == "timeline" and output.path.endswith(".gz")
        pack = GzipFile("", "wb", 6, output.file, mtime=0) if packed else nullcontext(output.file)
        with pack as file, text_into(file) as text:
            EXPORTS[what](text, result)


def _replay(arguments: argparse.Namespace) -> Result:
    from jouletrace.replay.step import reproduce, simulate

    if arguments.source:
        if any(getattr(arguments, what) for what in INPUTS):
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
