"""How load-compute-store groups follow one another: synchronous ping-pong, or free-running double buffers.

The mapping describes *what* a channel-parallel array does as reduction loops of steps; an issuer turns them into
commands. In both manners a load takes a free slot of its buffer and a compute frees it. In the synchronous manner a
sequencer also swaps all buffers at once, stage by stage, as the control code of an HLS design does:

    load 0 | load 1, compute 0 | … | compute last, store of the loop before | load 0 of the next loop | … | last store

so nothing of the next reduction loop is loaded while this one computes. Free-running, every engine goes on as soon
as its own slots and data allow, into the next loop and the next op.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import Action, Sequence32
from jouletrace.mapping.transfer import Memory, Transfer

__all__ = ["GRADIENT", "WEIGHT_TILE", "Issuer", "Loop", "Step", "issuer"]

# Slots of the weight buffer: kernel gradients that are accumulated, and tiles of weights that stream (a ping-pong
# pair, whatever the number of copies, since the tile search sees to it that two fit).
GRADIENT = "gradient"
WEIGHT_TILE = "weight tile"


@dataclass(frozen=True, eq=False)
class Step:
    """One load-compute group, and the store of what it completes.

    ``occupies`` are buffers whose slot the first load (or, for a buffer without loads, the compute) takes;
    ``releases`` those whose slot is free after the compute. ``store`` frees the slot of ``stored_from`` if
    ``store_releases``. Every load is awaited by this step's compute.
    """

    loads: tuple[Transfer, ...]
    cycles: int
    counts: tuple[tuple[Action, int], ...]
    occupies: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    store: Transfer | None = None
    stored_from: str = ""
    store_releases: bool = True


@dataclass(frozen=True, eq=False)
class Loop:
    """A reduction loop. ``serial``: each step's store is a stage of its own (synchronous issue only)."""

    steps: tuple[Step, ...]
    serial: bool = False


class Issuer(ABC):
    """Emits bodies of loops; a pending store is issued where the manner of issue puts it."""

    def __init__(self, hardware: Hardware, builder: ProgramBuilder, memory: Memory) -> None:
        self.hardware, self.builder, self.memory = hardware, builder, memory
        self.array = builder.engine("array", "array")
        # State between loops: what must be issued later. Equal states give equal commands, so a
        # repeated body is emitted twice and the second time stands for all others.
        self._pending: tuple[Step, ...] = ()
        self._memo: dict[tuple[Loop, object], tuple[Sequence32, object]] = {}
        # Credits of pools that this op has asked for: one each.
        self._credits: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def emit(self, body: list[Loop], times: int = 1) -> None:
        """Emits the body (the loops of one image) ``times`` times."""
        if times > 0:
            self.builder.emit(self._body(body))
        if times > 1:
            chunk = self._body(body)
            self.builder.emit(chunk, times - 1)

    def finish(self) -> None:
        """Issues what is still pending at the end of the op, and forgets its commands."""
        self.builder.emit(self._drain())
        self._pending = ()
        self._memo.clear()
        self._credits.clear()

    def _state(self) -> object:
        return self._pending

    def _restore(self, state: object) -> None:
        self._pending = state  # type: ignore[assignment]

    def _body(self, body: list[Loop]) -> Sequence32:
        chunks: list[Sequence32] = []
        for loop in body:
            key = (loop, self._state())
            if key not in self._memo:
                chunk = np.array(self._loop(loop), dtype=np.int32)
                self._memo[key] = (chunk, self._state())
            chunk, state = self._memo[key]
            self._restore(state)
            chunks.append(chunk)
        chunks.append(np.array(self._end_of_image(), dtype=np.int32))
        return np.concatenate(chunks)

    @abstractmethod
    def _loop(self, loop: Loop) -> list[int]:
        """The commands of one reduction loop, in program order."""

    def _end_of_image(self) -> list[int]:
        """Commands that close an image; none where stores may overlap the next image."""
        return []

    @abstractmethod
    def _drain(self) -> list[int]:
        """The commands that end an op."""

    def _slots(self, slot: str) -> int:
        """The pool of free slots: of a buffer's copies, or of what the weight buffer holds when none stay."""
        if slot == WEIGHT_TILE:
            return self.builder.pool(f"{slot}.free", 2, "weight")
        buffer = "weight" if slot == GRADIENT else slot
        return self.builder.pool(f"{slot}.free", self.hardware.buffers[buffer].copies, buffer)

    def _filled(self, buffer: str) -> int:
        return self._one("{}.full", buffer)[0][0]

    def _one(self, pool: str, of: str) -> list[tuple[int, int]]:
        """One credit of a hand-shake, to take or to give."""
        known = self._credits.get((pool, of))
        if known is None:
            known = self._credits[pool, of] = [(self.builder.pool(pool.format(of), 0), 1)]
        return known

    def _load(self, step: Step, load: Transfer, go: list[tuple[int, int]], done: list[tuple[int, int]]) -> int:
        slots = (load.buffer, WEIGHT_TILE) if load.buffer == "weight" else (load.buffer,)
        takes = [(self._slots(slot), 1) for slot in slots if slot in step.occupies]
        return self.memory.command(
            f"load {load.buffer}", load, go + takes, [(self._filled(load.buffer), 1), *done]
        )

    def _compute(self, step: Step, go: list[tuple[int, int]], done: list[tuple[int, int]]) -> int:
        loaded = {load.buffer for load in step.loads} | {WEIGHT_TILE}
        takes = [(self._filled(load.buffer), 1) for load in step.loads]
        takes += [(self._slots(b), 1) for b in step.occupies if b not in loaded]
        gives = [(self._slots(b), 1) for b in step.releases]
        if step.store is not None:
            gives.append((self._filled(step.stored_from), 1))
        return self.builder.command(
            "compute", [(self.array, step.cycles)], go + takes, gives + done, counts=step.counts
        )

    def _store(self, step: Step, go: list[tuple[int, int]], done: list[tuple[int, int]]) -> int:
        assert step.store is not None
        gives = [(self._slots(step.stored_from), 1)] if step.store_releases else []
        return self.memory.command(
            f"store {step.store.buffer}", step.store, [*go, (self._filled(step.stored_from), 1)], gives + done
        )


class _FreeRunning(Issuer):
    """Every engine runs ahead as far as free slots allow.

    A store is put behind the next step's loads: on a port that serves in program order, the loads that can be
    made meanwhile do not wait for the computing whose result is stored.
    """

    def _loop(self, loop: Loop) -> list[int]:
        out: list[int] = []
        for step in loop.steps:
            out += [self._load(step, load, [], []) for load in step.loads]
            out += [self._store(stored, [], []) for stored in self._pending]
            out.append(self._compute(step, [], []))
            self._pending = (step,) if step.store is not None else ()
        return out

    def _drain(self) -> list[int]:
        return [self._store(stored, [], []) for stored in self._pending]


class _Synchronous(Issuer):
    """A sequencer starts every stage when all engines have finished the one before."""

    def __init__(self, hardware: Hardware, builder: ProgramBuilder, memory: Memory, *, at_last: bool) -> None:
        super().__init__(hardware, builder, memory)
        self._at_last = at_last
        self._sequencer = builder.engine("sequencer", "control")
        self._before: tuple[str, ...] = ()

    def _state(self) -> object:
        return (self._pending, self._before)

    def _restore(self, state: object) -> None:
        self._pending, self._before = state  # type: ignore[misc]

    def _loop(self, loop: Loop) -> list[int]:
        out: list[int] = []
        last = len(loop.steps) - 1
        out += self._stage(loop.steps[0], None, ())
        for i, step in enumerate(loop.steps):
            following = loop.steps[i + 1] if i < last else None
            overlapped: tuple[Step, ...] = ()
            if i == (last if self._at_last else 0):
                overlapped, self._pending = self._pending, ()
            out += self._stage(following, step, overlapped)
            if step.store is not None:
                if loop.serial:
                    out += self._stage(None, None, (step,))
                else:
                    self._pending = (step,)
        return out

    def _end_of_image(self) -> list[int]:
        """An image is one call of the core: it returns when its last store has ended."""
        pending, self._pending = self._pending, ()
        return self._stage(None, None, pending) if pending else []

    def _drain(self) -> list[int]:
        return self._swap(())

    def _stage(self, load: Step | None, compute: Step | None, stores: tuple[Step, ...]) -> list[int]:
        """One stage: the next step's loads, this step's compute, and stores, started together."""
        engines = [load_.stream for load_ in load.loads] if load is not None else []
        engines += ["array"] if compute is not None else []
        engines += [s.store.stream for s in stores if s.store is not None]
        out = self._swap(tuple(engines))
        if load is not None:
            out += [self._load(load, t, self._go(t.stream), self._done(t.stream)) for t in load.loads]
        if compute is not None:
            out.append(self._compute(compute, self._go("array"), self._done("array")))
        for step in stores:
            assert step.store is not None
            out.append(self._store(step, self._go(step.store.stream), self._done(step.store.stream)))
        return out

    def _swap(self, engines: tuple[str, ...]) -> list[int]:
        takes = [credit for name in self._before for credit in self._done(name)]
        gives = [credit for name in engines for credit in self._go(name)]
        self._before = engines
        return [self.builder.command("swap", [(self._sequencer, 0)], takes, gives)]

    def _go(self, engine: str) -> list[tuple[int, int]]:
        return self._one("go {}", engine)

    def _done(self, engine: str) -> list[tuple[int, int]]:
        return self._one("done {}", engine)


def issuer(
    hardware: Hardware, builder: ProgramBuilder, memory: Memory, *, synchronous: bool, store_at_last: bool
) -> Issuer:
    """The issuer that a spec's schedule asks for."""
    if synchronous:
        return _Synchronous(hardware, builder, memory, at_last=store_at_last)
    return _FreeRunning(hardware, builder, memory)
