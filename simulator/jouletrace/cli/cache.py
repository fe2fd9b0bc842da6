"""``jouletrace cache``: where the cache on disk lies and what it takes there, or an empty one."""

from __future__ import annotations

import argparse

from jouletrace.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "cache", help="show the cache on disk, or empty it",
        description="Shows folder, size and entries of the cache on disk. Everything in it can be made again.",
    )  # fmt: skip
    parser.add_argument("--clear", action="store_true", help="remove all entries")
    parser.set_defaults(execute=_cache)


def _cache(arguments: argparse.Namespace) -> None:
    from jouletrace.errors import UsageError
    from jouletrace.store import settings
    from jouletrace.units import show_bytes

    limit = settings.limit_bytes()
    store = settings.configured()
    if store is None:
        raise UsageError(f"there is no home folder to keep a cache in; name one with {settings.FOLDER}")
    if arguments.clear:
        removed = store.clear()
        print(f"removed  {removed.entries} entries, {show_bytes(removed.size_bytes)}")
    usage = store.usage()
    print(f"folder   {store.folder}")
    print(f"size     {show_bytes(usage.size_bytes)} of at most {show_bytes(limit)}")
    print(f"entries  {usage.entries}")
    if settings.is_off():
        print(f"not used: {settings.SWITCH} is set")
