"""What the backward ops of each kind of forward op look like: their kind, their loops, whose gradient they compute."""

from __future__ import annotations

from jouletrace.trace.model import (
    Attention,
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Loss,
    Norm,
    Op,
    Pool,
    Reduce,
    Scatter,
    Softmax,
)

__all__ = ["fits", "in_order", "passes"]


def in_order(op: Op) -> bool:
    """Gradients that read the same of the forward pass come in the order of the operands."""
    return isinstance(op.nest, Elementwise) and op.nest.function not in ("mul", "sub")


def passes(op: Op, index: int) -> bool:
    """Is the gradient of this operand that of the result, or a view of it?"""
    match op.nest:
        case Elementwise(function="add" | "accumulate"):
            return True
        case Elementwise(function="sub"):
            return index == 0
        case Copy() | Reduce(function="sum"):
            return True
        case Conv() | Gemm():
            return index == 2
        case _:
            return False


def fits(op: Op, backward: Op) -> bool:
    """Is this the kind, and has it the loops, of a gradient of ``op``?"""
    forward, nest = op.nest, backward.nest
    if isinstance(nest, Reduce):
        return nest.function == "sum" and len(backward.reads) == 1 and not isinstance(forward, Loss)
    match forward:
        case Conv() | Gemm():
            return isinstance(nest, type(forward)) and nest.macs == forward.macs
        case Attention():
            return isinstance(nest, Attention)
        case Elementwise():
            return nest == Elementwise(f"{forward.function}_backward", forward.elements)
        case Reduce():
            return nest == Elementwise(f"{forward.function}_backward", forward.elements)
        case Norm():  # with given statistics: one factor per channel
            return nest in (forward, Elementwise("mul", forward.elements))
        case Pool() | Softmax() | Loss() | Cell():
            return nest == forward
        case Gather():
            return nest == Scatter(forward.rows, forward.width)
        case Copy():
            return isinstance(nest, Copy)
        case _:
            return False
