"""Writing files so that a crash, a full disk or a wrong input never harms what was there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jouletrace.errors import UsageError

__all__ = ["replacing", "write_file"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Opens a file beside ``path`` for writing; at the end it is made durable and renamed into place.

    A reader sees the old file or the new one, never a part; after an exception the old one stands. A pipe or a
    device (``/dev/stdout``) is written straight. Raises :class:`UsageError` if the place cannot be written.
    """
    if "\0" in os.fspath(path):
        raise UsageError(f"{os.fspath(path)!r}: a path cannot hold a NUL character")
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if os.path.abspath(path).startswith("/dev/") or (target.exists() and not target.is_file()):
            with open(path, "ab") as stream:
                yield stream
            return
        handle, beside = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.chmod(beside, target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
                os.fsync(stream.fileno())
            os.replace(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        name = os.fspath(path)
        raise UsageError(f"{name}: cannot be written: {reason}; name a file in a folder that exists") from None


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Writes a whole file by :func:`replacing`; text as UTF-8."""
    with replacing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
    return Path(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
