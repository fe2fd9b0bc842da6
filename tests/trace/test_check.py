"""Every rule of validity: a valid step passes, and each way to break it is told by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from jouletrace.errors import TraceError
from jouletrace.testing import traces
from jouletrace.trace.check import check, findings, problems
from jouletrace.trace.model import (
    Attention,
    Cell,
    Conv,
    Copy,
    Elementwise,
    Gate,
    Gather,
    Gemm,
    Header,
    Loss,
    Nest,
    Norm,
    Op,
    Phase,
    Pool,
    Reduce,
    Rng,
    Role,
    Scatter,
    Softmax,
    Sync,
    Tensor,
    Trace,
    Update,
)

from .test_io import small_step


@given(traces(gates=True))
def test_generated_steps_are_valid(trace: Trace) -> None:
    check(trace)
    assert problems(trace) == []


def test_all_problems_are_raised_together() -> None:
    trace = small_step()
    broken = replace(trace, tensors=tuple(replace(t, bits=0) for t in trace.tensors))
    with pytest.raises(TraceError) as caught:
        check(broken)
    assert len(caught.value.problems) >= len(trace.tensors)


def test_findings_know_their_place() -> None:
    trace = small_step()
    broken = replace(trace, ops=(trace.ops[0], replace(trace.ops[1], after=("nobody",)), *trace.ops[2:]))
    assert [(f.kind, f.index) for f in findings(broken)] == [("op", 1)]


# -- one change to a valid step, one sentence


def with_op(trace: Trace, name: str, /, **changes: object) -> Trace:
    return replace(trace, ops=tuple(replace(op, **changes) if op.name == name else op for op in trace.ops))


def with_tensor(trace: Trace, name: str, /, **changes: object) -> Trace:
    return replace(trace, tensors=tuple(replace(t, **changes) if t.name == name else t for t in trace.tensors))


def without_tensor(trace: Trace, name: str) -> Trace:
    return replace(trace, tensors=tuple(t for t in trace.tensors if t.name != name))


def moved_last(trace: Trace, name: str) -> Trace:
    return replace(trace, ops=(*(op for op in trace.ops if op.name != name), trace.op[name]))


def another_update(trace: Trace) -> Trace:
    """A second update of conv.weight, from the same old version."""
    first = trace.op["conv.weight:update"]
    names = tuple(f"second.{name}" for name in first.writes)
    new = tuple(replace(trace.tensor[old], name=name) for old, name in zip(first.writes, names, strict=True))
    second = replace(first, name="second:update", writes=names)
    return replace(trace, tensors=(*trace.tensors, *new), ops=(*trace.ops, second))


CONV, RELU, UPDATE = "conv.conv:forward", "relu.relu:forward", "conv.weight:update"

BROKEN: list[tuple[Callable[[Trace], Trace], str]] = [
    (lambda t: without_tensor(t, "images"), f"Op {CONV!r} reads 'images', which is no tensor of this trace."),
    (lambda t: without_tensor(t, f"{CONV}.y"), f"Op {CONV!r} writes '{CONV}.y', which is no tensor of this trace."),
    (lambda t: with_tensor(t, "images", role="activation"),
     f"Op {CONV!r} reads 'images', which no op writes and which is not an input, parameter, state or buffer."),
    (lambda t: moved_last(t, RELU),
     f"Op 'fc.gemm:forward' reads '{RELU}.y', which is written only later, by op {RELU!r}."),
    (lambda t: with_op(t, RELU, reads=(f"{RELU}.y",)), f"Op {RELU!r} reads '{RELU}.y', which it writes itself."),
    (lambda t: with_op(t, RELU, writes=(f"{CONV}.y",)),
     f"Op {RELU!r} writes '{CONV}.y', which op {CONV!r} has written already."),
    (lambda t: with_op(t, RELU, writes=(f"{RELU}.y",) * 2), f"Op {RELU!r} writes '{RELU}.y' twice."),
    (lambda t: replace(t, ops=(*t.ops, t.ops[0])), f"Op {CONV!r} stands twice in the trace."),
    (lambda t: replace(t, tensors=(*t.tensors, t.tensors[0])), "Tensor 'images' stands twice in the trace."),
    (lambda t: with_op(t, RELU, name=""), "Op '' has a name of 0 characters; 1 to 256 are allowed."),
    (lambda t: with_op(t, RELU, layer="x" * 300), f"Op {RELU!r} has a layer name of 300 characters; 256 are allowed."),
    (lambda t: with_op(t, RELU, after=("nobody",)),
     f"Op {RELU!r} names in its 'after' 'nobody', which is no op of this trace."),
    (lambda t: with_op(t, RELU, after=(RELU,)), f"Op {RELU!r} names in its 'after' {RELU!r}, which is no earlier op."),
    (lambda t: with_op(t, RELU, gate=Gate("block", "b", UPDATE)),
     f"Op {RELU!r} is gated by {UPDATE!r}, which is no earlier op."),
    (lambda t: with_op(t, RELU, gate=Gate("block", "")),
     f"Op {RELU!r} has a gate whose name has 0 characters; 1 to 256 are allowed."),
    (lambda t: with_op(t, RELU, read_elements=(1, 2)), f"Op {RELU!r} has 2 read_elements for 1 reads."),
    (lambda t: with_op(t, RELU, read_elements=(65,)),
     f"Op {RELU!r} touches 65 elements of 'bn.batch:forward.y', which has 64."),
    (lambda t: with_op(t, RELU, phase="sideways"),
     f"Op {RELU!r}: phase: must be one of forward, backward_data, backward_weight, update (got 'sideways')."),
    (lambda t: with_op(t, RELU, nest=Elementwise("relu", True)),
     f"Op {RELU!r}: nest.elements: must be an integer (got True)."),
    (lambda t: with_op(t, RELU, name="re\nlu"),
     "Op 're\\nlu': name: must hold printable characters only (got 're\\nlu')."),
    (lambda t: with_tensor(t, "images", bits=32.0), "Tensor 'images': bits: must be an integer (got 32.0)."),
    (lambda t: with_tensor(t, "images", bits=1025),
     "Tensor 'images' has 1025 bits per element; 1 to 1024 are allowed."),
    (lambda t: with_tensor(t, "images", density=(2, 1)),
     "Tensor 'images' has the density 2/1; it has to lie between 0 and 1."),
    (lambda t: replace(t, header=replace(t.header, batch=0)), "The batch of the trace is 0; it has to be at least 1."),
    (lambda t: replace(t, header=replace(t.header, name="")), "The trace has an empty name."),
    (lambda t: replace(t, extensions=(("batch", "1"),)), "The extension 'batch' of the header stands there twice."),
    (lambda t: replace(t, extensions=(("zone", "{ }"),)), "The extension 'zone' of the header is not canonical JSON."),
    (lambda t: replace(t, tensors=(*t.tensors, Tensor("spare", (2,), 32, "fp", "input"))),
     "Tensor 'spare' of role input is read by no op and is no final value of the step; prune the trace."),
    (another_update, f"Op 'second:update' updates 'conv.weight', which op {UPDATE!r} updates already; a parameter has "
     "one final version."),
    (lambda t: with_tensor(t, f"{RELU}.y", role="param"),
     f"Op {RELU!r} writes '{RELU}.y' of role param; only update ops write parameters, each one."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BROKEN, ids=range(len(BROKEN)))
def test_broken_step_is_told(change: Callable[[Trace], Trace], sentence: str) -> None:
    assert sentence in problems(change(small_step()))


# -- operands against nests: (shape, role) of what is read and written


Operands = list[tuple[int, Role]]


def one_op(
    nest: Nest, reads: Operands, writes: Operands, phase: Phase = "forward",
    touched: tuple[int, ...] = (), computed: tuple[int, ...] = (),
) -> list[str]:  # fmt: skip
    """The problems of an op on operands of so many elements, between ops that make them and one that uses them."""
    operands = tuple(Tensor(f"r{i}", (n,), 32, "fp", role) for i, (n, role) in enumerate(reads))
    results = tuple(Tensor(f"w{i}", (n,), 32, "fp", role) for i, (n, role) in enumerate(writes))
    made = tuple(t.name for t in operands if t.role not in ("param", "optimizer_state", "buffer"))
    source = Op("source", "forward", "", Sync("host"), (), made)
    op = Op("op", phase, "", nest, tuple(t.name for t in operands), tuple(t.name for t in results),
            read_elements=touched, write_elements=computed)  # fmt: skip
    sink = Op("sink", "update", "", Sync("host"), tuple(t.name for t in results), ())
    return problems(Trace(Header("one", 1), (*operands, *results), (source, op, sink)))


# (nest, phase, reads, writes) that agree. A letter stands for the role.
ROLES: dict[str, Role] = {"x": "activation", "w": "param", "g": "gradient", "d": "weight_gradient", "b": "buffer",
                          "m": "mask", "s": "optimizer_state"}  # fmt: skip
CONV2 = Conv(2, 3, 4, 5, 6, 3, 3, 2, 5, 6, padding=(1, 1, 1, 1))  # y: 2·6·5·6 = 360, x: 2·8·5·6 = 480, w: 6·4·9 = 216
GEMM = Gemm(2, 3, 4, 5)  # a: 30, b: 40, c: 24
POOL = Pool("max", 2, 3, 4, 4, 2, 2, 2, 2, (2, 2))  # x: 96, y: 24
AGREE: list[tuple[Nest, Phase, str, str]] = [
    (CONV2, "forward", "480x 216w", "360x"),
    (CONV2, "forward", "480x 216w 6w", "360x"),
    (CONV2, "forward", "480x 216w 480m", "360x"),
    (replace(CONV2, role="backward_data"), "backward_data", "360g 216w", "480g"),
    (replace(CONV2, role="backward_data"), "forward", "360x 216w 8w", "480x"),
    (replace(CONV2, role="backward_weight"), "backward_weight", "360g 480x", "216d"),
    (GEMM, "forward", "30x 40w", "24x"),
    (GEMM, "forward", "30x 20w 4w", "24x"),
    (GEMM, "forward", "15x 40w", "24x"),
    (GEMM, "backward_data", "1g 40w", "24g"),
    (Attention(2, 3, 4, 5), "forward", "30x 40x 40x", "30x"),
    (Elementwise("add", 12), "forward", "12x 3w", "12x"),
    (Norm("batch", 24, 4), "forward", "24x 4w 4w 4b 4b", "24x 4b 4b 4b 4b"),
    (Norm("batch", 24, 4), "backward_data", "24g 24x 4w 4b 4b", "24g 4d 4d"),
    (Norm("batch", 24, 4), "backward_data", "24g 24x 4w 4b 4b", "4d 4d"),
    (POOL, "forward", "96x", "24x 24m"),
    (POOL, "backward_data", "24g 24m", "96g"),
    (Reduce("sum", 24, 4), "backward_weight", "24g", "4d"),
    (Reduce("norm", 30, 1), "update", "10d 20d", "1b"),
    (Softmax(3, 4), "forward", "12x", "12x"),
    (Softmax(3, 4), "backward_data", "12g 12x", "12g"),
    (Loss("cross_entropy", 3, 4), "forward", "12x 3x", "1b 12x"),
    (Loss("cross_entropy", 3, 4), "backward_data", "12x 3x", "12g"),
    (Gather(3, 4), "forward", "40w 3x", "12x"),
    (Scatter(3, 4), "backward_weight", "12g 3x", "40d"),
    (Copy("cat", 12), "forward", "4x 8x", "12x"),
    (Cell("lstm", 2, 3), "forward", "24x 24x 6x", "6x 6x 24x"),
    (Cell("lstm", 2, 3), "backward_data", "6g 6x 24x", "24g 6g"),
    (Update("adam", 6, 12), "update", "6w 6d 6s 6s", "6w 6s 6s"),
    (Rng(6), "forward", "", "6m"),
]  # fmt: skip


def operands(words: str) -> Operands:
    return [(int(word[:-1]), ROLES[word[-1]]) for word in words.split()]


@pytest.mark.parametrize(("nest", "phase", "reads", "writes"), AGREE)
def test_operands_that_agree(nest: Nest, phase: Phase, reads: str, writes: str) -> None:
    assert one_op(nest, operands(reads), operands(writes), phase) == []


@pytest.mark.parametrize(("nest", "phase", "reads", "writes"), AGREE)
def test_first_result_of_another_size_is_told(nest: Nest, phase: Phase, reads: str, writes: str) -> None:
    (size, role), *others = operands(writes)
    found = one_op(nest, operands(reads), [(size + 1, role), *others], phase)
    # Free are what a cell adds to the gradient of its gates, the value of a loss, a norm without gx.
    free = {(Cell, "gradient"), (Loss, "buffer"), (Norm, "weight_gradient")}
    assert found or (type(nest), role) in free


EXACT = [a for a in AGREE if isinstance(a[0], Conv | Gemm | Attention | Pool | Softmax | Update) and "1g" not in a[2]]


@pytest.mark.parametrize(("nest", "phase", "reads", "writes"), EXACT)
def test_operand_of_another_size_is_told(nest: Nest, phase: Phase, reads: str, writes: str) -> None:
    sizes = operands(reads)
    for index in range(2 if isinstance(nest, Conv | Gemm | Update) else 1):
        size, role = sizes[index]
        other = [*sizes[:index], (size + 1, role), *sizes[index + 1 :]]
        assert one_op(nest, other, operands(writes), phase), f"operand {index}"


@pytest.mark.parametrize(("nest", "phase", "reads", "writes"), AGREE)
def test_missing_operand_is_told(nest: Nest, phase: Phase, reads: str, writes: str) -> None:
    needed = {Conv: 2, Gemm: 2, Attention: 3, Gather: 2, Scatter: 2, Update: 2, Cell: 2}.get(type(nest), 1)
    needed = 0 if isinstance(nest, Rng | Copy) else needed
    if needed:
        assert one_op(nest, operands(reads)[: needed - 1], operands(writes), phase)
    assert one_op(nest, operands(reads), [], phase)


@pytest.mark.parametrize(
    ("nest", "phase", "reads", "writes", "sentence"),
    [
        (CONV2, "forward", "480x 216w 6w 5x", "360x", "reads 'r3' as an operand too many"),
        (CONV2, "forward", "480x 216w 7w", "360x", "reads 7 elements of 'r2' as its bias; its nest asks for 6"),
        (replace(CONV2, OY=4), "forward", "480x 216w", "288x",
         "has OY = 4, but 5 follow from IY = 5, padding 1 + 1, a kernel of 3, dilation 1 and stride 1"),
        (replace(CONV2, dilation=(1, 9)), "forward", "480x 216w", "360x", "has OX = 6, but 0 follow"),
        (Norm("layer", 24, 5), "forward", "24x", "24x", "has 5 groups, which do not divide its 24 elements"),
        (Reduce("sum", 4, 24), "forward", "4x", "24x", "reduces 4 elements to 24, which are more"),
        (Update("sgd", 6, 2), "forward", "6w 6d", "6w", "the phase of an update op is 'update'"),
        (Update("sgd", 6, 2), "update", "6d 6w", "6w",
         "reads 'r0' of role weight_gradient where its parameter is expected"),
        (Update("adam", 6, 2), "update", "6w 6d 6s", "6w", "reads optimizer states of other shapes than it writes"),
        (Elementwise("relu", 0), "forward", "6x", "6x", "has elements = 0; it has to be at least 1"),
        (Pool("max", 1, 1, 2, 2, 1, 1, 2, 2, (0, 1)), "forward", "4x", "1x", "has stride = (0, 1)"),
        (Gather(3, 4), "forward", "40w 4x", "12x", "reads no indices of 3 elements"),
    ],
)  # fmt: skip
def test_disagreement_is_told(nest: Nest, phase: Phase, reads: str, writes: str, sentence: str) -> None:
    found = one_op(nest, operands(reads), operands(writes), phase)
    assert any(sentence in problem for problem in found), found


def test_by_products_and_decisions_are_not_dead() -> None:
    """An unread result is fine beside one that is read, and so is what a decision wrote."""
    x, y, stray = (Tensor(n, (4,), 32, "fp", "activation") for n in ("x", "y", "stray"))
    decide = Op("decide", "forward", "", Sync("decision"), ("x",), ("stray",))
    gate = Gate("layer", "relu", "decide")
    gated = Op("relu", "forward", "", Elementwise("relu", 4), ("x",), ("y",), gate=gate)
    sink = Op("sink", "update", "", Sync("host"), ("y",), ())
    trace = Trace(Header("t", 1), (replace(x, role="input"), y, stray), (decide, gated, sink))
    assert problems(trace) == []
    assert problems(replace(trace, ops=(decide, replace(gated, gate=None), sink))) == [
        "Tensor 'stray' of role activation is read by no op and is no final value of the step; prune the trace."
    ]
