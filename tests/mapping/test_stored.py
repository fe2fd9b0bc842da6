"""Ops that another process has mapped are read instead of mapped, exactly; whatever else is read is no program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import jouletrace
from jouletrace.errors import MappingError
from jouletrace.hardware.load import list_hardware, load_hardware
from jouletrace.mapping import memory, step
from jouletrace.mapping.op_program import Command, Engine, OpProgram, Pool, Run
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.mapping.stored import packed, unpacked
from jouletrace.store.arrays import pack, unpack
from jouletrace.store.settings import FOLDER, SWITCH, open_store
from jouletrace.testing import residual_traces
from jouletrace.trace.batch import with_batch
from jouletrace.trace.model import Trace

from ..command import SOURCES

STEP = with_batch(jouletrace.load_trace("resnet20-cifar10-b32"), 2)
# A load into a buffer of two slots and a compute that empties one of them, three times; then the load alone.
BODY = OpProgram(
    (Engine("dma", "dma"), Engine("pe", "array")),
    (Pool("free", 2, "input"), Pool("full", 0)),
    (
        Command(0, "load", ((0, 5),), ((0, 1),), ((1, 1),), (), 3, ((("dram", "read", "param"), 7),), 64),
        Command(0, "compute", ((1, 9), (0, 0)), ((1, 1),), ((0, 1),)),
    ),
    (Run(np.array([0, 1], dtype=np.int32), 3), Run(np.array([0], dtype=np.int32), 1)),
    tiles=3,
)
IDLE = OpProgram((), (), (), ())


@contextmanager
def another_process(folder: Path | str, *, keep: bool = True) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is in memory; the cache on disk is this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0" if keep else "1")
        patch.setenv(FOLDER, str(folder))
        patch.setattr(memory, "_BUILDS", OrderedDict())
        yield patch


def contents(program: Program) -> tuple[object, ...]:
    return program.engines, program.pools, program.ops, program.bodies, program.places, program.after, program.port


def mapped(trace: Trace, spec: str, base: Trace | None = None) -> object:
    """The program of a step, every op of it looked up, or why there is none."""
    try:
        return contents(map_step(trace, load_hardware(spec), base=base, ops=trace.ops))
    except MappingError as error:
        return error.problems


def refuse(*_: object) -> int:
    raise AssertionError("an op is mapped that should have been read")


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jtblob"))


# -- the same with and without a disk


@given(residual_traces(), st.data())
@settings(max_examples=25, deadline=None)
def test_programs_that_were_read_are_equal_to_the_last_command(trace: Trace, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(list_hardware()))
    base = data.draw(st.sampled_from([None, trace]))
    with tempfile.TemporaryDirectory() as folder:
        with another_process(folder, keep=False):
            alone = mapped(trace, spec, base)
        assert not blobs(Path(folder)), "the cache is turned off"
        with another_process(folder):
            assert mapped(trace, spec, base) == alone, "the first process"
        with another_process(folder) as patch:
            if blobs(Path(folder)):
                patch.setattr(step, "_map", refuse)
            assert mapped(trace, spec, base) == alone, "the second one"


@pytest.mark.parametrize("spec", list_hardware())
def test_a_shipped_step_is_read_exactly(spec: str, tmp_path: Path) -> None:
    with another_process(tmp_path, keep=False):
        alone = mapped(STEP, spec)
    with another_process(tmp_path):
        assert mapped(STEP, spec) == alone
    assert len(blobs(tmp_path)) == 1, "all ops of a step are one blob"
    with another_process(tmp_path) as patch:
        patch.setattr(step, "_map", refuse)
        assert mapped(STEP, spec) == alone
        assert mapped(STEP, spec) == alone, "and they are in memory now"
    assert len(blobs(tmp_path)) == 1


def test_only_what_memory_lacks_is_left_on_disk(tmp_path: Path) -> None:
    """Layer by layer: the second blob holds nothing that the first one has."""
    board = load_hardware("eftrain-zcu102")
    with another_process(tmp_path):
        first = map_step(STEP, board, only="layer1")
        map_step(STEP, board, only="layer1")
        known = {*first.bodies}
        both = map_step(STEP, board, ops=STEP.ops)
    held = [len(unpacked(open_blob(path))) for path in sorted(blobs(tmp_path), key=os.path.getmtime)]
    assert held == [len(known), len({*both.bodies} - known)]


def open_blob(path: Path) -> bytes:
    """The payload of a blob, whatever its key."""
    return zlib.decompress(path.read_bytes()[88:])


def test_a_process_with_another_hash_seed_names_the_same_blobs(tmp_path: Path) -> None:
    source = """
import jouletrace, sys
from jouletrace.mapping import step
if sys.argv[1] == "read":
    step._map = None
trace = jouletrace.load_trace("resnet20-cifar10-b32")
for spec in ("zedboard-int8", "systolic-32x32"):
    print(step.map_step(trace, jouletrace.load_hardware(spec)).repeats.tolist())
"""
    said: list[bytes] = []
    for seed, what in ("1", "map"), ("2", "read"):
        environment = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONHASHSEED": seed, FOLDER: str(tmp_path), SWITCH: "0"}
        said.append(subprocess.check_output([sys.executable, "-c", source, what], env=environment))
        assert len(blobs(tmp_path)) == 2
    assert said[0] == said[1]


def test_a_step_of_which_an_op_fails_leaves_nothing(tmp_path: Path) -> None:
    tiny = load_hardware("eftrain-zcu102", ["buffers.weight.size=1 B"])
    with another_process(tmp_path), pytest.raises(MappingError):
        map_step(STEP, tiny, ops=STEP.ops)
    assert not blobs(tmp_path)


# -- what lies there is not trusted


def spoiled_by_length(data: bytes) -> bytes:
    return packed(unpacked(data)[1:]) or b""


def spoiled_by_index(data: bytes) -> bytes:
    found = unpack(data)
    holds = found.arrays["holds"].copy()
    holds[-1, 0] = 1_000_000
    return pack({**found.arrays, "holds": holds}, found.facts)


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda data: data[:-16], spoiled_by_length, spoiled_by_index],
                         ids=["empty", "cut", "an-op-too-few", "out-of-range"])  # fmt: skip
def test_a_blob_that_says_something_else_is_replaced(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Under the right name, with a right digest, as only another program would leave it."""
    with another_process(tmp_path, keep=False):
        alone = mapped(STEP, "zedboard-int8")
    with another_process(tmp_path) as patch:
        mapped(STEP, "zedboard-int8")
        good = blobs(tmp_path)[0].read_bytes()
        store = open_store()
        assert store is not None
        patch.setattr(memory, "packed", lambda bodies: spoil(packed(bodies) or b""))  # type: ignore[arg-type]
        blobs(tmp_path)[0].unlink()
        patch.setattr(memory, "_BUILDS", OrderedDict())
        mapped(STEP, "zedboard-int8")
        assert blobs(tmp_path)[0].read_bytes() != good
    with another_process(tmp_path):
        assert mapped(STEP, "zedboard-int8") == alone
    assert blobs(tmp_path)[0].read_bytes() == good


def test_a_blob_of_other_ops_under_this_name_is_no_blob(tmp_path: Path) -> None:
    """The key stands inside, so that a file that was renamed is seen."""
    with another_process(tmp_path):
        mapped(STEP, "zedboard-int8")
        (name,) = blobs(tmp_path)
        other = name.read_bytes()
        name.unlink()
        alone = mapped(STEP, "zedboard-fp32")
        (name,) = blobs(tmp_path)
    name.write_bytes(other)
    with another_process(tmp_path):
        assert mapped(STEP, "zedboard-fp32") == alone


def test_what_was_packed_is_unpacked() -> None:
    bodies = (BODY, IDLE, BODY, OpProgram(BODY.engines[1:], (), (Command(0, "compute", ((0, 1),)),), ()))
    data = packed(bodies)
    assert data is not None
    found = unpacked(data)
    assert found == bodies
    for body in found:
        for run in body.runs:
            assert run.chunk.dtype == np.int32
            assert not run.chunk.flags.writeable


def test_a_number_of_more_than_64_bits_is_not_packed() -> None:
    long = OpProgram(BODY.engines, (), (Command(0, "load", ((0, 1 << 63),)),), ())
    assert packed([BODY, long]) is None


def rewritten(name: str, row: int, column: int, value: int) -> bytes:
    """The program with one number in its tables replaced."""
    found = unpack(packed([BODY]) or b"")
    arrays: dict[str, NDArray[Any]] = {key: array.copy() for key, array in found.arrays.items()}
    arrays[name].reshape(len(arrays[name]), -1)[row, column] = value
    return pack(arrays, found.facts)


@pytest.mark.parametrize(
    ("name", "row", "column", "values"),
    [
        ("ops", 0, 0, (1, 3, -1)),  # engines
        ("ops", 0, 1, (1, 3, -1)),  # pools
        ("ops", 0, 2, (1, 3, 1 << 62)),  # commands
        ("ops", 0, 3, (1, 3, -1)),  # runs
        ("ops", 0, 4, (-1,)),  # tiles
        ("engines", 0, 0, (1, 2, -1)),  # twice the same engine, one that is not there
        ("pools", 1, 0, (0, 2, -1)),
        ("commands", 0, 0, (2, -1)),  # name
        ("commands", 0, 1, (-1,)),  # start cost
        ("commands", 0, 2, (-1,)),  # bytes
        ("commands", 0, 3, (0, 2, -1, (1 << 63) - 1)),  # holds
        ("commands", 0, 4, (0, 2, -1)),  # takes
        ("commands", 0, 5, (0, 2, -1)),  # gives
        ("commands", 0, 6, (0, 2, -1)),  # counts
        ("holds", 0, 0, (2, -1)),
        ("holds", 0, 1, (-1,)),
        ("holds", 1, 0, (0,)),  # an engine held twice
        ("takes", 0, 0, (2, -1, 1)),  # two drivers take from the second pool
        ("takes", 0, 1, (0, -1)),
        ("gives", 1, 0, (2, -1, 1)),
        ("gives", 1, 1, (0, -1)),
        ("counts", 0, 0, (1, -1)),
        ("counts", 0, 1, (0, -1)),
        ("runs", 0, 0, (0, 1, 3, -2)),
        ("runs", 0, 1, (0, -1, (1 << 63) - 1)),
        ("sequence", 2, 0, (2, -1, 1 << 30)),
    ],
)  # fmt: skip
def test_a_number_that_does_not_fit_is_refused(name: str, row: int, column: int, values: tuple[int, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match="op programs: "):
            unpacked(rewritten(name, row, column, value))


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        ("engines", [["dma", "dma"], ["pe", "oven"]]),
        ("engines", [["dma", "dma"], ["dma", "array"]]),
        ("engines", [["dma", "dma"], "pe"]),
        ("engines", [["dma", "dma"]]),
        ("engines", {}),
        ("pools", [["free", 2, "input"], ["full", True, ""]]),
        ("pools", [["free", 2, "input"], ["full", -1, ""]]),
        ("pools", [["free", 2, "input"], ["full", 1 << 63, ""]]),
        ("pools", [["free", 2, "input"], ["full", 0]]),
        ("names", ["load", 3]),
        ("names", None),
        ("actions", [["dram", "read"]]),
        ("actions", [["dram", "read", None]]),
        ("actions", []),
        ("more", []),
    ],
)
def test_a_text_that_does_not_fit_is_refused(texts: str, value: object) -> None:
    found = unpack(packed([BODY]) or b"")
    facts: dict[str, object] = json.loads(json.dumps(found.facts))
    facts[texts] = value
    with pytest.raises(ValueError, match="op programs: "):
        unpacked(pack(found.arrays, facts))


@pytest.mark.parametrize("name", ["ops", "holds", "sequence"])
@pytest.mark.parametrize("change", [
    None, lambda a: a.astype(np.int16), lambda a: a.astype(np.uint64), lambda a: a.reshape(-1, 1, 1),
    lambda a: a.reshape(1, -1)[:, :1],
])  # fmt: skip
def test_an_array_of_another_kind_is_refused(name: str, change: Callable[[NDArray[Any]], NDArray[Any]] | None) -> None:
    found = unpack(packed([BODY]) or b"")
    arrays = dict(found.arrays)
    array = arrays.pop(name)
    if change is not None:
        arrays[name] = change(array)
    with pytest.raises(ValueError, match="op programs: "):
        unpacked(pack(arrays, found.facts))


@given(st.data())
@settings(max_examples=300)
def test_damaged_bytes_are_refused_or_are_sound_programs(data: st.DataObject) -> None:
    spoiled = bytearray(packed([BODY, IDLE]) or b"")
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    try:
        bodies = unpacked(bytes(spoiled))
    except ValueError:
        return
    assert len(bodies) == 2
    for body in bodies:
        assert not body.problems
        assert all(times >= 0 for times in body.repeats)
