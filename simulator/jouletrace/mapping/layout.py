"""How feature maps lie in DRAM, and into how many contiguous bursts that breaks the tiles that are moved.

A tile of ``channels`` × ``rows`` × ``columns`` out of one image of a map. Addresses grow from left to right:

==================  ========================================
layout              order
==================  ========================================
``tiles``           whatever the tiles need
``channel_groups``  channel // g, row, column, channel % g
``channels_first``  channel, row, column (BCHW): g = 1
``channels_last``   row, column, channel (BHWC): g = all
==================  ========================================

Whole rows and columns of neighbouring groups are one burst; whole columns of some rows, one for each group; anything
else, one for each row of each group. A part of a group's channels is a burst at each pixel. In ``tiles`` every tile is
one burst, whatever its shape.

``channel_groups`` is the layout of EF-Train (arXiv 2202.10935): g are the channels that the array computes at once, and
columns are never cut, so that a tile is one burst.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray

from jouletrace.hardware.spec import Layout

__all__ = ["bursts", "group_of"]

Extents = NDArray[np.int64]
Whole = NDArray[np.bool_]


def group_of(layout: Layout, lanes: int, channels: int) -> int:
    """Channels that lie side by side at one pixel of a map of ``channels``; 0 if the layout never breaks a tile."""
    return {"tiles": 0, "channel_groups": min(lanes, channels), "channels_first": 1, "channels_last": channels}[layout]


@overload
def bursts(group: int, channels: int, rows: int, columns: int, whole_rows: bool, whole_columns: bool) -> int: ...


@overload
def bursts(
    group: int, channels: Extents, rows: Extents, columns: Extents, whole_rows: Whole, whole_columns: Whole
) -> Extents: ...


def bursts(
    group: int, channels: int | Extents, rows: int | Extents, columns: int | Extents, whole_rows: bool | Whole,
    whole_columns: bool | Whole,
) -> int | Extents:  # fmt: skip
    """Contiguous bursts of a tile, or of many (int64 arrays that broadcast); see the table above.

    >>> [bursts(g, 8, 4, 10, False, True) for g in (0, 8, 1, 16)]  # tiles, groups of 8, BCHW, BHWC of 16 channels
    [1, 1, 8, 40]
    >>> [bursts(g, 8, 4, 10, False, False) for g in (0, 8, 1, 16)]
    [1, 4, 32, 40]
    """
    if not group:
        return 1 if isinstance(channels, int) else np.ones_like(channels)
    groups = -(-channels // group)
    if isinstance(channels, int):
        if channels < group:
            return rows * columns
        if whole_columns:
            return 1 if whole_rows else groups  # whole maps of neighbouring channels lie one behind the other
        return groups * rows
    whole = np.where(whole_rows, 1, groups)
    return np.where(channels < group, rows * columns, np.where(whole_columns, whole, groups * rows))
