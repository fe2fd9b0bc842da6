"""Op programs as bytes for the cache on disk, and back.

Every command, run, engine and pool of some op programs becomes a row of an integer array; names and whatever else is
text stand once, and rows hold their places. Nothing that is read back is trusted: rows that do not fit together are no
op programs, and a program that was read keeps to the rules of one that was mapped.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from jouletrace.mapping.op_program import Action, Command, Engine, EngineKind, Integers, OpProgram, Pool, Run
from jouletrace.store.arrays import Packed, pack, unpack

__all__ = ["packed", "unpacked"]

T = TypeVar("T", bound=Hashable)
_KINDS: tuple[str, ...] = get_args(EngineKind)
_SEQUENCE = "sequence"
# What a row of each array says; the sequences alone are of 4 bytes and have no columns.
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ops": ("engines", "pools", "commands", "runs", "tiles"),
    "engines": ("engine",),
    "pools": ("pool",),
    "commands": ("name", "start_cycles", "size_bytes", "holds", "takes", "gives", "counts"),
    "holds": ("engine of the op", "cycles"),
    "takes": ("pool of the op", "credits"),
    "gives": ("pool of the op", "credits"),
    "counts": ("action", "times"),
    "runs": (_SEQUENCE, "times"),
}
_LEAST_ONE = (("takes", 1), ("gives", 1), ("counts", 1), ("runs", 0), ("runs", 1))


class _Texts(NamedTuple):
    """What rows name by its place."""

    engines: list[Engine]
    pools: list[Pool]
    names: list[str]
    actions: list[Action]


def packed(bodies: Sequence[OpProgram]) -> bytes | None:
    """The bytes of op programs; None if one of their numbers takes more than 64 bits.

    >>> run = Run(np.array([0, 0], dtype=np.int32), times=3)
    >>> body = OpProgram((Engine("dma", "dma"),), (), (Command(0, "load", ((0, 5),)),), (run,))
    >>> data = packed([body, body])
    >>> unpacked(data) == (body, body)
    True
    """
    engines, pools, names, actions = _Places[Engine](), _Places[Pool](), _Places[str](), _Places[Action]()
    rows: dict[str, list[tuple[int, ...]]] = {name: [] for name in _COLUMNS}
    for body in bodies:
        rows["ops"].append((len(body.engines), len(body.pools), len(body.commands), len(body.runs), body.tiles))
        rows["engines"] += [(engines.of(engine),) for engine in body.engines]
        rows["pools"] += [(pools.of(pool),) for pool in body.pools]
        for c in body.commands:
            lengths = len(c.holds), len(c.takes), len(c.gives), len(c.counts)
            rows["commands"].append((names.of(c.name), c.start_cycles, c.size_bytes, *lengths))
            rows["holds"] += c.holds
            rows["takes"] += c.takes
            rows["gives"] += c.gives
            rows["counts"] += [(actions.of(action), n) for action, n in c.counts]
        rows["runs"] += [(len(run.chunk), run.times) for run in body.runs]
    chunks = [run.chunk for body in bodies for run in body.runs]
    try:
        arrays: dict[str, NDArray[Any]] = {
            name: np.array(some, dtype=np.int64).reshape(-1, len(_COLUMNS[name])) for name, some in rows.items()
        }
    except OverflowError:
        return None
    arrays[_SEQUENCE] = np.concatenate([np.zeros(0, dtype=np.int32), *chunks])
    texts = {
        "engines": [[engine.name, engine.kind] for engine in engines],
        "pools": [[pool.name, pool.credits, pool.buffer] for pool in pools],
        "names": list(names), "actions": list(actions),
    }  # fmt: skip
    return pack(arrays, texts)


class _Places(dict[T, int]):
    """Values in the order in which they first came."""

    def of(self, value: T) -> int:
        return self.setdefault(value, len(self))


def unpacked(data: bytes) -> tuple[OpProgram, ...]:
    """The op programs that :func:`packed` was given; chunks are read-only views of ``data``.

    Raises ``ValueError``, and nothing else, if these are no op programs.
    """
    found = unpack(data)
    rows, sequence = _rows(found)
    texts = _texts(found.facts)
    for name, of in zip(("engines", "pools", "commands", "counts"), texts, strict=True):
        _require(_within(rows[name], 0, of), name)

    lists: dict[str, list[list[int]]] = {name: some.tolist() for name, some in rows.items()}
    pairs = {name: iter([(what, n) for what, n in lists[name]]) for name in ("holds", "takes", "gives")}
    counts = iter([(texts.actions[action], n) for action, n in lists["counts"]])
    commands = (
        Command(
            0, texts.names[name], tuple(islice(pairs["holds"], holds)), tuple(islice(pairs["takes"], takes)),
            tuple(islice(pairs["gives"], gives)), (), start_cycles, tuple(islice(counts, some)), size_bytes,
        )
        for name, start_cycles, size_bytes, holds, takes, gives, some in lists["commands"]
    )  # fmt: skip
    ends: list[int] = np.cumsum(rows["runs"][:, 0]).tolist()
    runs = (Run(sequence[end - n : end], times) for end, (n, times) in zip(ends, lists["runs"], strict=True))
    engines = (texts.engines[place] for (place,) in lists["engines"])
    pools = (texts.pools[place] for (place,) in lists["pools"])
    bodies = tuple([
        OpProgram(tuple(islice(engines, e)), tuple(islice(pools, p)), tuple(islice(commands, c)),
                  tuple(islice(runs, r)), tiles)
        for e, p, c, r, tiles in lists["ops"]
    ])  # fmt: skip
    for body in bodies:
        _require(_is_sound(body), "an op")
    return bodies


def _rows(found: Packed) -> tuple[dict[str, Integers], NDArray[np.int32]]:
    """The arrays by name, none too few, no row too short, and no number out of its range."""
    _require(set(found.arrays) == {*_COLUMNS, _SEQUENCE}, "the set of arrays")
    rows = {name: found.arrays[name] for name in _COLUMNS}
    for name, some in rows.items():
        _require(some.dtype == np.int64 and some.ndim == 2 and some.shape[1] == len(_COLUMNS[name]), name)
        _require(some.size == 0 or int(some.min()) >= 0, name)
    sequence = found.arrays[_SEQUENCE]
    _require(sequence.dtype == np.int32 and sequence.ndim == 1, _SEQUENCE)
    for name, column in _LEAST_ONE:
        _require(not (rows[name][:, column] == 0).any(), name)
    for name, columns in _COLUMNS.items():
        for place, what in enumerate(columns):
            if what in found.arrays:  # lengths, which say how the rows of another array are shared out
                each = rows[name][:, place]
                _require(_within(rows[name], place, range(len(found.arrays[what]) + 1)), name)
                _require(int(each.sum()) == len(found.arrays[what]), what)
    return rows, sequence


def _texts(facts: object) -> _Texts:
    _require(isinstance(facts, dict), "the texts")
    lists = cast(dict[str, object], facts)
    _require(set(lists) == set(_Texts._fields) and all(isinstance(each, list) for each in lists.values()), "the texts")
    engines, pools, names, actions = (cast(list[object], lists[name]) for name in _Texts._fields)
    return _Texts(
        [_engine(each) for each in engines], [_pool(each) for each in pools],
        [_name(each) for each in names], [_action(each) for each in actions],
    )  # fmt: skip


def _engine(entry: object) -> Engine:
    match entry:
        case [str(name), str(kind)] if kind in _KINDS:
            return Engine(name, cast(EngineKind, kind))
        case _:
            raise ValueError(f"op programs: an engine is a name and one of {', '.join(_KINDS)}")


def _pool(entry: object) -> Pool:
    match entry:
        case [str(name), int(credits), str(buffer)] if type(credits) is int and 0 <= credits < 1 << 63:
            return Pool(name, credits, buffer)
        case _:
            raise ValueError("op programs: a pool is a name, credits and the name of a buffer")


def _action(entry: object) -> Action:
    match entry:
        case [str(component), str(action), str(role)]:
            return component, action, role
        case _:
            raise ValueError("op programs: an action is a component, what it does, and a role")


def _name(entry: object) -> str:
    _require(isinstance(entry, str), "a name")
    return cast(str, entry)


def _is_sound(body: OpProgram) -> bool:
    """Whether a program keeps to the rules by itself: no engine will complain about it or count beyond 64 bits."""
    names = {engine.name for engine in body.engines}, {pool.name for pool in body.pools}
    return (
        (len(names[0]), len(names[1])) == (len(body.engines), len(body.pools))
        and not body.problems
        and all(len(dict(ends)) == len(ends) for ends in (body.takers, body.givers))
        and sum(len(run.chunk) * run.times for run in body.runs) < 1 << 63
    )


def _within(rows: Integers, column: int, of: Sequence[object]) -> bool:
    """Whether a column holds places in ``of``."""
    return len(rows) == 0 or int(rows[:, column].max()) < len(of)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"op programs: {what} is not as it is written")
