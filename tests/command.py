"""Runs the command line in a process of its own and measures it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# A child's maximum resident size starts with that of the process that made it, so it reads its own high-water mark.
RUN = """
import runpy, sys
try:
    runpy.run_module("jouletrace", run_name="__main__", alter_sys=True)
finally:
    status = open("/proc/self/status").read()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    open({peak!r}, "w").write(peak)
"""
SOURCES = str(Path(__file__).parents[1] / "simulator")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    cpu_seconds: float
    peak_bytes: int


def jouletrace(*arguments: str, cwd: Path | None = None, **environment: str) -> Outcome:
    """The outcome of ``jouletrace ARGUMENTS``, output to files, which are no terminals."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile("r") as peak:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN.format(peak=peak.name), *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd,
            env={**os.environ, "PYTHONPATH": SOURCES, **environment},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        peak_kib = int(peak.read() or 0)
    seconds = usage.ru_utime + usage.ru_stime
    return Outcome(process.returncode, texts[0], texts[1], seconds, peak_kib * 1024)
