"""README and docs: every example runs, every link leads somewhere, and lists are complete."""

import doctest
import importlib
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import jouletrace
from jouletrace.cli import main
from jouletrace.result.statistics import STATISTICS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
MODULES = [m.name for m in pkgutil.walk_packages(jouletrace.__path__, "jouletrace.") if not m.name.endswith("__main__")]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the files that examples speak of."""
    monkeypatch.chdir(tmp_path)
    trace = jouletrace.load_trace("resnet20-cifar10-b32")
    result = jouletrace.simulate(trace, jouletrace.load_hardware("eftrain-zcu102"), only="layer1.0")
    Path("result.json").write_text(result.to_json())


@pytest.mark.usefixtures("_desk")
@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p, "pycon"))], ids=name)
def test_sessions_of_a_page(page: Path) -> None:
    session = doctest.DocTestParser().get_doctest("\n".join(blocks(page, "pycon")), {}, name(page), str(page), 0)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session).failed == 0


@pytest.mark.usefixtures("_desk")
@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p, "python"))], ids=name)
def test_programs_of_a_page(page: Path) -> None:
    """Blocks of one page build on one another; recipes need PyTorch and are run by the capture tests."""
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        if "import torch" not in block:
            exec(compile(block, name(page), "exec"), names)


@pytest.mark.usefixtures("_desk")
@pytest.mark.parametrize("page", [p for p in PAGES if list(blocks(p, "console"))], ids=name)
def test_commands_of_a_page(page: Path) -> None:
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ jouletrace (.*)$", block.replace("\\\n", " "), flags=re.MULTILINE):
            words = shlex.split(line, comments=True)
            if "mine" not in line:  # what needs PyTorch is run by the capture tests
                assert main(words) == 0, line


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module(module: str) -> None:
    try:
        imported = importlib.import_module(module)
    except (ImportError, jouletrace.JouletraceError):
        assert module.startswith("jouletrace.capture."), "only capturing may need what is not installed"
        return
    assert doctest.testmod(imported).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_statistic_stands_in_the_manual() -> None:
    listed = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", (ROOT / "docs/results.md").read_text(), flags=re.MULTILINE)
    assert [entry for entry in listed if "." in entry[0]] == [tuple(s) for s in STATISTICS]


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name
