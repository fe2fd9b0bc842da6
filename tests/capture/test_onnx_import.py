"""ONNX import: files written by hand, op by op."""

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the import of ONNX files needs the onnx package")

from onnx import NodeProto, TensorProto, helper

from jouletrace.capture.onnx import capture_onnx, onnx_forward
from jouletrace.errors import CaptureError
from jouletrace.trace.model import Conv, Copy, Elementwise, Gather, Gemm, Norm, Pool, Softmax, Trace

from .onnx_files import Shape, integers, model, number, residual_net, save, weight

node = helper.make_node


def forward(
    folder: Path, nodes: list[NodeProto], inputs: dict[str, Shape], weights: list[TensorProto], **options: object
) -> Trace:
    """The forward pass of a net in a file; importing it whole has to give a valid step."""
    path = save(folder, model(nodes, inputs, weights, **options))  # type: ignore[arg-type]
    capture_onnx(path)
    return onnx_forward(path)


def kinds(trace: Trace) -> list[str]:
    return [op.kind for op in trace.ops if op.kind != "loss"]


def counts(trace: Trace) -> Counter[tuple[str, str]]:
    return Counter((op.kind, op.phase) for op in trace.ops)


# -- a whole network


def test_residual_net(tmp_path: Path) -> None:
    step = capture_onnx(save(tmp_path, residual_net()), batch=4)
    assert (step.header.name, step.header.batch, step.header.loss) == ("net", 4, "cross_entropy")
    assert step.header.producer == (("tool", "jouletrace onnx"), ("exporter", "by hand"), ("opset", "17"))
    assert step.header.warnings == ("The file has no loss; a cross-entropy over output 'y' was added.",)
    assert counts(step) == {
        ("conv", "forward"): 2, ("conv", "backward_data"): 1, ("conv", "backward_weight"): 2,
        ("norm", "forward"): 1, ("norm", "backward_data"): 1,
        ("elementwise", "forward"): 2, ("elementwise", "backward_data"): 2,  # ReLU and the fork's sum
        ("pool", "forward"): 1, ("pool", "backward_data"): 1,
        ("gemm", "forward"): 1, ("gemm", "backward_data"): 1, ("gemm", "backward_weight"): 1,
        ("reduce", "backward_weight"): 1, ("loss", "forward"): 1, ("loss", "backward_data"): 1,
        ("update", "update"): 6,
    }  # fmt: skip
    stem, block = 16 * 4 * 4 * 27, 16 * 4 * 4 * 144
    assert sum(op.macs for op in step.ops if op.phase == "forward") == 4 * (stem + block + 160)
    assert step.op["block:backward_data"].nest == Conv(
        4, 16, 16, 4, 4, 3, 3, 1, 4, 4, (1, 1), (1, 1, 1, 1), (1, 1), "backward_data"
    )
    assert [op.layer for op in step.ops[:5]] == ["stem", "bn", "relu", "block", "sum"]
    assert step.tensor["bn.mean"].role == "buffer"


def test_optimizer_is_chosen(tmp_path: Path) -> None:
    step = capture_onnx(save(tmp_path, residual_net()), batch=4, optimizer="adamw")
    assert {op.nest.rule for op in step.ops if op.kind == "update"} == {"adamw"}  # type: ignore[union-attr]


# -- windows


@pytest.mark.parametrize(
    ("attributes", "padding", "outputs"),
    [
        ({"pads": [1, 0, 2, 0]}, (1, 2, 0, 0), (5, 4)),
        ({"auto_pad": "VALID"}, (0, 0, 0, 0), (4, 4)),
        ({"auto_pad": "SAME_UPPER"}, (0, 1, 0, 1), (4, 4)),
        ({"auto_pad": "SAME_LOWER"}, (1, 0, 1, 0), (4, 4)),
        ({"dilations": [2, 1]}, (0, 0, 0, 0), (3, 4)),
    ],
)
def test_convolution_geometry(
    tmp_path: Path, attributes: dict[str, object], padding: tuple[int, ...], outputs: tuple[int, int]
) -> None:
    """Kernel 3 and stride 2 over 9 × 10, where VALID and SAME differ in their asymmetric padding."""
    size = (8, 8) if str(attributes.get("auto_pad", "")).startswith("SAME") else (9, 10)
    net = [node("Conv", ["x", "w"], ["c"], strides=[2, 2], **attributes), node("GlobalAveragePool", ["c"], ["y"])]
    trace = forward(tmp_path, net, {"x": [2, 4, *size]}, [weight("w", 6, 4, 3, 3)])
    nest = trace.ops[0].nest
    assert isinstance(nest, Conv)
    assert (nest.padding, (nest.OY, nest.OX)) == (padding, outputs)


def test_depthwise_and_one_dimensional_convolutions(tmp_path: Path) -> None:
    net = [
        node("Conv", ["x", "w"], ["c"], group=4, pads=[2, 2], dilations=[2]),
        node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"]),
    ]  # fmt: skip
    trace = forward(tmp_path, net, {"x": [2, 4, 20]}, [weight("w", 8, 1, 3)])
    assert trace.ops[0].nest == Conv(2, 2, 1, 1, 20, 1, 3, 4, 1, 20, (1, 1), (0, 0, 2, 2), (1, 2))


@pytest.mark.parametrize(("ceil", "outputs", "padding"), [(0, 4, (0, 0, 0, 0)), (1, 5, (0, 1, 0, 1))])
def test_pool_with_ceil_mode_looks_beyond_the_map(
    tmp_path: Path, ceil: int, outputs: int, padding: tuple[int, ...]
) -> None:
    net = [
        node("Conv", ["x", "w"], ["c"]),
        node("MaxPool", ["c"], ["m"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=ceil),
        node("AveragePool", ["m"], ["a"], kernel_shape=[2, 2]), node("Flatten", ["a"], ["y"]),
    ]  # fmt: skip
    trace = forward(tmp_path, net, {"x": [2, 3, 10, 10]}, [weight("w", 4, 3, 1, 1)])
    assert trace.ops[1].nest == Pool("max", 2, 4, 10, 10, outputs, outputs, 3, 3, (2, 2), padding)
    assert [t.rpartition(".")[2] for t in trace.ops[1].writes] == ["y", "indices"]
    assert kinds(trace) == ["conv", "pool", "pool"]


# -- products


def test_products_and_sums_are_dense_layers_with_bias(tmp_path: Path) -> None:
    net = [
        node("MatMul", ["x", "w1"], ["a"]), node("Add", ["b1", "a"], ["b"]), node("Relu", ["b"], ["c"]),
        node("Transpose", ["w2"], ["w2t"], perm=[1, 0]), node("MatMul", ["c", "w2t"], ["y"]),
    ]  # fmt: skip
    weights = [weight("w1", 5, 8), weight("b1", 8), weight("w2", 3, 8)]
    trace = forward(tmp_path, net, {"x": [2, 7, 5]}, weights)
    assert kinds(trace) == ["gemm", "elementwise", "gemm"]
    assert trace.ops[0].reads == ("x", "w1", "b1")
    assert trace.ops[2].reads[1] == "w2"  # a transposed weight is still that weight
    assert [op.nest for op in trace.ops if op.kind == "gemm"] == [Gemm(1, 14, 8, 5), Gemm(1, 14, 3, 8)]


def test_gemm_in_its_layouts(tmp_path: Path) -> None:
    net = [node("Gemm", ["x", "w"], ["h"], transA=1), node("Gemm", ["h", "v", "b"], ["y"], transB=1)]
    trace = forward(tmp_path, net, {"x": [5, 2]}, [weight("w", 5, 8), weight("v", 3, 8), weight("b", 3)])
    assert [op.nest for op in trace.ops[:2]] == [Gemm(1, 2, 8, 5, ta=True), Gemm(1, 2, 3, 8, tb=True)]


def test_attention(tmp_path: Path) -> None:
    """Two heads of four over six tokens: views cost nothing, the mask and the scale are no parameters."""
    T, D, H = 6, 8, 2
    net = [
        node("LayerNormalization", ["x", "n.weight", "n.bias"], ["n"]),
        node("MatMul", ["n", "qkv"], ["p"]),
        node("Split", ["p", "sizes"], ["q1", "k1", "v1"], axis=-1),
        *(node("Reshape", [f"{t}1", "heads"], [f"{t}2"]) for t in "qkv"),
        node("Transpose", ["q2"], ["q"], perm=[0, 2, 1, 3]), node("Transpose", ["k2"], ["k"], perm=[0, 2, 3, 1]),
        node("Transpose", ["v2"], ["v"], perm=[0, 2, 1, 3]),
        node("MatMul", ["q", "k"], ["s"]), node("Div", ["s", "root"], ["t"]),
        node("Where", ["causal", "t", "low"], ["u"]), node("Softmax", ["u"], ["z"]),
        node("MatMul", ["z", "v"], ["o"]), node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "merged"], ["m"]), node("Add", ["m", "x2"], ["r"]), node("MatMul", ["r", "out"], ["y"]),
    ]  # fmt: skip
    weights = [
        weight("n.weight", D), weight("n.bias", D), weight("qkv", D, 3 * D), weight("out", D, 3),
        integers("sizes", D, D, D), integers("heads", 2, T, H, D // H), integers("merged", 2, T, D),
        number("root", 2.0), number("low", -1e9),
        helper.make_tensor("causal", TensorProto.BOOL, [T, T], [True] * T * T),
    ]  # fmt: skip
    trace = forward(tmp_path, net, {"x": [2, T, D], "x2": [2, T, D]}, weights)
    assert [op.nest for op in trace.ops[:-1]] == [
        Norm("layer", 2 * T * D, 2 * T),
        Gemm(1, 2 * T, 3 * D, D),
        Gemm(4, T, T, 4),
        Elementwise("mul", 4 * T * T),
        Elementwise("where", 4 * T * T),
        Softmax(4 * T, T),
        Gemm(4, T, 4, T),
        Elementwise("add", 2 * T * D),
        Gemm(1, 2 * T, 3, D),
    ]
    assert trace.ops[2].read_elements == (2 * T * D, 2 * T * D)
    assert trace.tensor["causal"].role == "buffer"
    step = capture_onnx(tmp_path / "net.onnx")
    backward = [op for op in step.ops if op.phase == "backward_data" and op.kind == "gemm"]
    assert sum(op.macs for op in backward) == 2 * (4 * T * T * 4) * 2 + 2 * T * D * 3 * D + 2 * T * 3 * D
    # q, k and v are thirds of one tensor: their gradients are stacked, and brought into its order.
    assert [op.nest for op in step.ops if op.kind == "copy"] == [
        Copy("stack", 6 * T * D), Copy("contiguous", 6 * T * D)
    ]  # fmt: skip


def test_embedding_and_fixed_index(tmp_path: Path) -> None:
    net = [
        node("Gather", ["words", "tokens"], ["e"]), node("Add", ["e", "position"], ["p"]),
        node("Gather", ["p", "first"], ["f"], axis=1), node("MatMul", ["f", "w"], ["y"]),
    ]  # fmt: skip
    weights = [weight("words", 100, 8), weight("position", 1, 5, 8), integers("first", 0), weight("w", 8, 3)]
    trace = forward(tmp_path, net, {"tokens": [2, 5]}, weights, integer_inputs=["tokens"])
    assert trace.ops[0].nest == Gather(10, 8)
    assert trace.tensor["tokens"].bits == 64
    assert trace.ops[2].read_elements == (16, 24)  # one token of each sample
    assert kinds(trace) == ["gather", "elementwise", "gemm"]


# -- elementwise, reductions, movement


def test_numbers_belong_to_the_op(tmp_path: Path) -> None:
    net = [
        node("MatMul", ["x", "w"], ["a"]), node("Clip", ["a", "zero", "six"], ["b"]), node("Sub", ["one", "b"], ["c"]),
        node("Div", ["c", "two"], ["d"]), node("Pow", ["d", "two"], ["e"]), node("Clip", ["e", "zero", "one"], ["f"]),
        node("Max", ["f", "zero"], ["g"]), node("Cast", ["g"], ["y"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    numbers = [number("zero", 0), number("one", 1), number("two", 2), number("six", 6)]
    trace = forward(tmp_path, net, {"x": [2, 4]}, [weight("w", 4, 5), *numbers])
    functions = [op.nest.function for op in trace.ops if isinstance(op.nest, Elementwise)]
    assert functions == ["relu6", "neg", "mul", "pow", "clamp", "clamp"]
    assert [t.name for t in trace.tensors if t.role == "buffer"] == []


def test_reductions_dropout_and_concatenation(tmp_path: Path) -> None:
    net = [
        node("Conv", ["x", "w"], ["c"]), node("Dropout", ["c", "ratio", "train"], ["d"]),
        node("Concat", ["d", "c"], ["e"], axis=1), node("Pad", ["e", "pads"], ["p"]),
        node("ReduceMean", ["p"], ["m"], axes=[2, 3], keepdims=0), node("ReduceSum", ["m", "axis"], ["s"], keepdims=1),
        node("Expand", ["s", "wide"], ["t"]), node("Mul", ["t", "m"], ["y"]),
    ]  # fmt: skip
    weights = [
        weight("w", 4, 3, 1, 1), number("ratio", 0.5), integers("pads", 0, 0, 1, 1, 0, 0, 1, 1), integers("axis", 1),
        integers("wide", 2, 8), helper.make_tensor("train", TensorProto.BOOL, [], [True]),
    ]  # fmt: skip
    trace = forward(tmp_path, net, {"x": [2, 3, 6, 6]}, weights)
    assert kinds(trace) == ["conv", "rng", "elementwise", "copy", "copy", "pool", "reduce", "elementwise"]
    assert trace.ops[5].nest == Pool("average", 2, 8, 8, 8, 1, 1, 8, 8, (8, 8))
    assert trace.elements_read(trace.ops[7]) == (2, 16)  # an expanded view holds two values


# -- recurrent layers


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers(tmp_path: Path, operator: str, gates: int, direction: str) -> None:
    T, N, I, H = 4, 2, 5, 6
    D = 2 if direction == "bidirectional" else 1
    net = [
        node("MatMul", ["x", "embed"], ["e"]),
        node(operator, ["e", "W", "R", "B"], ["r"], hidden_size=H, direction=direction),
        node("Reshape", ["r", "flat"], ["f"]), node("MatMul", ["f", "out"], ["y"]),
    ]  # fmt: skip
    weights = [
        weight("embed", I, I), weight("W", D, gates * H, I), weight("R", D, gates * H, H),
        weight("B", D, 2 * gates * H), integers("flat", T, N, D * H), weight("out", D * H, 3),
    ]  # fmt: skip
    trace = forward(tmp_path, net, {"x": [T, N, I]}, weights)
    assert sum(op.kind == "cell" for op in trace.ops) == T * D
    inside = N * gates * H * (I + H)
    assert trace.macs == T * N * I * I + D * T * inside + T * N * D * H * 3
    parameters = {t.name: t.elements for t in trace.tensors if t.role == "param"}
    assert sum(parameters.values()) == I * I + D * gates * H * (I + H + 2) + D * H * 3
    step = capture_onnx(tmp_path / "net.onnx")
    assert counts(step)["elementwise", "backward_weight"] == 4 * D * (T - 1)


def test_final_hidden_state_classifies(tmp_path: Path) -> None:
    net = [
        node("LSTM", ["x", "W", "R"], ["", "h", "c"], hidden_size=6),
        node("Squeeze", ["h", "axis"], ["s"]), node("MatMul", ["s", "out"], ["y"]),
    ]  # fmt: skip
    weights = [weight("W", 1, 24, 5), weight("R", 1, 24, 6), integers("axis", 0), weight("out", 6, 3)]
    path = save(tmp_path, model(net, {"x": [4, 2, 5]}, weights))
    step = capture_onnx(path, batch=2)
    assert step.header.batch == 2
    net[1] = node("Squeeze", ["c", "axis"], ["s"])
    with pytest.raises(CaptureError, match="final cell state is used"):
        capture_onnx(save(tmp_path, model(net, {"x": [4, 2, 5]}, weights)))


# -- losses, batches, reports


def test_a_loss_in_the_file_is_used(tmp_path: Path) -> None:
    net = [node("MatMul", ["x", "w"], ["s"]), node("SoftmaxCrossEntropyLoss", ["s", "target"], ["y"])]
    path = save(tmp_path, model(net, {"x": [2, 4], "target": [2]}, [weight("w", 4, 3)], integer_inputs=["target"]))
    step = capture_onnx(path)
    assert step.header.warnings == ()
    assert [op.kind for op in step.ops].count("loss") == 2
    assert "target" in step.tensor
    assert "labels" not in step.tensor


def test_the_batch_has_to_be_known(tmp_path: Path) -> None:
    path = save(tmp_path, residual_net())
    with pytest.raises(CaptureError, match="open size 'N'; give the batch"):
        capture_onnx(path)
    with pytest.raises(CaptureError, match="at least 1, got 0"):
        capture_onnx(path, batch=0)
    two = model([node("MatMul", ["x", "w"], ["y"])], {"x": ["N", "T", 4]}, [weight("w", 4, 3)])
    with pytest.raises(CaptureError, match="open sizes N, T, and only one"):
        capture_onnx(save(tmp_path, two), batch=4)
    fixed = model([node("MatMul", ["x", "w"], ["y"])], {"x": [8, 4]}, [weight("w", 4, 3)])
    with pytest.raises(CaptureError, match=r"given as 16, but the inputs have the fixed sizes \[8, 4\]"):
        capture_onnx(save(tmp_path, fixed), batch=16)


def test_folded_batch_norms_are_reported(tmp_path: Path) -> None:
    net = [node("Conv", ["x", "w", "b"], ["c"]), node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["y"])]
    trace = forward(tmp_path, net, {"x": [2, 3, 4, 4]}, [weight("w", 8, 3, 3, 3), weight("b", 8)])
    assert "folded them into the convolutions" in trace.header.warnings[0]


def test_batch_norm_of_inference_is_reported(tmp_path: Path) -> None:
    proto = residual_net()
    norm = proto.graph.node[1]
    del norm.attribute[:], norm.output[1:]
    step = capture_onnx(save(tmp_path, proto), batch=2)
    assert "inference mode" in step.header.warnings[0]
    assert step.op["bn.batch:backward_data"].writes  # and trained all the same


def test_sizes_computed_in_the_graph(tmp_path: Path) -> None:
    """Reshape to (shape[0], -1) by Shape, Gather, Unsqueeze and Concat, as exporters write it."""
    net = [
        node("Conv", ["x", "w"], ["c"]), node("Shape", ["c"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["n1"]), node("Constant", [], ["rest"], value_ints=[-1]),
        node("Concat", ["n1", "rest"], ["to"], axis=0), node("Reshape", ["c", "to"], ["f"]),
        node("MatMul", ["f", "v"], ["y"]),
    ]  # fmt: skip
    weights = [weight("w", 4, 3, 1, 1), integers("axis", 0), weight("v", 64, 5)]
    zero = helper.make_tensor("zero", TensorProto.INT64, [], [0])
    trace = forward(tmp_path, net, {"x": [2, 3, 4, 4]}, [*weights, zero])
    assert kinds(trace) == ["conv", "gemm"]


# -- operators without rule


def test_unknown_operators_are_named_all_at_once(tmp_path: Path) -> None:
    net = [
        node("MatMul", ["x", "w"], ["a"]), node("CumSum", ["a", "axis"], ["b"], name="running"),
        node("FancyRelu", ["b"], ["c"], name="fancy", domain="my.ops"), node("Relu", ["c"], ["y"]),
    ]  # fmt: skip
    weights = [weight("w", 4, 3), integers("axis", 1)]
    path = save(tmp_path, model(net, {"x": [2, 4]}, weights, domains=["my.ops"]))
    with pytest.raises(CaptureError) as refused:
        capture_onnx(path)
    assert [p.partition(";")[0].partition(": ")[2] for p in refused.value.problems] == [
        "node 'running': no rule for operator CumSum",
        "node 'fancy': no rule for operator my.ops::FancyRelu",
    ]
    step = capture_onnx(path, approximate="elementwise")
    assert step.header.policy == (("approximate", "elementwise"),)
    assert step.header.warnings[1:] == (
        "Approximated as one pass over its result: CumSum in 'running'.",
        "Approximated as one pass over its result: FancyRelu in 'fancy'.",
    )
    passes = [op.nest for op in step.ops if op.layer in ("running", "fancy")]
    assert passes == [Elementwise(f, 6) for f in ("cumsum", "fancyrelu", "fancyrelu_backward", "cumsum_backward")]
