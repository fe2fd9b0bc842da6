"""Ops that were mapped before, by all that the mapping of an op looks at.

A network repeats few shapes, a step repeats them in its micro-batches, and a study maps nearly the same step again and
again. So what an op became is kept, and equal ops of this and of later steps become the same. What this process has not
mapped yet another one may have: what the ops of a step became is one blob on disk. The environment variable
``JOULETRACE_NO_CACHE=1`` turns it off; programs are the same, to the last command.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping

from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.designs import built, vector_part
from jouletrace.mapping.fusion import FusionPlan
from jouletrace.mapping.loops import unpadded
from jouletrace.mapping.program import OpProgram
from jouletrace.mapping.stored import packed, unpacked
from jouletrace.store.blobs import Key, Store, key
from jouletrace.store.settings import SWITCH, is_off, open_store
from jouletrace.trace.model import Attention, Conv, Gemm, Op, Tensor, Trace

__all__ = ["SWITCH", "Known", "Mapped", "content", "is_off", "mapped"]

# Of how many parts of hardwares ops are kept, and how many commands and places in sequences of each (some 100 MB).
BUILDS = 32
PLACES = 4_000_000
# Of how many steps the contents of ops are kept.
STEPS = 8


def content(op: Op, trace: Trace, fusion: FusionPlan, riders: Mapping[str, str]) -> Hashable:
    """All that the mapping of an op looks at, besides the hardware; ``riders`` maps each host to what rides on it.

    Names are left out: of the operands, only which reads are of one tensor. It is worked out once for each op of a
    step, and what is equal there is one object.
    """
    place = id(trace), id(fusion)
    known = _STEPS.get(place)
    if known is None:
        if is_off():
            return _content(op, trace, fusion, riders)
        while len(_STEPS) >= STEPS:
            del _STEPS[next(iter(_STEPS))]
        known = _STEPS[place] = _Contents(trace, fusion)
    found = known.of.get(op.name)
    if found is None or found[0] is not op:
        value = _Content(_content(op, trace, fusion, riders))
        found = known.of[op.name] = op, known.distinct.setdefault(value, value)
    return found[1]


class _Content:
    """A large value of many parts that is hashed once, and shown as what it is."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value = value
        self.hash = hash(value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Content) and self.hash == other.hash and self.value == other.value)


class _Contents:
    """What was worked out of a step and its fusion; they are held here, so that their identities stay theirs."""

    def __init__(self, trace: Trace, fusion: FusionPlan) -> None:
        self.trace, self.fusion = trace, fusion
        self.of: dict[str, tuple[Op, _Content]] = {}
        self.distinct: dict[_Content, _Content] = {}


_STEPS: dict[tuple[int, int], _Contents] = {}


def _content(op: Op, trace: Trace, fusion: FusionPlan, riders: Mapping[str, str]) -> Hashable:
    tensors = trace.tensor
    reads = [tensors[name] for name in op.reads]
    multiplies = isinstance(op.nest, Conv | Gemm | Attention)
    last = op.name
    while last in riders:
        last = riders[last]
    leaving = tensors[trace.op[last].writes[0]] if multiplies and last != op.name else None
    return (
        op.phase, op.nest, tuple(map(_operand, reads)), tuple([_operand(tensors[name]) for name in op.writes]),
        tuple([op.reads.index(name) for name in op.reads]), op.read_elements, op.read_bits, op.write_elements,
        tuple([fusion.reads_dram(op.name, name) for name in op.reads]),
        tuple([fusion.writes_dram(op.name, name) for name in op.writes]), op.name in fusion.hosts,
        tuple([unpadded(tensor, trace) for tensor in reads]) if multiplies else (),
        None if leaving is None else _operand(leaving),
    )  # fmt: skip


def _operand(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.bits, tensor.format, tensor.role, tensor.density


class Mapped:
    """The ops that were mapped for hardwares that are alike in a part; the least recently used ones go first.

    ``places`` is what it holds: places in chunks of sequences, and 32 for each command.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, OpProgram] = OrderedDict()
        self.places = 0

    def find(self, key: Hashable) -> OpProgram | None:
        """What an op of this content became."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def keep(self, key: Hashable, commands: OpProgram) -> None:
        """Remembers what an op of this content has become."""
        self._known[key] = commands
        self.places += _places(commands)
        while self.places > PLACES and len(self._known) > 1:
            self.places -= _places(self._known.popitem(last=False)[1])


def _places(commands: OpProgram) -> int:
    return sum(len(run.chunk) for run in commands.runs) + 32 * len(commands.commands)


_BUILDS: OrderedDict[str, Mapped] = OrderedDict()


def mapped(part: str) -> Mapped:
    """The ops that were mapped for hardwares that are alike in this part, as text."""
    found = _BUILDS.setdefault(part, Mapped())
    _BUILDS.move_to_end(part)
    while len(_BUILDS) > BUILDS:
        _BUILDS.popitem(last=False)
    return found


# Whether the array computes an op, and all that its mapping looks at besides the hardware.
Wanted = tuple[bool, Hashable]


class Known:
    """What the ops of a step become on a hardware, as far as this process or another one has mapped them.

    What memory lacks is looked for on disk, all of it in one blob, and what is mapped in its place is written there at
    the end. The blob is named by the parts of the hardware and by the contents that were lacking, as text.
    """

    def __init__(self, hardware: Hardware, wanted: Iterable[Wanted]) -> None:
        texts = vector_part(hardware), built(hardware)
        self._parts = tuple(map(mapped, texts))
        self._lacking = [each for each in dict.fromkeys(wanted) if self.find(each) is None]
        self._fresh: dict[Wanted, OpProgram] = {}
        self._missed: tuple[Store, Key] | None = None
        store = open_store() if self._lacking else None
        if store is not None:
            blob = key("mapped_ops", *(text.encode() for text in texts), repr(self._lacking).encode())
            self._missed = None if self._is_read(store, blob) else (store, blob)

    def find(self, wanted: Wanted) -> OpProgram | None:
        """What an op of this content became."""
        on_array, content = wanted
        return self._parts[on_array].find(content)

    def keep(self, wanted: Wanted, body: OpProgram) -> None:
        """Remembers what an op of this content has become."""
        on_array, content = wanted
        self._parts[on_array].keep(content, body)
        self._fresh[wanted] = body

    def write(self) -> None:
        """Leaves what was lacking to other processes, once all of it has been mapped."""
        if self._missed is None or any(each not in self._fresh for each in self._lacking):
            return
        data = packed([self._fresh[each] for each in self._lacking])
        if data is not None:
            store, blob = self._missed
            store.put(blob, data)

    def _is_read(self, store: Store, blob: Key) -> bool:
        """Whether all that is lacking was on disk; it is in memory then."""
        data = store.get(blob)
        if data is None:
            return False
        try:
            bodies = unpacked(data)
        except ValueError:
            bodies = ()
        if len(bodies) != len(self._lacking):
            store.discard(blob)
            return False
        for (on_array, content), body in zip(self._lacking, bodies, strict=True):
            self._parts[on_array].keep(content, body)
        return True
