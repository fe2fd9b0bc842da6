"""An ONNX graph while it is imported: what its values stand for, and the forward pass written so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jouletrace.capture.forward import Array, Forward
from jouletrace.capture.onnx_fold import MAX_VALUES
from jouletrace.errors import CaptureError, LimitExceeded
from jouletrace.trace.model import Elementwise, Format, Trace

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = ["MAX_OPS", "MAX_TENSOR_ELEMENTS", "Approximate", "Graph", "title"]

MAX_TENSOR_ELEMENTS = 2**40
MAX_OPS = 1_000_000  # every time step of a recurrent layer becomes three of them
MAX_LAYER_NAME = 128  # characters; a longer one is replaced

Approximate = Literal["elementwise"]


class Graph:
    """The graph while it is imported: which array every value name stands for.

    A value is a *weight* (a float initializer, not declared before it is used), a *constant* (known without
    running the network: no tensor unless an op has to read it), or an array.
    """

    def __init__(self, model: ModelProto, path: Path, batch: int | None, approximate: Approximate | None) -> None:
        self.path, self.proto = path, model.graph
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        self.arrays: dict[str, Array] = {}
        self.weights: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.constants: dict[str, None] = {}
        self.values: dict[str, list[float]] = {}
        self.warnings: list[str] = []
        self.approximate = approximate
        self._approximated: list[str] = []
        for value in (*self.proto.input, *self.proto.value_info, *self.proto.output):
            self._learn(value)
        self.uses = Counter(name for node in self.proto.node for name in node.input)
        self.uses.update(value.name for value in self.proto.output)
        self.f = self._start(model, batch)
        self.layer = ""
        self._layers = iter(self._name_layers())
        self._report()

    # -- what the file says

    def _learn(self, value: ValueInfoProto) -> None:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        self.types[value.name] = kind.elem_type
        if kind.HasField("shape") and all(d.HasField("dim_value") and d.dim_value >= 0 for d in kind.shape.dim):
            if prod(shape) > MAX_TENSOR_ELEMENTS:
                raise LimitExceeded(f"{self.path}: {value.name!r} of shape {shape} has more than "
                                    f"{MAX_TENSOR_ELEMENTS} elements.")  # fmt: skip
            self.shapes[value.name] = shape

    def _start(self, model: ModelProto, batch: int | None) -> Forward:
        for tensor in self.proto.initializer:
            self.shapes[tensor.name], self.types[tensor.name] = tuple(tensor.dims), tensor.data_type
            self.learn_values(tensor.name, tensor)
            if self.is_float(tensor.name):
                self.weights[tensor.name] = tensor.name, tuple(tensor.dims)
            else:
                self.constants[tensor.name] = None
        inputs = [v.name for v in self.proto.input if v.name not in self.weights | self.constants]
        sizes = [n for name in inputs for n in self.shape(name)]
        if batch is not None and batch not in sizes:
            raise CaptureError(f"{self.path}: the batch is given as {batch}, but the inputs have the fixed "
                               f"sizes {sizes}; export it with that batch or with an open one.")  # fmt: skip
        exporter = f"{model.producer_name} {model.producer_version}".strip()
        producer = (("tool", "jouletrace onnx"), ("exporter", exporter), ("opset", str(self.opset)))
        f = Forward(self.path.name.removesuffix(".onnx"), batch or next(iter(sizes), 1), producer)
        for name in inputs:
            bits, format = _number(self.type_name(name))
            self.arrays[name] = f.input(name, self.shape(name), bits, format)
        return f

    def _report(self) -> None:
        """A file for inference has its batch norms folded into the convolutions, or frozen."""
        import onnx

        if any(self.is_float(name) and kind != onnx.TensorProto.FLOAT for name, kind in self.types.items()):
            self.warnings.append("Some values of the file are not of type float32; activations and weights "
                                 "are counted with 32 bits.")  # fmt: skip
        nodes = self.proto.node
        biased = any(n.op_type == "Conv" and len(n.input) > 2 and n.input[2] for n in nodes)
        if biased and not any(n.op_type.endswith("Normalization") for n in nodes):
            self.warnings.append("Convolutions have biases and the file has no normalisation: if the network "
                                 "has batch norms, the export folded them into the convolutions, and what it "
                                 "costs to train them is missing. Export in training mode, without constant "
                                 "folding.")  # fmt: skip
        frozen = (n.op_type == "BatchNormalization" and not self.attribute(n, "training_mode", 0) for n in nodes)
        if self.opset >= 14 and any(frozen):
            self.warnings.append("Batch norms stand in inference mode in the file; they are counted in "
                                 "training mode.")  # fmt: skip

    def _name_layers(self) -> list[str]:
        """The owner of a node's weights by their names, else the module path in the node's name."""
        layers: list[str] = []
        for i, node in enumerate(self.proto.node):
            weights = (name for name in node.input if name in self.weights and not self.is_number(name))
            owner = next((name for name in weights if "." in name and "/" not in name), None)
            if owner is not None:
                layer = owner.rpartition(".")[0]
            elif node.name.startswith("/"):  # as PyTorch writes them; a function of the root has no path
                layer = _module_path(node.name.split("/")[1:-1])
            else:
                layer = node.name or f"{node.op_type}_{i}"
            layers.append(layer if len(layer) <= MAX_LAYER_NAME else f"{node.op_type}_{i}")
        return layers

    def problem(self, node: NodeProto, sentence: str) -> CaptureError:
        return CaptureError(f"{self.path}: node {title(node)} ({node.op_type}): {sentence}")

    def attribute(self, node: NodeProto, name: str, default: Any) -> Any:
        import onnx

        for attribute in node.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return default

    # -- values

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise CaptureError(
                f"{self.path}: the shape of {name!r} depends on data; export the model with fixed sizes."
            )
        return self.shapes[name]

    def type_name(self, name: str) -> str:
        """FLOAT, INT64, …; a value of unknown type is one of floats."""
        import onnx

        try:
            return onnx.TensorProto.DataType.Name(self.types.get(name, onnx.TensorProto.FLOAT))
        except ValueError as problem:
            raise CaptureError(f"{self.path}: {name!r} is of no known type: {problem}.") from problem

    def is_float(self, name: str) -> bool:
        return self.type_name(name).startswith(("FLOAT", "DOUBLE", "BFLOAT"))

    def has(self, node: NodeProto, index: int) -> bool:
        return index < len(node.input) and node.input[index] != ""

    def is_constant(self, name: str) -> bool:
        """Known before the step and no parameter: an integer, a single number, or a result of such."""
        return name in self.constants or (name in self.weights and prod(self.weights[name][1]) <= 1)

    def learn_values(self, name: str, tensor: TensorProto) -> None:
        """Keep the values of a small tensor: sizes, axes, bounds."""
        import onnx

        if prod(tensor.dims) <= MAX_VALUES:
            try:
                self.values[name] = [float(v) for v in onnx.numpy_helper.to_array(tensor).reshape(-1)]
            except (LookupError, TypeError, ValueError) as problem:
                raise CaptureError(f"{self.path}: tensor {name!r} cannot be read: {problem}.") from problem

    def numbers(self, node: NodeProto, index: int, attribute: str) -> list[float] | None:
        """Axes or bounds, an input in newer opsets and an attribute in older ones; None if not given."""
        if self.has(node, index):
            name = node.input[index]
            if name not in self.values:
                raise self.problem(node, f"{attribute} ({name!r}) is computed in the graph; export it as a constant.")
            return self.values[name]
        value = self.attribute(node, attribute, None)
        return [value] if isinstance(value, int | float) else value

    def parameter(self, node: NodeProto, index: int, role: Literal["param", "buffer"] = "param") -> Array:
        """Input ``index`` as a parameter (or buffer) if it is a weight, whatever its size."""
        name = node.input[index]
        if name not in self.weights:
            return self.operand(node, index)
        base, shape = self.weights[name]
        declare = self.f.parameter if role == "param" else self.f.buffer
        return declare(base, self.shapes[base]).view(*shape)

    def operand(self, node: NodeProto, index: int) -> Array:
        """Input ``index`` as something that an op reads."""
        name = node.input[index]
        if name in self.arrays:
            if not self.arrays[name].elements:
                raise self.problem(node, f"reads {name!r}, which is empty.")
            return self.arrays[name]
        if name in self.constants or self.is_constant(name):
            return self.f.buffer(name, self.shape(name))
        if name not in self.weights:
            raise self.problem(node, f"reads {name!r}, which nothing writes.")
        return self.parameter(node, index)

    def is_number(self, name: str) -> bool:
        """A single constant: it belongs to the op and is not read."""
        return self.is_constant(name) and prod(self.shape(name)) <= 1

    def variables(self, node: NodeProto) -> list[Array]:
        """The inputs that are not single numbers."""
        given = [i for i in range(len(node.input)) if self.has(node, i)]
        return [self.operand(node, i) for i in given if not self.is_number(node.input[i])]

    # -- running

    def run(self, node: NodeProto, operators: Any) -> None:
        """Import one node: fold it if nothing in it depends on the data, else let its operator write ops."""
        self.layer = next(self._layers)
        try:
            self._run(node, operators)
        except (ArithmeticError, LookupError, TypeError, ValueError) as problem:
            raise self.problem(node, f"has inputs or attributes that make no sense ({problem}).") from problem

    def _run(self, node: NodeProto, operators: Any) -> None:
        given = [name for name in node.input if name]
        if (given and all(self.is_constant(name) for name in given)) or node.op_type in ("Shape", "Size"):
            outputs = operators["Constant"](self, node)
        elif node.op_type in operators and node.domain in ("", "ai.onnx"):
            outputs = operators[node.op_type](self, node)
        else:
            outputs = self._approximate(node)
        for name, array in zip(node.output, outputs, strict=False):
            if not name:
                continue
            if array.elements != prod(self.shape(name)):
                raise self.problem(node, f"writes {array.shape}, but the file says {self.shape(name)}.")
            self.arrays[name] = array.view(*self.shape(name))

    def _approximate(self, node: NodeProto) -> list[Array]:
        self._approximated.append(f"{node.op_type} in {title(node)}")
        shapes = [self.shape(node.output[0]), *(self.shapes[n] for n in node.output[1:] if n in self.shapes)]
        nest = Elementwise(node.op_type.lower(), prod(shapes[0]))
        return self.f.emit_many(self.layer, nest, self.variables(node), [
            ("y" if i == 0 else f"y{i + 1}", shape, "activation", 32) for i, shape in enumerate(shapes)
        ])  # fmt: skip

    def finish(self) -> Trace:
        """The forward trace; a loss is added if the file has none."""
        if not self.f.loss:
            name = self.proto.output[0].name
            if name not in self.arrays:
                raise CaptureError(f"{self.path}: output {name!r} does not depend on the inputs.")
            logits = self.arrays[name]
            if not logits.shape or not logits.elements:
                raise CaptureError(f"{self.path}: output {name!r} has no classes to compare with labels, and the "
                                   "file has no loss; export the network without its loss.")  # fmt: skip
            width = logits.shape[1] if len(logits.shape) == 4 else logits.shape[-1]
            free = next(n for n in ("labels", "labels.added") if n not in self.f.tensors)
            labels = self.f.input(free, (logits.elements // width,), 64, "int")
            self.f.cross_entropy_with("", logits, labels, width)
            self.warnings.append(f"The file has no loss; a cross-entropy over output {name!r} was added.")
        self.warnings += [f"Approximated as one pass over its result: {what}." for what in self._approximated]
        trace = self.f.trace()
        policy = (("approximate", "elementwise"),) if self._approximated else ()
        return replace(trace, header=replace(trace.header, policy=policy, warnings=tuple(self.warnings)))


def title(node: NodeProto) -> str:
    """How messages call a node: by its name, or by what it writes."""
    return repr(node.name or f"{node.op_type} of {', '.join(node.output)}")


def _module_path(scope: list[str]) -> str:
    """``["layer1", "layer1.0", "conv1"]`` (as PyTorch names nodes) is ``layer1.0.conv1``."""
    path: list[str] = []
    for part in scope:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


def _number(type_name: str) -> tuple[int, Format]:
    """Bits and format of an input: the 64 of INT64, one for a truth value."""
    digits = "".join(c for c in type_name if c.isdigit())
    if type_name.startswith(("FLOAT", "BFLOAT", "DOUBLE")):
        return int(digits[:2]) if digits else 64 if type_name == "DOUBLE" else 32, "fp"
    return int(digits) if digits else 1, "int"
