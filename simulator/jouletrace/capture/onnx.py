"""ONNX import: a forward graph from a file, and the training step by the reverse-mode rules.

Only shapes are used. Weights are dropped as soon as the file is parsed, nothing but the file itself is
opened, and everything in it counts as untrusted: its size, its number of nodes and the sizes of its tensors
are limited. Needs the ``onnx`` extra; PyTorch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from jouletrace.capture.onnx_fold import MAX_VALUES, fold, infer
from jouletrace.capture.onnx_graph import MAX_TENSOR_ELEMENTS, Approximate, Graph, title
from jouletrace.capture.onnx_ops import OPERATORS
from jouletrace.capture.reverse import train_step
from jouletrace.errors import CaptureError, LimitExceeded, UsageError, did_you_mean
from jouletrace.trace.check import check
from jouletrace.trace.model import Trace

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["MAX_FILE_BYTES", "MAX_NODES", "capture_onnx", "onnx_forward"]

MAX_FILE_BYTES = 2**31 - 1  # a protobuf message cannot be larger
MAX_NODES = 100_000


def capture_onnx(path: str | Path, batch: int | None = None, optimizer: str = "sgd_momentum",
                 approximate: Approximate | None = None) -> Trace:  # fmt: skip
    """The training step of the network in an ONNX file; arguments and errors as for :func:`onnx_forward`."""
    step = train_step(onnx_forward(path, batch, approximate), optimizer)
    check(step)
    return step


def onnx_forward(path: str | Path, batch: int | None = None, approximate: Approximate | None = None) -> Trace:
    """The forward pass in an ONNX file, closed by a cross-entropy over the first output if it has no loss.

    ``batch`` stands for the one symbolic size that the inputs may have; where all sizes are fixed it says
    which of them is the batch, by default the first of the first input. An operator without rule is an
    error, unless ``approximate="elementwise"`` asks for one pass over its result instead (which has the
    shape of the first input where the operator is not of ONNX itself); the header then says so.

    Raises CaptureError for a file that cannot be imported (all problems at once), LimitExceeded for one that
    is too large.
    """
    if approximate not in (None, "elementwise"):
        raise UsageError(f"approximate is {approximate!r}; the one approximation is 'elementwise'.")
    path = Path(path)
    model = _read(path)
    _check_operators(model, path, approximate)
    _fix_sizes(model, path, batch)
    _infer(model, path)
    graph = Graph(model, path, batch, approximate)
    for node in model.graph.node:
        graph.run(node, OPERATORS)
    return graph.finish()


def _check_operators(model: ModelProto, path: Path, approximate: Approximate | None) -> None:
    problems: list[str] = []
    for node in model.graph.node:
        if any(a.HasField("g") or a.graphs for a in node.attribute):
            problems.append(f"{path}: node {title(node)}: {node.op_type} holds a graph of its own (a branch "
                            "or a loop); what it does depends on data, export without it.")  # fmt: skip
        elif (_is_custom(node) or node.op_type not in OPERATORS) and approximate is None:
            operator = f"{node.domain}::{node.op_type}" if _is_custom(node) else node.op_type
            problems.append(f"{path}: node {title(node)}: no rule for operator {operator}"
                            f"{did_you_mean(operator, tuple(OPERATORS))}; approximate='elementwise' "
                            "counts it as one pass over its result.")  # fmt: skip
    if problems:
        raise CaptureError(problems)


def _is_custom(node: NodeProto) -> bool:
    return node.domain not in ("", "ai.onnx")


# -- reading what cannot be trusted


def _read(path: Path) -> ModelProto:
    try:
        import onnx
    except ImportError as missing:
        raise CaptureError("ONNX import needs the onnx package; install jouletrace[onnx].") from missing
    from google.protobuf.message import DecodeError

    try:
        size = path.stat().st_size
    except OSError as problem:
        raise CaptureError(f"{path}: cannot be read: {problem.strerror}.") from problem
    if not path.is_file():
        raise CaptureError(f"{path}: is not a file.")
    if size > MAX_FILE_BYTES:
        raise LimitExceeded(f"{path}: {size} bytes are more than the {MAX_FILE_BYTES} that an ONNX file may have.")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, OSError) as problem:
        raise CaptureError(f"{path}: is not an ONNX file ({problem}).") from problem
    if not model.graph.node or not model.graph.output:
        raise CaptureError(f"{path}: has no graph, or an empty one; is it an ONNX file?")
    if len(model.graph.node) > MAX_NODES:
        raise LimitExceeded(f"{path}: {len(model.graph.node)} nodes are more than {MAX_NODES}.")
    if not all(isinstance(text, str) for text in _texts(model)):
        raise CaptureError(f"{path}: is a damaged ONNX file; some of its names are no text.")
    _drop_weights(model, path)
    return model


def _texts(model: ModelProto) -> Iterator[object]:
    """Names that the import uses; what is no UTF-8 comes as bytes."""
    yield from (model.producer_name, model.producer_version)
    yield from (entry.domain for entry in model.opset_import)
    for node in model.graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for tensor in _tensors(model.graph):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))
    for value in (*model.graph.input, *model.graph.output):
        yield value.name
        yield from (d.dim_param for d in value.type.tensor_type.shape.dim)


def _drop_weights(model: ModelProto, path: Path) -> None:
    """Refuse external data, then forget all values but those of small tensors (sizes, axes, bounds)."""
    problems: list[str] = []
    for tensor in _tensors(model.graph):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            place = {entry.key: entry.value for entry in tensor.external_data}.get("location", "an unnamed file")
            problems.append(f"{path}: tensor {tensor.name!r} keeps its data in {place!r}; no other file is "
                            "opened. Save the model with its data inside it.")  # fmt: skip
        if any(d < 0 for d in tensor.dims) or prod(tensor.dims) > MAX_TENSOR_ELEMENTS:
            problems.append(f"{path}: tensor {tensor.name!r} has the impossible shape {list(tensor.dims)}.")
        if prod(tensor.dims) > MAX_VALUES:
            for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
                tensor.ClearField(field)
    if problems:
        raise CaptureError(problems)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _fix_sizes(model: ModelProto, path: Path, batch: int | None) -> None:
    """Put the batch in the place of the one symbolic size of the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    open_sizes = [(value, d) for value in inputs for d in value.type.tensor_type.shape.dim
                  if not d.HasField("dim_value") or d.dim_value <= 0]  # fmt: skip
    symbols = list(dict.fromkeys(d.dim_param or f"unnamed size of {value.name}" for value, d in open_sizes))
    if len(symbols) > 1:
        raise CaptureError(f"{path}: the inputs have the open sizes {', '.join(symbols)}, and only one, the "
                           "batch, can be given; export the model with the others fixed.")  # fmt: skip
    if symbols and batch is None:
        raise CaptureError(f"{path}: the inputs have the open size {symbols[0]!r}; give the batch.")
    if batch is not None and batch < 1:
        raise CaptureError(f"{path}: the batch must be at least 1, got {batch}.")
    for _, d in open_sizes:
        d.dim_value = batch or 1


def _infer(model: ModelProto, path: Path) -> None:
    """Evaluate the arithmetic on sizes, then work out the shapes of all values."""
    try:
        fold(model)
        known = infer(model)
    except Exception as problem:  # onnx has no one class for what can be wrong with a file
        raise CaptureError(f"{path}: the shapes do not fit together: {problem}") from problem
    for field in ("value_info", "output"):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(known.graph, field))
