"""DRAM energy per command from the currents of a datasheet.

The formulas are those of DRAMsim3 and Micron's TN-41-01, for d devices at VDD, exact until the one rounding
of the price list:

    E(ACT+PRE)  = VDD d (IDD0 tRC - IDD3N tRAS - IDD2N tRP)
    E(RD)       = VDD d (IDD4R - IDD3N) tBURST              E(WR) with IDD4W; tBURST = burst length / 2 clocks
    E(REF)      = VDD d (IDD5 - IDD3N) tRFC                 every tREFI
    P(open)     = VDD d IDD3N                               P(closed) = VDD d IDD2N

They hold for the DRAM core: the interface (I/O and termination) is not in these currents and is a number of
its own in the device file. Modules draw less than their datasheets allow: the corrected values scale each
current by what a bench measured, with the spread between vendors as the band.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from jouletrace.hardware.spec import Current, Dram

__all__ = ["Band", "DramEnergies", "dram_energies"]

_AJ = Fraction(1, 10**9)  # microvolt * nanoampere * picosecond = 1e-27 J
_AW = 1000  # microvolt * nanoampere = 1e-15 W


class Band(NamedTuple):
    """An exact value between its bounds; differences take the bounds that lie farthest apart."""

    low: Fraction
    value: Fraction
    high: Fraction

    def times(self, factor: Fraction | int) -> Band:
        return Band(self.low * factor, self.value * factor, self.high * factor)

    def plus(self, other: Band) -> Band:
        return Band(self.low + other.low, self.value + other.value, self.high + other.high)

    def minus(self, other: Band) -> Band:
        """The difference, not below 0: a current above its base is never a gain."""
        differences = (self.low - other.high, self.value - other.value, self.high - other.low)
        return Band(*(max(Fraction(0), difference) for difference in differences))

    def around(self, value: Fraction) -> Band:
        """Another value with a band that holds both it and this band."""
        return Band(min(value, self.low), value, max(value, self.high))


@dataclass(frozen=True, slots=True)
class DramEnergies:
    """Energies in aJ and powers in aW of all devices of the interface together."""

    activate_aj: Band
    read_aj_per_byte: Band
    write_aj_per_byte: Band
    refresh_aj: Band
    open_aw: Band
    closed_aw: Band
    refresh_aw: Band

    @property
    def background_aw(self) -> Band:
        """Rows open, and refresh. A memory with all rows closed is the lower bound."""
        low = min(self.open_aw.low, self.closed_aw.low)
        high = max(self.open_aw.high, self.closed_aw.high)
        return Band(low, self.open_aw.value, high).plus(self.refresh_aw)


def dram_energies(dram: Dram, *, corrected: bool) -> DramEnergies:
    """Command energies of the board's DRAM, by the datasheet (exact) or as measured (a band).

    Currents shrink by different factors, so a corrected difference may exceed that of the datasheet.

    >>> from jouletrace.hardware.load import load_hardware
    >>> dram = load_hardware("eftrain-zcu102").dram
    >>> sheet, bench = dram_energies(dram, corrected=False), dram_energies(dram, corrected=True)
    >>> [round(float(energies.read_aj_per_byte.value) / 8e6, 2) for energies in (sheet, bench)]  # pJ/bit
    [5.73, 3.71]
    """
    device, clocks, one = dram.device, dram.device.timing_cycles, Fraction(1)

    def current(name: Current) -> Band:
        low, mean, high = device.measured_ratio[name]
        ratio = Band(low, mean, high) if corrected else Band(one, one, one)
        return ratio.times(device.idd_na[name])

    def power(amperes: Band) -> Band:
        return amperes.times(dram.devices * device.vdd_uv)

    def transfer(name: Current, interface_aj_per_bit: int) -> Band:
        clocks_per_byte = Fraction(device.burst_length, 2) / Fraction(device.burst_length * dram.interface_bits, 8)
        core = power(current(name).minus(current("IDD3N"))).times(clocks_per_byte * device.clock_period_ps * _AJ)
        return core.plus(Band(*[Fraction(8 * interface_aj_per_bit)] * 3))

    idle, standby = power(current("IDD2N")), power(current("IDD3N"))
    between = standby.times(clocks["tRAS"]).plus(idle.times(clocks["tRP"]))
    activate = power(current("IDD0")).times(clocks["tRC"]).minus(between)
    refresh = power(current("IDD5")).minus(standby).times(clocks["tRFC"])
    return DramEnergies(
        activate_aj=activate.times(device.clock_period_ps * _AJ),
        read_aj_per_byte=transfer("IDD4R", device.interface_read_aj_per_bit),
        write_aj_per_byte=transfer("IDD4W", device.interface_write_aj_per_bit),
        refresh_aj=refresh.times(device.clock_period_ps * _AJ),
        open_aw=standby.times(_AW),
        closed_aw=idle.times(_AW),
        refresh_aw=refresh.times(Fraction(_AW, clocks["tREFI"])),
    )
