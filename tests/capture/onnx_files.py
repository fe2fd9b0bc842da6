"""ONNX files written by hand, for the tests of the import."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def number(name: str, value: float) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), name)


def model(
    nodes: Sequence[NodeProto], inputs: dict[str, Shape], weights: Sequence[TensorProto], output: str = "y",
    opset: int = 17, integer_inputs: Sequence[str] = (), domains: Sequence[str] = (),
) -> ModelProto:  # fmt: skip
    """A model with one output; inputs are float32 unless listed in ``integer_inputs``."""
    types = {name: TensorProto.INT64 if name in integer_inputs else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        list(nodes), "net",
        [helper.make_tensor_value_info(name, types[name], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        list(weights),
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, producer_name="by hand")


def save(folder: Path, proto: ModelProto, name: str = "net") -> Path:
    path = folder / f"{name}.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def residual_net() -> ModelProto:
    """Convolution, batch norm, ReLU, a residual block, global pool, classifier; the batch is open."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "stem.weight"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.mean", "bn.var"], ["b", "m", "v"],
             training_mode=1),
        node("Relu", ["b"], ["c"], name="relu"),
        node("Conv", ["c", "block.weight"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["d", "c"], ["e"], name="sum"),
        node("GlobalAveragePool", ["e"], ["f"], name="pool"),
        node("Flatten", ["f"], ["g"]),
        node("Gemm", ["g", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]  # fmt: skip
    weights = [
        weight("stem.weight", 16, 3, 3, 3), weight("bn.weight", 16), weight("bn.bias", 16),
        weight("bn.mean", 16), weight("bn.var", 16), weight("block.weight", 16, 16, 3, 3),
        weight("fc.weight", 10, 16), weight("fc.bias", 10),
    ]  # fmt: skip
    return model(nodes, {"x": ["N", 3, 8, 8]}, weights)
