# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Captures a training step of PyTorch on the meta device: shapes only, no arithmetic, no dataset.

A recipe is a function of the batch size. It builds a model, an optimizer and data with ordinary PyTorch,
and returns the model and a function that trains one step::

    def tiny(batch):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

        def step():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return model, step
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

from jouletrace.errors import CaptureError, JouletraceError, UsageError

try:
    import torch
except ImportError as missing:
    raise CaptureError(
        "capturing a recipe needs PyTorch, which is not installed; "
        "run 'pip install torch', or use a shipped trace"
    ) from missing

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from jouletrace.capture.attribution import LayerTags, SecondOpinion
from jouletrace.capture.facts import Existing, Facts, Recurrent
from jouletrace.capture.lower import lower_rows
from jouletrace.capture.recipe import load_recipe
from jouletrace.capture.record import PACKAGES, Recorder
from jouletrace.capture.uncompiled import uncompiled
from jouletrace.trace.check import check
from jouletrace.trace.model import Header, Loss, Role, Trace

__all__ = ["capture_recipe", "capture_step"]

Recipe = Callable[[int], tuple[torch.nn.Module, Callable[[], object]]]
_RECURRENT: dict[type[torch.nn.Module], Literal["lstm", "gru"]] = {
    torch.nn.LSTM: "lstm", torch.nn.LSTMCell: "lstm", torch.nn.GRU: "gru", torch.nn.GRUCell: "gru",
}  # fmt: skip


def capture_recipe(spec: str, batch: int, name: str | None = None) -> Trace:
    """Captures ``path/to/file.py:function`` at a batch size; see :func:`capture_step`."""
    return capture_step(load_recipe(spec), batch, name)


def capture_step(recipe: Recipe, batch: int, name: str | None = None) -> Trace:
    """The second step of a recipe as a trace; the first one runs unrecorded, as it makes optimizer state.

    ``name`` defaults to the recipe's own with the batch size, as in ``resnet74-b128``. Raises
    :class:`CaptureError` with the line of the recipe for what has no meaning without values
    (``.item()``) and for ops without a model.
    """
    if batch < 1:
        raise UsageError(f"a batch has at least one sample (got {batch})")
    try:
        with uncompiled(), torch.device("meta"):
            model, step = _built(recipe, batch)
            session = _Session(model)
            session.run(step)
            session.run(step, record=True)
    except JouletraceError:
        raise
    except Exception as error:
        raise CaptureError(_explain(error)) from error
    header = Header(
        name=name or f"{recipe.__name__}-b{batch}",
        batch=batch,
        optimizer=", ".join(dict.fromkeys(_describe(o) for o in session.optimizers)),
        producer=(
            ("framework", "torch"),
            ("framework_version", torch.__version__.split("+")[0]),
            ("tool", "jouletrace"),
        ),
        policy=(
            ("decomposition", "meta"), ("device", "meta"), ("granularity", "1"), ("warm_up_steps", "1"),
        ),
        warnings=session.warnings,
    )  # fmt: skip
    trace = lower_rows(session.recorder.rows, session.facts, header)
    forward = (op.nest for op in trace.ops if op.phase == "forward")
    losses = dict.fromkeys(nest.function for nest in forward if isinstance(nest, Loss))
    trace = replace(trace, header=replace(header, loss=", ".join(losses)))
    check(trace)
    return trace


def _built(recipe: Recipe, batch: int) -> tuple[torch.nn.Module, Callable[[], object]]:
    built: Any = recipe(batch)
    match built:
        case (torch.nn.Module() as model, step) if callable(step):
            return model, step
        case _:
            pass
    file, line = inspect.getsourcefile(recipe), inspect.getsourcelines(recipe)[1]
    raise CaptureError(
        f"{file}:{line}: the recipe {recipe.__name__!r} has to return (model, step): a torch.nn.Module and a "
        f"function without arguments that trains one step (it returned {type(built).__name__})"
    )


class _Session:
    """One model under the recorder: runs steps, and learns the names of what exists between them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.optimizers: list[torch.optim.Optimizer] = []
        self.facts = Facts()
        self._tags = LayerTags(model)
        self._opinion = SecondOpinion(model, self._tags.locate)
        self.recorder = Recorder(self._opinion.locate)
        self._cpu = ExitStack()

    def run(self, step: Callable[[], object], record: bool = False) -> None:
        """Runs one step; with ``record`` what exists now is named first."""
        if record:
            self._name_existing(step)
        self.recorder.recording = record
        hooks = (
            register_optimizer_step_pre_hook(self._optimizer_begins),
            register_optimizer_step_post_hook(self._optimizer_ends),
        )
        try:
            with self._opinion.tracker, self._tags, self.recorder, self._cpu:
                step()
            if record and not self.optimizers:
                self._find_gradients()
        finally:
            for hook in hooks:
                hook.remove()

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """One op per parameter, not one per list of parameters; counters are plain numbers on the CPU."""
        if all(optimizer is not known for known in self.optimizers):
            self.optimizers.append(optimizer)
        for state in optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and not value.shape and value.is_meta:
                    state[key] = torch.ones((), dtype=value.dtype, device="cpu")
        for group in optimizer.param_groups:
            group["foreach"] = False
            for parameter in group["params"]:
                name = self.facts.existing.get(self.recorder.ref(parameter).storage)
                if self.recorder.recording and name is not None and parameter.grad is not None:
                    self.facts.gradients[self.recorder.ref(parameter.grad).key] = name.name
                    self.facts.rules[name.name] = _rule(optimizer, group)
        self.recorder.in_optimizer = True
        self._cpu.enter_context(torch.device("cpu"))

    def _optimizer_ends(self, *_: Any) -> None:
        self._cpu.close()
        self.recorder.in_optimizer = False

    def _name_existing(self, step: Callable[[], object]) -> None:
        for path, module in self.model.named_modules():
            for cell, function in _RECURRENT.items():
                if isinstance(module, cell):
                    self.facts.recurrent[path] = Recurrent(function, vars(module)["hidden_size"])
        for name, parameter in self._parameters():
            self._name(name, parameter, "param", name)
            if parameter.grad is not None:
                self._name(f"{name}.grad", parameter.grad, "buffer", name)  # outlives the step
            for optimizer in self.optimizers:
                for key, state in optimizer.state.get(parameter, {}).items():
                    self._name(f"{name}.{key}", state, "optimizer_state", name)
        for path, module in self.model.named_modules():
            for key, value in {**vars(module), **module._buffers}.items():  # pyright: ignore[reportPrivateUsage]
                self._name(f"{path}.{key}" if path else key, value, "buffer")
        for name, tensor in _data(step):
            self._name(name, tensor, "input")

    def _find_gradients(self) -> None:
        """The gradients of a step that does without an optimizer."""
        for name, parameter in self._parameters():
            if parameter.grad is not None:
                self.facts.gradients[self.recorder.ref(parameter.grad).key] = name

    def _parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters of the model by path, then those that only an optimizer knows."""
        known = dict(self.model.named_parameters())
        yield from known.items()
        seen = {id(p) for p in known.values()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if id(parameter) not in seen:
                        seen.add(id(parameter))
                        yield f"parameter{len(seen) - len(known)}", parameter

    def _name(self, name: str, tensor: object, role: Role, owner: str = "") -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "meta":
            return
        ref = self.recorder.ref(tensor)
        counter = role in ("buffer", "optimizer_state") and not ref.shape and not tensor.is_floating_point()
        found = Existing(name, role, ref.shape, ref.dtype, owner, counter)
        self.facts.existing.setdefault(ref.storage, found)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the module tracker of PyTorch places elsewhere."""
        return tuple(
            f"{count} backward ops of layer {layer!r} lie outside it according to torch.utils.module_tracker"
            for layer, count in self._opinion.differing.items()
        )


def _data(step: Callable[[], object]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that a step function uses from around it, by the names of its variables."""
    around = inspect.getclosurevars(step) if inspect.isroutine(step) else None
    for name, value in {**around.globals, **around.nonlocals}.items() if around else ():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"{name}.{key}", item) for key, item in items if isinstance(item, torch.Tensor))


def _rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> str:
    rule = type(optimizer).__name__.lower()
    for option in ("nesterov", "momentum", "amsgrad"):
        if group.get(option):
            return f"{rule}_{option}"
    return rule


def _describe(optimizer: torch.optim.Optimizer) -> str:
    """The class of an optimizer and the options in which it differs from the defaults of its class.

    >>> parameter = torch.nn.Parameter(torch.zeros(1))
    >>> _describe(torch.optim.SGD([parameter], lr=0.1, momentum=0.9))
    'SGD(lr=0.1, momentum=0.9)'
    """
    usual = {k: p.default for k, p in inspect.signature(type(optimizer)).parameters.items()}
    options = (
        f"{k}={v!r}" for k, v in optimizer.defaults.items()
        if k == "lr" or (k in usual and isinstance(v, bool | int | float | tuple) and v != usual[k])
    )  # fmt: skip
    return f"{type(optimizer).__name__}({', '.join(options)})"


def _explain(error: Exception) -> str:
    """Where in the user's program an exception came from, and what it says."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(PACKAGES)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "recipe"
    text = " ".join(str(error).split())
    cure = "; make data and model inside the recipe, so that they lie on the meta device"
    return f"{place}: the step failed with {type(error).__name__}: {text}{cure if 'meta' in text else ''}"
