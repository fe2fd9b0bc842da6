"""How several command streams share one engine."""

from __future__ import annotations

from collections.abc import Iterator

from simpy import Environment, Event
from simpy.events import EventPriority

from jouletrace.engine.credits import Alarm

__all__ = ["LATE", "RoundRobin", "Turnstile"]

# SimPy's priorities are 0 (urgent) and 1 (normal). Arbitration comes after everything else of its
# cycle, so that it sees every request of that cycle, in whatever order they were made.
LATE = EventPriority(2)


class Turnstile:
    """An engine that commands of several drivers hold, one after the other in program order.

    ``order`` are the drivers in program order, one entry per command that holds the engine. A driver
    whose turn it is reserves the engine from ``free_at`` on and passes the turn at once: nothing can
    come between, so the next one may reserve behind it.
    """

    __slots__ = ("_order", "_waiting", "free_at", "turn")

    def __init__(self, order: Iterator[int]) -> None:
        self._order = order
        self._waiting: dict[int, Alarm] = {}
        self.turn = next(order, -1)
        self.free_at = 0

    def wait(self, driver: int, alarm: Alarm) -> Alarm:
        """The alarm that rings when the turn comes to this driver."""
        self._waiting[driver] = alarm
        return alarm.arm()

    def hold(self, until: int) -> None:
        """Reserves the engine until a cycle, and passes the turn."""
        self.free_at = until
        self.turn = next(self._order, -1)
        if self.turn in self._waiting:
            self._waiting.pop(self.turn).set()


class RoundRobin:
    """A port that serves waiting streams in turn, a grant at a time.

    The turn goes to the next stream by engine index after the one served last. The decision falls at
    the end of a cycle (see ``LATE``): two streams that ask in the same cycle are equals.
    """

    def __init__(self, env: Environment, grant_cycles: int) -> None:
        self._env = env
        self._grant_cycles = grant_cycles
        self._left: dict[int, int] = {}
        self._waiting: dict[int, Alarm] = {}
        self._served = -1
        self._idle = True

    def request(self, driver: int, cycles: int) -> None:
        """Asks for cycles on the port, from now on."""
        self._left[driver] = cycles
        if self._idle:
            self._idle = False
            self._arbitrate_late()

    def serves(self, driver: int) -> bool:
        """Whether a request of this driver is not done yet."""
        return driver in self._left

    def wait(self, driver: int, alarm: Alarm) -> Alarm:
        """The alarm that rings when the driver's request is done."""
        self._waiting[driver] = alarm
        return alarm.arm()

    def _arbitrate(self, _: Event) -> None:
        if not self._left:
            self._idle = True
            return
        self._served = min(self._left, key=lambda driver: (driver <= self._served, driver))
        grant = min(self._grant_cycles, self._left[self._served])
        self._left[self._served] -= grant
        Alarm(self._env).ring_in(grant).call(self._end_grant)

    def _end_grant(self, _: Event) -> None:
        if not self._left[self._served]:
            del self._left[self._served]
            if self._served in self._waiting:
                self._waiting.pop(self._served).set()
        self._arbitrate_late()

    def _arbitrate_late(self) -> None:
        self._env.schedule(Alarm(self._env).arm().call(self._arbitrate), LATE)
