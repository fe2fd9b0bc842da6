"""Laws of a whole step, on generated traces and every kind of shipped accelerator.

R2 bytes are conserved, R3 so is work, R4 nothing is negative, R5 cycles lie between the roofline and the serial sum;
and no op starts before what it reads is there.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import pytest
from hypothesis import event, given, settings

from jouletrace.engine.counts import Counts
from jouletrace.engine.events import simulate
from jouletrace.hardware.load import load_hardware
from jouletrace.hardware.spec import Hardware
from jouletrace.mapping.fusion import plan_fusion
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.testing import traces
from jouletrace.trace.model import Conv, Gemm, Trace

SPECS = ["eftrain-zcu102", "eftrain-pynq-z1", "zedboard-fp32", "zedboard-int8", "systolic-32x32", "eyeriss"]
# Where every product is made and every value moves as it is.
SETTINGS = {"eyeriss": ("array.zero_gating=false", "array.compression.activation=none")}
CASES = max(400, settings.default.max_examples if settings.default else 0)


@lru_cache
def hardware(name: str) -> Hardware:
    return load_hardware(name, SETTINGS.get(name, ()))


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=CASES)
@given(trace=traces())
def test_a_step_keeps_every_law(spec: str, trace: Trace) -> None:
    board = hardware(spec)
    program = map_step(trace, board)
    counts = simulate(program)
    for op in trace.ops:
        event(op.kind)
    work_is_conserved(trace, board, counts)
    bytes_are_conserved(program, board)
    buffers_are_left_as_found(program)
    operands_are_moved(trace, board, counts)
    between_roofline_and_serial_sum(program, board, counts)
    nothing_starts_early(trace, board, counts)
    assert all(n >= 0 for op in counts.ops for n in op.counts.values())


def work_is_conserved(trace: Trace, board: Hardware, counts: Counts) -> None:
    """Every MAC of the trace is executed once, in as many passes as its operands need."""
    for op, done in zip(trace.ops, counts.ops, strict=True):
        macs = sum(n for (_, action, _), n in done.counts.items() if action.startswith("mac_"))
        if op.macs:
            bits = [trace.tensor[t].bits for t in op.reads[:2]]
            assert macs == op.macs * board.passes(*bits), op.name
        else:
            assert macs == 0, op.name


def bytes_are_conserved(program: Program, board: Hardware) -> None:
    """What leaves DRAM enters a buffer, and the other way round, command by command, to the padding of one word."""
    for command in program.commands:
        moved = {(c, a): n for (c, a, _), n in command.counts}
        for dram, buffer in (("read", "write"), ("write", "read")):
            size = moved.get(("dram", dram), 0)
            words = [
                (n, board.buffers[c.removeprefix("buffer.")].word_bits)
                for (c, a), n in moved.items() if c.startswith("buffer.") and a == buffer
            ]  # fmt: skip
            if size and program.engines[command.holds[0][0]].kind == "dma":
                assert len(words) == 1
                n, word_bits = words[0]
                assert 0 <= n * word_bits - 8 * size + 7 < word_bits + 8, command.name


def buffers_are_left_as_found(program: Program) -> None:
    """Fills equal evictions: at the end of the step every credit is back where it was."""
    balance = [0] * len(program.pools)
    for command, repeats in zip(program.commands, program.repeats.tolist(), strict=True):
        for pool, n in command.takes:
            balance[pool] -= n * repeats
        for pool, n in command.gives:
            balance[pool] += n * repeats
    assert not any(balance)


def operands_are_moved(trace: Trace, board: Hardware, counts: Counts) -> None:
    """A product reads all of its operands and writes all of its result, at the least."""
    for op, done in zip(trace.ops, counts.ops, strict=True):
        if not isinstance(op.nest, Conv | Gemm):
            continue
        for names, action in ((op.reads[:2], "read"), (op.writes, "write")):
            for name in names:
                tensor = trace.tensor[name]
                elements = trace.elements_read(op)[op.reads.index(name)] if action == "read" else tensor.elements
                if isinstance(op.nest, Conv) and action == "read" and tensor.role != "param":
                    continue  # a stride may step over rows and columns that are never read
                size = -(-elements * board.storage_bits(tensor.bits) // 8)
                assert done.counts[("dram", action, tensor.role)] >= size, (op.name, name)


def between_roofline_and_serial_sum(program: Program, board: Hardware, counts: Counts) -> None:
    total = counts.total()
    macs = sum(n for (_, action, _), n in total.items() if action.startswith("mac_"))
    assert counts.cycles >= -(-macs // board.array.lanes)
    moved = sum(n for (c, a, _), n in total.items() if c == "dram" and a in ("read", "write"))
    bytes_per_cycle = Fraction(board.dram.bandwidth_bytes_per_second, board.clock_hz)
    assert counts.cycles >= moved / bytes_per_cycle
    assert counts.cycles <= sum(program.commands[i].cycles for i in program.sequence.tolist())
    assert counts.cycles == sum(op.frontier_cycles for op in counts.ops)


def nothing_starts_early(trace: Trace, board: Hardware, counts: Counts) -> None:
    by_name = {done.op.name: done for done in counts.ops}
    hosts = plan_fusion(trace, board).hosts
    for op in trace.ops:
        for name in op.reads:
            writer = trace.writer.get(name)
            if writer is not None and hosts.get(op.name) != writer.name:
                assert by_name[op.name].start_cycle >= by_name[writer.name].end_cycle, (op.name, writer.name)
