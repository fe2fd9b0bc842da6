"""The result file: canonical JSON, written from a result and read back with every sum checked.

docs/results.md describes it. A reader of version 1.n reads every file of version 1.m.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, cast

from jouletrace.errors import ResultError
from jouletrace.hardware.energy import Price
from jouletrace.hardware.load import Assumption
from jouletrace.ledger.breakdown import SCOPES, Breakdown, Energy, Row
from jouletrace.ledger.price import PER_CYCLE
from jouletrace.mapping.program import Action
from jouletrace.result.model import MAX_BYTES, OpResult, Options, Result, TraceInput, narrowest

__all__ = ["FORMAT", "VERSION", "document", "from_json", "to_json"]

FORMAT = "jouletrace-result"
VERSION = "1.1"
OP_FIELDS = tuple(field.name for field in fields(OpResult))


def to_json(result: Result) -> str:
    """The bytes of a result: sorted keys, one object a line for ops, no time, no place."""
    data = document(result)
    parts: list[str] = []
    for key in sorted(data):
        value = data[key]
        if isinstance(value, list) and value:
            entries = ",\n".join(f"  {_dumps(entry)}" for entry in cast("list[Any]", value))
            parts.append(f"{_dumps(key)}: [\n{entries}\n]")
        else:
            parts.append(f"{_dumps(key)}: {_dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# -- writing


def document(result: Result) -> dict[str, Any]:
    """The result file as plain data."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "producer": {"version": result.version, "model_version": result.model_version},
        "inputs": _inputs(result),
        "replay": {
            "engine": result.engine, "port_model": result.port_model, "events": result.events,
            "commands": result.commands, "tiles": result.tiles, "micro_batches": result.micro_batches,
            "clock_hz": result.breakdown.clock_hz, "lanes": result.lanes,
            "dram_capacity_bytes": result.dram_capacity_bytes, "dram_overflow": result.dram_overflow,
        },
        "provenance": {
            "assumed": [a._asdict() for a in result.assumed],
            "user": [a._asdict() for a in result.user],
            "warnings": list(result.warnings),
        },
        "totals": _totals(result),
        "components": list(_components(result)),
        "prices": [
            {"component": c, "action": a, "source": p.source, "certainty": p.certainty,
             "energy_aj": str(p.energy_aj), "low_aj": str(p.low_aj), "high_aj": str(p.high_aj)}
            for (c, a), p in sorted(result.prices.items())
        ],
        "ops": [_op(op, result.rows[op.name]) for op in result.ops],
    }  # fmt: skip


def _inputs(result: Result) -> dict[str, Any]:
    trace, options = result.trace, result.options
    return {
        "trace": {"name": trace.name, "digest": trace.digest, "batch": trace.batch,
                  "lines": None if trace.lines is None else list(trace.lines)},
        "hardware": {"name": result.hardware["name"], "digest": result.hardware_digest, "resolved": result.hardware},
        "engine": options.engine,
        "only": options.only,
        "micro_batch": options.micro_batch,
        "allow_dram_overflow": options.allow_dram_overflow,
    }  # fmt: skip


def _totals(result: Result) -> dict[str, Any]:
    scopes: dict[str, Any] = {}
    for scope in SCOPES:
        energy = result.energy(scope)
        scopes[scope] = _exact(energy) | {
            "energy_pj": energy.energy_aj / 10**6, "low_pj": energy.low_aj / 10**6, "high_pj": energy.high_aj / 10**6,
            "power_w": result.power_w(scope),
            "energy_per_sample_pj": result.breakdown.energy_per_sample_pj(result.trace.batch, scope),
        }  # fmt: skip
    return {
        "cycles": result.cycles, "seconds": result.seconds, "macs": result.macs,
        "dram_read_bytes": result.dram_read_bytes, "dram_write_bytes": result.dram_write_bytes,
        "peak_memory_bytes": result.peak_memory_bytes, "utilisation": result.utilisation, "scopes": scopes,
    }  # fmt: skip


def _components(result: Result) -> Iterator[dict[str, Any]]:
    scope = {row.component: narrowest(row) for row in result.breakdown.rows}
    for component, energy in sorted(result.by("component").items()):
        counts = {action: n for (name, action), n in result.counts.items() if name == component}
        yield {"component": component, "scope": scope[component], "counts": counts, **_exact(energy)}


def _op(op: OpResult, rows: tuple[Row, ...]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    roles: dict[str, dict[str, int]] = {}
    for row in rows:
        key = f"{row.component}.{row.action}"
        counts[key] = counts.get(key, 0) + row.count
        if row.role:
            roles.setdefault(row.role, {})[key] = row.count
    return {
        "name": op.name, "layer": op.layer, "phase": op.phase, "kind": op.kind, "start_cycle": op.start_cycle,
        "end_cycle": op.end_cycle, "cycles": op.cycles, "frontier_cycles": op.frontier_cycles, "macs": op.macs,
        "tiles": op.tiles, "dram_bytes": counts.get("dram.read", 0) + counts.get("dram.write", 0),
        "bound_by": op.bound_by, "busy_cycles": dict(op.busy_cycles), "counts": counts, "roles": roles,
        "scopes": {s: _exact(sum((r.energy for r in rows if r.within(s)), Energy())) for s in SCOPES},
    }  # fmt: skip


def _exact(energy: Energy) -> dict[str, str]:
    return {"energy_aj": str(energy.energy_aj), "low_aj": str(energy.low_aj), "high_aj": str(energy.high_aj)}


# -- reading


def from_json(text: str | bytes, name: str) -> Result:
    """The result in a file's text.

    What can be derived is derived again and compared, so a file that was cut or edited is refused.
    Raises :class:`ResultError` with the place of the first difference.
    """
    data = _parse(text, name)
    try:
        result = _result(data)
        expected = document(result)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ResultError(
            f"{name}: is not a complete result file: {reason}; write it again with 'jouletrace run --json'"
        ) from None
    newer = data["version"] not in ("1.0", VERSION)
    if data["version"] == "1.0":
        del expected["inputs"]["engine"]
    place = _difference(expected | {"version": data["version"]}, data, "", newer)
    if place:
        raise ResultError(
            f"{name}: {place}: does not follow from the counts and prices of the file; it was edited or damaged"
        )
    return result


def _parse(text: str | bytes, name: str) -> dict[str, Any]:
    if len(text) > MAX_BYTES:
        raise ResultError(f"{name}: is larger than {MAX_BYTES >> 20} MiB and so no result file")
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{name}: is not readable JSON: {error}") from None
    if not isinstance(data, dict) or cast("dict[str, Any]", data).get("format") != FORMAT:
        raise ResultError(f'{name}: is not a result file, which says "format": "{FORMAT}"')
    found = cast("dict[str, Any]", data)
    version = found.get("version")
    match = re.fullmatch(r"([0-9]{1,4})\.[0-9]{1,4}", version) if isinstance(version, str) else None
    if match is None or match[1] != VERSION.partition(".")[0]:
        raise ResultError(f"{name}: has version {version!r}; this jouletrace reads {VERSION.partition('.')[0]}.x")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of a result")


def _result(data: dict[str, Any]) -> Result:
    inputs, replay, producer, totals = data["inputs"], data["replay"], data["producer"], data["totals"]
    trace, hardware = inputs["trace"], inputs["hardware"]
    prices = {
        (p["component"], p["action"]): Price(
            int(p["energy_aj"]), int(p["low_aj"]), int(p["high_aj"]), p["source"], p["certainty"]
        )
        for p in data["prices"]
    }
    return Result(
        version=producer["version"],
        model_version=producer["model_version"],
        trace=TraceInput(
            trace["name"], trace["digest"], trace["batch"], None if trace["lines"] is None else tuple(trace["lines"])
        ),
        hardware=hardware["resolved"],
        hardware_digest=hardware["digest"],
        # In version 1.0, the engine that was asked for was the one that ran.
        options=Options(
            replay["engine"] if data["version"] == "1.0" else inputs["engine"], inputs["only"], inputs["micro_batch"],
            inputs["allow_dram_overflow"],
        ),
        engine=replay["engine"],
        port_model=replay["port_model"],
        events=replay["events"],
        commands=replay["commands"],
        micro_batches=replay["micro_batches"],
        lanes=replay["lanes"],
        peak_memory_bytes=totals["peak_memory_bytes"],
        dram_capacity_bytes=replay["dram_capacity_bytes"],
        ops=tuple(OpResult(**{name: op[name] for name in OP_FIELDS}) for op in data["ops"]),
        breakdown=Breakdown(
            tuple(row for op in data["ops"] for row in _rows(op, prices)), totals["cycles"], replay["clock_hz"]
        ),
        prices=prices,
        assumed=tuple(Assumption(**a) for a in data["provenance"]["assumed"]),
        user=tuple(Assumption(**a) for a in data["provenance"]["user"]),
        warnings=tuple(data["provenance"]["warnings"]),
    )


def _rows(op: Mapping[str, Any], prices: Mapping[tuple[str, str], Price]) -> Iterator[Row]:
    """The rows of one op, from its counts and from the part of them that moved tensors of some role."""
    without_role: dict[str, int] = dict(op["counts"])
    counts: dict[Action, int] = {}
    for role, moved in op["roles"].items():
        for key, n in moved.items():
            without_role[key] -= n
            component, _, action = key.rpartition(".")
            counts[component, action, role] = n
    for key, n in without_role.items():
        component, _, action = key.rpartition(".")
        counts[component, action, ""] = n
    accesses = sorted(action for action in counts if action not in PER_CYCLE)
    for component, action, role in (*accesses, *(action for action in PER_CYCLE if action in counts)):
        if n := counts[component, action, role]:
            one = prices[component, action]
            energy = Energy(one.energy_aj, one.low_aj, one.high_aj).times(n)
            yield Row(op["name"], op["layer"], op["phase"], op["kind"], component, action, role, n, energy)


def _difference(expected: Any, found: Any, place: str, newer: bool) -> str:
    """The path of the first place where a file differs from what it should say, or the empty string.

    A file of a newer minor version may say more.
    """
    if type(expected) is not type(found):
        return place
    if isinstance(expected, dict):
        wanted, given = cast("dict[str, Any]", expected), cast("dict[str, Any]", found)
        for key in sorted(wanted.keys() | given.keys()):
            if key not in wanted and newer:
                continue
            inner = f"{place}.{key}" if place else key
            if key not in wanted or key not in given:
                return inner
            if different := _difference(wanted[key], given[key], inner, newer):
                return different
        return ""
    if isinstance(expected, list):
        left, right = cast("list[Any]", expected), cast("list[Any]", found)
        if len(left) != len(right):
            return place
        pairs = enumerate(zip(left, right, strict=True))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f"{place}[{i}]", newer))), "")
    return "" if expected == found else place
