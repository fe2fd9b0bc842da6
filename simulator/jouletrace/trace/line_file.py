"""Files of lines from strangers: plain or compressed, with every bound checked before more is read.

Traces and decision logs are such files. Nothing here knows what stands in a line.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

__all__ = ["MAX_RATIO", "BytesError", "compress", "inflate", "lines", "open_at_once", "require_regular"]

MAX_COMPRESSED = 64 << 20
MAX_EXPANDED = 1 << 30
MAX_RATIO = 200
MAX_LINE = 1 << 20
_CHUNK = 1 << 16


def compress(data: bytes) -> bytes:
    """One gzip member without time, name or operating system, so that equal traces give equal files."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(data) + packer.flush()
    head = b"\x1f\x8b\x08" + bytes(5) + b"\x02\xff"
    tail = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return head + packed + tail


def open_at_once(path: str, flags: int) -> int:
    """Opens without waiting, so that a pipe that nobody writes to is refused instead of waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class BytesError(Exception):
    """The bytes of a file end here: they are cut off, or not what they claim to be."""


def require_regular(file: BinaryIO) -> None:
    """Raises OSError for a folder, a pipe or a device."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "it is not a regular file")


def inflate(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a plain or compressed file in pieces, with all limits checked before more is inflated."""
    chunk = file.read(_CHUNK)
    seen_in, seen_out = len(chunk), 0
    if not chunk.startswith(b"\x1f\x8b"):
        while chunk:
            seen_out += len(chunk)
            if seen_out > MAX_EXPANDED:
                raise BytesError(f"the file is larger than {MAX_EXPANDED >> 20} MiB")
            yield chunk
            chunk = file.read(_CHUNK)
        return
    stream = zlib.decompressobj(wbits=31)
    while chunk:
        if stream.eof:
            raise BytesError("there is data after the end of the compressed stream")
        while chunk and not stream.eof:
            try:
                piece = stream.decompress(chunk, _CHUNK)
            except zlib.error as error:
                raise BytesError(f"the compressed stream is damaged ({error})") from None
            seen_out += len(piece)
            if seen_out > MAX_RATIO * seen_in + _CHUNK:
                raise BytesError(f"the file expands to more than {MAX_RATIO} times its size")
            if seen_out > MAX_EXPANDED:
                raise BytesError(f"the file expands to more than {MAX_EXPANDED >> 20} MiB")
            yield piece
            chunk = stream.unconsumed_tail
        if stream.unused_data:
            raise BytesError("there is data after the end of the compressed stream")
        chunk = file.read(_CHUNK)
        seen_in += len(chunk)
        if seen_in > MAX_COMPRESSED:
            raise BytesError(f"the compressed file is larger than {MAX_COMPRESSED >> 20} MiB")
    if not stream.eof:
        raise BytesError("the compressed stream is cut off")


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their line feed; a last line without one is cut off."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(rest) > MAX_LINE:
            raise BytesError(f"the line is longer than {MAX_LINE >> 20} MiB")
    if rest:
        raise BytesError("the last line has no line feed: the file is cut off")
