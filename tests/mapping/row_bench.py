"""Row-stationary arrays for tests, and two oracles that know no formula of the mapping.

``walk`` goes through the passes of a convolution as nested loops and collects sets: which products are made, which
pixels are under a pass, what every single element is handed. ``toy_cycles`` steps one pass cycle by cycle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware, RowStationary
from jouletrace.mapping.row_convolution import RowConvolution
from jouletrace.mapping.row_passes import Pass
from jouletrace.mapping.row_tiling import Letters

# Every value is what it is, and every product is made: the machine of the conservation laws.
PLAIN = ("array.zero_gating=false", "array.compression.activation=none")


@lru_cache(maxsize=256)
def eyeriss(*overrides: str) -> Hardware:
    return load_hardware("eyeriss", overrides)


def small(*overrides: str, rows: int = 4, columns: int = 5) -> Hardware:
    """A small array with tight scratchpads and a small global buffer."""
    return eyeriss(
        *PLAIN, f"array.rows={rows}", f"array.columns={columns}", "array.scratchpads.filter_words=24",
        "array.scratchpads.ifmap_words=6", "array.scratchpads.psum_words=4", "array.bank=64 B",
        "buffers.input.size=2 KiB", "buffers.output.size=2 KiB", "buffers.weight.size=512 B", *overrides,
    )  # fmt: skip


def array_of(hardware: Hardware) -> RowStationary:
    assert isinstance(hardware.array, RowStationary)
    return hardware.array


@dataclass
class Walked:
    """What a walk has seen, in elements."""

    products: Counter[tuple[int, ...]] = field(default_factory=Counter)
    passes: int = 0
    stores: int = 0
    map_loads: int = 0
    map_elements: int = 0
    kernel_elements: int = 0
    delivered_maps: int = 0
    map_copies: int = 0
    kernel_copies: int = 0
    sums_in: int = 0
    sums_out: int = 0
    sums_between: int = 0


def chunks(size: int, step: int) -> list[range]:
    return [range(start, min(start + step, size)) for start in range(0, size, step)]


def shares(items: range, parts: int) -> list[range]:
    """Items dealt to so many sets, as equal as can be; sets without work do not exist."""
    return [items[i.start : i.stop] for i in chunks(len(items), -(-len(items) // parts))]


def walk(conv: RowConvolution, letters: Letters) -> Walked:
    """All passes, in the published order: sums build up over channels before the next filters come."""
    seen, rows, columns = Walked(), conv.rows, conv.columns
    held_maps: object = None
    held_kernels: object = None
    for group, images, strip, resident, channels, taps, segment in _blocks(conv, letters):
        first = (channels.start, taps.start, segment.start) == (0, 0, 0)
        last = (channels.stop, taps.stop, segment.stop) == (conv.channels, len(rows.offsets), len(columns.offsets))
        under = {o * rows.stride + rows.offsets[tap] for o in strip for tap in taps}
        windows = [{f * columns.stride + columns.offsets[s] for s in segment} for f in range(columns.positions)]
        # A window keeps what it shares with the one before.
        fresh = [len(window - before) for window, before in zip(windows, [set[int](), *windows], strict=False)]
        maps = (group, images, strip, channels, taps, segment)
        if maps != held_maps:
            held_maps = maps
            seen.map_loads += 1
            real_rows = sum(0 <= row < rows.size for row in under)
            real_columns = sum(0 <= column < columns.size for column in set[int]().union(*windows))
            seen.map_elements += len(images) * len(channels) * real_rows * real_columns
        for filters in shares_of(resident, letters.p * letters.t):
            seen.passes += 1
            kernels = (group, filters, channels, taps, segment)
            if kernels != held_kernels:
                held_kernels = kernels
                seen.kernel_elements += len(filters) * len(channels) * len(taps) * len(segment)
                seen.kernel_copies += len(filters) * len(channels) * len(taps) * len(segment) * len(strip)
            seen.delivered_maps += len(images) * len(channels) * len(under) * sum(fresh)
            sums = len(images) * len(filters) * len(strip) * columns.positions
            seen.sums_in += 0 if first else sums
            seen.sums_out += sums
            channel_sets = shares(channels, letters.r)
            seen.sums_between += sums * (len(taps) * len(channel_sets) - 1)
            for own_channels in channel_sets:
                for own_filters in shares(filters, letters.t):
                    for row in strip:
                        for tap in taps:  # one element
                            seen.map_copies += len(images) * len(own_channels) * sum(fresh)
                            for n in images:
                                for c in own_channels:
                                    for k in own_filters:
                                        for f in range(columns.positions):
                                            for s in segment:
                                                seen.products[group, n, k, c, row, f, tap, s] += 1
        if last:
            seen.stores += 1
    return seen


def shares_of(resident: range, together: int) -> list[range]:
    return [resident[i.start : i.stop] for i in chunks(len(resident), together)]


def _blocks(conv: RowConvolution, letters: Letters) -> Iterator[tuple[int, range, range, range, range, range, range]]:
    for group in range(conv.groups):
        for images in chunks(conv.images, letters.n):
            for strip in chunks(conv.rows.positions, letters.e):
                for resident in chunks(conv.filters, letters.m):
                    for channels in chunks(conv.channels, letters.q * letters.r):
                        for taps in chunks(len(conv.rows.offsets), letters.taps):
                            for segment in chunks(len(conv.columns.offsets), letters.segment):
                                yield group, images, strip, resident, channels, taps, segment


def toy_cycles(work: Pass, conv: RowConvolution, letters: Letters, hardware: Hardware) -> tuple[int, int]:
    """Filling and the rest of a pass, stepped cycle by cycle; 16-bit values, undilated kernels."""
    nets, columns = array_of(hardware).networks, conv.columns
    deep = 16 * work.map_rows * work.channels

    def wait(*jobs: tuple[int, int]) -> int:
        """Cycles until all jobs (amount, amount a cycle), which run side by side, are done."""
        left, cycles = [amount for amount, _ in jobs], 0
        while any(amount > 0 for amount in left):
            left = [amount - pace for amount, (_, pace) in zip(left, jobs, strict=True)]
            cycles += 1
        return cycles

    kernels = 16 * work.filters * work.channels * work.taps * work.segment if work.new_kernels else 0
    fill = wait((kernels, nets.filter_bits), (deep * work.segment, nets.ifmap_bits))
    per_element = max(map(len, shares(range(work.filters), letters.t))) * max(
        map(len, shares(range(work.channels), letters.r))
    )
    sums = 16 * work.filters * work.rows
    order = [(n, f) for n in range(work.images) for f in range(columns.positions)]
    rest = 0
    for i, _ in enumerate(order):
        following = order[i + 1 : i + 2]
        arrives = 0
        for _, f in following:
            arrives = deep * (work.segment if f == 0 else min(columns.stride, work.segment))
        rest += wait(
            (per_element * work.segment, 1),
            (arrives, nets.ifmap_bits),
            (0 if work.opens_sum else sums, nets.psum_in_bits),
            (sums if i else 0, nets.psum_out_bits),
        )
    chain = work.taps * len(shares(range(work.channels), letters.r))
    return fill, rest + array_of(hardware).pipeline_stages + (chain - 1) + wait((sums, nets.psum_out_bits))
