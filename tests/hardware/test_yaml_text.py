"""The YAML dialect, trap by trap, and texts that want to do harm."""

from __future__ import annotations

import math
import sys
import time

import pytest

from jouletrace.errors import SpecError
from jouletrace.hardware.yaml_text import MAX_BYTES, MAX_DEPTH, read_file, read_text


def one(scalar: str) -> object:
    return read_text(f"key: {scalar}", "a.yaml").data["key"]


def refusal(text: bytes | str) -> str:
    with pytest.raises(SpecError) as error:
        read_text(text, "a.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-12", 1e-12),  # YAML 1.1 reads these two as text
        ("1e3", 1000.0),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("-7", -7),
        ("017", 17),  # octal 15 in YAML 1.1
        ("010", 10),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("1_000", "1_000"),  # 1000 in YAML 1.1
        ("no", "no"),  # false in YAML 1.1
        ("NO", "NO"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ('"true"', "true"),
        ("2026-11-21", "2026-11-21"),  # a date in YAML 1.1
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("=", "="),
        ("100 MHz", "100 MHz"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = one(text)
    assert read == value
    assert type(read) is type(value)


def test_every_value_and_key_has_its_place() -> None:
    document = read_text("a: 1\nb:\n  - 2\n  - {c: 3}\n", "spec.yaml")
    assert document.data == {"a": 1, "b": [2, {"c": 3}]}
    assert document.values[("a",)] == "spec.yaml:1:4"
    assert document.values[("b", 0)] == "spec.yaml:3:5"
    assert document.values[("b", 1, "c")] == "spec.yaml:4:9"
    assert document.keys[("b", 1, "c")] == "spec.yaml:4:6"


def test_json_is_read_too() -> None:
    assert read_text('{"a": [1, 2.5, "x", true, null]}', "a.json").data == {"a": [1, 2.5, "x", True, None]}


def test_byte_order_mark_is_no_part_of_the_text() -> None:
    assert read_text(b"\xef\xbb\xbfa: 1", "a.yaml").data == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x 1\nb: *x", ["a.yaml:1:4: defines the anchor &x", "a.yaml:2:4: uses the alias *x"]),
        ("a: &a [*a]", ["defines the anchor", "uses the alias"]),
        ("a: !!python/object:os.system 1", ["a.yaml:1:4: has the tag"]),
        ("a: !!int '3'", ["has the tag"]),
        ("a: 1\nb: 2\na: 3\nb: 4", ["a.yaml:3:1: repeats the key 'a'", "a.yaml:4:1: repeats the key 'b'"]),
        ("a: {b: 1, b: 2}", ["a.yaml:1:11: repeats the key 'b'"]),
        ("a: 1\n---\nb: 2", ["starts a second document"]),
        ("[1, 2]: 3", ["is a key that is no plain text"]),
        ("? {a: 1}\n: 3", ["is a key that is no plain text"]),
        ("a: 1e999", ["a.yaml:1:4: is no finite number (got 1e999)"]),
        (f"a: {'9' * 5000}", ["a number of 5000 characters"]),
        (f"{'k' * 300}: 1", ["a key of 300 characters"]),
        ("a: [1, 2", ["a.yaml:", "cannot be read as YAML"]),
        ("a: b: c", ["a.yaml:1:5: cannot be read as YAML"]),
        ("\tclock: 1", ["cannot be read as YAML"]),
        ("a: 'x", ["cannot be read as YAML"]),
        ("", ["is empty"]),
        ("# nothing", ["is empty"]),
        (b"\xff\xfe\x00", ["is not UTF-8"]),
        (b"a: \x00", ["cannot be read as YAML"]),
        ("a: \x07", ["cannot be read as YAML"]),
        ("<<: {a: 1}\n<<: {b: 2}", ["repeats the key '<<'"]),  # merge keys are ordinary keys here
    ],
)
def test_refusals_say_where_and_why(text: bytes | str, words: list[str]) -> None:
    message = refusal(text)
    for word in words:
        assert word in message


def billion_laughs() -> str:
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        billion_laughs(),
        "[" * 20_000,
        "{a: " * 20_000,
        "- " * 20_000,
        "a: [" + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "]",
        "a: " + "x" * MAX_BYTES,
        "a: '" + "\\" * 100_000 + "'\nb: \"" + "\\" * 100_000,
        "\n".join(f"a: {i}" for i in range(20_000)),
        "? " * 10_000,
        "&" * 100_000,
        "%YAML 9.9\n---\na: 1",
    ],
    ids=[
        "laughs",
        "lists",
        "maps",
        "dashes",
        "deep",
        "large",
        "escapes",
        "repeats",
        "keys",
        "anchors",
        "version",
    ],
)
def test_hostile_text_is_refused_at_once(text: str) -> None:
    begin = time.process_time()
    message = refusal(text)
    assert time.process_time() - begin < 2
    assert len(message) < 50_000


def test_depth_up_to_the_limit_is_fine() -> None:
    deep = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    data = read_text(f"a: {deep}", "a.yaml").data["a"]
    for _ in range(MAX_DEPTH - 1):
        data = data[0]
    assert data == 1


def test_files_that_are_no_files(tmp_path: object) -> None:
    from pathlib import Path

    for path in (Path("/nowhere/x.yaml"), Path(str(tmp_path)), Path("a\0b.yaml"), Path("x" * 5000)):
        with pytest.raises(SpecError):
            read_file(path)
    if sys.platform == "linux":
        with pytest.raises(SpecError, match="there is no such file"):
            read_file(Path("/dev/zero"))


def test_numbers_are_finite_or_text() -> None:
    assert isinstance(one("-.inf"), str)
    assert math.isfinite(one("1e308"))  # type: ignore[arg-type]
