"""``jouletrace capture``: record one training step of a recipe."""

from __future__ import annotations

import argparse

from jouletrace.cli.options import Commands

__all__ = ["add", "execute"]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "capture", help="record a training step of your own model",
        description="Records one steady-state training step of ordinary PyTorch code, on shapes alone; or derives the "
        "training step of an ONNX file or of a built-in network.",
    )  # fmt: skip
    parser.add_argument("recipe", metavar="RECIPE", help="path/to/file.py:function, a .onnx file, or zoo:NAME")
    parser.add_argument("--batch", metavar="N", type=int, help="samples in the step; an ONNX file may say it")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the trace file (.jsonl.gz or .jsonl)")
    parser.add_argument("--name", help="the name of the trace; by default that of the file")
    parser.add_argument("--optimizer", help="of an ONNX file: sgd, sgd_momentum (default), adam or adamw")
    parser.add_argument(
        "--approximate", choices=["elementwise"],
        help="of an ONNX file: count an unknown operator as one pass over its result",
    )  # fmt: skip
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
    onnx = arguments.recipe.endswith(".onnx")
    if not onnx and (arguments.optimizer or arguments.approximate):
        raise UsageError("--optimizer and --approximate go with an ONNX file; a recipe says its optimizer itself")
    if not onnx and arguments.batch is None:
        raise UsageError("a recipe is a function of the batch size; say which with --batch N")
    if onnx:
        from jouletrace.capture.onnx import capture_onnx

        optimizer = arguments.optimizer or "sgd_momentum"
        trace = capture_onnx(arguments.recipe, arguments.batch, optimizer, arguments.approximate)
    elif arguments.recipe.startswith("zoo:"):
        from jouletrace.capture.zoo import zoo

        trace = zoo(arguments.recipe.removeprefix("zoo:"), arguments.batch)
    else:
        from jouletrace.capture.torch import capture_recipe

        trace = capture_recipe(arguments.recipe, arguments.batch, name)
    trace = replace(trace, header=replace(trace.header, name=name))
    write_trace(trace, arguments.output)
    print_trace(trace, layers=0)
    print(f"\ntrace: {arguments.output}")
