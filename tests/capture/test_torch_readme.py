"""The README's way to one's own model, from the recipe on the page to a result."""

import re
import shlex
from pathlib import Path

import pytest

from jouletrace.cli import main

torch = pytest.importorskip("torch", reason="capture tests need PyTorch")

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_recipe_on_the_page_is_captured_and_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = next(b for b in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "import torch" in b)
    Path("mine.py").write_text(recipe)
    commands = re.findall(r"^\$ jouletrace (.*mine.*)$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    # 32 filters of 3 x 3 x 3 on 30 x 30 positions, and a product with 10 x 28,800 weights; the input needs no gradient.
    conv, fc = 64 * 32 * 27 * 900, 64 * 10 * 28_800
    assert f"MACs  {2 * conv + 3 * fc:,}".split()[1] in capsys.readouterr().out
