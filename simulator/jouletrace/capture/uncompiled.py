# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Running PyTorch without importing its compiler.

Functions that ``torch.compile`` must leave alone, among them every optimizer's, import the whole compiler when they are
first called, to ask it for a version of themselves that it leaves alone. That import takes nearly as long as the
capture of a network. Nothing is compiled during a capture, so a stand-in answers: each function is that version itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

__all__ = ["uncompiled"]

_ATTRIBUTE = "_dynamo"
_COMPILER = f"torch.{_ATTRIBUTE}"
_ANSWER = "__dynamo_disable"  # where a function keeps the compiler's answer


class _StandIn(ModuleType):
    """Answers as the compiler does while nothing is compiled; for anything else the real one is imported."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self._asked: list[Callable[..., Any]] = []

    def disable(self, fn: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        self._asked.append(fn)
        return fn

    def graph_break(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(import_module(_COMPILER), name)

    def enter(self) -> None:
        sys.modules[_COMPILER] = self
        setattr(torch, _ATTRIBUTE, self)

    def leave(self) -> None:
        """Goes, with every trace of it, so that a later ``torch.compile`` finds things as they were."""
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
            delattr(torch, _ATTRIBUTE)
        for function in self._asked:
            with suppress(AttributeError):
                delattr(function, _ANSWER)
        self._asked.clear()


@contextmanager
def uncompiled() -> Generator[None, None, None]:
    """Spares the import of the compiler, unless somebody has imported it already or really needs it."""
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = _StandIn()
    stand_in.enter()
    try:
        yield
    finally:
        stand_in.leave()
