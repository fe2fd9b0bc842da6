"""From a workload of a measurement file to a step: a trace as it is or re-sized, or a list of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from jouletrace.errors import UsageError, did_you_mean
from jouletrace.trace.activities import forward_only
from jouletrace.trace.batch import with_batch
from jouletrace.trace.io import SUFFIXES, load_trace, read_trace
from jouletrace.trace.model import Conv as ConvNest
from jouletrace.trace.model import Copy as CopyNest
from jouletrace.trace.model import Gemm, Header, Op, Phase, Tensor, Trace
from jouletrace.validate.measurements import Conv, Copy, Density, FullyConnected, Layer, Workload

__all__ = ["below", "selected", "step"]

_PRODUCTS: tuple[Phase, ...] = ("forward", "backward_data", "backward_weight")


def step(workload: Workload, folder: Path, batch: int | None) -> Trace:
    """The step of a workload; ``batch`` re-sizes it once more.

    Raises :class:`UsageError` or :class:`TraceError` for a trace that there is not, or that cannot be re-sized.
    """
    return _step(workload.model_copy(update={"names": {}}).model_dump_json(by_alias=True), folder, batch)


@lru_cache(maxsize=8)
def _step(text: str, folder: Path, batch: int | None) -> Trace:
    workload = Workload.model_validate_json(text)
    size = batch or workload.batch
    if workload.trace is None:
        assert size is not None
        trace = _listed(workload.layers, size, training=not workload.inference)
    else:
        name = workload.trace
        trace = read_trace(below(folder, name)) if name.endswith(SUFFIXES) else load_trace(name)
        if size is not None and size != trace.header.batch:
            trace = with_batch(trace, size)
        if workload.inference:
            trace = forward_only(trace)
    if workload.precision is not None:
        trace = _as_type(trace, workload.precision)
    return _with_densities(trace, workload.densities)


def below(folder: Path, name: str) -> Path:
    """A file beside a measurement file, or below it; :class:`UsageError` for any other."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{name!r} lies outside the folder of the measurement file; keep its files below it")
    return path


def selected(
    trace: Trace, workload: Workload, layer: tuple[str, ...], phase: tuple[str, ...], kinds: tuple[str, ...]
) -> tuple[Op, ...]:
    """The ops of a selector; layers by the names of the citation or of the trace, with everything below them.

    Raises :class:`UsageError`, with what comes near, where nothing is selected.
    """
    names = {op.layer for op in trace.ops}
    paths = {".".join(parts[:n]) for parts in (name.split(".") for name in names) for n in range(1, len(parts) + 1)}
    wanted: list[str] = []
    problems: list[str] = []
    for name in layer:
        found = workload.names.get(name, name)
        if found in paths:
            wanted.append(found)
            continue
        hint = did_you_mean(found, sorted({*workload.names, *paths}))
        hint = hint or f"; it has {', '.join(sorted(names - {''}))[:400]}"
        problems.append(f"{trace.header.name} has no layer {found!r}{hint}")
    if problems:
        raise UsageError(problems)
    ops = tuple(
        op for op in trace.ops
        if (not layer or any(op.layer == name or op.layer.startswith(f"{name}.") for name in wanted))
        and (not phase or op.phase in phase)
        and (not kinds or op.kind in kinds)
    )  # fmt: skip
    if not ops:
        here = [op for op in trace.ops if not layer or op.layer in wanted]
        phases, known = sorted({op.phase for op in here}), sorted({op.kind for op in here})
        near = "".join(did_you_mean(kind, known) for kind in kinds if kind not in known)
        raise UsageError(f"the selector chooses no op of {trace.header.name}; phases there are {', '.join(phases)}, "
                         f"kinds {', '.join(known)}{near}")  # fmt: skip
    return ops


def _as_type(trace: Trace, precision: str) -> Trace:
    """Every floating-point tensor in another type."""
    kind = precision.rstrip("0123456789")
    bits = int(precision.removeprefix(kind))
    tensors = (replace(t, bits=bits, format=kind) if t.format == "fp" else t for t in trace.tensors)  # pyright: ignore
    return replace(trace, tensors=tuple(tensors))


def _with_densities(trace: Trace, densities: tuple[Density, ...]) -> Trace:
    """What the forward op of a layer reads first has this share of non-zeros; its ops with MACs come before others."""
    shares: dict[str, tuple[int, int]] = {}
    layers = sorted({op.layer for op in trace.ops if op.phase == "forward"})
    for density in densities:
        if density.layer not in layers:
            raise UsageError(f"densities: {trace.header.name} has no layer {density.layer!r}"
                             f"{did_you_mean(density.layer, layers)}")  # fmt: skip
        share = Fraction(str(density.value))
        ops = [op for op in trace.ops if op.layer == density.layer and op.phase == "forward"]
        for op in [op for op in ops if op.macs] or ops[:1]:
            shares[op.reads[0]] = share.as_integer_ratio()
    return replace(trace, tensors=tuple(replace(t, density=shares.get(t.name, t.density)) for t in trace.tensors))


# -- layer lists


def _listed(layers: tuple[Layer, ...], batch: int, *, training: bool) -> Trace:
    """Layers one after the other, each with tensors of its own, forward and then backward; the first computes no
    gradient of its input. Copies are made once.
    """
    tensors: dict[str, Tensor] = {}
    ops: list[Op] = []
    phases = _PRODUCTS if training else _PRODUCTS[:1]
    for phase in phases:
        for i, layer in list(enumerate(layers))[:: 1 if phase == "forward" else -1]:
            if (phase == "backward_data" and i == 0) or (phase != "forward" and isinstance(layer, Copy)):
                continue
            role = "input" if i == 0 else "activation"
            op, touched = _copy(layer, batch) if isinstance(layer, Copy) else _product(layer, phase, batch, role)
            tensors |= touched
            ops.append(op)
    return Trace(Header(f"layers-b{batch}", batch), tuple(tensors.values()), tuple(ops))


def _copy(layer: Copy, batch: int) -> tuple[Op, dict[str, Tensor]]:
    names = (f"{layer.name}.x", f"{layer.name}.y")
    tensors = {name: Tensor(name, (batch, layer.elements), 32, "fp", "activation") for name in names}
    nest = CopyNest("transpose", batch * layer.elements)
    return Op(f"{layer.name}:forward", "forward", layer.name, nest, names[:1], names[1:]), tensors


def _product(layer: Conv | FullyConnected, phase: Phase, batch: int, role: str) -> tuple[Op, dict[str, Tensor]]:
    if isinstance(layer, Conv):
        nest, shapes = _conv(layer, phase, batch)
    else:
        nest, shapes = _gemm(layer, phase, batch)
    roles = {"x": role, "w": "param", "y": "activation", "gy": "gradient", "gx": "gradient", "gw": "weight_gradient"}
    reads, writes = {
        "forward": (("x", "w"), "y"), "backward_data": (("gy", "w"), "gx"), "backward_weight": (("gy", "x"), "gw"),
    }[phase]  # fmt: skip
    touched = {
        f"{layer.name}.{t}": Tensor(f"{layer.name}.{t}", shapes[t.removeprefix("g")], 32, "fp", roles[t])  # pyright: ignore
        for t in (*reads, writes)
    }
    full = [f"{layer.name}.{t}" for t in reads]
    return Op(f"{layer.name}:{phase}", phase, layer.name, nest, tuple(full), (f"{layer.name}.{writes}",)), touched


def _conv(layer: Conv, phase: Phase, batch: int) -> tuple[ConvNest, dict[str, tuple[int, ...]]]:
    G, K, C = layer.groups, layer.out_channels // layer.groups, layer.in_channels // layer.groups
    pad = layer.kernel // 2 if layer.padding is None else layer.padding
    rows, columns = ((n - 1) * layer.stride + layer.kernel - 2 * pad for n in (layer.rows, layer.columns))
    if min(rows, columns) < 1:
        raise UsageError(f"layer {layer.name!r}: padding of {pad} leaves no input for {layer.rows} rows of output")
    nest = ConvNest(
        batch, K, C, layer.rows, layer.columns, layer.kernel, layer.kernel, G, rows, columns,
        (layer.stride, layer.stride), (pad,) * 4, (1, 1), phase,  # pyright: ignore
    )  # fmt: skip
    return nest, dict(_shapes((batch, G * C, rows, columns), (G * K, C, layer.kernel, layer.kernel),
                              (batch, G * K, layer.rows, layer.columns)))  # fmt: skip


def _gemm(layer: FullyConnected, phase: Phase, batch: int) -> tuple[Gemm, dict[str, tuple[int, ...]]]:
    out, features = layer.out_features, layer.in_features
    nest = {
        "forward": Gemm(1, batch, out, features, tb=True),
        "backward_data": Gemm(1, batch, features, out),
        "backward_weight": Gemm(1, out, features, batch, ta=True),
    }[phase]  # fmt: skip
    return nest, dict(_shapes((batch, features), (out, features), (batch, out)))


def _shapes(x: tuple[int, ...], w: tuple[int, ...], y: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (("x", x), ("w", w), ("y", y))
