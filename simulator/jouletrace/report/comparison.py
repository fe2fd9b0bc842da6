"""The report of a comparison on the terminal: a row per strategy, and where its energy went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from jouletrace.comparison.model import Column, Comparison, saving
from jouletrace.ledger.breakdown import SCOPES, Energy, Scope
from jouletrace.report.comparison_figures import (
    IDLE,
    PARTS,
    energy_by_part,
    reasons,
    rows_published,
    saving_over_seeds,
    way,
)
from jouletrace.report.strategy_catalogue import published_table
from jouletrace.report.terminal import bar, heading, print_page, table
from jouletrace.report.wide_table import WideTable, folded
from jouletrace.result.run import RunResult
from jouletrace.strategies.base import Published
from jouletrace.units import show_energy

__all__ = ["comparison_report", "print_comparison"]

_LABEL_WIDTH, _NARROW = 14, 12
_MOST_PUBLISHED = 2  # of each strategy
_MOST_PLACES = 3
_MOST_WARNINGS = 4


def print_comparison(comparison: Comparison, *, scope: Scope = "board", why: bool = False) -> None:
    """Prints :func:`comparison_report`."""
    print_page(comparison_report(comparison, scope=scope, why=why))


def comparison_report(
    comparison: Comparison, *, scope: Scope = "board", why: bool = False
) -> Iterator[RenderableType]:
    """Step, training, work, energy by component and phase, the way to the combination, and what it rests on.

    ``scope`` is that of components, phases and the way; ``why`` adds the reasons for every place left alone.
    """
    yield from _title(comparison)
    yield from _steps(comparison)
    if comparison.has_runs:
        yield from _trainings(comparison)
    yield from _work(comparison)
    yield from _energies(comparison, scope)
    yield from _way(comparison, scope)
    yield from _published(comparison)
    yield from _left(comparison, why)
    yield from _basis(comparison)


def _title(comparison: Comparison) -> Iterator[RenderableType]:
    baseline = comparison.baseline
    seeds = max(len(column.runs) for column in comparison.all)
    training = f"{comparison.iterations:,} iterations" if comparison.has_runs else "one step, no training"
    yield Text.assemble(
        (comparison.trace, "bold"), f", batch {comparison.batch}, on ", (baseline.hardware, "bold"),
        (f"  {training}" + (f", {seeds} seeds" if seeds > 1 else ""), "dim"),
    )  # fmt: skip
    warnings = dict.fromkeys(w for column in comparison.all for w in (*column.step.warnings, *column.figure(
        run=comparison.has_runs).warnings))  # fmt: skip
    yield from (Text(f"  warning: {warning}", style="yellow") for warning in list(warnings)[:_MOST_WARNINGS])
    if len(warnings) > _MOST_WARNINGS:
        yield Text(f"  {len(warnings) - _MOST_WARNINGS} more warnings stand in the --json file", style="yellow")
    builds: dict[str, list[str]] = {}
    for column in comparison.all:
        if column.step.hardware_digest != baseline.step.hardware_digest:
            builds.setdefault(column.hardware, []).append(column.label)
    for hardware, labels in builds.items():
        sentence = f"on {hardware}: {', '.join(labels)}; what they save is the difference of two builds"
        yield Padding(Text(sentence, style="yellow"), (0, 0, 0, 2))


def _steps(comparison: Comparison) -> Iterator[RenderableType]:
    yield heading("One step", "energy, and what is saved")
    rows = [
        (
            _label(column), column.hardware, f"{column.step.cycles:,}",
            *(_saved(comparison, column, scope) for scope in SCOPES),
        )
        for column in comparison.all
    ]  # fmt: skip
    yield _wide(("strategy", "hardware", ">cycles", *(f">{_words(scope)}" for scope in SCOPES)), rows)


def _saved(comparison: Comparison, column: Column, scope: Scope) -> str:
    share = "-" if column is comparison.baseline else f"{comparison.saving(column, scope, run=False):.1%}"
    return f"{show_energy(column.step.energy(scope).energy_aj)} {share:>6}"


def _trainings(comparison: Comparison) -> Iterator[RenderableType]:
    several = any(len(column.runs) > 1 for column in comparison.all)
    remark = ", means over seeds, +- half a 95 % confidence interval" if several else ""
    yield heading("Whole training", f"energy, and what is saved{remark}")
    rows: list[tuple[str, ...]] = []
    for column in comparison.all:
        executed = column.over_seeds(lambda run: run.executed).mean
        seconds = column.over_seeds(lambda run: run.seconds).mean
        energies = (_saved_over_seeds(comparison, column, scope) for scope in SCOPES)
        rows.append((_label(column), f"{executed:,.0f}", _time(seconds), *energies))
    names = ("strategy", ">executed", ">time", *(f">{_words(scope)}" for scope in SCOPES))
    yield _wide(names, rows)


def _saved_over_seeds(comparison: Comparison, column: Column, scope: Scope) -> str:
    energy = column.over_seeds(lambda run: run.energy(scope).energy_aj)
    shown = show_energy(round(energy.mean))
    if column is comparison.baseline:
        return f"{shown} {'-':>6}"
    share = saving_over_seeds(comparison, column, scope)
    spread = f"+-{100 * share.half_width:.1f}" if share.seeds > 1 else ""
    return f"{shown} {f'{100 * share.mean:.1f}{spread}%':>6}"


def _work(comparison: Comparison) -> Iterator[RenderableType]:
    run = comparison.has_runs
    yield heading("Work", _of_what(comparison) + "; bit-operations: products of operand widths, summed over MACs")
    before = comparison.baseline.figure(run=run)
    rows: list[tuple[str, ...]] = []
    for column in comparison.all:
        result = column.figure(run=run)
        macs, skipped, added = comparison.work(column, run=run)
        bits = "-" if column is comparison.baseline else f"{saving(before.bit_operations, result.bit_operations):.1%}"
        rows.append((
            _label(column), _count(macs), _count(skipped), _count(added),
            f"{_count(result.bit_operations)} {bits:>6}", _bytes(result.dram_bytes),
            _bytes(result.peak_memory_bytes), _memory_remark(result),
        ))  # fmt: skip
    remark = ("",) if any(row[-1] for row in rows) else ()
    names = ("strategy", ">MACs", ">skipped", ">added", ">bit-operations", ">DRAM", ">peak memory", *remark)
    yield _wide(names, rows)


def _memory_remark(result: RunResult) -> str:
    remarks = [f"micro-batch {result.micro_batch}"] if result.micro_batch is not None else []
    return "\n".join([*remarks, "EXCEEDED as allowed"] if result.dram_overflow else remarks)


def _energies(comparison: Comparison, scope: Scope) -> Iterator[RenderableType]:
    """Components, phases, and what the savings owe to the power of the idle board, under one line of names."""
    run = comparison.has_runs
    figures = [column.figure(run=run) for column in comparison.all]
    parts = [energy_by_part(figure, scope) for figure in figures]
    phases = [figure.by("phase", scope) for figure in figures]
    idle = [
        [f"  {float(share):g} × its power", "-",
         *(f"{comparison.saving(column, idle=share, run=run):.1%}" for column in comparison.columns)]
        for share in IDLE
    ]  # fmt: skip
    blank = [""] * len(figures)
    rows: list[list[str]] = [
        ["by component", *blank], *_matrix(PARTS, parts), ["", *blank],
        ["by phase", *blank], *_matrix(list(dict.fromkeys(p for found in phases for p in found)), phases), ["", *blank],
        ["saved on the board,", *blank], ["if it idles at", *blank], *idle,
    ]  # fmt: skip
    yield heading("Energy", f"{_of_what(comparison)}, {_words(scope)}")
    yield _wide(("", *(f">{folded(column.label, _NARROW)}" for column in comparison.all)), rows)


def _matrix(keys: Sequence[str], found: Sequence[Mapping[str, Energy]]) -> list[list[str]]:
    return [
        [f"  {key.replace('_', ' ')}", *(show_energy(each[key].energy_aj) if key in each else "-" for each in found)]
        for key in keys
        if any(key in each for each in found)
    ]


def _way(comparison: Comparison, scope: Scope) -> Iterator[RenderableType]:
    if not comparison.waterfall:
        return
    yield heading("From the baseline to the combination", f"{_of_what(comparison)}, {_words(scope)}")
    steps = [(label, c.figure(run=comparison.has_runs).energy(scope).energy_aj) for label, c in way(comparison)]
    first = steps[0][1] or 1
    longest = max(energy for _, energy in steps) or 1
    rows: list[tuple[str | Text, ...]] = []
    before = first
    for label, energy in steps:
        change = "" if energy == before else f"{100 * (energy - before) / first:+.1f} points"
        gone = Text("-" * max(0, round(24 * before / longest) - round(24 * energy / longest)), style="dim")
        shown = folded(label, _LABEL_WIDTH + _NARROW)
        rows.append((shown, show_energy(energy), f"{energy / first:.1%}", change, bar(energy / longest) + gone))
        before = energy
    yield _wide(("", ">energy", ">of the baseline", ">change", ""), rows)


def _published(comparison: Comparison) -> Iterator[RenderableType]:
    rows = rows_published(comparison)
    if not rows:
        return
    seen: Counter[str] = Counter()
    shown: list[tuple[str, Published]] = []
    for name, row in rows:
        seen[name] += 1
        if seen[name] <= _MOST_PUBLISHED:
            shown.append((name, row))
    yield heading("Published", "cited, not computed here")
    yield _indent(published_table(shown))
    if len(rows) > len(shown):
        yield Text(f"  {len(rows) - len(shown)} more: 'jouletrace strategies NAME' lists them", style="dim")


def _left(comparison: Comparison, why: bool) -> Iterator[RenderableType]:
    columns = [column for column in comparison.columns if column.left]
    if not columns:
        return
    if not why:
        counts = ", ".join(f"{column.label} {len(column.left)}" for column in columns)
        yield heading("Places left alone", f"--why says why: {counts}")
        return
    yield heading("Places left alone")
    made = table("strategy", ">places", "reason", "such as")
    for column in columns:
        label = _label(column)
        for reason, places in sorted(reasons(column).items(), key=lambda item: -len(item[1])):
            more = ", …" if len(places) > _MOST_PLACES else ""
            made.add_row(label, f"{len(places):,}", reason, ", ".join(places[:_MOST_PLACES]) + more)
            label = ""
    yield _indent(made)


def _basis(comparison: Comparison) -> Iterator[RenderableType]:
    """How many inputs of each hardware rest on less than a published number."""
    assumed = {column.hardware: column.step.assumed for column in comparison.all}
    if not any(assumed.values()):
        return
    yield heading("Rests on", "inputs that are no published numbers; 'jouletrace show HARDWARE' lists them")
    made = table("", "", header=False)
    for hardware, found in assumed.items():
        counts = Counter("set by you" if a.certainty == "user" else a.certainty for a in found)
        made.add_row(hardware, ", ".join(f"{n} {certainty}" for certainty, n in counts.most_common()) or "none")
    yield _indent(made)


def _of_what(comparison: Comparison) -> str:
    if not comparison.has_runs:
        return "one step"
    several = any(len(column.runs) > 1 for column in comparison.all)
    return "whole training, first seed" if several else "whole training"


def _label(column: Column) -> str:
    return folded(column.label, _LABEL_WIDTH)


def _wide(names: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> RenderableType:
    return _indent(WideTable(names, rows))


def _words(scope: Scope) -> str:
    return scope.replace("+dram", " + DRAM")


def _count(n: int) -> str:
    """
    >>> _count(1_306_021_888), _count(-12), _count(0)
    ('1.306 G', '-12', '0')
    """
    steps = ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"))
    return next((f"{n / 10**power:.4g} {prefix}" for power, prefix in steps if abs(n) >= 10**power), str(n))


def _bytes(size_bytes: int) -> str:
    """Bytes of a training, which may be exabytes."""
    return f"{_count(size_bytes)}B" if size_bytes >= 1000 else f"{size_bytes} B"


def _time(seconds: float) -> str:
    """
    >>> _time(0.0123), _time(90.0), _time(5e4)
    ('12.3 ms', '90 s', '13.89 h')
    """
    steps: tuple[tuple[float, float, str], ...] = (
        (172_800, 86_400, "d"), (7200, 3600, "h"), (120, 60, "min"), (1, 1, "s"), (0, 1e-3, "ms"),
    )  # fmt: skip
    size, unit = next((size, unit) for least, size, unit in steps if seconds >= least)
    return f"{seconds / size:.4g} {unit}"


def _indent(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 0, 2))
