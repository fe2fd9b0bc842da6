"""jouletrace: where the energy of training a network goes.

Data moves one way: a trace (what a training step does) is mapped to a program for an accelerator, an engine
counts cycles and accesses, a ledger prices them. In five lines:

>>> import jouletrace
>>> trace = jouletrace.load_trace("resnet20-cifar10-b32")
>>> hardware = jouletrace.load_hardware("eftrain-zcu102")
>>> result = jouletrace.simulate(trace, hardware, only="layer1.0.conv1:forward")
>>> result.ops[0].name
'layer1.0.conv1:forward'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from jouletrace.errors import JouletraceError
from jouletrace.version import MODEL_VERSION, __version__

if TYPE_CHECKING:
    from jouletrace.capture.onnx import capture_onnx
    from jouletrace.capture.recorder import record
    from jouletrace.capture.torch import capture_recipe
    from jouletrace.capture.zoo import zoo
    from jouletrace.comparison import Comparison, compare
    from jouletrace.hardware.load import list_hardware, load_hardware
    from jouletrace.hardware.spec import Hardware
    from jouletrace.replay.many import simulate_many
    from jouletrace.replay.run import simulate_run
    from jouletrace.replay.step import reproduce, simulate
    from jouletrace.result import Result, RunResult, load_result
    from jouletrace.strategies.base import Strategy, apply
    from jouletrace.strategies.registry import strategy
    from jouletrace.trace.activities import training_run
    from jouletrace.trace.decisions import Decisions, read_decisions
    from jouletrace.trace.io import list_traces, load_trace, write_trace
    from jouletrace.trace.model import Trace
    from jouletrace.trace.run import Run

__all__ = [
    "MODEL_VERSION",
    "Comparison",
    "Decisions",
    "Hardware",
    "JouletraceError",
    "Result",
    "Run",
    "RunResult",
    "Strategy",
    "Trace",
    "__version__",
    "apply",
    "capture_onnx",
    "capture_recipe",
    "compare",
    "list_hardware",
    "list_traces",
    "load_hardware",
    "load_result",
    "load_trace",
    "read_decisions",
    "record",
    "reproduce",
    "simulate",
    "simulate_many",
    "simulate_run",
    "strategy",
    "training_run",
    "write_trace",
    "zoo",
]

# Where a public name lives; its module is imported on first use, so that importing the package costs nothing.
_HOME = {
    "Comparison": "comparison",
    "Decisions": "trace.decisions",
    "Hardware": "hardware.spec",
    "Result": "result",
    "Run": "trace.run",
    "RunResult": "result",
    "Strategy": "strategies.base",
    "Trace": "trace.model",
    "apply": "strategies.base",
    "capture_onnx": "capture.onnx",
    "capture_recipe": "capture.torch",
    "compare": "comparison",
    "list_hardware": "hardware.load",
    "list_traces": "trace.io",
    "load_hardware": "hardware.load",
    "load_result": "result",
    "load_trace": "trace.io",
    "read_decisions": "trace.decisions",
    "record": "capture.recorder",
    "reproduce": "replay.step",
    "simulate": "replay.step",
    "simulate_many": "replay.many",
    "simulate_run": "replay.run",
    "strategy": "strategies.registry",
    "training_run": "trace.activities",
    "write_trace": "trace.io",
    "zoo": "capture.zoo",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
