"""Shipped traces come from their recipes, byte for byte, in every process and in bounded time and memory."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

from jouletrace.capture.torch import capture_recipe  # noqa: E402
from jouletrace.resources import folder  # noqa: E402
from jouletrace.trace.io import digest, list_traces, load_trace  # noqa: E402

SHIPPED = yaml.safe_load((folder("workloads") / "shipped.yaml").read_text())
RUN = """
import json, resource, time
from pathlib import Path
import torch
from jouletrace.capture.torch import capture_recipe
from jouletrace.trace.io import digest
begin = time.process_time()
capture_recipe("workloads/resnet_cifar.py:resnet74", 128)
seconds = time.process_time() - begin
small = digest(capture_recipe("workloads/lstm.py:lstm2", 4))
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if Path("/proc/self/status").exists():  # the figure above begins with that of the process that started this one
    peak_kib = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(json.dumps([small, seconds, peak_kib]))
"""


@pytest.fixture(scope="module")
def elsewhere() -> tuple[str, float, int]:
    """A fresh process with another hash seed: digest of a small capture; CPU seconds and peak KiB of ResNet-74.

    Importing PyTorch is not counted among the seconds, but in the memory.
    """
    source = str(Path(sys.modules["jouletrace"].__file__).parents[1])
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, check=True
    )
    return tuple(json.loads(done.stdout))


def test_every_shipped_trace_has_a_recipe_and_the_other_way_round() -> None:
    assert sorted(SHIPPED) == list(list_traces())
    assert all(name.endswith(f"-b{made['batch']}") for name, made in SHIPPED.items())
    assert sum(path.stat().st_size for path in folder("traces").glob("*.jsonl.gz")) < 3_000_000


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_table_of_recipes_tells_macs_and_parameters(name: str) -> None:
    trace = load_trace(name)
    table = (folder("workloads") / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in table if f"`{name}`" in line)
    macs = sum(op.macs for op in trace.ops if op.phase == "forward")
    parameters = sum(t.elements for t in trace.tensors if t.role == "param" and t.name not in trace.writer)
    assert row.endswith(f"| {macs // trace.header.batch:,} | {parameters:,} |")
    assert f"`{SHIPPED[name]['recipe']}`" in row


@pytest.mark.parametrize(
    "name", ["resnet20-cifar10-b32", "mobilenetv2-cifar10-b128", "alexnet-eftrain-b4", "gpt-char-b8"]
)
def test_a_shipped_trace_is_what_its_recipe_gives(name: str) -> None:
    shipped = load_trace(name)
    made = capture_recipe(f"workloads/{SHIPPED[name]['recipe']}", SHIPPED[name]["batch"], name)
    if dict(shipped.header.producer)["framework_version"] != torch.__version__.split("+")[0]:
        made = replace(made, header=replace(made.header, producer=shipped.header.producer))
    assert made == shipped
    assert digest(made) == digest(shipped)


def test_bytes_do_not_depend_on_process_or_hash_seed(elsewhere: tuple[str, float, int]) -> None:
    assert digest(capture_recipe("workloads/lstm.py:lstm2", 4)) == elsewhere[0]


def test_resnet74_takes_seconds_and_megabytes(elsewhere: tuple[str, float, int]) -> None:
    _, seconds, peak_kib = elsewhere
    assert seconds < 5
    assert peak_kib < 600 * 1024
