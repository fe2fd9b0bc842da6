"""The shipped measurements: well-formed, fully cited, and unknown to every model."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from jouletrace.resources import folder
from jouletrace.validate.load import Entry, load
from jouletrace.validate.quantities import QUANTITIES, quantity, unit_factor
from jouletrace.validate.schema import schema
from jouletrace.validate.simulate import cases_of

from .measurement_files import write

ROOT = Path(__file__).parents[2]
VALIDATION = folder("validation")
FILES = sorted(VALIDATION.glob("*.yaml"))
ENTRIES = load(VALIDATION).entries


def test_every_file_is_read_without_a_problem() -> None:
    assert load(VALIDATION).problems == ()
    assert len(ENTRIES) > 40


def test_the_schema_file_is_fresh() -> None:
    assert (VALIDATION / "schema.json").read_text(encoding="utf-8") == schema(), "run: python -m jouletrace.validate.schema"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_names_the_schema_beside_it(file: Path) -> None:
    assert file.read_text(encoding="utf-8").splitlines()[0] == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.file.system}:{entry.row.id}")
def test_quantities_and_units_are_known_and_a_case_follows(entry: Entry) -> None:
    unit_factor(entry.row.quantity, entry.row.unit, relative=entry.row.relation is not None)
    assert all(case.replayed == quantity(entry.row.quantity).replayed for case in cases_of(entry))


def test_rows_of_one_build_differ_in_nothing_but_cited_overrides() -> None:
    for entry in ENTRIES:
        for case in cases_of(entry):
            assert case.build is None or case.build in entry.file.builds.values()
            stated = {o.setting for build in entry.file.builds.values() for o in build.set}
            stated |= {o.setting for o in entry.row.set}
            stated |= {o.setting for o in (entry.row.against.set if entry.row.against else None) or ()}
            assert {o.setting for o in case.settings} <= stated
            assert all(o.where for o in case.settings)


# -- what no model may know


def sources() -> dict[str, str]:
    """Everything that a simulated value may depend on. Citations that strategies carry for reports are left out."""
    found = {}
    for path in sorted((ROOT / "simulator").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Published":
                for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[line] = ""
        found[str(path.relative_to(ROOT))] = "\n".join(lines)
    for path in sorted((ROOT / "hwspecs").rglob("*.yaml")):
        found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    return found


def spellings(value: float) -> set[str]:
    """Ways to write a number that has at least four digits; shorter ones stand everywhere by chance."""
    digits = f"{abs(value):.10g}"
    if len(digits.replace(".", "").strip("0")) < 4:
        return set()
    grouped = f"{int(abs(value)):,}" if value == int(value) else digits
    return {digits, grouped, grouped.replace(",", "_")}


def mentions(text: str, *words: str) -> list[str]:
    return re.findall(rf"(?<![\w.])(?:{'|'.join(map(re.escape, words))})(?!\w|\.[0-9])", text)


def test_no_model_and_no_spec_mentions_a_row() -> None:
    words = {w for entry in ENTRIES for w in spellings(entry.row.value)}
    words |= {entry.row.id for entry in ENTRIES if "_" in entry.row.id and len(entry.row.id) > 8}
    found = [f"{name}: {word}" for name, text in sources().items() for word in mentions(text, *words)]
    assert found == []


def test_the_search_would_find_a_row() -> None:
    assert mentions("cycles = 11_419_835 if conv1 else 0", "11_419_835")
    assert spellings(11_419_835) == {"11419835", "11,419,835", "11_419_835"}
    assert not mentions("4.6999", "46.99")


# -- documents


def test_every_key_and_every_quantity_stands_in_the_readme() -> None:
    readme = (VALIDATION / "README.md").read_text(encoding="utf-8")
    row = type(ENTRIES[0].row)
    for name in (*row.model_fields, *QUANTITIES):
        assert f"`{name}`" in readme, name


def test_the_example_of_the_readme_is_read(tmp_path: Path) -> None:
    readme = (VALIDATION / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0]
    loaded = load(write(tmp_path, head=example))
    assert loaded.problems == ()
    assert [entry.row.id for entry in loaded.entries] == ["c1_forward", "step_energy"]
