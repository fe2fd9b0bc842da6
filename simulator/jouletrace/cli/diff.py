"""``jouletrace diff``: two result files side by side."""

from __future__ import annotations

import argparse

from jouletrace.cli.options import Commands, natural

__all__ = ["add", "execute"]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "diff", help="compare two results", description="Compares two result files: inputs, totals, phases, layers."
    )
    parser.add_argument("a", metavar="A.json")
    parser.add_argument("b", metavar="B.json")
    parser.add_argument("--top", metavar="N", type=natural, default=10, help="how many layers to show (10)")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> None:
    from jouletrace.report.diff import print_difference
    from jouletrace.result import load_result

    print_difference(load_result(arguments.a), load_result(arguments.b), top=arguments.top)
