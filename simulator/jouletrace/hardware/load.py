"""Hardware specs by name or path, with overrides; and back to plain data that a result can carry."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from jouletrace.errors import UsageError, did_you_mean
from jouletrace.hardware import check
from jouletrace.hardware.draft import Draft, dotted
from jouletrace.hardware.energy import price_list
from jouletrace.hardware.provenance import WEAK, claims, covering, leaves
from jouletrace.hardware.spec import Certainty, Hardware, Provenance
from jouletrace.hardware.yaml_text import Document, read_file
from jouletrace.resources import folder

__all__ = [
    "Assumption",
    "assumptions",
    "digest",
    "hardware_from_resolved",
    "list_hardware",
    "load_hardware",
    "resolved",
]


class Assumption(NamedTuple):
    """A value of a spec, or a price, that rests on less than a published number."""

    path: str
    certainty: Certainty
    source: str


def list_hardware() -> list[str]:
    """Names of the shipped accelerators.

    >>> "eftrain-zcu102" in list_hardware()
    True
    """
    return sorted(path.stem for path in folder("hwspecs").glob("*.yaml"))


def load_hardware(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Hardware:
    """An accelerator by shipped name or by path, with ``path=value`` overrides applied in order.

    Raises :class:`SpecError` with every problem as ``file:line:column: path.to.key: sentence``, and
    :class:`UsageError` for an unknown name.

    >>> load_hardware("eftrain-zcu102", ["clock=200 MHz"]).clock_hz
    200000000
    """
    path = _find(name_or_path)
    draft = Draft(read_file(path), path.parent)
    draft.inline()
    for setting in overrides:
        draft.override(setting)
    return _finish(draft)


def resolved(hardware: Hardware) -> dict[str, Any]:
    """The whole spec as plain JSON data, references inlined, quantities as exact text with a unit."""
    return hardware.model_dump(mode="json", by_alias=True)


def hardware_from_resolved(data: Mapping[str, Any], name: str = "hardware") -> Hardware:
    """The inverse of :func:`resolved`; ``name`` stands in front of its errors.

    >>> hardware = load_hardware("eftrain-zcu102")
    >>> hardware_from_resolved(resolved(hardware)) == hardware
    True
    """
    return _finish(Draft(Document(name, deepcopy(dict(data))), None))


def digest(hardware: Hardware) -> str:
    """The sha256 of the resolved spec: its identity in results and caches."""
    text = json.dumps(resolved(hardware), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def assumptions(hardware: Hardware) -> tuple[Assumption, ...]:
    """What a result on this hardware should own up to: values assumed, fitted, recalled, or set by the user.

    Prices count if this hardware can use them.
    """
    data = resolved(hardware)
    stated = claims(data)
    weak: dict[Assumption, None] = {}
    for leaf in leaves(data):
        claim = covering(leaf, stated)
        if claim is not None and claim.certainty in WEAK:
            weak[Assumption(dotted(claim.path), claim.certainty, claim.source)] = None
    for (component, action), price in price_list(hardware).items():
        if price.certainty in WEAK and component not in ("chip", "board"):  # those two follow from the board
            weak[Assumption(f"energy of {component} {action}", price.certainty, price.source)] = None
    return tuple(weak)


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    text = os.fspath(name_or_path)
    if (
        isinstance(name_or_path, str)
        and not text.endswith((".yaml", ".yml", ".json"))
        and not {"/", os.sep} & set(text)
    ):
        known = list_hardware()
        if text not in known:
            raise UsageError(
                f"there is no shipped hardware {text[:64]!r}; shipped are {', '.join(known)}; "
                f"a spec of your own is named by its path, as in ./mine.yaml{did_you_mean(text, known)}"
            )
        return folder("hwspecs") / f"{text}.yaml"
    return Path(text)


def _finish(draft: Draft) -> Hardware:
    """Validates a draft, checks it as a design, and notes which values are defaults of the schema."""
    hardware = draft.validate()
    _require_sources(draft)
    if hardware is not None:
        for path, sentence in check.problems(hardware):
            draft.problem(path, sentence)
    draft.fail()
    assert hardware is not None
    data = resolved(hardware)
    stated = claims(data)
    defaults = tuple(dotted(leaf) for leaf in leaves(data) if covering(leaf, stated) is None)
    if not defaults:
        return hardware
    entry = Provenance(paths=defaults, certainty="assumed", source="default of the schema")
    return hardware.model_copy(update={"provenance": (*hardware.provenance, entry)})


def _require_sources(draft: Draft) -> None:
    """Every value needs a source, and every source a value."""
    stated = claims(draft.data)
    stands = {leaf[:n]: None for leaf in leaves(draft.data) for n in range(1, len(leaf) + 1)}
    for claim in stated.values():
        if claim.path not in stands and not draft.is_full:
            text, names = dotted(claim.path), [dotted(path) for path in stands]
            draft.problem(claim.place, f"covers no value of the spec: {text!r}{did_you_mean(text, names[:1000])}")
    for leaf in leaves(draft.data):
        if covering(leaf, stated) is None and not draft.is_missing(leaf):
            draft.problem(leaf, "has no source; name it, or a key above it, under paths in provenance")
