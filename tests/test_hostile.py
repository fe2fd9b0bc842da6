"""Bad input at the command line: one clear sentence, exit code 2, quickly, in little memory, and nothing overwritten."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import jouletrace
from jouletrace.resources import folder

from .command import jouletrace as command

TRACE = "resnet20-cifar10-b32"
RUN = ("run", TRACE, "--hardware", "eftrain-zcu102")
LINES = gzip.decompress((folder("traces") / f"{TRACE}.jsonl.gz").read_bytes()).decode().splitlines(keepends=True)
SPEC = (folder("hwspecs") / "eftrain-zcu102.yaml").read_text()


def edited(old: str, new: str, times: int = 1) -> str:
    """The shipped spec with one place changed."""
    assert old in SPEC
    return SPEC.replace(old, new, times)


FILES: dict[str, Callable[[Path], object]] = {
    "cut.jsonl.gz": lambda p: p.write_bytes((folder("traces") / f"{TRACE}.jsonl.gz").read_bytes()[:5000]),
    "short.jsonl": lambda p: p.write_text("".join(LINES[:-3])),
    "empty.jsonl": lambda p: p.touch(),
    "binary.jsonl": lambda p: p.write_bytes(bytes(range(256)) * 64),
    "bomb.jsonl.gz": lambda p: p.write_bytes(gzip.compress(b" " * (64 << 20))),
    "deep.jsonl": lambda p: p.write_text("[" * 200_000),
    "twice.jsonl": lambda p: p.write_text("".join(LINES + LINES[-2:])),
    "huge.jsonl": lambda p: p.write_text("".join(LINES).replace('"bits":32', '"bits":99999999999999999999', 1)),
    "cut.yaml": lambda p: p.write_text(SPEC[: len(SPEC) // 3] + "\n  - {"),
    "key.yaml": lambda p: p.write_text(edited("clock: 100 MHz", "clock: 100 MHz\nclok: 100 MHz")),
    "unit.yaml": lambda p: p.write_text(edited("clock: 100 MHz", "clock: 100")),
    "kind.yaml": lambda p: p.write_text(edited("clock: 100 MHz", "clock: 100 pJ")),
    "alias.yaml": lambda p: p.write_text("a: &a [1]\nb: *a\n"),
    "large.yaml": lambda p: p.write_text("# " + "x" * (2 << 20)),
    "deep.yaml": lambda p: p.write_text("[" * 20_000),
    "list.yaml": lambda p: p.write_text("- 1\n"),
    "cut.json": lambda p: p.write_text('{"format": "jouletrace-result",'),
    "deep.json": lambda p: p.write_text("[" * 200_000),
    "other.json": lambda p: p.write_text(json.dumps({"format": "something else"})),
}

# arguments, and what the sentence has to hold
CASES: list[tuple[tuple[str, ...], str]] = [
    (("run",), "run needs a TRACE"),
    (("run", TRACE), "run needs --hardware"),
    (("run", "resnet2-cifar10-b32", *RUN[2:]), "no shipped trace 'resnet2-cifar10-b32'.* did you mean 'resnet20-cifar10-b32'"),
    (("run", "none.jsonl.gz", *RUN[2:]), "none.jsonl.gz: cannot be read: No such file or directory"),
    (("run", ".", *RUN[2:]), "cannot be|no shipped trace"),
    (("run", TRACE, "--hardware", "eftrain-zcu12"), "did you mean 'eftrain-zcu102'"),
    (("run", TRACE, "--hardware", "none.yaml"), "none.yaml: there is no such file"),
    ((*RUN, "--only", "conv2"), "has no layer 'conv2'; did you mean 'conv1'"),
    ((*RUN, "--only", "conv1:forwrd"), "did you mean 'forward'"),
    ((*RUN, "--only", "conv1:backward_data"), "has no backward_data op; it has forward"),
    ((*RUN, "--micro-batch", "5"), "do not divide the batch of 32; possible are 1, 2, 4, 8, 16, 32"),
    ((*RUN, "--set", "clock"), "clock"),
    ((*RUN, "--set", "clock=100"), "clock: needs a unit"),
    ((*RUN, "--set", "clock=1 pJ"), "has the unit 'pJ'; one of Hz"),
    ((*RUN, "--set", "dram.bandwith=1 GB/s"), "did you mean 'bandwidth'"),
    ((*RUN, "--set", "array.out_channels=4000"), "DSP|dsp"),
    ((*RUN, "--engine", "quantum"), "invalid choice: 'quantum'"),
    ((*RUN, "--top", "many"), "'many' is no whole number from 0 on"),
    ((*RUN, "--top", "-3"), "'-3' is no whole number from 0 on"),
    ((*RUN, "--jsn", "x.json"), "unrecognized arguments: --jsn"),
    ((*RUN, "--csv", "out.json", "--json", "./out.json"), "go to the same file"),
    ((*RUN, "--csv", "nowhere/out.csv"), "nowhere/out.csv: cannot be written: No such file or directory"),
    ((*RUN, "--csv", "."), "cannot be written: it is a folder"),
    ((*RUN, "--from", "cut.json"), "leave TRACE and the other inputs out"),
    (("run", "resnet74-cifar10-b128", "--hardware", "zedboard-fp32"), "536.9 MB; use --micro-batch 64"),
    (("run", "--from", "none.json"), "none.json: cannot be read"),
    (("diff", "cut.json", "other.json"), "cut.json: is not readable JSON"),
    (("show", "resnet20-cifar10-b23"), "did you mean 'resnet20-cifar10-b32'"),
    (("show", TRACE, "--set", "clock=1 MHz"), "--set changes a hardware spec, not a trace"),
    (("check", "photo.png"), "photo.png: cannot tell what this is"),
    (("capture", "model.py:net", "-o", "out.jsonl.gz"), "say which with --batch N"),
    (("capture", "model.py:net", "--batch", "4", "-o", "out.json"), "out.json: a trace file ends in .jsonl.gz"),
    (("capture", "zoo:resnet21-cifr10", "--batch", "4", "-o", "out.jsonl.gz"), "No built-in network 'resnet21-cifr10'"),
    (("capture", "model.py:net", "--batch", "4", "--optimizer", "sgd", "-o", "out.jsonl.gz"), "go with an ONNX file"),
    (("fly",), "invalid choice: 'fly'"),
    ((), "required: COMMAND"),
    *(((("check", name)), re.escape(name)) for name in FILES),
    (("run", "cut.jsonl.gz", *RUN[2:]), "cut.jsonl.gz:.*cut off"),
    (("run", TRACE, "--hardware", "unit.yaml"), r"unit.yaml:\d:8: clock: needs a unit, one of Hz, kHz, MHz, GHz \(got 100\)"),
    (("run", TRACE, "--hardware", "key.yaml"), r"key.yaml:\d:1: clok: .*did you mean 'clock'"),
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every bad file, and an output that must survive."""
    place = tmp_path_factory.mktemp("desk")
    for name, write in FILES.items():
        write(place / name)
    for part in ("boards", "dram", "energy"):
        (place / part).symlink_to(folder("hwspecs") / part)
    (place / "out.json").write_text("precious")
    return place


@pytest.mark.parametrize(("arguments", "sentence"), CASES, ids=[" ".join(c[0])[:60] for c in CASES])
def test_bad_input_is_one_sentence(desk: Path, arguments: tuple[str, ...], sentence: str) -> None:
    before = {path.name for path in desk.iterdir()}
    outputs = ("--json", "out.json") if arguments[:1] == ("run",) and "--csv" not in arguments else ()
    outcome = command(*arguments, *outputs, cwd=desk)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert re.search(sentence, outcome.err), outcome.err
    assert all(line.startswith(("error: ", "jouletrace")) for line in outcome.err.splitlines())
    assert outcome.cpu_seconds < 2
    assert outcome.peak_bytes < 300 << 20
    assert (desk / "out.json").read_text() == "precious"
    assert {path.name for path in desk.iterdir()} == before, "a file was left behind"


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text(edited("clock: 100 MHz", "clock: 100").replace("word: 32 bit", "word: 32 byte"))
    outcome = command("check", str(spec))
    assert [line.split(": ")[2] for line in outcome.err.splitlines() if "needs" in line or "unit" in line][:2] == [
        "clock", "word",
    ]  # fmt: skip


def test_failed_replay_leaves_outputs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a bug inside, or a full disk, after the files were opened."""
    from jouletrace.files import replacing

    target = tmp_path / "out.json"
    target.write_text("precious")
    with pytest.raises(ZeroDivisionError), replacing(target) as stream:
        stream.write(b"half a resu")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert target.read_text() == "precious"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    full_disk = "out.json: cannot be written: No space left on device"
    with pytest.raises(jouletrace.JouletraceError, match=full_disk), replacing(target) as stream:
        stream.write(b"whole")
    assert target.read_text() == "precious"
