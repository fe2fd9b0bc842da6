"""The report of one replay on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.ledger.breakdown import SCOPES, Energy, Scope
from jouletrace.report.terminal import bar, heading, print_page, table
from jouletrace.result.model import OpResult, Result
from jouletrace.result.statistics import STATISTICS
from jouletrace.units import show_bytes, show_energy, show_power

__all__ = ["BOUNDS", "print_report", "print_statistics", "report"]

_STEP: Scope = "chip+dram"
BOUNDS = {
    "compute": "compute", "vector": "vector unit", "dram": "DRAM bandwidth", "start": "start costs", "host": "host",
    "buffer": "buffer",
}  # fmt: skip

# Names of groups that would say too little: what costs energy per cycle, and what has no name.
_LABELS = {
    "component": {"board": "board idle", "chip": "chip static", "dram": "DRAM"},
    "layer": {"": "<model>"},
    "role": {"": "(no tensor)"},
}


def print_report(result: Result, *, top: int = 10, by: str | None = None) -> None:
    """Prints :func:`report`."""
    print_page(report(result, top=top, by=by))


def report(result: Result, *, top: int = 10, by: str | None = None) -> Iterator[RenderableType]:
    """Totals, energy by scope, phase and component, the dearest layers, and what it all rests on.

    ``top`` is how many layers to show; ``by`` adds a table of one more grouping.
    """
    yield _title(result)
    yield from _totals(result)
    yield from _scopes(result)
    yield from _phases(result)
    yield from _components(result)
    yield from _layers(result, top)
    if by is not None:
        yield heading(f"Energy by {by}", _words(_STEP))
        yield _bars(result.by(by, _STEP), by)
    yield from _basis(result)


def _title(result: Result) -> Text:
    part = f", only {result.options.only}" if result.options.only is not None else ""
    return Text.assemble(
        (result.trace.name, "bold"), part, " on ", (str(result.hardware["name"]), "bold"),
        (f"  {result.engine} engine, DRAM port: {result.port_model.replace('_', ' ')}", "dim"),
    )  # fmt: skip


def _totals(result: Result) -> Iterator[RenderableType]:
    clock = result.breakdown.clock_hz / 10**6
    facts = [
        ("cycles", f"{result.cycles:,}", f"{result.seconds:.4g} s at {clock:g} MHz"),
        ("MACs", f"{result.macs:,}", f"utilisation {result.utilisation:.1%} of {result.lanes} lanes"),
        ("tiles", f"{result.tiles:,}", f"{result.commands:,} commands, {result.events:,} events"),
        ("DRAM", show_bytes(result.dram_read_bytes + result.dram_write_bytes),
         f"{show_bytes(result.dram_read_bytes)} read, {show_bytes(result.dram_write_bytes)} written"),
        ("peak memory", show_bytes(result.peak_memory_bytes),
         f"of {show_bytes(result.dram_capacity_bytes)}" + (", EXCEEDED as allowed" if result.dram_overflow else "")),
    ]  # fmt: skip
    if result.micro_batches > 1:
        facts.append(("micro-batches", str(result.micro_batches), f"of {result.options.micro_batch} samples"))
    made = table("", ">", "", header=False)
    for fact in facts:
        made.add_row(*fact)
    yield Padding(made, (1, 0, 0, 2))
    yield from (Text(f"  warning: {warning}", style="yellow") for warning in result.warnings)


def _scopes(result: Result) -> Iterator[RenderableType]:
    yield heading("Energy")
    made = table("scope", ">energy", ">from", ">to", ">mean power", ">per sample")
    for scope in SCOPES:
        energy = result.energy(scope)
        made.add_row(
            _words(scope), show_energy(energy.energy_aj), show_energy(energy.low_aj), show_energy(energy.high_aj),
            show_power(result.power_w(scope)), show_energy(energy.energy_aj // result.trace.batch),
        )  # fmt: skip
    yield _indent(made)


def _phases(result: Result) -> Iterator[RenderableType]:
    yield heading("By phase", _words(_STEP))
    cycles: dict[str, int] = {}
    for op in result.ops:
        cycles[op.phase] = cycles.get(op.phase, 0) + op.frontier_cycles
    energies = result.by("phase", _STEP)
    made = table("phase", ">cycles", ">energy", ">share", "")
    for phase, energy in energies.items():
        made.add_row(phase, f"{cycles[phase]:,}", *_share(energy, energies))
    yield _indent(made)


def _components(result: Result) -> Iterator[RenderableType]:
    yield heading("By component", "board")
    yield _bars(result.by("component"), "component")


def _layers(result: Result, top: int) -> Iterator[RenderableType]:
    energies = result.by("layer", _STEP)
    dearest = sorted(energies, key=lambda layer: -energies[layer].energy_aj)[: max(0, top)]
    if not dearest:
        return
    yield heading("Dearest layers", f"{len(dearest)} of {len(energies)}, {_words(_STEP)}")
    ops: dict[str, list[OpResult]] = {}
    for op in result.ops:
        ops.setdefault(op.layer, []).append(op)
    made = table("layer", ">cycles", ">energy", ">share", "bound by")
    for layer in dearest:
        cycles = sum(op.frontier_cycles for op in ops[layer])
        energy, share, _ = _share(energies[layer], energies)
        made.add_row(_LABELS["layer"].get(layer, layer), f"{cycles:,}", energy, share, _bounds(ops[layer]))
    yield _indent(made)


def _bounds(ops: list[OpResult]) -> str:
    """What bounds these ops, by the share of their cycles: the two that bind longest, if for a twentieth or more."""
    cycles: dict[str, int] = {}
    for op in ops:
        cycles[op.bound_by] = cycles.get(op.bound_by, 0) + op.cycles
    total = sum(cycles.values()) or 1
    ranked = sorted(cycles.items(), key=lambda item: -item[1])
    if len(ranked) == 1:
        return BOUNDS.get(ranked[0][0], ranked[0][0])
    return ", ".join(f"{BOUNDS.get(name, name)} {n / total:.0%}" for name, n in ranked[:2] if 20 * n >= total)


def _bars(energies: Mapping[str, Energy], what: str) -> RenderableType:
    made = table(what, ">energy", ">share", "")
    for name, energy in sorted(energies.items(), key=lambda item: -item[1].energy_aj):
        label = _LABELS.get(what, {}).get(name, name)
        made.add_row(label, *_share(energy, energies))
    return _indent(made)


def _share(energy: Energy, energies: Mapping[str, Energy]) -> tuple[str, str, Text]:
    total = sum(e.energy_aj for e in energies.values()) or 1
    largest = max(e.energy_aj for e in energies.values()) or 1
    return (
        show_energy(energy.energy_aj), f"{energy.energy_aj / total:.1%}", bar(energy.energy_aj / largest)
    )  # fmt: skip


def _basis(result: Result) -> Iterator[RenderableType]:
    """Which inputs rest on less than a published number; prices stand last, by component."""
    named: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for path, certainty, _ in (*result.user, *result.assumed):
        values, prices = named.setdefault(certainty, ({}, {}))
        priced = path.removeprefix("energy of ")
        if priced == path:
            values[path] = None
        else:
            component = priced.split()[0]
            prices["buffers" if component.startswith("buffer.") else component] = None
    if not named:
        return
    yield heading("Rests on", f"'jouletrace show {result.hardware['name']}' lists the sources")
    made = table("", "", header=False)
    for certainty, (values, prices) in named.items():
        listed = [*values, *([f"prices of {', '.join(prices)}"] if prices else [])]
        made.add_row("set by you" if certainty == "user" else certainty, ", ".join(listed))
    yield _indent(made)


def _words(scope: Scope) -> str:
    return scope.replace("+dram", " + DRAM")


def _indent(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 0, 2))


def print_statistics() -> None:
    """Prints what every number of a result file means."""
    made = table("statistic", "unit", "meaning")
    for statistic in STATISTICS:
        made.add_row(*statistic)
    print_page([made])
