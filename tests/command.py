"""Runs the command line in a process of its own and measures it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCES = str(Path(__file__).parents[1] / "simulator")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    cpu_seconds: float
    peak_bytes: int


def jouletrace(*arguments: str, cwd: Path | None = None, **environment: str) -> Outcome:
    """The outcome of ``jouletrace ARGUMENTS``, output to files, which are no terminals."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "jouletrace", *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd,
            env={**os.environ, "PYTHONPATH": SOURCES, **environment},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(process.returncode, texts[0], texts[1], seconds, usage.ru_maxrss * 1024)
