"""The command line as a user meets it: what it prints, what it writes, and that both are the same every time."""

import csv
import gc
import json
import sys
from pathlib import Path

import pytest

import jouletrace
from jouletrace.cli import main

from .command import jouletrace as command

STEP = ("run", "resnet20-cifar10-b32", "--hardware", "eftrain-zcu102")
PART = (*STEP, "--only", "layer1.0")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # runners of tests may set it


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"jouletrace {jouletrace.__version__}\n")


def test_help_imports_nothing_heavy() -> None:
    outcome = command("--help", PYTHONPROFILEIMPORTTIME="1")
    assert outcome.code == 0
    imported = {line.rpartition("|")[2].strip() for line in outcome.err.splitlines()}
    assert "jouletrace.cli" in imported
    assert not imported & {"numpy", "scipy", "simpy", "networkx", "pydantic", "yaml", "rich", "torch"}
    for name in ("run", "diff", "capture", "traces", "hardware", "show", "check", "cache"):
        assert f"\n    {name} " in outcome.out


def test_run_imports_what_it_needs() -> None:
    """One step on one array: no other array, no training, no strategy, and no package that only these need."""
    outcome = command(*STEP, PYTHONPROFILEIMPORTTIME="1", JOULETRACE_NO_NUMBA="1")
    assert outcome.code == 0
    imported = {line.rpartition("|")[2].strip() for line in outcome.err.splitlines()}
    assert {"jouletrace.replay.step", "jouletrace.mapping.channel_parallel", "rich.table"} <= imported
    assert not imported & {"scipy", "networkx", "numba", "torch", "onnx", "matplotlib"}
    assert not {name for name in imported if name.startswith(("jouletrace.strategies", "jouletrace.capture"))}
    assert not imported & {
        "jouletrace.replay.run", "jouletrace.replay.family", "jouletrace.report.export",
        "jouletrace.mapping.row_stationary", "jouletrace.mapping.systolic",
    }  # fmt: skip


def test_whoever_calls_main_gets_the_garbage_collector_back() -> None:
    before = gc.get_threshold()
    assert main([*PART]) == 0
    assert main(["run", "no-such-trace", "--hardware", "eftrain-zcu102"]) == 2
    assert gc.get_threshold() == before


def test_report_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PART, "--top", "2", "--by", "role"]) == 0
    out = capsys.readouterr().out
    for words in (
        "resnet20-cifar10-b32, only layer1.0 on eftrain-zcu102  compiled engine", "cycles", "utilisation", "tiles",
        "commands", "peak memory", "mean power", "per sample", "chip + DRAM", "board idle", "forward", "backward_data",
        "backward_weight", "update", "Dearest layers  2 of 5", "bound by", "Energy by role", "activation", "Rests on",
        "assumed", "#####",
    ):  # fmt: skip
        assert words in out, words


@pytest.mark.parametrize("columns", ["80", "120"])
def test_output_to_a_pipe_is_plain(columns: str) -> None:
    outcome = command(*PART, COLUMNS=columns)
    assert outcome.err == "", "no progress bar where there is no terminal"
    assert outcome.out.isascii()
    assert "\x1b" not in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= int(columns)
    assert "layer1.0.conv1" in outcome.out, "names are not cut"


def test_all_outputs_are_written_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PART, "--json", "r.json", "--csv", "r.csv", "--timeline", "t.json", "--svg", "r.svg"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == ["json: r.json", "csv: r.csv", "timeline: t.json", "svg: r.svg"]
    result = jouletrace.load_result("r.json")
    with open("r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["op"] for row in rows] == [record["op"] for record in result.records()]
    assert sum(float(row["energy_pj"]) for row in rows) == pytest.approx(result.energy().energy_aj / 10**6)
    timeline = json.loads(Path("t.json").read_text())
    assert timeline["otherData"]["cycles"] == result.cycles
    assert Path("r.svg").read_text().startswith("<svg ")


def test_result_is_repeated_from_its_own_file() -> None:
    assert main([*PART, "--set", "clock=80 MHz", "--micro-batch", "16", "--json", "a.json"]) == 0
    assert main(["run", "--from", "a.json", "--json", "b.json"]) == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_result_on_a_trace_of_ones_own_needs_nothing_else(tmp_path: Path) -> None:
    trace = jouletrace.load_trace("lenet10-cifar10-b128")
    mine = jouletrace.Trace(trace.header, trace.tensors, trace.ops, (("note", '"mine"'),))
    jouletrace.write_trace(mine, "mine.jsonl.gz")
    assert main(["run", "mine.jsonl.gz", *STEP[2:], "--json", "a.json"]) == 0
    Path("mine.jsonl.gz").unlink()
    assert main(["run", "--from", "a.json", "--json", "b.json"]) == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    assert jouletrace.load_result("a.json").trace.lines is not None


def test_bytes_do_not_depend_on_hash_seed_or_locale(tmp_path: Path) -> None:
    command(*PART, "--json", "a.json", cwd=tmp_path, PYTHONHASHSEED="0", LC_ALL="C", TZ="UTC")
    command(*PART, "--json", "b.json", cwd=tmp_path, PYTHONHASHSEED="17", LC_ALL="C.UTF-8", TZ="Asia/Tokyo", PYTHONUTF8="0")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_diff_says_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    main([*PART, "--json", "a.json"])
    main([*PART, "--set", "clock=50 MHz", "--json", "b.json"])
    capsys.readouterr()
    assert main(["diff", "a.json", "b.json"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["clock"][-4:] == ["100000000", "Hz", "50000000", "Hz"]
    assert lines["cycles"][-1] == "="
    assert lines["board"][-1] == "+100.0%", "half the clock is twice the idle energy per cycle"


def test_diff_of_equal_results_shows_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    main([*PART, "--json", "a.json"])
    capsys.readouterr()
    assert main(["diff", "a.json", "a.json"]) == 0
    out = capsys.readouterr().out
    assert "%" not in out
    assert "Layers that changed" not in out


def test_traces_and_hardware_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in jouletrace.list_traces())
    assert main(["hardware"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in jouletrace.list_hardware())


def test_show_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "resnet20-cifar10-b32", "--layers", "2"]) == 0
    out = capsys.readouterr().out
    for words in ("batch", "272,474", "1,306,021,888", "21 conv", "Layers  2 of 54", "conv1"):
        assert words in out, words


def test_show_hardware_with_an_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "eftrain-zcu102", "--set", "clock=123 MHz"]) == 0
    out = capsys.readouterr().out
    for words in ("16 x 16 lanes", "123 MHz", "Buffers", "Streams", "Prices", "array mac_fp32", "user"):
        assert words in out, words


def test_check_accepts_what_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    main([*PART, "--json", "a.json"])
    capsys.readouterr()
    for kind in ("traces/resnet20-cifar10-b32.jsonl.gz", "hwspecs/eftrain-zcu102.yaml"):
        assert main(["check", str(Path(jouletrace.__file__).parents[2] / kind)]) == 0
    assert main(["check", "a.json"]) == 0
    assert capsys.readouterr().out.count(": a good ") == 3


def test_statistics_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--describe-stats"]) == 0
    assert "totals.scopes.*.power_w" in capsys.readouterr().out


def test_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    import subprocess

    from .command import SOURCES

    shell = f"'{sys.executable}' -m jouletrace show eftrain-zcu102 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env={"PYTHONPATH": SOURCES})
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupt_is_told_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jouletrace.replay.step.simulate", interrupt)
    Path("a.json").write_text("precious")
    assert main([*PART, "--json", "a.json"]) == 130
    assert capsys.readouterr().err == "interrupted; no output file was changed\n"
    assert [path.name for path in Path().iterdir()] == ["a.json"]


def test_terminal_gets_colour_and_a_progress_bar(tmp_path: Path) -> None:
    import os
    import pty
    import subprocess

    from .command import SOURCES

    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jouletrace", *PART], stdin=there, stdout=there, stderr=there, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SOURCES, "TERM": "xterm", "LANG": "C.UTF-8"},
    )  # fmt: skip
    os.close(there)
    screen = b""
    while True:
        try:
            screen += os.read(here, 4096)
        except OSError:  # how a terminal says that its other end is gone
            break
    os.close(here)
    assert process.wait() == 0
    text = screen.decode()
    assert "replaying" in text
    assert "\x1b[1mresnet20-cifar10-b32" in text
    assert "█" in text


def test_a_built_in_network_is_captured_without_a_framework(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", "zoo:resnet20-cifar10", "--batch", "4", "-o", "mine.jsonl.gz"]) == 0
    assert "trace: mine.jsonl.gz" in capsys.readouterr().out
    trace = jouletrace.load_trace("./mine.jsonl.gz")
    assert trace.header.name == "mine"
    assert trace.ops == jouletrace.zoo("resnet20-cifar10", 4).ops
