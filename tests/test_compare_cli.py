"""``jouletrace compare`` and ``jouletrace strategies`` as a user meets them."""

import csv
import json
from pathlib import Path

import pytest

from jouletrace.cli import main

from .command import jouletrace as command

TRACE = ("compare", "resnet20-cifar10-b32", "--hardware", "zedboard-fp32")
TWO = (*TRACE, "--strategy", "smd", "--strategy", "smd+signsgd@zedboard-int8", "--iterations", "6", "--seeds", "2")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


def test_report_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TWO, "--json", "c.json", "--csv", "c.csv"]) == 0
    out = capsys.readouterr().out
    for words in (
        "resnet20-cifar10-b32, batch 32, on zedboard-fp32  6 iterations, 2 seeds", "One step", "Whole training", "Work",
        "by component", "by phase", "loading", "0.5 x its power", "+ signsgd @zedboard-int8", "Published", "Rests on",
        "on zedboard-int8: smd+signsgd; what they save is the difference of two builds",
    ):  # fmt: skip
        assert words in out, words
    assert out.splitlines()[-2:] == ["json: c.json", "csv: c.csv"]
    data = json.loads(Path("c.json").read_text())
    assert [(c["label"], c["hardware"]) for c in data["columns"]] == [
        ("baseline", "zedboard-fp32"), ("smd", "zedboard-fp32"), ("smd+signsgd", "zedboard-int8"),
    ]  # fmt: skip
    # Of 8 nominal iterations the seeds draw which are executed, and both trainings stand in the file.
    smd = data["columns"][1]["runs"]
    assert [(run["seed"], run["iterations"]) for run in smd] == [(0, 8), (1, 8)]
    step = int(data["columns"][0]["step"]["scopes"]["chip"]["energy_aj"])
    for run in smd:
        steps = sum(int(part["energy_aj"]) for part in run["parts"]
                    if part["phase"] not in ("loading", "augmentation") and part["component"] not in ("dram", "board"))  # fmt: skip
        assert steps == run["executed"] * step, "a kept iteration is the unmodified step"
    with open("c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"baseline", "smd", "smd+signsgd"}


def test_bytes_are_the_same_every_time() -> None:
    for seed in ("0", "1"):
        outcome = command(*TRACE, "--strategy", "smd", "--iterations", "3", "--json", f"{seed}.json", PYTHONHASHSEED=seed)
        assert (outcome.code, outcome.err) == (0, ""), outcome.err
    assert Path("0.json").read_bytes() == Path("1.json").read_bytes()


def test_step_alone_with_names_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--step", "--strategy", "signsgd", "--strategy", "signsgd@zedboard-int8", "--scope", "chip")
    assert main([*TRACE, *words, "--label", "signs", "--label", "both"]) == 0
    out = capsys.readouterr().out
    assert "one step, no training" in out
    assert "\n  signs " in out
    assert "Energy  one step, chip\n" in out
    assert main([*TRACE, *words]) == 0
    assert "signsgd@\n" in capsys.readouterr().out, "equal words are told apart by their hardware"


def test_everything_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([
        "compare", "resnet19", "--hardware", "zedbord", "--strategy", "sdm", "--strategy", "smd:q=1,p=x", "--strategy",
        "smd@nowhere", "--label", "one", "--picture", "a.gif", "--seeds", "0",
    ]) == 2  # fmt: skip
    errors = capsys.readouterr().err
    for words in (
        "resnet19", "zedbord", "did you mean 'smd'?", "smd has no knob 'q'", "p has to be a number", "nowhere",
        "1 --label for 3 --strategy", "a.gif: a picture ends in .svg or .png", "--seeds has to be at least 1",
    ):  # fmt: skip
        assert words in errors, words
    assert all(text.startswith("error: ") for text in errors.splitlines())
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "compare needs a --strategy; 'jouletrace strategies' lists them"),
        (("--strategy", "smd", "--iterations", "0"), "a training run needs a number of iterations of at least 1 (got 0)"),
        (("--strategy", "smd", "--step", "--evaluate-every", "5"), "--evaluate-every belongs to a training"),
        (("--strategy", "smd", "--json", "nowhere/c.json"), "nowhere/c.json: cannot be written"),
        (("--strategy", "smd", "--json", "a", "--csv", "./a"), "two outputs go to the same file"),
        (("--strategy", "psg+slu"), "write slu+psg"),
    ],
)
def test_sentence_instead_of_a_comparison(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object, **__: object) -> None:
        raise AssertionError("computed before all inputs were tried")

    monkeypatch.setattr("jouletrace.comparison.evaluate.simulate_run", computed)
    assert main([*TRACE, *words]) == 2
    assert sentence in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_picture_without_matplotlib_names_the_cure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jouletrace.report.waterfall.find_spec", lambda name: None)
    assert main([*TRACE, "--strategy", "smd", "--picture", "a.svg"]) == 2
    assert "pip install 'jouletrace[plots]'" in capsys.readouterr().err


def test_strategies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from jouletrace.strategies.registry import known

    assert main(["strategies"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in known())
    assert "stands for smd+slu+psg" in out


def test_a_strategy_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", "smd"]) == 0
    out = capsys.readouterr().out
    for words in ("dropped with probability p", "Source: Y. Wang", "one of sampled, expected", "top1 accuracy gain 0.2 %"):
        assert words in out, words
    assert "`" not in out
    assert main(["strategies", "e2train"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name}  " in out for name in ("smd", "slu", "psg"))
    assert main(["strategies", "smdd"]) == 2
    assert "did you mean 'smd'?" in capsys.readouterr().err


def test_a_strategy_of_ones_own_is_compared_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "from jouletrace.strategies.base import Notes, Strategy\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Nothing(Strategy):\n"
        "    '''Leaves everything as it is.'''\n"
        "    name = 'nothing'\n"
        "    def step(self, trace, notes):\n"
        "        notes.leave('everything', 'it is good as it is')\n"
        "        return trace\n"
    )
    assert main(["strategies", "mine.py"]) == 0
    assert "Leaves everything as it is." in capsys.readouterr().out
    assert main([*TRACE, "--strategy", "mine.py", "--step", "--why"]) == 0
    assert "it is good as it is" in capsys.readouterr().out
