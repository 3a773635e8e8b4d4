"""The tournament on simulated parts: medians by hand, winners and ties, laws without rows, files and the command."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_low_precision import write_runs
from simulated_pool import Truth, simulate

from replications.kumar_precision.law import LAW as KUMAR
from replications.precision_predictor.law import FULL as PAGE
from replications.undertrained_qid.law import LAW as OUYANG
from replications.unified import parts, results, tournament
from replications.unified.error import relative_error
from replications.unified.forms import Form
from replications.unified.parts import Part, Pool
from replications.unified.score import AS_BAD_AS_NONE, Unseen, log_ratio, resamples, weighted_median
from replications.unified.select import Candidate, Selection
from shared.errors import BitlawError
from shared.sweep.spec import COMPRESSION, DEFAULTS

BASE = {"A": 150.0, "alpha": 0.45, "B": 1200.0, "beta": 0.48, "E": 1.2}
SELECTION = Selection(
    (Candidate(Form("additive", "energy", "free"), 0.1, {"x": 0.1}),),
    tuple(
        Candidate(Form("additive", "energy", exponents), 0.1 + 0.1 * k, {"x": 0.1})  # type: ignore[arg-type]
        for k, exponents in enumerate(("free", "ratio", "fixed"))
    ),
)


def part(rows: int | None = None) -> Part:
    """Deltas that are a power of the format's error: the unified law's own, which no law of bits can be."""
    grid = [(s, N, D, bits, seed) for (s, N), D, bits, seed in product(
        (("S", 1e5), ("M", 4e5), ("W", 8e5)), (4e6, 8e6, 16e6, 32e6), (2, 3, 4, 6), (1, 2))]  # fmt: skip
    table = pd.DataFrame(grid, columns=["size", "N", "D", "bits", "seed"]).astype({"bits": float})
    table["format"] = "INT" + table["bits"].astype(int).astype(str)
    table["relative_mse"] = [relative_error(f"{name}@16", 64) for name in table["format"]]
    exact = 0.05 * table["relative_mse"] ** 0.8 * table["D"] ** 0.25 / table["N"] ** 0.1
    table["delta"] = exact * np.exp(0.02 * np.random.default_rng(0).standard_normal(len(exact)))
    table["delta_se"] = 0.01 * exact
    table["use"] = np.where((table["D"] > 20e6) | (table["bits"] == 3), "held out", "fitted")
    table["cell"] = table[["size", "D", "format"]].astype(str).agg(" ".join, axis=1)
    table["trunk_id"] = table["size"] + table["seed"].astype(str)
    own = (KUMAR.name, OUYANG.name, PAGE.name)
    return Part("simulated", "one part", table.iloc[:rows], (KUMAR, OUYANG, PAGE), own)


@pytest.fixture(scope="module")
def competed() -> tuple[list[dict[str, object]], list[tournament.Verdict]]:
    few = replace(part(), name="few", table=part().table.iloc[[0, 2, 40, -1]])
    return tournament.compete(Pool((part(), few), BASE), SELECTION, n_starts=6)


def test_medians_by_hand() -> None:
    values, counts = np.array([3.0, 1.0, 2.0]), np.ones(3)
    assert weighted_median(values, counts) == 2
    assert weighted_median(values[:2], counts[:2]) == 2
    assert weighted_median(values, np.array([5.0, 1.0, 1.0])) == 3
    assert np.isnan(weighted_median(values, np.zeros(3)))
    generator = np.random.default_rng(0)
    for n in (4, 7):
        some, times = generator.random(n), generator.integers(0, 4, n) + 1
        assert weighted_median(some, times.astype(float)) == pytest.approx(np.median(np.repeat(some, times)))


def test_a_law_that_predicts_nothing_is_as_bad_as_can_be() -> None:
    found = log_ratio(np.array([1.0, 1.0, 1.0]), np.array([0.0, -1.0, np.e]))
    assert found.tolist() == [AS_BAD_AS_NONE, AS_BAD_AS_NONE, pytest.approx(-1)]


def test_resamples_draw_whole_trunks() -> None:
    table = part().table
    weights = resamples(table, 50)
    assert np.all(weights[0] == 1)
    of_trunk = pd.DataFrame(weights.T).groupby(table["trunk_id"].to_numpy()).nunique()
    assert (of_trunk == 1).all(axis=None)
    totals = pd.DataFrame(weights.T).groupby(table["N"].to_numpy()).sum()
    assert np.allclose(totals, totals[[0]])


def test_unseen_cells_are_means_over_seeds() -> None:
    unseen = Unseen.of(part(), part().hidden)
    first = unseen.table["cell"].to_numpy()[unseen.first]
    assert len(first) == part().hidden["cell"].nunique() == 21
    expected = part().hidden.groupby("cell")["delta"].mean()
    np.testing.assert_allclose(unseen.delta, expected.loc[first])
    assert unseen.clear.all()


def test_the_law_that_made_the_deltas_wins_and_few_rows_are_said(competed: "tuple[list, list]") -> None:
    found, verdicts = competed
    rows = {row["law"]: row for row in found[0]["laws"]}
    assert rows["unified"]["place"] == "wins"
    assert rows["unified"]["error"] < 0.03 < rows["kumar_eq2"]["error"]
    assert 0 < rows["unified"]["low"] <= rows["unified"]["high"] < 0.05
    assert [rows[name]["constants"] for name in ("unified", "unified_3", "unified_2")] == [4, 3, 2]
    assert rows["kumar_eq2"]["place"] == "behind"
    assert rows["kumar_eq2"]["behind_low"] > 0
    assert {row["place"] for row in found[1]["laws"]} == {"not ranked"}
    reasons = {row["law"]: row["reason"] for row in found[1]["laws"]}
    assert reasons["kumar_eq2"].startswith("not enough rows: ")
    assert "5 needed for 4 constants" in reasons["kumar_eq2"]
    by_paper = {one.paper: one for one in verdicts}
    assert by_paper["kumar_eq2"].verdict == "below"
    assert by_paper["kumar_eq2"].unified_constants == 4
    assert by_paper["page_full"].unified_constants == 3  # at most as many as the paper's
    assert by_paper["ouyang_joint"].difference == pytest.approx(
        rows["unified"]["error"] - rows["ouyang_joint"]["error"]
    )


def test_the_summary_counts_what_the_rows_say(competed: "tuple[list, list]") -> None:
    found, verdicts = competed
    said = results.summary(found, verdicts)
    assert (said["scored_parts"], said["not_scored"], said["verdicts"]) == (1, ["few"], 3)
    assert said["wins"] == {"unified": 1}
    assert (said["without_verdict"], said["counts"]) == (["few"], False), "a paper's part that nobody judged"
    assert results.summary([part for part in found if part["part"] != "few"], verdicts)["counts"] == (
        said["below"] == 3
    )


def test_few_held_out_cells_give_an_error_and_no_interval(
    competed: "tuple[list, list]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tournament, "LEAST_CELLS", 10_000)
    found, verdicts = tournament.compete(Pool((part(),), BASE), SELECTION, n_starts=3)
    for row in (row for part in found for row in part["laws"] if row["error"] is not None):
        assert row["place"] == tournament.TOO_FEW
        assert row["low"] is row["high"] is row["behind_low"] is None
    assert {one.verdict for one in verdicts} == {tournament.TOO_FEW}
    said = results.summary(found, verdicts)
    assert (said["verdicts"], said["counts"], said["wins"]) == (0, False, {})
    of_enough, _ = competed
    for row in (row for part in of_enough for row in part["laws"] if row["low"] is not None):
        assert row["low"] <= row["error"] <= row["high"]
    lines = results.as_csv(found).splitlines()
    assert lines[0].startswith("part,law,constants,place")
    assert len(lines) == 1 + sum(len(one["laws"]) for one in found)


def test_files_and_command_from_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tables from the simulated pools; few resamples and starts, one link."""
    from typer.testing import CliRunner

    from replications.commands import tournament as command

    _pool_of(tmp_path)
    monkeypatch.setattr(results, "choose", lambda parts, base: SELECTION)
    monkeypatch.setattr(results, "read", _few_parts)
    monkeypatch.setattr(tournament, "resamples", lambda table: resamples(table, 4))
    monkeypatch.setattr(tournament.compete, "__defaults__", (3,))
    monkeypatch.setattr(tournament.fit_whole, "__defaults__", (3,))
    monkeypatch.setattr(tournament, "N_BOOT", 20)
    app = __import__("typer").Typer()
    app.command()(command.tournament)
    ran = CliRunner().invoke(app, ["--reports", str(tmp_path), "--json"])
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    assert {part["part"] for part in shown["parts"]} >= {"rounded, per channel, cooled", "weights, all groups"}
    assert "have not been scored" in shown["statement"]
    folder = tmp_path / "unified"
    assert {path.name for path in folder.iterdir()} >= {
        "selection.json", "tournament.json", "tournament.csv", "tournament.svg", "candidates.svg", "figures.json",
    }  # fmt: skip
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("sel", "tournament."))}
    monkeypatch.setattr(results.figures, "draw", lambda *found: [])
    results.write(tmp_path)
    assert {path: path.read_bytes() for path in kept} == kept
    assert results.read_selection(tmp_path).form == SELECTION.form
    (folder / "selection.json").write_text('{"links": [{"link": "additive"}]}')
    with pytest.raises(BitlawError, match=r"is no choice of a form \(.*; write it again with `bitlaw tournament`"):
        results.read_selection(tmp_path)


def _few_parts(folder: Path) -> Pool:
    pool = parts.read(folder)
    wanted = {
        "rounded, per channel, cooled",
        "rounded, all groups, cooled",
        "weights, all groups",
        "everything trained",
    }
    assert wanted <= {one.name for one in pool.parts}
    return replace(pool, parts=tuple(replace(p, laws=p.laws[:2]) for p in pool.parts if p.name in wanted))


def _pool_of(folder: Path) -> None:
    """Rounded cells of simulated_pool and trained runs of simulated_low_precision, as one pool."""
    constants = {"C_T": 0.5, "gamma_D": 0.5, "gamma_N": 0.5, "gamma_post": 0.8}
    runs, cells = simulate(Truth(KUMAR, constants), {"S": 2, "M": 1, "W": 1}, np.random.default_rng(0), bits=(2, 3, 4))
    widths = {"S": (64, 192), "M": (128, 320), "W": (256, 640)}
    runs = runs.assign(
        **{name: DEFAULTS[name] for name in COMPRESSION}, delta="", delta_se="", learning_rate=0.002,
        d_model=[widths[size][0] for size in runs["size"]], d_ff=[widths[size][1] for size in runs["size"]],
        numerics_version="2",
    )  # fmt: skip
    weights = ({"weights": f"{name}"} for name in ("INT2@channel", "INT3@channel", "INT3@8", "INT4@8"))
    write_runs(
        folder / "runs.csv", list(weights),
        lambda spec: 0.4 * relative_error(spec.weights, spec.d_model) ** 0.8 * (spec.tokens / 8e6) ** 0.2,
    )  # fmt: skip
    trained = pd.read_csv(folder / "runs.csv", dtype=str, keep_default_na=False)
    pd.concat([runs.astype(str), trained]).fillna("").to_csv(folder / "runs.csv", index=False)
    cells.assign(numerics_version="2").to_csv(folder / "measurements.csv", index=False)


def test_no_tables_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BitlawError, match="there is no such table"):
        parts.read(tmp_path)
    assert results.report_rows(tmp_path) is None
