"""Results: the value (model), its file (contract), and what every number in it means (statistics)."""

from jouletrace.result.model import Execution, OpResult, Options, Result, TraceInput, load_result

__all__ = ["Execution", "OpResult", "Options", "Result", "TraceInput", "load_result"]
