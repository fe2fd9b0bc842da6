"""Writing files so that a crash, a full disk or a wrong input never harms what was there before."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from jouletrace.errors import UsageError

__all__ = ["write_file"]


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Writes ``data`` beside ``path``, makes it durable, and renames it into place.

    A reader sees the old file or the new one, never a part. Text is written as UTF-8. A pipe or a device
    (``/dev/stdout``) is written straight. Raises :class:`UsageError` if the place cannot be written.
    """
    target = Path(os.path.realpath(path))
    content = data.encode() if isinstance(data, str) else data
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(content)
        else:
            _replace(target, content)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{os.fspath(path)}: cannot be written: {reason}; name a file in a folder that exists") from None
    return Path(path)


def _replace(target: Path, content: bytes) -> None:
    if target.is_dir():
        raise IsADirectoryError(None, "it is a folder")
    handle, beside = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            os.fsync(stream.fileno())
        os.replace(beside, target)
    except BaseException:
        os.unlink(beside)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
