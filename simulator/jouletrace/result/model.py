"""The result of a replay: what was replayed, when each op ran, and where the energy went."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar, cast, overload

from jouletrace.engine.counts import Counts
from jouletrace.errors import ResultError, UsageError
from jouletrace.hardware.energy import Price
from jouletrace.hardware.load import Assumption
from jouletrace.ledger.breakdown import SCOPES, Breakdown, Energy, Row, Scope
from jouletrace.mapping.program import Program
from jouletrace.trace.model import Phase

__all__ = [
    "Deferrable", "Deferred", "Execution", "OpResult", "Options", "Result", "TraceInput", "load_result", "narrowest",
]  # fmt: skip

MAX_BYTES = 512 << 20  # of a result file

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OpResult:
    """When one op ran, and what bound it."""

    name: str
    layer: str
    phase: Phase
    kind: str
    start_cycle: int
    end_cycle: int
    frontier_cycles: int
    macs: int
    tiles: int
    bound_by: str
    busy_cycles: Mapping[str, int]

    @property
    def cycles(self) -> int:
        return self.end_cycle - self.start_cycle


@dataclass(frozen=True, slots=True)
class TraceInput:
    """The trace of a run. ``lines`` are those of its file, kept where the trace is not a shipped one."""

    name: str
    digest: str
    batch: int
    lines: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for besides trace and hardware."""

    engine: str = "auto"
    only: str | None = None
    micro_batch: int | None = None
    allow_dram_overflow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Execution:
    """The program and every interval of it, for the timeline; not a part of the result file."""

    program: Program
    counts: Counts


class Deferred(Generic[T]):
    """A value to come. Pickled, it is the value."""

    def __init__(self, work_out: Callable[[], T]) -> None:
        self.work_out = work_out

    def __reduce__(self) -> tuple[Callable[[T], T], tuple[T]]:
        return _same, (self.work_out(),)


def _same(value: T) -> T:
    return value


class Deferrable(Generic[T]):
    """A field of a dataclass that is given as a value or as a :class:`Deferred`, and is always read as a value.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Answer:
    ...     text: Deferrable[str] = Deferrable()
    >>> Answer(text=Deferred(lambda: "42")) == Answer(text="42")
    True
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Deferrable[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Deferrable[T] | T:
        if instance is None:
            raise AttributeError(self._name)  # so that the field has no default
        value = instance.__dict__[self._name]
        if isinstance(value, Deferred):
            value = instance.__dict__[self._name] = cast("Deferred[Any]", value).work_out()
        return value

    def __set__(self, instance: object, value: T | Deferred[T]) -> None:
        instance.__dict__[self._name] = value


@dataclass(frozen=True, kw_only=True)
class Result:
    """One replay. Made by :func:`jouletrace.simulate` or :func:`jouletrace.load_result`.

    ``engine`` is the one that ran. ``hardware`` is the resolved spec as plain data. ``assumed`` and ``user`` name the
    inputs that rest on an assumption (or on a fit, or on memory), and those that the user set. ``warnings`` are those
    of the trace.
    """

    version: str
    model_version: int
    trace: TraceInput
    hardware: Deferrable[Mapping[str, Any]] = Deferrable()
    hardware_digest: Deferrable[str] = Deferrable()
    options: Options
    engine: str
    port_model: str
    events: int
    commands: int
    micro_batches: int
    lanes: int
    peak_memory_bytes: int
    dram_capacity_bytes: int
    ops: Deferrable[tuple[OpResult, ...]] = Deferrable()
    breakdown: Breakdown
    prices: Mapping[tuple[str, str], Price]
    assumed: Deferrable[tuple[Assumption, ...]] = Deferrable()
    user: Deferrable[tuple[Assumption, ...]] = Deferrable()
    warnings: tuple[str, ...]
    execution: Execution | None = field(default=None, compare=False, repr=False)

    @property
    def cycles(self) -> int:
        return self.breakdown.cycles

    @property
    def seconds(self) -> float:
        return self.breakdown.seconds

    @property
    def tiles(self) -> int:
        return sum(op.tiles for op in self.ops)

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def dram_read_bytes(self) -> int:
        return self.counts.get(("dram", "read"), 0)

    @property
    def dram_write_bytes(self) -> int:
        return self.counts.get(("dram", "write"), 0)

    @property
    def dram_overflow(self) -> bool:
        """The step needs more memory than the board has; possible with ``allow_dram_overflow`` only."""
        return self.peak_memory_bytes > self.dram_capacity_bytes

    @property
    def utilisation(self) -> float:
        """Useful multiply-accumulate passes, as a share of lanes times cycles."""
        passes = sum(n for (component, action), n in self.counts.items() if component == "array" and action != "idle")
        return passes / (self.lanes * self.cycles) if self.cycles else 0.0

    @cached_property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """Actions of the whole run by component and action; cycles for what costs energy per cycle."""
        return dict(sorted(self.breakdown.counts.items()))

    @cached_property
    def rows(self) -> Mapping[str, tuple[Row, ...]]:
        """The rows of the breakdown by op."""
        found: dict[str, list[Row]] = {op.name: [] for op in self.ops}
        for row in self.breakdown.rows:
            found[row.op].append(row)
        return {name: tuple(rows) for name, rows in found.items()}

    def energy(self, scope: Scope = "board") -> Energy:
        """Energy of the whole run within a scope, with its interval."""
        return self.breakdown.total(scope)

    def power_w(self, scope: Scope = "board") -> float:
        """Mean power within a scope."""
        return self.breakdown.mean_power_w(scope)

    def by(self, group: str, scope: Scope = "board") -> dict[str, Energy]:
        """Energy by ``layer``, ``phase``, ``component``, ``role``, ``kind``, ``action`` or ``op``, in order of the run.

        What moves no tensor has the role ``""``. Raises :class:`UsageError` for any other group.
        """
        return self.breakdown.by(group, scope)

    def records(self) -> list[dict[str, Any]]:
        """A tidy table: one record per op and component, energies in pJ."""
        table: list[dict[str, Any]] = []
        for op in self.ops:
            parts: dict[str, list[Row]] = {}
            for row in self.rows[op.name]:
                parts.setdefault(row.component, []).append(row)
            for component, rows in parts.items():
                energy = sum((row.energy for row in rows), Energy())
                table.append({
                    "op": op.name, "layer": op.layer, "phase": op.phase, "kind": op.kind, "component": component,
                    "scope": narrowest(rows[0]), "cycles": op.cycles, "macs": op.macs, "bound_by": op.bound_by,
                    "energy_pj": energy.energy_aj / 10**6, "low_pj": energy.low_aj / 10**6,
                    "high_pj": energy.high_aj / 10**6,
                })  # fmt: skip
        return table

    def frame(self) -> Any:
        """:meth:`records` as a pandas frame. Raises :class:`UsageError` where pandas is not installed."""
        try:
            import pandas  # pyright: ignore
        except ImportError:
            raise UsageError("result.frame() needs pandas; install it, or use result.records()") from None
        return pandas.DataFrame(self.records())  # pyright: ignore

    def to_json(self) -> str:
        """The result file, described in docs/results.md: canonical, so equal results are equal bytes."""
        from jouletrace.result.contract import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str | bytes, name: str = "result") -> Result:
        """Reads a result file's text; ``name`` stands in front of errors. See :func:`load_result`."""
        from jouletrace.result.contract import from_json

        return from_json(text, name)


def load_result(path: str | os.PathLike[str]) -> Result:
    """Reads a result file and checks that all its sums follow from its counts and prices.

    Raises :class:`ResultError` if it cannot be read, or was edited.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            return Result.from_json(file.read(MAX_BYTES + 1), name)
    except OSError as error:
        raise ResultError(f"{name}: cannot be read: {error.strerror}") from None


def narrowest(row: Row) -> Scope:
    """The narrowest scope that holds the row's component; every wider scope holds it too."""
    return next(scope for scope in SCOPES if row.within(scope))
