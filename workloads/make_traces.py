"""Captures the shipped traces again: ``python workloads/make_traces.py [name ...]``.

Needs PyTorch. The files come out byte for byte as they are in traces/ unless a recipe, the capture or
the version of PyTorch has changed.
"""

import sys
from pathlib import Path

import yaml

from jouletrace.capture.torch import capture_recipe
from jouletrace.trace.io import write_trace

HERE = Path(__file__).resolve().parent


def main(names: list[str]) -> None:
    shipped = yaml.safe_load((HERE / "shipped.yaml").read_text(encoding="utf-8"))
    for name in names or shipped:
        made = shipped[name]
        trace = capture_recipe(f"{HERE / made['recipe']}", made["batch"], name)
        path = HERE.parent / "traces" / f"{name}.jsonl.gz"
        write_trace(trace, path)
        print(f"{name}: {len(trace.ops)} ops, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
