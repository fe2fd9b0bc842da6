"""Files made to harm: each is refused in a sentence, quickly and in little memory; none causes a traceback."""

from __future__ import annotations

import gzip
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import jouletrace
from jouletrace.errors import TraceError
from jouletrace.trace.batch import with_batch
from jouletrace.trace.codec import FieldError, parse
from jouletrace.trace.graph import graph
from jouletrace.trace.io import dump, parse_trace, read_trace
from jouletrace.trace.lifetimes import peak_memory
from jouletrace.trace.prune import prune

from .test_io import FIRST_OP, edited, op, sealed, small_step

LARGE = 2**63


def compressed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def nest(**dimensions: object) -> bytes:
    """The small step with other dimensions in its first op, a convolution."""
    return edited(small_step(), FIRST_OP, lambda row: row["op"]["nest"].update(dimensions))


def tensor(**fields: object) -> bytes:
    return edited(small_step(), 2, lambda row: row["tensor"].update(fields))


def text(old: bytes, new: bytes) -> bytes:
    return dump(small_step()).replace(old, new, 1)


def many_dangling_reads() -> bytes:
    reads = [f"nothing{i}" for i in range(20_000)]
    return edited(small_step(), FIRST_OP, op({"reads": reads}))


def many_unknown_fields() -> bytes:
    return edited(small_step(), 2, lambda row: row["tensor"].update({f"shap{i}": 1 for i in range(20_000)}))


def bomb() -> bytes:
    header, line, *_ = dump(small_step()).splitlines(keepends=True)
    return compressed(header + line * 600_000)


def cycle() -> bytes:
    """The convolution reads what the norm after it writes."""
    return edited(small_step(), FIRST_OP, op({"reads": ["bn.batch:forward.y", "conv.weight"], "edges": [1]}))


def self_edge() -> bytes:
    return edited(small_step(), FIRST_OP, op({"reads": ["conv.conv:forward.y", "conv.weight"], "edges": [0]}))


CORPUS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zeros": (lambda: compressed(bytes(64 << 20)), "expands to more than 200 times its size"),
    "bomb": (bomb, "expands to more than 200 times its size"),
    "two members": (lambda: compressed(dump(small_step())) * 2, "data after the end of the compressed stream"),
    "damaged": (lambda: compressed(dump(small_step()))[:30] + bytes(200), "damaged"),
    "wrong crc": (lambda: compressed(dump(small_step()))[:-8] + bytes(8), "damaged"),
    "deep list": (lambda: b'{"a":' + b"[" * 200_000 + b"\n", "nested more than 64 levels deep"),
    "deep object": (lambda: b'{"a":' * 50_000 + b"\n", "nested more than 64 levels deep"),
    "unclosed strings": (lambda: b'{"a":' + b"[" * 65 + b'\\"' * 400_000 + b"\n", "not JSON|nested"),
    "long line": (lambda: b'"' + b"a" * (2 << 20) + b'"\n', "longer than 1 MiB"),
    "huge integer": (lambda: text(b'"batch":2', b'"batch":' + b"9" * 100_000), "larger than 2**63 - 1"),
    "integer 2**63": (lambda: text(b'"batch":2', b'"batch":9223372036854775808'), "larger than 2**63 - 1"),
    "NaN": (lambda: text(b'"batch":2', b'"batch":NaN'), "NaN is not an integer"),
    "infinity": (lambda: text(b'"batch":2', b'"batch":1e999'), "1e999 is not an integer"),
    "float": (lambda: text(b'"batch":2', b'"batch":2.0'), "2.0 is not an integer"),
    "key twice": (lambda: text(b'"batch":2', b'"batch":2,"batch":3'), "the key 'batch' stands twice"),
    "byte order mark": (lambda: b"\xef\xbb\xbf" + dump(small_step()), "not JSON"),
    "UTF-16": (lambda: dump(small_step()).decode().encode("utf-16"), "not UTF-8"),
    "NUL": (lambda: text(b"small", b"sm\0ll"), "not JSON"),
    "escaped NUL": (lambda: text(b'"small', b'"sm\\u0000ll'), "printable"),
    "lone surrogate": (lambda: text(b'"small', b'"\\ud800'), "printable"),
    "other format": (lambda: b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.\n", "not UTF-8"),
    "list": (lambda: b"[]\n", "no trace"),
    "cycle": (cycle, "which is written only later, by op 'bn.batch:forward'"),
    "self-edge": (self_edge, "which it writes itself"),
    "dangling": (many_dangling_reads, "which is no tensor of this trace"),
    "unknown fields": (many_unknown_fields, "is unknown"),
    "long name": (lambda: tensor(name="x" * 257), "257 characters; 256 are allowed"),
    "empty name": (lambda: tensor(name=""), "empty name"),
    "zero dimension": (lambda: tensor(shape=[0, 3]), "every dimension has to be at least 1"),
    "negative dimension": (lambda: tensor(shape=[-2, -3]), "every dimension has to be at least 1"),
    "overflow": (lambda: tensor(shape=[2**31, 2**31, 2**31]), "2**63 bits or more"),
    "long shape": (lambda: tensor(shape=[2**62] * 40_000), "2**63 bits or more"),
    "no bits": (lambda: tensor(bits=0), "0 bits per element"),
    "many bits": (lambda: tensor(bits=LARGE - 1), "bits"),
    "density": (lambda: tensor(density=[3, 2]), "the density 3/2"),
    "density by zero": (lambda: tensor(density=[0, 0]), "the density 0/0"),
    "stride 0": (lambda: nest(stride=[0, 0]), "has stride = (0, 0)"),
    "groups": (lambda: nest(G=2), "its nest asks for"),
    "no channels": (lambda: nest(K=0), "has K = 0"),
    "negative padding": (lambda: nest(padding=[-1, 0, 0, 0]), "has padding = (-1, 0, 0, 0)"),
    "endless kernel": (lambda: nest(R=LARGE - 1, padding=[LARGE - 1] * 4), "65536 is the most"),
    "endless loops": (lambda: nest(N=LARGE - 1, K=LARGE - 1), "2**63 or more iterations"),
    "window": (lambda: nest(OY=9), "has OY = 9, but 4 follow"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_hostile_file_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, sentences = CORPUS[name]
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(make())
    start = time.process_time()
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert time.process_time() - start < 2
    told = "\n".join(caught.value.problems)
    assert any(sentence in told for sentence in sentences.split("|")), told
    assert all(problem.startswith(f"{path}:") for problem in caught.value.problems)
    assert len(told) < 20_000
    assert all(map(str.isprintable, caught.value.problems))


READ_IN_300_MB = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
from jouletrace.errors import TraceError
from jouletrace.trace.io import read_trace
try:
    read_trace(sys.argv[1])
except TraceError as error:
    print(error.problems[0])
"""


@pytest.mark.parametrize("name", ["bomb", "zeros", "deep list", "huge integer", "long shape", "dangling"])
def test_hostile_file_needs_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl.gz"
    path.write_bytes(CORPUS[name][0]())
    command = [sys.executable, "-c", READ_IN_300_MB, str(path)]
    environment = {"PYTHONPATH": str(Path(jouletrace.__file__).parents[1])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5  # most of it starts the interpreter
    assert done.stderr == ""
    assert done.stdout.startswith(f"{path}:")


def test_depth_is_counted_outside_of_strings() -> None:
    assert parse('"' + "[" * 1000 + '"') == "[" * 1000
    assert parse("[" * 64 + "]" * 64)
    with pytest.raises(FieldError, match="nested more than 64 levels deep"):
        parse("[" * 65 + "]" * 65)
    assert parse('["\\"' + "[" * 1000 + '"' + ",[]" * 1000 + "]")[0] == '"' + "[" * 1000


# -- mutations


def survives(data: bytes) -> bool:
    """Reads a mutated file and does with it what is done with traces; False if it was refused in a sentence."""
    try:
        trace = parse_trace(data, "mutant")
    except TraceError:
        return False
    assert parse_trace(dump(trace), "again") == trace
    prune(trace)
    peak_memory(trace)
    graph(trace, anti=True)
    with suppress(TraceError):  # a batch that does not divide what carries it
        with_batch(trace, 3)
    return True


def test_mutated_bytes_are_read_or_refused() -> None:
    chance = random.Random(1)
    whole = dump(small_step())
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randint(1, 40)]
                case 2:
                    data[place:place] = chance.choice([b"\n", b'"', b"[", b"{}", b"0", b"-", b"\\", b"\xff", b"null"])
                case _:
                    data[place:place] = data[chance.randrange(len(data)) :][: chance.randint(1, 200)]
        assert not survives(bytes(data)) or bytes(data) == whole  # the checksum tells


def test_mutated_compressed_bytes_are_read_or_refused(tmp_path: Path) -> None:
    chance = random.Random(2)
    whole, path = compressed(dump(small_step())), tmp_path / "mutant.jsonl.gz"
    for _ in range(300):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with suppress(TraceError):
            assert read_trace(path) == small_step()  # a bit of the gzip header that means nothing


VALUES = (0, -1, 1, 2, 3, LARGE - 1, 2**31, "", "x" * 300, "conv.weight", "fc.gemm:forward", "param", "gradient",
          "backward_data", "sync", None, True, [], {}, [1], [0, 0], [2**40, 2**40])  # fmt: skip


def mutate(value: Any, chance: random.Random) -> Any:
    """One change at a random place of a JSON value, rather deep than shallow."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        match chance.randrange(12):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, chance.choice(["kind", "after", "gate", "zzz"]): chance.choice(VALUES)}
            case _:
                return {**value, key: mutate(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        match chance.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], mutate(value[place], chance), *value[place + 1 :]]
    return chance.choice(VALUES)


def test_mutated_values_are_read_or_refused() -> None:
    """With an end line that fits, so that the rules behind it are reached; some mutants are valid traces."""
    chance = random.Random(3)
    rows = [json.loads(row) for row in dump(small_step()).splitlines()][:-1]
    survivors = 0
    for _ in range(1500):
        mutant = list(rows)
        place = chance.randrange(len(rows))
        match chance.randrange(8):
            case 0:
                del mutant[place]
            case 1:
                mutant.insert(place, rows[chance.randrange(len(rows))])
            case _:
                mutant[place] = mutate(rows[place], chance)
        survivors += survives(sealed([row for row in mutant if isinstance(row, dict)]))
    assert 20 < survivors < 750
