"""A folder that many processes fill, read, damage and empty at once gives back what was put there, or nothing."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from hashlib import sha256
from pathlib import Path

import pytest

from jouletrace.errors import UsageError
from jouletrace.store import blobs
from jouletrace.store.blobs import MAX_BLOB_BYTES, Key, Store, Usage, key

from ..command import SOURCES

PAGE = 4096
NAME = key("test", b"what it was made from")
PAYLOAD = b"what was made, what was made"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", 1 << 20)


def file_of(store: Store, name: Key = NAME) -> Path:
    return store.folder / name.file


def forged(name: Key, length: int, stored: bytes, stored_length: int | None = None) -> bytes:
    """A blob with a true digest whose lengths say what they like."""
    lengths = (length, len(stored) if stored_length is None else stored_length)
    head = struct.pack("<8s32sQQ", b"jtblob\x00\x01", name.digest, *lengths)
    return head + sha256(head + bytes(32) + stored).digest() + stored


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 64, os.urandom(10_000)])
def test_what_was_put_is_got(store: Store, payload: bytes) -> None:
    assert store.get(NAME) is None
    store.put(NAME, payload)
    assert store.get(NAME) == payload
    assert Store(store.folder, 1 << 20).get(NAME) == payload, "another process finds it"
    store.put(NAME, payload[1:])
    assert store.get(NAME) == payload[1:], "the last one counts"
    assert [path.name for path in store.folder.iterdir()] == [NAME.file], "and no temporary file is left"
    store.discard(NAME)
    assert store.get(NAME) is None


def test_the_format_is_the_one_that_this_file_writes_down(store: Store) -> None:
    store.put(NAME, PAYLOAD)
    assert file_of(store).read_bytes() == forged(NAME, len(PAYLOAD), zlib.compress(PAYLOAD, 1))


def test_damage_of_any_byte_is_seen_and_the_blob_removed(store: Store) -> None:
    store.put(NAME, PAYLOAD)
    good = file_of(store).read_bytes()
    spoiled = [good[:i] + bytes([good[i] ^ bits]) + good[i + 1 :] for i in range(len(good)) for bits in (1, 0x80, 0xFF)]
    spoiled += [good[:length] for length in range(len(good))]
    spoiled += [good + b"\0", good * 2, good[1:]]
    for data in spoiled:
        file_of(store).write_bytes(data)
        assert store.get(NAME) is None
        assert not file_of(store).exists()
    file_of(store).write_bytes(good)
    assert store.get(NAME) == PAYLOAD


def test_a_blob_of_another_key_is_foreign(store: Store) -> None:
    store.put(NAME, PAYLOAD)
    other = key("test", b"something else")
    file_of(store).rename(file_of(store, other))
    assert store.get(other) is None
    assert store.usage() == Usage(0, 0)


@pytest.mark.parametrize(
    "data",
    [
        forged(NAME, 1 << 60, zlib.compress(PAYLOAD)),
        forged(NAME, 0, zlib.compress(PAYLOAD), stored_length=1 << 60),
        forged(NAME, MAX_BLOB_BYTES + 1, zlib.compress(PAYLOAD)),
        forged(NAME, MAX_BLOB_BYTES, zlib.compress(PAYLOAD)),
        forged(NAME, 100, zlib.compress(bytes(100 << 20))),
        forged(NAME, len(PAYLOAD), PAYLOAD),
        forged(NAME, len(PAYLOAD), zlib.compress(PAYLOAD) + b"more"),
        forged(NAME, len(PAYLOAD), zlib.compress(PAYLOAD)[:-1]),
    ],
    ids=["huge", "huge-stored", "above", "longer", "bomb", "not-deflated", "left-over", "cut"],
)
def test_a_hostile_header_allocates_nothing(store: Store, data: bytes) -> None:
    store.folder.mkdir()
    file_of(store).write_bytes(data)
    tracemalloc.start()
    try:
        assert store.get(NAME) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert not file_of(store).exists()


def test_a_large_file_under_the_name_of_a_blob_is_not_read(store: Store) -> None:
    store.folder.mkdir()
    length = MAX_BLOB_BYTES + 1
    with file_of(store).open("wb") as stream:
        stream.write(forged(NAME, 1, b"", stored_length=length))
        stream.truncate(88 + length)  # a hole, which takes no disk
    tracemalloc.start()
    try:
        assert store.get(NAME) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_not_followed(store: Store, tmp_path: Path) -> None:
    store.put(NAME, PAYLOAD)
    precious = file_of(store).rename(tmp_path / "precious")
    file_of(store).symlink_to(precious)
    assert store.get(NAME) is None
    assert precious.exists()
    assert not file_of(store).is_symlink()
    os.mkfifo(file_of(store))  # opening it would wait for ever
    assert store.get(NAME) is None
    file_of(store).mkdir()
    assert store.get(NAME) is None
    store.put(NAME, PAYLOAD)
    assert file_of(store).is_dir(), "it is not ours to remove, so this one is not kept"
    assert len(list(store.folder.iterdir())) == 1


def test_too_large_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Store(store.folder, 2 * PAGE)
    small.put(NAME, os.urandom(3 * PAGE))
    assert small.usage() == Usage(0, 0), "it would only drive everything else out"
    monkeypatch.setattr(blobs, "MAX_BLOB_BYTES", len(PAYLOAD) - 1)
    store.put(NAME, PAYLOAD)
    assert store.usage() == Usage(0, 0)


def numbered(i: int) -> Key:
    return key("test", str(i).encode())


def test_the_least_recently_used_go_first(store: Store) -> None:
    """Room for four; the fifth makes three of it, because the next write should not have to evict again."""
    small = Store(store.folder, 4 * PAGE)
    for i in range(4):
        small.put(numbered(i), PAYLOAD)
        os.utime(file_of(small, numbered(i)), (1000 + i, 1000 + i))
    assert small.usage() == Usage(4, 4 * PAGE)
    assert small.get(numbered(0)) == PAYLOAD, "0 is used, so that 1 and 2 are the oldest"
    small.put(numbered(4), PAYLOAD)
    assert [i for i in range(5) if small.get(numbered(i)) is not None] == [0, 3, 4]


def test_eviction_looks_into_the_folder_now_and_then_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first write of a process, and again whenever a sixteenth of 1 MiB, 16 pages, has been written."""
    sweeps: list[int] = []
    sweep = Store._sweep

    def counted(self: Store) -> None:
        sweeps.append(i)
        sweep(self)

    monkeypatch.setattr(Store, "_sweep", counted)
    for i in range(40):
        store.put(numbered(i), PAYLOAD)
    assert sweeps == [0, 16, 32]


def test_two_that_evict_at_once_remove_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has removed a blob between our look and our removal: it counts as gone, and no more has to go."""
    large = Store(store.folder, 1 << 20)
    for i in range(8):
        large.put(numbered(i), PAYLOAD)
        os.utime(file_of(large, numbered(i)), (1000 + i, 1000 + i))
    small = Store(store.folder, 8 * PAGE)
    remove = blobs._remove

    def raced(path: str) -> bool:
        remove(path)
        return remove(path)

    monkeypatch.setattr(blobs, "_remove", raced)
    small.put(numbered(8), PAYLOAD)
    assert [i for i in range(9) if small.get(numbered(i)) is not None] == [2, 3, 4, 5, 6, 7, 8]


def test_clear_removes_blobs_and_nothing_else(store: Store) -> None:
    for i in range(3):
        store.put(numbered(i), os.urandom(PAGE))
    mine = [store.folder / "thesis.tex", store.folder / "test-12.jtblob", store.folder / "sub"]
    mine[0].write_text("precious")
    mine[1].write_text("precious")
    mine[2].mkdir()
    (store.folder / ".x.jtblob.part").touch()
    assert store.usage() == Usage(3, 6 * PAGE), "4096 bytes that do not shrink, and a header: two pages each"
    assert store.clear() == Usage(3, 6 * PAGE)
    assert sorted(store.folder.iterdir()) == sorted(mine)
    assert store.clear() == Usage(0, 0)


def test_clear_says_what_it_may_not_remove(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, PAYLOAD)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(UsageError, match=r"\.jtblob: cannot be removed; are you allowed"):
        store.clear()


def test_a_write_that_ends_early_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(NAME, PAYLOAD)
    for failure in (KeyboardInterrupt(), OSError(28, "No space left on device")):

        def fail(*_: object, failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr(os, "replace", fail)
        if isinstance(failure, OSError):
            store.put(NAME, b"new")
        else:
            with pytest.raises(KeyboardInterrupt):
                store.put(NAME, b"new")
        assert [path.name for path in store.folder.iterdir()] == [NAME.file]
        assert store.get(NAME) == PAYLOAD, "the old one stands"


def test_what_a_dead_process_left_is_removed_after_an_hour(store: Store) -> None:
    store.folder.mkdir()
    for name, age in (("old", 4000), ("new", 3000)):
        part = store.folder / f".{name}.jtblob.part"
        part.touch()
        os.utime(part, (time.time() - age,) * 2)
    store.put(NAME, PAYLOAD)
    assert sorted(path.name for path in store.folder.iterdir()) == [".new.jtblob.part", NAME.file]


@pytest.mark.parametrize("place", ["a file/below", "x" * 5000, "/proc/none"])
def test_a_folder_that_cannot_be_is_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    store = Store(Path(place), 1 << 20)
    store.put(NAME, PAYLOAD)
    store.put(NAME, PAYLOAD)
    assert store.get(NAME) is None
    assert (store.usage(), store.clear()) == (Usage(0, 0), Usage(0, 0))


READ_ONLY = """
import os, sys
from pathlib import Path
from jouletrace.store.blobs import Key, Store
if os.geteuid() == 0:
    os.setuid(65534)  # to root nothing is read-only
store, name = Store(Path(sys.argv[1]), 5 * 4096), Key("test", bytes.fromhex(sys.argv[2]))
print(store.get(name))
store.put(Key("test", bytes(32)), b"new")
print(store.get(Key("test", bytes(32))), store.usage().entries)
"""


def test_a_read_only_folder_is_read(store: Store) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        filled = Store(folder, 1 << 20)
        filled.put(NAME, PAYLOAD)
        file_of(filled).chmod(0o444)
        folder.chmod(0o555)
        outcome = python(READ_ONLY, place, NAME.digest.hex()).communicate()
        folder.chmod(0o755)
    assert outcome == (f"{PAYLOAD!r}\nNone 1\n", "")


BUSY = """
import random, sys
from hashlib import sha256
from pathlib import Path
from jouletrace.store.blobs import Key, Store
seed, folder = int(sys.argv[1]), Path(sys.argv[2])
store, draw, found = Store(folder, 20 * 4096), random.Random(seed), 0
for step in range(400):
    number = draw.randrange(12)
    name = Key("test", sha256(bytes([number])).digest())
    what = draw.random()
    if what < 0.45:
        store.put(name, bytes([number]) + draw.randbytes(draw.randrange(3 * 4096)))
    elif what < 0.95:
        payload = store.get(name)
        assert payload is None or payload[0] == number, payload
        found += payload is not None
    elif what < 0.96:
        store.clear()
    else:
        (folder / name.file).write_bytes(draw.randbytes(500))
print(found)
"""


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Another process that runs these lines."""
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "PYTHONPATH": SOURCES})  # fmt: skip


def test_processes_that_write_read_evict_damage_and_clear_at_once(store: Store) -> None:
    """Whatever is found is whole and belongs to its key; nobody fails, and at the end there is neither rest nor rubbish."""
    store.folder.mkdir()
    processes = [python(BUSY, str(seed), str(store.folder)) for seed in range(5)]
    outcomes = [process.communicate() for process in processes]
    assert [error for _, error in outcomes] == [""] * 5
    assert all(int(found) > 0 for found, _ in outcomes)
    assert not list(store.folder.glob(".*")), "no temporary file"
    last = Store(store.folder, 20 * PAGE)
    last.put(NAME, PAYLOAD)
    assert last.usage().size_bytes <= 20 * PAGE
    assert last.get(NAME) == PAYLOAD


KEY = "from jouletrace.store.blobs import key; print(key('test', b'content').digest.hex())"


def test_other_code_has_other_keys(tmp_path: Path) -> None:
    """The same code elsewhere finds what was kept; one more comment, and nothing is found."""
    shutil.copytree(Path(SOURCES) / "jouletrace", tmp_path / "a/jouletrace", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    with (tmp_path / "c/jouletrace/mapping/step.py").open("a") as source:
        source.write("# better\n")
    a, b, c = (
        subprocess.run([sys.executable, "-c", KEY], env={**os.environ, "PYTHONPATH": str(tmp_path / name)},
                       capture_output=True, text=True, check=True).stdout
        for name in "abc"
    )  # fmt: skip
    assert a == b != c


def test_another_model_version_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "_STARTED", time.time() + 10)
    keys = set[Key]()
    for version in (1, 2, 2):
        monkeypatch.setattr(blobs, "MODEL_VERSION", version)
        blobs._model.cache_clear()
        keys.add(key("test", b"content"))
    blobs._model.cache_clear()
    assert len(keys) == 2


def test_code_that_changed_under_a_running_process_has_keys_that_nobody_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process runs the old code; what it computes is not of the code that lies there now."""
    monkeypatch.setattr(blobs, "_STARTED", 0.0)
    keys = set[Key]()
    for _ in range(2):
        blobs._model.cache_clear()
        keys.add(key("test", b"content"))
    blobs._model.cache_clear()
    assert len(keys) == 2


def test_parts_of_a_key_do_not_run_into_one_another() -> None:
    keys = [key("a", b"b", b"c"), key("a", b"bc"), key("a", b"", b"bc"), key("a", b"c", b"b"), key("ab", b"c"), key("a")]
    assert len(set(keys)) == len({name.digest for name in keys}) == len(keys)


@pytest.mark.parametrize("namespace", ["", "../up", "a/b", "A", "a-b", "x" * 33, "a\n"])
def test_a_namespace_is_a_plain_word(namespace: str) -> None:
    with pytest.raises(ValueError, match="a namespace is of"):
        key(namespace, b"")
