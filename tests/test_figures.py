"""Figures: the same bytes from the same numbers, marks where the data are, and something to read on an empty pool."""

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from simulated_results import BITS, LAWS, SEEDS, empty_fit, empty_tables, write_results

from replications import results
from replications.comparison import elasticities
from replications.comparison.figures import both_phases
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.report.figures import style
from shared.report.figures.deltas import delta_figure, short
from shared.report.figures.forest import Mark, Row, forest_figure
from shared.report.figures.gallery import Drawing, read_gallery, slim, write_gallery
from shared.report.figures.paper import Material, constants_drawing, delta_drawing, slope_drawing
from shared.report.figures.points import points
from shared.report.figures.slopes import local_slopes, slope_figure
from shared.report.results import read_fit

PAPER = "kumar_precision"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables, fits and claims, with one paper's figures drawn."""
    folder = write_results(tmp_path_factory.mktemp("figures"))
    results.draw_paper(PAPER, folder)
    return folder


@pytest.fixture(scope="module")
def material(reports: Path) -> Material:
    return Material(read_fit(reports / PAPER / "fit.json"), results.phase_points(PAPER, reports))


def test_another_process_draws_the_same_bytes(reports: Path, tmp_path: Path) -> None:
    copy = tmp_path / "reports"
    (copy / PAPER).mkdir(parents=True)
    for name in ("runs.csv", "measurements.csv", f"{PAPER}/fit.json"):
        (copy / name).write_bytes((reports / name).read_bytes())
    command = [sys.executable, "-m", "replications.cli", "replicate", "figures", PAPER, "--reports", str(copy)]
    # Another seed for the hashes of strings: no set may decide an order.
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True)
    drawn = sorted((copy / PAPER).glob("*.[sp][vn]g"))
    assert len(drawn) == 10
    for path in [*drawn, copy / PAPER / "figures.json"]:
        assert path.read_bytes() == (reports / PAPER / path.name).read_bytes(), path.name


def test_an_svg_holds_text_and_neither_time_nor_version(reports: Path) -> None:
    for path in (reports / PAPER).glob("*.svg"):
        svg = path.read_text(encoding="utf-8")
        assert "<text" in svg
        assert "dc:date" not in svg
        assert "Matplotlib" not in svg
        assert path.stat().st_size < 300_000


def test_a_png_holds_pixels_and_nothing_about_its_making(reports: Path) -> None:
    for path in (reports / PAPER).glob("*.png"):
        data, at, kinds = path.read_bytes(), 8, set()
        while at < len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            kinds.add(kind)
            at += 12 + length
        assert kinds == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}, path.name


def test_a_failed_drawing_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_text("old", encoding="utf-8")

    def fail(self: object, *args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(style.FigureCanvasAgg, "print_png", fail)
    with style.theme(), pytest.raises(OSError, match="No space left"):
        style.save(style.empty("nothing"), tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text(encoding="utf-8") == "old"


def test_points_are_means_over_seeds_with_both_kinds_of_error(reports: Path, material: Material) -> None:
    rows = pd.read_csv(reports / "measurements.csv")
    rows = rows[(rows["size"] == "S") & (rows["bits"] == 4) & rows["cooled"] & (rows["group_size"] == "channel")]
    rows = rows[rows["tokens"] == 8 * 2**20]
    table = material.points["cooled"]
    point = table[(table["size"] == "S") & (table["bits"] == 4) & (table["D"] == 8 * 2**20)].iloc[0]
    assert point["seeds"] == len(rows) == SEEDS["S"]
    assert point["delta"] == pytest.approx(rows["delta"].mean())
    assert point["sd"] > np.sqrt((rows["delta_se"] ** 2).mean())
    assert point["high"] - point["low"] == pytest.approx(2 * 1.96 * point["sd"], rel=1e-3)
    one_seed = table[(table["size"] == "M") & (table["bits"] == 4) & (table["D"] == 8 * 2**20)].iloc[0]
    assert one_seed["sd"] / one_seed["delta"] > point["sd"] / point["delta"]


def test_points_say_what_became_of_them(material: Material) -> None:
    table = material.points["cooled"]
    assert set(table[table["D"] == 2**20]["use"]) == {"short"}  # 256 steps
    assert set(table[table["D"] == 2**25]["use"]) == {"held out"}
    assert set(table[(table["D"] == 2**23) & (table["size"] == "S")]["use"]) == {"fitted"}


def test_phases_and_diverged_runs_never_mix() -> None:
    row = {"phase": "cooled", "group_size": "channel", "use": "fitted", "delta_se": 0.01, "trunk_id": "a", "size": "S"}
    row |= {"N": 1e5, "D": 1e6, "bits": 4.0, "format": "INT4", "delta": 0.1}
    other = {**row, "phase": "trunk", "delta": 9.0}
    gone = {**row, "use": "diverged", "delta": np.nan, "trunk_id": "b"}
    table = points(LAWS[PAPER][0], pd.DataFrame([row, other, gone]), "cooled", "channel")
    assert list(table["delta"]) == [0.1]
    assert list(table["seeds"]) == [1]


def xs(line: Any) -> list[float]:
    return [float(x) for x in line.get_xdata()]


def ys(line: Any) -> list[float]:
    return [float(y) for y in line.get_ydata()]


def markers(figure: Figure, marker: str) -> list[tuple[float, float]]:
    """(x, y) of every mark of one shape in the panels of data."""
    found = []
    for axes in figure.axes:
        for line in axes.lines:
            if line.get_marker() == marker and axes.axison:
                found += list(zip(xs(line), ys(line), strict=True))
    return found


def test_a_delta_not_distinct_from_zero_is_a_triangle_at_its_upper_end(material: Material) -> None:
    table = material.points["cooled"]
    unseen = table[(table["low"] <= 0) & (table["high"] > 0)]
    assert len(unseen), "the simulated noise must drown some deltas"
    with style.theme():
        drawn = markers(delta_figure(table, None), "v")
    assert sorted(drawn) == sorted(zip(unseen["D"], unseen["high"], strict=True))


def test_a_panel_without_any_positive_delta_says_so(material: Material, tmp_path: Path) -> None:
    table = material.points["cooled"].copy()
    lost = table["bits"] == 8
    table.loc[lost, ["delta", "low", "high"]] = [-0.02, -0.03, -0.01]
    with style.theme():
        figure = delta_figure(table, None)
        style.save(figure, tmp_path, "delta")
    assert (tmp_path / "delta.svg").read_text(encoding="utf-8").count("is negative") == 1


def test_fitted_lines_are_the_curves_of_the_fit(material: Material) -> None:
    part = material.fit.part("cooled")
    assert part is not None
    with style.theme():
        figure = delta_figure(material.points["cooled"], part)
    panel = next(axes for axes in figure.axes if axes.get_title() == "4 bits")
    lines = [line for line in panel.lines if line.get_linestyle() == "-" and len(xs(line)) > 2]
    curves = [curve for curve in part.curves if curve["bits"] == 4]
    assert len(lines) == len(curves) == len(SEEDS)
    for line, curve in zip(lines, curves, strict=True):
        assert ys(line) == pytest.approx(curve["delta"])
    assert len(panel.collections) >= len(curves)  # bands


def test_local_slopes_stand_beside_fitted_and_published_exponent(material: Material) -> None:
    part = material.fit.part("cooled")
    assert part is not None
    with style.theme():
        figure = slope_figure(part, 0.5068)
    levels = {ys(line)[0] for line in figure.axes[0].lines if len(set(ys(line))) == 1}
    assert {0.0, part.elasticities["D"]["value"], 0.5068} <= levels
    slopes = local_slopes(part)
    first = slopes.iloc[0]
    assert first["ratio"] == pytest.approx(np.sqrt(first["D_from"] * first["D_to"]) / first["N"])


def test_a_slope_without_value_is_left_out(material: Material) -> None:
    part = material.fit.part("cooled")
    assert part is not None
    nowhere = {"N": 1e5, "bits": 8, "D_from": 1, "D_to": 2, "value": None, "low": None, "high": None}
    more = replace(part, local_elasticities=[*part.local_elasticities, nowhere])
    assert len(local_slopes(more)) == len(local_slopes(part)) > 0


def test_the_forest_sets_every_value_on_its_row(material: Material) -> None:
    with style.theme():
        figure = constants_drawing(material, (("gamma_D", "gamma_D"), ("C_T", "C_T"))).figure
    ours = [part.parameters["gamma_D"]["value"] for part in material.fit.parts]
    drawn = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "s", "D")]
    assert [xs(line)[0] for line in drawn] == [LAWS[PAPER][1]["gamma_D"], *ours]
    assert [ys(line)[0] for line in drawn] == list(range(len(ours) + 1))


def test_a_panel_that_spans_decades_is_logarithmic_unless_zero_is_in_it() -> None:
    rows = [Row("published", "published", {"a": Mark(0.01), "b": Mark(0.01)})]
    rows += [Row("ours", "cooled", {"a": Mark(5.0, 1.0, 9.0), "b": Mark(5.0, -1.0, 9.0)})]
    with style.theme():
        figure = forest_figure([("a", "a"), ("b", "b")], rows)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]


def test_a_law_without_some_constant_says_none() -> None:
    rows = [Row("published", "published", {}), Row("ours", "trunk", {"a": Mark(1.0, 0.5, 2.0)})]
    with style.theme():
        figure = forest_figure([("a", "a")], rows)
    assert [text.get_text() for text in figure.axes[0].texts] == ["none"]


def test_captions_count_what_is_drawn(material: Material) -> None:
    table = material.points["trunk"]
    drawing = delta_drawing(material, "trunk", "the law")
    assert f"Of {len(table)} points, {int((table['low'] <= 0).sum())} are not distinct from zero" in drawing.caption
    part = material.fit.part("trunk")
    slopes = local_slopes(part)
    crossing = int(((slopes["low"] <= 0) & (slopes["high"] >= 0)).sum())
    assert f"{crossing} of {len(slopes)} intervals hold zero" in slope_drawing(material, "trunk", "gamma_D").caption


def test_cooled_against_trunk_pairs_equal_cells(material: Material) -> None:
    both = both_phases(material.points["cooled"], material.points["trunk"])
    assert set(both["bits"]) <= set(BITS)
    cooled = material.points["cooled"].set_index(["size", "D", "bits"])
    trunk = material.points["trunk"].set_index(["size", "D", "bits"])
    for row in both.itertuples():
        key = (row.size, row.D, row.bits)
        assert row.ratio == pytest.approx(cooled.loc[key, "delta"] / trunk.loc[key, "delta"])
        assert row.low < row.ratio < row.high
    assert not both.empty


def test_comparison_has_a_published_row_and_a_row_for_each_fit(reports: Path) -> None:
    fits = results.fits(reports)
    rows = elasticities.compare(fits)
    assert [row["source"] for row in rows].count("published") == len(fits) == 2
    assert len(rows) == 2 + sum(len(fit.parts) for fit in fits)
    published = next(row for row in rows if row["paper"] == PAPER and row["source"] == "published")
    assert published["D"]["value"] == LAWS[PAPER][1]["gamma_D"]
    assert published["D"]["low"] is None
    assert published["bits"]["at"] == 4


def test_the_comparison_stage_writes_its_table_and_figures(reports: Path) -> None:
    written = results.compare(reports)
    assert all(path.stat().st_size > 0 for path in written)
    names = {shown.name for shown in read_gallery(reports / "comparison")}
    assert names == {"elasticities", "cooled_against_trunk", "copying"}
    assert len(read_json(reports / "comparison" / "elasticities.json")) == 31


@pytest.mark.parametrize("tables", ["absent", "headers only"])
def test_an_empty_pool_gets_every_figure_and_each_says_what_is_missing(tmp_path: Path, tables: str) -> None:
    if tables == "headers only":
        empty_tables(tmp_path)
    for paper in LAWS:
        write_json(tmp_path / paper / "fit.json", empty_fit(paper))
        results.draw_paper(paper, tmp_path)
        assert len(list((tmp_path / paper).glob("*.png"))) == 5
        for path in (tmp_path / paper).glob("*.svg"):
            assert "needs runs" in path.read_text(encoding="utf-8")
    results.compare(tmp_path)
    assert "needs runs" in (tmp_path / "comparison" / "cooled_against_trunk.svg").read_text(encoding="utf-8")


def test_a_fit_that_lacks_a_key_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / PAPER / "fit.json", {"paper": PAPER, "law": "kumar_eq2"})
    with pytest.raises(BitlawError, match=r"fit\.json: is no paper's fit .inputs: field required"):
        results.draw_paper(PAPER, tmp_path)


def test_an_unknown_paper_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BitlawError, match="did you mean 'kumar_precision'"):
        results.draw_paper("kumar_precison", tmp_path)


def test_a_gallery_gives_its_figures_back_as_data(tmp_path: Path) -> None:
    with style.theme():
        write_gallery(tmp_path, [Drawing("a", "what it shows", "what there is to see", style.empty("here"))])
    (shown,) = read_gallery(tmp_path)
    kind, encoded = shown.svg.split(",")
    assert kind == "data:image/svg+xml"
    assert unquote(encoded) == " ".join(slim((tmp_path / "a.svg").read_text()).split())
    assert not set(encoded) & set("<>&'\"#%") - {"%"}
    (tmp_path / "a.svg").unlink()
    with pytest.raises(BitlawError, match=r"a\.svg: cannot be read"):
        read_gallery(tmp_path)


def test_labels() -> None:
    assert [style.count_label(value) for value in (106_496, 851_968, 33_554_432, 2.4e9, 640)] == [
        "0.11M", "0.85M", "34M", "2.4B", "640",
    ]  # fmt: skip
    assert [style.tokens_label(value) for value in (2**20, 2**25, 2**18)] == ["1M", "32M", "0.25M"]
    assert [short(value) for value in (2.0, 0.05, 0.0005, 0.00002)] == ["2", "0.05", "5e-4", "2e-5"]


def test_colours_are_those_made_for_colour_blind_readers() -> None:
    assert [to_hex(color) for color in style.PALETTE[:3]] == ["#0173b2", "#de8f05", "#029e73"]
    assert len(set(style.MARKERS)) == len(style.MARKERS) >= 6  # a shape for each size, beside its colour
