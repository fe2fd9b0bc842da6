"""Where the cache lies, how large it may grow, and whether there is one: three environment variables."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from jouletrace.errors import UsageError
from jouletrace.store.blobs import Store
from jouletrace.units import parse_quantity

__all__ = ["FOLDER", "LIMIT", "SWITCH", "cache_folder", "configured", "is_off", "limit_bytes", "open_store"]

SWITCH = "JOULETRACE_NO_CACHE"
FOLDER = "JOULETRACE_CACHE"
LIMIT = "JOULETRACE_CACHE_SIZE"
DEFAULT_LIMIT_BYTES = 256 << 20


def is_off() -> bool:
    """Whether nothing is to be kept, neither in memory nor on disk."""
    return os.environ.get(SWITCH, "") not in ("", "0")


def cache_folder() -> Path | None:
    """``JOULETRACE_CACHE``, else ``$XDG_CACHE_HOME/jouletrace``, else ``~/.cache/jouletrace``; None without a home.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification 0.8 asks.
    """
    if named := os.environ.get(FOLDER):
        return Path(named).absolute()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(caches):
        return Path(caches, "jouletrace")
    home = os.path.expanduser("~")
    return Path(home, ".cache", "jouletrace") if os.path.isabs(home) else None


def limit_bytes() -> int:
    """How large the cache may grow: ``JOULETRACE_CACHE_SIZE``, such as ``1 GiB``; 256 MiB if it is not set.

    Raises :class:`UsageError` if it is no size.
    """
    text = os.environ.get(LIMIT, "")
    if not text:
        return DEFAULT_LIMIT_BYTES
    try:
        size = parse_quantity(text, "size_bytes")
    except ValueError as error:
        raise UsageError(f"{LIMIT}: {error}") from None
    if size < 0:
        raise UsageError(f"{LIMIT}: a size is at least 0 B (got {text!r})")
    return int(size)


def configured() -> Store | None:
    """The store that the environment names, used or not; None where there is no folder for one.

    A size that cannot be read counts as the default here: a wrong setting of a cache must never stop a run. The
    command ``jouletrace cache`` complains about it.
    """
    folder = cache_folder()
    if folder is None:
        return None
    try:
        limit = limit_bytes()
    except UsageError:
        limit = DEFAULT_LIMIT_BYTES
    return _store(folder, limit)


def open_store() -> Store | None:
    """The store to use, the same object as long as the environment stays; None if the cache is turned off."""
    return None if is_off() else configured()


@lru_cache(maxsize=8)
def _store(folder: Path, limit: int) -> Store:
    return Store(folder, limit)
