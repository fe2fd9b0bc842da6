"""Which of many tilings is the best: what they take, scored by a DRAM, a clock, and prices where the spec asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jouletrace.hardware.energy import price_list
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.loops import Loops, array_of

__all__ = ["Array", "Costs", "least", "scores"]

Array = NDArray[np.int64]
Positions = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What tilings of one op take, whatever the DRAM delivers; int64 arrays of one length.

    ``busiest``: cycles of the busiest engine, without the DRAM port. ``first``: of the first load, which nothing hides.
    ``together``: of all engines, where they collide now and then, else 0. ``words``: elements moved.
    """

    busiest: Array
    first: Array
    together: Array
    words: Array

    def at(self, positions: Positions) -> Costs:
        """The costs of some of the tilings."""
        return Costs(*(figure[positions] for figure in (self.busiest, self.first, self.together, self.words)))

    def contenders(self) -> Positions:
        """Ascending positions of all tilings that are the best at some bandwidth, clock and prices, and of some others.

        Each is held against one rival, the best where nobody waits for the port. A score never falls where words rise,
        or cycles: max(busiest, P) + first + (together + P) // 32, if the words hold the port for P. As long as the
        rival waits for something else than the port, it is ahead if it is with P = 0. Else it moves a word in no less
        than busiest / words cycles, and is ahead if what the other moves besides takes longer than it is behind.
        """
        cycles = self.busiest + self.first
        rival = least(cycles + self.together // 32, self.words)
        more_words = self.words - self.words[rival]
        collides = np.maximum(-((self.together - self.together[rival]) // 32), 0)
        behind = self.first[rival] + collides - self.first
        words_per_cycle = -(-self.words[rival] // self.busiest[rival])
        beaten = (more_words > 0) | ((more_words == 0) & (np.arange(len(cycles)) > rival))
        beaten &= cycles[rival] + collides <= cycles
        beaten &= (behind <= 0) | (more_words >= (behind + 1) * words_per_cycle)
        return np.flatnonzero(~beaten)


def least(*figures: Array) -> int:
    """Where the first figure is the least; among those, the second, and so on; then the first place.

    >>> least(np.array([2, 1, 1, 1]), np.array([0, 5, 4, 4]))
    2
    """
    places = np.arange(len(figures[0]))
    for figure in figures:
        here = figure[places]
        places = places[here == here.min()]
    return int(places[0])


def scores(found: Costs, loops: Loops, hardware: Hardware) -> Array:
    """The figure by which tilings are compared, in the unit of the spec's objective; smaller is better."""
    schedule = array_of(hardware).schedule
    busiest, together = found.busiest, found.together
    if hardware.dram.port != "stream_share":
        port = _port_cycles(found.words, hardware.storage_bits(max(loops.bits)), hardware)
        busiest = np.maximum(busiest, port)
        if schedule.swap == "free_running":
            together = together + port
    # Engines that are nearly as busy as the bottleneck collide with it now and then; a little of their sum tells apart
    # tilings with the same bottleneck.
    cycles = busiest + found.first + together // 32
    objective = schedule.objective
    if objective == "cycles":
        return cycles
    prices = price_list(hardware)

    def pj(component: str, action: str, times: int = 1) -> int:
        """A price in whole pJ: as fine as a score needs, and sums of it stay far from 64 bits."""
        return max(1, prices[component, action].energy_aj * times // 10**6)

    word = pj("dram", "read", hardware.storage_bits(max(loops.bits)) // 8)
    waiting = pj("chip", "static") + pj("dram", "background")
    energy = found.words * word + cycles * waiting
    return energy if objective == "energy" else energy // 10**3 * (cycles // 10**3)


def _port_cycles(words: Array, bits: int, hardware: Hardware) -> Array:
    """Cycles for which ``words`` of so many bits hold the DRAM port."""
    per_cycle = 8 * hardware.dram_bytes_per_cycle / bits
    if int(words.max()) * per_cycle.denominator >= 2**63:  # an odd clock makes a fraction of large numbers
        exact = [number * per_cycle.denominator // per_cycle.numerator for number in words.tolist()]
        return np.array(exact, dtype=np.int64)
    return words * per_cycle.denominator // per_cycle.numerator
