"""A Hypothesis strategy that draws accelerators: the shipped ones with some values set otherwise, always valid.

Nothing drawn is larger than what ships, so that everything fits its board.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from hypothesis import reject
from hypothesis import strategies as st

from jouletrace.errors import SpecError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.hardware.spec import ChannelParallel, Hardware, RowStationary

__all__ = ["hardware_specs"]

# Each draws the overrides of one matter; values that have to agree are set together.
_ANYWHERE = (
    ("clock=50 MHz",),
    ("clock=200 MHz",),
    ("dram.bandwidth=1 GB/s",),
    ("dram.bandwidth=2.5 GB/s",),
    ("dram.efficiency=0.5",),
    ("dram.efficiency=1",),
    ("dram.port=stream_share",),
    ("dram.port=program_order",),
    ("vector.lanes=1",),
    ("vector.lanes=3",),
    ("vector.chunk=1 KiB",),
    ("vector.fuses=[relu6]",),
    ("buffers.input.size=4 KiB",),
    ("buffers.weight.size=32 KiB",),
    ("streams.input.width=32 bit",),
    ("streams.output.width=32 bit",),
    ("streams.input.start_cycles=40",),
    ("streams.weight.start_cycles=7", "streams.weight.restarts=transfer"),
    ("streams.output.start_cycles=40", "streams.output.restarts=run", "streams.output.start_paid_at=close"),
)
_FREE_RUNNING = ("array.schedule.swap=free_running", "array.schedule.store_overlaps=freely")
_SYNCHRONOUS = ("array.schedule.swap=synchronous", "array.schedule.prefetch_stops_at=reduction_loop")
_CHANNEL_PARALLEL = (
    *((f"array.out_channels={m}", f"array.in_channels={n}") for m, n in ((1, 1), (2, 3), (4, 2), (6, 6))),
    ("array.initiation_interval=2",),
    ("buffers.output.size=4 KiB", "buffers.operand.size=4 KiB"),
    (*_FREE_RUNNING, "array.schedule.prefetch_stops_at=op"),
    (*_FREE_RUNNING, "array.schedule.prefetch_stops_at=never"),
    (*_SYNCHRONOUS, "array.schedule.store_overlaps=last_compute"),
    (*_SYNCHRONOUS, "array.schedule.store_overlaps=freely"),
    ("array.schedule.weights_stay_for=image",),
    ("array.schedule.weights_stay_for=batch",),
    ("array.schedule.edge_tiles=full",),
    ("array.schedule.edge_tiles=trimmed",),
    ("array.schedule.strided_backward_data=zero_insertion",),
    ("array.schedule.strided_backward_data=gather",),
    ("array.schedule.tile_channels=unroll",),
    ("array.schedule.tile_channels=free",),
    ("array.schedule.objective=energy",),
    ("array.schedule.objective=product",),
)
_SYSTOLIC = (
    *((f"array.rows={rows}", f"array.columns={columns}") for rows, columns in ((1, 1), (2, 4), (5, 3), (16, 16))),
    ("array.dataflow=output_stationary",),
    ("array.dataflow=input_stationary",),
)
_ROW_STATIONARY = (
    *((f"array.rows={rows}", f"array.columns={columns}") for rows, columns in ((1, 1), (3, 4), (7, 5), (12, 7))),
    ("array.scratchpads.ifmap_words=3", "array.scratchpads.psum_words=4"),
    ("array.networks.ifmap=64 bit",),
    ("array.zero_gating=false",),
    ("array.compression.activation=none",),
    ("array.compression.gradient=run_length",),
    *((f"buffers.input.{setting}", f"buffers.output.{setting}") for setting in ("size=32 KiB", "copies=2")),
)


@lru_cache(maxsize=512)
def _loaded(name: str, overrides: tuple[str, ...]) -> Hardware:
    return load_hardware(name, overrides)


@lru_cache
def _variations(name: str) -> tuple[tuple[str, ...], ...]:
    """The matters that this accelerator can have otherwise; not all have room for every buffer."""
    return tuple(matter for matter in _matters(name) if _loads(name, matter))


def _loads(name: str, overrides: tuple[str, ...]) -> bool:
    try:
        _loaded(name, overrides)
    except SpecError:
        return False
    return True


def _matters(name: str) -> tuple[tuple[str, ...], ...]:
    board = _loaded(name, ())
    array = board.array
    if isinstance(array, RowStationary):  # its input and output are one buffer, and it has no operand
        return (*(s for s in _ANYWHERE if not s[0].startswith("buffers.input")), *_ROW_STATIONARY)
    own = _CHANNEL_PARALLEL if isinstance(array, ChannelParallel) else _SYSTOLIC
    if array.multiplier.format != "int":
        return (*_ANYWHERE, *own)
    # The width of a lane, and of the memories' words.
    words = ("word=16 bit", *(f"buffers.{buffer}.word=16 bit" for buffer in board.buffers))
    return (*_ANYWHERE, *own, ("array.multiplier.bits=16",), words)


@st.composite
def hardware_specs(draw: st.DrawFn, names: Collection[str] | None = None, max_changes: int = 4) -> Hardware:
    """One of the shipped accelerators (or of ``names``) with up to ``max_changes`` matters set otherwise.

    Shrinks to the first of them as it ships. Orders of memory transfers are fixed, so every engine can run it. Raises
    :class:`~jouletrace.errors.UsageError` for an unknown name.
    """
    name = draw(st.sampled_from(sorted(names) if names is not None else list_hardware()))
    chosen = draw(st.lists(st.sampled_from(_variations(name)), max_size=max_changes, unique=True))
    settings = tuple(dict.fromkeys(setting for matter in chosen for setting in matter))
    if not _loads(name, settings):  # two that do not go together
        reject()
    return _loaded(name, settings)
