"""Shapes of an ONNX graph, and the arithmetic on sizes that exporters leave in it.

An export without constant folding computes shapes, axes and paddings by chains of small nodes (Shape, Gather,
Concat, …). They are evaluated here by ONNX's own reference implementation, on tensors of at most
``MAX_VALUES`` elements, and replaced by their results.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["MAX_VALUES", "fold", "infer"]

MAX_VALUES = 64  # elements of a tensor whose values may matter: sizes, axes, bounds

_FOLDED = frozenset({
    "Add", "And", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather",
    "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceProd", "ReduceSum",
    "Reshape", "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip


def infer(model: ModelProto, strict: bool = True) -> ModelProto:
    """The model with the shapes of all values; a custom operator keeps the shape of its first input.

    Raises whatever onnx raises for shapes that do not fit together, if ``strict``.
    """
    import onnx

    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.graph.ClearField("value_info")  # stale after a change of batch, and not to be trusted
    for value in known.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in known.graph.node:
        if node.domain not in ("", "ai.onnx"):
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.output[1:], node.attribute[:]
    # Propagation of data is left off: it computes large constants for real, and fold() does the small ones.
    return onnx.shape_inference.infer_shapes(known, strict_mode=strict)


def fold(model: ModelProto) -> None:
    """Replace nodes whose results are sizes by the results, until none is left; new shapes give new sizes."""
    while _fold_once(model):
        pass


def _fold_once(model: ModelProto) -> bool:
    import numpy as np
    import onnx

    shapes = _known_shapes(infer(model, strict=False))
    known = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if _may_know(t.dims, t.data_type)}
    opset = {o.domain: o.version for o in model.opset_import}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        sized = node.op_type in ("Shape", "Size") and node.input[0] in shapes
        feeds: dict[str, Any] = {name: known[name] for name in node.input if name in known}
        if sized:  # of these only the shape is looked at
            feeds = {node.input[0]: np.broadcast_to(np.zeros((), np.float32), shapes[node.input[0]])}
        complete = all(name in feeds for name in node.input if name)
        results = _evaluate(node, feeds, opset) if complete and node.op_type in _FOLDED else None
        if results is None:
            kept.append(node)
            continue
        for name, value in results.items():
            known[name] = value
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    changed = len(kept) < len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return changed


def _may_know(dims: Any, data_type: int) -> bool:
    """Small integers and truth values are sizes; several floats may be a parameter."""
    import onnx

    types = onnx.TensorProto
    size = prod(dims)
    return size <= 1 or (size <= MAX_VALUES and data_type in (types.INT64, types.INT32, types.BOOL))


def _evaluate(node: NodeProto, feeds: dict[str, Any], opset: dict[str, int]) -> dict[str, Any] | None:
    """The results of a node, or None where they are no sizes or cannot be had."""
    import numpy as np
    from onnx.helper import np_dtype_to_tensor_dtype
    from onnx.reference import ReferenceEvaluator

    if node.op_type in ("ConstantOfShape", "Expand", "Range") and not _stays_small(node, feeds):
        return None
    try:
        evaluator: Any = ReferenceEvaluator(node, opsets=opset)
        values = evaluator.run(None, feeds)
        results = {name: np.asarray(value) for name, value in zip(node.output, values, strict=True)}
        small = all(_may_know(v.shape, np_dtype_to_tensor_dtype(v.dtype)) for v in results.values())
    except Exception:  # a node of an untrusted file may be anything; unfolded it meets shape inference
        return None
    return results if small else None


def _stays_small(node: NodeProto, feeds: dict[str, Any]) -> bool:
    """Operators that make large tensors of small ones."""
    last = [int(n) for n in feeds[node.input[-1]].reshape(-1)]
    if node.op_type == "Range":
        start, limit, step = (float(feeds[name].reshape(-1)[0]) for name in node.input)
        return step != 0 and abs((limit - start) / step) <= MAX_VALUES
    return prod(max(1, n) for n in last) <= MAX_VALUES


def _known_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return shapes
