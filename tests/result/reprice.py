"""Prices a result file again, from nothing but the file: python reprice.py RESULT.json

Written apart from jouletrace, for whoever wants to check it or to put other prices in.
"""

import json
import sys
from collections import Counter

SCOPES = ("chip", "chip+dram", "board")  # each one holds those before it


def reprice(file: dict) -> dict[str, dict[str, int]]:
    """Energies in aJ: {scope: {"energy_aj", "low_aj", "high_aj"}}."""
    counts = Counter()
    for op in file["ops"]:
        counts.update(op["counts"])
    scope_of = {entry["component"]: SCOPES.index(entry["scope"]) for entry in file["components"]}
    sums = {scope: dict.fromkeys(("energy_aj", "low_aj", "high_aj"), 0) for scope in SCOPES}
    for price in file["prices"]:
        n = counts.pop(f"{price['component']}.{price['action']}")
        for scope in SCOPES[scope_of[price["component"]] :]:
            for end in sums[scope]:
                sums[scope][end] += n * int(price[end])
    assert not counts, f"no price for {', '.join(counts)}"
    return sums


if __name__ == "__main__":
    with open(sys.argv[1]) as text:
        for scope, energy in reprice(json.load(text)).items():
            print(scope, *energy.values())
