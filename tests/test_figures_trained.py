"""Figures of low-precision training: points where the cells are, lines where the constants say, and what is missing."""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from simulated_low_precision import M1, of_multiplier, write_runs
from simulated_results import empty_tables

from replications.comparison import quantized
from replications.comparison.drawn import draw
from replications.low_precision import cells, material
from replications.papers import HELD_OUT
from replications.qat_scaling.law import delta as chen_delta
from shared.errors import BitlawError
from shared.files import write_json
from shared.laws.settings import HeldOut, read_settings
from shared.laws.tables import RUNS, read_table
from shared.report.evidence import Seen
from shared.report.figures import style
from shared.report.figures.gallery import Drawing, write_gallery
from shared.report.figures.trained import Trained
from shared.sweep.spec import RunSpec

PAPERS = ("compression_laws", "qat_scaling", "capybara_fp")
GROUPS = (("channel", "token"), ("8", "8"), ("32", "32"))
INTEGERS: list[dict[str, Any]] = [{"weights": f"INT4@{w}", "activations": f"INT4@{a}"} for w, a in GROUPS]
INTEGERS += [{"weights": "INT4@8"}, {"activations": "INT4@8"}, {"sparsity": 0.5}]
INTEGERS += [{"weights": "INT4@channel"}, {"sparsity": 0.5, "weights": "INT4@channel"}]
FLOATS = [
    {"weights": f"{form}@{g}", "weights_backward": f"{form}@{g}", "activations_backward": f"{form}@{a}"}
    for form, g, a in (
        ("E1M1", "channel", "token"),
        ("E1M1", "8", "8"),
        ("E2M1", "channel", "token"),
        ("E1M2", "8", "8"),
    )
]
ALONE = [{"weights_backward": "E1M1@channel"}, {"gradients_to_inputs": "E1M1@token"}]
CONSTANTS = {"k": 0.6, "gamma_N": 0.3, "gamma_D": 0.15, "gamma_G": 0.7}


def lost(spec: RunSpec) -> float:
    """Enough to tell every compression from none; its form is no matter here."""
    text = f"{spec.weights} {spec.activations} {spec.gradients_to_inputs} {spec.weights_backward}"
    return of_multiplier(spec, 0.8) * (1 + text.count("E1M1") + text.count("channel"))


def drawings(paper: str, found: Trained) -> dict[str, Drawing]:
    with style.theme():
        return {
            drawing.name: drawing for drawing in importlib.import_module(f"replications.{paper}.figures").draw(found)
        }


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with every paper's cells, the fit of multipliers, and quantities of the pool."""
    folder = tmp_path_factory.mktemp("trained") / "reports"
    path = write_runs(folder / "runs.csv", [*INTEGERS, *FLOATS, *ALONE], lost, noise=0.002)
    estimate: dict[str, Any] = {"low": 0.7, "high": 0.9, "loo_low": None, "loo_high": None, "published": None}
    parameters: dict[str, Any] = {
        name: {"value": v} | estimate for name, v in {"A": 150.0, "alpha": 0.45, "B": 1200.0, "beta": 0.48}.items()
    }
    parameters |= {
        name: {"value": v} | estimate for name, v in {"E": 1.2, "eff_W4": 0.8, "eff_sparse0.5": 0.85}.items()
    }
    view: dict[str, Any] = {
        "paper": "compression_laws",
        "view": "multipliers",
        "status": "CONVERGED",
        "parameters": parameters,
    }
    view |= {"reasons": [], "rows": 9, "compressed": 9, "rms": 0.01, "heldout": {"rows": 0, "median_abs_error": None}}
    write_json(folder / "comparison" / "trained.json", {"views": [view]})
    table = cells(read_table(path, RUNS), read_settings(HELD_OUT, HeldOut))
    seen = {f"pool/trained/chen/W4A4/{name}": value for name, value in CONSTANTS.items()}
    seen |= {"pool/trained/frantar/eff/W4": 0.82, "pool/trained/frantar/cell/W4/S, 8M tokens": 0.83}
    seen |= {"pool/trained/frantar/product/sparse0.5+W4/S, 8M tokens": 1.02}
    sun = {"level": -1.0, "phi": 0.4, "eta": 0.3, "kappa": 1.0, "channel": 1.9, "delta": 2.0, "nu": 1.5}
    seen |= {f"pool/trained/sun/{name}": value for name, value in sun.items()}
    evidence = {name: asdict(Seen(v, 0.9 * v, 1.1 * v, "S", "", "", 1)) for name, v in seen.items()}
    evidence |= {name: asdict(item) for name, item in quantized._layouts(draw(table[table["how"] != ""], 50)).items()}
    write_json(folder / "comparison" / "evidence.json", evidence)
    return folder


def numbers(line: Any) -> np.ndarray:
    """(points, 2) of a drawn line."""
    return np.array([line.get_xdata(), line.get_ydata()], dtype=float).T


def xy(figure: Figure, title: str, marker: str) -> np.ndarray:
    """(points, 2): marks of one shape in a panel, in order of x."""
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    found = np.concatenate([numbers(line) for line in axes.lines if line.get_marker() == marker])
    return found[np.argsort(found[:, 0])]


def curves(figure: Figure, title: str, kind: str) -> list[np.ndarray]:
    """x and y, (2, points), of each line of one kind in a panel."""
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    lines = [numbers(line) for line in axes.lines if line.get_linestyle() == kind]
    return [line.T for line in lines if len(line) > 2]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("tables", ["absent", "headers only"])
@pytest.mark.parametrize("paper", PAPERS)
def test_an_empty_pool_gets_every_figure_and_each_says_what_is_missing(tmp_path: Path, paper: str, tables: str) -> None:
    if tables == "headers only":
        empty_tables(tmp_path)
    drawn = drawings(paper, material(paper, tmp_path))
    assert len(drawn) in (5, 6)
    for name, drawing in drawn.items():
        assert words(drawing.figure).startswith("needs runs: "), name


@pytest.mark.parametrize("paper", PAPERS)
def test_every_figure_of_a_pool_with_all_cells_shows_them(reports: Path, paper: str) -> None:
    for name, drawing in drawings(paper, material(paper, reports)).items():
        assert "needs runs" not in words(drawing.figure), name
        assert sum(len(axes.lines) for axes in drawing.figure.axes) > 1, name


def test_the_same_table_gives_the_same_bytes(reports: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        drawn = drawings("qat_scaling", material("qat_scaling", reports))
        with style.theme():
            write_gallery(tmp_path / name, [drawn["delta_groups"], drawn["split"]])
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("paper", PAPERS)
def test_captions_are_sentences_without_placeholders(reports: Path, paper: str) -> None:
    for drawing in drawings(paper, material(paper, reports)).values():
        assert drawing.caption.endswith(".")
        assert drawing.alt.endswith(".")
        assert "{" not in drawing.caption + drawing.alt


def test_points_are_the_cells_and_lines_the_constants_of_both(reports: Path) -> None:
    found = material("qat_scaling", reports)
    figure = drawings("qat_scaling", found)["delta_tokens"].figure
    table = found.view("W4A4")
    mine = table[(table["group"] == "channel") & (table["size"] == "S")]
    drawn = xy(figure, "W4A4, per channel", "o")
    assert drawn == pytest.approx(mine[["D", "delta"]].astype(float).sort_values("D").to_numpy())
    x, y = curves(figure, "W4A4, per channel", "-")[0]
    N, G = float(mine["N"].iloc[0]), float(mine["G"].iloc[0])
    assert y == pytest.approx([chen_delta(CONSTANTS, N, D, G) for D in x])
    published = {name: constant.value for name, constant in found.published.law.items()}
    x, y = curves(figure, "W4A4, per channel", "--")[0]
    assert y == pytest.approx([chen_delta(published, N, D, G) for D in x])
    # Nothing is fitted to W4A16 here, so that its panel has the published line alone.
    assert curves(figure, "W4A16, G = 8", "-") == []


def test_the_sum_of_the_parts_stands_on_the_line_where_they_add_up(reports: Path) -> None:
    found = material("qat_scaling", reports)
    figure = drawings("qat_scaling", found)["split"].figure
    views = [found.view(way) for way in ("W4A16", "W16A4", "W4A4")]
    one = [float(v[(v["group"] == "8") & (v["size"] == "S") & (v["D"] == 8 * M1)]["delta"].iloc[0]) for v in views]
    marks = np.concatenate([numbers(line) for line in figure.axes[0].lines if line.get_marker() in ("o", "s")])
    assert np.abs(marks - [one[0] + one[1], one[2]]).max(axis=1).min() < 1e-9


def test_multipliers_stand_beside_what_is_published(reports: Path) -> None:
    found = material("compression_laws", reports)
    figure = drawings("compression_laws", found)["multipliers"].figure
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    at = names.index("W4")
    dots = [numbers(line)[0] for line in axes.lines if len(numbers(line)) == 1]
    here = sorted(float(x) for x, y in dots if round(y) == at)
    assert here == pytest.approx(sorted([0.8, 0.82, 0.923, 0.8404]))


def test_losses_stand_on_the_law_with_the_fitted_multiplier(reports: Path) -> None:
    figure = drawings("compression_laws", material("compression_laws", reports))["loss_tokens"].figure
    x, y = curves(figure, "sparse0.5", "-")[0]
    assert y == pytest.approx(150.0 * (106_496 * 0.85) ** -0.45 + 1200.0 * x**-0.48 + 1.2)
    # The fit has no multiplier for W4A4.
    assert curves(figure, "W4A4", "-") == []


def test_targets_are_shown_one_by_one_and_together(reports: Path) -> None:
    figure = drawings("capybara_fp", material("capybara_fp", reports))["targets"].figure
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["P3", "P4", "P2 P4 P6"]


def test_a_channel_has_the_published_size_and_blocks_their_own(reports: Path) -> None:
    found = material("capybara_fp", reports)
    drawn = drawings("capybara_fp", found)
    c = {name: constant.value for name, constant in found.published.law.items()}
    x, y = curves(drawn["blocks"].figure, "E1M1", "--")[0]
    table = found.view("P2, P4, P6")
    first = table[(table["size"] == "M") & (table["E"] == 1) & (table["D"] == 16 * M1)].iloc[0]
    shape = c["gamma"] * 1.5 ** c["delta"] * 1.5 ** c["nu"]
    assert y == pytest.approx(first["D"] ** c["beta"] / first["N"] ** c["alpha"] * x / shape)
    assert "published best E2M1" in " ".join(axes.get_title() for axes in drawn["optimum"].figure.axes)


def test_an_unknown_paper_or_a_damaged_table_is_said(tmp_path: Path) -> None:
    with pytest.raises(BitlawError, match="did you mean 'qat_scaling'"):
        material("qat_scalin", tmp_path)
    (tmp_path / "runs.csv").write_text("run_id\n1\n", encoding="utf-8")
    with pytest.raises(BitlawError, match=r"runs\.csv: column 'trunk_id' is missing"):
        material("qat_scaling", tmp_path)
