"""What there is to replay, and on what: lists and descriptions of traces and accelerators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.hardware.energy import Price, price_list
from jouletrace.hardware.load import assumptions, digest
from jouletrace.hardware.spec import ChannelParallel, Hardware, RowStationary
from jouletrace.report.terminal import heading, print_page, table
from jouletrace.trace.io import digest as trace_digest
from jouletrace.trace.lifetimes import peak_memory, saved_for_backward_bytes
from jouletrace.trace.model import PHASES, Op, Trace
from jouletrace.units import show_bytes, show_energy, show_power

__all__ = ["print_hardware", "print_hardware_list", "print_trace", "print_traces"]


def print_traces(traces: Sequence[Trace]) -> None:
    """One line per trace."""
    made = table("trace", ">batch", ">ops", ">MACs", ">parameters", ">memory")
    for trace in traces:
        made.add_row(
            trace.header.name, str(trace.header.batch), f"{len(trace.ops):,}", f"{trace.macs / 10**9:,.2f} G",
            f"{_parameters(trace):,}", show_bytes(peak_memory(trace).size_bytes),
        )  # fmt: skip
    print_page([made, Text("\nreplay one with: jouletrace run TRACE --hardware SPEC")])


def print_hardware_list(hardware: Sequence[Hardware]) -> None:
    """One line per accelerator, and what it is."""
    made = table("hardware", ">lanes", ">clock", ">DRAM", "what it is")
    for each in hardware:
        made.add_row(
            each.name, str(each.array.lanes), f"{each.clock_hz / 10**6:g} MHz", show_bytes(each.board.dram_bytes),
            each.description,
        )  # fmt: skip
    print_page([made])


def _parameters(trace: Trace) -> int:
    """Elements of the parameters that exist before the step."""
    return sum(t.elements for t in trace.tensors if t.role == "param" and t.name not in trace.writer)


def print_trace(trace: Trace, *, layers: int | None = None) -> None:
    """Prints header, phases and the first ``layers`` layers (None: all) of a trace."""
    print_page(_trace(trace, layers))


def _trace(trace: Trace, layers: int | None) -> Iterator[RenderableType]:
    header = trace.header
    yield Text(header.name, style="bold")
    facts = [
        ("sha256", trace_digest(trace)),
        ("batch", str(header.batch)),
        ("optimizer", header.optimizer),
        ("loss", header.loss),
        *((key, value) for key, value in (*header.producer, *header.policy)),
        ("parameters", f"{_parameters(trace):,}"),
        ("peak memory", show_bytes(peak_memory(trace).size_bytes)),
        ("saved for backward", show_bytes(saved_for_backward_bytes(trace))),
    ]
    yield from _facts(facts)
    yield from (Text(f"  warning: {warning}") for warning in header.warnings)

    yield heading("By phase")
    made = table("phase", ">ops", ">MACs", "kinds")
    for phase in PHASES:
        ops = [op for op in trace.ops if op.phase == phase]
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(op.kind for op in ops).most_common())
        made.add_row(phase, f"{len(ops):,}", f"{sum(op.macs for op in ops):,}", kinds)
    yield _indent(made)

    by_layer: dict[str, list[Op]] = {}
    for op in trace.ops:
        by_layer.setdefault(op.layer, []).append(op)
    shown = list(by_layer.items())[:layers]
    if shown:
        yield heading("Layers", f"{len(shown)} of {len(by_layer)}; 'run --only LAYER[:PHASE]' replays one alone")
        made = table("layer", ">ops", ">MACs", "phases")
        for layer, ops in shown:
            phases = ", ".join(dict.fromkeys(op.phase for op in ops))
            made.add_row(layer or "<model>", str(len(ops)), f"{sum(op.macs for op in ops):,}", phases)
        yield _indent(made)


def print_hardware(hardware: Hardware) -> None:
    """Prints an accelerator: its parts, its prices, and what is assumed of them."""
    print_page(_spec(hardware))


def _spec(hardware: Hardware) -> Iterator[RenderableType]:
    yield Text.assemble((hardware.name, "bold"), "  ", hardware.description)
    array, unit, dram = hardware.array, hardware.array.multiplier, hardware.dram
    if isinstance(array, ChannelParallel):
        shape = f"{array.out_channels} × {array.in_channels} lanes, output by input channels"
    elif isinstance(array, RowStationary):
        shape = f"{array.rows} × {array.columns} elements, row stationary"
    else:
        shape = f"{array.rows} × {array.columns} elements, {array.dataflow.replace('_', ' ')}"
    board = hardware.board
    yield from _facts([
        ("sha256", digest(hardware)),
        ("source", " ".join(hardware.citation.split())),
        ("array", f"{shape}, {unit.format}{unit.bits}, {hardware.clock_hz / 10**6:g} MHz"),
        ("vector unit", f"{hardware.vector.lanes} lanes, chunks of {show_bytes(hardware.vector.chunk_bytes)}"),
        ("DRAM", f"{dram.device.name}, {show_bytes(dram.bandwidth_bytes_per_second)}/s, {dram.port.replace('_', ' ')}"),
        ("board", f"{board.name}: {board.dsp} DSP, {board.bram36} BRAM36, {board.uram} URAM, "
                  f"{show_bytes(board.dram_bytes)} DRAM"),
        ("power", f"chip static {show_power(board.chip_static[1] / 10**18)}, "
                  f"board idle {show_power(board.board_idle[1] / 10**18)}"),
    ])  # fmt: skip

    yield heading("Buffers")
    made = table("buffer", ">size", ">copies", ">word")
    for name, buffer in hardware.buffers.items():
        made.add_row(name, show_bytes(buffer.size_bytes), str(buffer.copies), f"{buffer.word_bits} bit")
    yield _indent(made)

    yield heading("Streams")
    made = table("stream", ">width", ">start cost", "paid")
    for name, stream in hardware.streams.items():
        paid = f"at every {stream.restarts}" + (f"'s {stream.start_paid_at}" if stream.restarts == "run" else "")
        made.add_row(name, f"{stream.width_bits} bit", f"{stream.start_cycles} cycles", paid)
    yield _indent(made)

    yield heading("Prices")
    made = table("of", ">energy", ">from", ">to", "certainty", "source")
    equal: dict[Price, list[str]] = {}
    for (component, action), price in price_list(hardware).items():
        equal.setdefault(price, []).append(f"{component} {action}")
    for price, names in equal.items():
        band = (show_energy(aj) for aj in (price.energy_aj, price.low_aj, price.high_aj))
        made.add_row("\n".join(names), *band, price.certainty, price.source)
    yield _indent(made)

    weak = [a for a in assumptions(hardware) if not a.path.startswith("energy of ")]
    if weak:
        yield heading("Assumed, fitted, recalled, or set by you", "prices aside")
        made = table("value", "certainty", "source")
        for assumption in weak:
            made.add_row(*assumption)
        yield _indent(made)


def _facts(facts: list[tuple[str, str]]) -> Iterator[RenderableType]:
    made = table("", "", header=False)
    for name, value in facts:
        if value:
            made.add_row(name, value)
    yield _indent(made)


def _indent(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 0, 2))
