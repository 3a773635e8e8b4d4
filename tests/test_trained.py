"""Laws of the loss on low-precision runs: what is fitted, what is held out, and that constants come back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from replications.compressed import VIEWS, Widths, rows_of
from replications.papers import FITS, find
from replications.trained import fitted, held_out, runs_of, usable, views_of, write_fit, write_trained
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.laws.settings import FitSettings, HeldOut
from shared.laws.tables import RUNS
from shared.sweep.spec import COMPRESSION, DEFAULTS

SIZES = {"S": (64, 192, 106_496), "M": (128, 320, 376_832), "W": (256, 640, 753_664), "L": (128, 384, 851_968)}
RULES = HeldOut(sizes=("L",), formats=(), largest_tokens={"S": 33_554_432})
SETTINGS = FitSettings(n_starts=16, n_boot=40, seed=0, condition_limit=1e12, signal_to_noise=4)
EFF = {"INT2@channel": 0.4, "INT3@channel": 0.8}


def loss(N: float, D: float, eff: float = 1.0) -> float:
    return 150.0 * (N * eff) ** -0.45 + 1200.0 * D**-0.48 + 2.2


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Noise-free runs of Frantar's law, base and two widths of weights."""
    rows = []
    for size, (d_model, d_ff, N) in SIZES.items():
        for D in (1048576, 8388608, 16777216, 33554432):
            for weights in ("none", *EFF):
                known = dict.fromkeys(RUNS, "1") | {name: DEFAULTS[name] for name in COMPRESSION}
                known |= {
                    "size": size,
                    "d_model": d_model,
                    "d_ff": d_ff,
                    "n_blocks": N,
                    "tokens": D,
                    "corpus": "python",
                }
                known |= {"weights": weights, "cooled": True, "diverged": False, "numerics_version": "2"}
                known |= {"run_id": f"{size}{D}{weights}", "trunk_id": f"{size}{weights}"}
                known |= {"base_run_id": "" if weights == "none" else f"{size}{D}none"}
                rows.append(known | {"loss": loss(N, D, EFF.get(weights, 1.0))})
    path = tmp_path / "runs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_multipliers_come_back_and_predict_what_was_held_out(table: Path) -> None:
    (view,) = [view for view in VIEWS if view.paper == "compression_laws"]
    found = fitted(view, usable(runs_of(table)), RULES, SETTINGS, "table")
    assert found["status"] == "CONVERGED"
    assert found["parameters"]["eff_W2"]["value"] == pytest.approx(0.4, rel=1e-4)
    assert found["parameters"]["eff_W3"]["value"] == pytest.approx(0.8, rel=1e-4)
    # L at three horizons and S at its largest, both widths; L's shortest is under ten tokens a parameter.
    assert found["heldout"]["rows"] == 2 * (1 + 2)
    assert found["heldout"]["median_abs_error"] < 1e-5
    # S at two horizons, M and W at three.
    assert (found["rows"], found["compressed"]) == (3 * 8, 2 * 8)


def test_short_runs_and_held_out_ones_are_not_fitted(table: Path) -> None:
    runs = usable(runs_of(table))
    assert set(runs["tokens"]) == {8388608, 16777216, 33554432}
    hidden = held_out(runs, RULES)
    assert set(runs[hidden]["size"]) == {"S", "L"}
    assert set(runs[hidden & (runs["size"] == "S")]["tokens"]) == {33554432}


def test_views_without_runs_say_so(table: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("fit: {n_starts: 8, n_boot: 20, seed: 1, condition_limit: 1.0e+8, signal_to_noise: 4}\n")
    papers = ("kumar_precision", "qat_scaling", "capybara_fp", "compression_laws")
    found = {paper: views_of(paper, table, params) for paper in papers}
    views = {(v["paper"], v["view"]): v for some, _ in found.values() for v in some}
    assert list(found["kumar_precision"][1]) == ["kumar_precision/Eq. 3"]
    assert not any("fit" in view for view in views.values())
    assert views["qat_scaling", "W4A4"]["status"] == "needs runs"
    few = views["kumar_precision", "Eq. 4"]
    assert (few["status"], few["parameters"]) == ("needs runs", {})
    assert few["reasons"][0].endswith("compressed runs have one value of P_a, P_kv")
    assert "one value of G" not in str(views["qat_scaling", "W2A16"]["reasons"])  # its width changes with the size
    assert views["kumar_precision", "Eq. 3"]["parameters"]["gamma_w"]["published"] == pytest.approx(2.6745, rel=0.2)
    with pytest.raises(BitlawError, match="no such table"):
        views_of("capybara_fp", tmp_path / "nowhere.csv", params)


def test_each_paper_is_fitted_alone_and_all_are_gathered(table: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("fit: {n_starts: 8, n_boot: 20, seed: 1, condition_limit: 1.0e+8, signal_to_noise: 4}\n")
    target = write_fit(find("compression_laws"), tmp_path, params)
    assert set(read_json(target)["inputs"]) == {"reports/runs.csv"}
    (kept,) = read_json(target.with_name(FITS))["fits"].values()
    assert len(kept["draws"]) == 20
    with pytest.raises(BitlawError, match=r"kumar_precision/fit.json: there is no such fit"):
        write_trained(tmp_path)
    damaged: object
    for damaged in ([], {"views": 3}):
        write_json(tmp_path / "kumar_precision" / "fit.json", damaged)
        with pytest.raises(BitlawError, match=r"kumar_precision/fit.json: is no fit"):
            write_trained(tmp_path)
    for paper in ("kumar_precision", "qat_scaling", "capybara_fp"):
        write_json(tmp_path / paper / "fit.json", {"views": [{"paper": paper}]})
    views = read_json(write_trained(tmp_path))["views"]
    assert [view["paper"] for view in views] == ["kumar_precision", "qat_scaling", "capybara_fp", "compression_laws"]


def test_compressed_rows_share_the_law_of_the_base(table: Path) -> None:
    (view,) = [view for view in VIEWS if view.name == "W2A16"]
    found = rows_of(view, runs_of(table))
    assert found is not None
    law, rows = found
    assert law.name == "chen_loss"
    assert set(np.round(rows["G"], 6)) == {1.0, *(round(Widths(d, f).inputs, 6) for d, f, _ in SIZES.values())}
