"""Arguments and texts that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["add_hardware", "progress_bar"]


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """``--hardware`` and ``--set``, wherever a command needs an accelerator."""
    parser.add_argument("--hardware", metavar="SPEC", help="a shipped accelerator (see 'jouletrace hardware') or a YAML file")
    parser.add_argument(
        "--set", dest="overrides", metavar="PATH=VALUE", action="append", default=[],
        help="change one value of the spec, as in --set dram.bandwidth='1 GB/s'; may be repeated",
    )  # fmt: skip


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A callback (done, total) that moves a bar on standard error; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
