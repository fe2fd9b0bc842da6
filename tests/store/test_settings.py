"""Where the cache lies, how it is turned off, and the command that shows and empties it."""

from pathlib import Path

import pytest

from jouletrace.cli import main
from jouletrace.errors import UsageError
from jouletrace.mapping import memory
from jouletrace.store.blobs import key
from jouletrace.store.settings import FOLDER, LIMIT, SWITCH, cache_folder, is_off, limit_bytes, open_store


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (FOLDER, LIMIT, SWITCH, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_the_folder_is_the_first_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / ".cache/jouletrace"
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    assert cache_folder() == tmp_path / ".cache/jouletrace", "a relative one is ignored"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches/jouletrace"
    monkeypatch.setenv(FOLDER, "")
    assert cache_folder() == tmp_path / "caches/jouletrace", "an empty one is none"
    monkeypatch.setenv(FOLDER, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER, "mine")
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize(("switch", "off"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch, switch: str | None, off: bool) -> None:
    if switch is not None:
        monkeypatch.setenv(SWITCH, switch)
    assert is_off() == memory.is_off() == off == (open_store() is None)


def test_the_store_stays_the_same_as_long_as_the_settings_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = open_store()
    assert first is not None
    assert (first.folder, first.limit_bytes) == (tmp_path / ".cache/jouletrace", 256 << 20)
    assert open_store() is first
    monkeypatch.setenv(LIMIT, "1 GiB")
    second = open_store()
    assert second is not None
    assert second.limit_bytes == 1 << 30
    assert not first.folder.exists(), "only what is kept makes a folder"


@pytest.mark.parametrize("size", ["lots", "12", "-1 GiB", "3 pJ"])
def test_a_size_that_is_none_stops_no_run_but_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    monkeypatch.setenv(LIMIT, size)
    with pytest.raises(UsageError, match=LIMIT):
        limit_bytes()
    store = open_store()
    assert store is not None
    assert store.limit_bytes == 256 << 20
    assert main(["cache"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {LIMIT}: ")


def test_no_home_is_no_cache(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert open_store() is None
    assert main(["cache"]) == 2
    assert "there is no home folder to keep a cache in; name one with JOULETRACE_CACHE" in capsys.readouterr().err


def test_the_command_shows_and_empties(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = open_store()
    assert store is not None
    for part in (b"1", b"2"):
        store.put(key("test", part), b"payload")
    assert main(["cache"]) == 0
    folder = f"folder   {tmp_path}/.cache/jouletrace\n"
    assert capsys.readouterr().out == f"{folder}size     8.192 kB of at most 268.4 MB\nentries  2\n"
    monkeypatch.setenv(SWITCH, "1")
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == (
        f"removed  2 entries, 8.192 kB\n{folder}size     0 B of at most 268.4 MB\nentries  0\n"
        "not used: JOULETRACE_NO_CACHE is set\n"
    )
