"""A paper's fit on the two tables: which rows, which parts, what is held out, and the file that comes out."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_pool import SIZES, Truth, simulate, write_pool

from replications import papers
from replications.kumar_precision.law import LAW
from shared.errors import BitlawError
from shared.laws.settings import HeldOut, Selection, read_settings
from shared.laws.study import FITTED, HELD_OUT, SHORT, select
from shared.laws.tables import read_pool

TRUTH = Truth(LAW, {"C_T": 5.0, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.55})


def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text("fit: {n_starts: 8, n_boot: 50, seed: 1, condition_limit: 1.0e+8, signal_to_noise: 4}\n")
    return path


def written(tmp_path: Path, seeds: dict[str, int], **options: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables = simulate(TRUTH, seeds, np.random.default_rng(0), **options)  # type: ignore[arg-type]
    write_pool(tmp_path, tables)
    return tables


def test_rows_are_selected_by_the_experiment_file(tmp_path: Path) -> None:
    written(tmp_path, {"S": 1, "M": 1, "L": 1}, phases=("cooled", "trunk"))
    pool_rows = read_pool(tmp_path / "reports/runs.csv", tmp_path / "reports/measurements.csv")
    paper = papers.find("kumar_precision")
    selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
    rows = select(pool_rows, selection, read_settings(papers.HELD_OUT, HeldOut))
    assert len(rows) == 3 * 6 * 2 * 7
    used = {
        use: set(zip(some["size"], some["D"] // 2**20, some["bits"], strict=True)) for use, some in rows.groupby("use")
    }
    # 500 steps of 4,096 tokens are 1.95 * 2^20; D/N >= 10 asks 1.02, 3.6 and 8.1 * 2^20 tokens of S, M and L.
    left = {2, 4, 6, 7, 8}
    assert used[FITTED] == {("S", D, b) for D in (2, 4, 8, 16) for b in left} | {
        ("M", D, b) for D in (4, 8, 16) for b in left
    }
    assert {(size, D) for size, D, _ in used[SHORT]} == {
        ("S", 1), ("M", 1), ("M", 2), ("L", 1), ("L", 2), ("L", 4), ("L", 8),
    }  # fmt: skip
    assert {key for key in used[HELD_OUT] if key[0] == "L"} == {("L", D, b) for D in (16, 32) for b in range(2, 9)}
    why = rows.set_index(["size", "D", "format", "phase"])["why"]
    assert why["L", 2**25, "INT3", "trunk"] == "size + format + largest D"
    other = select(pool_rows.assign(base_run_id="abc"), selection, read_settings(papers.HELD_OUT, HeldOut))
    assert other.empty  # quantized training is not this paper's Eq. 2


def test_fit_file_is_whole_and_the_same_every_time(tmp_path: Path) -> None:
    written(tmp_path, {"S": 3, "M": 1, "L": 1}, group_sizes=("channel", "8"), first_seed_only=("8",))
    paper = papers.find("kumar_precision")
    target = papers.write_fit(paper, tmp_path / "reports", settings_file(tmp_path))
    first = target.read_bytes()
    papers.write_fit(paper, tmp_path / "reports", settings_file(tmp_path))
    assert target.read_bytes() == first
    result = json.loads(first)
    assert result["status"] == "fitted"
    assert [(part["phase"], part["group_size"]) for part in result["parts"]] == [("cooled", "channel"), ("cooled", "8")]
    assert result["selection"]["rows_fitted"] == sum(part["rows"] for part in result["parts"]) == (60 + 15) + (20 + 15)
    left_out = result["selection"]["left_out"]
    assert result["selection"]["rows_read"] == result["selection"]["rows_fitted"] + sum(left_out.values())
    for part in result["parts"]:
        assert part["status"] == "WEAKLY_IDENTIFIED"
        assert part["diagnostics"]["seed_dof"] == 2  # also where only the first seed was measured
        assert part["parameters"]["gamma_D"]["value"] == pytest.approx(0.5, abs=0.1)
        assert set(part["heldout"]["by_reason"]) == {"format", "largest D", "size"}
        assert part["heldout"]["median_abs_log_error"] < 0.2
        assert len(part["heldout"]["rows_detail"]) == 2 * 7 + 7 * 2 + 2 * 7  # L, formats, largest D
        assert {curve["N"] for curve in part["curves"]} == {SIZES[size] for size in "SML"}
        assert part["elasticities"]["N"]["low"] < -0.35 < part["elasticities"]["N"]["high"]
    assert str(tmp_path) not in first.decode()
    assert papers.exponent_lines(target)[0] == "kumar_precision: 110 of 336 rows fitted by kumar_eq2"


def test_one_size_is_reported_and_an_empty_pool_needs_runs(tmp_path: Path) -> None:
    tables = written(tmp_path, {"S": 2})
    paper = papers.find("undertrained_qid")
    result = json.loads(papers.write_fit(paper, tmp_path / "reports", settings_file(tmp_path)).read_text())
    assert result["parts"] == []
    assert result["status"] == "needs runs"
    assert [part["status"] for part in result["unfitted"]] == ["FAILED"]
    assert "column 'N' has one value only" in result["unfitted"][0]["reason"]
    write_pool(tmp_path, (tables[0].iloc[:0], tables[1].iloc[:0]))
    target = papers.write_fit(paper, tmp_path / "reports", settings_file(tmp_path))
    result = json.loads(target.read_text())
    assert (result["status"], result["unfitted"], result["selection"]["rows_read"]) == ("needs runs", [], 0)
    assert "needs runs" in papers.exponent_lines(target)[-1]


def test_diverged_runs_are_counted_not_fitted(tmp_path: Path) -> None:
    runs, measurements = written(tmp_path, {"S": 1, "M": 1})
    lost = runs[(runs["size"] == "S") & (runs["tokens"] == 2**22)]["run_id"].iloc[0]
    runs.loc[runs["run_id"] == lost, "diverged"] = True
    runs.loc[runs["run_id"] == lost, "loss"] = np.inf
    measurements.loc[measurements["run_id"] == lost, "delta"] = np.nan
    write_pool(tmp_path, (runs, measurements))
    target = papers.write_fit(papers.find("kumar_precision"), tmp_path / "reports", settings_file(tmp_path))
    result = json.loads(target.read_text())
    assert result["selection"]["left_out"]["diverged"] == 7
    assert result["parts"][0]["rows"] == 4 * 5 + 3 * 5 - 5


def test_mixed_numerics_are_never_fitted_together(tmp_path: Path) -> None:
    runs, measurements = written(tmp_path, {"S": 1, "M": 1})
    for table in (runs, measurements):
        table.loc[table["size"] == "M", "numerics_version"] = 2
    write_pool(tmp_path, (runs, measurements))
    with pytest.raises(BitlawError, match="different numerics"):
        papers.write_fit(papers.find("kumar_precision"), tmp_path / "reports", settings_file(tmp_path))


def test_absent_tables_and_unknown_papers_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BitlawError, match=r"runs\.csv: there is no such table"):
        papers.write_fit(papers.find("kumar_precision"), tmp_path, settings_file(tmp_path))
    with pytest.raises(BitlawError, match="paper 'kumar_precison' is unknown, did you mean 'kumar_precision'"):
        papers.find("kumar_precison")
    with pytest.raises(BitlawError, match="run `bitlaw replicate fit kumar_precision` first"):
        papers.write_claims(papers.find("kumar_precision"), tmp_path)
