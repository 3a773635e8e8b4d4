"""Published run tables: fetched, checked, and the papers' numbers refitted on them.

The tables are not redistributed: tests that need them read the folder $BITLAW_PUBLISHED_RUNS and are skipped without.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from replications import papers
from replications.commands import published
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision.law import EQ3_BIAS
from replications.published import refits, tables
from replications.published.sources import (
    QUEST_COLUMNS,
    QUEST_SETTINGS,
    VARIABLE,
    fetch,
    folder,
    locate,
    quartet_table,
    quest_table,
    sources,
)
from shared.errors import BitlawError
from shared.files import sha256_file
from shared.laws.chinchilla import LAW
from shared.laws.fit import Fit, fit

HERE = all((folder() / sources()[name].file).exists() for name in ("chinchilla", "quest", "quartet"))
NEEDS_TABLES = pytest.mark.skipif(not HERE, reason=f"no published tables: set {VARIABLE} to a folder that has them")
QUARTET = {
    "30M": {"BF16": {"BF16": {2861: 3.41571, 5722: 3.29368}, "QuEST": {2861: 3.5}}, "QuEST": {"BF16": {2861: 3.48209}}},
    "200M": {"BF16": {"BF16": {19073: 2.88419}, "AlbertTsengDeterministic": {}}},
}


def notebook(values: object) -> bytes:
    """A notebook whose second cell holds the dictionary, one item to a line as in the original."""
    text = "size_fwd_bwd_iters_loss = " + repr(values).replace(", ", ",\n    ") + "  # all runs"
    cells = [{"source": ["import numpy as np"]}, {"source": text.splitlines(keepends=True)}]
    return json.dumps({"cells": cells}).encode()


def quest_run(weights: str, activations: str, bits: int) -> dict[str, Any]:
    run: dict[str, Any] = dict.fromkeys(QUEST_COLUMNS, 1)
    run |= {"w_quant": weights, "a_quant": activations, "w_bits": bits, "clip_scale": None, "loss": 3.0677576065063477}
    return {**run, "bops": 7, "args": {**dict.fromkeys(QUEST_SETTINGS, 2), "lr": 0.0012, "opt": "adamw"}}


# Forms


def test_the_notebook_becomes_a_table() -> None:
    lines = quartet_table(notebook(QUARTET)).decode().split("\r\n")
    assert lines[0] == "size,N_non_embedding,forward,backward,iterations,D_tokens,loss_c4_val"
    assert lines[1] == "30M,30482560,BF16,BF16,2861,749993984,3.41571"
    assert lines[-2:] == ["200M,203188480,BF16,BF16,19073,4999872512,2.88419", ""]
    assert len(lines) == 1 + 5 + 1


def test_runs_are_sorted_into_families_as_the_notebook_does() -> None:
    names = {
        ("NoQuantizer", "NoQuantizer"): "bf16",
        ("HalfHadamardTrustQuantizer", "HalfHadamardTrustQuantizer"): "quest_int",
        ("HadamardClipQuantizer", "NoQuantizer"): "quest_weight_only",
        ("TrustQuantizer", "TrustQuantizer"): "no_hadamard",
        ("HalfHadamardFP4TrustQuantizer", "HalfHadamardFP4TrustQuantizer"): "quest_fp4",
        ("HadamardFourEightTrustQuantizer", "HadamardTrustQuantizer"): "quest_2:4_int4",
    }
    table = quest_table(json.dumps([quest_run(*pair, 4) for pair in names]).encode()).decode()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["family"] for row in rows] == list(names.values())
    assert rows[0]["loss"] == "3.0677576065063477"
    assert rows[0]["clip_scale"] == ""
    assert "bops" not in rows[0]


@NEEDS_TABLES
def test_forms_give_the_pinned_tables() -> None:
    """The tables turned back into their origins' form and brought into ours again have the pinned sha256."""
    quartet: dict[str, Any] = {}
    with locate("quartet").open(newline="") as opened:
        for row in csv.DictReader(opened):
            by_backward = quartet.setdefault(row["size"], {}).setdefault(row["forward"], {})
            by_backward.setdefault(row["backward"], {})[int(row["iterations"])] = float(row["loss_c4_val"])
    assert quartet_table(notebook(quartet)) == locate("quartet").read_bytes()

    def value(text: str) -> object:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text or None

    with locate("quest").open(newline="") as opened:
        rows = [{name: value(text) for name, text in row.items()} for row in csv.DictReader(opened)]
    runs = [
        {**{name: row[name] for name in QUEST_COLUMNS}, "args": {name: row[name] for name in QUEST_SETTINGS}}
        for row in rows
    ]
    assert quest_table(json.dumps(runs).encode()) == locate("quest").read_bytes()


# Fetching


def test_fetching_checks_what_it_got(tmp_path: Path) -> None:
    origin = tmp_path / "origin.ipynb"
    origin.write_bytes(notebook(QUARTET))
    table = quartet_table(origin.read_bytes())
    (tmp_path / "right").write_bytes(table)
    source = sources()["quartet"].model_copy(update={"sha256": sha256_file(tmp_path / "right")})
    path = fetch(source, tmp_path / "new" / "folder", origin.as_uri())
    assert path.read_bytes() == table
    origin.write_bytes(notebook({**QUARTET, "50M": {"BF16": {"BF16": {1: 2.0}}}}))
    with pytest.raises(BitlawError, match=r"gives another table than the pinned one .*; nothing written"):
        fetch(source, tmp_path / "other", origin.as_uri())
    assert not (tmp_path / "other").exists()
    origin.write_text("<html>")
    with pytest.raises(BitlawError, match="has another form than at commit 5b9d74c"):
        fetch(source, tmp_path / "other", origin.as_uri())
    with pytest.raises(BitlawError, match=f"cannot be fetched .*set {VARIABLE} to a folder with quartet_mxfp4_runs"):
        fetch(source, tmp_path / "other", (tmp_path / "absent").as_uri())
    with pytest.raises(BitlawError, match="was transcribed by hand"):
        fetch(sources()["sun_grid"], tmp_path)


def test_absent_and_altered_tables_get_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(BitlawError, match=r"quest_runs_104_flat.csv: is not there; run `bitlaw published fetch`"):
        locate("quest")
    (tmp_path / "quest_runs_104_flat.csv").write_text("changed")
    with pytest.raises(BitlawError, match="is not the table that was published at c295afd"):
        locate("quest")
    with pytest.raises(BitlawError, match="published table 'qest' is unknown, did you mean 'quest'"):
        locate("qest")


def test_the_list_says_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "quartet_mxfp4_runs.csv").write_text("changed")
    app = typer.Typer()
    app.add_typer(published.app, name="published")
    shown = CliRunner().invoke(app, ["published", "list"]).output
    assert "quest: absent" in shown
    assert "quartet: another content" in shown
    assert "IST-DASLab/QuEST for_plots/runs_for_scaling.json at c295afda142c; licence: MIT" in shown


# Refits


@NEEDS_TABLES
def test_chinchilla_is_the_published_refit() -> None:
    """Besiroglu et al.: constants, objective, standard errors and intervals (published_runs.md)."""
    table = tables.chinchilla()
    found = fit(LAW, table, recipe="hoffmann-huber", n_boot=1000)
    assert len(table) == 240
    assert len(found.start_costs) == 4500
    assert found.objective <= 1.01827402e-3
    assert found.share_of_starts_within_1pct >= 0.36
    assert np.mean(found.start_costs <= 1.01827402e-3) >= 0.36
    assert found.status == "CONVERGED"
    published = {"A": 477.8, "alpha": 0.3473, "B": 2143, "beta": 0.3672, "E": 1.817}
    for name, value in published.items():
        assert found.parameters[name].value == pytest.approx(value, rel=3e-4)
    for name, error in {"alpha": 0.0154, "beta": 0.0206, "E": 0.0257}.items():
        assert found.parameters[name].se == pytest.approx(error, rel=0.15)
    for name, (low, high) in {"A": (285.2, 743.6), "B": (1042.4, 5810.3)}.items():
        assert found.parameters[name].low == pytest.approx(low, rel=0.15)
        assert found.parameters[name].high == pytest.approx(high, rel=0.15)


def quest_fit(**options: Any) -> Fit:
    table, groups = tables.with_codes(tables.quest(), "bf16")
    return fit(effective_parameters(groups), table, recipe="least-squares-log", n_boot=20, **options)


@NEEDS_TABLES
def test_quest_drives_its_constant_to_the_bound_and_says_so() -> None:
    found = quest_fit()
    assert 2 * found.objective == pytest.approx(0.001476, abs=5e-7)
    assert found.status == "BOUND_HIT"
    assert found.bound_hits == ("E",)
    assert "at a bound: E = 0" in found.reasons
    assert found.parameters["eff_3"].value == pytest.approx(0.431, abs=0.01)
    assert found.parameters["eff_2"].value == pytest.approx(0.154, abs=0.01)
    assert found.share_of_starts_within_1pct > 0.9


@NEEDS_TABLES
@pytest.mark.parametrize(
    ("E", "squares", "efficiency"),
    [(0.5, 0.00189, 0.682), (1.0, 0.00291, 0.667), (1.4, 0.00488, 0.649), (1.69, 0.00795, 0.629)],
)
def test_quest_with_its_constant_held(E: float, squares: float, efficiency: float) -> None:
    found = quest_fit(fixed={"E": E})
    assert 2 * found.objective == pytest.approx(squares, abs=5.1e-6)
    assert found.parameters["eff_4"].value == pytest.approx(efficiency, abs=6e-4)


@NEEDS_TABLES
def test_weight_only_runs_follow_kumars_f_with_the_bias() -> None:
    table = tables.quest()
    rows = table[table["family"].isin(["quest_weight_only", "bf16"])].assign(bits=table["P_w"])
    found = fit(EQ3_BIAS, rows, recipe="least-squares-log", n_boot=20)
    assert len(rows) == 22
    assert found.parameters["gamma_w"].value == pytest.approx(2.13, rel=0.05)
    assert found.parameters["n_w"].value == pytest.approx(0.25, rel=0.05)
    assert found.rms == pytest.approx(0.0025, abs=5e-5)


@NEEDS_TABLES
def test_quartets_own_constants_come_back_step_by_step() -> None:
    """Printed in plots.ipynb at 5b9d74c, cells 4 to 6."""
    table, groups = tables.with_codes(tables.quartet(), "bf16/bf16")
    found = refits.quartet_step_by_step(table, effective_parameters_and_data(groups))
    assert found["objective"] == pytest.approx(2.1292178288767156e-06, rel=1e-8)
    printed = {"A": 127444.685, "alpha": 0.57852012, "B": 465834.312, "beta": 0.5388769, "E": 1.340846}
    printed |= {"gamma": 0.27641569, "effN_QuEST": 0.64516309, "effD_stochastic": 0.89346852}
    for name, value in printed.items():
        assert found[name] == pytest.approx(value, rel=2e-6)


@NEEDS_TABLES
def test_chens_exponents_on_published_runs() -> None:
    """The first look of published_runs.md: log-linear least squares."""
    found = refits.on_quest_deltas(n_boot=100)
    expected = {
        "quest/gamma_D/2": 0.147, "quest/gamma_N/2": 0.234, "quest/gamma_D/3": 0.166, "quest/gamma_N/3": 0.297,
        "quest/gamma_D/4": 0.169, "quest/gamma_N/4": 0.352, "quartet/forward/gamma_D": 0.101,
        "quartet/forward/gamma_N": 0.175, "quartet/backward/gamma_D": -0.13, "quartet/backward/gamma_N": 0.02,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=0.003)
        assert found[name].low < found[name].value < found[name].high
    assert found["quartet/backward/gamma_D"].high < 0 < found["quartet/forward/gamma_D"].low


@NEEDS_TABLES
def test_the_published_chinchilla_stands_in_the_repository() -> None:
    known = papers.all_published()["comparison"].laws
    assert {name: known["besiroglu_se"][name].value for name in ("alpha", "beta", "E")} == {
        "alpha": 0.0154, "beta": 0.0206, "E": 0.02566,
    }  # fmt: skip
    for name, constant in known["besiroglu"].items():
        assert known["besiroglu_low"][name].value < constant.value < known["besiroglu_high"][name].value


@NEEDS_TABLES
def test_forms_on_deltas_and_results_stored_once() -> None:
    found = refits.extrapolation_deltas()
    assert {score.law for score in found["quest/extrapolation/delta_2"].scores} == {"chen_delta", "multiplier"}
    assert found["quartet/extrapolation/delta_forward"].winner == "chen_delta"
    assert found["quartet/extrapolation/delta_forward"].real
    score = found["quest/extrapolation/delta_2"].scores[0]
    both = replace(
        score, errors={"rollout in N": score.errors["rollout in N"], "rollout in D": score.errors["rollout in N"]}
    )
    cost = refits.without_tokens(found)
    assert set(cost) == {f"{name}/without_D_less_with_D" for name in found}
    assert cost["quartet/extrapolation/delta_forward/without_D_less_with_D"].low > 0
    two = cost["quest/extrapolation/delta_2/without_D_less_with_D"]
    assert two.low < two.value < two.high
    multiplier, law = (found["quest/extrapolation/delta_2"].scores[k].errors["leave one size out"] for k in (1, 0))
    assert two.value == pytest.approx(multiplier.value - law.value)
    merged = refits.once(replace(found["quest/extrapolation/delta_2"], scores=(both,)))
    assert set(merged.scores[0].errors) == {"rollout in N and D"}
    assert "N and D rise together" in merged.notes[-1]
    assert refits.once(found["quest/extrapolation/delta_2"]) == found["quest/extrapolation/delta_2"]


def test_deltas_take_the_first_table_with_such_a_run() -> None:
    rows = pd.DataFrame({"N": [1.0, 2.0, 3.0], "D": 1.0, "loss": [3.0, 3.0, 3.0]})
    first = pd.DataFrame({"N": [1.0], "D": 1.0, "loss": 2.5, "compression": "bf16"})
    then = pd.DataFrame({"N": [1.0, 2.0], "D": 1.0, "loss": 2.0, "compression": "bf16/bf16"})
    assert tables.deltas(rows, first, then)["delta"].tolist() == [0.5, 1.0]


@pytest.mark.slow
@NEEDS_TABLES
def test_all_refits_are_written(tmp_path: Path) -> None:
    """Minutes; what was found is in docs/log.md."""
    paths = refits.write_refits(tmp_path, n_boot=50)
    found = json.loads(paths[0].read_text())
    assert found["quest/weight_only/gamma_w"]["low"] < 2.13 < found["quest/weight_only/gamma_w"]["high"]
    compared = json.loads(paths[1].read_text())
    assert compared["inputs"]["quest"]["sha256"] == sources()["quest"].sha256
    assert compared["comparisons"]["quest/extrapolation/int"]["winner"] == "frantar"
    assert compared["comparisons"]["quartet/extrapolation"]["winner"] == "quartet"
