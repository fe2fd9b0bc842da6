"""What is packed is unpacked, without a copy; whatever else the bytes may be is refused in a sentence."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from jouletrace.store.arrays import DTYPES, pack, unpack

FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s), max_leaves=5
)
ARRAYS = st.sampled_from([*DTYPES, ">i4", ">u8"]).flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
TWO: dict[str, NDArray[Any]] = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.array([7], dtype=np.uint8)}


@given(st.dictionaries(st.text(), ARRAYS, max_size=4), FACTS)
def test_what_was_packed_is_unpacked(arrays: dict[str, NDArray[Any]], facts: object) -> None:
    packed = unpack(pack(arrays, facts))
    assert packed.facts == facts
    assert list(packed.arrays) == list(arrays)
    for name, array in arrays.items():
        found = packed.arrays[name]
        assert (found.shape, found.dtype.itemsize, found.tolist()) == (array.shape, array.dtype.itemsize, array.tolist())


def test_an_array_of_any_strides_is_packed_in_order() -> None:
    whole = np.arange(24, dtype=np.int32).reshape(4, 6)
    found = unpack(pack({"a": whole[::2, ::-1].T})).arrays["a"]
    assert found.tolist() == whole[::2, ::-1].T.tolist()


def test_arrays_are_aligned_views_that_cannot_be_written() -> None:
    data = pack(TWO, ["odd"])
    packed = unpack(data)
    for array in packed.arrays.values():
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))
        assert array.flags.aligned
        assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        packed.arrays["a"][0, 0] = 1
    with pytest.raises(TypeError):
        packed.arrays["a"] = packed.arrays["b"]  # type: ignore[index]


def test_equal_contents_are_equal_bytes() -> None:
    assert pack(TWO, {"x": 1}) == pack({name: array.copy() for name, array in TWO.items()}, {"x": 1})


@pytest.mark.parametrize("dtype", ["f4", "f8", "?", "O", "S3", "U3", "c16", "M8[s]", "i4,i4"])
def test_only_integers_are_packed(dtype: str) -> None:
    with pytest.raises(ValueError, match="array 'x': only integers in at most 8 dimensions"):
        pack({"x": np.zeros(2, dtype)})


def test_dimensions_are_limited() -> None:
    assert unpack(pack({"x": np.zeros((1,) * 8, np.int8)})).arrays["x"].ndim == 8
    with pytest.raises(ValueError, match="only integers in at most 8 dimensions"):
        pack({"x": np.zeros((1,) * 9, np.int8)})


def test_cut_bytes_are_refused_wherever_the_cut_is() -> None:
    data = pack(TWO, "facts")
    for length in range(len(data)):
        with pytest.raises(ValueError, match="packed arrays|Expecting|Unterminated"):
            unpack(data[:length])
    with pytest.raises(ValueError, match="left over"):
        unpack(data + bytes(16))


@given(st.data())
@settings(max_examples=300)
def test_damaged_bytes_are_refused_or_are_other_integers(data: st.DataObject) -> None:
    spoiled = bytearray(pack(TWO, {"ops": ["conv1", 3]}))
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    try:
        packed = unpack(bytes(spoiled))
    except ValueError:
        return
    assert all(array.dtype.str in DTYPES for array in packed.arrays.values())
    assert sum(array.nbytes for array in packed.arrays.values()) <= len(spoiled)


def contents(text: str, length: int | None = None, behind: int = 64) -> bytes:
    """Bytes with a table of contents of one's own."""
    raw = text.encode()
    head = struct.pack("<8sQ", b"jtpack\x00\x01", len(raw) if length is None else length)
    return head + raw + bytes(-len(raw) % 16) + bytes(behind)


def test_the_format_is_the_one_that_this_file_writes_down() -> None:
    assert unpack(contents('[[["x","<i8",[8]]],null]')).arrays["x"].tolist() == [0] * 8


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "header is cut off"),
        (b"jtpack\x00\x02" + bytes(100), "another format"),
        (contents("[[],null]", 1 << 63), "a table of contents of 9223372036854775808 bytes"),
        (contents("[" * 100_000), "nested too deeply"),
        (contents("\x00"), "Expecting value"),
        (contents('[[],"' + "\\ud800" + '"'), "Expecting"),
        (contents(f"[[],{'9' * 10_000}]"), "digits"),
        (contents("{}"), "table of contents and facts"),
        (contents("[[]]"), "table of contents and facts"),
        (contents("[{},1]"), "is no list"),
    ],
)
def test_a_hostile_table_of_contents(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unpack(data)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (["x", "<i8"], "a name, one of the known types, and a shape"),
        (["x", "<i8", [1], 2], "a name, one of the known types, and a shape"),
        ([3, "<i8", [1]], "a name, one of the known types, and a shape"),
        (["x", "|O", [1]], "a name, one of the known types, and a shape"),
        (["x", "<f8", [1]], "a name, one of the known types, and a shape"),
        (["x", "|b1", [1]], "a name, one of the known types, and a shape"),
        (["x", ["<i8"], [1]], "a name, one of the known types, and a shape"),
        (["x", "<i8", 8], "a name, one of the known types, and a shape"),
        (["x", "<i8", "8"], "a name, one of the known types, and a shape"),
        (["x", "<i8", [-8, -1]], "has no shape"),
        (["x", "<i8", [8.0]], "has no shape"),
        (["x", "<i8", [True]], "has no shape"),
        (["x", "<i8", [None]], "has no shape"),
        (["x", "<i8", [1] * 9], "has no shape"),
        (["x", "<i8", [1 << 64]], "has no shape"),
        (["x", "<i8", [9]], "is cut off"),
        (["x", "<i8", [1 << 39] * 8], "is cut off"),
        (["x", "<i8", [0, *[1 << 39] * 7]], "."),
        (["x", "<i8", [4]], "missing or left over"),
    ],
)
def test_a_hostile_array(entry: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        unpack(contents(json.dumps([[entry], None])))


def test_a_name_stands_there_once() -> None:
    with pytest.raises(ValueError, match="'x' stands there twice"):
        unpack(contents('[[["x","<i8",[4]],["x","<i8",[4]]],null]'))
