"""Primitive operations: the tables are complete for what capture emits, and say what the formulas say."""

from __future__ import annotations

import pytest

from jouletrace.capture import aten, rules
from jouletrace.capture.reverse import OPTIMIZERS
from jouletrace.capture.zoo import ZOO, zoo
from jouletrace.hardware.energy import PRIMITIVES as PRICED
from jouletrace.mapping.primitives import (
    CELLS,
    ELEMENTWISE,
    LOSSES,
    NORMS,
    PRIMITIVES,
    REDUCTIONS,
    elementwise_work,
    together,
    update_work,
    work,
)
from jouletrace.mapping.sweeps import Sweep, sweeps
from jouletrace.trace.model import (
    Copy,
    Elementwise,
    Loss,
    Nest,
    Norm,
    Phase,
    Pool,
    Reduce,
    Softmax,
    Tensor,
)

from .vector_bench import one, tensor


def only(nest: Nest, reads: list[Tensor], writes: list[Tensor], phase: Phase = "forward") -> Sweep:
    """The one sweep of an op."""
    trace = one(nest, reads, writes, phase)
    (sweep,) = sweeps(trace.ops[0], trace, 1024)
    return sweep


# -- completeness


def functions() -> set[str]:
    """Every elementwise function that recording or importing a step can give, and its backward."""
    recorded = {
        name.replace("_prelu_kernel", "prelu")
        .replace("_weight_norm_interface", "weight_norm")
        .removesuffix("_forward")
        for name in aten.POINTWISE
    }
    forward = recorded | set(rules.ELEMENTWISE)
    with_gradient = {name for name, saves in rules.ELEMENTWISE.items() if saves is not None}
    with_gradient |= {"sub", "mul", "div", "max", "min", "prelu", "where", "mean"}
    return forward | {f"{name}_backward" for name in with_gradient} | {"cast", "accumulate", "relu6"}


@pytest.mark.parametrize("function", sorted(functions()))
def test_every_function_of_a_capture_is_known(function: str) -> None:
    found = elementwise_work(function)
    assert found is not None
    assert all(n > 0 for _, n in found)


def test_every_loss_norm_and_reduction_of_a_capture_is_known() -> None:
    losses = "cross_entropy nll mse l1 smooth_l1 huber bce bce_with_logits soft_margin"
    assert set(losses.split()) <= set(LOSSES)
    assert {(name, way) for name in ("batch", "layer", "group", "rms") for way in (True, False)} <= set(NORMS)
    reductions = "sum mean max min variance norm logsumexp cumsum product any all"
    assert set(reductions.split()) <= set(REDUCTIONS)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_vector_op_of_the_built_in_networks_has_sweeps(name: str) -> None:
    trace = zoo(name, batch=2)
    for op in trace.ops:
        if op.kind not in ("conv", "gemm", "attention"):
            assert sweeps(op, trace, 1024), op.name


def test_only_priced_primitives_are_used() -> None:
    works = [*ELEMENTWISE.values(), *CELLS.values()]
    works += [w for several in (*LOSSES.values(), *NORMS.values(), *REDUCTIONS.values()) for w in several]
    used = {primitive for each in works for primitive, _ in each}
    assert used | {"random"} == set(PRIMITIVES) == set(PRICED)


# -- formulas


def test_activations_by_their_formulas() -> None:
    assert elementwise_work("relu") == work(compare=1)
    assert elementwise_work("relu6") == work(compare=2)
    sigmoid = work(exp=1, add=1, div=1)  # 1 / (1 + exp(-x))
    assert elementwise_work("sigmoid") == sigmoid
    assert elementwise_work("silu") == together(sigmoid, work(mul=1))  # x sigmoid(x)
    # x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) as x sigmoid(x (a + b x^2)): three products and a sum inside
    assert elementwise_work("gelu") == together(sigmoid, work(mul=4, add=1))
    assert elementwise_work("sigmoid_backward") == work(mul=2, add=1)  # gy s (1 - s)


def test_a_backward_without_a_row_is_the_function_and_a_product() -> None:
    assert elementwise_work("mish_backward") == together(ELEMENTWISE["mish"], work(mul=1))
    assert elementwise_work("nothing_backward") is None


def test_lstm_is_three_sigmoids_and_two_tanh() -> None:
    sigmoid, tanh = ELEMENTWISE["sigmoid"], ELEMENTWISE["tanh"]
    activations = together(together(together(sigmoid, sigmoid), sigmoid), together(tanh, tanh))
    # four gates add two products; c' = f c + i g; h = o tanh(c')
    assert CELLS["lstm", True] == together(activations, work(add=5, mul=3))


@pytest.mark.parametrize(("rule", "operations"), [(n, rule.operations) for n, rule in OPTIMIZERS.items()])
def test_an_update_has_as_many_primitives_as_its_rule_has_operations(rule: str, operations: int) -> None:
    found = dict(update_work(rule, operations))
    assert sum(found.values()) == operations
    assert ("sqrt" in found) == rule.startswith("adam")


# -- sweeps: what is moved how often


def test_batch_norm_sweeps_twice_and_loads_vectors_once() -> None:
    x, w, y = tensor("x", 2, 4, 3), tensor("w", 4, role="param"), tensor("y", 2, 4, 3)
    trace = one(Norm("batch", 24, 4), [x, w], [y, tensor("mean", 4)])
    first, second = sweeps(trace.ops[0], trace, 1024)
    assert [o.tensor for o in first.loads] == ["x", "w"]
    assert [o.tensor for o in second.loads] == ["x"]
    assert first.stores == ()
    assert [o.tensor for o in second.stores] == ["y", "mean"]
    assert dict(first.set_work)["sqrt"] == dict(first.set_work)["div"] == 1
    assert first.sets == 4


def test_batch_norm_with_given_statistics_sweeps_once() -> None:
    sweep = only(Norm("batch", 24, 4), [tensor("x", 24)], [tensor("y", 24)])
    assert sweep.work == work(mul=1, add=1)


def test_a_first_layer_needs_statistics_only() -> None:
    """The backward of a batch norm whose input needs no gradient does not look at x a second time."""
    reads = [tensor("gy", 24), tensor("x", 24)]
    sweep = only(Norm("batch", 24, 4), reads, [tensor("gw", 4), tensor("gb", 4)], "backward_data")
    assert sweep.work == NORMS["batch", False][0]


@pytest.mark.parametrize(("chunk", "expected"), [(8, 1), (7, 2)])
def test_rows_longer_than_a_chunk_are_swept_twice(chunk: int, expected: int) -> None:
    for nest in (Norm("layer", 32, 4), Softmax(4, 8), Loss("cross_entropy", 4, 8)):
        trace = one(nest, [tensor("x", 4, 8)], [tensor("y", 4, 8)])
        assert len(sweeps(trace.ops[0], trace, chunk)) == expected, nest


def test_pool_windows() -> None:
    big, small = tensor("big", 1, 1, 4, 4), tensor("small", 1, 1, 2, 2)
    nest = Pool("average", 1, 1, 4, 4, 2, 2, 2, 2, (2, 2))
    assert only(nest, [big], [small]).work == work(add=4, mul=1)
    assert only(nest, [small], [big], "backward_data").work == work(mul=1)  # windows do not overlap
    nest = Pool("max", 1, 1, 5, 5, 2, 2, 3, 3, (2, 2))
    assert only(nest, [tensor("x", 25)], [small]).work == work(compare=9)


def test_pieces_are_copied_and_reduced_one_after_the_other() -> None:
    pieces = [tensor("a", 10), tensor("b", 20)]
    trace = one(Copy("cat", 30), pieces, [tensor("y", 30)])
    copies = sweeps(trace.ops[0], trace, 8)
    assert [(s.loads[0].tensor, s.stores[0].words) for s in copies] == [("a", 10), ("b", 20)]
    trace = one(Reduce("norm", 30, 1), pieces, [tensor("total")])
    first, last = sweeps(trace.ops[0], trace, 8)
    assert (first.elements, last.elements) == (10, 20)
    assert (first.stores, first.sets, last.sets) == ((), 0, 1)


def test_two_views_of_one_tensor_are_loaded_as_one() -> None:
    x = tensor("x", 30)
    trace = one(Elementwise("mul", 10), [x, x], [tensor("y", 10)], read_elements=(10, 10))
    (sweep,) = sweeps(trace.ops[0], trace, 8)
    assert [(o.tensor, o.words) for o in sweep.loads] == [("x", 20)]
    whole = one(Elementwise("mul", 30), [x, x], [tensor("y", 30)])
    (sweep,) = sweeps(whole.ops[0], whole, 8)
    assert [(o.tensor, o.words) for o in sweep.loads] == [("x", 30)]
