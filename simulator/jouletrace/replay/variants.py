"""What each op of a step may be: itself, or what it becomes when fewer samples run the unit that it belongs to.

One op of every distinct shape is mapped for every number of samples that occurs, on the tiles of the whole op.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.fusion import NARROWING, FusionPlan, as_stored, plan_fusion
from jouletrace.mapping.memory import content
from jouletrace.mapping.program import OpProgram
from jouletrace.mapping.remembered import remembered
from jouletrace.mapping.step import map_step, riders
from jouletrace.trace.counting import bit_operations_of
from jouletrace.trace.model import Elementwise, Op, Trace
from jouletrace.trace.units import excerpt, with_samples

__all__ = ["Options", "options_of"]


@remembered(4)
def options_of(whole: Trace, step: Trace, units: tuple[str, ...], hardware: Hardware) -> Options:
    """The options of a step whose ``units`` may be skipped; ``whole`` is the step as it is executed."""
    return Options(whole, step, units, hardware)


class Options:
    """The variants of every op, and the op that each stands for; runs add what they need and others have not added."""

    def __init__(self, whole: Trace, step: Trace, units: Sequence[str], hardware: Hardware) -> None:
        self.whole, self.step, self.units = whole, step, units
        self.hardware = hardware
        self.fusion: FusionPlan = plan_fusion(whole, hardware)
        self.program = map_step(whole, hardware)
        # Equal op programs are one object, so that they are compared once.
        self._bodies: dict[OpProgram, OpProgram] = {}
        self.variants: dict[str, list[OpProgram]] = {
            op.name: [self._bodies.setdefault(body, body)]
            for op, body in zip(whole.ops, self.program.bodies, strict=True)
        }
        # MACs and bit-operations of the variants.
        self.work: dict[str, list[tuple[int, int]]] = {op.name: [_work(whole, op)] for op in whole.ops}
        # Which variant an op is when so many samples run its unit; 0 if it stays as it is.
        self.at: dict[tuple[str, int], int] = {}
        # Op programs that were mapped already, by all that a mapping looks at.
        self._mapped: dict[object, OpProgram] = {}
        self.added: tuple[int, ...] = ()
        base, rides = as_stored(whole, self.fusion), riders(self.fusion)
        # Ops that differ alike for every number of samples; the first of each with its surroundings.
        self._alike: tuple[tuple[str, ...], ...] | None = None
        self._examples: tuple[str, ...] = ()
        self._contents = {op.name: content(op, base, self.fusion, rides) for op in whole.ops}

    def add(self, parts: Sequence[int]) -> None:
        """Has variants for these numbers of samples, in ascending order; the extremes of all are checked as steps."""
        extremes = {min((*parts, *self.added), default=0), max((*parts, *self.added), default=0)}
        for n in parts:
            if n not in self.added:
                self._add(n, checked=n in extremes)
                self.added += (n,)

    def _add(self, n: int, *, checked: bool) -> None:
        """The ops that differ from the whole ones when n samples run every unit."""
        samples = dict.fromkeys(self.units, n)
        if checked or self._alike is None:
            trace = with_samples(self.step, samples)
        else:
            trace = excerpt(self.step, samples, self._examples)
        fusion = plan_fusion(trace, self.hardware, base=self.fusion)
        stored, rides = as_stored(trace, fusion), riders(fusion)
        if self._alike is None:
            self._alike = self._grouped(trace, stored, fusion)
            self._examples = self._surrounded(alike[0] for alike in self._alike)
        firsts = [trace.op[alike[0]] for alike in self._alike]
        keys = [(content(op, stored, fusion, rides), self._contents[op.name]) for op in firsts]
        unmapped = {key: op for key, op in zip(keys, firsts, strict=True) if key not in self._mapped}
        carried = _with_hosts(unmapped.values(), trace, fusion)
        program = map_step(trace, self.hardware, base=self.whole, ops=carried)
        mapped = dict(zip((op.name for op in carried), program.bodies, strict=True))
        for key, op in unmapped.items():
            body = mapped[op.name]
            self._mapped[key] = self._bodies.setdefault(body, body)
        for key, first, alike in zip(keys, firsts, self._alike, strict=True):
            body, work = self._mapped[key], _work(trace, first)
            for name in alike:
                self.at[name, n] = len(self.variants[name])
                self.variants[name].append(body)
                self.work[name].append(work)

    def _grouped(self, trace: Trace, stored: Trace, fusion: FusionPlan) -> tuple[tuple[str, ...], ...]:
        """Names of the ops that differ when some samples run every unit, those together that differ alike.

        ``trace`` is the step for one such number of samples. Every count of an op, and of what it touches, is a
        constant and a share n/B, or the smaller of two such sums: those of two numbers of samples, n and B, give those
        of all others. What rides is the same for all: where a ride needs two counts to be equal, they are for B, where
        it rides.
        """
        rides = riders(fusion)
        alike: dict[object, list[str]] = {}
        for op in trace.ops:
            now, whole = content(op, stored, fusion, rides), self._contents[op.name]
            if now != whole:
                alike.setdefault((now, whole, trace.bits_read(op)), []).append(op.name)
        return tuple(map(tuple, alike.values()))

    def _surrounded(self, names: Iterable[str]) -> tuple[str, ...]:
        """These ops and what a mapping looks at: what carries them, what rides on them, what narrows their operands."""
        ops = _with_hosts((self.whole.op[name] for name in names), self.whole, self.fusion)
        found = {op.name for op in ops}
        for op in ops:
            writers = [self.whole.writer[name] for name in op.reads if name in self.whole.writer]
            narrowing = [writer for writer in writers if writer.name not in found and _narrows(writer)]
            found.update(writer.name for writer in narrowing)
            ops += narrowing
        return tuple(op.name for op in self.whole.ops if op.name in found)


def _with_hosts(ops: Iterable[Op], trace: Trace, fusion: FusionPlan) -> list[Op]:
    """These ops and all that ride with them, in the order of the step."""
    names = {op.name for op in ops}
    for links in (fusion.hosts, riders(fusion)):
        for name in tuple(names):
            while (name := links.get(name, "")) and name not in names:
                names.add(name)
    return [op for op in trace.ops if op.name in names]


def _work(trace: Trace, op: Op) -> tuple[int, int]:
    return op.macs, bit_operations_of(trace, op)


def _narrows(op: Op) -> bool:
    return isinstance(op.nest, Elementwise) and op.nest.function in NARROWING
