"""Where the shipped data is: inside the wheel, or in the folders of a checkout."""

from __future__ import annotations

from pathlib import Path

from jouletrace.errors import UsageError

__all__ = ["KINDS", "folder"]

KINDS = ("hwspecs", "traces", "workloads", "validation")
_PACKAGE = Path(__file__).resolve().parent


def folder(kind: str) -> Path:
    """The folder of ``hwspecs``, ``traces``, ``workloads`` or ``validation``.

    An editable install leaves a stale copy of the data in site-packages; the package itself then
    lies in the checkout, so the checkout's live folder is found.

    >>> folder("traces").name
    'traces'
    """
    candidates = (_PACKAGE / "_data" / kind, _PACKAGE.parents[1] / kind)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UsageError(
        f"the shipped folder {kind!r} was found neither at {candidates[0]} nor at {candidates[1]}; "
        "reinstall jouletrace"
    )
