"""The hardware schema: one frozen value that says everything the mapping and the ledger need to know.

YAML keys carry quantities with units (``clock: 100 MHz``); attributes carry the unit in their name
(``clock_hz``). Every number is covered by an entry of ``provenance``, so a result can say what it rests on.
Written back as JSON, a value is again the text of its YAML form, so what a result embeds loads like a spec.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod
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
    "Board", "Buffer", "Certainty", "ChannelParallel", "Compression", "Current", "Dram", "DramDevice", "EnergyRefs",
    "EnergyTable", "Entry", "Hardware", "Host", "Layout", "Multiplier", "Networks", "Provenance", "RowStationary",
    "RowTiling", "Schedule", "Scratchpads", "SramPoint", "Stream", "Systolic", "Tiling", "Timing", "Vector",
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

    An ``int`` lane with a ``brick`` is bit-flexible (Bit Fusion, H. Sharma et al., ISCA 2018): it is made of
    (bits/brick)² multipliers, which fuse to as many products of narrower operands as there is room for. These are
    of one sum, so the lane adds them up; whatever it fuses to, a busy lane is busy as a whole.
    """

    format: Literal["fp", "bf", "int"]
    bits: Count
    dsp: Amount
    brick_bits: WidthBits | None = Field(alias="brick", default=None)

    @model_validator(mode="after")
    def _whole_bricks(self) -> Multiplier:
        if self.brick_bits is not None:
            if self.format != "int":
                raise ValueError(f"has bricks in {self.format} lanes; only int lanes are made of them")
            bricks, rest = divmod(self.bits, self.brick_bits)
            if rest or bricks & (bricks - 1):
                raise ValueError(
                    f"makes {self.bits} bit of bricks of {self.brick_bits} bit; it takes 1, 2, 4, 8 ... of them"
                )
        return self

    def fused(self, bits_a: int, bits_b: int) -> int:
        """Products of operands of these widths that a lane computes and adds up at once; 1 without bricks.

        Operands are widened to 1, 2, 4 ... bricks.

        >>> lane = Multiplier.model_validate({"format": "int", "bits": 8, "dsp": 0, "brick": "2 bit"})
        >>> [lane.fused(a, b) for a, b in ((8, 8), (4, 8), (4, 4), (3, 6), (2, 2), (16, 4))]
        [1, 2, 4, 2, 16, 2]
        """
        brick = self.brick_bits
        if brick is None:
            return 1
        widths = (min(self.bits, brick << (-(-bits // brick) - 1).bit_length()) for bits in (bits_a, bits_b))
        return prod(self.bits // width for width in widths)

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
Layout = Literal["tiles", "channel_groups", "channels_first", "channels_last"]


class ChannelParallel(_Part):
    """Tm × Tn multiply-accumulate lanes: output by input channels (EF-Train, Zhang FPGA'15, YOLOv2).

    ``unwanted_results``: of a product of which only some results are wanted, the others are ``computed`` and
    thrown away; or their lanes are ``gated``, idle for as many cycles; or the wanted ones are ``packed``, so that
    cycles shrink with them. All operands are loaded and only wanted results are stored, in each case.
    ``layout``: how feature maps lie in DRAM, which breaks a tile into bursts (:mod:`jouletrace.mapping.layout`).
    """

    kind: Literal["channel_parallel"]
    out_channels: Count
    in_channels: Count
    initiation_interval: Count
    multiplier: Multiplier
    schedule: Schedule
    unwanted_results: UnwantedResults = "gated"
    layout: Layout = "tiles"
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


class Scratchpads(_Part):
    """The memories of one processing element of a row-stationary array, in words of the datapath."""

    filter_words: Count
    ifmap_words: Count
    psum_words: Count


class Networks(_Part):
    """Bits a cycle that each network between the global buffer and the processing elements delivers."""

    filter_bits: WidthBits = Field(alias="filter")
    ifmap_bits: WidthBits = Field(alias="ifmap")
    psum_in_bits: WidthBits = Field(alias="psum_in")
    psum_out_bits: WidthBits = Field(alias="psum_out")


Coding = Literal["none", "run_length"]


class Compression(_Part):
    """How tensors of each role are coded in DRAM, and the code: runs of zeros.

    A pair says how many zeros (up to 2^run - 1) stand before a level, which is one value; ``pairs`` of them, and what
    else there is, fill a word. Eyeriss: three pairs of 5 and 16 bits and one more bit are 64 bits.
    """

    run_bits: WidthBits = Field(alias="run")
    level_bits: WidthBits = Field(alias="level")
    pairs: Annotated[int, Field(ge=1, le=1024)]
    word_bits: WidthBits = Field(alias="word")
    input: Coding
    activation: Coding
    gradient: Coding

    def applies_to(self, role: str) -> bool:
        """Whether tensors of this role are coded."""
        return {"input": self.input, "activation": self.activation, "gradient": self.gradient}.get(role) == "run_length"

    @model_validator(mode="after")
    def _room(self) -> Compression:
        needed = self.pairs * (self.run_bits + self.level_bits)
        if needed > self.word_bits:
            raise ValueError(f"has {self.pairs} pairs of {needed // self.pairs} bit in a word of {self.word_bits} bit")
        if self.run_bits > 8:
            raise ValueError(f"codes a run in {self.run_bits} bit; at most 8 are supported")
        return self


class RowTiling(_Part):
    """Published mapping letters of a row-stationary array for one convolution shape (Chen et al., JSSC 2017).

    ``out_channels`` and ``in_channels`` count per group. ``m`` filters whose sums stay in the global buffer, ``n``
    images of a pass, ``e`` rows of the output in a set, ``p`` filters and ``q`` channels that share a set, ``r`` sets
    of other channels and ``t`` sets of other filters that work side by side.
    """

    phase: Literal["forward", "backward_data", "backward_weight"]
    out_channels: Count
    in_channels: Count
    rows: Count
    columns: Count
    kernel: Count
    m: Count
    n: Count
    e: Count
    p: Count
    q: Count
    r: Count
    t: Count


class RowStationary(_Part):
    """rows × columns processing elements, each of which convolves rows (Eyeriss: ISCA 2016, JSSC 2017).

    ``bank``: the global buffer, which ``buffers.input`` and ``buffers.output`` are two names of, is given out in banks
    of this size. A DRAM transfer overlaps with computing as far as ``copies`` of these buffers allow: with one, not at
    all. ``zero_gating``: an element whose activation is zero reads no filter and no sum and does not multiply.
    ``compression``: how tensors are coded in DRAM, if they are. Of unwanted results the elements are gated.
    """

    kind: Literal["row_stationary"]
    rows: Count
    columns: Count
    multiplier: Multiplier
    pipeline_stages: Count
    scratchpads: Scratchpads
    networks: Networks
    bank_bytes: SizeBytes = Field(alias="bank")
    zero_gating: bool
    compression: Compression | None = None
    tilings: Annotated[tuple[RowTiling, ...], Field(strict=False)] = ()

    @property
    def lanes(self) -> int:
        return self.rows * self.columns


class Buffer(_Part):
    """One on-chip buffer: ``copies`` of ``size`` each (2 = ping-pong), accessed in words of ``word``.

    ``bram36`` and ``uram`` are the blocks of all copies together. ``shares`` names a buffer that is the
    same memory under another name, never used in the same op; this one then takes no blocks of its own. (A
    row-stationary array uses both in one op, and gives out the memory bank by bank.)
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
    ``store`` name the DMA streams that feed it, ``load_also`` others on which further operands are loaded side by side.
    ``fuses`` lists functions that ride on the store of the op before them. ``pool_index``: bits of the position in its
    window that a max pool keeps of each output, packed; without it, indices are as wide as the trace has them.
    """

    lanes: Count
    chunk_bytes: SizeBytes = Field(alias="chunk")
    dsp: Amount
    load: Key
    store: Key
    load_also: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    pool_index_bits: WidthBits | None = Field(alias="pool_index", default=None)
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
    array: Annotated[ChannelParallel | Systolic | RowStationary, Field(discriminator="kind")]
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
