"""Arguments and texts that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

__all__ = ["Commands", "Progress", "add_overrides", "natural", "progress_bar"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # pyright: ignore[reportPrivateUsage]


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """``--set``, wherever a command reads a hardware spec."""
    parser.add_argument(
        "--set", dest="overrides", metavar="PATH=VALUE", action="append", default=[],
        help="change one value of the spec, as in --set dram.bandwidth='1 GB/s'; may be repeated",
    )  # fmt: skip


def natural(text: str) -> int:
    """A number of things to show, as an argument: a whole number from 0 on."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return number


class Progress(Protocol):
    """Moves a bar to a share of the work, and may say what is done now."""

    def __call__(self, done: int, total: int, what: str = "") -> None: ...


@contextmanager
def progress_bar(title: str) -> Generator[Progress | None]:
    """A callback (done, total, what is done now) that moves a bar on standard error; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)

        def move(done: int, total: int, what: str = "") -> None:
            bars.update(task, completed=done, total=total, description=f"{title} {what}".rstrip())

        yield move
