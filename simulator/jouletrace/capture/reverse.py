"""A training step from a forward pass: backward by reverse-mode rules, then one update per parameter.

The rules (:mod:`jouletrace.capture.rules`) say, for one forward op, which ops compute the gradients of what
it read; :class:`jouletrace.capture.tape.Tape` adds up the gradients of a tensor that is read more than once.
This module walks the forward ops backwards and appends the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from jouletrace.capture.forward import Array
from jouletrace.capture.rules import RULES
from jouletrace.capture.tape import Tape
from jouletrace.errors import CaptureError, UsageError, did_you_mean
from jouletrace.trace.model import Tensor, Trace, Update
from jouletrace.trace.prune import prune

__all__ = ["OPTIMIZERS", "Optimizer", "train_step"]


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An update rule: its states by their names in PyTorch, and operations per element.

    Every addition, multiplication, division and root counts once; ``decay`` is what weight decay adds.
    """

    states: tuple[str, ...]
    operations: int
    decay: int


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType({
    "sgd": Optimizer((), 2, 2),
    "sgd_momentum": Optimizer(("momentum_buffer",), 4, 2),
    "adam": Optimizer(("exp_avg", "exp_avg_sq"), 13, 2),
    "adamw": Optimizer(("exp_avg", "exp_avg_sq"), 13, 1),
})  # fmt: skip


def train_step(forward: Trace, optimizer: str = "sgd_momentum", weight_decay: bool = True) -> Trace:
    """The whole step whose forward pass is ``forward``: ops of all phases, saved tensors marked.

    ``forward`` has ops of phase ``forward`` only and at least one ``loss``. Raises CaptureError for a trace
    without loss or an op without rule, UsageError for an unknown optimizer.

    >>> from jouletrace.capture.zoo import zoo_forward
    >>> step = train_step(zoo_forward("lenet10-cifar10", batch=4), "sgd")
    >>> [op.name for op in step.ops if op.layer == "fc2" and op.phase != "update"]
    ['fc2:forward', 'fc2:backward_data', 'fc2:backward_weight', 'fc2.sum:backward_weight']
    """
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"Optimizer {optimizer!r} is not known{did_you_mean(optimizer, tuple(OPTIMIZERS))}; "
                         f"there are {', '.join(OPTIMIZERS)}.")  # fmt: skip
    _check(forward)
    tape = Tape(forward)
    _backward(tape)
    _update(tape, optimizer, weight_decay)
    return _finish(tape, f"{optimizer}, weight decay" if weight_decay else optimizer)


def _check(forward: Trace) -> None:
    name = forward.header.name
    if any(op.phase != "forward" for op in forward.ops):
        raise CaptureError(f"{name}: not all ops are of phase forward; this trace is a whole step already.")
    if not any(op.kind == "loss" for op in forward.ops):
        raise CaptureError(f"{name}: no op computes a loss; end the forward pass with one.")
    missing = [f"{op.name}: no reverse rule for ops of kind {op.kind!r}; write it as smaller ops."
               for op in forward.ops if op.kind not in RULES]  # fmt: skip
    if missing:
        raise CaptureError(missing)


def _backward(tape: Tape) -> None:
    """Apply the rule of every forward op that a parameter reaches, last op first."""
    for op in reversed(tape.forward.ops):
        if any(tape.needs(op, i) for i in range(len(op.reads))):
            RULES[op.kind](tape, op)


def _update(tape: Tape, optimizer: str, weight_decay: bool) -> None:
    """One update per parameter that has a gradient, in the order of the parameters."""
    rule = OPTIMIZERS[optimizer]
    flops = rule.operations + rule.decay * weight_decay
    for parameter in [t for t in tape.forward.tensors if t.role == "param"]:
        gradient = tape.gradient(parameter.name)
        if gradient is None:
            continue
        name, shape = f"{parameter.name}:update", parameter.shape
        old = [Tensor(f"{parameter.name}.{s}", shape, 32, "fp", "optimizer_state") for s in rule.states]
        new = [replace(parameter, name=f"{name}.param"),
               *(replace(t, name=f"{name}.{s}") for t, s in zip(old, rule.states, strict=True))]  # fmt: skip
        tape.tensors.update({t.name: t for t in (*old, *new)})
        layer = parameter.name.rpartition(".")[0]
        nest = Update(optimizer, parameter.elements, flops)
        reads = (Array(parameter.name, shape), gradient, *(Array(t.name, shape) for t in old))
        tape.append(name, "update", layer, nest, reads, tuple(t.name for t in new))


def _finish(tape: Tape, optimizer: str) -> Trace:
    """The step without work in vain; whatever backward reads of the forward pass is marked as saved."""
    saved = {t for op in tape.ops if op.phase.startswith("backward") for t in op.reads}
    saved &= {t.name for t in tape.forward.tensors}
    tensors = tuple(replace(t, saved=True) if t.name in saved else t for t in tape.tensors.values())
    header = replace(tape.forward.header, optimizer=optimizer)
    return prune(Trace(header, tensors, tuple(tape.ops), tape.forward.extensions))
