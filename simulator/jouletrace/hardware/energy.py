"""What one access costs on a hardware: its energy tables, DRAM currents and powers as one list of integer
prices.

Every price is rounded to an integer number of attojoules once, here. A larger entry of a table never makes
any price smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from jouletrace.errors import EnergyError, did_you_mean
from jouletrace.hardware.dram import Band, dram_energies
from jouletrace.hardware.spec import Certainty, EnergyTable, Hardware, RowStationary
from jouletrace.hardware.sram import access_energy
from jouletrace.units import round_half_even, show_energy

__all__ = ["PAD_ACTIONS", "PRIMITIVES", "Price", "PriceList", "price_list"]

# operations of the vector unit; a table prices them as add_fp32, mul_fp32, ...
PRIMITIVES = ("add", "mul", "div", "sqrt", "exp", "log", "compare", "random")
# what is done to the scratchpads of a row-stationary array: by the multiplier, and by the networks that fill them
PAD_ACTIONS = ("read", "write", "fill")


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
                f"nothing prices {component!r} {action!r}; priced components are {', '.join(known)}; "
                f"name a table for it under energy in the spec{did_you_mean(component, known)}"
            )
        known = sorted(table.entries)
        raise EnergyError(
            f"energy table {table.name!r} has no price for {component} {action!r}; "
            "add it to the table with a source, or choose another table "
            f"(--set energy.{component}=NAME){did_you_mean(action, known)}"
        )


# The last hardware with its prices: whoever asks once asks again.
_LAST: list[tuple[Hardware, PriceList]] = []


def price_list(hardware: Hardware) -> PriceList:
    """All prices of a hardware. Raises :class:`EnergyError` with everything that its tables cannot price.

    >>> from jouletrace.hardware.load import load_hardware
    >>> prices = price_list(load_hardware("systolic-32x32"))
    >>> prices[("array", "mac_bf16")].energy_aj, prices[("array", "mac_bf16")].certainty
    (590000, 'derived')
    """
    for known, prices in _LAST:
        if known is hardware:
            return prices
    prices = _price_list(hardware)
    _LAST[:] = [(hardware, prices)]
    return prices


def _price_list(hardware: Hardware) -> PriceList:
    energy, kind = hardware.energy, hardware.array.multiplier.type
    wanted = [
        _Wanted("array", f"mac_{kind}", energy.array, f"mac_{kind}", "operation"),
        _Wanted("array", "idle", energy.array, f"idle_{kind}", "lane cycle"),
        *(_Wanted("vector", f"{p}_fp32", energy.vector, f"{p}_fp32", "operation") for p in PRIMITIVES),
    ]
    if hardware.host is not None and energy.host is not None:
        times = hardware.host.cycles_per_element
        wanted.append(_Wanted("host", "element", energy.host, "cycle", "cycle", times))
    if isinstance(hardware.array, RowStationary):
        for pad in ("ifmap", "filter", "psum"):
            wanted += [_Wanted(f"scratchpad.{pad}", a, energy.array, "register_file", "word") for a in PAD_ACTIONS]
        wanted.append(_Wanted("network", "word", energy.array, "network", "word"))
    if energy.dram is not None:
        wanted += [_Wanted("dram", action, energy.dram, f"dram_{action}", "byte") for action in ("read", "write")]
    prices = {**_statics(hardware), **_dram(hardware)}
    problems: list[str] = []
    for want in wanted:
        try:
            prices |= want.priced()
        except EnergyError as error:
            problems += error.problems
    for name, buffer in hardware.buffers.items():
        try:
            band, source, certainty = access_energy(energy.buffers, name, buffer)
        except EnergyError as error:
            problems += error.problems
        else:
            price = _price(band, source, certainty)
            prices[f"buffer.{name}", "read"] = prices[f"buffer.{name}", "write"] = price
    if problems:
        raise EnergyError(problems)
    return PriceList(prices, {want.component: want.table for want in wanted})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A price that an entry of a table gives, if the table has it."""

    component: str
    action: str
    table: EnergyTable
    entry: str
    per: str
    times: Fraction = Fraction(1)

    def priced(self) -> dict[tuple[str, str], Price]:
        entry = self.table.entries.get(self.entry)
        if entry is None:
            return {}
        if entry.per != self.per:
            raise EnergyError(
                f"energy table {self.table.name!r}, entry {self.entry!r}: is per {entry.per!r}, "
                f"and is used per {self.per!r}; convert it, and say so in its source"
            )
        band = Band(Fraction(entry.low_aj), Fraction(entry.energy_aj), Fraction(entry.high_aj))
        source = f"{self.table.name}: {entry.source}"
        return {(self.component, self.action): _price(band.times(self.times), source, entry.certainty)}


def _price(band: Band, source: str, certainty: Certainty) -> Price:
    low, value, high = (round_half_even(energy) for energy in band)
    return Price(value, low, high, source, certainty)


def _statics(hardware: Hardware) -> dict[tuple[str, str], Price]:
    """Powers of the board, per cycle of the accelerator."""
    board = hardware.board
    powers = {("chip", "static"): board.chip_static, ("board", "idle"): board.board_idle}
    prices: dict[tuple[str, str], Price] = {}
    for key, power in powers.items():
        band = Band(*(Fraction(watts, hardware.clock_hz) for watts in power))
        prices[key] = _price(band, f"board {board.name}: {' '.join(key)} power", "assumed")
    return prices


def _dram(hardware: Hardware) -> dict[tuple[str, str], Price]:
    """Prices from the device's currents, background (rows open, refresh) per cycle of the accelerator.

    With a table of energies per byte, activation and background are taken to be in those.
    """
    dram, table = hardware.dram, hardware.energy.dram
    if table is not None:
        nothing = Price(0, 0, 0, f"{table.name}: taken to be in dram_read and dram_write", "assumed")
        return {("dram", "activate"): nothing, ("dram", "background"): nothing}
    sheet, bench = (dram_energies(dram, corrected=corrected) for corrected in (False, True))
    basis = "datasheet currents" + (" corrected by measured ones" if dram.use_measured_ratio else "")
    interface = dram.device.interface_read_aj_per_bit or dram.device.interface_write_aj_per_bit
    source = f"{dram.device.name}: {basis}, {'interface included' if interface else 'core only'}"
    per_cycle = Fraction(1, hardware.clock_hz)
    bands = {
        "read": (sheet.read_aj_per_byte, bench.read_aj_per_byte),
        "write": (sheet.write_aj_per_byte, bench.write_aj_per_byte),
        "activate": (sheet.activate_aj, bench.activate_aj),
        "background": (sheet.background_aw.times(per_cycle), bench.background_aw.times(per_cycle)),
    }
    return {
        ("dram", action): _price(
            measured if dram.use_measured_ratio else measured.around(limit.value),
            f"{source}; {_shown(limit)} by the datasheet, {_shown(measured)} corrected", "derived",
        )
        for action, (limit, measured) in bands.items()
    }  # fmt: skip


def _shown(band: Band) -> str:
    return show_energy(round_half_even(band.value))
