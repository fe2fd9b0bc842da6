"""What a real training decided in every iteration: the log of a recorder, as compact arrays and as a file.

The format is described in docs/decisions.md. It has the safety of trace files (:mod:`jouletrace.trace.io`): one
sequence of bytes per log, integers only, bounded sizes, and nothing in it is trusted.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from jouletrace.errors import TraceError, UsageError, did_you_mean
from jouletrace.files import write_file
from jouletrace.trace.codec import MAX_INTEGER, MAX_PROBLEMS, FieldError, canonical, decode, parse
from jouletrace.trace.line_file import MAX_RATIO, BytesError, compress, inflate, open_at_once, require_regular
from jouletrace.trace.line_file import lines as lines_of

__all__ = [
    "ACTIVATION",
    "GRADIENT",
    "KINDS",
    "Decisions",
    "dump_decisions",
    "encode_end",
    "encode_header",
    "encode_iteration",
    "parse_decisions",
    "read_decisions",
    "write_decisions",
    "write_dump",
]

FORMAT = "jouletrace-decisions"
VERSION = "1.0"

MAX_ITERATIONS = 5_000_000
MAX_CELLS = 1 << 26  # of samples: iterations × units
MAX_ROWS = 1 << 24  # of precision, predictor and density
MAX_BATCH = (1 << 31) - 1
MAX_BITS = 64

KINDS = ("activation", "gradient")
ACTIVATION, GRADIENT = range(2)
# Sparse tables, and how many columns they have in memory; in a file the iteration is that of the line.
_COLUMNS = {"precision": 5, "predictor": 4, "density": 5}
_FIELDS = ("executed", "iteration", "samples", *_COLUMNS)


def _none(columns: int) -> NDArray[np.int64]:
    return np.zeros((0, columns), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Decisions:
    """What was decided in the iterations of one training. Iterations are nominal: dropped ones count.

    ``units`` are the parts of a step that a decision may skip, ``layers`` modules with weights, both by module path.

    * ``executed``: bool[iterations]; False where the batch was dropped.
    * ``samples``: int32[iterations, units]; how many samples ran the unit, 0 in dropped iterations.
    * ``precision``: int64[n, 5]: iteration, layer, bits of weights, of activations and of gradients, in force from
      that iteration on. Layers that no row names keep the widths of the step.
    * ``predictor``: int64[n, 4]: iteration, layer, weight gradients taken from the predictor, weight gradients.
    * ``density``: int64[n, 5]: iteration, layer, :data:`ACTIVATION` (what the layer reads) or :data:`GRADIENT` (of
      what it writes), non-zeros, elements.

    Rows of the last three ascend; layers are indices into ``layers``. Raises TraceError for arrays that contradict
    one another.

    >>> executed, samples = np.array([True, False, True]), np.array([[4, 2], [0, 0], [4, 3]], dtype=np.int32)
    >>> log = Decisions("tiny", 4, ("layer1.0", "layer1.1"), (), executed, samples)
    >>> log.executed_count, log.mean_samples()
    (2, (Fraction(4, 1), Fraction(5, 2)))
    """

    model: str
    batch: int
    units: tuple[str, ...]
    layers: tuple[str, ...]
    executed: NDArray[np.bool_]
    samples: NDArray[np.int32]
    precision: NDArray[np.int64] = field(default_factory=lambda: _none(5))
    predictor: NDArray[np.int64] = field(default_factory=lambda: _none(4))
    density: NDArray[np.int64] = field(default_factory=lambda: _none(5))
    producer: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for values in (self.executed, self.samples, self.precision, self.predictor, self.density):
            values.setflags(write=False)
        if found := list(_contradictions(self)):
            raise _Contradiction(self.model, found)

    def __eq__(self, other: object) -> bool:
        """Equal names and equal arrays."""
        if not isinstance(other, Decisions):
            return NotImplemented
        return all(np.array_equal(mine, vars(other)[name]) for name, mine in vars(self).items())

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    @property
    def iterations(self) -> int:
        """Nominal iterations, dropped ones included."""
        return len(self.executed)

    @property
    def executed_count(self) -> int:
        """Iterations that ran."""
        return int(np.count_nonzero(self.executed))

    def mean_samples(self) -> tuple[Fraction, ...]:
        """How many samples ran each unit, on average over the iterations that ran; 0 if none did."""
        sums: list[int] = self.samples.sum(axis=0, dtype=np.int64).tolist()
        return tuple(Fraction(total, max(1, self.executed_count)) for total in sums)

    def predictor_share(self, layer: str | None = None) -> Fraction:
        """The share of weight gradients taken from the predictor, in one layer or in all of them together.

        Raises UsageError for an unknown layer, and where the log has no such numbers.
        """
        return self._share("share of the predictor", self.predictor, layer)

    def mean_density(self, kind: int, layer: str | None = None) -> Fraction:
        """The share of non-zeros in what a layer reads (ACTIVATION) or in the gradient of what it writes (GRADIENT).

        Over all iterations in which it was counted. Raises UsageError as :meth:`predictor_share` does.
        """
        return self._share(f"density of the {KINDS[kind]}", self.density[self.density[:, 2] == kind], layer)

    def _share(self, what: str, rows: NDArray[np.int64], layer: str | None) -> Fraction:
        if layer is not None:
            if layer not in self.layers:
                hint = did_you_mean(layer, self.layers) or f"; there are {', '.join(self.layers) or 'none'}"
                raise UsageError(f"the decisions of {self.model!r} know no layer {layer!r}{hint}")
            rows = rows[rows[:, 1] == self.layers.index(layer)]
        part, whole = (sum(column.tolist()) for column in (rows[:, -2], rows[:, -1]))
        if not whole:
            where = f" of layer {layer!r}" if layer is not None else ""
            raise UsageError(f"the decisions of {self.model!r} hold no {what}{where}: its module did not tell any")
        return Fraction(part, whole)

    def bits_at(self, iteration: int) -> NDArray[np.int64]:
        """int64[layers, 3]: bits of weights, activations and gradients in force; 0 where the step's own widths hold."""
        bits = np.zeros((len(self.layers), 3), dtype=np.int64)
        rows = self.precision[: np.searchsorted(self.precision[:, 0], iteration, side="right")]
        bits[rows[:, 1]] = rows[:, 2:]  # where a layer stands twice, the later row wins
        return bits

    def select(self, first: int, last: int) -> Decisions:
        """The iterations from ``first`` up to, not including, ``last``, counted anew from 0.

        Raises UsageError for a range outside the log.
        """
        if not 0 <= first <= last <= self.iterations:
            raise UsageError(f"iterations {first} to {last} do not lie within the {self.iterations} of {self.model!r}")
        ran = np.flatnonzero(self.executed[first:last])
        begin = first + int(ran[0]) if len(ran) else last  # where bits decided before the range come into force
        in_force = self.bits_at(begin)
        known = np.flatnonzero(in_force[:, 0] if len(ran) else [])
        carried = np.column_stack([np.full(len(known), begin), known, in_force[known]])
        precision = np.concatenate([carried, _between(self.precision, begin + 1, last)])
        return replace(
            self,
            executed=self.executed[first:last].copy(),
            samples=self.samples[first:last].copy(),
            precision=precision - [first, 0, 0, 0, 0],
            predictor=_between(self.predictor, first, last) - [first, 0, 0, 0],
            density=_between(self.density, first, last) - [first, 0, 0, 0, 0],
        )


def _between(rows: NDArray[np.int64], first: int, last: int) -> NDArray[np.int64]:
    begin, end = np.searchsorted(rows[:, 0], [first, last])
    return rows[begin:max(begin, end)]


class _Contradiction(TraceError):
    """Pairs of an iteration (None: all of them) and half a sentence."""

    def __init__(self, model: str, found: list[tuple[int | None, str]]) -> None:
        self.found = found
        places = ("" if i is None else f"iteration {i}: " for i, _ in found)
        texts = [place + text for place, (_, text) in zip(places, found, strict=True)]
        super().__init__([f"the decisions of {model!r} contradict themselves: {text}" for text in texts])


def _contradictions(log: Decisions) -> Iterator[tuple[int | None, str]]:
    """What cannot be true of one training; of each kind the first place."""
    tables = {"precision": log.precision, "predictor": log.predictor, "density": log.density}
    shapes = {"samples": (log.samples, (log.iterations, len(log.units)))}
    shapes |= {name: (rows, (len(rows), _COLUMNS[name])) for name, rows in tables.items()}
    if wrong := [f"{n} has the shape {v.shape}, not {shape}" for n, (v, shape) in shapes.items() if v.shape != shape]:
        yield from ((None, text) for text in wrong)
        return
    if not 1 <= log.batch <= MAX_BATCH:
        yield None, f"a batch has 1 to {MAX_BATCH} samples (got {log.batch})"
    for what, names in (("unit", log.units), ("layer", log.layers)):
        if len(set(names)) < len(names):
            yield None, f"a {what} stands twice"
    everywhere = np.arange(log.iterations)
    outside = _any((log.samples < 0) | (log.samples > log.batch))
    yield from _first(outside, everywhere, f"samples have to lie within 0 and the batch, {log.batch}")
    yield from _first(_any(log.samples != 0) & ~log.executed, everywhere, "a unit ran, but the batch was dropped")
    for what, rows in tables.items():
        for bad, text in _row_rules(log, what, rows):
            yield from _first(bad, rows[:, 0], f"{what}: {text}")


def _first(bad: NDArray[np.bool_], iterations: NDArray[np.int64], text: str) -> Iterator[tuple[int | None, str]]:
    if bad.any():
        yield int(iterations[bad.argmax()]), text


def _any(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether any cell of a row is true."""
    return np.asarray(cells.any(axis=1))


def _row_rules(log: Decisions, what: str, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.bool_], str]]:
    """Pairs of the rows that break a rule, and the rule."""
    iterations, layers, rest = rows[:, 0], rows[:, 1], rows[:, 2:]
    outside = (iterations < 0) | (iterations >= log.iterations)
    yield outside, f"iterations have to lie within 0 and {log.iterations - 1}"
    if not outside.any():
        yield ~log.executed[iterations], "nothing can be decided in a dropped iteration"
    yield (layers < 0) | (layers >= len(log.layers)), f"a layer is the position of one of {len(log.layers)} layers"
    step = np.diff(rows[:, : 3 if what == "density" else 2], axis=0, prepend=-1)
    first_change = np.take_along_axis(step, (step != 0).argmax(axis=1)[:, None], axis=1)
    yield first_change[:, 0] <= 0, "rows have to ascend, and none may stand twice"
    if what == "precision":
        yield _any((rest < 1) | (rest > MAX_BITS)), f"bits have to lie within 1 and {MAX_BITS}"
        return
    if what == "density":
        yield (rest[:, 0] < 0) | (rest[:, 0] >= len(KINDS)), "a kind is ACTIVATION or GRADIENT"
    part, whole = rest[:, -2], rest[:, -1]
    yield (part < 0) | (part > whole) | (whole < 1), "a part has to lie within 0 and its whole, and the whole above 0"


# -- writing


def encode_header(log: Decisions) -> bytes:
    """The first line of a log."""
    names = {"model": log.model, "batch": log.batch, "units": log.units, "layers": log.layers}
    return _line({"format": FORMAT, "version": VERSION, **names, "producer": log.producer})


def encode_iteration(
    iteration: int, samples: Sequence[int] | None, batch: int, tables: Mapping[str, Sequence[Sequence[int]]]
) -> bytes:
    """The line of one iteration; ``samples`` is None if it was dropped, ``tables`` hold its rows without iteration."""
    line: dict[str, Any] = {"iteration": iteration, "executed": samples is not None}
    if samples is not None and any(count != batch for count in samples):
        line["samples"] = samples
    for name, rows in tables.items():
        if rows and name == "density":
            line[name] = [[layer, KINDS[kind], part, whole] for layer, kind, part, whole in rows]
        elif rows:
            line[name] = rows
    return _line(line)


def encode_end(body: bytes) -> bytes:
    """The last line, behind the header and the iterations in ``body``."""
    return _line({"end": {"iterations": body.count(b"\n") - 1, "sha256": hashlib.sha256(body).hexdigest()}})


def _line(value: dict[str, Any]) -> bytes:
    return canonical(value).encode() + b"\n"


def dump_decisions(decisions: Decisions) -> bytes:
    """The canonical bytes of a log, uncompressed."""
    lines = [encode_header(decisions)]
    tables = {"precision": decisions.precision, "predictor": decisions.predictor, "density": decisions.density}
    bounds = {n: np.searchsorted(r[:, 0], np.arange(decisions.iterations + 1)).tolist() for n, r in tables.items()}
    for i, executed in enumerate(decisions.executed.tolist()):
        samples = decisions.samples[i].tolist() if executed else None
        rows = {n: r[a:b, 1:].tolist() for n, r in tables.items() if (a := bounds[n][i]) < (b := bounds[n][i + 1])}
        lines.append(encode_iteration(i, samples, decisions.batch, rows))
    body = b"".join(lines)
    return body + encode_end(body)


def write_decisions(decisions: Decisions, path: str | os.PathLike[str]) -> None:
    """Writes a log, compressed unless the name ends in ``.jsonl``; an error leaves what was there untouched.

    Raises UsageError for a place that cannot be written.
    """
    write_dump(dump_decisions(decisions), path)


def write_dump(data: bytes, path: str | os.PathLike[str]) -> None:
    """Writes the bytes of :func:`dump_decisions`, as :func:`write_decisions` does."""
    if not os.fspath(path).endswith(".jsonl"):
        packed = compress(data)
        if len(data) > MAX_RATIO * len(packed):
            # Iterations that hardly differ pack so well that the reader would take the file for a bomb.
            packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_HUFFMAN_ONLY)
            packed = packer.compress(data) + packer.flush()
        data = packed
    write_file(path, data)


# -- reading


def read_decisions(path: str | os.PathLike[str]) -> Decisions:
    """The log in a file, compressed or not.

    Raises TraceError with up to 20 problems of the file, each as ``file:line: path.to.field: sentence``.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise TraceError(f"{name!r}: a path cannot hold a NUL character")
    try:
        with open(path, "rb", opener=open_at_once) as file:
            require_regular(file)
            for _ in inflate(file):
                pass  # a bomb or a damaged file is known before anything is parsed
            file.seek(0)
            return _Parser(name).read(lines_of(inflate(file)))
    except BytesError as error:
        raise TraceError(f"{name}: {error}") from None
    except OSError as error:
        raise TraceError(f"{name}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise TraceError(f"{name}: does not fit into memory") from None


def parse_decisions(data: bytes, name: str) -> Decisions:
    """The log in the bytes that :func:`dump_decisions` makes; ``name`` stands in front of errors, as for a file."""
    return _Parser(name).read(lines_of([data]))


@dataclass(frozen=True)
class _Header:
    """The first line, beside its format and version."""

    model: str
    batch: int
    units: tuple[str, ...]
    layers: tuple[str, ...]
    producer: tuple[tuple[str, str], ...]


class _Parser:
    """Takes the lines of one file and collects what they say and every problem, with its line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self.header = _Header("", 1, (), (), ())
        self.executed = array("b")
        self.sampled = array("q")  # iterations whose samples are told
        self.samples = array("i")
        self.tables = {table: array("q") for table in _COLUMNS}
        self.rows = 0
        self.sha = hashlib.sha256()  # of the lines so far
        self.ended = self.full = False

    def read(self, lines: Iterator[bytes]) -> Decisions:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if self.ended:
                    self._add(number, "there is text after the end line")
                    break
                try:
                    self._line(number, parse(line[:-1].decode()))
                except UnicodeDecodeError as error:
                    self._add(number, f"this is not UTF-8 text (byte {error.start + 1} of the line)")
                except RecursionError:
                    self._add(number, "the JSON is nested too deep")
                except FieldError as error:
                    self._add(number, *error.sentences())
                self.sha.update(line)
                if self.full or (number == 1 and self.problems):
                    break  # whatever follows, it is too much, or not a log of this version
        except BytesError as error:
            self._add(number + 1, str(error))
        if not number:
            self._add(1, "the file is empty")
        elif not self.ended and not self.problems:
            self._add(number, "the end line is missing: the file is cut off; to use what is there, close it with the "
                      f"line {self._end()}")  # fmt: skip
        if self.problems:
            raise TraceError(self.problems)
        return self._decisions()

    def _add(self, line: int, *sentences: str) -> None:
        self.problems += [f"{self.name}:{line}: {sentence}" for sentence in sentences]
        if len(self.problems) >= MAX_PROBLEMS:
            raise TraceError(self.problems[:MAX_PROBLEMS])

    def _end(self) -> str:
        return canonical({"end": {"iterations": len(self.executed), "sha256": self.sha.hexdigest()}})

    def _line(self, number: int, value: Any) -> None:
        if not isinstance(value, dict):
            raise FieldError(("", f"a line has to be an object (got {_short(value)})"))
        line = cast(dict[str, Any], value)
        if number == 1:
            self._read_header(line)
        elif "end" in line:
            self.ended = True
            # After a line that could not be read the counts would only be missed again.
            if not self.problems and canonical(line) != self._end():
                raise FieldError(("end", "iterations and sha256 are not those of the lines above: the file was cut or "
                                  f"edited; the line would be {self._end()}"))  # fmt: skip
        else:
            self._read_iteration(number - 2, line)

    def _read_header(self, line: dict[str, Any]) -> None:
        if line.pop("format", None) != FORMAT:
            raise FieldError(("", f'this is no log of decisions: the first line has to say "format":"{FORMAT}"'))
        if (version := line.pop("version", None)) != VERSION:
            raise FieldError(("version", f"this release of jouletrace reads version {VERSION} of logs of decisions "
                              f"(got {_short(version)})"))  # fmt: skip
        self.header = decode(_Header, line)
        if not 1 <= self.header.batch <= MAX_BATCH:
            raise FieldError(("batch", f"has 1 to {MAX_BATCH} samples (got {self.header.batch})"))

    def _read_iteration(self, index: int, line: dict[str, Any]) -> None:
        executed = line.get("executed")
        if unknown := [key for key in line if key not in _FIELDS]:
            hint = did_you_mean(unknown[0][:64], _FIELDS) or f"; there are {', '.join(_FIELDS)}"
            raise FieldError(("", f"the field {_short(unknown[0])} is unknown{hint}"))
        if executed is not True and executed is not False:
            raise FieldError(("executed", f"must be true or false (got {_short(executed)})"))
        if type(number := line.get("iteration")) is not int or number != index:
            raise FieldError(("iteration", f"iterations are numbered from 0 without gaps; this one is {index} "
                              f"(got {_short(number)})"))  # fmt: skip
        if not executed and len(line) > 2:
            raise FieldError(("", "a dropped iteration decides nothing else: it has only 'executed' and 'iteration'"))
        if index >= MAX_ITERATIONS or (index + 1) * len(self.header.units) > MAX_CELLS:
            self.full = True
            raise FieldError(("", f"there are more than {MAX_ITERATIONS} iterations, or {MAX_CELLS} times units"))
        self.executed.append(executed)
        if "samples" in line:
            self.samples.extend(_integers("samples", line["samples"], len(self.header.units), self.header.batch))
            self.sampled.append(index)
        for table in _COLUMNS:
            if table in line:
                self._read_table(index, table, line[table])

    def _read_table(self, index: int, table: str, rows: Any) -> None:
        if not isinstance(rows, list):
            raise FieldError((table, f"must be a list of rows (got {_short(rows)})"))
        into, given = self.tables[table], cast(list[Any], rows)
        self.rows += len(given)
        if self.rows > MAX_ROWS:
            self.full = True
            raise FieldError(("", f"there are more than {MAX_ROWS} rows of precision, predictor and density"))
        for position, row in enumerate(given):
            if table == "density":
                row = _numbered(f"density[{position}]", row)
            into.append(index)
            into.extend(_integers(f"{table}[{position}]", row, _COLUMNS[table] - 1, MAX_INTEGER))

    def _decisions(self) -> Decisions:
        header, units = self.header, len(self.header.units)
        executed = np.asarray(self.executed, dtype=np.bool_)
        samples = np.zeros((len(executed), units), dtype=np.int32)
        samples[executed] = header.batch
        told = np.asarray(self.samples, dtype=np.int32).reshape(len(self.sampled), units)
        samples[np.asarray(self.sampled, dtype=np.int64)] = told
        precision, predictor, density = (
            np.asarray(rows, dtype=np.int64).reshape(-1, _COLUMNS[table]) for table, rows in self.tables.items()
        )
        try:
            return Decisions(
                header.model, header.batch, header.units, header.layers,
                executed, samples, precision, predictor, density, header.producer,
            )  # fmt: skip
        except _Contradiction as error:
            lines = [1 if iteration is None else iteration + 2 for iteration, _ in error.found]
            texts = [text for _, text in error.found]
            raise TraceError([f"{self.name}:{i}: {t}" for i, t in zip(lines, texts, strict=True)]) from None


def _numbered(place: str, row: Any) -> Any:
    """A row of densities with the position of its word in KINDS in place of the word."""
    if not isinstance(row, list) or len(cast(list[Any], row)) != 4 or row[1] not in KINDS:
        raise FieldError((place, f"must be a layer, one of {', '.join(KINDS)}, and two counts (got {_short(row)})"))
    layer, word, *counts = cast(list[Any], row)
    return [layer, KINDS.index(word), *counts]


def _short(value: Any) -> str:
    return reprlib.repr(value)


def _integers(place: str, values: Any, count: int, largest: int) -> list[int]:
    """A list of so many integers from 0 to ``largest``."""
    row = cast(list[Any], values)
    if not isinstance(values, list) or len(row) != count:
        raise FieldError((place, f"must be a list of {count} (got {_short(row)})"))
    if set(map(type, row)) - {int} or not 0 <= min(row, default=0) <= max(row, default=0) <= largest:
        raise FieldError((place, f"must hold integers from 0 to {largest} (got {_short(row)})"))
    return row
