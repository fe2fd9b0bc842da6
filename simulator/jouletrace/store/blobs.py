"""A folder of blobs, found by what they were made from, that many processes may use at once.

A blob is written under a name of its own and renamed into place, so a reader sees all of it or nothing. It carries a
digest over every byte, so what a crash, a full disk or a stranger left there is no blob, and is removed. There are no
locks: whoever loses a race has lost a copy of something that can be made again. Nothing here raises because of the
disk; a folder that cannot be written is a cache that stays empty.

The digest finds damage, not malice: who may write into the folder may decide what is read from it. So blobs hold
numbers and texts only (:mod:`jouletrace.store.arrays`), of bounded size.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jouletrace.errors import UsageError
from jouletrace.version import MODEL_VERSION, __version__

__all__ = ["MAX_BLOB_BYTES", "Key", "Store", "Usage", "key"]

# No payload is larger, and none that claims to be is read.
MAX_BLOB_BYTES = 128 << 20
# Format and its version, digest of the key, length of the payload, length as stored, digest of all else in the file.
_HEADER = struct.Struct("<8s32sQQ32s")
_MAGIC = b"jtblob\x00\x01"
_NAME = re.compile(r"[a-z0-9_]+-[0-9a-f]{64}\.jtblob")
_PART = ".jtblob.part"
# A file under a temporary name that is older than this was left by a process that died.
_STALE_SECONDS = 3600
# Eviction goes down to 7/8 of the limit, and is due again when a process has written 1/16 of it.
_KEPT = (7, 8)
_DUE = 16
_PAGE_BYTES = 4096
_STARTED = time.time()


class Key(NamedTuple):
    """What a blob is found by: ``namespace`` says what it holds, ``digest`` (32 bytes) from what it was made."""

    namespace: str
    digest: bytes

    @property
    def file(self) -> str:
        return f"{self.namespace}-{self.digest.hex()}.jtblob"


def key(namespace: str, *parts: bytes) -> Key:
    """The key of what is made from ``parts`` by this version of the model, and by no other.

    The sources of the package go into the digest: what other code has computed is not found, even in a checkout where
    nobody has raised ``MODEL_VERSION`` yet. Where one part ends and the next begins matters.

    >>> key("programs", b"hardware", b"trace") == key("programs", b"hardware", b"trace")
    True
    >>> key("programs", b"ab", b"c") == key("programs", b"a", b"bc")
    False
    """
    if not re.fullmatch("[a-z0-9_]{1,32}", namespace):
        raise ValueError(f"a namespace is of a to z, 0 to 9 and _ (got {namespace!r})")
    digest = sha256(_model())
    for part in (namespace.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return Key(namespace, digest.digest())


@lru_cache(maxsize=1)
def _model() -> bytes:
    """A digest of the model version and of the code behind it; some milliseconds, once per process.

    Code that has changed since this process started is not the code that runs here, so then the digest is one that
    nobody else has.
    """
    digest = sha256(f"jouletrace {__version__}, model {MODEL_VERSION}\n".encode())
    sources = str(Path(__file__).parents[1])
    try:
        for place, folders, files in os.walk(sources):
            folders.sort()
            for name in sorted(name for name in files if name.endswith(".py")):
                with open(os.path.join(place, name), "rb", buffering=0) as stream:
                    if os.fstat(stream.fileno()).st_mtime > _STARTED:
                        return os.urandom(32)
                    source = stream.read()
                digest.update(f"{os.path.relpath(place, sources)}/{name} {len(source)}\n".encode())
                digest.update(source)
    except OSError:
        return os.urandom(32)
    return digest.digest()


class Usage(NamedTuple):
    """How many blobs there are, and the bytes that they take on disk, in pages of 4 KiB."""

    entries: int
    size_bytes: int


class _Blob(NamedTuple):
    used_ns: int
    path: str
    size_bytes: int


class Store:
    """Blobs in ``folder``, which is made when the first one is kept; the least recently used go above ``limit_bytes``.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store, name = Store(Path(folder.name), 1 << 20), key("example", b"what it was made from")
    >>> store.put(name, b"what was made")
    >>> store.get(name), store.usage()
    (b'what was made', Usage(entries=1, size_bytes=4096))
    >>> store.clear(), store.get(name)
    (Usage(entries=1, size_bytes=4096), None)
    >>> folder.cleanup()
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._writable = True
        self._unswept_bytes = limit_bytes  # so that the first blob of a process looks what others have left

    def get(self, name: Key) -> bytes | None:
        """The payload that was kept under this key, byte for byte, or None; what else lies there is removed."""
        path = os.path.join(self.folder, name.file)
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                payload = None
            else:
                with open(path, "rb") as stream:
                    payload = _verified(stream, name)
        except OSError:
            return None
        if payload is None:
            self.discard(name)
            return None
        with suppress(OSError):
            os.utime(path)
        return payload

    def put(self, name: Key, payload: bytes) -> None:
        """Keeps a payload, if it can be kept: it is not larger than 128 MiB, and the folder can be written."""
        if not self._writable or len(payload) > MAX_BLOB_BYTES:
            return
        # Reading stays as quick as without: hashing 50 times the bytes costs what inflating does.
        stored = zlib.compress(payload, 1)
        size = _on_disk(_HEADER.size + len(stored))
        if size > self.limit_bytes:
            return
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            handle, beside = tempfile.mkstemp(prefix=".", suffix=_PART, dir=self.folder)
        except OSError:
            self._writable = False
            return
        try:
            with os.fdopen(handle, "wb") as stream:
                digest = _digest(name, len(payload), stored)
                stream.write(_HEADER.pack(_MAGIC, name.digest, len(payload), len(stored), digest))
                stream.write(stored)
            os.replace(beside, os.path.join(self.folder, name.file))
        except BaseException as error:
            _remove(beside)
            if not isinstance(error, OSError):
                raise
            return
        self._unswept_bytes += size
        if self._unswept_bytes * _DUE >= self.limit_bytes:
            self._sweep()

    def discard(self, name: Key) -> None:
        """Removes a blob: whoever reads one and does not find in it what there should be says so here."""
        _remove(os.path.join(self.folder, name.file))

    def usage(self) -> Usage:
        """What there is now."""
        blobs = list(self._blobs())
        return Usage(len(blobs), sum(blob.size_bytes for blob in blobs))

    def clear(self) -> Usage:
        """Removes every blob, and no other file; what was removed. Raises :class:`UsageError` if one has to stay."""
        gone = Usage(0, 0)
        for _, path, size in self._blobs():
            if not _remove(path):
                raise UsageError(f"{path}: cannot be removed; are you allowed to write into that folder?")
            gone = Usage(gone.entries + 1, gone.size_bytes + size)
        self._remove_parts(older_than_seconds=0)
        return gone

    def _sweep(self) -> None:
        """Lets the least recently used go. Others may do so at once: they look at the same times, and so agree."""
        self._unswept_bytes = 0
        self._remove_parts(older_than_seconds=_STALE_SECONDS)
        blobs = sorted(self._blobs())
        size = sum(blob.size_bytes for blob in blobs)
        if size <= self.limit_bytes:
            return
        for blob in blobs:
            if size * _KEPT[1] <= self.limit_bytes * _KEPT[0]:
                return
            if _remove(blob.path):
                size -= blob.size_bytes

    def _blobs(self) -> Iterator[_Blob]:
        for entry in self._files():
            if _NAME.fullmatch(entry.name):
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    yield _Blob(found.st_mtime_ns, entry.path, _on_disk(found.st_size))

    def _remove_parts(self, older_than_seconds: float) -> None:
        oldest = time.time() - older_than_seconds
        for entry in self._files():
            if entry.name.endswith(_PART):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime <= oldest:
                        os.unlink(entry.path)

    def _files(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                return [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
        except OSError:
            return []


def _verified(stream: BinaryIO, name: Key) -> bytes | None:
    """The payload of a file, or None; nothing is allocated for lengths that the file does not have."""
    header = stream.read(_HEADER.size)
    if len(header) != _HEADER.size:
        return None
    magic, key_digest, length, stored_length, digest = _HEADER.unpack(header)
    size = os.fstat(stream.fileno()).st_size
    if magic != _MAGIC or key_digest != name.digest or stored_length != size - _HEADER.size:
        return None
    if max(length, stored_length) > MAX_BLOB_BYTES:
        return None
    stored = stream.read(stored_length)
    if _digest(name, length, stored) != digest:
        return None
    try:
        # One byte more than there should be, so that the end of the stream is reached and an excess is seen.
        inflate = zlib.decompressobj()
        payload = inflate.decompress(stored, length + 1)
    except zlib.error:
        return None
    return payload if len(payload) == length and inflate.eof and not inflate.unused_data else None


def _digest(name: Key, length: int, stored: bytes) -> bytes:
    digest = sha256(_HEADER.pack(_MAGIC, name.digest, length, len(stored), b""))
    digest.update(stored)
    return digest.digest()


def _on_disk(size_bytes: int) -> int:
    """Bytes in whole pages, so that many small blobs are not taken for nothing."""
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _remove(path: str) -> bool:
    """Whether there is no such file any more, whoever has removed it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
