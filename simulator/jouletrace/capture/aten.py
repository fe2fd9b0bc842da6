"""What one aten op is as loop nests: a table from op name to drafts of trace ops.

Operands follow :mod:`jouletrace.trace.model`; arguments go by the names of the op's schema. What a
backward formula reads only for its shape (the input of a pooling) is not among the reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from jouletrace.capture.rows import Ref, Row
from jouletrace.errors import CaptureError
from jouletrace.trace.model import (
    Conv,
    Copy,
    Elementwise,
    Gather,
    Gemm,
    Loss,
    Nest,
    Norm,
    Phase,
    Pool,
    Reduce,
    Rng,
    Scatter,
    Softmax,
)

__all__ = ["LOSS_NODES", "LOWER", "POINTWISE", "RANDOM", "SHAPE_ONLY", "Draft", "fills_mask", "flops"]


@dataclass(slots=True)
class Draft:
    """An op before it has a name: ``what`` it does, its nest, what it reads and writes."""

    what: str
    nest: Nest
    reads: list[Ref]
    writes: list[tuple[str, Ref]]  # label ("" for the usual one of its phase), tensor
    phase: Phase | None = None
    layer: str = ""
    order: int = 0


# Functions of each element alone: operations per element, by name.
POINTWISE: dict[str, int] = {
    name: cost
    for cost, names in {
        1: "abs add bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max clamp_min copysign "
        "div eq exp expm1 erf floor floor_divide fmod fmax fmin ge gt isinf isnan le leaky_relu "
        "leaky_relu_backward log log1p log2 log10 logical_and logical_not logical_or logical_xor lt "
        "masked_fill maximum minimum mul nan_to_num ne neg pow reciprocal relu remainder round rsub "
        "rsqrt sgn sign sin cos tan sqrt square sub trunc where hardtanh hardtanh_backward threshold "
        "threshold_backward _prelu_kernel _prelu_kernel_backward softshrink softshrink_backward "
        "hardshrink hardshrink_backward tril triu __and__ __or__ __xor__",
        2: "addcmul addcdiv xlogy atan2",
        3: "lerp sigmoid sigmoid_backward tanh tanh_backward hardsigmoid hardsigmoid_backward hardswish "
        "hardswish_backward elu elu_backward celu silu silu_backward softplus softplus_backward mish "
        "mish_backward gelu gelu_backward log_sigmoid_forward log_sigmoid_backward glu glu_backward "
        "logaddexp erfinv logit _weight_norm_interface _weight_norm_interface_backward",
    }.items()
    for name in names.split()
}  # fmt: skip
_FUNCTIONS = {
    "_prelu_kernel": "prelu", "log_sigmoid_forward": "log_sigmoid", "_weight_norm_interface": "weight_norm",
}  # fmt: skip

# Read a tensor for its shape and type only, or nothing at all.
SHAPE_ONLY = frozenset((
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "new_zeros", "new_ones",
    "new_full", "zeros", "zeros_like", "ones", "ones_like", "full", "full_like", "arange", "linspace",
    "scalar_tensor", "eye", "zero", "fill",
))  # fmt: skip
RANDOM = frozenset((
    "bernoulli", "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm",
    "uniform", "normal", "random", "exponential",
))  # fmt: skip
# Loss ops by aten name, and autograd nodes that are the gradient of one.
_LOSSES = {
    "mse_loss": "mse", "mse_loss_backward": "mse", "smooth_l1_loss": "smooth_l1",
    "smooth_l1_loss_backward": "smooth_l1", "huber_loss": "huber", "huber_loss_backward": "huber",
    "nll_loss_forward": "nll", "nll_loss_backward": "nll",
    "nll_loss2d_forward": "nll", "nll_loss2d_backward": "nll",
    "binary_cross_entropy": "bce", "binary_cross_entropy_backward": "bce",
    "binary_cross_entropy_with_logits": "bce_with_logits",
}  # fmt: skip
LOSS_NODES = {"BinaryCrossEntropyWithLogitsBackward0": "bce_with_logits"}


def flops(row: Row) -> int:
    """Operations per element; a factor other than one on an operand counts as one more, a copy as none."""
    factor = row.arguments.get("alpha", row.arguments.get("value", 1)) if row.base != "masked_fill" else 1
    return POINTWISE.get(row.base, 0) + (factor != 1)


def fills_mask(row: Row) -> bool:
    """``t[mask] = value``: written as scattering, but done element by element."""
    return row.base == "index_put" and any(ref.dtype == "bool" for ref in row.reads)


def _transposed(ref: Ref) -> bool:
    return ref.strides[-2:-1] == (1,) != ref.strides[-1:]


def _gemm(row: Row, a: Ref, b: Ref, bias: Ref | None = None) -> list[Draft]:
    batch, m, k = (1, 1, *a.shape)[-3:]
    nest = Gemm(batch, m, b.elements // (batch * k), k, _transposed(a), _transposed(b))
    return [Draft("gemm", nest, [a, b] + ([bias] if bias else []), [("", row.outputs[0])])]


def _bmm(row: Row) -> list[Draft]:
    return _gemm(row, *row.reads)


def _addmm(row: Row) -> list[Draft]:
    bias, a, b = row.reads
    return _gemm(row, a, b, None if row.arguments.get("beta") == 0 else bias)


def _pair(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    """A size for rows and columns; one-dimensional maps have one row."""
    rows, columns = (fill, *values)[-2:]
    return rows, columns


def _map(ref: Ref) -> tuple[int, int, int, int]:
    """Batch, channels, rows and columns of a map."""
    return ref.shape[0], ref.shape[1], *_pair(ref.shape[2:], 1)


def _window(values: tuple[int, ...]) -> tuple[int, int]:
    """The window of a pooling; one number stands for both sides."""
    return _pair(values * 2, 1)


def _conv_nest(row: Row, x: Ref, weight: Ref, y: Ref) -> Conv:
    """The nest in the forward role; a transposed convolution is described by the one that it undoes."""
    a = row.arguments
    _, channels, *kernel = weight.shape
    if len(kernel) > 2:
        many = f"{row.name} has {len(kernel)} dimensions"
        raise CaptureError(f"{row.place}: {many}; write it as 2-D convolutions, one for each slice")
    if a["transposed"]:
        x, y = y, x
    n, out, oy, ox = _map(y)
    _, _, iy, ix = _map(x)
    r, s = _pair(tuple(kernel), 1)
    top, left = _pair(a["padding"], 0)
    return Conv(
        N=n, K=out // a["groups"], C=channels, OY=oy, OX=ox, R=r, S=s, G=a["groups"], IY=iy, IX=ix,
        stride=_pair(a["stride"], 1), padding=(top, top, left, left), dilation=_pair(a["dilation"], 1),
    )  # fmt: skip


def _conv(row: Row) -> list[Draft]:
    a, y = row.arguments, row.outputs[0]
    nest = _conv_nest(row, a["input"], a["weight"], y)
    if a["transposed"]:
        nest = replace(nest, role="backward_data")
    reads = [a["input"], a["weight"]] + ([a["bias"]] if a["bias"] else [])
    return [Draft("conv", nest, reads, [("", y)])]


def _conv_backward(row: Row) -> list[Draft]:
    a = row.arguments
    gy, x, w = a["grad_output"], a["input"], a["weight"]
    nest = _conv_nest(row, x, w, gy)
    outputs = iter(row.outputs)
    drafts: list[Draft] = []
    if a["output_mask"][0]:
        data = replace(nest, role="forward" if a["transposed"] else "backward_data")
        drafts.append(Draft("conv", data, [gy, w], [("gx", next(outputs))], "backward_data"))
    if a["output_mask"][1]:
        operands = [x, gy] if a["transposed"] else [gy, x]
        weight = replace(nest, role="backward_weight")
        drafts.append(Draft("conv", weight, operands, [("gw", next(outputs))], "backward_weight"))
    if a["output_mask"][2]:
        nest_bias = Reduce("sum", gy.elements, a["bias_sizes"][0])
        drafts.append(Draft("sum", nest_bias, [gy], [("gb", next(outputs))], "backward_weight"))
    return drafts


_NORMS = {
    "native_batch_norm": "batch", "native_layer_norm": "layer", "native_group_norm": "group",
    "_fused_rms_norm": "rms",
}  # fmt: skip


def _norm_nest(function: str, row: Row, x: Ref) -> Norm:
    a = row.arguments
    if function == "batch":
        groups = x.shape[1]
    elif function == "group":
        groups = a["N"] * a["group"]
    else:
        groups = x.elements // prod(a["normalized_shape"])
    return Norm(function, x.elements, groups)


def _norm(row: Row) -> list[Draft]:
    function, x = _NORMS[row.base], row.reads[0]
    labels = ["y", "mean", "invstd"] if function != "rms" else ["y", "invstd"]
    writes = [(label, r) for label, r in zip(labels, row.outputs, strict=True) if r.elements]
    running = [row.arguments.get(k) for k in ("running_mean", "running_var")]
    if row.writes:
        writes += zip(("running_mean", "running_var"), row.writes, strict=True)
    reads = [r for r in (x, row.arguments.get("weight"), row.arguments.get("bias"), *running) if r]
    return [Draft(function, _norm_nest(function, row, x), reads, writes)]


def _norm_backward(row: Row) -> list[Draft]:
    a = row.arguments
    function = _NORMS[row.base.removesuffix("_backward")]
    gy, x = row.reads[:2]
    statistics = ("save_mean", "save_invstd") if a.get("train", True) else ("running_mean", "running_var")
    names = (*statistics, "mean", "rstd", "weight")
    reads = [gy, x] + [a[k] for k in names if a.get(k) and a[k].elements]
    labels = [s for s, wanted in zip(("gx", "gweight", "gbias"), a["output_mask"], strict=False) if wanted]
    writes = list(zip(labels, row.outputs, strict=True))
    return [Draft(function, _norm_nest(function, row, x), reads, writes, "backward_data")]


def _pool_nest(function: str, row: Row, x: Ref, y: Ref) -> Pool:
    a = row.arguments
    c, iy, ix = x.shape[-3:]
    n = x.elements // (c * iy * ix)
    oy, ox = y.shape[-2:]
    if "kernel_size" not in a:  # adaptive: the actual window
        stride = (iy // oy, ix // ox)
        window = (iy - (oy - 1) * stride[0], ix - (ox - 1) * stride[1])
        return Pool(function, n, c, iy, ix, oy, ox, *window, stride)
    if any(d != 1 for d in a.get("dilation", ())):
        raise CaptureError(f"{row.place}: {row.name} has a dilation; a pooling op has none, so use dilation=1")
    r, s = _window(a["kernel_size"])
    stride = _window(a["stride"] or a["kernel_size"])
    top, left = _window(a["padding"])
    bottom = max(top, (oy - 1) * stride[0] + r - iy - top)  # ceil_mode looks beyond the padding
    right = max(left, (ox - 1) * stride[1] + s - ix - left)
    return Pool(function, n, c, iy, ix, oy, ox, r, s, stride, (top, bottom, left, right))


def _pool(function: str) -> Callable[[Row], list[Draft]]:
    def lower_pool(row: Row) -> list[Draft]:
        x, y = row.reads[0], row.outputs[0]
        writes = [(label, ref) for label, ref in zip(("", "indices"), row.outputs, strict=False)]
        return [Draft(function, _pool_nest(function, row, x, y), [x], writes)]

    return lower_pool


def _pool_backward(function: str) -> Callable[[Row], list[Draft]]:
    def lower_pool_backward(row: Row) -> list[Draft]:
        gy, x, *indices = row.reads
        nest = _pool_nest(function, row, x, gy)
        return [Draft(function, nest, [gy, *indices], [("", row.outputs[0])])]

    return lower_pool_backward


def _reduce(function: str) -> Callable[[Row], list[Draft]]:
    def lower_reduce(row: Row) -> list[Draft]:
        x, y = row.reads[0], row.outputs[0]
        writes = [("", r) for r in row.outputs]
        whole_map = row.arguments.get("dim") in ((2, 3), (3, 2), (-2, -1), (-1, -2))
        if function == "mean" and len(x.shape) == 4 and whole_map:
            n, c, iy, ix = x.shape
            return [Draft("average", Pool("average", n, c, iy, ix, 1, 1, iy, ix, (iy, ix)), [x], writes)]
        return [Draft(function, Reduce(function, x.elements, y.elements), [x], writes)]

    return lower_reduce


def _softmax(row: Row) -> list[Draft]:
    x, axis = row.reads[0], int(row.arguments["dim"])
    width = x.shape[axis] if x.shape else 1
    return [Draft("softmax", Softmax(x.elements // width, width), list(row.reads), [("", row.outputs[0])])]


def _loss(row: Row) -> list[Draft]:
    x = row.arguments["self"]
    rows = x.shape[0] if x.shape else 1
    function = _LOSSES[row.base]
    reads = [a for name, a in row.arguments.items() if isinstance(a, Ref) and name != "total_weight"]
    return [Draft(function, Loss(function, rows, x.elements // rows), reads, [("", row.outputs[0])])]


def _gather(row: Row) -> list[Draft]:
    table, y = row.reads[0], row.outputs[0]
    rows = max(r.elements for r in row.reads[1:])
    width = y.elements // rows
    touched = replace(table, shape=(min(rows * width, table.elements),), strides=(1,))
    return [Draft("gather", Gather(rows, width), [touched, *row.reads[1:]], [("", y)])]


def _scatter(row: Row) -> list[Draft]:
    if fills_mask(row):
        nest = Elementwise("masked_fill", row.outputs[0].elements)
        return [Draft("masked_fill", nest, list(row.reads), [("", row.outputs[0])])]
    integers = [r for r in row.reads if r.dtype in ("int64", "int32")]
    floats = [r for r in row.reads if r.dtype not in ("int64", "int32")]
    rows = max(r.elements for r in integers)
    nest = Scatter(rows, max(1, floats[-1].elements // rows))
    return [Draft("scatter", nest, list(row.reads), [("", row.outputs[0])])]


def _copy(function: str) -> Callable[[Row], list[Draft]]:
    def lower_copy(row: Row) -> list[Draft]:
        y = row.outputs[0]
        reads = list(row.reads)
        if row.base in ("copy", "fill", "zero"):
            reads = reads[1:]  # what is overwritten is not read
        return [Draft(function, Copy(function, y.elements), reads, [("", y)])]

    return lower_copy


def _clone(row: Row) -> list[Draft]:
    x, y = row.reads[0], row.outputs[0]
    function = "clone" if x.strides == y.strides else "contiguous"
    return [Draft(function, Copy(function, y.elements), [x], [("", y)])]


def _to_copy(row: Row) -> list[Draft]:
    x, y = row.reads[0], row.outputs[0]
    if x.dtype == y.dtype:
        return _clone(row)
    return [Draft("cast", Elementwise("cast", y.elements), [x], [("", y)])]


def _pointwise(row: Row) -> list[Draft]:
    y = row.outputs[0]
    function = _FUNCTIONS.get(row.base, row.base)
    if row.base.startswith("hardtanh") and (row.arguments["min_val"], row.arguments["max_val"]) == (0, 6):
        function = function.replace("hardtanh", "relu6")
    writes = [("", ref) for ref in row.outputs]
    return [Draft(function, Elementwise(function, y.elements), list(row.reads), writes)]


def _random(row: Row) -> list[Draft]:
    return [Draft("random", Rng(row.outputs[0].elements), [], [("", row.outputs[0])])]


LOWER: dict[str, Callable[[Row], list[Draft]]] = {
    **dict.fromkeys(_NORMS, _norm), **dict.fromkeys((f"{name}_backward" for name in _NORMS), _norm_backward),
    **dict.fromkeys(_LOSSES, _loss), **dict.fromkeys(POINTWISE, _pointwise), **dict.fromkeys(RANDOM, _random),
    "mm": _bmm, "bmm": _bmm, "mv": _bmm, "dot": _bmm,
    "addmm": _addmm, "baddbmm": _addmm, "addmv": _addmm,
    "convolution": _conv, "convolution_backward": _conv_backward,
    "max_pool2d_with_indices": _pool("max"), "max_pool2d_with_indices_backward": _pool_backward("max"),
    "adaptive_max_pool2d": _pool("max"), "adaptive_max_pool2d_backward": _pool_backward("max"),
    "avg_pool2d": _pool("average"), "avg_pool2d_backward": _pool_backward("average"),
    "_adaptive_avg_pool2d": _pool("average"), "_adaptive_avg_pool2d_backward": _pool_backward("average"),
    "_softmax": _softmax, "_safe_softmax": _softmax, "_log_softmax": _softmax,
    "_softmax_backward_data": _softmax, "_log_softmax_backward_data": _softmax,
    "clone": _clone, "_to_copy": _to_copy, "copy": _copy("copy"), "cat": _copy("cat"),
    "stack": _copy("stack"),
    "constant_pad_nd": _copy("pad"), "slice_backward": _copy("pad"), "select_backward": _copy("pad"),
    "fill": _copy("fill"), "zero": _copy("fill"), "repeat": _copy("repeat"),
    "flip": _copy("flip"), "roll": _copy("roll"), "im2col": _copy("im2col"),
    "col2im": _copy("col2im"), "upsample_nearest2d": _copy("upsample"), "slice_scatter": _copy("pad"),
    "pixel_shuffle": _copy("contiguous"), "pixel_unshuffle": _copy("contiguous"),
    "reflection_pad2d_backward": _copy("pad"), "replication_pad2d_backward": _copy("pad"),
    "select_scatter": _copy("pad"), "reflection_pad2d": _copy("pad"), "replication_pad2d": _copy("pad"),
    "upsample_nearest2d_backward": _reduce("sum"),
    "sum": _reduce("sum"), "mean": _reduce("mean"), "amax": _reduce("max"), "amin": _reduce("min"),
    "max": _reduce("max"), "min": _reduce("min"), "argmax": _reduce("max"), "argmin": _reduce("min"),
    "var": _reduce("variance"), "std": _reduce("variance"), "var_mean": _reduce("variance"),
    "norm": _reduce("norm"), "linalg_vector_norm": _reduce("norm"), "logsumexp": _reduce("logsumexp"),
    "cumsum": _reduce("cumsum"), "prod": _reduce("product"), "any": _reduce("any"), "all": _reduce("all"),
    "embedding": _gather, "index": _gather, "index_select": _gather, "gather": _gather,
    "embedding_dense_backward": _scatter, "index_put": _scatter, "_index_put_impl": _scatter,
    "index_add": _scatter, "scatter_add": _scatter, "scatter": _scatter,
}  # fmt: skip
