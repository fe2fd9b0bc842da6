"""Every error that a user can cause, as a sentence with a place and a cure.

The command line prints the sentences and exits with code 2; the library raises them. Nothing below
the command line ever exits the process.
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "Deadlock",
    "EnergyError",
    "JouletraceError",
    "LimitExceeded",
    "MappingError",
    "ResultError",
    "RewriteError",
    "SpecError",
    "TraceError",
    "UsageError",
    "did_you_mean",
]


class JouletraceError(Exception):
    """Base class: one or more problems, each a full sentence.

    >>> error = SpecError(["a.yaml:3:5: clock: needs a unit, as in '100 MHz' (got '100')"])
    >>> print(error)
    a.yaml:3:5: clock: needs a unit, as in '100 MHz' (got '100')
    """

    def __init__(self, problems: str | list[str]) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(self.problems))


class UsageError(JouletraceError):
    """A command or call that asks for something that does not exist or makes no sense."""


class SpecError(JouletraceError):
    """A hardware spec or energy table that cannot be read or contradicts itself."""


class TraceError(JouletraceError):
    """A trace that cannot be read, or that breaks a rule of :mod:`jouletrace.trace.check`."""


class CaptureError(JouletraceError):
    """A training step that could not be recorded or lowered."""


class RewriteError(JouletraceError):
    """A strategy that cannot be applied to this trace."""


class MappingError(JouletraceError):
    """An op that fits no tiling, or a step that does not fit its board."""


class ResultError(JouletraceError):
    """A result file that cannot be read, or whose sums do not follow from its counts and prices."""


class EnergyError(JouletraceError):
    """An action that the energy table does not price."""


class LimitExceeded(JouletraceError):
    """A stated limit (size, events, seconds) was reached; nothing was written."""


class Deadlock(JouletraceError):
    """No command can start any more; the message names the wait cycle."""


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A closing half-sentence for unknown names, or the empty string.

    >>> did_you_mean("forwrd", ["forward", "update"])
    "; did you mean 'forward'?"
    """
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
