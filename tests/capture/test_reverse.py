"""The reverse-mode rules: what each forward op becomes in backward, and laws of whole steps."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.capture.forward import Array, Forward
from jouletrace.capture.reverse import OPTIMIZERS, train_step
from jouletrace.capture.zoo import zoo_forward
from jouletrace.errors import CaptureError, UsageError
from jouletrace.trace.check import check
from jouletrace.trace.model import (
    Attention,
    Conv,
    Copy,
    Elementwise,
    Gemm,
    Op,
    Reduce,
    Scatter,
    Sync,
    Trace,
    Update,
)

N = 4


def backward(step: Trace, layer: str) -> list[Op]:
    return [op for op in step.ops if op.layer == layer and op.phase.startswith("backward")]


def finish(f: Forward, x: Array) -> Trace:
    """Classify ``x``, turn it into a step, and check the step."""
    f.cross_entropy(f.linear("fc", x.reshape(N, x.elements // N), 3))
    step = train_step(f.trace())
    check(step)
    return step


def maps(f: Forward, channels: int = 6, size: int = 8) -> Array:
    """Feature maps that need a gradient."""
    return f.conv("stem", f.input("x", (N, 2, size, size)), channels, 3, pad=1)


# -- products


def test_convolution_has_no_gradient_of_the_data_and_one_reduction_per_bias() -> None:
    f = Forward("net", N)
    step = finish(f, f.conv("conv", f.input("x", (N, 4, 9, 9)), 8, 3, 2, pad=1, groups=2, bias=True))
    weight, bias = backward(step, "conv")
    assert isinstance(weight.nest, Conv)
    assert weight.nest.role == "backward_weight"
    assert weight.reads == ("fc:backward_data.gx", "x")
    assert bias.nest == Reduce("sum", N * 8 * 5 * 5, 8)
    assert (weight.phase, bias.phase) == ("backward_weight", "backward_weight")
    assert not step.tensor["conv.weight"].saved  # only a gradient of the data reads it
    assert step.tensor["x"].saved


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_matrix_products_keep_their_shapes_in_all_four_layouts(ta: bool, tb: bool) -> None:
    """C = op(A)·op(B): the gradients have the shapes of A and B as they lie, and the MACs of the product."""
    f = Forward("net", N)
    B, M, K, P = N, 5, 7, 3
    a = f.linear("a", f.input("xa", (B, 4)), M * K).reshape(B, *((K, M) if ta else (M, K)))
    b = f.linear("b", f.input("xb", (B, 4)), K * P).reshape(B, *((P, K) if tb else (K, P)))
    c = f.emit("product", Gemm(B, M, P, K, ta, tb), (a, b), (B, M, P))
    step = finish(f, c)
    products = [op for op in backward(step, "product") if op.kind == "gemm"]
    assert [op.phase for op in products] == ["backward_data"] * 2
    for op in products:
        assert isinstance(op.nest, Gemm)
        assert op.macs == B * M * K * P
        first, second = (step.tensor[t] for t in op.reads)
        # The two that are multiplied fit the nest, whichever way round they stand.
        assert {first.elements, second.elements} == {B * op.nest.M * op.nest.K, B * op.nest.K * op.nest.N}
    sizes = [(B * M * K), (B * K * P)]
    assert sorted(step.tensor[op.writes[0]].elements for op in products) == sorted(sizes)


def test_a_dense_layer_multiplies_by_the_transposed_weight() -> None:
    f = Forward("net", N)
    step = finish(f, f.linear("fc2", f.relu("relu", f.linear("fc1", f.input("x", (N, 5)), 7)), 6))
    data, weight, bias = backward(step, "fc2")
    assert data.nest == Gemm(1, N, 7, 6)
    assert weight.nest == Gemm(1, 6, 7, N, ta=True)
    assert weight.reads == ("fc:backward_data.gx", "relu.relu:forward.y")
    assert bias.nest == Reduce("sum", N * 6, 6)
    assert [op.name for op in backward(step, "fc1")] == ["fc1:backward_weight", "fc1.sum:backward_weight"]


# -- elementwise, sums and fan-out


def test_residual_sum_passes_its_gradient_on_and_the_fork_adds_up() -> None:
    f = Forward("net", N)
    x = maps(f)
    step = finish(f, f.add("block", x, f.conv("conv", x, 6, 3, pad=1)))
    assert backward(step, "block") == []
    fork = [op for op in step.ops if op.nest == Elementwise("accumulate", N * 6 * 64)]
    assert [op.reads for op in fork] == [("fc:backward_data.gx", "conv:backward_data.gx")]


@given(uses=st.integers(1, 6))
def test_k_uses_of_a_tensor_cost_k_minus_1_additions(uses: int) -> None:
    f = Forward("net", N)
    x = maps(f)
    total = x
    for i in range(uses):
        total = f.add("sum", total, f.relu(f"relu{i}", x)) if i else f.relu("relu0", x)
    step = finish(f, total)
    assert sum(op.name.count("accumulate") for op in step.ops) == uses - 1


def test_broadcast_parameter_gets_a_reduction_to_its_shape() -> None:
    f = Forward("net", N)
    position = f.parameter("position", (1, 6, 8, 8))
    step = finish(f, f.add("embed", maps(f), position))
    (reduction,) = backward(step, "embed")
    assert (reduction.nest, reduction.phase) == (Reduce("sum", N * 384, 384), "backward_weight")
    assert step.tensor[reduction.writes[0]].shape == (1, 6, 8, 8)


@pytest.mark.parametrize(
    ("function", "saved"),
    [("relu", {"act.relu:forward.y"}), ("gelu", {"stem:forward.y"}), ("relu6", {"stem:forward.y"}), ("neg", set())],
)
def test_activations_save_their_result_or_their_operand(function: str, saved: set[str]) -> None:
    f = Forward("net", N)
    step = finish(f, f.unary("act", function, maps(f)))
    (op,) = backward(step, "act")
    assert op.nest == Elementwise(f"{function}_backward", N * 384)
    assert set(op.reads[1:]) == saved
    assert all(step.tensor[t].saved for t in saved)


def test_products_of_two_tensors_save_the_other_one() -> None:
    f = Forward("net", N)
    x = maps(f)
    step = finish(f, f.binary("gate", "mul", x, f.unary("gate", "sigmoid", x)))
    reads = [op.reads for op in backward(step, "gate")]
    assert reads[0] == ("fc:backward_data.gx", "gate.sigmoid:forward.y")
    assert reads[1] == ("fc:backward_data.gx", "stem:forward.y")
    assert len(reads) == 4  # two products, the sigmoid, and one accumulation


def test_unknown_function_is_an_error_that_names_it() -> None:
    f = Forward("net", N)
    f.cross_entropy(f.linear("fc", f.unary("act", "geluu", maps(f)).reshape(N, 384), 3))
    with pytest.raises(CaptureError, match=r"act\.geluu:forward: no reverse rule .* did you mean 'gelu'"):
        train_step(f.trace())


# -- norms, pools, reductions, softmax


def test_batch_norm_reads_statistics_and_writes_three_gradients() -> None:
    f = Forward("net", N)
    step = finish(f, f.batch_norm("bn", maps(f)))
    forward, norm = step.op["bn.batch:forward"], step.op["bn.batch:backward_data"]
    assert [t.rpartition(".")[2] for t in forward.writes] == ["y", "mean", "invstd", "running_mean", "running_var"]
    assert norm.reads[1:] == ("stem:forward.y", *forward.writes[1:3], "bn.weight")
    assert [step.tensor[t].role for t in norm.writes] == ["gradient", "weight_gradient", "weight_gradient"]


def test_norm_of_the_data_has_gradients_of_its_parameters_only() -> None:
    f = Forward("net", N)
    step = finish(f, f.layer_norm("norm", f.input("x", (N, 10))))
    (norm,) = backward(step, "norm")
    assert norm.writes == ("norm.layer:backward_data.gweight", "norm.layer:backward_data.gbias")


def test_max_pool_reads_its_indices_and_average_pool_nothing() -> None:
    f = Forward("net", N)
    x = f.pool("avg", "average", f.pool("max", "max", maps(f), 2, 2), 2, 2)
    step = finish(f, x)
    indices = step.tensor["max.max:forward.indices"]
    assert (indices.role, indices.bits, indices.format, indices.saved) == ("mask", 64, "int", True)
    assert [len(backward(step, layer)[0].reads) for layer in ("avg", "max")] == [1, 2]
    assert not step.tensor["max.max:forward.y"].saved


@pytest.mark.parametrize(("function", "ops"), [("sum", []), ("mean", ["mean.mean_backward:backward_data"])])
def test_a_sum_spreads_its_gradient_without_work(function: str, ops: list[str]) -> None:
    f = Forward("net", N)
    x = f.relu("relu", maps(f))
    step = finish(f, f.reduce(function, function, x, (N, 6)))
    assert [op.name for op in backward(step, function)] == ops


def test_softmax_saves_its_result() -> None:
    f = Forward("net", N)
    step = finish(f, f.softmax("soft", maps(f)))
    (op,) = backward(step, "soft")
    assert op.reads == ("fc:backward_data.gx", "soft.softmax:forward.y")


# -- data movement


def test_parts_that_cover_a_tensor_are_put_together_by_one_copy() -> None:
    f = Forward("net", N)
    x = maps(f)
    halves = [f.relu(f"half{i}", x.view(N, 3, 8, 8)) for i in range(2)]
    step = finish(f, f.add("sum", *halves))
    joined = [op for op in step.ops if isinstance(op.nest, Copy)]
    assert [(op.nest, op.reads) for op in joined] == [
        (Copy("cat", N * 384), tuple(f"half{i}.relu_backward:backward_data.gx" for i in range(2)))
    ]


def test_gradient_of_a_slice_is_padded() -> None:
    f = Forward("net", N)
    step = finish(f, maps(f).view(N, 6))
    assert [op.nest for op in step.ops if op.kind == "copy"] == [Copy("pad", N * 384)]


def test_gradients_of_joined_pieces_are_views() -> None:
    f = Forward("net", N)
    token, x = f.parameter("token", (1, 1, 64)), maps(f)
    joined = f.copy("", "cat", [token, x.reshape(N, 6, 64)], (N, 7, 64))
    step = finish(f, f.relu("relu", joined))
    assert [op for op in step.ops if op.kind == "copy" and op.phase != "forward"] == []
    # Every sample has a copy of the token: N gradients of 64 values are added up.
    assert step.op["sum:backward_weight"].nest == Reduce("sum", N * 64, 64)
    assert step.op["sum:backward_weight"].read_elements == (N * 64,)
    assert step.op["stem:backward_weight"].read_elements == (N * 384, N * 128)


def test_embedding_scatters() -> None:
    f = Forward("net", N)
    x = f.embedding("words", f.input("tokens", (N, 5), 64, "int"), 1000, 16)
    step = finish(f, x)
    (scatter,) = backward(step, "words")
    assert (scatter.nest, scatter.phase) == (Scatter(N * 5, 16), "backward_weight")
    assert step.tensor[scatter.writes[0]].shape == (1000, 16)
    assert step.op["words.gather:forward"].read_elements == (N * 5 * 16, N * 5)


def test_dropout_multiplies_by_its_mask_again() -> None:
    f = Forward("net", N)
    step = finish(f, f.dropout("drop", maps(f)))
    (op,) = backward(step, "drop")
    assert op.reads[1] == "drop.random:forward.y"
    assert step.tensor[op.reads[1]].role == "mask"


# -- recurrent layers


@pytest.mark.parametrize(("function", "gates"), [("lstm", 4), ("gru", 3)])
def test_recurrent_layer_unrolled_over_its_steps(function: str, gates: int) -> None:
    T, H = 5, 6
    f = Forward("net", N)
    x = f.linear("embed", f.input("x", (T, N, 3)), 4)
    shapes = ((gates * H, 4), (gates * H, H), (gates * H,), (gates * H,))
    weights = [f.parameter(f"rnn.w{i}", shape) for i, shape in enumerate(shapes)]
    zeros = [f.buffer(f"rnn.{s}", (N, H)) for s in ("h", "c")][: 2 if function == "lstm" else 1]
    f.cross_entropy(f.linear("fc", f.recurrent("rnn", function, x, weights, zeros), 3))
    step = train_step(f.trace())
    check(step)
    number = Counter((op.kind, op.phase) for op in step.ops if op.layer == "rnn")
    assert number["cell", "forward"] == number["cell", "backward_data"] == T
    assert number["gemm", "forward"] == number["gemm", "backward_weight"] == 2 * T
    assert number["gemm", "backward_data"] == 2 * T - 1  # the first state is a constant
    assert number["elementwise", "backward_weight"] == 4 * (T - 1)
    assert number["elementwise", "backward_data"] == 0  # a cell adds the gradients of its state itself
    assert number["copy", "backward_data"] == 1  # the inputs of all steps


# -- optimizers and refusals


@pytest.mark.parametrize(
    ("name", "states", "operations"), [("sgd", 0, 4), ("sgd_momentum", 1, 6), ("adam", 2, 15), ("adamw", 2, 14)]
)
def test_one_update_per_parameter(name: str, states: int, operations: int) -> None:
    step = train_step(zoo_forward("lenet10-cifar10", 2), name)
    updates = [op for op in step.ops if op.kind == "update"]
    assert len(updates) == 3 + 2 * 2  # convolutions without bias, dense layers with one
    for op in updates:
        assert isinstance(op.nest, Update)
        assert (op.nest.rule, op.nest.flops_per_element) == (name, operations)
        assert len(op.reads) == 2 + states
        assert len(op.writes) == 1 + states
    assert OPTIMIZERS[name].decay + OPTIMIZERS[name].operations == operations


def test_parameters_without_gradient_are_not_updated() -> None:
    f = Forward("net", N)
    f.relu("dead", f.conv("unused", f.input("y", (N, 1, 4, 4)), 2, 3))
    step = finish(f, maps(f))
    assert "unused.weight:update" not in step.op
    assert not any(op.layer in ("dead", "unused") for op in step.ops)


def test_refusals() -> None:
    forward = zoo_forward("lenet10-cifar10", 2)
    with pytest.raises(UsageError, match="did you mean 'adamw'"):
        train_step(forward, "adamww")
    with pytest.raises(CaptureError, match="whole step already"):
        train_step(train_step(forward))
    with pytest.raises(CaptureError, match="no op computes a loss"):
        train_step(replace(forward, ops=forward.ops[:-1]))
    odd = Op("attn:forward", "forward", "attn", Attention(1, 2, 2, 4), (), ())
    with pytest.raises(CaptureError, match="attn:forward: no reverse rule for ops of kind 'attention'"):
        train_step(replace(forward, ops=(*forward.ops, odd)))


def test_barriers_and_random_values_have_no_gradient() -> None:
    forward = zoo_forward("lenet10-cifar10", 2)
    barrier = Op("wait:forward", "forward", "", Sync("barrier"), (), ())
    names = [op.name for op in train_step(forward).ops]
    assert [op.name for op in train_step(replace(forward, ops=(barrier, *forward.ops))).ops] == names


def test_operands_that_do_not_fit_are_refused_where_they_are_written() -> None:
    f = Forward("net", N)
    with pytest.raises(CaptureError, match="does not fit an input with 3 channels"):
        f.conv_with("c", f.input("x", (N, 3, 8, 8)), (f.parameter("w", (4, 5, 3, 3)),))
    with pytest.raises(CaptureError, match="do not broadcast"):
        f.add("add", f.input("a", (2, 3)), f.input("b", (2, 4)))
    with pytest.raises(CaptureError, match="cannot be looked at as"):
        f.input("z", (2, 3)).reshape(5)
    with pytest.raises(CaptureError, match="two tensors have this name"):
        f.input("z", (2, 3))


# -- a law over random networks


@st.composite
def networks(draw: st.DrawFn) -> tuple[Trace, Counter[str], int]:
    """A random graph of maps of one shape, how often each tensor's gradient is given, and the live MACs."""
    f = Forward("random", N)
    made = [maps(f, channels=4, size=4)]
    uses: Counter[str] = Counter()
    for i in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(("relu", "conv", "depthwise", "norm", "add", "mul")))
        a, b = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        match kind:
            case "relu":
                made.append(f.relu(f"relu{i}", a))
            case "norm":
                made.append(f.batch_norm(f"norm{i}", a))
            case "conv":
                made.append(f.conv(f"conv{i}", a, 4, 3, pad=1, bias=draw(st.booleans())))
            case "depthwise":
                made.append(f.conv(f"conv{i}", a, 4, 3, pad=1, groups=4))
            case _:
                made.append(f.binary(f"{kind}{i}", kind, a, b))
    x = made[-1]
    f.cross_entropy(f.linear("fc", x.reshape(N, x.elements // N), 3))
    live, macs = {x.tensor}, 0
    for op in reversed(f.ops):
        if live.intersection(op.writes):
            live.update(op.reads)
            uses.update(t for t in op.reads if f.tensors[t].role == "activation")
            macs += op.macs if op.layer != "stem" else 0
    return f.trace(), uses, macs


@given(networks())
def test_random_networks_differentiate_to_valid_steps(network: tuple[Trace, Counter[str], int]) -> None:
    """A dead convolution may stay in forward, where running statistics depend on it, but not in backward."""
    forward, uses, macs = network
    step = train_step(forward)
    check(step)
    accumulations = sum(op.name.count("accumulate") for op in step.ops)
    assert accumulations == sum(k - 1 for k in uses.values())
    for op in step.ops:
        if op.kind == "update":
            assert step.tensor[op.reads[1]].shape == step.tensor[op.reads[0]].shape
    for role in ("backward_data", "backward_weight"):
        nests = [op.nest for op in step.ops if isinstance(op.nest, Conv) and op.layer != "stem"]
        assert sum(nest.macs for nest in nests if nest.role == role) == macs
