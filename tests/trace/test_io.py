"""Trace files: one sequence of bytes per trace, nothing lost, nothing half written, every mistake with its line."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jouletrace
from jouletrace.errors import TraceError, UsageError
from jouletrace.testing import Step, traces
from jouletrace.trace import io
from jouletrace.trace.io import digest, dump, list_traces, load_trace, parse_trace, read_trace, write_trace
from jouletrace.trace.model import Gate, Header, Op, Rewrite, Sync, Tensor, Trace


def small_step() -> Trace:
    """A convolution with norm, relu and a classifier: 17 ops."""
    step = Step("small", 2)
    x = step.conv("conv", step.given("images", (2, 3, 4, 4), "input"), 2)
    x = step.function("relu", "relu", step.norm("bn", "batch", x))
    step.loss(step.linear("fc", x, 3), 3)
    return step.trace()


def edited(trace: Trace, line: int, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file of a trace with one line changed (1 is the first), and an end line that fits."""
    rows = [json.loads(row) for row in dump(trace).splitlines()]
    change(rows[line - 1])
    return sealed(rows)


def sealed(rows: list[dict[str, Any]]) -> bytes:
    """JSON lines with the end line that belongs to them."""
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows if "end" not in row)
    counts = {key + "s": sum(key in row for row in rows) for key in ("op", "tensor")}
    end = {"end": {**counts, "sha256": hashlib.sha256(body).hexdigest()}}
    return body + json.dumps(end).encode() + b"\n"


def problems_of(data: bytes) -> tuple[str, ...]:
    with pytest.raises(TraceError) as caught:
        parse_trace(data, "t")
    return caught.value.problems


# -- writing and reading

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
pairs = st.lists(st.tuples(names, names), max_size=2).map(tuple)


@st.composite
def headers(draw: st.DrawFn, batch: int) -> Header:
    rewrites = st.builds(
        Rewrite, names, st.lists(st.tuples(names, names | st.integers(-5, 5)), max_size=2).map(tuple),
        st.none() | st.integers(0, 9), st.just("0" * 64),
    )  # fmt: skip
    warnings = draw(st.lists(names, max_size=2).map(tuple))
    applied = draw(st.lists(rewrites, max_size=2).map(tuple))
    return Header(draw(names), batch, draw(names), draw(names), draw(pairs), draw(pairs), warnings, applied)


@given(traces(gates=True), st.data())
def test_round_trip_of_everything(trace: Trace, data: st.DataObject) -> None:
    header = data.draw(headers(trace.header.batch))
    bits, density = data.draw(st.integers(1, 64)), data.draw(st.sampled_from([(1, 1), (0, 7), (2, 4)]))
    tensors = (replace(trace.tensors[0], bits=bits, density=density, format="bfp"), *trace.tensors[1:])
    original = replace(trace, header=header, tensors=tensors, extensions=(("later", '{"a":[1,"\\u00e9"]}'),))
    again = parse_trace(dump(original), "t")
    assert again == original
    assert dump(again) == dump(original)
    assert digest(again) == hashlib.sha256(dump(original)).hexdigest()


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl"])
def test_files_hold_the_canonical_bytes(tmp_path: Path, suffix: str) -> None:
    trace, path = small_step(), tmp_path / f"small{suffix}"
    write_trace(trace, path)
    data = path.read_bytes()
    assert read_trace(path) == trace
    assert (gzip.decompress(data) if suffix.endswith("gz") else data) == dump(trace)


def test_bytes_are_canonical() -> None:
    for line in dump(small_step()).decode("ascii").splitlines():
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


def test_gzip_header_tells_nothing(tmp_path: Path) -> None:
    write_trace(small_step(), tmp_path / "secret-name.jsonl.gz")
    data = (tmp_path / "secret-name.jsonl.gz").read_bytes()
    # magic, deflate, no flags (no name), time 0, best compression, operating system unknown (RFC 1952)
    assert data[:10] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 255])
    assert b"secret" not in data


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    program = (
        "from tests.trace.test_io import small_step\n"
        "from jouletrace.trace.io import digest\n"
        "print(digest(small_step()))"
    )
    root = Path(__file__).parents[2]
    found: set[str] = set()
    for seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC{seed}"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(jouletrace.__file__).parents[1]), str(root)])
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert found == {digest(small_step())}


def test_this_digest_never_changes() -> None:
    """The identity of a trace is a promise: if this fails, the format has changed and needs a new version."""
    relu = Op("decide:forward", "forward", "", Sync("decision"), ("x",), (), gate=Gate("step", "all"))
    trace = Trace(Header("one", 1), (Tensor("x", (2, 3), 8, "int", "input", density=(1, 2)),), (relu,))
    lines = (
        '{"batch":1,"format":"jouletrace-trace","name":"one","version":"1.0"}\n'
        '{"tensor":{"bits":8,"density":[1,2],"format":"int","name":"x","role":"input","shape":[2,3]}}\n'
        '{"op":{"edges":[],"gate":{"name":"all","unit":"step"},"layer":"","name":"decide:forward",'
        '"nest":{"function":"decision","kind":"sync"},"phase":"forward","reads":["x"],"writes":[]}}\n'
    )
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    assert dump(trace).decode() == lines + f'{{"end":{{"ops":1,"sha256":"{sha256}","tensors":1}}}}\n'


def test_an_invalid_trace_is_not_written_and_harms_nothing(tmp_path: Path) -> None:
    trace, path = small_step(), tmp_path / "kept.jsonl.gz"
    write_trace(trace, path)
    before = path.read_bytes()
    with pytest.raises(TraceError, match="is read by no op"):
        write_trace(replace(trace, ops=trace.ops[:1]), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["kept.jsonl.gz"]


def test_a_failing_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, path = small_step(), tmp_path / "kept.jsonl"
    write_trace(trace, path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_trace(replace(trace, header=replace(trace.header, name="other")), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["kept.jsonl"]


# -- versions


def test_fields_of_a_newer_minor_version_are_kept() -> None:
    data = edited(small_step(), 1, lambda header: header.update(version="1.7", zone={"b": [1], "a": "x"}))
    trace = parse_trace(data, "t")
    assert trace.extensions == (("version", '"1.7"'), ("zone", '{"a":"x","b":[1]}'))
    again = dump(trace)
    assert b'"version":"1.7"' in again
    assert b'"zone":{"a":"x","b":[1]}' in again
    assert parse_trace(again, "t") == trace


@pytest.mark.parametrize("version", ["2.0", "0.9", "10.1"])
def test_other_major_versions_are_refused(version: str) -> None:
    data = edited(small_step(), 1, lambda header: header.update(version=version))
    assert problems_of(data) == (
        f"t:1: version: the file has version {version}; this release of jouletrace reads version 1.x, "
        "so another one is needed",
    )


# -- mistakes, with their places


def op(change: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda row: row["op"].update(change)


FIRST_OP = 2 + len(small_step().tensors)


@pytest.mark.parametrize(
    ("line", "change", "sentence"),
    [
        (1, lambda row: row.update(batch="2"), "t:1: batch: must be an integer (got '2')"),
        (1, lambda row: row.pop("batch"), "t:1: the field 'batch' is missing"),
        (1, lambda row: row.update(format="json"),
         't:1: this is no trace: the first line has to say "format":"jouletrace-trace"'),
        (2, lambda row: row["tensor"].update(role="parameter"),
         "t:2: tensor.role: must be one of param, activation, gradient, weight_gradient, optimizer_state, input, mask, "
         "buffer (got 'parameter'); did you mean 'param'?"),
        (2, lambda row: row["tensor"].update(shap=[1]),
         "t:2: tensor: the field 'shap' is unknown; did you mean 'shape'?"),
        (2, lambda row: row["tensor"].update(shape=[2, "3"]), "t:2: tensor.shape[1]: must be an integer (got '3')"),
        (2, lambda row: row["tensor"].update(name="a\0b"),
         "t:2: tensor.name: must hold printable characters only (got 'a\\x00b')"),
        (2, lambda row: row["tensor"].update(density=[1]), "t:2: tensor.density: must be a list of 2 (got [1])"),
        (2, lambda row: row["tensor"].update(saved=1), "t:2: tensor.saved: must be true or false (got 1)"),
        (FIRST_OP, op({"phase": "forwrd"}),
         f"t:{FIRST_OP}: op.phase: must be one of forward, backward_data, backward_weight, update (got 'forwrd'); "
         "did you mean 'forward'?"),
        (FIRST_OP, lambda row: row["op"]["nest"].update(kind="convolution"),
         f"t:{FIRST_OP}: op.nest.kind: must be one of conv, gemm, attention, elementwise, norm, pool, reduce, softmax, "
         "loss, gather, scatter, copy, cell, update, rng, sync (got 'convolution')"),
        (FIRST_OP, lambda row: row["op"]["nest"].update(M=1),
         f"t:{FIRST_OP}: op.nest: the field 'M' is unknown; there are N, K, C, OY, OX, R, S, G, IY, IX, stride, "
         "padding, dilation, role"),
        (FIRST_OP, lambda row: row["op"].pop("edges"),
         f"t:{FIRST_OP}: op.edges: must list the positions of the ops whose results are read"),
        (FIRST_OP + 1, op({"edges": []}),
         f"t:{FIRST_OP + 1}: op.edges: do not follow from what op 'bn.batch:forward' reads; they have to be [0]"),
        (FIRST_OP, op({"gate": {"unit": "block", "name": "b", "decision": "nobody"}}),
         f"t:{FIRST_OP}: Op 'conv.conv:forward' is gated by 'nobody', which is no op of this trace."),
    ],
)  # fmt: skip
def test_mistake_is_told_with_its_place(line: int, change: Callable[[dict[str, Any]], object], sentence: str) -> None:
    assert problems_of(edited(small_step(), line, change)) == (sentence,)


def test_all_mistakes_are_told_at_once_up_to_twenty() -> None:
    rows = [json.loads(row) for row in dump(small_step()).splitlines()]
    for row in rows[1:4]:
        row["tensor"]["bits"] = "many"
    assert [p[:4] for p in problems_of(sealed(rows))] == ["t:2:", "t:3:", "t:4:"]
    for row in rows[1:-1]:
        next(iter(row.values()))["name"] = 7
    assert len(rows) > 25
    assert len(problems_of(sealed(rows))) == 20


def test_order_of_lines() -> None:
    rows = [json.loads(row) for row in dump(small_step()).splitlines()]
    swapped = [rows[0], *rows[2:FIRST_OP], rows[1], *rows[FIRST_OP:]]
    assert any("tensors have to stand before all ops" in p for p in problems_of(sealed(swapped)))
    assert problems_of(dump(small_step()) + b'{"op":{}}\n')[0].endswith("there is text after the end line")
    assert "the end line is missing" in problems_of(dump(small_step()).rsplit(b"\n", 2)[0] + b"\n")[0]
    assert problems_of(b"") == ("t:1: the file is empty",)


def test_counts_and_checksum_of_the_end_line_are_compared() -> None:
    data = dump(small_step())
    flipped = data.replace(b'"shape":[2,3,4,4]', b'"shape":[2,3,4,5]', 1)
    assert flipped != data
    assert "counts and sha256 are not those of the lines above" in problems_of(flipped)[0]
    lines = data.splitlines(keepends=True)
    fewer = b"".join(lines[:1] + lines[2:])
    assert "counts and sha256 are not those of the lines above" in problems_of(fewer)[0]


@given(st.data())
def test_every_truncation_is_detected(data: st.DataObject) -> None:
    whole = dump(small_step())
    kept = data.draw(st.integers(0, len(whole) - 1))
    assert problems_of(whole[:kept])


def test_every_truncation_of_a_compressed_file_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    write_trace(small_step(), path)
    whole = path.read_bytes()
    for kept in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:kept])
        with pytest.raises(TraceError):
            read_trace(path)


# -- places


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped traces with two files."""
    monkeypatch.setattr(io, "folder", lambda _: tmp_path)
    write_trace(small_step(), tmp_path / "small-b2.jsonl.gz")
    write_trace(small_step(), tmp_path / "other-b2.jsonl")
    (tmp_path / "README.md").write_text("not a trace")
    return tmp_path


def test_shipped_traces_are_found_by_name_and_files_by_path(shipped: Path) -> None:
    assert list_traces() == ("other-b2", "small-b2")
    for name in ("small-b2", "other-b2", str(shipped / "small-b2.jsonl.gz"), shipped / "other-b2.jsonl"):
        assert load_trace(name) == small_step()


def test_a_shipped_trace_is_read_again_only_when_its_file_is_another(shipped: Path) -> None:
    name = list_traces()[0]
    path = next(shipped.glob(f"{name}.jsonl*"))
    first = load_trace(name)
    assert load_trace(name) is first
    os.utime(path, ns=(0, 0))
    assert load_trace(name) is not first
    assert load_trace(name) == first


def test_unknown_name_lists_what_there_is(shipped: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_trace("smal-b2")
    assert str(caught.value) == (
        "there is no shipped trace 'smal-b2'; shipped are other-b2, small-b2, and a file is named "
        "with its suffix, as in ./smal-b2.jsonl.gz; did you mean 'small-b2'?"
    )


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.jsonl.gz")
    with pytest.raises(TraceError, match="directory"):
        read_trace(tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(TraceError, match="it is not a regular file"):
        read_trace(tmp_path / "pipe.jsonl")
    with pytest.raises(TraceError, match="NUL"):
        read_trace("a\0.jsonl")


def test_mode_of_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    write_trace(small_step(), tmp_path / "new.jsonl")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new.jsonl").stat().st_mode) == 0o666 & ~mask
