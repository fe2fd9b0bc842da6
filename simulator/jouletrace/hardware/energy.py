"""What one access costs on a hardware: its energy tables, DRAM currents and powers as one list of integer
prices.

Every price is rounded to an integer number of attojoules once, here. A larger entry of a table never makes
any price smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from jouletrace.errors import EnergyError, did_you_mean
from jouletrace.hardware.dram import Band, dram_energies
from jouletrace.hardware.spec import Buffer, Certainty, EnergyTable, Entry, Hardware, SramPoint
from jouletrace.units import round_half_even, show_bytes

__all__ = ["EXTRAPOLATED", "PRIMITIVES", "Price", "PriceList", "price_list"]

# operations of the vector unit; a table prices them as add_fp32, mul_fp32, ...
PRIMITIVES = ("add", "mul", "div", "sqrt", "exp", "log", "compare", "random")
EXTRAPOLATED = "scaled by the square root of the size"
_BEYOND = 16  # times beyond the smallest or largest memory of a table
_STRENGTH: tuple[Certainty, ...] = ("seen", "code", "derived", "fitted", "recalled", "assumed", "user")


@dataclass(frozen=True, slots=True)
class Price:
    """Energy of one action in aJ, with its band and what it rests on."""

    energy_aj: int
    low_aj: int
    high_aj: int
    source: str
    certainty: Certainty


class PriceList(Mapping[tuple[str, str], Price]):
    """Prices by (component, action)."""

    def __init__(self, prices: Mapping[tuple[str, str], Price], tables: Mapping[str, EnergyTable]) -> None:
        self._prices = dict(prices)
        self._tables = dict(tables)

    def __getitem__(self, key: tuple[str, str]) -> Price:
        return self._prices[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._prices)

    def __len__(self) -> int:
        return len(self._prices)

    def of(self, component: str, action: str) -> Price:
        """The price of an action; :class:`EnergyError` with the table and the cure if it has none."""
        price = self._prices.get((component, action))
        if price is not None:
            return price
        table = self._tables.get(component)
        if table is None:
            known = sorted({name for name, _ in self._prices})
            raise EnergyError(
                f"nothing prices {component!r} {action!r}{did_you_mean(component, known)}; priced components are "
                f"{', '.join(known)}; name a table for it under energy in the spec"
            )
        known = sorted(table.entries)
        raise EnergyError(
            f"energy table {table.name!r} has no price for {component} {action!r}{did_you_mean(action, known)}; add it to "
            f"the table with a source, or choose another table (--set energy.{component}=NAME)"
        )


def price_list(hardware: Hardware) -> PriceList:
    """All prices of a hardware. Raises :class:`EnergyError` with everything that its tables cannot price.

    >>> from jouletrace.hardware.load import load_hardware
    >>> prices = price_list(load_hardware("systolic-32x32"))
    >>> prices[("array", "mac_bf16")].energy_aj, prices[("array", "mac_bf16")].certainty
    (590000, 'derived')
    """
    energy = hardware.energy
    problems: list[str] = []
    prices: dict[tuple[str, str], Price] = {}

    def take(
        component: str, action: str, table: EnergyTable, entry: str, per: str, times: Fraction = Fraction(1)
    ) -> None:
        found = table.entries.get(entry)
        if found is not None:
            prices[component, action] = _entry_price(table, entry, found, per, times, problems)

    kind = hardware.array.multiplier.type
    take("array", f"mac_{kind}", energy.array, f"mac_{kind}", "operation")
    take("array", "idle", energy.array, f"idle_{kind}", "lane cycle")
    for primitive in PRIMITIVES:
        take("vector", f"{primitive}_fp32", energy.vector, f"{primitive}_fp32", "operation")
    tables = {"array": energy.array, "vector": energy.vector}
    if hardware.host is not None and energy.host is not None:
        take("host", "element", energy.host, "cycle", "cycle", hardware.host.cycles_per_element)
        tables["host"] = energy.host
    for name, buffer in hardware.buffers.items():
        price = _buffer_price(energy.buffers, name, buffer, problems)
        if price is not None:
            prices[f"buffer.{name}", "read"] = prices[f"buffer.{name}", "write"] = price
    if energy.dram is None:
        prices.update(_dram_prices(hardware))
    else:
        tables["dram"] = energy.dram
        take("dram", "read", energy.dram, "dram_read", "byte")
        take("dram", "write", energy.dram, "dram_write", "byte")
        included = Price(0, 0, 0, f"{energy.dram.name}: taken to be in dram_read and dram_write", "assumed")
        prices["dram", "activate"] = prices["dram", "background"] = included
    board = hardware.board
    for component, action, power in (
        ("chip", "static", board.chip_static),
        ("board", "idle", board.board_idle),
    ):
        low, typical, high = (Fraction(p, hardware.clock_hz) for p in power)
        prices[component, action] = _price(
            Band(low, typical, high), f"board {board.name}: {component} power", "assumed"
        )
    if problems:
        raise EnergyError(problems)
    return PriceList(prices, tables)


def _price(band: Band, source: str, certainty: Certainty) -> Price:
    low, value, high = (round_half_even(energy) for energy in band)
    return Price(value, low, high, source, certainty)


def _entry_price(
    table: EnergyTable, name: str, entry: Entry, per: str, times: Fraction, problems: list[str]
) -> Price:
    if entry.per != per:
        problems.append(
            f"energy table {table.name!r}, entry {name!r}: is per {entry.per!r}, and is used per {per!r}; convert it and say so in its source"
        )
    band = Band(Fraction(entry.low_aj), Fraction(entry.energy_aj), Fraction(entry.high_aj)).times(times)
    return _price(band, f"{table.name}: {entry.source}", entry.certainty)


def _dram_prices(hardware: Hardware) -> dict[tuple[str, str], Price]:
    """Prices from the device's currents; background (rows open, refresh) is per cycle of the accelerator."""
    dram = hardware.dram
    energies = dram_energies(dram, corrected=dram.use_measured_ratio)
    basis = (
        "datasheet currents corrected by measured ones" if dram.use_measured_ratio else "datasheet currents"
    )
    interface = dram.device.interface_read_aj_per_bit or dram.device.interface_write_aj_per_bit
    source = f"{dram.device.name}: {basis}, {'interface included' if interface else 'core only'}"
    return {
        ("dram", "read"): _price(energies.read_aj_per_byte, source, "derived"),
        ("dram", "write"): _price(energies.write_aj_per_byte, source, "derived"),
        ("dram", "activate"): _price(energies.activate_aj, source, "derived"),
        ("dram", "background"): _price(
            energies.background_aw.times(Fraction(1, hardware.clock_hz)), source, "derived"
        ),
    }


def _buffer_price(table: EnergyTable, name: str, buffer: Buffer, problems: list[str]) -> Price | None:
    """One access to one copy of a buffer: interpolated between the table's memories in the logarithms of
    both.

    A straight line between logarithms, not a smoother curve: with a spline, a larger entry can lower a
    price beside it. Beyond the table's memories energy grows with the square root of the size, for a
    limited factor.
    """
    points = sorted(table.sram, key=lambda point: point.size_bytes)
    if not points:
        problems.append(
            f"energy table {table.name!r} has no sram points, which buffer {name!r} needs; add at least one, or choose "
            "another table (--set energy.buffers=NAME)"
        )
        return None
    size = buffer.size_bytes
    smallest, largest = points[0].size_bytes, points[-1].size_bytes
    if size * _BEYOND < smallest or size > largest * _BEYOND:
        problems.append(
            f"buffer {name!r} of {show_bytes(size)} lies more than {_BEYOND} times beyond the memories of energy table "
            f"{table.name!r} ({show_bytes(smallest)} to {show_bytes(largest)}); add a point of about its size with a source"
        )
        return None
    under = [point for point in points if point.size_bytes <= size][-1:] or points[:1]
    over = [point for point in points if point.size_bytes >= size][:1] or points[-1:]
    below, above = under[0], over[0]
    width = buffer.word_bits
    band = Band(*(
        _between(size, below.size_bytes, _at_width(below, low, width), above.size_bytes, _at_width(above, high, width))
        for low, high in zip(_band(below), _band(above), strict=True)
    ))  # fmt: skip
    exact = below is above and size == below.size_bytes and width == below.width_bits
    if exact:
        return _price(band, f"{table.name}: {below.source}", below.certainty)
    certainty: Certainty = "assumed"
    if below is above and size != below.size_bytes:
        source = f"{EXTRAPOLATED} from {show_bytes(below.size_bytes)}"
    else:
        source = f"interpolated between {show_bytes(below.size_bytes)} and {show_bytes(above.size_bytes)}"
        certainty = max(("derived", below.certainty, above.certainty), key=_STRENGTH.index)
    return _price(band, f"{table.name}: {source}, {width} bit; {below.source}", certainty)


def _band(point: SramPoint) -> tuple[int, int, int]:
    return point.low_aj, point.energy_aj, point.high_aj


def _at_width(point: SramPoint, energy_aj: int, width_bits: int) -> Fraction:
    """Energy at another width: 0.7 of it grows with the width (the factor of Accelergy's CACTI plug-in)."""
    return energy_aj * (Fraction(7 * width_bits, point.width_bits) + 3) / 10


def _between(size: int, size_below: int, below: Fraction, size_above: int, above: Fraction) -> Fraction:
    if size_below == size_above:
        return below if size == size_below else Fraction(float(below) * math.sqrt(size / size_below))
    if size in (size_below, size_above):
        return below if size == size_below else above
    share = math.log(size / size_below) / math.log(size_above / size_below)
    return Fraction(float(below) * (float(above) / float(below)) ** share)
