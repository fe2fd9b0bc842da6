"""What a calibration found, as files: an energy table, and a spec that is complete in itself.

Factors are rounded to six digits first, so that every price in the files is its old price times the printed factor,
rounded to 1 aJ.
"""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from jouletrace.errors import UsageError
from jouletrace.hardware.energy import PRIMITIVES
from jouletrace.hardware.load import hardware_from_resolved, resolved
from jouletrace.hardware.spec import EnergyTable, Entry, Hardware, SramPoint
from jouletrace.units import round_half_even
from jouletrace.validate.calibrate import Calibration, Coefficient

__all__ = ["fitted_spec", "fitted_table"]

_LONGEST_SOURCE = 3000


class _Scale(NamedTuple):
    """Exact factors; bounds are None where the fit has no interval."""

    factor: Fraction
    low: Fraction | None
    high: Fraction | None
    text: str

    def band(self, low: int, value: int, high: int) -> tuple[int, int, int]:
        """A price between its bounds: those of the factor, else its old ones scaled."""
        bounds = (low * self.factor, high * self.factor) if self.low is None or self.high is None else (
            value * self.low, value * self.high)  # fmt: skip
        return round_half_even(bounds[0]), round_half_even(value * self.factor), round_half_even(bounds[1])


def fitted_table(calibration: Calibration, name: str) -> dict[str, Any]:
    """The energy table of the hardware at fitted prices, as plain data in the schema of ``hwspecs/energy``.

    It holds what the hardware can use. Prices that were not fitted keep their certainty and source. Raises
    :class:`UsageError` for a factor of 0, or where a table of the hardware is not in joules.
    """
    hardware = calibration.hardware
    scales = _scales(calibration)
    energy = hardware.energy
    kind = hardware.array.multiplier.type
    wanted: list[tuple[str, EnergyTable | None, tuple[str, ...]]] = [
        ("array", energy.array, (f"mac_{kind}", f"idle_{kind}", "register_file", "network")),
        ("vector", energy.vector, tuple(f"{primitive}_fp32" for primitive in PRIMITIVES)),
        ("host", energy.host, ("cycle",)),
        ("dram", energy.dram, ("dram_read", "dram_write")),
    ]
    tables = list({t.name: t for t in (*(table for _, table, _ in wanted), energy.buffers) if t is not None}.values())
    units = {table.name: table.normalised_to for table in tables if table.normalised_to is not None}
    if units:
        raise UsageError([f"table {table!r} is in multiples of {of}, not in joules; calibrate from a table in joules"
                          for table, of in units.items()])  # fmt: skip
    entries = {
        entry: _entry(table.entries[entry], table, scales.get(part))
        for part, table, names in wanted if table is not None for entry in names if entry in table.entries
    }  # fmt: skip
    return {
        "schema_version": 1,
        "name": name,
        "technology": "; ".join(dict.fromkeys(table.technology for table in tables)),
        "citation": _short(f"fitted to rows {calibration.rows}, from {'; '.join(t.citation for t in tables)}"),
        "entries": entries,
        "sram": [_sram(point, energy.buffers, scales.get("buffers")) for point in energy.buffers.sram],
    }


def fitted_spec(calibration: Calibration, name: str) -> dict[str, Any]:
    """The whole spec at fitted prices, with everything inlined, as plain data that loads like any spec.

    Static and idle power stand in its board, and a factor on the DRAM in the ratios of its currents to the datasheet,
    in which all its energies are linear. Raises as :func:`fitted_table` does.
    """
    hardware = calibration.hardware
    scales = _scales(calibration)
    table = fitted_table(calibration, name)
    data = json.loads(json.dumps(resolved(hardware)))
    data["name"] = name
    for component in ("array", "buffers", "vector", "host", "dram"):
        if data["energy"].get(component) is not None:
            data["energy"][component] = json.loads(json.dumps(table))
    board = hardware.board
    for part, key, powers in (("chip", "chip_static", board.chip_static), ("board", "board_idle", board.board_idle)):
        if part in scales:
            data["board"][key] = [_watts(power) for power in scales[part].band(*powers)]
            _claim(data, [f"board.{key}"], scales[part].text)
    if "dram" in scales and hardware.energy.dram is None:
        _scale_dram(data, hardware, scales["dram"])
    hardware_from_resolved(data, name)
    return data


def _scales(calibration: Calibration) -> dict[str, _Scale]:
    """By part."""
    found: dict[str, _Scale] = {}
    zero = [coefficient.name for coefficient in calibration.coefficients if not _rounded(coefficient.factor)]
    if zero:
        raise UsageError(f"the fit puts {' and '.join(zero)} at 0, which no price is: these rows do not show it; "
                         "fit it together with another coefficient, or leave it out of --fit")  # fmt: skip
    for coefficient in calibration.coefficients:
        low, high = (None if bound is None else _rounded(bound) for bound in (coefficient.low, coefficient.high))
        scale = _Scale(_rounded(coefficient.factor), low, high, _text(coefficient, calibration))
        found |= dict.fromkeys(coefficient.scaled, scale)
    return found


def _text(coefficient: Coefficient, calibration: Calibration) -> str:
    interval = "no interval"
    if coefficient.low is not None and coefficient.high is not None:
        interval = f"95 % interval {coefficient.low:.4g} to {coefficient.high:.4g}"
    return _short(f"{coefficient.name} fitted: {coefficient.factor:.6g} times ({interval}), on rows {calibration.rows}")


def _rounded(factor: float) -> Fraction:
    """
    >>> _rounded(0.123456789)
    Fraction(123457, 1000000)
    """
    return Fraction(f"{factor:.6g}")


def _entry(entry: Entry, table: EnergyTable, scale: _Scale | None) -> dict[str, Any]:
    return {**_price(entry, table, scale), "per": entry.per}


def _sram(point: SramPoint, table: EnergyTable, scale: _Scale | None) -> dict[str, Any]:
    return {"size": f"{point.size_bytes} B", "width": f"{point.width_bits} bit", **_price(point, table, scale)}


def _price(price: Entry | SramPoint, table: EnergyTable, scale: _Scale | None) -> dict[str, Any]:
    band = (price.low_aj, price.energy_aj, price.high_aj)
    certainty, source = price.certainty, f"{table.name}: {price.source}"
    if scale is not None:
        certainty, source = "fitted", f"{scale.text}; before: {_picojoules(price.energy_aj)}, {source}"
        band = scale.band(*band)
    # An interval may begin at 0, and an access to a memory costs at least 1 aJ.
    low, value, high = (_picojoules(max(energy, int(isinstance(price, SramPoint)))) for energy in band)
    return {"energy": value, "low": low, "high": high, "certainty": certainty, "source": _short(source)}


def _scale_dram(data: dict[str, Any], hardware: Hardware, scale: _Scale) -> None:
    dram, device = hardware.dram, data["dram"]["device"]
    paths = ["dram.device.measured_ratio"]
    for current, (low, mean, high) in dram.device.measured_ratio.items():
        band = (low, mean, high) if dram.use_measured_ratio else (Fraction(1),) * 3
        if scale.low is not None and scale.high is not None:
            new = (band[1] * scale.low, band[1] * scale.factor, band[1] * scale.high)
        else:
            new = tuple(ratio * scale.factor for ratio in band)
        device["measured_ratio"][current] = [f"{float(ratio):.9f}" for ratio in new]
    if not dram.use_measured_ratio:
        data["dram"]["use_measured_ratio"] = True
        paths.append("dram.use_measured_ratio")
    for key, energy in (("interface_read_per_bit", dram.device.interface_read_aj_per_bit),
                        ("interface_write_per_bit", dram.device.interface_write_aj_per_bit)):  # fmt: skip
        if energy:
            device[key] = _picojoules(round_half_even(energy * scale.factor))
            paths.append(f"dram.device.{key}")
    _claim(data, paths, scale.text)


def _claim(data: dict[str, Any], paths: list[str], source: str) -> None:
    data["provenance"].append({"paths": paths, "certainty": "fitted", "source": source})


def _picojoules(energy_aj: int) -> str:
    """
    >>> _picojoules(64_400_000), _picojoules(1)
    ('64.4 pJ', '0.000001 pJ')
    """
    return f"{_plain(Decimal(energy_aj).scaleb(-6))} pJ"


def _watts(power_aw: int) -> str:
    return f"{_plain(Decimal(power_aw).scaleb(-18))} W"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SOURCE else text[: _LONGEST_SOURCE - 1] + "…"
