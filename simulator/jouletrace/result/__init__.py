"""Results: the value (model), its file (contract), and what every number in it means (statistics)."""

from jouletrace.result.model import Execution, OpResult, Options, Result, TraceInput, load_result
from jouletrace.result.run import RunResult

__all__ = ["Execution", "OpResult", "Options", "Result", "RunResult", "TraceInput", "load_result"]
