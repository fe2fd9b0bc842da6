"""``jouletrace capture``: record one training step of a recipe."""

from __future__ import annotations

import argparse

from jouletrace.cli.options import Commands

__all__ = ["add", "execute"]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "capture", help="record a training step of your own model",
        description="Records one steady-state training step of ordinary PyTorch code, on shapes alone, or reads an "
        "ONNX file and derives its training step.",
    )  # fmt: skip
    parser.add_argument("recipe", metavar="RECIPE", help="path/to/file.py:function, or a .onnx file")
    parser.add_argument("--batch", metavar="N", type=int, help="samples in the step; a recipe needs it")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the trace file (.jsonl.gz or .jsonl)")
    parser.add_argument("--name", help="the name of the trace; by default that of the file")
    parser.set_defaults(execute=execute)


def execute(arguments: argparse.Namespace) -> None:
    from dataclasses import replace
    from pathlib import Path

    from jouletrace.errors import UsageError
    from jouletrace.report.catalogue import print_trace
    from jouletrace.trace.io import SUFFIXES, write_trace

    if not arguments.output.endswith(SUFFIXES):
        raise UsageError(f"{arguments.output}: a trace file ends in {' or '.join(SUFFIXES)}")
    name = arguments.name or Path(arguments.output).name.removesuffix(".gz").removesuffix(".jsonl")
    if arguments.recipe.endswith(".onnx"):
        from jouletrace.capture.onnx import capture_onnx

        captured = capture_onnx(arguments.recipe, arguments.batch)
        trace = replace(captured, header=replace(captured.header, name=name))
    else:
        if arguments.batch is None:
            raise UsageError("a recipe is a function of the batch size; say which with --batch N")
        from jouletrace.capture.torch import capture_recipe

        trace = capture_recipe(arguments.recipe, arguments.batch, name)
    write_trace(trace, arguments.output)
    print_trace(trace, layers=0)
    print(f"\ntrace: {arguments.output}")
