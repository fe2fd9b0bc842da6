"""The builder of programs: what a mapping speaks to while it turns ops into commands."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import numpy as np

from jouletrace.mapping.op_program import Action, Command, Engine, EngineKind, OpProgram, Pool, Run, Sequence32
from jouletrace.mapping.program import OpInfo, Place, Port, Program

__all__ = ["ProgramBuilder"]


class ProgramBuilder:
    """Collects engines, pools and commands; the only mutable thing in the mapping.

    >>> builder = ProgramBuilder("toy")
    >>> dma, pe = builder.engine("dma", "dma"), builder.engine("pe", "array")
    >>> free, full = builder.pool("x.free", 2, buffer="x"), builder.pool("x.full", 0)
    >>> with builder.op(OpInfo("conv:forward", "conv", "forward", "conv", macs=9)):
    ...     load = builder.command("load", [(dma, 5)], takes=[(free, 1)], gives=[(full, 1)])
    ...     compute = builder.command("compute", [(pe, 9)], takes=[(full, 1)], gives=[(free, 1)])
    ...     builder.emit([load, compute], times=3)
    >>> program = builder.build()
    >>> program.sequence.tolist(), [(run.chunk.tolist(), run.times) for run in program.bodies[0].runs]
    ([0, 1, 0, 1, 0, 1], [([0, 1], 3)])
    """

    def __init__(self, hardware: str) -> None:
        self._hardware = hardware
        self._engines: dict[str, tuple[int, Engine]] = {}
        self._pools: dict[str, tuple[int, Pool]] = {}
        self._ops: list[OpInfo] = []
        self._bodies: list[OpProgram] = []
        self._places: list[Place] = []
        self._after: list[tuple[int, ...]] = []
        # Where the same op program stood last; most stand where they stood before.
        self._placed: dict[int, tuple[OpProgram, Place]] = {}
        # Of the open op: its commands, their runs, and the engines and pools that it asked for.
        self._commands: dict[Command, int] = {}
        self._runs: list[Run] = []
        self._asked: tuple[dict[int, None], dict[int, None]] = ({}, {})
        self._body: OpProgram | None = None

    def engine(self, name: str, kind: EngineKind) -> int:
        """The index of the engine of this name, made on first use."""
        known = self._engines.get(name)
        if known is None:
            known = self._engines[name] = (len(self._engines), Engine(name, kind))
        self._asked[0][known[0]] = None
        return known[0]

    def pool(self, name: str, credits: int, buffer: str = "") -> int:
        """The index of the pool of this name, made on first use."""
        known = self._pools.get(name)
        if known is None:
            known = self._pools[name] = (len(self._pools), Pool(name, credits, buffer))
        self._asked[1][known[0]] = None
        return known[0]

    @contextmanager
    def op(self, info: OpInfo, after: Iterable[int] = ()) -> Generator[int, None, None]:
        """Opens an op: commands made inside belong to it, and none starts before ``after`` have ended."""
        self._commands, self._runs, self._asked, self._body = {}, [], ({}, {}), None
        yield len(self._ops)
        body = self.recorded(info.tiles) if self._body is None else self._body
        self._ops.append(OpInfo(info.name, info.layer, info.phase, info.kind, info.macs, body.tiles))
        self._bodies.append(body)
        self._places.append(self._place(body))
        self._after.append(tuple(sorted(set(after))))

    def command(
        self,
        name: str,
        holds: Iterable[tuple[int, int]],
        takes: Iterable[tuple[int, int]] = (),
        gives: Iterable[tuple[int, int]] = (),
        start_cycles: int = 0,
        counts: Iterable[tuple[Action, int]] = (),
        size_bytes: int = 0,
    ) -> int:
        """The index of a command among those of the open op; equal commands are stored once."""
        command = Command(
            0, name, tuple(holds), tuple(takes), tuple(gives), (), start_cycles,
            tuple((action, n) for action, n in counts if n), size_bytes,
        )  # fmt: skip
        return self._commands.setdefault(command, len(self._commands))

    def emit(self, commands: Iterable[int] | Sequence32, times: int = 1) -> None:
        """Appends commands to the open op, the whole list ``times`` times."""
        chunk = np.asarray(commands if isinstance(commands, np.ndarray) else list(commands), dtype=np.int32)
        if len(chunk) and times > 0:
            self._runs.append(Run(chunk, times))

    def recorded(self, tiles: int = 0) -> OpProgram:
        """What the open op has become, with ``tiles`` load-compute-store groups; nothing more may be added to it."""
        if self._body is None:
            engines, pools = dict(self._asked[0]), dict(self._asked[1])
            for command in self._commands:  # some engines and pools were made before all ops
                engines.update((engine, None) for engine, _ in command.holds if 0 <= engine < len(self._engines))
                pools.update((pool, None) for pool, _ in command.takes + command.gives if 0 <= pool < len(self._pools))
            engine, pool = ({index: i for i, index in enumerate(some)} for some in (engines, pools))
            made = [e for _, e in self._engines.values()], [p for _, p in self._pools.values()]
            self._body = OpProgram(
                tuple(made[0][index] for index in engines),
                tuple(made[1][index] for index in pools),
                tuple(
                    Command(
                        0, c.name, tuple([(engine.get(e, e), n) for e, n in c.holds]),
                        tuple([(pool.get(p, p), n) for p, n in c.takes]),
                        tuple([(pool.get(p, p), n) for p, n in c.gives]), (), c.start_cycles, c.counts, c.size_bytes,
                    )
                    for c in self._commands
                ),
                tuple(_merged(self._runs)),
                tiles,
            )  # fmt: skip
        return self._body

    def has_commands(self, op: int) -> bool:
        """Whether an op that was closed executes anything."""
        return bool(self._bodies[op].runs)

    def repeat(self, body: OpProgram) -> None:
        """Lets the open op become what another has become."""
        self._body = body

    def _place(self, body: OpProgram) -> Place:
        known = self._placed.get(id(body))
        if known is None:
            place = Place(
                tuple(self.engine(e.name, e.kind) for e in body.engines),
                tuple(self.pool(p.name, p.credits, p.buffer) for p in body.pools),
            )
            known = self._placed[id(body)] = (body, place)
        return known[1]

    def build(self, port: Port | None = None) -> Program:
        """The finished, frozen program."""
        return Program(
            self._hardware,
            tuple(engine for _, engine in self._engines.values()),
            tuple(pool for _, pool in self._pools.values()),
            tuple(self._ops),
            tuple(self._bodies),
            tuple(self._places),
            tuple(self._after),
            port or Port(),
        )


def _merged(runs: list[Run]) -> list[Run]:
    """The same commands in fewer runs: a chunk that follows itself is one run."""
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last is not None and (last.chunk is run.chunk or np.array_equal(last.chunk, run.chunk)):
            merged[-1] = Run(last.chunk, last.times + run.times)
        else:
            merged.append(run)
    for run in merged:
        run.chunk.setflags(write=False)
    return merged
