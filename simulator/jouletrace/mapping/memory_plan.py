"""Does a step fit the board's DRAM, and if not, what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jouletrace.errors import MappingError, TraceError
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.remembered import Seen, remembered
from jouletrace.trace.batch import with_batch
from jouletrace.trace.lifetimes import Peak, peak_memory
from jouletrace.trace.micro_batch import micro_batched
from jouletrace.trace.model import Trace
from jouletrace.units import show_bytes

__all__ = ["MemoryPlan", "largest_micro_batch", "plan_memory", "stored_peak"]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a step needs of DRAM at its peak, during which op, and what the board has."""

    peak_bytes: int
    peak_op: str
    capacity_bytes: int

    @property
    def overflow_bytes(self) -> int:
        """What does not fit; 0 if everything does."""
        return max(0, self.peak_bytes - self.capacity_bytes)


def plan_memory(trace: Trace, hardware: Hardware, *, allow_overflow: bool = False) -> MemoryPlan:
    """The memory of a step on this hardware.

    Raises MappingError if it does not fit the board and overflow is not allowed: with both sizes, and the
    largest micro-batch that would fit, if any.
    """
    peak = stored_peak(trace, hardware)
    plan = MemoryPlan(peak.size_bytes, peak.op or "", hardware.board.dram_bytes)
    if plan.overflow_bytes and not allow_overflow:
        size = largest_micro_batch(trace, hardware)
        cure = "no micro-batch is small enough" if size is None else f"use --micro-batch {size}"
        raise MappingError(
            f"{trace.header.name} needs {show_bytes(plan.peak_bytes)} of DRAM (most during "
            f"{plan.peak_op!r}), and board {hardware.board.name!r} has {show_bytes(plan.capacity_bytes)}; "
            f"{cure}, take another board, or use --allow-dram-overflow"
        )
    return plan


def stored_peak(trace: Trace, hardware: Hardware) -> Peak:
    """The peak of :func:`jouletrace.trace.lifetimes.peak_memory`, elements padded to words of the datapath.

    What fusion keeps on chip is counted too, as memory is allotted to every tensor.
    """
    return _stored_peak(trace, Seen(hardware.word_bits, hardware))


@remembered(16)
def _stored_peak(trace: Trace, seen: Seen) -> Peak:
    padded = {t.name: bits for t in trace.tensors if (bits := seen.hardware.storage_bits(t.bits)) != t.bits}
    tensors = (replace(t, bits=padded[t.name]) if t.name in padded else t for t in trace.tensors)
    return peak_memory(replace(trace, tensors=tuple(tensors)) if padded else trace)


def largest_micro_batch(trace: Trace, hardware: Hardware) -> int | None:
    """The largest micro-batch with which the step fits the board; None if none does, or it cannot be cut."""
    batch, capacity_bytes = trace.header.batch, hardware.board.dram_bytes
    sizes = [n for n in range(batch - 1, 0, -1) if batch % n == 0]
    try:
        if stored_peak(with_batch(trace, 1), hardware).size_bytes > capacity_bytes:
            return None
        peaks = ((n, stored_peak(micro_batched(trace, n), hardware)) for n in sizes)
        return next((n for n, peak in peaks if peak.size_bytes <= capacity_bytes), None)
    except TraceError:
        return None
