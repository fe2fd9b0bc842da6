"""The command line: parse, call, print, exit code; no logic.

A command is a module of this package with ``add(commands)``, which describes its arguments, and
``execute(arguments)``. Modules import what is heavy inside ``execute``, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from jouletrace.cli import browse, cache, calibrate, capture, compare, diff, run, validate
from jouletrace.errors import JouletraceError
from jouletrace.version import __version__

__all__ = ["main"]

# What may be allocated before garbage is looked for. Modules, traces and programs live until the end; to go through
# them after every 700 objects, Python's default, takes a tenth of a short run, and once more at its end a fifth.
_ALLOCATIONS = 300_000


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code, which is 2 after sentences on standard error about a wrong input."""
    arguments = _parser().parse_args(argv)
    try:
        with _rare_collections():
            code: int | None = arguments.execute(arguments)
        sys.stdout.flush()
    except JouletraceError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no output file was changed", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code or 0


@contextmanager
def _rare_collections() -> Generator[None]:
    atexit.register(gc.freeze)
    before = gc.get_threshold()
    gc.set_threshold(_ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jouletrace",
        description="Replays a captured training step on a model of an accelerator: cycles and joules, layer by layer.",
        epilog="Start with: jouletrace traces; jouletrace hardware; "
        "jouletrace run resnet20-cifar10-b32 --hardware eftrain-zcu102",
    )
    parser.add_argument("--version", action="version", version=f"jouletrace {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, compare, validate, calibrate, diff, capture, browse, cache):
        module.add(commands)
    return parser
