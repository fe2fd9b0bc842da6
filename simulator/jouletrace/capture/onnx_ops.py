"""What each ONNX operator becomes: functions from the graph and a node to the arrays of its outputs.

Views (reshape, transpose, slice, expand) return an array over the same tensor and write no op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

from jouletrace.capture.forward import Array
from jouletrace.capture.onnx_graph import MAX_OPS, Graph, title
from jouletrace.errors import LimitExceeded
from jouletrace.trace.model import Elementwise, Gather, Gemm

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["OPERATORS"]

Operator = Callable[[Graph, "NodeProto"], list[Array]]
Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]


# -- windows: convolutions and pools


def _window(g: Graph, node: NodeProto, x: Array, kernel: tuple[int, ...]) -> Window:
    """Kernel, stride, (top, bottom, left, right) padding and dilation; windows over a line get a height of 1.

    ``SAME`` and ``ceil_mode`` pad whatever the inferred outputs need.
    """
    rank = len(kernel)
    if rank not in (1, 2):
        raise g.problem(node, f"windows of {rank} dimensions are not supported; 1 and 2 are.")
    stride: list[int] = g.attribute(node, "strides", [1] * rank)
    dilation: list[int] = g.attribute(node, "dilations", [1] * rank)
    auto: str = g.attribute(node, "auto_pad", "NOTSET")
    given: list[int] = g.attribute(node, "pads", [0] * (2 * rank))
    pads = [0] * (4 - 2 * rank)
    for i, (size, outputs) in enumerate(zip(x.shape[2:], g.shape(node.output[0])[2:], strict=True)):
        needed = max(0, (outputs - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size)
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            half, rest = needed // 2, needed - needed // 2
            pads += (half, rest) if auto == "SAME_UPPER" else (rest, half)
        elif auto == "VALID":
            pads += (0, 0)
        else:
            pads += (given[i], max(given[i + rank], needed - given[i]))
    ones = (1,) * (2 - rank)
    top, bottom, left, right = pads
    return _two(ones + kernel), _two((*ones, *stride)), (top, bottom, left, right), _two((*ones, *dilation))


def _two(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _maps(x: Array) -> Array:
    """(N, C, W) as (N, C, 1, W)."""
    return x if len(x.shape) == 4 else x.reshape(*x.shape[:2], 1, x.shape[2])


def _conv(g: Graph, node: NodeProto) -> list[Array]:
    x, weight = g.operand(node, 0), g.parameter(node, 1)
    _, stride, pads, dilation = _window(g, node, x, weight.shape[2:])
    operands = [_maps(weight)] + ([g.parameter(node, 2)] if g.has(node, 2) else [])
    return [g.f.conv_with(g.layer, _maps(x), operands, stride, pads, g.attribute(node, "group", 1), dilation)]


def _pool(g: Graph, node: NodeProto, function: str) -> list[Array]:
    x = g.operand(node, 0)
    kernel, stride, pads, dilation = _window(g, node, x, tuple(g.attribute(node, "kernel_shape", [])))
    if dilation != (1, 1):
        raise g.problem(node, "pooling with dilation is not supported.")
    return [g.f.pool(g.layer, function, _maps(x), kernel, stride, pads)]


def _global_pool(g: Graph, node: NodeProto, function: str) -> list[Array]:
    x = _maps(g.operand(node, 0))
    return [g.f.pool(g.layer, function, x, _two(x.shape[2:]), _two(x.shape[2:]))]


# -- matrix products


def _gemm(g: Graph, node: NodeProto) -> list[Array]:
    a, b = g.operand(node, 0), g.operand(node, 1)
    ta, tb = bool(g.attribute(node, "transA", 0)), bool(g.attribute(node, "transB", 0))
    M, K = a.shape[::-1] if ta else a.shape
    N = b.shape[0] if tb else b.shape[1]
    bias = [g.parameter(node, 2)] if g.has(node, 2) else []
    return [g.f.emit(g.layer, Gemm(1, M, N, K, ta, tb), (a, b, *bias), (M, N))]


def _matmul(g: Graph, node: NodeProto) -> list[Array]:
    a, b = g.operand(node, 0), g.operand(node, 1)
    shape = g.shape(node.output[0])
    K, N = a.shape[-1], 1 if len(b.shape) == 1 else b.shape[-1]
    if len(b.shape) <= 2:  # one matrix for all: the batch joins the rows
        nest = Gemm(1, a.elements // K, N, K)
    else:
        M = 1 if len(a.shape) == 1 else a.shape[-2]
        nest = Gemm(prod(shape) // (M * N), M, N, K)
    return [g.f.emit(g.layer, nest, (a, b), shape)]


# -- normalisation


def _batch_norm(g: Graph, node: NodeProto) -> list[Array]:
    affine = [g.parameter(node, i) for i in (1, 2)]
    running = [g.parameter(node, i, "buffer") for i in (3, 4)]
    return [g.f.batch_norm_with(g.layer, g.operand(node, 0), (*affine, *running))]


def _layer_norm(g: Graph, node: NodeProto, function: str = "layer") -> list[Array]:
    x = g.operand(node, 0)
    affine = [g.parameter(node, i) for i in (1, 2) if g.has(node, i)]
    axis: int = g.attribute(node, "axis", -1)
    return [g.f.norm_with(g.layer, function, x, affine, prod(x.shape[: axis % len(x.shape)]))]


def _group_norm(g: Graph, node: NodeProto) -> list[Array]:
    x = g.operand(node, 0)
    groups: int = g.attribute(node, "num_groups", x.shape[1])  # an instance norm has as many as channels
    return [g.f.norm_with(g.layer, "group", x, [g.parameter(node, i) for i in (1, 2)], x.shape[0] * groups)]


# -- elementwise


def _unary(g: Graph, node: NodeProto, function: str) -> list[Array]:
    return [g.f.unary(g.layer, function, g.operand(node, 0))]


def _clip(g: Graph, node: NodeProto) -> list[Array]:
    bounds = [g.numbers(node, i, name) for i, name in ((1, "min"), (2, "max"))]
    return _unary(g, node, "relu6" if bounds == [[0], [6]] else "clamp")


def _arithmetic(g: Graph, node: NodeProto, function: str) -> list[Array]:
    """Operands that are single numbers belong to the op and are not read."""
    if function == "add" and (biased := _bias(g, node)):
        return biased
    operands = g.variables(node)
    if len(operands) == len(node.input):
        y = operands[0]
        for other in operands[1:]:  # Max and Sum take any number
            y = g.f.binary(g.layer, function, y, other)
        return [y]
    if g.is_number(node.input[0]):
        function = {"sub": "neg", "div": "reciprocal", "pow": "exp"}.get(function, function)
    else:
        function = {"sub": "add", "div": "mul"}.get(function, function)
    function = {"max": "clamp", "min": "clamp"}.get(function, function)
    return [g.f.unary(g.layer, function, operands[0])]


def _bias(g: Graph, node: NodeProto) -> list[Array]:
    """A dense layer may be exported as product and sum; its bias is the third operand of the product."""
    last = g.f.ops[-1] if g.f.ops else None
    if last is None or not isinstance(last.nest, Gemm) or len(last.reads) != 2:
        return []
    for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
        y, width = g.arrays.get(product), last.nest.N
        fits = bias in g.weights and g.weights[bias][1] == (width,) and width > 1
        if fits and y is not None and last.writes == (y.tensor,) and g.uses[product] == 1:
            b = g.parameter(node, list(node.input).index(bias))
            touched = (*last.read_elements, width) if last.read_elements else ()
            g.f.ops[-1] = replace(last, reads=(*last.reads, b.tensor), read_elements=touched)
            return [y]
    return []


def _where(g: Graph, node: NodeProto) -> list[Array]:
    shape = g.shape(node.output[0])
    return [g.f.emit(g.layer, Elementwise("where", prod(shape)), g.variables(node), shape)]


def _compare(g: Graph, node: NodeProto) -> list[Array]:
    shape = g.shape(node.output[0])
    nest = Elementwise(node.op_type.lower(), prod(shape))
    return g.f.emit_many(g.layer, nest, g.variables(node), [("y", shape, "mask", 1)])


def _cast(g: Graph, node: NodeProto) -> list[Array]:
    x = g.operand(node, 0)
    same = g.types[node.input[0]] == g.types[node.output[0]]
    return [x if same else g.f.unary(g.layer, "cast", x)]


def _dropout(g: Graph, node: NodeProto) -> list[Array]:
    x = g.operand(node, 0)
    return [x if g.numbers(node, 1, "ratio") == [0] else g.f.dropout(g.layer, x)]


# -- reductions and softmax


def _reduce(g: Graph, node: NodeProto, function: str) -> list[Array]:
    x, shape = g.operand(node, 0), g.shape(node.output[0])
    axes = g.numbers(node, 1, "axes")
    axes = list(range(len(x.shape))) if axes is None else sorted(int(a) % len(x.shape) for a in axes)
    if function == "mean" and len(x.shape) == 4 and axes == [2, 3]:
        return _global_pool(g, node, "average")
    return [g.f.reduce(g.layer, function, x, shape)]


def _softmax(g: Graph, node: NodeProto) -> list[Array]:
    x = g.operand(node, 0)
    axis: int = g.attribute(node, "axis", -1 if g.opset >= 13 else 1) % len(x.shape)
    return [g.f.softmax(g.layer, x, x.shape[axis] if g.opset >= 13 else prod(x.shape[axis:]))]


# -- data movement


def _view(g: Graph, node: NodeProto) -> list[Array]:
    """Other shapes of the same data; a weight that is only looked at in another way stays that weight."""
    name = node.input[0]
    if name in g.weights and name not in g.arrays:
        g.weights[node.output[0]] = g.weights[name][0], g.shape(node.output[0])
        return []
    return [g.operand(node, 0).view(*g.shape(node.output[0]))]


def _parts(g: Graph, node: NodeProto) -> list[Array]:
    """Slice and Split: parts of an array are views; parts of a weight are weights of their own."""
    if node.input[0] in g.weights:
        return _derive(g, node)
    x = g.operand(node, 0)
    return [x.view(*g.shape(name)) for name in node.output]


def _derive(g: Graph, node: NodeProto) -> list[Array]:
    """Weights that an exporter cuts or joins before use are declared in the form in which they are used."""
    for name in node.output:
        g.weights[name] = name, g.shape(name)
    return []


def _concat(g: Graph, node: NodeProto) -> list[Array]:
    if all(name in g.weights for name in node.input):
        return _derive(g, node)
    pieces = [g.operand(node, i) for i in range(len(node.input))]
    return [g.f.copy(g.layer, "cat", pieces, g.shape(node.output[0]))]


def _spread(g: Graph, node: NodeProto, function: str) -> list[Array]:
    """Pad and Tile: a copy, unless nothing is added."""
    x, shape = g.operand(node, 0), g.shape(node.output[0])
    return [x if prod(shape) == x.elements else g.f.copy(g.layer, function, [x], shape)]


def _gather(g: Graph, node: NodeProto) -> list[Array]:
    x, shape = g.operand(node, 0), g.shape(node.output[0])
    if g.is_constant(node.input[1]):  # a fixed index is a slice
        return [x.view(*shape)]
    indices = g.operand(node, 1)
    nest = Gather(indices.elements, prod(shape) // max(1, indices.elements))
    return [g.f.emit(g.layer, nest, (x, indices), shape)]


def _constant(g: Graph, node: NodeProto) -> list[Array]:
    """Whatever does not depend on the data is no op."""
    for name in node.output:
        g.constants[name] = None
    if node.op_type in ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze") and node.input[0] in g.values:
        g.values[node.output[0]] = g.values[node.input[0]]
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            g.learn_values(node.output[0], attribute.t)
        elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            g.values[node.output[0]] = g.numbers(node, 1, attribute.name) or []
    return []


# -- recurrent layers and the loss


def _recurrent(g: Graph, node: NodeProto, function: str, gates: int) -> list[Array]:
    """Every direction as T steps of two products and one cell, as the frameworks compute it."""
    if g.attribute(node, "layout", 0):
        raise g.problem(node, "layout=1 (batch first) is not supported; export with layout=0.")
    if g.has(node, 7):
        raise g.problem(node, "peephole connections are not supported.")
    x = g.operand(node, 0)
    T, N, width = x.shape
    if len(g.f.ops) + 3 * T > MAX_OPS:
        raise LimitExceeded(f"{g.path}: node {title(node)} has {T} time steps; the step would "
                            f"have more than {MAX_OPS} ops.")  # fmt: skip
    H: int = g.attribute(node, "hidden_size", 0)
    directions = g.shape(node.input[1])[0]
    kinds = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    outputs: list[Array] = []
    for d, reverse in enumerate(kinds[g.attribute(node, "direction", "forward")]):
        operands = [_direction(g, node, 1, d, (gates * H, width)), _direction(g, node, 2, d, (gates * H, H))]
        if g.has(node, 3):
            operands += [_direction(g, node, 3, d, (gates * H,), part) for part in ("input", "hidden")]
        states = [_state(g, node, i, d, (N, H)) for i in ((5, 6) if function == "lstm" else (5,))]
        outputs.append(g.f.recurrent(g.layer, function, x, operands, states, reverse))
    y = outputs[0] if directions == 1 else g.f.copy(g.layer, "cat", outputs, (T, directions, N, H))
    if len(node.output) > 2 and any(node.output[2] in other.input for other in g.proto.node):
        raise g.problem(node, "the final cell state is used; only outputs and final hidden state can be.")
    return [y, y.view(directions, N, H)][: len(node.output)]


def _direction(g: Graph, node: NodeProto, index: int, direction: int, shape: tuple[int, ...], part: str = "") -> Array:
    """ONNX stacks the weights of all directions, and both biases; each is a parameter of its own."""
    if node.input[index] not in g.weights:
        raise g.problem(node, f"input {node.input[index]!r} is computed in the graph; it has to be a weight.")
    name = f"{g.weights[node.input[index]][0]}.{direction}"
    return g.f.parameter(f"{name}.{part}" if part else name, shape)


def _state(g: Graph, node: NodeProto, index: int, direction: int, shape: tuple[int, int]) -> Array:
    if g.has(node, index) and node.input[index] in g.arrays:
        return g.arrays[node.input[index]].view(*shape)
    name = node.input[index] if g.has(node, index) else f"{g.layer}.initial_{'hc'[index - 5]}"
    return g.f.buffer(f"{name}.{direction}", shape)


def _cross_entropy(g: Graph, node: NodeProto) -> list[Array]:
    scores = g.operand(node, 0)
    return [g.f.cross_entropy_with(g.layer, scores, g.operand(node, 1), scores.shape[1])]


def _family(make: Callable[..., list[Array]], names: Mapping[str, str]) -> dict[str, Operator]:
    return {operator: partial(make, function=function) for operator, function in names.items()}


OPERATORS: Mapping[str, Operator] = MappingProxyType({
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul,
    **_family(_pool, {"MaxPool": "max", "AveragePool": "average"}),
    **_family(_global_pool, {"GlobalMaxPool": "max", "GlobalAveragePool": "average"}),
    "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm,
    "RMSNormalization": partial(_layer_norm, function="rms"),
    "GroupNormalization": _group_norm, "InstanceNormalization": _group_norm,
    **_family(_unary, {
        "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Exp": "exp", "Sqrt": "sqrt", "Erf": "erf",
        "Reciprocal": "reciprocal", "LeakyRelu": "leaky_relu", "Elu": "elu", "Selu": "selu", "Celu": "celu",
        "Softplus": "softplus", "Gelu": "gelu", "Swish": "silu", "HardSwish": "hardswish",
        "HardSigmoid": "hardsigmoid", "Mish": "mish", "Log": "log", "Abs": "abs", "Neg": "neg", "Sin": "sin",
        "Cos": "cos", "Sign": "sign", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    }),
    "Clip": _clip,
    **_family(_arithmetic, {
        "Add": "add", "Sum": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Max": "max",
        "Min": "min", "PRelu": "prelu",
    }),
    "Where": _where, "Cast": _cast, "Dropout": _dropout,
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), _compare),
    **dict.fromkeys(("And", "Or", "Not"), _compare),
    **_family(_reduce, {"ReduceMean": "mean", "ReduceSum": "sum"}),
    "Softmax": _softmax, "LogSoftmax": _softmax,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "Expand"), _view),
    "Slice": _parts, "Split": _parts, "Concat": _concat, "Gather": _gather,
    **_family(_spread, {"Pad": "pad", "Tile": "tile"}),
    **dict.fromkeys(("Constant", "ConstantOfShape", "Shape", "Size", "Range", "Trilu", "EyeLike"), _constant),
    "LSTM": partial(_recurrent, function="lstm", gates=4),
    "GRU": partial(_recurrent, function="gru", gates=3),
    "SoftmaxCrossEntropyLoss": _cross_entropy,
})  # fmt: skip
"""ONNX operators with a rule."""
