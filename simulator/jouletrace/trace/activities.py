"""What belongs to a training and is no step: loading and augmenting batches, evaluation passes, idle updates.

Each activity is a trace of its own, so that it is checked, mapped and priced like any step. What it leaves behind
has the role buffer, because an activity has no step that could read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from jouletrace.errors import UsageError
from jouletrace.trace.check import check
from jouletrace.trace.graph import STATE_ROLES, successors
from jouletrace.trace.model import Copy, Elementwise, Norm, Op, Rng, Tensor, Trace, Update
from jouletrace.trace.prune import prune
from jouletrace.trace.run import Activity, Run

__all__ = [
    "AUGMENTATION", "EVALUATION", "LOADING", "augmentation", "forward_only", "loading", "training_run",
    "zero_gradient_update",
]  # fmt: skip

LOADING, AUGMENTATION, EVALUATION = "loading", "augmentation", "evaluation"
_PIXEL_BITS = 8  # of images as data sets store them


def training_run(
    trace: Trace,
    iterations: int = 64_000,
    *,
    load: bool = True,
    augment: bool = True,
    evaluate_every: int | None = None,
    evaluation_batches: int = 79,
) -> Run:
    """A training of equal steps, with the activities around them.

    Every iteration loads a batch (:func:`loading`) and, of images, augments it (:func:`augmentation`). After every
    ``evaluate_every`` iterations, if given, ``evaluation_batches`` batches go forward (:func:`forward_only`): 79
    batches of 128 are the 10,000 test images of CIFAR. Loading test images is not counted.

    Raises :class:`UsageError` for numbers below one.

    >>> from jouletrace.trace.io import load_trace
    >>> run = training_run(load_trace("resnet20-cifar10-b32"), 1000, evaluate_every=400)
    >>> [(activity.name, activity.times) for activity in run.activities]
    [('loading', 1000), ('augmentation', 1000), ('evaluation', 158)]
    """
    if found := [f"a training run needs {what} of at least 1 (got {n})"
                 for what, n in (("a number of iterations", iterations), ("an interval of evaluations", evaluate_every),
                                 ("a number of evaluation batches", evaluation_batches))
                 if n is not None and n < 1]:  # fmt: skip
        raise UsageError(found)
    activities: list[Activity] = []
    if load and (step := loading(trace)) is not None:
        activities.append(Activity(LOADING, step, iterations))
    if augment and (step := augmentation(trace)) is not None:
        activities.append(Activity(AUGMENTATION, step, iterations))
    if evaluate_every is not None:
        activities.append(Activity(EVALUATION, forward_only(trace), iterations // evaluate_every * evaluation_batches))
    return Run(trace.header.name, (trace,), np.zeros(iterations, dtype=np.int32), activities=tuple(activities))


def loading(trace: Trace) -> Trace | None:
    """The inputs of a batch arrive in memory, images as 8-bit codes; None for a step without inputs."""
    tensors = [replace(_stored(t), role="buffer") for t in _inputs(trace)]
    ops = [Op(f"{t.name}.load:forward", "forward", "", Copy("load", t.elements), (), (t.name,)) for t in tensors]
    return _activity(trace, LOADING, tensors, ops) if ops else None


def augmentation(trace: Trace) -> Trace | None:
    """Padded crops, mirrored or not, of a batch of 8-bit images, normalised to the width of the step's input.

    Two passes over the batch: a copy of the codes, then one product and one sum per value (K. He et al., Deep
    Residual Learning, CVPR 2016, section 4.2). None for a step without images.
    """
    tensors: list[Tensor] = []
    ops: list[Op] = []
    for image in filter(_is_image, _inputs(trace)):
        stored = _stored(image)
        crop = replace(stored, name=f"{image.name}.crop:forward.y", role="activation")
        tensors += (stored, crop, replace(image, role="buffer", saved=False))
        ops += (
            Op(f"{image.name}.crop:forward", "forward", "", Copy("crop", image.elements), (stored.name,), (crop.name,)),
            Op(f"{image.name}.normalise:forward", "forward", "", Elementwise("addcmul", image.elements),
               (crop.name,), (image.name,)),
        )  # fmt: skip
    return _activity(trace, AUGMENTATION, tensors, ops) if ops else None


def forward_only(trace: Trace) -> Trace:
    """The forward pass of a step as an evaluation runs it.

    Batch norm uses the given statistics and writes its result alone, dropout lets everything through, and nothing is
    saved for a backward pass. The loss stays.
    """
    dropped = {op.writes[0]: op.reads[0] for op in trace.ops if op.phase == "forward" and _drops_out(trace, op)}
    forward = (op for op in trace.ops if op.phase == "forward" and dropped.keys().isdisjoint(op.writes))
    through = dropped | {new: old for old, new in successors(trace).items() if isinstance(trace.writer[new].nest, Norm)}
    ops = tuple(_evaluated(op, through) for op in forward)
    written = {name for op in ops for name in op.writes}
    tensors = tuple(replace(t, saved=False) for t in trace.tensors if t.name in written or t.name not in trace.writer)
    header = replace(trace.header, name=f"{trace.header.name}-{EVALUATION}")
    return prune(Trace(header, tensors, ops, trace.extensions))


def zero_gradient_update(trace: Trace) -> Trace:
    """The update of a step alone, on gradients of zero: weights and states are read and written.

    The gradient is one zero, looked at in every shape.

    >>> from jouletrace.trace.io import load_trace
    >>> update = zero_gradient_update(load_trace("resnet20-cifar10-b32"))
    >>> len(update.ops), update.macs, update.ops[1].reads
    (66, 0, ('conv1.weight', 'zero', 'conv1.weight.momentum_buffer'))
    """
    zero = Tensor("zero", (1,), 32, "fp", "gradient")
    updates = [op for op in trace.ops if isinstance(op.nest, Update)]
    written = {name for op in updates for name in op.writes}
    ops = [Op("zero:update", "update", "", Copy("zeros", 1), (), (zero.name,))]
    for op in updates:
        weight, _, *states = zip(op.reads, trace.elements_read(op), strict=True)
        reads = (weight, (zero.name, 1), *(s for s in states if s[0] in written or s[0] not in trace.writer))
        ops.append(replace(
            op, reads=tuple(name for name, _ in reads), after=(), gate=None, read_bits=(),
            read_elements=tuple(n for _, n in reads) if op.read_elements else (),
        ))  # fmt: skip
    given = (t for t in trace.tensors if t.name in written or (t.role in STATE_ROLES and t.name not in trace.writer))
    tensors = (zero, *(replace(t, saved=False) for t in given))
    header = replace(trace.header, name=f"{trace.header.name}-zero-gradient", loss="")
    step = prune(Trace(header, tensors, tuple(ops)))
    check(step)
    return step


def _drops_out(trace: Trace, op: Op) -> bool:
    """Is this the product of an activation and a random mask?"""
    if not isinstance(op.nest, Elementwise) or op.nest.function != "mul" or len(op.reads) != 2:
        return False
    mask = trace.writer.get(op.reads[1])
    return mask is not None and isinstance(mask.nest, Rng)


def _evaluated(op: Op, through: dict[str, str]) -> Op:
    def source(name: str) -> str:
        while name in through:
            name = through[name]
        return name

    results = 1 if isinstance(op.nest, Norm) else len(op.writes)
    return replace(op, reads=tuple(map(source, op.reads)), writes=op.writes[:results],
                   write_elements=op.write_elements[:results])  # fmt: skip


def _inputs(trace: Trace) -> Iterator[Tensor]:
    return (t for t in trace.tensors if t.role == "input")


def _is_image(tensor: Tensor) -> bool:
    return tensor.format != "int" and len(tensor.shape) == 4


def _stored(tensor: Tensor) -> Tensor:
    """An input as the data set holds it."""
    if not _is_image(tensor):
        return replace(tensor, saved=False)
    return replace(tensor, name=f"{tensor.name}.stored", bits=_PIXEL_BITS, format="int", saved=False)


def _activity(trace: Trace, name: str, tensors: list[Tensor], ops: list[Op]) -> Trace:
    header = replace(trace.header, name=f"{trace.header.name}-{name}", loss="", optimizer="")
    step = Trace(header, tuple(tensors), tuple(ops))
    check(step)
    return step
