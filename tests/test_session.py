"""What the test session itself promises: a closing line where PyTorch is missing, and fixed examples."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

WITHOUT_TORCH = "sys.modules['torch'] = None"
WITH_TORCH = "sys.modules['torch'] = torch = types.ModuleType('torch'); torch.__spec__ = ModuleSpec('torch', None)"
CLOSING = "capture tests skipped: PyTorch is not installed here"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with our conftest, two files that need PyTorch and one that does not."""
    tests = tmp_path / "tests"
    (tests / "capture").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conftest.py"), tests)
    (tests / "test_plain.py").write_text("def test_plain(): pass\n")
    needs = "import pytest\ntorch = pytest.importorskip('torch', reason='capture tests need PyTorch')\n"
    for name in ("test_torch_a.py", "test_torch_b.py"):
        (tests / "capture" / name).write_text(needs + "def test_it(): pass\n")
    return tmp_path


def last_line(project: Path, torch: str, *arguments: str) -> str:
    code = (f"import sys, types, pytest\nfrom importlib.machinery import ModuleSpec\n{torch}\n"
            f"sys.exit(pytest.main({['-p', 'no:cacheprovider', *arguments]!r}))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.rstrip("\n").rpartition("\n")[2]


@pytest.mark.parametrize("arguments", [(), ("-q",), ("-v", "--durations", "2"), ("tests",), ("-n", "1")])
def test_the_last_line_says_that_capture_tests_were_skipped(project: Path, arguments: tuple[str, ...]) -> None:
    assert last_line(project, WITHOUT_TORCH, *arguments) == f"{CLOSING} (2 test files)"


def test_it_counts_the_files_of_this_run(project: Path) -> None:
    chosen = ("tests/capture/test_torch_a.py", "tests/test_plain.py")
    assert last_line(project, WITHOUT_TORCH, *chosen) == f"{CLOSING} (1 test file)"
    assert CLOSING not in last_line(project, WITHOUT_TORCH, "tests/test_plain.py")


def test_it_is_silent_with_pytorch(project: Path) -> None:
    assert CLOSING not in last_line(project, WITH_TORCH)


def test_examples_are_the_same_in_every_run() -> None:
    profile = settings.get_profile("ci")
    assert (profile.derandomize, profile.deadline, profile.database) == (True, None, None)
    assert settings.get_profile("nightly").max_examples > 10 * profile.max_examples
