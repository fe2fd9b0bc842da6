"""The hardware schema: one frozen value that says everything the mapping and the ledger need to know.

YAML keys carry quantities with units (``clock: 100 MHz``); attributes carry the unit in their name
(``clock_hz``). Every number is covered by an entry of ``provenance``, so a result can say what it rests on.
Written back as JSON, a value is again the text of its YAML form, so what a result embeds loads like a spec.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jouletrace.hardware.quantities import (
    Bandwidth,
    ClockHz,
    CurrentNa,
    EnergyAj,
    PositiveAj,
    PowerAw,
    Ratio,
    SizeBytes,
    TimePs,
    VoltageUv,
    WidthBits,
)

__all__ = [
    "Board", "Buffer", "Certainty", "ChannelParallel", "Current", "Dram", "DramDevice", "EnergyRefs",
    "EnergyTable", "Entry", "Hardware", "Host", "Multiplier", "Provenance", "Schedule", "SramPoint", "Stream",
    "Systolic", "Tiling", "Timing", "Vector",
]  # fmt: skip


Count = Annotated[int, Field(ge=1, le=10**9)]
Amount = Annotated[int, Field(ge=0, le=10**9)]
Cycles = Annotated[int, Field(ge=0, le=10**12)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
# Keys stand in dotted paths, so they hold no dot.
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Certainty = Literal["seen", "code", "derived", "recalled", "fitted", "assumed", "user"]
Current = Literal["IDD0", "IDD2N", "IDD3N", "IDD4R", "IDD4W", "IDD5"]
Timing = Literal["tRAS", "tRP", "tRC", "tRFC", "tREFI"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=False)


class Provenance(_Part):
    """Where the numbers at some paths come from. A path covers everything below it; the longest wins."""

    paths: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    certainty: Certainty
    source: Text


class Multiplier(_Part):
    """What one lane of the array multiplies.

    An ``fp`` (IEEE) or ``bf`` (bfloat) lane computes anything up to its width in one pass. An ``int`` lane
    splits wider operands: an a-bit by b-bit product takes ceil(a/bits)·ceil(b/bits) passes, and the result
    says so.
    """

    format: Literal["fp", "bf", "int"]
    bits: Count
    dsp: Amount

    @property
    def type(self) -> str:
        """As in the names of actions and table entries: ``fp32``, ``int8``."""
        return f"{self.format}{self.bits}"


class Tiling(_Part):
    """A published tile choice for one convolution shape, where a design fixes it.

    Keys are the field's: ``out_channels`` M, ``in_channels`` N, ``rows`` × ``columns`` of the output,
    ``kernel``; ``tile_rows`` Tr, ``tile_columns`` Tc, and ``resident_channels`` M_on, the output channels
    whose weights stay on chip.
    """

    phase: Literal["forward", "backward_data", "backward_weight"]
    out_channels: Count
    in_channels: Count
    rows: Count
    columns: Count
    kernel: Count
    tile_rows: Count
    tile_columns: Count
    resident_channels: Count


class Schedule(_Part):
    """How loads, computing and stores follow one another in a channel-parallel engine.

    ``swap``: ``synchronous`` ping-pong (all engines change buffers together) or ``free_running`` (each as
    soon as it can).
    ``prefetch_stops_at``: where the next load waits until computing has caught up. A synchronous engine stops at
    the end of its ``reduction_loop``; a free-running one at the end of the ``op``, or ``never``.
    ``weights_stay_for``: resident weights are kept for the whole ``batch``, or fetched again per ``image``.
    ``store_overlaps``: an output tile is stored during the ``last_compute`` of the next one (synchronous engines
    only), or ``freely``.
    ``edge_tiles``: ``full`` (loop bounds fixed at synthesis: an edge tile costs as much as any other) or
    ``trimmed``.
    ``strided_backward_data``: by ``zero_insertion`` (stride² times the cycles) or by ``gather``.
    """

    prefetch_stops_at: Literal["reduction_loop", "op", "never"]
    swap: Literal["synchronous", "free_running"]
    weights_stay_for: Literal["batch", "image"]
    store_overlaps: Literal["last_compute", "freely"]
    edge_tiles: Literal["full", "trimmed"]
    strided_backward_data: Literal["zero_insertion", "gather"]
    tile_channels: Literal["unroll", "free"] = "unroll"
    objective: Literal["cycles", "energy", "product"] = "cycles"

    @model_validator(mode="after")
    def _one_manner(self) -> Schedule:
        """Refuses what would otherwise be ignored without a word."""
        synchronous = self.swap == "synchronous"
        if synchronous != (self.prefetch_stops_at == "reduction_loop"):
            fitting = "reduction_loop" if synchronous else "op or never"
            raise ValueError(
                f"a {self.swap} swap does not go with prefetch_stops_at: {self.prefetch_stops_at}; make it {fitting}"
            )
        if not synchronous and self.store_overlaps == "last_compute":
            raise ValueError("a free_running swap stores as soon as it can; make store_overlaps freely")
        return self


UnwantedResults = Literal["computed", "gated", "packed"]


class ChannelParallel(_Part):
    """Tm × Tn multiply-accumulate lanes: output by input channels (EF-Train, Zhang FPGA'15, YOLOv2).

    ``unwanted_results``: of a product of which only some results are wanted, the others are ``computed`` and
    thrown away; or their lanes are ``gated``, idle for as many cycles; or the wanted ones are ``packed``, so that
    cycles shrink with them. All operands are loaded and only wanted results are stored, in each case.
    """

    kind: Literal["channel_parallel"]
    out_channels: Count
    in_channels: Count
    initiation_interval: Count
    multiplier: Multiplier
    schedule: Schedule
    unwanted_results: UnwantedResults = "gated"
    tilings: Annotated[tuple[Tiling, ...], Field(strict=False)] = ()

    @property
    def lanes(self) -> int:
        return self.out_channels * self.in_channels


class Systolic(_Part):
    """rows × columns processing elements that pass operands to their neighbours, with fill and drain.

    ``unwanted_results`` as in :class:`ChannelParallel`.
    """

    kind: Literal["systolic"]
    rows: Count
    columns: Count
    dataflow: Literal["weight_stationary", "input_stationary", "output_stationary"]
    multiplier: Multiplier
    unwanted_results: UnwantedResults = "gated"

    @property
    def lanes(self) -> int:
        return self.rows * self.columns


class Buffer(_Part):
    """One on-chip buffer: ``copies`` of ``size`` each (2 = ping-pong), accessed in words of ``word``.

    ``bram36`` and ``uram`` are the blocks of all copies together. ``shares`` names a buffer that is the
    same memory under another name, never used in the same op; this one then takes no blocks of its own.
    """

    size_bytes: SizeBytes = Field(alias="size")
    copies: Annotated[int, Field(ge=1, le=16)]
    word_bits: WidthBits = Field(alias="word")
    bram36: Amount = 0
    uram: Amount = 0
    shares: Key | None = None

    @property
    def capacity_bytes(self) -> int:
        """All copies together."""
        return self.size_bytes * self.copies


class Stream(_Part):
    """One DMA stream: ``width`` bits a cycle, and a start cost each time it restarts at a new address.

    ``restarts``: at every ``transfer``, or only where a contiguous ``run`` of transfers begins.
    ``start_paid_at``: the run's ``open`` (address phase) or its ``close`` (the last write's completion).
    """

    width_bits: WidthBits = Field(alias="width")
    start_cycles: Cycles
    restarts: Literal["transfer", "run"]
    start_paid_at: Literal["open", "close"] = "open"


class Vector(_Part):
    """The unit for norm, activation, pooling, loss and optimizer work.

    ``lanes`` primitive operations a cycle; ``chunk`` is the tile that streams through it; ``load`` and
    ``store`` name the DMA streams that feed it. ``fuses`` lists functions that ride on the store of the op
    before them.
    """

    lanes: Count
    chunk_bytes: SizeBytes = Field(alias="chunk")
    dsp: Amount
    load: Key
    store: Key
    fuses: Annotated[tuple[Name, ...], Field(strict=False)] = ()


class Host(_Part):
    """A CPU for what the accelerator leaves to software: op kinds, and its own cycles per element."""

    clock_hz: ClockHz = Field(alias="clock")
    kinds: Annotated[tuple[Name, ...], Field(strict=False)]
    cycles_per_element: Ratio


class DramDevice(_Part):
    """A DRAM part by its datasheet: currents, voltage, timing (the form of DRAMsim3 and Micron's TN-41-01).

    Currents are per device, at the datasheet's limit; ``measured_ratio`` is (low, mean, high) of what
    modules drew on a bench over that. ``row`` is a row of the whole rank. The interface energies are what
    the currents leave out.
    """

    name: Name
    standard: Literal["DDR3", "DDR3L", "DDR4", "LPDDR4", "HBM2"]
    devices_per_rank: Count
    rank_width_bits: WidthBits = Field(alias="rank_width")
    burst_length: Count
    row_bytes: SizeBytes = Field(alias="row")
    clock_period_ps: TimePs = Field(alias="clock_period")
    vdd_uv: VoltageUv = Field(alias="vdd")
    idd_na: dict[Current, CurrentNa] = Field(alias="idd")
    timing_cycles: dict[Timing, Count]
    interface_read_aj_per_bit: EnergyAj = Field(alias="interface_read_per_bit", default=0)
    interface_write_aj_per_bit: EnergyAj = Field(alias="interface_write_per_bit", default=0)
    measured_ratio: dict[Current, Annotated[tuple[Ratio, Ratio, Ratio], Field(strict=False)]]
    provenance: Annotated[tuple[Provenance, ...], Field(strict=False)]


class Dram(_Part):
    """The board's DRAM as the accelerator sees it.

    ``port``: how streams share it. With ``stream_share`` every stream has its own part of the bandwidth;
    with ``program_order`` transfers hold the port one after the other; ``round_robin`` grants ``grant``
    bytes in turn. ``efficiency`` is the share of the peak that long bursts reach. ``use_measured_ratio``
    corrects datasheet currents. ``width`` is that of the board's interface where it is not the rank of the
    device's file: half the width is half the devices, half the row, half the background power.
    """

    device: DramDevice
    width_bits: WidthBits | None = Field(alias="width", default=None)
    bandwidth_bytes_per_second: Bandwidth = Field(alias="bandwidth")
    efficiency: Ratio
    port: Literal["stream_share", "program_order", "round_robin"]
    grant_bytes: SizeBytes = Field(alias="grant")
    use_measured_ratio: bool

    @property
    def interface_bits(self) -> int:
        return self.width_bits or self.device.rank_width_bits

    @property
    def devices(self) -> Fraction:
        """Devices that work together; :mod:`jouletrace.hardware.check` requires a whole number."""
        return Fraction(self.device.devices_per_rank * self.interface_bits, self.device.rank_width_bits)

    @property
    def row_bytes(self) -> int:
        """One row of all devices together: what one activation opens."""
        return max(1, self.device.row_bytes * self.interface_bits // self.device.rank_width_bits)


class Board(_Part):
    """What is there to use up: logic, memories, DRAM, and the power that flows when nothing is done.

    Powers are (low, typical, high). ``chip_static`` is the accelerator's part of the chip; ``board_idle``
    is all the rest but the DRAM, which has its own: processing system, regulators, peripherals.
    """

    name: Name
    device: Name
    dsp: Amount
    bram36: Amount
    uram: Amount
    lut: Amount
    dram_bytes: SizeBytes = Field(alias="dram")
    chip_static: Annotated[tuple[PowerAw, PowerAw, PowerAw], Field(strict=False)]
    board_idle: Annotated[tuple[PowerAw, PowerAw, PowerAw], Field(strict=False)]
    provenance: Annotated[tuple[Provenance, ...], Field(strict=False)]

    @property
    def is_fpga(self) -> bool:
        """A board with nothing to count is no FPGA: its design is limited by DRAM capacity only."""
        return any((self.dsp, self.bram36, self.uram, self.lut))


class Entry(_Part):
    """One price: energy per action, with a band and a source.

    ``per`` says what one action is: an ``operation``, a ``lane cycle``, a ``byte``, a host ``cycle``.
    """

    energy_aj: EnergyAj = Field(alias="energy")
    low_aj: EnergyAj = Field(alias="low")
    high_aj: EnergyAj = Field(alias="high")
    per: Name
    source: Text
    certainty: Certainty

    @model_validator(mode="after")
    def _band(self) -> Entry:
        return _in_band(self)


class SramPoint(_Part):
    """The energy of one access to a memory of this size and width; sizes between are interpolated."""

    size_bytes: SizeBytes = Field(alias="size")
    width_bits: WidthBits = Field(alias="width")
    energy_aj: PositiveAj = Field(alias="energy")
    low_aj: PositiveAj = Field(alias="low")
    high_aj: PositiveAj = Field(alias="high")
    source: Text
    certainty: Certainty

    @model_validator(mode="after")
    def _band(self) -> SramPoint:
        return _in_band(self)


_Banded = TypeVar("_Banded", Entry, SramPoint)


def _in_band(priced: _Banded) -> _Banded:
    if not priced.low_aj <= priced.energy_aj <= priced.high_aj:
        raise ValueError("has a band that does not hold the value; low <= energy <= high is needed")
    return priced


class EnergyTable(_Part):
    """Unit energies of one technology from one source.

    ``normalised_to`` marks a table that is published without joules: 1 pJ then stands for 1 of what it
    names, and only ratios of its prices mean anything.
    """

    schema_version: Literal[1]
    name: Name
    technology: Text
    citation: Text
    normalised_to: Text | None = None
    entries: dict[Key, Entry]
    sram: Annotated[tuple[SramPoint, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _distinct_sizes(self) -> EnergyTable:
        sizes = [point.size_bytes for point in self.sram]
        if len(set(sizes)) < len(sizes):
            raise ValueError("has two sram points of one size; one is enough, widths are scaled")
        return self


class EnergyRefs(_Part):
    """Which table prices which component; mixed sources are listed in every result.

    ``dram`` replaces the prices that follow from the device's currents by those of a table (pJ per byte).
    """

    array: EnergyTable
    buffers: EnergyTable
    vector: EnergyTable
    host: EnergyTable | None = None
    dram: EnergyTable | None = None


class Hardware(_Part):
    """An accelerator on its board. Made by :func:`jouletrace.hardware.load.load_hardware`."""

    schema_version: Literal[1]
    name: Name
    description: Text
    citation: Text
    clock_hz: ClockHz = Field(alias="clock")
    word_bits: WidthBits = Field(alias="word")
    array: Annotated[ChannelParallel | Systolic, Field(discriminator="kind")]
    buffers: dict[Key, Buffer]
    streams: dict[Key, Stream]
    vector: Vector
    host: Host | None = None
    dram: Dram
    board: Board
    energy: EnergyRefs
    provenance: Annotated[tuple[Provenance, ...], Field(strict=False)]

    @property
    def dram_bytes_per_cycle(self) -> Fraction:
        """What long bursts move in one cycle of the accelerator, all streams together."""
        return self.dram.bandwidth_bytes_per_second * self.dram.efficiency / self.clock_hz

    def storage_bits(self, bits: int) -> int:
        """Bits that one element takes in memory: its own, padded to whole words of the datapath.

        A 32-bit datapath stores an 8-bit tensor in 32-bit words; an 8-bit datapath stores 10-bit values in
        16.
        """
        return -(-bits // self.word_bits) * self.word_bits

    def passes(self, bits_a: int, bits_b: int) -> int:
        """Passes of the array for one product of these operand widths (see :class:`Multiplier`)."""
        unit = self.array.multiplier
        return 1 if unit.format != "int" else -(-bits_a // unit.bits) * -(-bits_b // unit.bits)
