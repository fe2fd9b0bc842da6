# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Records what a running step asks of PyTorch, as :mod:`jouletrace.capture.rows`.

A tensor is a storage at a write version: views fold by themselves, and a write in place makes a new
version. Storages are kept alive while recording, so that an address is never used twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jouletrace.capture.rows import Place, Ref, Row, Stage, references
from jouletrace.errors import CaptureError

__all__ = ["PACKAGES", "Recorder", "user_place"]

# Source files that are not the user's: PyTorch, this package, frozen and generated code.
PACKAGES = (str(Path(torch.__file__).resolve().parent), str(Path(__file__).resolve().parent), "<")

# Asking for a value that a meta tensor does not have.
_NEEDS_DATA = {
    "aten::_local_scalar_dense": "reads a value of a tensor, as .item(), float() and if do",
    "aten::equal": "compares the values of two tensors",
    "aten::nonzero": "has as many results as there are non-zeros",
    "aten::masked_select": "has as many results as the mask has ones",
    "aten::_unique2": "has as many results as there are different values",
}
# The schema of native_batch_norm does not say that training writes the running statistics.
_HIDDEN_WRITES = {"aten::native_batch_norm": ("running_mean", "running_var")}


def user_place() -> Place:
    """The innermost line that belongs neither to PyTorch nor to this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGES):
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno)


class Recorder(TorchDispatchMode):
    """Records rows while ``recording``; always refuses what needs the values of tensors.

    ``locate(node)`` names the layer of a running op: ``node`` is the current autograd node, or None in
    forward. It returns None for a node that is run to compute the forward pass again.
    """

    def __init__(self, locate: Callable[[Any], tuple[Stage, str]]) -> None:
        super().__init__()
        self._locate = locate
        self.rows: list[Row] = []
        self.recording = False
        self.in_optimizer = False
        self._kept: dict[int, Any] = {}
        self._number: dict[int, int] = {}
        self._version: dict[int, int] = {}
        self._nodes: dict[Any, int] = {}

    def ref(self, tensor: torch.Tensor) -> Ref:
        storage = tensor.untyped_storage()
        address = storage._cdata
        number = self._number.get(address)
        if number is None:
            number = self._number[address] = len(self._number)
            self._kept[address] = storage
            self._version[number] = 0
        return Ref(
            number, self._version[number], tuple(tensor.shape), tuple(tensor.stride()),
            str(tensor.dtype).removeprefix("torch."), int(tensor.storage_offset()),
        )  # fmt: skip

    def _plain(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.device.type != "meta" and value.dim() == 0:
                return 0.0  # a step counter or another number that the optimizer keeps in a tensor
            return self.ref(value)
        if isinstance(value, list | tuple):
            return tuple(self._plain(item) for item in value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if schema.name in _NEEDS_DATA or schema.name == "aten::index":
            self._refuse_data(schema.name, args)
        if not self.recording:
            return func(*args, **kwargs)
        arguments: dict[str, Any] = {}
        written: list[Any] = []
        for i, a in enumerate(schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            arguments[a.name] = self._plain(value)
            if a.alias_info is not None and a.alias_info.is_write:
                written += value if isinstance(value, list | tuple) else [value]
            elif a.name in _HIDDEN_WRITES.get(schema.name, ()) and arguments.get("training", True):
                written.append(value)
        out = func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags:
            return out
        written = [t for t in written if isinstance(t, torch.Tensor) and isinstance(self._plain(t), Ref)]
        for tensor in written:
            self._version[self.ref(tensor).storage] += 1
        outputs = tuple(references((self._plain(out),)))
        if written or outputs:
            self._append(func, arguments, outputs, tuple(self.ref(t) for t in written))
        return out

    def _append(
        self, func: Any, arguments: dict[str, Any], outputs: tuple[Ref, ...], writes: tuple[Ref, ...]
    ) -> None:
        if not writes:
            sources = {r.key for r in references(tuple(arguments.values()))}
            if all(r.key in sources for r in outputs):
                return  # a view
        node: Any = torch._C._current_autograd_node()
        stage, layer = self._locate(node)
        name = func._schema.name
        stage = "optimizer" if self.in_optimizer else stage
        row = Row(
            name, arguments, outputs, writes, stage, layer, user_place(),
            "" if node is None else node.name(),
            -1 if node is None else self._nodes.setdefault(node, len(self._nodes)),
            torch.is_grad_enabled(),
        )  # fmt: skip
        self.rows += _each(row) if name.startswith("aten::_foreach_") else (row,)

    def _refuse_data(self, name: str, args: Any) -> None:
        if name == "aten::index" and any(t is not None and t.dtype == torch.bool for t in args[1]):
            name = "aten::nonzero"  # what picking by a mask comes to
        if name in _NEEDS_DATA and any(isinstance(t, torch.Tensor) and t.is_meta for t in args):
            raise CaptureError(
                f"{user_place()}: {name} {_NEEDS_DATA[name]}, but a captured step has shapes and no values; "
                "take the value out of the step (a constant, torch.where, a log line outside)"
            )


def _each(row: Row) -> list[Row]:
    """A ``_foreach_`` op as one op per tensor of its lists."""
    count = len(next(iter(row.arguments.values())))
    rows: list[Row] = []
    for i in range(count):
        arguments = {
            k: v[i] if isinstance(v, tuple) and len(v) == count else v for k, v in row.arguments.items()
        }
        name = row.name.replace("_foreach_", "")
        outputs, writes = row.outputs[i : i + 1], row.writes[i : i + 1]
        rows.append(replace(row, name=name, arguments=arguments, outputs=outputs, writes=writes))
    return rows
