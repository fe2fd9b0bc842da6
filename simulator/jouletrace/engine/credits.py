"""Credits: how one engine waits for another without an event where nobody has to wait.

A pool is an integer. Taking from it costs a comparison while it holds enough; only a taker that must
wait uses the event queue. SimPy's stock resources put every take and every give on the queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from simpy import Environment, Event
from simpy.events import NORMAL

__all__ = ["Alarm", "Credits"]


class Alarm(Event):
    """The one event of a process, used again for every wait.

    A process waits for one thing at a time, so one event serves its whole life. Whoever wants to wait
    arms the alarm and yields it; whoever ends the wait sets it.

    >>> env, log = Environment(), []
    >>> def process(alarm):
    ...     for _ in range(3):
    ...         yield alarm.ring_in(5)
    ...         log.append(env.now)
    >>> _ = env.process(process(Alarm(env)))
    >>> env.run()
    >>> log
    [5, 10, 15]
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None

    def arm(self) -> Alarm:
        """Makes the alarm ready to be yielded; somebody else will have to set it."""
        self.callbacks = []
        return self

    def set(self) -> None:
        """Lets an armed alarm ring in this cycle."""
        self.env.schedule(self)

    def call(self, action: Callable[[Event], None]) -> Alarm:
        """Lets an armed alarm call a function instead of resuming a process."""
        self.callbacks.append(action)  # pyright: ignore[reportUnknownMemberType]
        return self

    def ring_in(self, cycles: int) -> Alarm:
        """Arms the alarm and lets it ring after ``cycles``."""
        self.callbacks = []
        self.env.schedule(self, NORMAL, cycles)
        return self


class Credits:
    """A pool: an integer, and the alarm of its taker while that one waits.

    Credits arrive in the order of the giver's commands: one that is promised and not yet redeemed holds
    back those given after it, as a slot of a ring buffer does.

    >>> env = Environment()
    >>> pool, alarm = Credits(1), Alarm(env)
    >>> _ = pool.wait(2, alarm)
    >>> pool.give(2)                                   # sets the alarm: two of three are taken
    >>> pool.free
    1
    """

    __slots__ = ("_need", "_promised", "_taker", "free")

    def __init__(self, free: int) -> None:
        self.free = free
        self._need = 0
        self._taker: Alarm | None = None
        self._promised: deque[Promise] = deque()

    def wait(self, amount: int, alarm: Alarm) -> Alarm:
        """For a taker that finds less than it needs: an alarm that rings when it has got the credits.

        A taker that finds enough subtracts from ``free`` by itself.
        """
        self._need, self._taker = amount, alarm
        return alarm.arm()

    def give(self, amount: int) -> None:
        """Adds credits, behind those that were promised before."""
        if self._promised:
            self._promised.append(Promise(amount, kept=True))
            return
        self.free += amount
        if self._taker is not None:
            self._grant(self._taker)

    def promise(self, amount: int) -> Promise:
        """Announces credits whose command still runs while its driver already goes on."""
        promise = Promise(amount, kept=False)
        self._promised.append(promise)
        return promise

    def redeem(self, promise: Promise) -> None:
        """Gives promised credits, and those that waited behind them."""
        promise.kept = True
        while self._promised and self._promised[0].kept:
            self.free += self._promised.popleft().amount
        if self._taker is not None:
            self._grant(self._taker)

    def _grant(self, taker: Alarm) -> None:
        if self.free >= self._need:
            self.free -= self._need
            self._taker = None
            taker.set()


class Promise:
    """Credits that are announced and not yet given."""

    __slots__ = ("amount", "kept")

    def __init__(self, amount: int, kept: bool) -> None:
        self.amount = amount
        self.kept = kept
