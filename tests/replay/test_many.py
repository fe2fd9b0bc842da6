"""A sweep shares mappings, cycles and counts, and every result is the one that its hardware has alone."""

import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jouletrace
from jouletrace.errors import EnergyError, MappingError
from jouletrace.hardware.energy import PriceList
from jouletrace.hardware.load import digest, list_hardware, load_hardware
from jouletrace.hardware.spec import EnergyTable, Hardware
from jouletrace.mapping.designs import weighs_prices
from jouletrace.mapping.memory import SWITCH
from jouletrace.mapping.program import Program
from jouletrace.mapping.step import map_step
from jouletrace.replay import step as single
from jouletrace.testing import hardware_specs
from jouletrace.testing.steps import Step
from jouletrace.trace.model import Trace

ENERGY = ("array.schedule.objective=energy",)


def small() -> Trace:
    step = Step("small", batch=2)
    x = step.conv("conv1", step.given("images", (2, 3, 8, 8), "input"), channels=4)
    x = step.pool("pool", "max", step.function("relu", "relu", step.norm("norm", "batch", x)), 2)
    step.loss(step.linear("fc", x, 10), classes=10)
    return step.trace()


TRACE = small()


def dearer(table: EnergyTable, times: int) -> EnergyTable:
    """Every entry ``times`` as dear, and by no certain source."""
    entries = {
        name: entry.model_copy(update={
            "energy_aj": times * entry.energy_aj, "low_aj": times * entry.low_aj, "high_aj": times * entry.high_aj,
            "certainty": "assumed", "source": f"times {times}",
        })
        for name, entry in table.entries.items()
    }  # fmt: skip
    points = tuple(
        point.model_copy(update={name: times * getattr(point, name) for name in ("energy_aj", "low_aj", "high_aj")})
        for point in table.sram
    )
    return table.model_copy(update={"name": f"{table.name}-{times}", "entries": entries, "sram": points})


def repriced(hardware: Hardware, times: int) -> Hardware:
    """The same design with everything else set otherwise: all energies and powers, all that says where they are from."""
    energy, board, dram, device = hardware.energy, hardware.board, hardware.dram, hardware.dram.device
    tables = ((name, getattr(energy, name)) for name in type(energy).model_fields)
    powers = {name: tuple(times * watts for watts in getattr(board, name)) for name in ("chip_static", "board_idle")}
    drawn = {
        "name": "another part", "vdd_uv": times * device.vdd_uv, "provenance": device.provenance[:1],
        "idd_na": {name: (times + (name == "IDD0")) * current for name, current in device.idd_na.items()},
        "measured_ratio": {name: tuple(r / 2 for r in ratios) for name, ratios in device.measured_ratio.items()},
        "interface_read_aj_per_bit": device.interface_read_aj_per_bit + times,
        "interface_write_aj_per_bit": device.interface_write_aj_per_bit + times,
    }  # fmt: skip
    return hardware.model_copy(update={
        "name": f"{hardware.name}-{times}", "description": "another", "citation": "another",
        "provenance": tuple(p.model_copy(update={"certainty": "user"}) for p in hardware.provenance),
        "energy": energy.model_copy(update={name: table and dearer(table, times) for name, table in tables}),
        "board": board.model_copy(update={"name": "another", "device": "another", "provenance": (), **powers}),
        "dram": dram.model_copy(update={
            "device": device.model_copy(update=drawn), "use_measured_ratio": not dram.use_measured_ratio,
        }),
    })  # fmt: skip


def alone(hardware: Hardware) -> str:
    """What a single replay says that remembers nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "1")
        return jouletrace.simulate(TRACE, hardware).to_json()


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the hardwares for which the step was mapped."""
    names: list[str] = []

    def counted(trace: Trace, hardware: Hardware, *, only: str | None = None) -> Program:
        names.append(hardware.name)
        return map_step(trace, hardware, only=only)

    monkeypatch.setattr(single, "map_step", counted)
    return names


@given(st.lists(hardware_specs(), min_size=1, max_size=2), st.integers(2, 5))
@settings(max_examples=15)
def test_every_point_of_a_sweep_is_byte_for_byte_its_single_result(specs: list[Hardware], times: int) -> None:
    sweep = [*specs, *(repriced(spec, times) for spec in specs), *specs]
    assert [r.to_json() for r in jouletrace.simulate_many(TRACE, sweep)] == [alone(hardware) for hardware in sweep]


@pytest.mark.parametrize("name", list_hardware())
def test_a_shipped_design_is_mapped_once_for_all_its_prices(name: str, mapped: list[str]) -> None:
    hardware = load_hardware(name)
    sweep = [hardware, repriced(hardware, 2), repriced(hardware, 3), hardware]
    results = list(jouletrace.simulate_many(TRACE, sweep))
    assert [r.hardware_digest for r in results] == [digest(h) for h in sweep]
    assert len({r.energy().energy_aj for r in results}) == 3, "the prices are other ones"
    assert [r.execution and r.execution.program.hardware for r in results] == [h.name for h in sweep]
    assert mapped == [h.name for h in (sweep[:3] if weighs_prices(hardware) else sweep[:1])]


def test_of_an_energy_sweep_only_the_first_point_is_mapped(mapped: list[str]) -> None:
    sweep = [load_hardware("zedboard-int8", [f"board.board_idle=[1 W, {w} W, 9 W]"]) for w in range(2, 8)]
    results = list(jouletrace.simulate_many(TRACE, sweep))
    assert len(mapped) == 1
    energies = [r.energy().energy_aj for r in results]
    watts = {b - a for a, b in pairwise(energies)}
    assert len({r.cycles for r in results}) == 1
    assert len(watts) == 1, "each watt more costs the same"
    assert watts.pop() > 0


@pytest.mark.parametrize(
    "setting",
    ["clock=50 MHz", "dram.bandwidth=1 GB/s", "dram.device.row=512 B", "board.dram=1 GiB", "vector.lanes=1",
     "streams.input.start_cycles=41", "array.out_channels=8", "buffers.input.size=150 KiB", "buffers.input.copies=1",
     "buffers.vector.size=70 KiB", "buffers.input.word=64 bit", "dram.device.timing_cycles.tRC=99", *ENERGY],
)  # fmt: skip
def test_whatever_else_differs_is_mapped_anew(setting: str, mapped: list[str]) -> None:
    sweep = [load_hardware("eftrain-zcu102"), load_hardware("eftrain-zcu102", [setting])]
    results = [r.to_json() for r in jouletrace.simulate_many(TRACE, sweep)]
    assert len(mapped) == 2
    assert results == [alone(hardware) for hardware in sweep]


def asks_prices(hardware: Hardware) -> bool:
    """Whether any mapping looks prices up."""
    asked: list[Hardware] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "1")
        map_step(TRACE, hardware)  # some modules are imported when they are needed
        for name, module in list(sys.modules.items()):
            prices = getattr(module, "price_list", None)
            if name.startswith("jouletrace.mapping.") and prices is not None:

                def spied(spec: Hardware, prices: object = prices) -> PriceList:
                    asked.append(spec)
                    return prices(spec)  # type: ignore[operator]

                patch.setattr(module, "price_list", spied)
        map_step(TRACE, hardware)
    return bool(asked)


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, ()) for name in list_hardware()), ("eftrain-zcu102", ENERGY),
     ("eftrain-zcu102", ("array.schedule.objective=product",))],
)  # fmt: skip
def test_prices_stay_out_of_the_key_only_where_no_mapping_asks_for_them(name: str, settings: tuple[str, ...]) -> None:
    hardware = load_hardware(name, settings)
    assert asks_prices(hardware) == weighs_prices(hardware)


@pytest.mark.parametrize(("name", "settings"), [("eyeriss", ()), ("eftrain-zcu102", ENERGY)])
def test_where_prices_choose_the_tiles_each_set_of_them_is_mapped(
    name: str, settings: tuple[str, ...], mapped: list[str]
) -> None:
    hardware = load_hardware(name, settings)
    dear = hardware.energy.model_copy(update={"buffers": dearer(hardware.energy.buffers, 1000)})
    elsewhere = hardware.model_copy(update={"name": "elsewhere", "description": "another"})
    sweep = [hardware, hardware.model_copy(update={"energy": dear}), elsewhere]
    results = [r.to_json() for r in jouletrace.simulate_many(TRACE, sweep)]
    assert len(mapped) == 2, "the third has another name alone"
    assert results == [alone(hardware) for hardware in sweep]


def test_points_come_in_order_and_when_they_are_asked_for(mapped: list[str]) -> None:
    drawn: list[str] = []
    seen: list[tuple[int, int]] = []

    def points() -> Iterator[Hardware]:
        for name in ("zedboard-int8", "eftrain-zcu102", "zedboard-int8"):
            drawn.append(name)
            yield load_hardware(name)

    results = jouletrace.simulate_many(TRACE, points(), progress=lambda *n: seen.append(n))
    assert (drawn, mapped) == ([], [])
    assert next(results).hardware["name"] == "zedboard-int8"
    assert (drawn, mapped, seen) == (["zedboard-int8"], ["zedboard-int8"], [(1, 0)])
    assert [r.hardware["name"] for r in results] == ["eftrain-zcu102", "zedboard-int8"]
    assert mapped == ["zedboard-int8", "eftrain-zcu102"]


def test_progress_tells_how_many_there_are_where_it_can() -> None:
    seen: list[tuple[int, int]] = []
    spec = load_hardware("zedboard-int8")
    assert len(list(jouletrace.simulate_many(TRACE, [spec, spec], progress=lambda *n: seen.append(n)))) == 2
    assert seen == [(1, 2), (2, 2)]


def test_what_failed_is_not_shared_and_names_the_hardware_to_blame() -> None:
    full = load_hardware("zedboard-int8")
    board = full.board.model_copy(update={"dram_bytes": 1000})
    tiny = full.model_copy(update={"board": board})
    other = tiny.model_copy(update={"board": board.model_copy(update={"name": "other"})})
    for hardware, blamed in ((tiny, board.name), (other, "other")):
        results = jouletrace.simulate_many(TRACE, [full, hardware])
        next(results)
        with pytest.raises(MappingError, match=f"board '{blamed}' has"):
            next(results)
    unpriced = full.model_copy(update={
        "energy": full.energy.model_copy(update={"array": full.energy.array.model_copy(update={"entries": {}})})
    })  # fmt: skip
    results = jouletrace.simulate_many(TRACE, [full, unpriced])
    next(results)
    with pytest.raises(EnergyError, match="has no price for array"):
        next(results)


def test_the_steps_that_are_kept_are_bounded(mapped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jouletrace.replay.many.COMMANDS", 1)
    a, b = load_hardware("zedboard-int8"), load_hardware("eftrain-zcu102")
    list(jouletrace.simulate_many(TRACE, [a, a, b, a]))
    assert mapped == [a.name, b.name, a.name]


def test_without_memory_every_point_is_replayed(mapped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    spec = load_hardware("zedboard-int8")
    list(jouletrace.simulate_many(TRACE, [spec, spec]))
    assert len(mapped) == 2
