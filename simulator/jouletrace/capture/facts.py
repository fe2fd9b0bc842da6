"""What is known about a step beside its rows: names of what existed before, and what belongs together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jouletrace.capture.rows import Key
from jouletrace.trace.model import Role

__all__ = ["Existing", "Facts", "Recurrent"]


@dataclass(frozen=True, slots=True)
class Existing:
    """A tensor from before the step: its name, role, shape, and the parameter that it belongs to, if any.

    Optimizer state belongs to a parameter, and a parameter to itself. Counters are left out of a trace.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: str
    owner: str = ""
    counter: bool = False


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A layer whose pointwise work is regrouped into cells."""

    function: Literal["lstm", "gru"]
    hidden: int


@dataclass(slots=True)
class Facts:
    """Gathered by the recorder of one framework, read by the lowering.

    ``existing`` goes by storage, ``gradients`` by tensor version (the gradient with which the optimizer
    was called), ``rules`` by parameter name (none: the step updates it itself), ``recurrent`` by layer.
    """

    existing: dict[int, Existing] = field(default_factory=dict[int, Existing])
    gradients: dict[Key, str] = field(default_factory=dict[Key, str])
    rules: dict[str, str] = field(default_factory=dict[str, str])
    recurrent: dict[str, Recurrent] = field(default_factory=dict[str, Recurrent])
