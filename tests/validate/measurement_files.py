"""Small measurement files for tests."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

HEAD = """\
    schema_version: 1
    system: Test bench
    citation: A. Author, A Paper, 2020
    boundary: everything
    builds:
      zcu102: {hardware: eftrain-zcu102}
    workloads:
      lenet: {trace: lenet10-cifar10-b128, batch: 2, names: {C1: conv1}}
    defaults: {build: zcu102, workload: lenet, quantity: cycles, unit: cycles, kind: cycle counter, certainty: seen,
               where: Table 1, tolerance: 5 %}
    rows:
"""


def write(folder: Path, *rows: str, head: str = HEAD, name: str = "bench.yaml") -> Path:
    """A file with these rows; returns its folder."""
    text = dedent(head) + "".join(f"  - {{{row}}}\n" for row in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder
