"""The reverse-mode rules: for every kind of forward op, the ops that compute the gradients of its operands.

A rule reads the gradient of what its op wrote (``tape.gradient``), appends ops (``tape.emit``) and hands the
gradients on (``tape.give``). What a rule reads of the forward pass is what that op has to save. A rule that
finds no gradient does nothing: no later op depends on what its op wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import cast

from jouletrace.capture.forward import Array
from jouletrace.capture.tape import Tape
from jouletrace.errors import CaptureError, did_you_mean
from jouletrace.trace.model import (
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Loss,
    Op,
    Pool,
    Reduce,
    Scatter,
    Softmax,
)  # fmt: skip

__all__ = ["ELEMENTWISE", "RULES"]

# What the backward of an elementwise function reads besides the incoming gradient, for each of its operands:
# its operands (a, b, c), its result (y), both, or nothing. "=": the gradient passes through and no op is
# needed. "-": no gradient.
ELEMENTWISE: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "add": ("=", "="), "sub": ("=", ""), "mul": ("b", "a"), "div": ("b", "ab"), "max": ("ab", "ab"),
    "min": ("ab", "ab"), "pow": ("ab", "ab"), "prelu": ("ab", "ab"), "where": ("-", "a", "a"),
    **dict.fromkeys(("relu", "sigmoid", "tanh", "exp", "sqrt", "reciprocal"), ("y",)),
    **dict.fromkeys(("relu6", "clamp", "leaky_relu", "elu", "selu", "celu", "softplus", "gelu"), ("a",)),
    **dict.fromkeys(("silu", "hardswish", "hardsigmoid", "mish"), ("a",)),
    **dict.fromkeys(("erf", "log", "abs", "sin", "cos"), ("a",)),
    **dict.fromkeys(("neg", "cast"), ("",)),
    **dict.fromkeys(("sign", "floor", "ceil", "round"), ("-",)),
})  # fmt: skip


def _conv(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is None:
        return
    nest = cast(Conv, op.nest)
    x, w = tape.operand(op, 0), tape.operand(op, 1)
    if tape.needs(op, 0):
        tape.give(op, 0, tape.emit(op.layer, replace(nest, role="backward_data"), (gy, w), x.shape, x.tensor))
    if tape.needs(op, 1):
        tape.give(op, 1, tape.emit(op.layer, replace(nest, role="backward_weight"), (gy, x), w.shape, w.tensor))
    tape.give(op, 2, gy)


def _gemm(tape: Tape, op: Op) -> None:
    gc = tape.gradient(op.writes[0])
    if gc is None:
        return
    sides = (_gemm_first, _gemm_second)
    batched = tape.tensors[op.reads[1]].role != "param"
    for side in sides[::-1] if batched else sides:  # PyTorch's order, so that names agree
        side(tape, op, cast(Gemm, op.nest), gc)
    tape.give(op, 2, gc)


def _gemm_first(tape: Tape, op: Op, n: Gemm, gc: Array) -> None:
    if tape.needs(op, 0):
        a, b = tape.operand(op, 0), tape.operand(op, 1)
        if n.ta:
            nest, reads = Gemm(n.B, n.K, n.M, n.N, ta=n.tb, tb=True), (b, gc)
        else:
            nest, reads = Gemm(n.B, n.M, n.K, n.N, tb=not n.tb), (gc, b)
        tape.give(op, 0, tape.emit(op.layer, nest, reads, _full(a, n.B, n.M, n.K), a.tensor))


def _gemm_second(tape: Tape, op: Op, n: Gemm, gc: Array) -> None:
    if tape.needs(op, 1):
        a, b = tape.operand(op, 0), tape.operand(op, 1)
        if n.tb:
            nest, reads = Gemm(n.B, n.N, n.K, n.M, ta=True, tb=n.ta), (gc, a)
        else:
            nest, reads = Gemm(n.B, n.K, n.N, n.M, ta=not n.ta), (a, gc)
        tape.give(op, 1, tape.emit(op.layer, nest, reads, _full(b, n.B, n.N, n.K), b.tensor))


def _full(operand: Array, batch: int, rows: int, columns: int) -> tuple[int, ...]:
    """The shape of a gradient that a batched product computes: per batch even if the operand is shared."""
    whole = batch * rows * columns == operand.elements and len(operand.shape) > 1
    return operand.shape if whole else (batch, rows, columns)[batch == 1 :]


def _elementwise(tape: Tape, op: Op) -> None:
    """One pass over the elements of the result gives the gradient of each operand that needs one."""
    gy = tape.gradient(op.writes[0])
    if gy is None:
        return
    nest = cast(Elementwise, op.nest)
    backward = Elementwise(f"{nest.function}_backward", nest.elements)
    operands = tape.operands(op)
    for i, reads in enumerate(_reads_of_backward(tape, op, nest.function)):
        if reads == "=":
            tape.give(op, i, gy)
        elif reads != "-" and tape.needs(op, i):
            kept = [tape.result(op) if letter == "y" else operands[_LETTERS.index(letter)] for letter in reads]
            tape.give(op, i, tape.emit(op.layer, backward, (gy, *kept), gy.shape, operands[i].tensor))


_LETTERS = "abcdefghijklmnopqrstuvwx"  # of operands; y is the result


def _reads_of_backward(tape: Tape, op: Op, function: str) -> tuple[str, ...]:
    """The entry of the table; a second operand that is a number is none, and nothing of it is read."""
    arity = len(op.reads)
    known = ELEMENTWISE.get(function)
    if known is not None and arity == 1:
        return (known[0].replace("b", ""),)
    if known is not None and arity <= len(known):
        return known[:arity]
    if tape.approximate:
        return (_LETTERS[:arity],) * arity
    raise CaptureError(f"{op.name}: no reverse rule for the elementwise function {function!r} of {arity} "
                       f"operand(s){did_you_mean(function, tuple(ELEMENTWISE))}.")  # fmt: skip


def _norm(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is None:
        return
    labels = ("gx", "gweight", "gbias")
    wanted = [i for i in range(3) if tape.needs(op, i)]
    operands = [tape.operand(op, i) for i in wanted]
    statistics = (tape.result(op, i) for i in range(1, min(3, len(op.writes))))
    weight = (tape.operand(op, 1),) if tape.needs(op, 1) else ()
    reads = (gy, tape.operand(op, 0), *statistics, *weight)
    writes = [(labels[i], o.shape, o.tensor) for i, o in zip(wanted, operands, strict=True)]
    for i, gradient in zip(wanted, tape.emit_many(op.layer, op.nest, reads, writes, "backward_data"), strict=True):
        tape.give(op, i, gradient)


def _pool(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is None:
        return
    nest = cast(Pool, op.nest)
    x = tape.operand(op, 0)
    indices = (tape.result(op, 1),) if nest.function == "max" else ()
    tape.give(op, 0, tape.emit(op.layer, nest, (gy, *indices), x.shape, x.tensor))


def _reduce(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is None:
        return
    nest = cast(Reduce, op.nest)
    x = tape.operand(op, 0)
    if nest.function not in ("sum", "mean"):
        raise CaptureError(f"{op.name}: no reverse rule for the reduction {nest.function!r}; sum and mean have one.")
    if nest.function == "mean":
        gy = tape.emit(op.layer, Elementwise("mean_backward", x.elements), (gy,), x.shape, x.tensor)
    tape.give(op, 0, gy.view(*x.shape))  # of a sum: the same value for every summand


def _softmax(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is not None:
        x = tape.operand(op, 0)
        tape.give(op, 0, tape.emit(op.layer, cast(Softmax, op.nest), (gy, tape.result(op)), x.shape, x.tensor))


def _loss(tape: Tape, op: Op) -> None:
    nest = cast(Loss, op.nest)
    x = tape.operand(op, 0)
    # Cross-entropy keeps its log-probabilities; other losses look at the prediction again.
    kept = tape.result(op, 1) if len(op.writes) > 1 else x
    tape.give(op, 0, tape.emit(op.layer, nest, (kept, tape.operand(op, 1)), x.shape, x.tensor))


def _gather(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is not None and tape.needs(op, 0):
        nest = cast(Gather, op.nest)
        table = tape.tensors[op.reads[0]]
        scatter = Scatter(nest.rows, nest.width)
        gradient = tape.emit(op.layer, scatter, (gy, tape.operand(op, 1)), table.shape, table.name)
        tape.give_tensor(op, table.name, gradient)


def _copy(tape: Tape, op: Op) -> None:
    gy = tape.gradient(op.writes[0])
    if gy is None:
        return
    nest = cast(Copy, op.nest)
    operands = tape.operands(op)
    x = operands[0]
    if nest.function in ("cat", "stack"):
        _joined(tape, op, gy, operands)
    elif nest.function == "pad":
        inner = _inner(tape, x, gy.shape)
        tape.give(op, 0, tape.emit(op.layer, Copy("pad", x.elements), (gy.view(*inner),), inner, x.tensor))
    elif nest.elements > x.elements:
        tape.give(op, 0, gy)  # repeated: summed on the way
    elif len(x.shape) == 1 or x.shape == gy.shape:
        tape.give(op, 0, gy)  # another layout of the same array: any layout of the gradient will do
    else:
        tape.give(op, 0, tape.emit(op.layer, nest, (gy,), x.shape, x.tensor))


def _joined(tape: Tape, op: Op, gy: Array, operands: tuple[Array, ...]) -> None:
    """The gradient of a piece is a view. A parameter (a class token) stands in it once per sample."""
    own = [tape.tensors[x.tensor].role == "param" for x in operands]
    once = sum(x.elements for x, is_own in zip(operands, own, strict=True) if not is_own)
    shared = sum(x.elements for x in operands) - once
    for i, x in enumerate(operands):
        repeats = (gy.elements - once) // shared if own[i] else 1
        tape.give(op, i, gy.view(*x.shape) if repeats == 1 else gy.view(repeats, *x.shape))


def _inner(tape: Tape, x: Array, padded: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what was padded: that of the operand, or of the slice of it that was read."""
    source = tape.tensors[x.tensor].shape
    cut = tuple(map(min, source, padded))
    return cut if len(source) == len(padded) and prod(cut) == x.elements else x.shape


def _cell(tape: Tape, op: Op) -> None:
    gradients = [g for name in op.writes for g in tape.given(name)]  # the cell adds them up
    if not gradients:
        return
    nest = cast(Cell, op.nest)
    first, second, state = (tape.operand(op, i) for i in range(3))
    kept = tuple(tape.result(op, i) for i in range(2 if nest.function == "lstm" else 1, len(op.writes)))
    if nest.function == "lstm":  # both products get the gradient of their sum
        labels, reads = {0: "gx", 2: "gc"}, (*gradients, state, *kept)
    else:
        labels, reads = {0: "gx", 1: "gh", 2: "gstate"}, (*gradients, second, state, *kept)
    wanted = [i for i in labels if tape.needs(op, i)]
    operands = [(first, second, state)[i] for i in wanted]
    writes = [(labels[i], o.shape, o.tensor) for i, o in zip(wanted, operands, strict=True)]
    written = tape.emit_many(op.layer, nest, reads, writes, "backward_data")
    for i, gradient in zip(wanted, written, strict=True):
        tape.give(op, i, gradient)
    if nest.function == "lstm":
        tape.give(op, 1, written[0])


def _none(tape: Tape, op: Op) -> None:
    """Random values and barriers have no gradient."""


RULES: Mapping[str, Callable[[Tape, Op], None]] = MappingProxyType({
    "conv": _conv, "gemm": _gemm, "elementwise": _elementwise, "norm": _norm, "pool": _pool,
    "reduce": _reduce, "softmax": _softmax, "loss": _loss, "gather": _gather, "copy": _copy, "cell": _cell,
    "rng": _none, "sync": _none,
})  # fmt: skip
