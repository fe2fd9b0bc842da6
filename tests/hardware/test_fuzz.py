"""Broken specs: each loads or is refused in sentences, and nothing else ever happens."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jouletrace.errors import EnergyError, JouletraceError, SpecError
from jouletrace.hardware.check import warnings
from jouletrace.hardware.draft import Draft
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.load import assumptions, hardware_from_resolved, load_hardware
from jouletrace.hardware.yaml_text import read_text
from jouletrace.resources import folder

from .specs import SHIPPED, plain, problems_of, write

HOSTILE = Path(__file__).parent / "hostile"
BASES = [plain(name) for name in SHIPPED]
TEXTS = [(folder("hwspecs") / f"{name}.yaml").read_text() for name in SHIPPED]
ODD: list[Any] = [
    None, True, 0, -1, 1, 10**9, 10**30, 0.5, -0.0, 1e-300, "", "x", "no", "1e-12", "NaN", "-5 pJ",
    "1e99 GiB", "0 Hz", "1e-99 W", "1/0", "1e999999999", "9" * 64 + " B", "10 furlongs", "\u202e\u0000", "é" * 300,
    [], {}, [[]], {"kind": "systolic"}, {"": 1}, {"a.b": 2}, [1, 2, 3], [None],
    "zedboard", "../x.yaml", "eyeriss-normalised",
]  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below: list[tuple[Any, ...]] = [path] if path else []
    if isinstance(data, dict):
        for key, value in data.items():
            below += places(value, (*path, key))
    elif isinstance(data, list):
        for i, value in enumerate(data):
            below += places(value, (*path, i))
    return below


PLACES = [places(base) for base in BASES]


def parent_of(data: Any, path: tuple[Any, ...]) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data


@st.composite
def broken_specs(draw: st.DrawFn) -> Any:
    which = draw(st.integers(0, len(BASES) - 1))
    data = copy.deepcopy(BASES[which])
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES[which]))
        try:
            parent = parent_of(data, path)
            value = parent[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took it away
        if not isinstance(parent, dict | list):
            continue
        manner = draw(st.sampled_from(["replace", "delete", "rename", "move", "nest", "repeat"]))
        if manner == "replace":
            parent[path[-1]] = draw(st.sampled_from(ODD))
        elif manner == "delete":
            del parent[path[-1]]
        elif manner == "rename" and isinstance(parent, dict):
            parent[f"{path[-1]}x"] = parent.pop(path[-1])
        elif manner == "move":
            data[draw(st.sampled_from(list(data) or ["x"]))] = value
        elif manner == "nest":
            parent[path[-1]] = [value]
        elif isinstance(parent, list):
            parent.append(value)
    return data


def sentences(error: JouletraceError) -> None:
    """Problems are there, each on a line of its own and short enough to read, with a place in front."""
    assert error.problems
    for problem in error.problems:
        assert "\n" not in problem
        assert ": " in problem
        assert len(problem) < 4000


def try_it(data: Any) -> None:
    """Everything that may be asked of a spec; only the promised errors may come."""
    try:
        hardware = hardware_from_resolved(data)
    except SpecError as error:
        sentences(error)
        return
    try:
        assert all(p.low_aj <= p.energy_aj <= p.high_aj for p in price_list(hardware).values())
        assumptions(hardware)
    except EnergyError as error:
        sentences(error)
    warnings(hardware)


@settings(max_examples=1500, deadline=None)
@given(broken_specs())
def test_mutated_specs_never_crash(data: Any) -> None:
    try_it(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_texts_never_crash(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    at = data.draw(st.integers(0, len(text)))
    manner = data.draw(st.sampled_from(["cut", "insert", "drop", "swap"]))
    if manner == "cut":
        text = text[:at]
    elif manner == "insert":
        text = text[:at] + data.draw(st.text(max_size=8)) + text[at:]
    elif manner == "drop":
        text = text[:at] + text[at + data.draw(st.integers(1, 40)) :]
    else:
        text = text[:at] + data.draw(st.sampled_from(list(":{}[],&*!|>'\"%@`#-? \n\t"))) + text[at + 1 :]
    try:
        draft = Draft(read_text(text, "spec.yaml"), folder("hwspecs"))
        draft.inline()
        draft.validate()
        draft.fail()
    except SpecError as error:
        sentences(error)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=20,
    )
)
def test_anything_at_all_is_refused(data: Any) -> None:
    with pytest.raises(SpecError):
        load_like_a_file(data)


def load_like_a_file(data: Any) -> None:
    text = yaml.safe_dump(data, allow_unicode=True)
    draft = Draft(read_text(text, "spec.yaml"), None)
    draft.inline()
    draft.validate()
    draft.fail()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES[0]), st.text(max_size=12), st.sampled_from(ODD))
def test_overrides_never_crash(path: tuple[Any, ...], tail: str, value: Any) -> None:
    text = ".".join(map(str, path)) + tail
    try:
        load_hardware(SHIPPED[0], [f"{text}={json.dumps(value)}"])
    except SpecError as error:
        sentences(error)


# -- the corpus ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("*.yaml")), ids=lambda path: path.stem)
def test_corpus_is_refused_for_the_stated_reason(path: Path) -> None:
    """Each file of the corpus says in its first line what it must be refused for."""
    reason = path.read_text(encoding="utf-8", errors="replace").splitlines()[0].removeprefix("# refused: ")
    problems = problems_of(path)
    assert any(reason in problem for problem in problems), problems
    assert all(problem.startswith(str(path)) for problem in problems)


def test_large_files_of_slips_end_soon(tmp_path: Path) -> None:
    data = plain()
    data["array"]["tilings"] = [{"phase": "forwrd", "M": i} for i in range(8000)]
    data["provenance"] += [{"paths": [f"nothing.{i}" for i in range(8000)], "certainty": "seen", "source": "x"}]
    path = write(tmp_path, data)
    assert path.stat().st_size > 300_000
    begin = time.process_time()
    problems = problems_of(path)
    assert time.process_time() - begin < 4
    assert 50 < len(problems) <= 110


def test_hostile_files_stay_within_300_mb(tmp_path: Path) -> None:
    laughs = "\n".join(
        ["a0: &a0 [lol, lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    )
    for name, text in {"laughs": laughs, "deep": "[" * 900_000, "long": "a: " + "9" * 900_000}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        program = textwrap.dedent(f"""
            import resource
            resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))
            from jouletrace.errors import SpecError
            from jouletrace.hardware.load import load_hardware
            try:
                load_hardware({str(path)!r})
            except SpecError:
                print("refused")
        """)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
        assert done.stdout.strip() == "refused", done.stderr[-400:]
