"""Trace files: JSON lines, usually compressed, readable by people and safe to read from strangers.

The format is described in docs/trace.md. One trace has one sequence of bytes (:func:`dump`), whose sha256 is
its identity (:func:`digest`); the gzip around it carries neither a time nor a name. The reader trusts nothing
that it reads: size, ratio, line length and depth are bounded, and every edge is checked against the ops.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, cast

from jouletrace.errors import TraceError, UsageError, did_you_mean
from jouletrace.files import write_file
from jouletrace.resources import folder
from jouletrace.trace.check import Finding, check, findings
from jouletrace.trace.codec import MAX_PROBLEMS, FieldError, canonical, decode, encode, field_names, parse
from jouletrace.trace.graph import data_dependencies
from jouletrace.trace.line_file import BytesError, compress, inflate, open_at_once, require_regular
from jouletrace.trace.line_file import lines as lines_of
from jouletrace.trace.model import Header, Op, Tensor, Trace

__all__ = [
    "FORMAT",
    "VERSION",
    "digest",
    "dump",
    "list_traces",
    "load_trace",
    "parse_trace",
    "read_trace",
    "write_trace",
]

FORMAT = "jouletrace-trace"
VERSION = "1.1"
SUFFIXES = (".jsonl.gz", ".jsonl")

MAX_NODES = 5_000_000
# Fields of an op that version 1.0 does not have, by the version that added them.
_ADDED = (("1.1", ("read_bits", "write_elements")),)


# -- writing


def dump(trace: Trace) -> bytes:
    """The canonical bytes of a trace, uncompressed.

    Raises TraceError if a field of ``extensions`` is not canonical JSON. The trace is not checked otherwise.
    """
    lines = [canonical(_header(trace))]
    lines += [canonical({"tensor": encode(tensor)}) for tensor in trace.tensors]
    edges = data_dependencies(trace)
    lines += [canonical({"op": encode(op) | {"edges": e}}) for op, e in zip(trace.ops, edges, strict=True)]
    body = "\n".join(lines).encode() + b"\n"
    return body + canonical({"end": _end(trace, hashlib.sha256(body).hexdigest())}).encode() + b"\n"


def _header(trace: Trace) -> dict[str, Any]:
    header = {"format": FORMAT, "version": _version(trace.ops), **encode(trace.header)}
    for key, text in trace.extensions:
        try:
            header[key] = parse(text)
        except FieldError as error:
            raise TraceError(f"The extension {key!r} of the header cannot be written: {error}") from None
    return header


def _version(ops: Iterable[Op]) -> str:
    """The oldest version that has all fields these ops use: what uses no newer one keeps its bytes."""
    used = {name for _, names in _ADDED for op in ops for name in names if getattr(op, name)}
    return next((version for version, names in reversed(_ADDED) if not used.isdisjoint(names)), "1.0")


def _numbers(version: str) -> list[int]:
    """A version for comparison."""
    return [int(number) for number in version.split(".")]


def _end(trace: Trace, sha256: str) -> dict[str, Any]:
    return {"tensors": len(trace.tensors), "ops": len(trace.ops), "sha256": sha256}


def digest(trace: Trace) -> str:
    """The identity of a trace: the sha256 of its canonical bytes, as 64 hexadecimal digits."""
    known = trace.__dict__.get("_digest")  # kept as a cached property of the frozen trace
    if isinstance(known, str):
        return known
    return trace.__dict__.setdefault("_digest", hashlib.sha256(dump(trace)).hexdigest())


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Writes a checked trace, compressed unless the name ends in ``.jsonl``.

    The file is written beside its place and renamed, so that an error leaves what was there untouched.
    Raises TraceError for a trace that breaks a rule, UsageError for a place that cannot be written.
    """
    check(trace)
    data = dump(trace)
    write_file(path, data if os.fspath(path).endswith(".jsonl") else compress(data))


# -- finding


def list_traces() -> tuple[str, ...]:
    """The names of the shipped traces, sorted."""
    found = {_stem(path.name) for path in folder("traces").iterdir() if path.name.endswith(SUFFIXES)}
    return tuple(sorted(found))


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".jsonl")


def load_trace(name: str | os.PathLike[str]) -> Trace:
    """A shipped trace by its name, or a trace file by its path.

    A text with a folder in it or one of the suffixes ``.jsonl.gz`` and ``.jsonl`` is a path. Raises
    UsageError for an unknown name, TraceError for a file that cannot be read.
    """
    text = os.fspath(name)
    if isinstance(name, os.PathLike) or text.endswith(SUFFIXES) or os.sep in text or "/" in text:
        return read_trace(text)
    for suffix in SUFFIXES:
        if (path := folder("traces") / f"{text}{suffix}").is_file():
            status = path.stat()
            return _shipped(os.fspath(path), status.st_mtime_ns, status.st_size)
    known = list_traces()
    raise UsageError(
        f"there is no shipped trace {text!r}; shipped are {', '.join(known) or 'none'}, and a file is named "
        f"with its suffix, as in ./{text}.jsonl.gz{did_you_mean(text, known)}"
    )


@lru_cache(maxsize=4)
def _shipped(path: str, mtime_ns: int, size_bytes: int) -> Trace:
    """A shipped trace, read once as long as its file stays what it was: a result asks for it to compare its own."""
    return read_trace(path)


# -- reading


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """The trace in a file, compressed or not.

    Raises TraceError with up to 20 problems of the file, each as ``file:line: path.to.field: sentence``.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise TraceError(f"{name!r}: a path cannot hold a NUL character")
    parser = _Parser(name)
    try:
        with open(path, "rb", opener=open_at_once) as file:
            require_regular(file)
            for _ in inflate(file):
                pass  # a bomb or a damaged file is known before anything is parsed
            file.seek(0)
            parser.read(lines_of(inflate(file)))
        return parser.trace()
    except BytesError as error:
        raise TraceError(f"{name}: {error}") from None
    except OSError as error:
        raise TraceError(f"{name}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise TraceError(f"{name}: does not fit into memory") from None


def parse_trace(data: bytes, name: str) -> Trace:
    """The trace of the bytes that :func:`dump` makes; ``name`` stands in front of errors, as for a file."""
    parser = _Parser(name)
    parser.read(lines_of([data]))
    return parser.trace()


class _Parser:
    """Takes the lines of one file and collects what they say and every problem, with its line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[str] = []
        self.header: Header | None = None
        self.extensions: tuple[tuple[str, str], ...] = ()
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.edges: list[list[int]] = []
        self.places: dict[str, list[int]] = {"header": [1], "tensor": [], "op": []}
        self.sha = hashlib.sha256()  # of the lines so far
        self.ended = False

    def add(self, line: int, *sentences: str) -> None:
        self.problems += [f"{self.name}:{line}: {sentence}" for sentence in sentences]
        if len(self.problems) >= MAX_PROBLEMS:
            raise TraceError(self.problems[:MAX_PROBLEMS])

    def read(self, lines: Iterator[bytes]) -> None:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if self.ended:
                    self.add(number, "there is text after the end line")
                    break
                self._line(number, line)
                self.sha.update(line)
                if number == 1 and self.problems:
                    break  # whatever follows, it is not a trace of this version
                if number > MAX_NODES + 2:
                    raise BytesError(f"there are more than {MAX_NODES} tensors and ops")
        except BytesError as error:
            self.add(number + 1, str(error))
            return
        if not number:
            self.add(1, "the file is empty")
        elif not self.ended and not self.problems:
            self.add(number, "the end line is missing: the file is cut off")

    def _line(self, number: int, line: bytes) -> None:
        try:
            value = parse(line[:-1].decode())
        except UnicodeDecodeError as error:
            self.add(number, f"this is not UTF-8 text (byte {error.start + 1} of the line)")
            return
        except FieldError as error:
            self.add(number, *error.sentences())
            return
        except RecursionError:
            self.add(number, "the JSON is nested too deep")
            return
        place = ""
        try:
            if number == 1:
                self._read_header(value)
                return
            place, body = _tagged(value)
            if place == "tensor":
                self._read_tensor(number, body)
            elif place == "op":
                self._read_op(number, body)
            else:
                self._read_end(body)
        except FieldError as error:
            self.add(number, *error.sentences(place))

    def _read_header(self, value: Any) -> None:
        if not isinstance(value, dict) or cast(dict[str, Any], value).get("format") != FORMAT:
            raise FieldError(("", f'this is no trace: the first line has to say "format":"{FORMAT}"'))
        given = cast(dict[str, Any], value)
        version = given.get("version")
        match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", version) if isinstance(version, str) else None
        if match is None:
            raise FieldError(("version", 'must be a version such as "1.0"'))
        if match[1] != VERSION.partition(".")[0]:
            raise FieldError(("version", f"the file has version {version}; this release of jouletrace reads "
                              "version 1.x, so another one is needed"))  # fmt: skip
        known = field_names(Header)
        self.header = decode(Header, {k: v for k, v in given.items() if k in known})
        newer = {k: v for k, v in given.items() if k not in known and k != "format"}
        self.extensions = tuple((key, canonical(newer[key])) for key in sorted(newer))

    def _read_tensor(self, number: int, body: Any) -> None:
        if self.ops:
            raise FieldError(("", "tensors have to stand before all ops"))
        self.tensors.append(decode(Tensor, body))
        self.places["tensor"].append(number)

    def _read_op(self, number: int, body: Any) -> None:
        edges: Any = None
        if isinstance(body, dict):
            body = dict(cast(dict[str, Any], body))
            edges = body.pop("edges", None)
        op = decode(Op, body)
        if not isinstance(edges, list) or any(type(e) is not int for e in cast(list[Any], edges)):
            raise FieldError(("edges", "must list the positions of the ops whose results are read"))
        self.ops.append(op)
        self.edges.append(cast(list[int], edges))
        self.places["op"].append(number)

    def _read_end(self, body: Any) -> None:
        self.ended = True
        if self.problems:
            return  # a line that could not be read would only be missed again here
        expected = {"ops": len(self.ops), "sha256": self.sha.hexdigest(), "tensors": len(self.tensors)}
        if body != expected:
            raise FieldError(("", "counts and sha256 are not those of the lines above: the file was cut or "
                              f"edited; they would be {canonical(expected)}"))  # fmt: skip

    def trace(self) -> Trace:
        """The trace, after the rules that look beyond one line."""
        if not self.problems and self.header is not None:
            # A version says nothing unless it is newer than the fields ask for; then it stays with the file.
            needed = _numbers(_version(self.ops))
            kept = tuple(e for e in self.extensions if e[0] != "version" or _numbers(parse(e[1])) > needed)
            trace = Trace(self.header, tuple(self.tensors), tuple(self.ops), kept)
            self._check_edges(trace)
            for finding in findings(trace, typed=True):
                self.add(self._place(finding), finding.sentence)
            if not self.problems:
                return trace
        raise TraceError(self.problems)

    def _check_edges(self, trace: Trace) -> None:
        for index, (given, wanted) in enumerate(zip(self.edges, data_dependencies(trace), strict=True)):
            if given != list(wanted):
                self.add(self.places["op"][index], "op.edges: do not follow from what op "
                         f"{trace.ops[index].name!r} reads; they have to be {canonical(wanted)}")  # fmt: skip

    def _place(self, finding: Finding) -> int:
        return self.places[finding.kind][finding.index]


def _tagged(value: Any) -> tuple[str, Any]:
    """What a line after the first one is, and what it says."""
    if isinstance(value, dict) and len(cast(dict[str, Any], value)) == 1:
        (tag, body), = cast(dict[str, Any], value).items()
        if tag in ("tensor", "op", "end"):
            return tag, body
        raise FieldError(("", f"a line holds a tensor, an op or the end, not {tag[:64]!r}"
                          f"{did_you_mean(tag[:64], ('tensor', 'op', 'end'))}"))  # fmt: skip
    raise FieldError(("", 'a line has to be {"tensor":…}, {"op":…} or {"end":…}'))
