# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Records what a training in PyTorch decides, iteration by iteration, into a log (:mod:`jouletrace.trace.decisions`).

Two lines in a script; nothing else changes::

    with jouletrace.record(model, "run.decisions.jsonl.gz", batch=128) as recorder:
        for images, labels in loader:
            ...  # as before
            recorder.step()  # ends a nominal iteration, also one whose batch was dropped

What a call does not show, a module tells in its attributes ``jouletrace_samples``, ``jouletrace_bits`` and
``jouletrace_predictor`` (docs/decisions.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from jouletrace.errors import CaptureError, UsageError, did_you_mean

try:
    import torch
except ImportError as missing:
    raise CaptureError(
        "recording the decisions of a training needs PyTorch, which is not installed; run 'pip install torch'"
    ) from missing

from torch import Tensor, nn

from jouletrace.files import write_file
from jouletrace.trace.decisions import (
    ACTIVATION,
    GRADIENT,
    MAX_BITS,
    Decisions,
    encode_end,
    encode_header,
    encode_iteration,
    write_dump,
)

__all__ = ["DecisionRecorder", "record"]


def record(
    model: nn.Module,
    path: str | os.PathLike[str],
    batch: int,
    units: Iterable[str | type[nn.Module]] | None = None,
    density_every: int = 200,
) -> DecisionRecorder:
    """A context manager that writes what the training of ``model`` decides to the log ``path``.

    ``batch`` is the number of samples of a full batch. ``units`` are the modules that a decision may skip, by path or
    by class; without it, those with an attribute ``jouletrace_samples``. Non-zeros are counted in the first iteration
    that runs and in every ``density_every``-th after it (0: never).

    While the training runs, the log grows in a plain file beside ``path``, ``run.partial.jsonl`` for
    ``run.decisions.jsonl.gz``. At the end it becomes ``path``. After an exception (Ctrl-C, too) the plain file
    stays, as a valid log of all iterations up to there, and an older file at ``path`` stays as it was.

    Raises UsageError for unknown units, a model without parameters to train, and a place that cannot be written.
    """
    return DecisionRecorder(model, path, batch, units, density_every)


@dataclass(slots=True, eq=False)
class _Watched:
    """A module that is a unit, a layer or both, and what it did in this iteration."""

    path: str
    module: nn.Module
    above: tuple[nn.Module, ...]  # itself and the modules around it, inmost first
    unit: int = -1
    layer: int = -1
    calls: int = 0


class DecisionRecorder:
    """What :func:`record` gives; :meth:`step` ends an iteration."""

    def __init__(
        self,
        model: nn.Module,
        path: str | os.PathLike[str],
        batch: int,
        units: Iterable[str | type[nn.Module]] | None,
        density_every: int,
    ) -> None:
        self.path = os.fspath(path)
        self._model, self._batch, self._density_every = model, batch, density_every
        self._watched = _watched(model, units)
        self._units = [w for w in self._watched if w.unit >= 0]
        self._layers = [w for w in self._watched if w.layer >= 0]
        self._iteration = self._executed = 0
        self._bits: dict[int, tuple[int, ...]] = {}
        self._hooks: list[Any] = []
        self._file: Any = None
        if density_every < 0:
            raise UsageError(f"density_every has to be 0 (never) or a number of iterations (got {density_every})")
        names = tuple(w.path for w in self._units), tuple(w.path for w in self._layers)
        producer = ("framework", "torch"), ("framework_version", torch.__version__.split("+")[0])
        empty = np.zeros(0, dtype=np.bool_), np.zeros((0, len(names[0])), dtype=np.int32)
        self._header = encode_header(Decisions(type(model).__name__, batch, *names, *empty, producer=producer))
        self._reset()

    def _reset(self) -> None:
        self._reached = False
        self._samples: list[list[Any]] = [[] for _ in self._units]
        self._counted: dict[tuple[int, int], list[tuple[Tensor, int]]] = {}
        for watched in self._watched:
            watched.calls = 0

    # -- the life of a log

    @property
    def partial_path(self) -> Path:
        """Where the log grows while the training runs."""
        folder, name = os.path.split(self.path)
        stem = name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".decisions")
        return Path(folder, f"{stem}.partial.jsonl")

    def __enter__(self) -> DecisionRecorder:
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        if not parameters:
            raise UsageError("no parameter of the model takes a gradient: there is no training to record")
        try:
            self._file = open(self.partial_path, "wb")
        except OSError as error:
            raise UsageError(f"{self.partial_path}: cannot be written: {error.strerror}; name a file in a folder "
                             "that exists") from None  # fmt: skip
        self._write(self._header)
        self._hooks = [p.register_post_accumulate_grad_hook(self._backward_reached) for p in parameters]
        self._hooks += [
            w.module.register_forward_hook(_hook(self._called, w), with_kwargs=True) for w in self._watched
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._file.close()
        self._file = None
        beside = self.partial_path
        data = beside.read_bytes()
        data = data[: data.rfind(b"\n") + 1]  # an interrupt may have left a part of a line
        write_file(beside, data := data + encode_end(data))
        if error is not None:
            error.add_note(f"the decisions of the {self._iteration} iterations up to here are in {beside}")
        elif not self._iteration:
            raise UsageError("the log has no iterations: call recorder.step() at the end of each, dropped or not")
        else:
            write_dump(data, self.path)
            beside.unlink()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    # -- what is seen

    def _backward_reached(self, parameter: Tensor) -> None:
        self._reached = True

    def _called(self, watched: _Watched, inputs: Any, output: Any) -> None:
        """After a call: counts unless it belongs to an evaluation, or repeats a forward pass for a backward one."""
        task: int = torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        if not (self._model.training and torch.is_grad_enabled()):
            return
        if task != -1:
            if not watched.calls:  # its forward pass ran without gradients, as an evaluation does
                raise CaptureError(f"reentrant checkpointing hides what {watched.path!r} does; checkpoint with "
                                   "use_reentrant=False")  # fmt: skip
            return
        watched.calls += 1
        read = next(_tensors(inputs), None)
        if watched.unit >= 0:
            told = getattr(watched.module, "jouletrace_samples", None)
            rows = read.shape[0] if read is not None and read.dim() else 0
            self._samples[watched.unit].append(rows if told is None else told)
        if watched.layer >= 0 and self._density_every and self._executed % self._density_every == 0:
            written = next(_tensors(output), None)
            if read is not None:
                self._count(watched.layer, ACTIVATION, read)
            if written is not None and written.requires_grad:
                written.register_hook(partial(self._count, watched.layer, GRADIENT))

    def _count(self, layer: int, kind: int, tensor: Tensor) -> None:
        """Counts non-zeros, on the device of the tensor; :meth:`step` fetches the number."""
        counted = torch.count_nonzero(tensor.detach()), tensor.numel()
        self._counted.setdefault((layer, kind), []).append(counted)

    # -- what is written

    def step(self) -> None:
        """Ends a nominal iteration. It ran if a backward pass reached a parameter; otherwise its batch was dropped.

        Raises CaptureError for attributes of modules that make no sense, UsageError outside the ``with`` block.
        """
        if self._file is None:
            raise UsageError("recorder.step() belongs inside 'with jouletrace.record(...) as recorder:'")
        samples = [self._ran(w, counts) for w, counts in zip(self._units, self._samples, strict=True)]
        tables = {"precision": self._precision(), "predictor": self._predictor(), "density": self._density()}
        line = encode_iteration(
            self._iteration, samples if self._reached else None, self._batch, tables if self._reached else {}
        )
        if self._reached:
            self._bits |= {layer: tuple(bits) for layer, *bits in tables["precision"]}
            self._executed += 1
        self._write(line)
        self._iteration += 1
        self._reset()

    def _ran(self, watched: _Watched, counts: list[Any]) -> int:
        total = sum(_integers(watched, "jouletrace_samples", count)[0] for count in counts)
        if not 0 <= total <= self._batch:
            raise CaptureError(
                f"iteration {self._iteration}: {total} samples ran the unit {watched.path!r}, of a batch of "
                f"{self._batch}; call recorder.step() once per iteration, and let the module set jouletrace_samples "
                "if its rows are no samples"
            )
        return total

    def _precision(self) -> list[list[int]]:
        """The layers whose bits differ from those in force; a module's bits hold for all within it."""
        changed: list[list[int]] = []
        for watched in self._layers:
            told = (getattr(module, "jouletrace_bits", None) for module in watched.above)
            bits = next((bits for bits in told if bits is not None), None)
            if bits is not None:
                numbers = _integers(watched, "jouletrace_bits", bits, 3)
                if not 1 <= min(numbers) <= max(numbers) <= MAX_BITS:
                    raise CaptureError(f"{watched.path}.jouletrace_bits must lie within 1 and {MAX_BITS} (got {bits})")
                if self._bits.get(watched.layer) != tuple(numbers):
                    changed.append([watched.layer, *numbers])
        return changed

    def _predictor(self) -> list[list[int]]:
        """What the layers that were called took from their predictors."""
        rows: list[list[int]] = []
        for watched in self._layers:
            told = getattr(watched.module, "jouletrace_predictor", None) if watched.calls else None
            if told is not None:
                taken, whole = _integers(watched, "jouletrace_predictor", told, 2)
                if not 0 <= taken <= whole or not whole:
                    raise CaptureError(f"{watched.path}.jouletrace_predictor: {taken} of {whole} makes no sense")
                rows.append([watched.layer, taken, whole])
        return rows

    def _density(self) -> list[list[int]]:
        return [
            [layer, kind, sum(int(found) for found, _ in counted), sum(elements for _, elements in counted)]
            for (layer, kind), counted in sorted(self._counted.items())
        ]


def _watched(model: nn.Module, units: Iterable[str | type[nn.Module]] | None) -> list[_Watched]:
    """The units and the layers of a model. A layer is a module with a weight of its own (two dimensions or more)."""
    modules = dict(model.named_modules())
    wanted = None if units is None else list(units)
    if unknown := [unit for unit in wanted or () if isinstance(unit, str) and unit not in modules]:
        raise UsageError([f"the model has no module {u!r}{did_you_mean(u, tuple(modules))}" for u in unknown])
    classes = tuple(unit for unit in wanted or () if not isinstance(unit, str))
    found: list[_Watched] = []
    counts = {"unit": 0, "layer": 0}
    for path, module in modules.items():
        parts = path.split(".")
        above = tuple(modules[".".join(parts[:n])] for n in range(len(parts), -1, -1)) if path else (module,)
        watched = _Watched(path, module, above)
        named = path in (wanted or ()) or isinstance(module, classes)
        if named or (wanted is None and hasattr(module, "jouletrace_samples")):
            watched.unit = counts["unit"]
            counts["unit"] += 1
        if any(p.dim() > 1 for p in module.parameters(recurse=False)) or hasattr(module, "jouletrace_predictor"):
            watched.layer = counts["layer"]
            counts["layer"] += 1
        if watched.unit >= 0 or watched.layer >= 0:
            found.append(watched)
    return found


def _hook(called: Callable[[_Watched, Any, Any], None], watched: _Watched) -> Callable[..., None]:
    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        called(watched, (*args, *kwargs.values()), output)

    return after


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _integers(watched: _Watched, attribute: str, values: Any, count: int = 1) -> list[int]:
    """The numbers of an attribute; each may be a tensor with one element, which is fetched here."""
    given = list(values) if isinstance(values, list | tuple) else [values]
    numbers: list[Any] = [v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in given]
    if len(numbers) != count or any(type(number) is not int for number in numbers):
        what = "an integer" if count == 1 else f"{count} integers"
        raise CaptureError(f"{watched.path}.{attribute} has to be {what} (got {values!r})")
    return numbers
