"""Logs of decisions: one sequence of bytes per log, exact views, and every mistake in a file with its line."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jouletrace.errors import TraceError, UsageError
from jouletrace.trace import decisions as module
from jouletrace.trace.decisions import (
    ACTIVATION,
    GRADIENT,
    Decisions,
    dump_decisions,
    parse_decisions,
    read_decisions,
    write_decisions,
)

Rows = list[dict[str, Any]]


def table(*rows: tuple[int, ...], columns: int = 5) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, columns)


def small_log() -> Decisions:
    """Five iterations of four samples; the second and the fourth were dropped.

    iteration   0      1       2       3       4
    layer1.0    4      –       4       –       4       samples
    layer1.1    2      –       0       –       4
    conv bits   8 8 16         4 4 16
    conv taken  6/9    –       –       –       3/9
    """
    return Decisions(
        "small", 4, ("layer1.0", "layer1.1"), ("conv", "fc"),
        np.array([True, False, True, False, True]),
        np.array([[4, 2], [0, 0], [4, 0], [0, 0], [4, 4]], dtype=np.int32),
        precision=table((0, 0, 8, 8, 16), (0, 1, 8, 8, 8), (2, 0, 4, 4, 16)),
        predictor=table((0, 0, 6, 9), (4, 0, 3, 9), columns=4),
        density=table((0, 0, ACTIVATION, 5, 8), (0, 0, GRADIENT, 8, 8), (4, 0, ACTIVATION, 2, 8)),
        producer=(("framework", "none"),),
    )  # fmt: skip


def rows_of(log: Decisions) -> Rows:
    return [json.loads(line) for line in dump_decisions(log).splitlines()]


def sealed(rows: Rows) -> bytes:
    """JSON lines with the end line that belongs to them."""
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows if "end" not in row)
    end = {"end": {"iterations": body.count(b"\n") - 1, "sha256": hashlib.sha256(body).hexdigest()}}
    return body + json.dumps(end).encode() + b"\n"


def edited(line: int, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The small log with one line changed (1 is the first), and an end line that fits."""
    rows = rows_of(small_log())
    change(rows[line - 1])
    return sealed(rows)


def problems_of(data: bytes) -> tuple[str, ...]:
    with pytest.raises(TraceError) as caught:
        parse_decisions(data, "t")
    return caught.value.problems


# -- the value


def test_views_are_exact() -> None:
    log = small_log()
    assert (log.iterations, log.executed_count) == (5, 3)
    assert log.mean_samples() == (4, Fraction(2 + 0 + 4, 3))
    assert log.predictor_share("conv") == log.predictor_share() == Fraction(6 + 3, 9 + 9)
    assert log.mean_density(ACTIVATION, "conv") == Fraction(5 + 2, 16)
    assert log.mean_density(GRADIENT) == 1


def test_bits_hold_until_they_change() -> None:
    eight, four = [[8, 8, 16], [8, 8, 8]], [[4, 4, 16], [8, 8, 8]]
    assert [small_log().bits_at(i).tolist() for i in range(5)] == [eight, eight, four, four, four]


def test_a_range_carries_the_bits_in_force() -> None:
    part = small_log().select(1, 5)
    assert part.executed.tolist() == [False, True, False, True]
    assert part.samples.tolist() == [[0, 0], [4, 0], [0, 0], [4, 4]]
    assert part.precision.tolist() == [[1, 0, 4, 4, 16], [1, 1, 8, 8, 8]]
    assert part.predictor.tolist() == [[3, 0, 3, 9]]
    assert part.density.tolist() == [[3, 0, ACTIVATION, 2, 8]]
    assert small_log().select(0, 5) == small_log() != part
    assert small_log().select(3, 4).precision.size == 0  # dropped: no bits are in force in it
    assert small_log().select(2, 2).iterations == 0


def test_questions_without_an_answer_are_sentences() -> None:
    with pytest.raises(UsageError, match="no layer 'cond'; did you mean 'conv'"):
        small_log().predictor_share("cond")
    with pytest.raises(UsageError, match="no share of the predictor of layer 'fc': its module did not tell any"):
        small_log().predictor_share("fc")
    with pytest.raises(UsageError, match="no density of the gradient"):
        small_log().select(1, 5).mean_density(GRADIENT)
    with pytest.raises(UsageError, match="iterations 3 to 6 do not lie within the 5"):
        small_log().select(3, 6)


def test_arrays_cannot_be_changed() -> None:
    log = small_log()
    with pytest.raises(ValueError, match="read-only"):
        log.samples[0, 0] = 1


CONTRADICTIONS = {
    "samples has the shape (2, 1), not (1, 1)": {"samples": np.zeros((2, 1), dtype=np.int32)},
    "predictor has the shape (1, 5), not (1, 4)": {"predictor": table((0, 0, 1, 1, 1))},
    "a batch has 1 to 2147483647 samples (got 0)": {"batch": 0, "samples": np.zeros((1, 1), dtype=np.int32)},
    "a layer stands twice": {"layers": ("a", "a")},
    "iteration 0: samples have to lie within 0 and the batch, 4": {"samples": np.array([[5]], dtype=np.int32)},
    "iteration 0: a unit ran, but the batch was dropped": {"executed": np.array([False])},
    "iteration 1: precision: iterations have to lie within 0 and 0": {"precision": table((1, 0, 8, 8, 8))},
    "iteration 0: precision: bits have to lie within 1 and 64": {"precision": table((0, 0, 8, 65, 8))},
    "iteration 0: density: a kind is ACTIVATION or GRADIENT": {"density": table((0, 0, 2, 1, 1))},
}


@pytest.mark.parametrize("sentence", CONTRADICTIONS)
def test_arrays_that_contradict_one_another_are_refused(sentence: str) -> None:
    usual = {"batch": 4, "layers": ("a",), "executed": np.array([True]), "samples": np.array([[4]], dtype=np.int32)}
    with pytest.raises(TraceError) as caught:
        Decisions(model="m", units=("u",), **usual | CONTRADICTIONS[sentence])
    assert caught.value.problems == (f"the decisions of 'm' contradict themselves: {sentence}",)


# -- files


def test_the_lines_of_a_log() -> None:
    # Nothing that is as usual is written: all samples ran (iteration 4), nothing decided (1 and 3).
    assert dump_decisions(small_log()).decode().splitlines()[:-1] == [
        '{"batch":4,"format":"jouletrace-decisions","layers":["conv","fc"],"model":"small",'
        '"producer":[["framework","none"]],"units":["layer1.0","layer1.1"],"version":"1.0"}',
        '{"density":[[0,"activation",5,8],[0,"gradient",8,8]],"executed":true,"iteration":0,'
        '"precision":[[0,8,8,16],[1,8,8,8]],"predictor":[[0,6,9]],"samples":[4,2]}',
        '{"executed":false,"iteration":1}',
        '{"executed":true,"iteration":2,"precision":[[0,4,4,16]],"samples":[4,0]}',
        '{"executed":false,"iteration":3}',
        '{"density":[[0,"activation",2,8]],"executed":true,"iteration":4,"predictor":[[0,3,9]]}',
    ]


@st.composite
def logs(draw: st.DrawFn) -> Decisions:
    batch, units, layers = draw(st.integers(1, 200)), draw(st.integers(0, 4)), draw(st.integers(1, 3))
    executed = np.array(draw(st.lists(st.booleans(), max_size=12)), dtype=bool)
    counts = st.lists(st.sampled_from([0, batch // 2, batch]), min_size=units, max_size=units)
    samples = np.array([draw(counts) if ran else [0] * units for ran in executed], dtype=np.int32)
    places = [(i, layer) for i in np.flatnonzero(executed).tolist() for layer in range(layers)]

    def rows(keys: list[tuple[int, ...]], values: st.SearchStrategy[tuple[int, ...]], columns: int) -> np.ndarray:
        chosen = sorted(draw(st.sets(st.sampled_from(keys)))) if keys else []
        return table(*(key + draw(values) for key in chosen), columns=columns)

    bits, large = st.integers(1, 64), st.integers(1, 2**62)
    share = large.flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole)))
    return Decisions(
        draw(st.sampled_from(["m", "µ", ""])), batch, tuple(f"u{i}" for i in range(units)),
        tuple(f"l{i}" for i in range(layers)), executed, samples.reshape(len(executed), units),
        rows(places, st.tuples(bits, bits, bits), 5), rows(places, share, 4),
        rows([(*place, kind) for place in places for kind in (ACTIVATION, GRADIENT)], share, 5),
    )  # fmt: skip


@given(logs(), st.data())
def test_round_trip_of_everything(log: Decisions, data: st.DataObject) -> None:
    again = parse_decisions(dump_decisions(log), "t")
    assert again == log
    assert dump_decisions(again) == dump_decisions(log)
    first = data.draw(st.integers(0, log.iterations))
    last = data.draw(st.integers(first, log.iterations))
    part = log.select(first, last)
    assert parse_decisions(dump_decisions(part), "t") == part
    for i in np.flatnonzero(part.executed).tolist():
        assert np.array_equal(part.bits_at(i), log.bits_at(first + i))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl"])
def test_files_hold_the_canonical_bytes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"small.decisions{suffix}"
    write_decisions(small_log(), path)
    data = path.read_bytes()
    assert read_decisions(path) == small_log()
    assert (gzip.decompress(data) if suffix.endswith("gz") else data) == dump_decisions(small_log())


def test_iterations_that_hardly_differ_are_read_back(tmp_path: Path) -> None:
    """They would pack to less than a 200th, where the reader suspects a bomb."""
    samples = np.full((2000, 600), 77, dtype=np.int32)
    log = Decisions("even", 128, tuple(f"u{i}" for i in range(600)), (), np.ones(2000, dtype=bool), samples)
    data, path = dump_decisions(log), tmp_path / "even.decisions.jsonl.gz"
    assert len(data) > 200 * len(gzip.compress(data))
    write_decisions(log, path)
    assert read_decisions(path) == log
    assert path.stat().st_size < len(data) / 2


# -- mistakes

FIRST, DROPPED = 2, 3  # lines of iterations 0 and 1
MISTAKES: dict[str, tuple[int, dict[str, Any]]] = {
    "t:1: this is no log of decisions: the first line has to say \"format\":\"jouletrace-decisions\"": (1, {"format": "x"}),
    "t:1: version: this release of jouletrace reads version 1.0 of logs of decisions (got '2.0')": (1, {"version": "2.0"}),
    "t:1: the field 'unit' is unknown; did you mean 'units'?": (1, {"unit": []}),
    "t:1: batch: has 1 to 2147483647 samples (got 9223372036854775807)": (1, {"batch": 2**63 - 1}),
    "t:1: units[1]: must be a text (got 3)": (1, {"units": ["a", 3]}),
    "t:1: a unit stands twice": (1, {"units": ["a", "a"]}),
    "t:2: the field 'sample' is unknown; did you mean 'samples'?": (FIRST, {"sample": [1, 2]}),
    "t:2: executed: must be true or false (got 1)": (FIRST, {"executed": 1}),
    "t:2: iteration: iterations are numbered from 0 without gaps; this one is 0 (got 1)": (FIRST, {"iteration": 1}),
    "t:2: iteration: iterations are numbered from 0 without gaps; this one is 0 (got False)": (FIRST, {"iteration": False}),
    "t:2: samples: must be a list of 2 (got [1])": (FIRST, {"samples": [1]}),
    "t:2: samples: must hold integers from 0 to 4 (got [1, True])": (FIRST, {"samples": [1, True]}),
    "t:2: samples: must hold integers from 0 to 4 (got [1, 5])": (FIRST, {"samples": [1, 5]}),
    "t:2: samples: must hold integers from 0 to 4 (got [-1, 4])": (FIRST, {"samples": [-1, 4]}),
    "t:2: predictor: must be a list of rows (got {})": (FIRST, {"predictor": {}}),
    "t:2: predictor[0]: must be a list of 3 (got [0, 1])": (FIRST, {"predictor": [[0, 1]]}),
    "t:2: predictor: a part has to lie within 0 and its whole, and the whole above 0": (FIRST, {"predictor": [[0, 9, 8]]}),
    "t:2: predictor: a layer is the position of one of 2 layers": (FIRST, {"predictor": [[2, 8, 8]]}),
    "t:2: predictor: rows have to ascend, and none may stand twice": (FIRST, {"predictor": [[0, 8, 8], [0, 8, 8]]}),
    "t:2: precision: bits have to lie within 1 and 64": (FIRST, {"precision": [[0, 0, 8, 8]]}),
    "t:2: density[0]: must be a layer, one of activation, gradient, and two counts (got [0, 1, 5, 8])": (FIRST, {"density": [[0, 1, 5, 8]]}),
    "t:2: density[0]: must be a layer, one of activation, gradient, and two counts (got [0, ['activation'], 5, 8])": (FIRST, {"density": [[0, ["activation"], 5, 8]]}),
    "t:3: a dropped iteration decides nothing else: it has only 'executed' and 'iteration'": (DROPPED, {"samples": [0, 0]}),
}  # fmt: skip


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_a_sentence_with_its_line(sentence: str) -> None:
    line, fields = MISTAKES[sentence]
    assert problems_of(edited(line, lambda row: row.update(fields))) == (sentence,)


def test_all_mistakes_are_told_at_once() -> None:
    rows = rows_of(small_log())
    rows[1]["samples"], rows[3]["precision"] = [9, 9], 3
    assert [p[:4] for p in problems_of(sealed(rows))] == ["t:2:", "t:4:"]


def test_floats_and_missing_fields_are_refused() -> None:
    good = dump_decisions(small_log())
    assert problems_of(good.replace(b"[0,6,9]", b"[0,6.0,9]"))[0].startswith("t:2: 6.0 is not an integer")
    assert problems_of(edited(1, lambda row: row.pop("units"))) == ("t:1: the field 'units' is missing",)
    assert problems_of(edited(2, lambda row: row.pop("executed")))[0].startswith("t:2: executed: must be true or false")
    assert problems_of(b'{"a":1,"a":2}\n')[0] == "t:1: the key 'a' stands twice in one object"
    assert problems_of(b"[" * 100_000 + b"\n")[0] == "t:1: the JSON is nested more than 64 levels deep"
    assert problems_of(b"\xff\n")[0] == "t:1: this is not UTF-8 text (byte 1 of the line)"
    assert problems_of(b"3\n")[0] == "t:1: a line has to be an object (got 3)"
    assert problems_of(b"") == ("t:1: the file is empty",)


def test_what_was_cut_or_edited_is_refused_and_tells_its_cure() -> None:
    good = dump_decisions(small_log())
    *body, _ = good.splitlines(keepends=True)
    (cut,) = problems_of(b"".join(body[:-2]))
    assert cut.startswith("t:4: the end line is missing: the file is cut off; to use what is there, close it with")
    cure = cut.rpartition("the line ")[2].encode() + b"\n"
    assert parse_decisions(b"".join(body[:-2]) + cure, "t") == small_log().select(0, 3)
    assert problems_of(b"".join(body)[:-9])[0].startswith("t:6: the last line has no line feed")
    (wrong,) = problems_of(good.replace(b'"samples":[4,2]', b'"samples":[4,1]'))
    assert wrong.startswith("t:7: end: iterations and sha256 are not those of the lines above")
    assert problems_of(good + b"{}\n") == ("t:8: there is text after the end line",)


def test_sizes_are_bounded_before_anything_is_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, *lines = rows_of(small_log())
    many = header | {"units": [f"u{i}" for i in range(100_000)]}
    short = [{"executed": True, "iteration": i} for i in range(700)]
    assert "67108864" in problems_of(sealed([many, *short]))[-1]
    monkeypatch.setattr(module, "MAX_ITERATIONS", 4)
    assert problems_of(sealed([header, *lines]))[0].startswith("t:6: there are more than 4 iterations")
    monkeypatch.setattr(module, "MAX_ITERATIONS", 5)
    monkeypatch.setattr(module, "MAX_ROWS", 6)
    assert problems_of(sealed([header, *lines]))[0] == "t:6: there are more than 6 rows of precision, predictor and density"
    bomb = tmp_path / "bomb.decisions.jsonl.gz"
    bomb.write_bytes(gzip.compress(bytes(10_000_000)))
    with pytest.raises(TraceError, match="bomb.decisions.jsonl.gz: the file expands to more than 200 times its size"):
        read_decisions(bomb)


@pytest.mark.parametrize(("name", "reason"), [("absent", "No such file"), (".", "directory"), ("\0", "NUL")])
def test_places_that_hold_no_file(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(TraceError, match=reason):
        read_decisions(f"{tmp_path}/{name}")
