"""``jouletrace traces``, ``hardware``, ``strategies``, ``show``, ``check``: what there is, and if a file is good."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jouletrace.cli.options import Commands, add_overrides
from jouletrace.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from jouletrace.hardware.spec import Hardware
    from jouletrace.trace.model import Trace

__all__ = ["add"]


def add(commands: Commands) -> None:
    traces = commands.add_parser("traces", help="list the shipped traces", description="Lists the shipped traces.")
    traces.set_defaults(execute=_traces)
    hardware = commands.add_parser(
        "hardware", help="list the shipped accelerators", description="Lists the shipped accelerators."
    )
    hardware.set_defaults(execute=_hardware)
    strategies = commands.add_parser(
        "strategies", help="list strategies, or describe one",
        description="Lists the strategies that 'jouletrace compare' knows, or describes one and its knobs.",
    )  # fmt: skip
    strategies.add_argument("name", metavar="NAME", nargs="?", help="a strategy to describe, or a Python file with one")
    strategies.set_defaults(execute=_strategies)
    show = commands.add_parser(
        "show", help="show a trace or an accelerator", description="Shows what is in a trace or in a hardware spec."
    )
    show.add_argument("name", metavar="TRACE|SPEC", help="a shipped name or a file")
    show.add_argument("--layers", metavar="N", type=int, help="how many layers of a trace to list; by default all")
    add_overrides(show)
    show.set_defaults(execute=_show)
    check = commands.add_parser(
        "check", help="check a trace, spec or result file", description="Reads a file and says what is wrong with it."
    )
    check.add_argument("file", metavar="FILE", help="a trace (.jsonl.gz, .jsonl), a spec (.yaml) or a result (.json)")
    check.set_defaults(execute=_check)


def _traces(arguments: argparse.Namespace) -> None:
    from jouletrace.report.catalogue import print_traces
    from jouletrace.trace.io import list_traces, load_trace

    print_traces([load_trace(name) for name in list_traces()])


def _hardware(arguments: argparse.Namespace) -> None:
    from jouletrace.hardware.load import list_hardware, load_hardware
    from jouletrace.report.catalogue import print_hardware_list

    print_hardware_list([load_hardware(name) for name in list_hardware()])


def _strategies(arguments: argparse.Namespace) -> None:
    from jouletrace.report.strategy_catalogue import print_strategies, print_strategy

    if arguments.name is None:
        print_strategies()
    else:
        print_strategy(arguments.name)


def _show(arguments: argparse.Namespace) -> None:
    from jouletrace.report.catalogue import print_hardware, print_trace

    found = _find(arguments.name, arguments.overrides)
    if isinstance(found, tuple):
        print_hardware(found[0])
    else:
        print_trace(found, layers=arguments.layers)


def _find(name: str, overrides: list[str]) -> Trace | tuple[Hardware]:
    """The trace of this name, or the hardware in a tuple."""
    from jouletrace.hardware.load import list_hardware, load_hardware
    from jouletrace.trace.io import SUFFIXES, list_traces, load_trace

    traces, hardware = list_traces(), list_hardware()
    if name in traces or name.endswith(SUFFIXES):
        if overrides:
            raise UsageError("--set changes a hardware spec, not a trace")
        return load_trace(name)
    if name in hardware or name.endswith((".yaml", ".yml")):
        return (load_hardware(name, overrides),)
    known = [*traces, *hardware]
    raise UsageError(
        f"there is no shipped trace or hardware {name!r}{did_you_mean(name, known)}; 'jouletrace traces' and "
        "'jouletrace hardware' list them; a file ends in .jsonl.gz, .jsonl or .yaml"
    )


def _check(arguments: argparse.Namespace) -> None:
    from jouletrace.trace.io import SUFFIXES

    name: str = arguments.file
    if name.endswith(SUFFIXES):
        from jouletrace.trace.io import digest, read_trace

        trace = read_trace(name)
        print(f"{name}: a good trace: {len(trace.ops)} ops, {len(trace.tensors)} tensors, sha256 {digest(trace)}")
    elif name.endswith((".yaml", ".yml")):
        from pathlib import Path

        from jouletrace.hardware.load import digest as hardware_digest
        from jouletrace.hardware.load import load_hardware

        hardware = load_hardware(Path(name))
        print(f"{name}: a good spec: {hardware.name}, sha256 {hardware_digest(hardware)}")
    elif name.endswith(".json"):
        from jouletrace.result import load_result

        result = load_result(name)
        print(f"{name}: a good result: {len(result.ops)} ops, {result.cycles} cycles, every sum follows from counts")
    else:
        raise UsageError(
            f"{name}: cannot tell what this is; a trace ends in .jsonl.gz or .jsonl, a spec in .yaml, a result in .json"
        )
