"""Named arrays of integers and a few facts, as bytes that are read back without a copy.

The layout is a magic number, the length of a table of contents, that table as JSON, and the arrays one behind the
other, each from a multiple of 16 bytes on. Compressing is left to whoever stores the bytes. Nothing in the bytes is
trusted: neither a type, nor a shape, nor a length.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "Packed", "pack", "unpack"]

# The types that an array may have, in the byte order that they have in a file.
DTYPES = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")
MAX_DIMENSIONS = 8
MAX_CONTENTS_BYTES = 16 << 20
_HEADER = struct.Struct("<8sQ")
_MAGIC = b"jtpack\x00\x01"
_ALIGNMENT = 16


class Packed(NamedTuple):
    """Arrays by name, which cannot be written, and ``facts``: whatever JSON can say, not checked any further."""

    arrays: Mapping[str, NDArray[Any]]
    facts: object


def pack(arrays: Mapping[str, NDArray[Any]], facts: object = None) -> bytes:
    """The bytes of named arrays, of any shape, and of ``facts``, which have to be plain JSON.

    Raises ``ValueError`` for an array of another type than ``DTYPES`` or of more than 8 dimensions, and what ``json``
    raises for facts that are no JSON.

    >>> packed = unpack(pack({"cycles": np.array([[3, 4]], dtype=np.int32)}, {"ops": ["conv1"]}))
    >>> packed.arrays["cycles"].tolist(), packed.facts
    ([[3, 4]], {'ops': ['conv1']})
    """
    table: list[tuple[str, str, tuple[int, ...]]] = []
    pieces: list[bytes] = []
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in DTYPES or array.ndim > MAX_DIMENSIONS:
            raise ValueError(f"array {name!r}: only integers in at most {MAX_DIMENSIONS} dimensions can be packed "
                             f"(got {array.dtype} in {array.ndim})")  # fmt: skip
        data = array.astype(dtype, copy=False).tobytes()
        table.append((name, dtype, array.shape))
        pieces += (data, _padding(len(data)))
    contents = json.dumps([table, facts], separators=(",", ":"), allow_nan=False).encode()
    return b"".join((_HEADER.pack(_MAGIC, len(contents)), contents, _padding(len(contents)), *pieces))


def unpack(data: bytes) -> Packed:
    """What :func:`pack` was given; the arrays are read-only views of ``data``.

    Raises ``ValueError``, and nothing else, if these are no such bytes.
    """
    if len(data) < _HEADER.size:
        raise ValueError("packed arrays: the header is cut off")
    magic, length = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("packed arrays: another format")
    if length > min(MAX_CONTENTS_BYTES, len(data) - _HEADER.size):
        raise ValueError(f"packed arrays: a table of contents of {length} bytes")
    at = _HEADER.size + length
    try:
        contents: object = json.loads(data[_HEADER.size : at])
    except RecursionError:
        raise ValueError("packed arrays: facts are nested too deeply") from None
    if not isinstance(contents, list) or len(cast(list[object], contents)) != 2:
        raise ValueError("packed arrays: a table of contents and facts are needed")
    table, facts = cast(list[object], contents)
    if not isinstance(table, list):
        raise ValueError("packed arrays: the table of contents is no list")
    at = _aligned(at)
    arrays: dict[str, NDArray[Any]] = {}
    for entry in cast(list[object], table):
        name, dtype, shape = _entry(entry)
        if name in arrays:
            raise ValueError(f"packed arrays: {name!r} stands there twice")
        elements = prod(shape)
        if elements * dtype.itemsize > len(data) - at:
            raise ValueError(f"packed arrays: {name!r} is cut off")
        # An array without elements may begin where the bytes end, which frombuffer does not allow.
        flat = np.frombuffer(data, dtype, elements, at) if elements else np.empty(0, dtype)
        arrays[name] = flat.reshape(shape)
        arrays[name].flags.writeable = False
        at = _aligned(at + elements * dtype.itemsize)
    if at != len(data):
        raise ValueError("packed arrays: bytes are missing or left over at the end")
    return Packed(MappingProxyType(arrays), facts)


def _entry(entry: object) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Name, type and shape of one array, as far as the table of contents alone can say whether they are good."""
    match entry:
        case [str(name), str(dtype), list()] if dtype in DTYPES:
            shape = tuple(cast(list[object], cast(list[object], entry)[2]))
        case _:
            raise ValueError("packed arrays: an array is a name, one of the known types, and a shape")
    lengths = tuple([length for length in shape if type(length) is int and 0 <= length < 1 << 40])
    if len(lengths) != len(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"packed arrays: {name!r} has no shape")
    return name, np.dtype(dtype), lengths


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _padding(length: int) -> bytes:
    return bytes(_aligned(length) - length)
