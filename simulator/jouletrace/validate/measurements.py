"""What a measurement file holds: builds, workloads, and rows of published numbers, each with its citation.

The schema is that of ``validation/*.yaml``; :mod:`jouletrace.validate.load` reads it. Nothing here knows what a
quantity is or how it is simulated.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jouletrace.ledger.breakdown import Scope
from jouletrace.trace.model import Phase

__all__ = [
    "Build", "Certainty", "Conv", "Copy", "Density", "FullyConnected", "Kind", "Measurements", "Override",
    "Reference", "Row", "RowFit", "Workload",
]  # fmt: skip

Count = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[int, Field(ge=0, le=10**9)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]

# How a number was obtained; the first five are measurements.
Kind = Literal[
    "cycle counter", "board meter", "rail sensor", "chip bench", "wall clock",
    "tool report", "post-layout", "simulator", "released code", "equation", "not stated",
]  # fmt: skip
# How certain it is: read in the source, read in released code, arithmetic on those, or quoted from memory.
Certainty = Literal["seen", "code", "derived", "recalled"]

_TOLERANCE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(%|points)")


def _several(value: object) -> object:
    """One word where a list may stand."""
    return (value,) if isinstance(value, str) else value


def _tolerance(value: object) -> object:
    match = _TOLERANCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"is a share of the value, as in '5 %', or points of a percentage, '3 points' (got {value!r})")
    if not float(match[1]):
        raise ValueError(
            f"of zero would make a miss of the last printed digit; state what the source rounds to, as in '0.1 %' "
            f"(got {value!r})"
        )
    return value


def _no_program(value: str) -> str:
    """A strategy may be a Python file on the command line, and not in a file that came from elsewhere."""
    if ".py" in value:
        raise ValueError("is a Python file, and measurement files execute none; name an installed strategy")
    return value


StrategyText = Annotated[Name, AfterValidator(_no_program)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=False)


class Override(_Part):
    """One value of the hardware spec as the citation states it, and where it does.

    ``path`` and ``value`` are those of ``--set``: ``path: dram.bandwidth``, ``value: 1 GB/s``.
    """

    path: Name
    value: Name | int | float
    where: Text

    @property
    def setting(self) -> str:
        return f"{self.path}={self.value}"


class Build(_Part):
    """A hardware: a shipped name or a YAML file beside this one (``./mine.yaml``), and what the citation sets in it."""

    hardware: Name
    set: Annotated[tuple[Override, ...], Field(strict=False)] = ()


class Conv(_Part):
    """A convolution of a layer list: channels, ``rows`` × ``columns`` of the output, kernel.

    ``padding`` is that of every side, by default half the kernel.
    """

    kind: Literal["conv"]
    name: Name
    out_channels: Count
    in_channels: Count
    rows: Count
    columns: Count
    kernel: Count
    stride: Count = 1
    padding: Amount | None = None
    groups: Count = 1

    @model_validator(mode="after")
    def _whole_groups(self) -> Conv:
        if self.out_channels % self.groups or self.in_channels % self.groups:
            raise ValueError(f"has channels that {self.groups} groups do not divide")
        return self


class FullyConnected(_Part):
    """A matrix product of a layer list."""

    kind: Literal["fc"]
    name: Name
    out_features: Count
    in_features: Count


class Copy(_Part):
    """Data of a layer list that are put into another order, once, in the forward pass: ``elements`` of each sample."""

    kind: Literal["copy"]
    name: Name
    elements: Count


Layer = Annotated[Conv | FullyConnected | Copy, Field(discriminator="kind")]


class Density(_Part):
    """The share of non-zeros in what a layer reads, and where the citation says so (or why it is assumed).

    The layer may be one without MACs: what a pooling layer reads is what the convolution before it writes.
    """

    layer: Name
    value: Annotated[float, Field(gt=0, le=1)]
    where: Text


class Workload(_Part):
    """What is executed: a shipped ``trace`` (or a file beside this one), or ``layers`` that are not connected.

    ``batch`` re-sizes a trace, and is that of a list. ``micro_batch`` samples at a time go forward and backward where a
    step exceeds the DRAM. ``inference`` leaves the forward pass. ``precision`` gives every operand this type, as in
    ``int16``. ``names`` maps the names of the citation to the layers of the trace.
    """

    trace: Name | None = None
    layers: Annotated[tuple[Layer, ...], Field(strict=False)] = ()
    batch: Count | None = None
    micro_batch: Count | None = None
    inference: bool = False
    precision: Annotated[str, Field(pattern=r"^(int|fp|bfp)[1-9][0-9]?$")] | None = None
    densities: Annotated[tuple[Density, ...], Field(strict=False)] = ()
    names: dict[Name, Name] = Field(default_factory=dict)
    note: Text | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Workload:
        if (self.trace is None) == (not self.layers):
            raise ValueError("needs either the name of a trace or a list of layers")
        if self.layers and self.batch is None:
            raise ValueError("is a list of layers and needs a batch")
        return self


class Reference(_Part):
    """What a row is set against: like the row itself, except for these."""

    build: Key | None = None
    workload: Key | None = None
    strategy: StrategyText | None = None
    batch: Count | None = None
    set: Annotated[tuple[Override, ...], Field(strict=False)] | None = None


class RowFit(_Part):
    """Coefficients that are fitted to some rows, before other rows that name the fit are judged with them.

    Each is a factor on the prices of some parts (``static``, ``array+buffers``, as in ``jouletrace calibrate``), or
    ``constant``, a power beside them; or, alone, ``time``, a factor on all times. ``rule`` says how the rows were
    chosen.
    """

    coefficients: Annotated[tuple[Name, ...], BeforeValidator(_several), Field(strict=False, min_length=1)]
    rows: Annotated[tuple[Key, ...], BeforeValidator(_several), Field(strict=False, min_length=1)]
    rule: Text


class Row(_Part):
    """One published number, and what has to be simulated to compare with it.

    ``layer``, ``phase`` and ``ops`` (kinds) select what is replayed alone; without them it is the whole step, or with
    ``iterations`` a whole training (of which a part can be counted, and not replayed). ``per`` divides by samples or
    MACs. With ``against`` the number is a saving (1 - a/b), a change (a/b - 1) or a ratio (a/b), as ``relation`` says.
    ``scope`` and ``components`` (``array``, or one action as in ``array:mac_int16``) say what an energy or power
    includes. A number with a ``bound`` is a limit that the publication states. ``fit`` names the fits of the file at
    whose coefficients the row is simulated.

    A row gates if its certainty is not ``recalled`` and it is not ``shown`` for a reason of its own.
    """

    id: Key
    build: Key | None = None
    workload: Key
    strategy: StrategyText | None = None
    iterations: Count | None = None
    batch: Count | None = None
    set: Annotated[tuple[Override, ...], Field(strict=False)] = ()
    layer: Annotated[tuple[Name, ...], BeforeValidator(_several), Field(strict=False)] = ()
    phase: Annotated[tuple[Phase, ...], BeforeValidator(_several), Field(strict=False)] = ()
    ops: Annotated[tuple[Name, ...], BeforeValidator(_several), Field(strict=False)] = ()
    quantity: Name
    unit: Name
    value: float
    per: Literal["sample", "mac", "effective_mac"] | None = None
    against: Reference | None = None
    relation: Literal["saving", "change", "ratio"] | None = None
    fit: Annotated[tuple[Key, ...], BeforeValidator(_several), Field(strict=False)] = ()
    scope: Scope = "board"
    components: Annotated[tuple[Name, ...], BeforeValidator(_several), Field(strict=False)] = ()
    bound: Literal["above", "below"] | None = None
    kind: Kind
    certainty: Certainty
    where: Text
    tolerance: Annotated[str, BeforeValidator(_tolerance)] | None = None
    shown: Text | None = None
    note: Text | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Row:
        if (self.against is None) != (self.relation is None):
            raise ValueError("needs against and relation together, or neither")
        if self.fit and self.relation is not None:
            raise ValueError("is relative, and fits are of times, energies and powers; leave out fit or against")
        if self.relation is None and self.value <= 0:
            raise ValueError(f"has a value that is not above zero ({self.value:g}); only savings and changes may be")
        if self.relation is not None and not self.value:
            raise ValueError("has a value of zero, of which no relative error can be told")
        if self.gates and self.tolerance is None and self.bound is None:
            raise ValueError("needs a tolerance, because it gates; or say with shown: why it does not")
        if self.tolerance is not None and self.tolerance.endswith("points") and self.unit != "%":
            raise ValueError(f"has a tolerance in points, which only a percentage has (its unit is {self.unit!r})")
        return self

    @property
    def gates(self) -> bool:
        """Whether a miss fails the validation."""
        return self.certainty != "recalled" and self.shown is None

    @property
    def allowed(self) -> tuple[float, bool]:
        """The tolerance as a share, or (where the second is true) in percentage points; 0 where there is none."""
        match = _TOLERANCE.fullmatch(self.tolerance or "")
        if match is None:
            return 0.0, False
        points = match[2] == "points"
        return float(match[1]) / (1 if points else 100), points


class Measurements(_Part):
    """One file. ``defaults`` are fields that every row has unless it says otherwise."""

    schema_version: Literal[1]
    system: Name
    citation: Text
    boundary: Text
    builds: dict[Key, Build] = Field(default_factory=dict)
    workloads: Annotated[dict[Key, Workload], Field(min_length=1)]
    fits: dict[Key, RowFit] = Field(default_factory=dict)
    rows: Annotated[tuple[Row, ...], Field(strict=False)] = ()
