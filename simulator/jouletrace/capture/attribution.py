# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Which layer an op belongs to: the running module forward, the tag of its autograd node backward.

Every autograd node made in forward is tagged with the module that runs; nodes made below Python (the
inside of an LSTM) inherit the tag of their nearest consumer. :class:`SecondOpinion` asks PyTorch's own
module tracker the same question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.module_tracker import ModuleTracker

from jouletrace.capture.rows import Stage

__all__ = ["LayerTags", "SecondOpinion"]

_KEY = "jouletrace_layer"


class LayerTags(TorchFunctionMode):
    """Tags autograd nodes with the path of the module that runs; a context manager around the step."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> LayerTags:
        self._hooks = [
            register_module_forward_pre_hook(self._push),
            register_module_forward_hook(self._pop, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        for hook in self._hooks:
            hook.remove()

    def _push(self, module: torch.nn.Module, inputs: Any) -> None:
        self._stack.append(self._names.get(module, self._stack[-1] if self._stack else ""))

    def _pop(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            node: Any = tensor.grad_fn if isinstance(tensor, torch.Tensor) else None
            if node is not None:
                node.metadata.setdefault(_KEY, self._stack[-1] if self._stack else "")
        return out

    def locate(self, node: Any) -> tuple[Stage, str]:
        """Stage and layer of an op that runs now, under autograd node ``node`` (None: no node).

        A module that runs under a node computes a part of the forward pass again (checkpointing).
        """
        if node is None or self._stack:
            return "forward", self._stack[-1] if self._stack else ""
        if _KEY not in node.metadata:
            _inherit(node, "")
        elif not node.metadata.get("jouletrace_armed"):
            _inherit(node, node.metadata[_KEY])
        return "backward", node.metadata[_KEY]


def _inherit(root: Any, layer: str) -> None:
    """Hands tags down, breadth first, from consumers to the untagged nodes that feed them."""
    todo = [(root, layer)]
    for node, inherited in todo:  # grows while it is read
        if node is None or node.metadata.get("jouletrace_armed"):
            continue
        node.metadata["jouletrace_armed"] = True
        own = node.metadata.setdefault(_KEY, inherited)
        todo += [(following, own) for following, _ in node.next_functions]


class SecondOpinion:
    """Counts backward ops that ModuleTracker, by its own hooks, places in another layer."""

    def __init__(self, model: torch.nn.Module, locate: Callable[[Any], tuple[Stage, str]]) -> None:
        self._root = type(model).__name__
        self._locate = locate
        self.tracker = ModuleTracker()
        self.differing: dict[str, int] = {}

    def locate(self, node: Any) -> tuple[Stage, str]:
        stage, layer = self._locate(node)
        if stage == "backward" and layer and f"{self._root}.{layer}" not in self.tracker.parents:
            self.differing[layer] = self.differing.get(layer, 0) + 1
        return stage, layer
