"""What of a hardware a mapping and an engine look at, so that designs that are alike in it share their work.

A part is named by content: the spec as text, without the fields that cannot matter. Whatever a spec gains later is part
of it until it is named here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jouletrace.hardware.spec import ChannelParallel, Hardware, RowStationary

__all__ = ["Same", "built", "run", "searched", "vector_part", "weighs_prices"]

# The buffer through which the vector unit streams.
VECTOR_BUFFER = "vector"

# Fields that say what something is called or rests on; errors quote names, and nothing that failed is shared.
_TEXTS: dict[str, Any] = {"name": True, "description": True, "citation": True, "provenance": True}
# What only prices follow from. The device's geometry and timing stay, needed or not.
_DRAM_PRICES: dict[str, Any] = {
    "use_measured_ratio": True,
    "device": {
        "name": True, "vdd_uv": True, "idd_na": True, "measured_ratio": True, "interface_read_aj_per_bit": True,
        "interface_write_aj_per_bit": True, "provenance": True,
    },
}  # fmt: skip
_PRICES: dict[str, Any] = {
    **_TEXTS,
    "energy": True,
    "board": {"name": True, "device": True, "chip_static": True, "board_idle": True, "provenance": True},
    "dram": _DRAM_PRICES,
}
# What the rate of the DRAM port follows from, in bytes per cycle.
_RATES: dict[str, Any] = {
    **_PRICES,
    "clock_hz": True,
    "dram": {**_DRAM_PRICES, "bandwidth_bytes_per_second": True, "efficiency": True},
}
# What neither the tilings that fit nor what they take depend on.
_NOT_SEARCHED: dict[str, Any] = {
    **_TEXTS, "clock_hz": True, "vector": True, "host": True, "dram": True, "board": True, "energy": True,
    "array": {"tilings": True, "schedule": {"objective": True}},
}  # fmt: skip


def weighs_prices(hardware: Hardware) -> bool:
    """Whether mappings for this hardware are chosen by what accesses cost."""
    array = hardware.array
    if isinstance(array, ChannelParallel):
        return array.schedule.objective != "cycles"
    return isinstance(array, RowStationary)


def run(hardware: Hardware) -> str:
    """All that the cycles and counts of a step follow from."""
    return _text(Same(hardware), "texts" if weighs_prices(hardware) else "prices")


def built(hardware: Hardware) -> str:
    """All that the commands of an op follow from, given its tile, before the rate of the DRAM port is known.

    A channel-parallel array looks at rates and prices, and at the sizes of buffers, only to choose tiles.
    """
    return _text(Same(hardware), "tiled") if isinstance(hardware.array, ChannelParallel) else run(hardware)


def vector_part(hardware: Hardware) -> str:
    """All that the commands of an op on the vector unit, or on the host, follow from: nothing of the array.

    Work of a host is converted into cycles of the accelerator, so that its clock matters.
    """
    return _text(Same(hardware), "host" if hardware.host is not None else "vector")


def searched(hardware: Hardware) -> str:
    """All that the tilings that fit, and what they take, follow from."""
    return _text(Same(hardware), "candidates")


class Same:
    """A hardware compared by identity: what follows from it is found again without a look at it."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.hardware is self.hardware

    def __hash__(self) -> int:
        return id(self.hardware)


_WITHOUT: dict[str, dict[str, Any]] = {
    "texts": _TEXTS, "prices": _PRICES, "tiled": {**_RATES, "vector": True, "host": True},
    "vector": {**_RATES, "array": True},
    "host": {**_PRICES, "array": True}, "candidates": _NOT_SEARCHED,
}  # fmt: skip


@lru_cache(maxsize=128)
def _text(same: Same, without: str) -> str:
    exclude = _WITHOUT[without]
    buffers = [name for name in same.hardware.buffers if name != VECTOR_BUFFER]
    if without == "tiled":
        exclude = {**exclude, "buffers": {name: {"size_bytes": True} for name in buffers}}
    elif without in ("vector", "host"):
        exclude = {**exclude, "buffers": set(buffers)}
    return same.hardware.model_dump_json(by_alias=True, exclude=exclude)
