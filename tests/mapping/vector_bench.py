"""The bench of the vector tests: a toy accelerator with round numbers, small traces, and their run.

Each stream moves one 32-bit element a cycle and starts anew in 5 cycles; the vector unit has 4 lanes and
chunks of 8 elements in a buffer of two copies. DRAM keeps up with all streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tests.engine.harness import Bench

from jouletrace.engine.events import simulate
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Buffer, Hardware, Host, Stream, Vector
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.fusion import NO_FUSION, FusionPlan
from jouletrace.mapping.program import OpInfo
from jouletrace.mapping.transfer import Memory
from jouletrace.mapping.vector import map_vector
from jouletrace.trace.model import Format, Header, Nest, Op, Phase, Role, Tensor, Trace

ZEDBOARD = load_hardware("zedboard-fp32")


def toy(
    *,
    copies: int = 2,
    buffer: str = "1 KiB",
    chunk: str = "32 B",
    start_cycles: int = 5,
    restarts: str = "run",
    start_paid_at: str = "open",
    store: str = "output",
    word_bits: int = 32,
    port: str = "stream_share",
    fuses: Sequence[str] = (),
    host: tuple[str, ...] = (),
) -> Hardware:
    """The toy, varied. Its host has 2 cycles of a tenth of the clock per element."""
    stream = Stream.model_validate(
        {"width": "32 b", "start_cycles": start_cycles, "restarts": restarts, "start_paid_at": start_paid_at}
    )
    vector = {"lanes": 4, "chunk": chunk, "dsp": 1, "load": "input", "store": store, "fuses": fuses}
    slow = f"{ZEDBOARD.clock_hz // 10} Hz"
    cpu = Host.model_validate({"clock": slow, "kinds": host, "cycles_per_element": 2})
    dram = ZEDBOARD.dram.model_copy(
        update={"bandwidth_bytes_per_second": 8 * ZEDBOARD.clock_hz, "efficiency": Fraction(1), "port": port}
    )
    return ZEDBOARD.model_copy(
        update={
            "buffers": {"vector": Buffer.model_validate({"size": buffer, "copies": copies, "word": "64 b"})},
            "streams": {"input": stream, "output": stream},
            "vector": Vector.model_validate(vector),
            "word_bits": word_bits,
            "host": cpu if host else None,
            "dram": dram,
        }
    )


def tensor(
    name: str, *shape: int, bits: int = 32, format: Format = "fp", role: Role = "activation", **more: Any
) -> Tensor:
    return Tensor(name, shape, bits, format, role, **more)


def one(
    nest: Nest, reads: Sequence[Tensor], writes: Sequence[Tensor], phase: Phase = "forward", **more: Any
) -> Trace:
    """A trace of one op called ``op``."""
    op = Op("op", phase, "layer", nest, tuple(t.name for t in reads), tuple(t.name for t in writes), **more)
    return Trace(Header("one", 1), tuple(dict.fromkeys((*reads, *writes))), (op,))


def run(trace: Trace, hardware: Hardware, fusion: FusionPlan = NO_FUSION) -> Bench:
    """Maps every op by ``map_vector``, each after the ops that wrote what it reads, and executes them."""
    builder = ProgramBuilder(hardware.name)
    memory = Memory(hardware, builder)
    place: dict[str, int] = {}
    for op in trace.ops:
        after = {place[trace.writer[t].name] for t in op.reads if t in trace.writer}
        after |= {place[name] for name in op.after}
        with builder.op(OpInfo(op.name, op.layer, op.phase, op.kind, op.macs), after) as place[op.name]:
            builder.recorded(map_vector(op, trace, hardware, memory, fusion))
    program = builder.build(memory.port())
    return Bench(program, simulate(program))


def counted(bench: Bench, component: str) -> dict[str, int]:
    """Counts of a component by action, roles summed."""
    found: dict[str, int] = {}
    for (name, action, _), n in bench.counts.total().items():
        if name == component:
            found[action] = found.get(action, 0) + n
    return found


def traffic(bench: Bench) -> tuple[int, int]:
    """DRAM bytes read and written."""
    dram = counted(bench, "dram")
    return dram.get("read", 0), dram.get("write", 0)
