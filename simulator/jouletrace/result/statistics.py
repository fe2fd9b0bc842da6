"""What every number of a result means: one sentence and a unit each.

Paths are those of the result file; ``[]`` stands for every entry of a list, ``*`` for every key.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STATISTICS", "Statistic"]

_EXACT = "aJ, as a decimal string"


class Statistic(NamedTuple):
    path: str
    unit: str
    meaning: str


def _band(path: str, of: str) -> list[Statistic]:
    """The statistics of an energy: exact, and as numbers for people."""
    return [
        Statistic(f"{path}.energy_aj", _EXACT, f"Energy of {of}: counts times prices, exact."),
        Statistic(f"{path}.low_aj", _EXACT, f"Energy of {of} with every price at the low end of its band."),
        Statistic(f"{path}.high_aj", _EXACT, f"Energy of {of} with every price at the high end of its band."),
    ]


STATISTICS: tuple[Statistic, ...] = (
    Statistic("totals.cycles", "cycles", "From the first command's start until all engines are idle."),
    Statistic("totals.seconds", "s", "Cycles divided by the accelerator's clock."),
    Statistic("totals.macs", "MAC", "Multiply-accumulates of the loop nests, padded positions included."),
    Statistic("totals.dram_read_bytes", "B", "Bytes that all streams read from DRAM."),
    Statistic("totals.dram_write_bytes", "B", "Bytes that all streams write to DRAM."),
    Statistic("totals.peak_memory_bytes", "B", "Largest sum of the tensors of the step that are alive at one op."),
    Statistic(
        "totals.utilisation", "share", "Useful multiply-accumulate passes divided by lanes times cycles of the array."
    ),
    *_band("totals.scopes.*", "everything in the scope"),
    Statistic("totals.scopes.*.energy_pj", "pJ", "The same as energy_aj, rounded to a floating-point number."),
    Statistic("totals.scopes.*.low_pj", "pJ", "The same as low_aj, rounded to a floating-point number."),
    Statistic("totals.scopes.*.high_pj", "pJ", "The same as high_aj, rounded to a floating-point number."),
    Statistic("totals.scopes.*.power_w", "W", "Mean power: energy divided by seconds."),
    Statistic("totals.scopes.*.energy_per_sample_pj", "pJ", "Energy divided by the batch."),
    *_band("components[]", "one component over the whole run"),
    Statistic("components[].counts.*", "actions", "How often the component did this, over the whole run."),
    Statistic("ops[].start_cycle", "cycle", "Start of the op's first command."),
    Statistic("ops[].end_cycle", "cycle", "End of the op's last command."),
    Statistic("ops[].cycles", "cycles", "Span of the op: end_cycle minus start_cycle; spans of ops may overlap."),
    Statistic(
        "ops[].frontier_cycles", "cycles",
        "Cycles of its end beyond all ends of ops before it; these add up to totals.cycles and carry energy per cycle.",
    ),
    Statistic("ops[].macs", "MAC", "Multiply-accumulates of the op's loop nest, padded positions included."),
    Statistic("ops[].tiles", "tiles", "Load-compute-store groups of the op."),
    Statistic(
        "ops[].busy_cycles.*", "cycles",
        "Busy time of the op's busiest engine of a kind (array, vector, dma, dram, host), start costs included.",
    ),
    Statistic("ops[].dram_bytes", "B", "Bytes that the op reads from and writes to DRAM."),
    *_band("ops[].scopes.*", "the op within the scope"),
    Statistic("ops[].counts.*", "actions", "How often the op made component.action."),
    Statistic("ops[].roles.*.*", "actions", "The part of counts that moved tensors of one role."),
    Statistic("prices[].energy_aj", _EXACT, "Energy of one action."),
    Statistic("prices[].low_aj", _EXACT, "Low end of the band of energy_aj."),
    Statistic("prices[].high_aj", _EXACT, "High end of the band of energy_aj."),
    Statistic("replay.clock_hz", "Hz", "Clock of the accelerator."),
    Statistic("replay.lanes", "lanes", "Multiply-accumulate lanes of the array."),
    Statistic("replay.dram_capacity_bytes", "B", "DRAM of the board."),
    Statistic("replay.events", "events", "Events that the engine processed; of the compiled engine, its commands."),
    Statistic("replay.commands", "commands", "Commands that the engine executed."),
    Statistic("replay.tiles", "tiles", "Load-compute-store groups of all ops."),
    Statistic("replay.micro_batches", "runs", "How often forward and backward ran on a part of the batch."),
)  # fmt: skip
