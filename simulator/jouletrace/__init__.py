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
    from jouletrace.capture.torch import capture_recipe
    from jouletrace.capture.zoo import zoo
    from jouletrace.hardware.load import list_hardware, load_hardware
    from jouletrace.hardware.spec import Hardware
    from jouletrace.replay import reproduce, simulate
    from jouletrace.result import Result, load_result
    from jouletrace.trace.io import list_traces, load_trace, write_trace
    from jouletrace.trace.model import Trace

__all__ = [
    "MODEL_VERSION",
    "Hardware",
    "JouletraceError",
    "Result",
    "Trace",
    "__version__",
    "capture_onnx",
    "capture_recipe",
    "list_hardware",
    "list_traces",
    "load_hardware",
    "load_result",
    "load_trace",
    "reproduce",
    "simulate",
    "write_trace",
    "zoo",
]

# Where a public name lives; its module is imported on first use, so that importing the package costs nothing.
_HOME = {
    "Hardware": "hardware.spec",
    "Result": "result",
    "Trace": "trace.model",
    "capture_onnx": "capture.onnx",
    "capture_recipe": "capture.torch",
    "list_hardware": "hardware.load",
    "list_traces": "trace.io",
    "load_hardware": "hardware.load",
    "load_result": "result",
    "load_trace": "trace.io",
    "reproduce": "replay",
    "simulate": "replay",
    "write_trace": "trace.io",
    "zoo": "capture.zoo",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
