"""One step on many hardwares: a sweep over designs, or over what their energies rest on.

A step is mapped and executed once for all hardwares that differ in prices alone. What those are is decided by content:
a hardware without the values below, which neither the mapping nor an engine looks at, is the key. Whatever a spec gains
later is part of the key until it is named here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint

from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.designs import run
from jouletrace.mapping.memory import is_off
from jouletrace.replay.step import Replayed, priced, replayed
from jouletrace.result.model import Options, Result
from jouletrace.trace.model import Trace

__all__ = ["simulate_many"]

# Commands of the replayed steps that are kept: 16 bytes each where somebody asks for their intervals, so some 60 MB.
COMMANDS = 4_000_000


def simulate_many(
    trace: Trace, hardwares: Iterable[Hardware], *, progress: Callable[[int, int], None] | None = None
) -> Iterator[Result]:
    """Replays a training step on each hardware, in their order; every result equals that of :func:`simulate`.

    Hardwares that differ only in energies, powers, DRAM currents, names or sources share their mapping, cycles and
    counts, and are only priced anew; the others are replayed. (Where a mapping weighs prices to choose its tiles,
    hardwares with other energies are replayed too.) ``JOULETRACE_NO_CACHE=1`` replays each.

    Results come one by one, each when it is asked for, and ``hardwares`` may be a generator. ``progress`` is called
    after each with the hardwares done and in all; in all is 0 where ``hardwares`` does not tell.

    Raises what :func:`simulate` raises, at the hardware that is to blame; nothing comes after it.

    >>> import jouletrace
    >>> from jouletrace.testing.steps import Step
    >>> step = Step("small", batch=2)
    >>> step.loss(step.linear("fc", step.given("images", (2, 8), "input"), 4), classes=4)
    >>> clocks = [f"clock={mhz} MHz" for mhz in (50, 100)]
    >>> points = (jouletrace.load_hardware("zedboard-int8", [clock]) for clock in clocks)
    >>> [result.hardware["clock"] for result in simulate_many(step.trace(), points)]
    ['50000000 Hz', '100000000 Hz']
    """
    total = length_hint(hardwares)
    kept = _Kept()
    for done, hardware in enumerate(hardwares, start=1):
        result = priced(kept.replayed(trace, hardware), hardware)
        if progress is not None:
            progress(done, total)
        yield result


class _Kept:
    """Replayed steps of one sweep by the content of their hardware; the least recently used ones go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Replayed] = OrderedDict()
        self._commands = 0

    def replayed(self, trace: Trace, hardware: Hardware) -> Replayed:
        if is_off():
            return replayed(trace, hardware, Options())
        key = run(hardware)
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
            return found
        found = self._known[key] = replayed(trace, hardware, Options())
        self._commands += len(found.program)
        while self._commands > COMMANDS and len(self._known) > 1:
            self._commands -= len(self._known.popitem(last=False)[1].program)
        return found
