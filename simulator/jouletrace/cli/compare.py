"""``jouletrace compare``: strategies side by side, for one step and for a whole training."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from jouletrace.cli.options import Commands, add_overrides, natural, progress_bar
from jouletrace.cli.outputs import Output, outputs, text_into
from jouletrace.errors import JouletraceError, UsageError

if TYPE_CHECKING:
    from jouletrace.comparison import Comparison
    from jouletrace.hardware.spec import Hardware
    from jouletrace.strategies.base import Strategy
    from jouletrace.trace.model import Trace

__all__ = ["add", "execute"]

T = TypeVar("T")
FILES = ("json", "csv", "picture")


class _Inputs(NamedTuple):
    trace: Trace
    hardware: Hardware
    strategies: list[Strategy]
    on: dict[int, Hardware]
    labels: dict[int, str]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "compare", help="set strategies for efficient training side by side",
        description="Rewrites a training step by strategies, replays each, and says what each saves of a baseline: in "
        "one step and over a whole training.",
    )  # fmt: skip
    parser.add_argument("trace", metavar="TRACE", help="a shipped trace (see 'jouletrace traces') or a file")
    parser.add_argument(
        "--hardware", metavar="SPEC", required=True, help="an accelerator (see 'jouletrace hardware') or a YAML file"
    )
    add_overrides(parser)
    parser.add_argument(
        "--strategy", dest="strategies", metavar="NAME[:KNOB=VALUE,…][+NAME…][@SPEC]", action="append", default=[],
        help="a strategy or a combination (see 'jouletrace strategies'), on an accelerator of its own if one is named; "
        "repeated for each column",
    )  # fmt: skip
    parser.add_argument(
        "--label", dest="labels", metavar="TEXT", action="append", default=[],
        help="a short name for each --strategy, in the same order",
    )  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--iterations", metavar="N", type=int, default=64_000, help="of the training (64,000)")
    length.add_argument("--step", action="store_true", help="compare one step, and no training")
    parser.add_argument("--evaluate-every", metavar="N", type=int, help="count an evaluation after every N iterations")
    parser.add_argument("--seeds", metavar="K", type=natural, default=3, help="trainings where decisions are drawn (3)")
    parser.add_argument("--seed", metavar="S", type=natural, default=0, help="the first seed (0)")
    parser.add_argument("--micro-batch", metavar="N", type=int, help="N samples at a time, if a step exceeds the DRAM")
    parser.add_argument("--allow-dram-overflow", action="store_true", help="replay although a step exceeds the DRAM")
    parser.add_argument(
        "--scope", choices=["chip", "chip+dram", "board"], default="board",
        help="what energy counts in the picture and in tables of one scope (board)",
    )  # fmt: skip
    parser.add_argument("--why", action="store_true", help="say why places were left alone")
    parser.add_argument("--json", metavar="FILE", help="write every figure")
    parser.add_argument("--csv", metavar="FILE", help="write energies, one row per column, component and phase")
    parser.add_argument("--picture", metavar="FILE", help="draw the way to the combination (.svg or .png)")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> None:
    inputs = _inputs(arguments)
    with outputs({what: path for what in FILES if (path := getattr(arguments, what))}) as files:
        comparison = _compared(inputs, arguments)
        _write(comparison, files, arguments)

    from jouletrace.report.comparison import print_comparison

    print_comparison(comparison, scope=arguments.scope, why=arguments.why)
    if files:
        print()
    for what, output in files.items():
        print(f"{what}: {output.path}")


def _inputs(arguments: argparse.Namespace) -> _Inputs:
    """Everything that is named, read; :class:`UsageError` says all that is wrong with it."""
    from jouletrace.hardware.load import load_hardware
    from jouletrace.strategies.registry import split_hardware, strategy
    from jouletrace.trace.io import load_trace

    problems = list(_misuses(arguments))

    def tried(function: Callable[[], T]) -> T | None:
        try:
            return function()
        except JouletraceError as error:
            problems.extend(error.problems)
            return None

    trace = tried(lambda: load_trace(arguments.trace))
    parts = [split_hardware(text) for text in arguments.strategies]
    names = dict.fromkeys((arguments.hardware, *(name for _, name in parts if name is not None)))
    builds = {name: tried(lambda name=name: load_hardware(name, arguments.overrides)) for name in names}
    strategies = [tried(lambda text=text: strategy(text)) for text, _ in parts]
    hardware = builds[arguments.hardware]
    if problems or trace is None or hardware is None:
        raise UsageError(list(dict.fromkeys(problems)))
    given: list[str] = arguments.labels
    on = {i: build for i, (_, name) in enumerate(parts) if name is not None and (build := builds[name]) is not None}
    found = [each for each in strategies if each is not None]
    labels = dict(enumerate(given)) or _labels(found, parts)
    return _Inputs(trace, hardware, found, on, labels)


def _labels(strategies: list[Strategy], parts: list[tuple[str, str | None]]) -> dict[int, str]:
    """A strategy's own words; with its hardware where only that tells two columns apart."""
    times = Counter(map(str, strategies))
    return {
        i: f"{each}@{name}" if times[str(each)] > 1 and name is not None else str(each)
        for i, (each, (_, name)) in enumerate(zip(strategies, parts, strict=True))
    }


def _misuses(arguments: argparse.Namespace) -> list[str]:
    """Sentences about options that make no sense, before anything is read."""
    from jouletrace.report.waterfall import PICTURES, require_matplotlib

    found: list[str] = []
    if not arguments.strategies:
        found.append("compare needs a --strategy; 'jouletrace strategies' lists them")
    if arguments.labels and len(arguments.labels) != len(arguments.strategies):
        labels, strategies = len(arguments.labels), len(arguments.strategies)
        found.append(f"{labels} --label for {strategies} --strategy; give one for each, or none")
    if not arguments.seeds:
        found.append("--seeds has to be at least 1")
    if arguments.step and arguments.evaluate_every is not None:
        found.append("--evaluate-every belongs to a training; leave out --step")
    if arguments.picture and not arguments.picture.endswith(PICTURES):
        found.append(f"{arguments.picture}: a picture ends in {' or '.join(PICTURES)}")
    elif arguments.picture:
        try:
            require_matplotlib()
        except UsageError as error:
            found += error.problems
    return found


def _compared(inputs: _Inputs, arguments: argparse.Namespace) -> Comparison:
    from jouletrace.comparison import compare
    from jouletrace.trace.activities import training_run

    run = None
    if not arguments.step:
        run = training_run(inputs.trace, arguments.iterations, evaluate_every=arguments.evaluate_every)
    with progress_bar("comparing:") as move:
        return compare(
            inputs.trace, inputs.hardware, inputs.strategies, on=inputs.on, labels=inputs.labels, iterations=None,
            run=run, seeds=range(arguments.seed, arguments.seed + arguments.seeds), micro_batch=arguments.micro_batch,
            allow_dram_overflow=arguments.allow_dram_overflow,
            progress=None if move is None else lambda label, done, total: move(done, total, label),
        )  # fmt: skip


def _write(comparison: Comparison, files: Mapping[str, Output], arguments: argparse.Namespace) -> None:
    from jouletrace.report.comparison_files import export_comparison_csv, export_comparison_json
    from jouletrace.report.waterfall import export_comparison_picture

    for what, output in files.items():
        if what == "picture":
            kind = output.path.rpartition(".")[2]
            export_comparison_picture(output.file, comparison, kind=kind, scope=arguments.scope)
            continue
        with text_into(output.file) as text:
            if what == "json":
                export_comparison_json(text, comparison)
            else:
                export_comparison_csv(text, comparison)
