"""A step without some of its residual units: what goes, and what is read in its place.

    out = shortcut + F(x)       becomes       shortcut, read wherever out was
    gx  = gout + gF             becomes       gout, read wherever gx was

The ops of a unit go, and the updates of parameters that are left without a gradient. Running statistics,
parameters and optimizer states of the unit pass through the step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from types import MappingProxyType

from jouletrace.errors import RewriteError, did_you_mean
from jouletrace.trace.adjoint import Adjoint, adjoint
from jouletrace.trace.check import is_final, problems, waits_for
from jouletrace.trace.graph import successors
from jouletrace.trace.model import Elementwise, Op, Tensor, Trace
from jouletrace.trace.prune import prune
from jouletrace.trace.residual import Unit, residual_units

__all__ = ["Skip", "choose", "skips", "without_units"]


@dataclass(frozen=True)
class Skip:
    """What skipping does to a step: the ops that go, and for each result of theirs that a remaining op reads the
    tensor that it reads in its place."""

    removed: frozenset[str]
    instead: Mapping[str, str]


def without_units(trace: Trace, names: Collection[str]) -> Trace:
    """The step of a batch that skips these units: exactly the application of :func:`skips`.

    Every other op is equal except for the names that it reads and waits for: who reads the output of a unit waits
    for the decision that the unit is skipped. Skipping one unit after the other is skipping them at once.

    Raises RewriteError for names of no unit and where something outside a unit depends on its gradients in
    a way that has no meaning without them.

    >>> from jouletrace.trace.io import load_trace
    >>> step = load_trace("resnet20-cifar10-b32")
    >>> smaller = without_units(step, ["layer1.1"])
    >>> len(step.ops) - len(smaller.ops), smaller.op["layer1.2.conv1:forward"].reads[0]
    (22, 'layer1.0.relu:forward#2.y')
    """
    units = choose(residual_units(trace), names)
    return _skipped(trace, _Removal(trace, units)) if units else trace


def skips(trace: Trace, *units: Unit, checked: bool = True) -> Skip:
    """What skipping these units together removes and substitutes; raises as :func:`without_units` does.

    ``checked=False`` leaves out the rules of :mod:`jouletrace.trace.check`, for one unit of several of which all
    together are checked.

    >>> from jouletrace.trace.io import load_trace
    >>> step = load_trace("resnet20-cifar10-b32")
    >>> dict(skips(step, residual_units(step)[1]).instead)["layer1.1.relu:forward#2.y"]
    'layer1.0.relu:forward#2.y'
    """
    removal = _Removal(trace, units)
    if checked:
        _skipped(trace, removal)
    removed = removal.removed()
    substituted = {
        old: removal.resolve(old) for old in removal.instead
        if any(reader.name not in removed for reader in trace.readers.get(old, ()))
    }  # fmt: skip
    return Skip(removed, MappingProxyType(substituted))


def choose(units: Iterable[Unit], names: Iterable[str]) -> tuple[Unit, ...]:
    """The units of these names, in forward order; raises RewriteError with every name that is none."""
    known = {unit.name: unit for unit in units}
    wanted = dict.fromkeys(names)
    if unknown := [name for name in wanted if name not in known]:
        raise RewriteError([f"{name!r} is no residual unit of this step{did_you_mean(name, tuple(known))}; it has "
                            f"{len(known)}." for name in unknown])  # fmt: skip
    return tuple(unit for name, unit in known.items() if name in wanted)


def _skipped(trace: Trace, removal: _Removal) -> Trace:
    smaller = prune(removal.apply())
    if found := problems(smaller):
        raise RewriteError([f"{removal.what}: {sentence}" for sentence in found])
    return smaller


@dataclass(frozen=True, eq=False)
class _Index:
    """What every removal asks of a step: the place of each op, the version that each new one follows, the ops that wait
    for each op, and ops that no final value depends on."""

    place: Mapping[str, int]
    before: Mapping[str, str]
    awaiting: Mapping[str, Sequence[str]]
    idle: frozenset[str]


def _index(trace: Trace) -> _Index:
    known = trace.__dict__.get("_index")  # kept as a cached property of the frozen trace
    if isinstance(known, _Index):
        return known
    awaiting: dict[str, list[str]] = {}
    for op in trace.ops:
        for name in waits_for(op):
            awaiting.setdefault(name, []).append(op.name)
    place = {op.name: i for i, op in enumerate(trace.ops)}
    before = {new: old for old, new in successors(trace).items()}
    idle = frozenset(place).difference(op.name for op in prune(trace).ops)
    return trace.__dict__.setdefault("_index", _Index(place, before, awaiting, idle))


class _Queue:
    """Names of ops, each once, the first of the step first, or with ``last`` the last; more may come while it runs."""

    def __init__(self, trace: Trace, index: _Index, *, last: bool = False) -> None:
        self.trace, self.place, self.sign = trace, index.place, -1 if last else 1
        self.waiting: list[int] = []
        self.known = set[str]()

    def add(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.known:
                self.known.add(name)
                heappush(self.waiting, self.sign * self.place[name])

    def __iter__(self) -> Iterator[Op]:
        while self.waiting:
            yield self.trace.ops[self.sign * heappop(self.waiting)]


class _Removal:
    """Which ops go with some units, and what stands for what."""

    def __init__(self, trace: Trace, units: tuple[Unit, ...]) -> None:
        self.trace, self.index = trace, _index(trace)
        self.what = f"Without {', '.join(unit.name for unit in units)} {trace.header.name} makes no sense"
        self.adds = {unit.output: trace.op[unit.add] for unit in units}
        self.instead: dict[str, str] = {}
        pairs = adjoint(trace)
        ops = (name for unit in units for name in (*unit.forward, *unit.backward))
        self.dead = {name for name in ops if name not in pairs.accumulates}
        for unit in units:
            self._boundary(pairs, unit)
        self._follow(pairs)

    def resolve(self, name: str) -> str:
        """The tensor that is read where ``name`` was; the same name if it is still there."""
        while name in self.instead:
            name = self.instead[name]
        return name

    def _boundary(self, pairs: Adjoint, unit: Unit) -> None:
        self.instead[unit.output] = unit.shortcut
        total = self.trace.op[unit.add].writes[0]
        inner, outer = pairs.gradient.get(total), pairs.gradient.get(unit.output)
        if inner is not None and outer is not None and inner != outer:  # a relu behind the add
            self.instead[inner] = outer

    def _follow(self, pairs: Adjoint) -> None:
        """Ops that have lost what they work on go too; a sum with one operand left is that operand."""
        wrong: list[str] = []
        queue = _Queue(self.trace, self.index)
        queue.add(self.dead)
        for op in queue:
            if op.name not in self.dead:
                lost = [name for name in op.reads if self._gone(name)]
                if lost and not self._goes(pairs, op, lost):
                    wrong.append(f"{self.what}: op {op.name!r} reads {lost[0]!r}, which goes with a unit.")
            if op.name in self.dead:
                before = self.index.before
                self.instead |= {new: before[new] for new in op.writes if new in before}
                if op.name in pairs.copies and len(op.writes) == 1 and not self._gone(op.reads[0]):
                    self.instead[op.writes[0]] = op.reads[0]
                queue.add(self._consumers(op))
            elif op.gate is not None and op.gate.decision in self.dead:
                wrong.append(f"{self.what}: op {op.name!r} is gated by {op.gate.decision!r}, which goes with a unit.")
        if wrong:
            raise RewriteError(wrong)

    def _consumers(self, op: Op) -> Iterator[str]:
        """Who reads what an op writes, or waits for it."""
        yield from (reader.name for name in op.writes for reader in self.trace.readers.get(name, ()))
        yield from self.index.awaiting.get(op.name, ())

    def _sources(self, op: Op) -> Iterator[str]:
        """Who writes what an op reads, or is awaited by it."""
        yield from (self.trace.writer[name].name for name in op.reads if name in self.trace.writer)
        yield from waits_for(op)

    def _gone(self, name: str) -> bool:
        writer = self.trace.writer.get(self.resolve(name))
        return writer is not None and writer.name in self.dead

    def _goes(self, pairs: Adjoint, op: Op, lost: list[str]) -> bool:
        """Can this op go, or be replaced by what it still reads?"""
        kept = [name for name in op.reads if name not in lost]
        if op.name in pairs.accumulates and isinstance(op.nest, Elementwise) and len(kept) == 1:
            self.instead[op.writes[0]] = kept[0]
            self.dead.add(op.name)
            return True
        gradients = {n for n in op.reads if self.trace.tensor[n].role in ("gradient", "weight_gradient")}
        if op.phase == "forward" or not gradients <= {*lost}:
            return False
        self.dead.add(op.name)
        return True

    # -- the step that is left

    def _changed(self) -> Mapping[str, Op]:
        """The ops that stay and change: what they read or wait for has gone."""
        names = {name for gone in self.dead for name in self._consumers(self.trace.op[gone])} - self.dead
        return {name: self._op(self.trace.op[name]) for name in names}

    def removed(self) -> frozenset[str]:
        """The ops that go: those that are dead, and those that nothing needs without them (as :func:`prune` finds)."""
        changed, gone = self._changed(), set(self.dead)
        consumers: dict[str, list[str]] = {}  # who needs each op, now that some have changed
        queue = _Queue(self.trace, self.index, last=True)
        queue.add(self.index.idle)
        for name, op in changed.items():
            for source in self._sources(op):
                consumers.setdefault(source, []).append(name)
        for name in self.dead:
            queue.add(self._sources(self.trace.op[name]))

        def needs(name: str, source: Op) -> bool:
            op = changed.get(name, self.trace.op[name])
            return name not in gone and (not set(source.writes).isdisjoint(op.reads) or source.name in waits_for(op))

        for op in queue:
            needed = any(is_final(self.trace, self.trace.tensor[name]) for name in op.writes) or any(
                needs(name, op) for name in (*self._consumers(op), *consumers.get(op.name, ()))
            )
            if not needed and op.name not in gone:
                gone.add(op.name)
                queue.add(self._sources(changed.get(op.name, op)))
        return frozenset(gone)

    def apply(self) -> Trace:
        changed = self._changed()
        ops = tuple(changed.get(op.name, op) for op in self.trace.ops if op.name not in self.dead)
        written = {name for op in self.trace.ops if op.name in self.dead for name in op.writes}
        kept = [t for t in self.trace.tensors if t.name not in written]
        saved = _read_by_backward(ops)
        once = _read_by_backward(self.trace.ops)
        return replace(self.trace, tensors=tuple(_saved(t, once, saved) for t in kept), ops=ops)

    def _op(self, op: Op) -> Op:
        reads = tuple(self.resolve(name) for name in op.reads)
        waits = {name for before in op.after for name in self._alive(before)}
        waits |= {name for read in op.reads for name in self._decisions(read)} if op.phase == "forward" else set()
        after = op.after if waits == {*op.after} else tuple(sorted(waits, key=self.index.place.__getitem__))
        if (reads, after) == (op.reads, op.after):
            return op
        sizes = [self.trace.tensor[name].elements for name in reads]
        touched = tuple(map(min, self.trace.elements_read(op), sizes))
        widths = [self.trace.tensor[name].bits for name in reads]
        bits = tuple(map(min, op.read_bits, widths))
        return replace(op, reads=reads, after=after, read_elements=() if list(touched) == sizes else touched,
                       read_bits=() if list(bits) == widths else bits)  # fmt: skip

    def _alive(self, name: str) -> Iterable[str]:
        """The op itself, or what it waited for if it goes."""
        if name not in self.dead:
            yield name
        else:
            for before in waits_for(self.trace.op[name]):
                yield from self._alive(before)

    def _decisions(self, name: str) -> Iterable[str]:
        """What has to be known before the shortcut may be read as the output of a skipped unit."""
        while name in self.instead:
            add = self.adds.get(name)
            if add is not None:
                for before in waits_for(add):
                    yield from self._alive(before)
            name = self.instead[name]


def _read_by_backward(ops: Iterable[Op]) -> set[str]:
    return {name for op in ops if op.phase.startswith("backward") for name in op.reads}


def _saved(tensor: Tensor, once: set[str], now: set[str]) -> Tensor:
    """Only where reading by the backward pass has changed does the mark of a saved tensor."""
    if (tensor.name in once) == (tensor.name in now) or tensor.role in ("gradient", "weight_gradient"):
        return tensor
    return replace(tensor, saved=tensor.name in now)
