"""Systolic hardware of any size, and traces of one product, for the tests of the mapping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.builder import ProgramBuilder
from jouletrace.mapping.program import OpInfo, Program
from jouletrace.mapping.systolic import map_systolic
from jouletrace.mapping.transfer import Memory
from jouletrace.trace.model import Conv, Tensor, Trace

DATAFLOWS = ("weight_stationary", "input_stationary", "output_stationary")
SOURCE = [{"paths": ["x"], "certainty": "assumed", "source": "a test"}]
CURRENTS = ("IDD0", "IDD2N", "IDD3N", "IDD4R", "IDD4W", "IDD5")
ENERGY = {
    "schema_version": 1,
    "name": "test",
    "technology": "none",
    "citation": "a test",
    "entries": {
        "x": {
            "energy": "1 pJ",
            "low": "1 pJ",
            "high": "1 pJ",
            "per": "op",
            "source": "a test",
            "certainty": "assumed",
        }
    },
}


def hardware(
    rows: int,
    columns: int,
    dataflow: str = "weight_stationary",
    *,
    sizes: tuple[str, str, str] = ("1000 MB", "1000 MB", "1000 MB"),
    copies: int = 2,
    width: str = "16777216 bit",
    start_cycles: int = 0,
    bandwidth: str = "100000000 GB/s",
    port: str = "stream_share",
    multiplier: tuple[str, int] = ("fp", 32),
    word: str = "32 bit",
) -> Hardware:
    """A systolic array; by default nothing but the array takes time worth mentioning."""
    names = ("input", "weight", "output")
    spec: dict[str, Any] = {
        "schema_version": 1,
        "name": f"{rows}x{columns}",
        "description": "an array in a test",
        "citation": "a test",
        "clock": "100 MHz",
        "word": word,
        "array": {
            "kind": "systolic",
            "rows": rows,
            "columns": columns,
            "dataflow": dataflow,
            "multiplier": {"format": multiplier[0], "bits": multiplier[1], "dsp": 1},
        },
        "buffers": {n: {"size": s, "copies": copies, "word": word} for n, s in zip(names, sizes, strict=True)},
        "streams": {n: {"width": width, "start_cycles": start_cycles, "restarts": "transfer"} for n in names},
        "vector": {"lanes": 8, "chunk": "1 KiB", "dsp": 0, "load": "input", "store": "output"},
        "dram": {
            "device": {
                "name": "test",
                "standard": "DDR4",
                "devices_per_rank": 8,
                "rank_width": "64 bit",
                "burst_length": 8,
                "row": "8 KiB",
                "clock_period": "1 ns",
                "vdd": "1.2 V",
                "idd": dict.fromkeys(CURRENTS, "50 mA"),
                "timing_cycles": {"tRAS": 1, "tRP": 1, "tRC": 2, "tRFC": 1, "tREFI": 100},
                "measured_ratio": dict.fromkeys(CURRENTS, (1, 1, 1)),
                "provenance": SOURCE,
            },
            "bandwidth": bandwidth,
            "efficiency": 1,
            "port": port,
            "grant": "64 B",
            "use_measured_ratio": False,
        },
        "board": {
            "name": "test",
            "device": "none",
            "dsp": 1,
            "bram36": 1,
            "uram": 0,
            "lut": 1,
            "dram": "1 GB",
            "chip_static": ("0 W", "0 W", "0 W"),
            "board_idle": ("0 W", "0 W", "0 W"),
            "provenance": SOURCE,
        },
        "energy": {"array": ENERGY, "buffers": ENERGY, "vector": ENERGY},
        "provenance": SOURCE,
    }
    return Hardware.model_validate(spec)


def build(trace: Trace, machine: Hardware) -> Program:
    """The first op of a trace, mapped alone."""
    builder = ProgramBuilder(machine.name)
    memory = Memory(machine, builder)
    op = trace.ops[0]
    with builder.op(OpInfo(op.name, op.layer, op.phase, op.kind, op.macs)):
        builder.recorded(map_systolic(op, trace, machine, memory))
    return builder.build(memory.port())


def run(trace: Trace, machine: Hardware) -> tuple[Program, Counts]:
    program = build(trace, machine)
    return program, simulate(program)


def with_bias(trace: Trace) -> Trace:
    """The same forward op, with a bias as its third read."""
    op = trace.ops[0]
    filters = trace.tensor[op.writes[0]].shape[-1 if op.kind == "gemm" else 1]
    bias = Tensor("bias", (filters,), trace.tensors[0].bits, "fp", "param")
    return replace(trace, tensors=(*trace.tensors, bias), ops=(replace(op, reads=(*op.reads, "bias")),))


def array_busy(program: Program, counts: Counts) -> tuple[int, int, int]:
    """Folds, cycles that they hold the array, and cycles from the first one's start to the last one's end."""
    folds = [i for i, c in enumerate(program.sequence.tolist()) if program.commands[c].name == "fold"]
    start, end = counts.intervals.start[folds], counts.intervals.end[folds]
    return len(folds), counts.engine_busy["array"], int(end.max() - start.min())


def moved_bytes(counts: Counts, role: str | None = None) -> int:
    """Bytes between DRAM and chip, of one tensor role or of all."""
    return sum(
        n
        for (component, action, of), n in counts.total().items()
        if component == "dram" and action in ("read", "write") and role in (None, of)
    )


@st.composite
def convs(draw: st.DrawFn, role: str | None = None, largest: int = 9) -> Conv:
    """Any small convolution: groups, strides, dilations, uneven padding, kernels wider than the map."""

    def number(most: int, least: int = 1) -> int:
        return draw(st.integers(least, most))

    stride, dilation = (number(4), number(4)), (number(3), number(3))
    kernel, padding = (number(4), number(3)), tuple(number(3, 0) for _ in range(4))
    out = (number(largest), number(largest))
    size = [
        max(1, (o - 1) * s + (k - 1) * d + 1 - p + number(s - 1, 0))
        for o, s, k, d, p in zip(
            out, stride, kernel, dilation, (padding[0] + padding[1], padding[2] + padding[3]), strict=True
        )
    ]
    # The map decides: what it really holds after padding and clipping.
    OY, OX = (
        max(1, (i + p - (k - 1) * d - 1) // s + 1)
        for i, p, k, d, s in zip(
            size, (padding[0] + padding[1], padding[2] + padding[3]), kernel, dilation, stride, strict=True
        )
    )
    return Conv(
        number(3), number(5), number(4), OY, OX, *kernel, number(3), size[0], size[1], stride,
        (padding[0], padding[1], padding[2], padding[3]), dilation,
        role or draw(st.sampled_from(("forward", "backward_data", "backward_weight"))),  # type: ignore[arg-type]
    )  # fmt: skip
