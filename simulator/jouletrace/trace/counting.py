"""MACs, bit-operations and effective MACs of a step and of a training.

Of a training every executed iteration counts, and a unit that n of B samples ran counts n / B of its products.
What is not part of a training step (loading, evaluation) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from jouletrace.trace.model import PHASES, Attention, Conv, Gemm, Op, Phase, Trace
from jouletrace.trace.run import Run

__all__ = ["bit_operations", "bit_operations_of", "effective_macs", "macs", "macs_by_phase"]

FULL_WIDTH = 32


def bit_operations_of(trace: Trace, op: Op) -> int:
    """MACs of an op times the bits that it fetches of its two operands; 0 for kinds that do not multiply.

    Of fused attention, q kᵀ counts the bits of q and k, the product with v those of q and v.
    """
    if not isinstance(op.nest, Conv | Gemm | Attention):
        return 0
    first, second, *others = trace.bits_read(op)
    if isinstance(op.nest, Attention) and others:
        return op.macs // 2 * first * (second + others[0])
    return op.macs * first * second


def bit_operations(value: Trace | Run) -> int:
    """Σ MAC · b₁ · b₂ over all products.

    The unit in which precision schedules state their cost (Fu et al., CPT, ICLR 2021).

    >>> import jouletrace
    >>> step = jouletrace.load_trace("resnet20-cifar10-b32")
    >>> bit_operations(step) == step.macs * 32 * 32
    True
    """
    return _total(value, bit_operations_of)


def effective_macs(value: Trace | Run) -> Fraction:
    """Σ MAC · b₁ · b₂ / 32²: how many 32 × 32-bit MACs are as many bit-operations.

    The unit of Fu et al., FracTrain, NeurIPS 2020.
    """
    return Fraction(bit_operations(value), FULL_WIDTH**2)


def macs(value: Trace | Run) -> int:
    """All MACs, padded positions included."""
    return _total(value, lambda _, op: op.macs)


def macs_by_phase(value: Trace | Run) -> dict[Phase, int]:
    """MACs of each phase; all four are there."""
    return {phase: _total(value, lambda _, op, p=phase: op.macs if op.phase == p else 0) for phase in PHASES}


def _total(value: Trace | Run, count: Callable[[Trace, Op], int]) -> int:
    """The sum of a count over all ops that ran; of an op under a gate, its share of the samples."""
    if isinstance(value, Trace):
        return sum(count(value, op) for op in value.ops)
    total = Fraction(0)
    for index, trace in enumerate(value.steps):
        ran = value.step_of == index
        iterations = int(np.count_nonzero(ran))
        samples: list[int] = value.samples[ran].sum(axis=0, dtype=np.int64).tolist()
        shares = {unit: Fraction(n, value.batch) for unit, n in zip(value.units, samples, strict=True)}
        for op in trace.ops:
            gate = op.gate.name if op.gate is not None and op.gate.unit == "block" else None
            total += count(trace, op) * (iterations if gate is None else shares.get(gate, iterations))
    return int(total)
