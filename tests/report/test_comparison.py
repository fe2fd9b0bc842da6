"""Reports of a comparison made by hand (see comparisons.py): every figure that is expected here can be followed there."""

import csv
import io
import json
from dataclasses import replace
from fractions import Fraction

import pytest

from jouletrace.comparison.model import Comparison
from jouletrace.report.comparison import print_comparison
from jouletrace.report.comparison_figures import PARTS, energy_by_part, way
from jouletrace.report.comparison_files import export_comparison_csv, export_comparison_json
from jouletrace.report.waterfall import export_comparison_picture
from jouletrace.report.wide_table import folded

from .comparisons import JOULE, figure, toy


@pytest.fixture(autouse=True)
def _no_width_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def printed(comparison: Comparison, **options: object) -> str:
    page = io.StringIO()
    from jouletrace.report.comparison import comparison_report
    from jouletrace.report.terminal import print_page

    print_page(comparison_report(comparison, **options), page)  # type: ignore[arg-type]
    return page.getvalue()


def line(page: str, section: str, begin: str) -> list[str]:
    """The words of the first line of a section that begins so."""
    inside = page[page.index(f"\n{section}") :].splitlines()[2:]
    return next(text for text in inside if text.strip().startswith(begin)).split()


def test_one_step() -> None:
    page = printed(toy())
    # 100 + 50 + 10 J on the chip, 120 J more with DRAM, 200 J more with the board.
    assert line(page, "One step", "baseline") == [
        "baseline", "small-fp32", "5,000", "160", "J", "-", "280", "J", "-", "480", "J", "-",
    ]  # fmt: skip
    # Four fifths of 10 + 15 + 5, of 30 more, of 200 more: 24, 48 and 208 J.
    assert line(page, "One step", "drop+skip+int8")[3:] == ["24", "J", "85.0%", "48", "J", "82.9%", "208", "J", "56.7%"]


def test_whole_training_with_its_spread_over_seeds() -> None:
    page = printed(toy())
    # 1000 steps of 480 J and 1000 loadings of 20 J; 660, 670 and 668 of both.
    assert line(page, "Whole training", "baseline")[1:] == [
        "1,000", "50", "ms", "160", "kJ", "-", "300", "kJ", "-", "500", "kJ", "-",
    ]  # fmt: skip
    # Mean 666; the deviation of the mean is 3.055 of 1000, times 4.303 for two degrees of freedom: 1.3 %.
    assert line(page, "Whole training", "drop ")[1:4] == ["666", "33.3", "ms"]
    assert line(page, "Whole training", "drop ")[-2:] == ["kJ", "33.4+-1.3%"]
    assert line(page, "Whole training", "skip:")[-1] == "19.2%", "one training, and so no spread"


def test_work_adds_up() -> None:
    page = printed(toy())
    # 1000 M - 200 M + 500 k: what a gate costs is not hidden in what it saves.
    assert line(page, "Work", "skip:")[1:7] == ["800.5", "M", "200", "M", "500", "k"]


def test_energies_are_split_by_component_and_phase() -> None:
    page = printed(toy(), scope="chip+dram")
    energy = page[page.index("\nEnergy") :]
    assert "whole training, first seed, chip + DRAM" in energy
    assert "board idle" not in energy
    assert line(page, "Energy", "array") == ["array", "100", "kJ", "66", "kJ", "80", "kJ", "5.28", "kJ"]
    assert line(page, "Energy", "loading") == ["loading", "20", "kJ", "13.2", "kJ", "20", "kJ", "13.2", "kJ"]


def test_idle_power_moves_what_is_saved() -> None:
    page = printed(toy())
    # 500 kJ with 200 kJ of the idle board; the combination: 150.48 kJ with 105.6 kJ. Halved: 1 - 97.68 / 400.
    assert line(page, "Energy", "0.5 x")[-1] == "75.6%"
    # Doubled: 1 - 256.08 / 700.
    assert line(page, "Energy", "2 x")[-1] == "63.4%"


def test_way_from_the_baseline_to_the_combination() -> None:
    assert [label for label, _ in way(toy())] == ["baseline", "+ drop", "+ skip", "+ int8 @small-int8"]
    page = printed(toy())
    assert line(page, "From the baseline", "+ drop")[2:7] == ["330", "kJ", "66.0%", "-34.0", "points"]
    assert "From the baseline" not in printed(replace(toy(), waterfall=()))


def test_more_energy_than_the_baseline_is_said() -> None:
    worse = replace(toy().columns[0], label="worse", step=figure(Fraction(3, 2)), runs=(figure(Fraction(3, 2)),))
    comparison = replace(toy(), baseline=replace(toy().baseline, runs=(figure(),)), columns=(worse,), waterfall=(worse,))
    page = printed(comparison)
    assert line(page, "One step", "worse")[-1] == "-50.0%"
    assert "+50.0 points" in page


def test_reasons_are_grouped_and_told_on_request() -> None:
    assert "--why says why: skip:share=1/5,granularity=per_batch 6" in printed(toy())
    page = printed(toy(), why=True)
    assert line(page, "Places left alone", "skip:")[1:3] == ["5", "its"]
    assert "layer1.0, layer2.0, layer3.0, ..." in page
    assert "no residual connection" in page


def test_limits_of_the_comparison_are_owned_up_to() -> None:
    page = printed(toy())
    for words in (
        "on small-int8: drop+skip+int8; what they save is the difference of two builds",
        "two thirds of the iterations; A Paper, section 4.2 (recalled)", "small-fp32  1 assumed, 1 set by you",
    ):  # fmt: skip
        assert words in page, words
    full = replace(toy().baseline, runs=(replace(figure(peak_bytes=2000), micro_batch=8),))
    assert "micro-batch 8" in printed(replace(toy(), baseline=full))
    assert "EXCEEDED as allowed" in printed(replace(toy(), baseline=full))


def test_step_alone_has_no_training() -> None:
    comparison = toy()
    columns = tuple(replace(column, runs=()) for column in comparison.columns)
    page = printed(replace(comparison, baseline=replace(comparison.baseline, runs=()), columns=columns, waterfall=()))
    assert "one step, no training" in page
    assert "Whole training" not in page
    assert line(page, "Work", "baseline")[1:3] == ["1", "M"]


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_no_number_is_cut_on_a_narrow_page(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that do not fit go on below."""
    monkeypatch.setenv("COLUMNS", str(columns))
    page = printed(toy(), why=True)
    assert page.isascii()
    assert max(map(len, page.splitlines())) <= columns
    for number in ("33.4+-1.3%", "90.0+-0.2%", "150.5 kJ", "800.5 M", "553.6 G", "63.4%"):
        assert number in page, number


def test_report_stays_short() -> None:
    comparison = toy()
    columns = [replace(comparison.columns[0], label=f"plan{i}") for i in range(6)]
    assert len(printed(replace(comparison, columns=tuple(columns))).splitlines()) <= 75


def test_terminal_is_the_default_place(capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(toy())
    assert capsys.readouterr().out == printed(toy())


def test_long_labels_are_broken_between_strategies_first() -> None:
    assert folded("smd+slu+psg", 8) == "smd+slu+\npsg"
    assert folded("slu:skip=2/5,granularity=per_batch", 14) == "slu:skip=2/5,\ngranularity=\nper_batch"
    assert folded("a" * 25, 10).split("\n") == ["a" * 10, "a" * 10, "a" * 5]


# -- files


def document(comparison: Comparison) -> str:
    file = io.StringIO()
    export_comparison_json(file, comparison)
    return file.getvalue()


def test_json_holds_every_figure_exactly() -> None:
    text = document(toy())
    data = json.loads(text)
    assert (data["format"], data["version"]) == ("jouletrace-comparison", "1.0")
    assert data["trace"] == {"name": "toy", "digest": "sha of the trace", "batch": 32}
    baseline, drop, skip, both = data["columns"]
    assert baseline["runs"][0]["scopes"]["board"] == {
        "energy_aj": str(500_000 * JOULE), "low_aj": str(450_000 * JOULE), "high_aj": str(550_000 * JOULE),
    }  # fmt: skip
    assert [run["seed"] for run in drop["runs"]] == [0, 1, 2]
    assert drop["runs"][1]["rewrites"] == [
        {"strategy": "drop", "parameters": {"p": "1/2"}, "seed": 1, "input_digest": "sha of the run"}
    ]
    assert drop["run"]["saving"]["board"]["mean"] == pytest.approx(0.334)
    assert skip["run"]["work_macs"] == {"executed": "800500000", "skipped": "200000000", "added": "500000"}
    assert skip["left"][0] == {
        "reason": "its first convolution changes the shape", "places": [f"layer{i}.0" for i in range(1, 6)],
    }  # fmt: skip
    assert both["hardware_digest"] == "sha of small-int8"
    assert [step["label"] for step in data["waterfall"]] == ["baseline", "+ drop", "+ skip", "+ int8 @small-int8"]
    assert [row["value"] for row in data["published"]] == ["0.2"]
    for column in data["columns"]:
        for result in (column["step"], *column["runs"]):
            parts = sum(int(part["energy_aj"]) for part in result["parts"])
            assert parts == int(result["scopes"]["board"]["energy_aj"])


def test_files_are_the_same_every_time() -> None:
    assert document(toy()) == document(toy())
    text = document(toy())
    assert json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n" == text, "canonical"


def test_csv_is_tidy_and_adds_up() -> None:
    file = io.StringIO()
    export_comparison_csv(file, toy())
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    runs = [row for row in rows if row["label"] == "drop" and row["of"] == "run" and row["seed"] == "0"]
    assert sum(float(row["energy_pj"]) for row in runs) == pytest.approx(660 * 500 * 10**12)
    key = ("label", "of", "seed", "component", "phase")
    assert len({tuple(row[name] for name in key) for row in rows}) == len(rows)
    assert {row["seed"] for row in rows if row["of"] == "step"} == {""}


def test_parts_have_an_order_and_add_up() -> None:
    parts = energy_by_part(figure())
    assert list(parts) == [part for part in PARTS if part in parts] == ["array", "buffers", "DRAM", "board idle"]
    assert sum(energy.energy_aj for energy in parts.values()) == 480 * JOULE


# -- picture


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_picture_is_the_same_every_time(kind: str) -> None:
    pytest.importorskip("matplotlib")
    first, again = io.BytesIO(), io.BytesIO()
    for file in (first, again):
        export_comparison_picture(file, toy(), kind=kind)
    assert first.getvalue() == again.getvalue()
    if kind == "svg":
        text = first.getvalue().decode()
        for words in ("-34.0 points", "150.5 kJ, 30.1%", "+ int8 @small-int8", "board idle", "granularity=per_batch"):
            assert f">{words}<" in text, f"{words} stands in the picture as text"
        assert "dc:date" not in text
    else:
        width = int.from_bytes(first.getvalue()[16:20])
        assert width == 1000


def test_texts_of_a_picture_do_not_overlap() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from jouletrace.report.waterfall import comparison_figure

    comparison = toy()
    many = replace(comparison, columns=comparison.columns * 2, waterfall=comparison.waterfall * 2)
    for shown in (comparison, many, replace(comparison, waterfall=())):
        drawn = comparison_figure(shown)
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [t for axes in drawn.axes for t in (*axes.texts, *axes.get_yticklabels(), axes.title, axes.xaxis.label)]
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text()]
        for i, (text, box) in enumerate(boxes):
            assert min(box.x0, drawn.bbox.width - box.x1) >= 0, f"{text!r} leaves the picture"
            for other, beside in boxes[i + 1 :]:
                assert not box.overlaps(beside), f"{text!r} and {other!r} overlap"
