"""`bitlaw laws`, `fit`, `predict`, `compare` and `claims` on tables that anybody might bring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

from replications.commands import fit as fit_command
from replications.commands import laws as laws_command
from replications.kumar_precision.law import EQ3_BIAS
from replications.kumar_precision.law import LAW as KUMAR
from replications.laws import ENTRIES, for_table, restore
from shared.errors import BitlawError
from shared.laws.chinchilla import LAW
from shared.laws.law import Law
from shared.laws.noise import seed_noise
from shared.laws.tables import check
from shared.laws.user_table import coded, read_user_table

Change = Callable[[pd.DataFrame], pd.DataFrame]
CONSTANTS = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
THIRD = "row 3 (line 4), column "


def losses(n: int = 60, noise: float = 0.002) -> pd.DataFrame:
    """Columns params, tokens, C, method and val_loss, of Chinchilla's form."""
    generator = np.random.default_rng(0)
    N = np.exp(generator.uniform(np.log(1e7), np.log(1e10), n))
    D = np.exp(generator.uniform(np.log(1e9), np.log(1e12), n))
    loss = LAW.predict(LAW.internal(CONSTANTS), {"N": N, "D": D}) * np.exp(noise * generator.standard_normal(n))
    method = np.where(np.arange(n) % 4 == 0, "other", "bf16")
    return pd.DataFrame({"params": N, "tokens": D, "C": 6 * N * D, "method": method, "val_loss": loss})


def app() -> typer.Typer:
    commands = typer.Typer()
    for command in (laws_command.laws, laws_command.compare, laws_command.claims, fit_command.fit):
        commands.command()(command)
    commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(fit_command.predict)
    return commands


def run(*words: object) -> Result:
    return CliRunner().invoke(app(), [str(word) for word in words])


def sentence(*words: object) -> str:
    """What a user reads of a run that ends in bad input."""
    error = run(*words).exception
    assert isinstance(error, BitlawError), error
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    losses().to_csv(path, index=False)
    return path


MAPPED = ("--map", "N=params", "--map", "D=tokens", "--map", "loss=val_loss", "--resamples", "40")


# Laws


def test_laws_are_listed() -> None:
    shown = run("laws").output
    assert all(name in shown for name in ENTRIES)
    values = json.loads(run("laws", "--json").output)
    assert values["laws"]["chinchilla"]["parameters"] == ["A", "alpha", "B", "beta", "E"]
    assert values["laws"]["chinchilla"]["units"]["D"] == "training tokens"
    for name, entry in ENTRIES.items():
        assert set(entry.law.units) == {*entry.law.inputs, entry.law.target}, name
    assert "hoffmann-huber" in values["recipes"]


def test_every_law_of_a_saved_fit_is_found_again() -> None:
    for name, entry in ENTRIES.items():
        groups = {"frantar": ("bf16", "int4"), "quartet": ("bf16/bf16", "int4/bf16")}.get(name, ())
        assert restore(name, groups).name == name == entry.law.name


# Fit and predict


def test_a_table_is_fitted_and_saved_and_predicts(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "fits"
    shown = run("fit", table, "--law", "chinchilla", *MAPPED, "--where", "method == 'bf16'", "--out", out)
    assert shown.exit_code == 0, shown.output
    assert "chinchilla: CONVERGED, 45 rows by huber" in shown.output
    assert {path.name for path in out.iterdir()} == {
        "fit.json", "draws.csv", "fit.svg", "fit.png", "residuals.svg", "residuals.png",
    }  # fmt: skip
    saved = json.loads((out / "fit.json").read_text())
    assert saved["input"]["where"] == "method == 'bf16'"
    draws = pd.read_csv(out / "draws.csv")
    assert list(draws.columns) == list(LAW.parameters)
    assert len(draws) == 40
    inside = json.loads(run("predict", out / "fit.json", "--N", "1e9", "--D=1e11", "--json").output)
    expected = LAW.predict(LAW.internal(CONSTANTS), {"N": np.array([1e9]), "D": np.array([1e11])})[0]
    assert inside["value"] == pytest.approx(expected, rel=2e-3)
    assert inside["low"] < inside["value"] < inside["high"]
    assert inside["inside"]
    assert inside["warning"] is None
    beyond = run("predict", out / "fit.json", "--N", "1e11", "--D", "1e11").output
    assert "warning: N = 1e+11 is" in beyond
    assert "times the largest fitted value" in beyond
    assert "chinchilla needs --D" in sentence("predict", out / "fit.json", "--N", "1e9")
    assert "has no input 'n', did you mean 'N'? its inputs are N, D" in sentence(
        "predict", out / "fit.json", "--n", "1e9"
    )
    assert "--N much: is not a number" in sentence("predict", out / "fit.json", "--N", "much", "--D", "1")
    assert "--N -1: must be above zero" in sentence("predict", out / "fit.json", "--N", "-1", "--D", "1")
    for value in ("inf", "nan"):
        assert f"--N {value}: must be finite" in sentence("predict", out / "fit.json", "--N", value, "--D", "1e9")
    assert "--N 0: must be above zero" in sentence("predict", out / "fit.json", "--N", "0", "--D", "1e9")
    assert "'--D' has no value" in sentence("predict", out / "fit.json", "--N", "1", "--D")
    assert "not a saved fit" in sentence("predict", _json(tmp_path, {"law": "chinchilla"}), "--N", "1")


def _json(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(values))
    return path


def test_json_has_what_the_documentation_says(table: Path) -> None:
    found = json.loads(run("fit", table, "--law", "chinchilla", *MAPPED, "--json").output)
    assert found["law"] == "chinchilla"
    assert found["status"] == "CONVERGED"
    assert set(found["parameters"]) == set(LAW.parameters)
    alpha = found["parameters"]["alpha"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert alpha["profile_low"] < alpha["value"] < alpha["profile_high"]
    assert 0 < found["share_of_starts_within_1pct"] <= 1


def test_parquet_and_expressions_give_the_same_fit(table: Path, tmp_path: Path) -> None:
    losses().to_parquet(tmp_path / "runs.parquet")
    csv = run("fit", table, "--law", "chinchilla", *MAPPED, "--json").output
    words = ("--map", "N=params", "--map", "D=C / (6 * params)", "--map", "loss=val_loss", "--resamples", "40")
    parquet = run("fit", tmp_path / "runs.parquet", "--law", "chinchilla", *words, "--json").output
    first, second = (json.loads(text)["parameters"]["alpha"]["value"] for text in (csv, parquet))
    assert first == pytest.approx(second, rel=1e-5)


def test_all_laws_fit_what_they_can(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    table = losses().assign(bits=np.tile([3.0, 4.0, 16.0], 20), compression=np.tile(["int3", "int4", "bf16"], 20))
    table.rename(columns={"params": "N", "tokens": "D", "val_loss": "loss"}).to_csv(path, index=False)
    shown = run("fit", path, "--law", "all", "--resamples", "20", "--starts", "8", "--json")
    assert shown.exit_code == 0, shown.output
    text = shown.output
    found = {one["law"]: one for one in json.loads(text[text.index("[") :])}
    assert {"chinchilla", "kumar_eq3", "kumar_eq3_bias", "frantar"} <= set(found)
    assert not {"chen_loss", "kumar_eq2"} & set(found)  # no G, no delta
    assert found["frantar"]["groups"] == ["bf16", "int3", "int4"]
    assert found["frantar"]["parameters"]["eff_int4"]["value"] == pytest.approx(1, abs=0.1)


def test_groups_are_predicted_by_name(tmp_path: Path) -> None:
    table, out = losses().assign(kind=np.tile(["int4", "fp32"], 30)), tmp_path / "out"
    table.to_csv(tmp_path / "runs.csv", index=False)
    words = ("fit", tmp_path / "runs.csv", "--law", "frantar", *MAPPED, "--map", "compression=kind")
    assert run(*words, "--out", out).exit_code == 0
    at = ("--N", "1e9", "--D", "1e11", "--compression")
    assert json.loads(run("predict", out / "fit.json", *at, "int4", "--json").output)["at"]["compression"] == "int4"
    assert "no group 'int5', did you mean 'int4'" in sentence("predict", out / "fit.json", *at, "int5")
    table["kind"] = table["kind"].replace("fp32", "full")
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert "which group of 'compression' is unquantized? say --reference, one of full, int4" in sentence(*words)
    assert run(*words, "--reference", "full").exit_code == 0
    assert "has no group 'ful', did you mean 'full'" in sentence(*words, "--reference", "ful")


def test_a_constant_is_held(table: Path) -> None:
    found = json.loads(run("fit", table, "--law", "chinchilla", *MAPPED, "--fix", "E=1.7", "--json").output)
    assert found["parameters"]["E"]["value"] == pytest.approx(1.7)
    assert found["fixed"] == {"E": 1.7}
    assert "--fix E=much: write NAME=NUMBER" in sentence(
        "fit", table, "--law", "chinchilla", *MAPPED, "--fix", "E=much"
    )


# Compare and claims


def test_laws_are_compared(table: Path) -> None:
    words = ("--law", "chinchilla", "--law", "ouyang_16bit", *MAPPED)
    found = json.loads(run("compare", table, *words, "--json").output)
    assert found["winner"] == "chinchilla"
    assert found["real"]
    shown = run("compare", table, *words).output
    assert found["statement"] in shown
    assert "needs two laws" in sentence("compare", table, "--law", "chinchilla", *MAPPED)


def test_claims_are_shown_as_they_were_judged(tmp_path: Path) -> None:
    claim = {"id": "K1", "verdict": "holds", "evidence": "measured", "value": 0.5, "statement": "It rises"}
    judged = {"claims": [claim, {**claim, "id": "K2", "value": None}], "tested": 2, "expected_false_verdicts": 0.1}
    folder = tmp_path / "kumar_precision"
    folder.mkdir()
    (folder / "claims.json").write_text(json.dumps(judged))
    shown = run("claims", "--reports", tmp_path).output
    assert "It rises" in shown
    assert "of 2 tested, 0.1 may be false by chance" in shown
    assert json.loads(run("claims", "kumar_precision", "--reports", tmp_path, "--json").output) == {
        "kumar_precision": judged
    }
    guide = tmp_path / "comparison"
    guide.mkdir()
    (guide / "claims.json").write_text(json.dumps(judged))
    assert "comparison" in json.loads(run("claims", "guide", "--reports", tmp_path, "--json").output)
    assert "no claims are judged yet" in sentence("claims", "undertrained_qid", "--reports", tmp_path)
    assert "did you mean 'kumar_precision'" in sentence("claims", "kumar_precison")


# Bad tables


def cell(column: str, value: Any) -> Change:
    return lambda t: t.assign(**{column: [value if i == 2 else x for i, x in enumerate(t[column])]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.rename(columns={"params": "parms"}), "column 'params' of --map N=params is missing, did you mean"),
        (lambda t: t.drop(columns="val_loss"), "column 'val_loss' of --map loss=val_loss is missing"),
        (cell("tokens", "many"), THIRD + "'tokens' (D): 'many' is not a number"),
        (cell("val_loss", "nan"), THIRD + "'val_loss' (loss): nan is not finite"),
        (cell("val_loss", ""), THIRD + "'val_loss' (loss): nan is not finite"),
        (cell("val_loss", np.inf), THIRD + "'val_loss' (loss): inf is not finite; remove the row"),
        (lambda t: t.assign(val_loss=True), "row 1 (line 2), column 'val_loss' (loss): 'True' is not a number"),
        (cell("val_loss", -2.0), THIRD + "'val_loss' (loss): -2 must be above zero: its logarithm is fitted"),
        (cell("params", 0.0), THIRD + "'params' (N): 0 must be above zero"),
        (cell("tokens", -5e9), THIRD + "'tokens' (D): -5e+09 must be above zero"),
        (lambda t: t.assign(params=1e9), "column 'params' (N) has one value only (1e+09)"),
        (lambda t: t.iloc[:4], "4 rows are fewer than the 5 parameters of chinchilla"),
        (lambda t: pd.concat([t, t.iloc[[4]]]), "(line 62), column 'params, tokens, C, method, val_loss': the row"),
        (lambda t: pd.concat([t, t.iloc[[4]]]), "the row repeats row 5; keep one of them"),
    ],
)  # fmt: skip
def test_bad_tables_get_a_sentence(tmp_path: Path, change: Change, said: str) -> None:
    path = tmp_path / "my.csv"
    change(losses()).to_csv(path, index=False)
    found = sentence("fit", path, "--law", "chinchilla", *MAPPED)
    assert said in found
    assert found.startswith(str(path))


def test_collinear_inputs_say_what_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    table = losses().assign(tokens=lambda t: 20 * t["params"])
    loss = LAW.predict(LAW.internal(CONSTANTS), {"N": table["params"].to_numpy(), "D": table["tokens"].to_numpy()})
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(len(table))
    table.assign(val_loss=loss * noise).to_csv(path, index=False)
    found = json.loads(run("fit", path, "--law", "chinchilla", *MAPPED, "--json").output)
    assert found["status"] in ("WEAKLY_IDENTIFIED", "BOUND_HIT", "FAILED")
    said = next(reason for reason in found["reasons"] if "move together" in reason)
    assert "columns 'N' and 'D' move together in every row (D ~ N^1)" in said
    assert "so that the exponents alpha, beta cannot be told apart" in said
    ends = [(e["profile_low"], e["value"], e["profile_high"]) for e in found["parameters"].values()]
    assert all((low is None or low <= value) and (high is None or value <= high) for low, value, high in ends)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--law", "chinchila"), "law 'chinchila' is unknown, did you mean 'chinchilla'"),
        (("--law", "chinchilla", "--map", "N"), "--map N: write NAME=COLUMN"),
        (("--law", "chinchilla", "--map", "N=2 * parms"), "--map N='2 * parms': there is no column 'parms', did you"),
        (("--law", "chinchilla", "--map", "N=(params"), "makes no sense"),
        (("--law", "chinchilla", *MAPPED, "--where", "methd == 1"), "there is no column 'methd', did you mean"),
        (("--law", "chinchilla", *MAPPED, "--where", "params * 2"), "is neither true nor false"),
        (("--law", "chinchilla", *MAPPED, "--where", "params > 1e20"), "no row satisfies"),
        (("--law", "chinchilla", *MAPPED, "--recipe", "hubber"), "recipe 'hubber' is unknown, did you mean 'huber'"),
        (("--law", "all"), "has the columns of no law"),
        (("--law", "chinchilla"), "'N' is missing; name it with --map N=COLUMN, one of params, tokens, C, method, val"),
        (("--law", "chinchilla", *MAPPED, "--where", "method = 'bf16'"), "= gives a value; write == to compare"),
        (("--law", "chinchilla", "--map", "N=Params"), "--map N=Params is missing, did you mean 'params'?"),
    ],
)
def test_bad_options_get_a_sentence(table: Path, words: tuple[str, ...], said: str) -> None:
    assert said in sentence("fit", table, *words)


def test_unreadable_files_get_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    assert "cannot be read" in sentence("fit", path, "--law", "chinchilla")
    for content in (b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n4,5,6\n"):
        path.write_bytes(content)
        assert str(path) in sentence("fit", path, "--law", "chinchilla")
    path.write_text("N,D,N\n1,2,3\n")
    assert "column 'N' stands twice in the header" in sentence("fit", path, "--law", "chinchilla")
    path.write_text("N,D,loss\n")
    assert "has a header and no row" in sentence("fit", path, "--law", "chinchilla")
    path = tmp_path / "my.parquet"
    path.write_text("no parquet")
    assert "is not a Parquet table" in sentence("fit", path, "--law", "chinchilla")


def test_columns_are_found_whatever_their_case(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    losses().rename(columns={"params": "n", "tokens": "d", "val_loss": "Loss"}).to_csv(path, index=False)
    for words, said in (
        ((), "column 'N' is missing, did you mean 'n'?; name it with --map N=COLUMN, one of n, d, C, method, Loss"),
        (("--map", "N=n"), "column 'D' is missing, did you mean 'd'?"),
        (("--map", "N=n", "--map", "D=d"), "column 'loss' is missing, did you mean 'Loss'?"),
    ):
        assert said in sentence("fit", path, "--law", "chinchilla", *words)


def test_empty_lines_and_other_separators(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    text = losses().to_csv(index=False)
    for end in ("\n", ",,,,\n", "\n\n"):
        path.write_text(text + end)
        shown = run("fit", path, "--law", "chinchilla", *MAPPED)
        assert "60 rows" in shown.output, shown.exception
    lines = text.splitlines()
    path.write_text("\n".join([*lines[:4], "", *lines[4:]]))
    assert "row 4 (line 5) is empty; remove it" in sentence("fit", path, "--law", "chinchilla", *MAPPED)
    path.write_text("params,tokens,val_loss\n\n\n")
    assert "has a header and no row" in sentence("fit", path, "--law", "chinchilla", *MAPPED)
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        losses().to_csv(path, index=False, sep=sign)
        assert f"is separated by {name}; save it with commas" in sentence("fit", path, "--law", "chinchilla", *MAPPED)


def test_an_expression_of_a_column_that_it_replaces_keeps_rows_apart(tmp_path: Path) -> None:
    """`D` in billions, mapped to itself times 1e9: rows that differ in it only are no duplicates."""
    path = tmp_path / "my.csv"
    table = losses().assign(params=lambda t: t["params"].round(-9) + 1e9, val_loss=2.5, C=1.0, method="x")
    table.assign(D=lambda t: t["tokens"] / 1e9).drop(columns="tokens").to_csv(path, index=False)
    chosen = read_user_table(path, {"N": "params", "D": "D * 1e9", "loss": "val_loss"})
    check(LAW, chosen, "my.csv")
    again = pd.concat([chosen, chosen.iloc[[0]].assign(row=61)])
    with pytest.raises(
        BitlawError, match=r"row 61 .line 62., column 'params, C, method, val_loss, D': the row repeats"
    ):
        check(LAW, again, "my.csv")


def test_what_a_fit_does_not_stop_at_is_said(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    one = losses().assign(bits=np.tile([3.0, 4.0, 16.0], 20), tag=[f"r{i}" for i in range(60)])
    table = pd.concat([one, one.iloc[[2]].assign(tag="again")])
    table.rename(columns={"params": "N", "tokens": "D", "val_loss": "loss"}).to_csv(path, index=False)

    def said(*words: str) -> str:
        return " ".join(json.loads(run("fit", path, *words, "--resamples", "20", "--json").output)["reasons"])

    assert "row 61 has the inputs and the loss of row 3 to the last digit; if they are one run" in said(
        "--law", "chinchilla"
    )
    one_factor = said("--law", "page_simple", "--starts", "4")
    assert "page_simple has no N, D, method: rows that differ in them only are fitted as the same" in one_factor
    gridded = said("--law", "chinchilla", "--recipe", "quartet-huber", "--starts", "4")
    assert "chinchilla has no gamma for the grid of quartet-huber: 4 random starts" in gridded
    assert "grid" not in said("--law", "chinchilla", "--recipe", "hoffmann-huber")


def deltas(path: Path, **more: Any) -> Path:
    """Kumar's Eq. 2 on three sizes of two trained models each, whose seeds scatter by 5 %."""
    rows = [
        (N, D, b, f"{N:g}-{s}") for N in (1e8, 3e8, 1e9) for s in (0, 1) for D in (2e9, 8e9, 3e10) for b in (3, 4, 5)
    ]
    table = pd.DataFrame(rows, columns=["N", "D", "bits", "trunk_id"])
    truth = KUMAR.internal({"C_T": 0.06, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.6})
    level = KUMAR.predict(truth, {name: table[name].to_numpy(float) for name in KUMAR.inputs})
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(len(table))
    table.assign(delta=level * noise, delta_se=0.001 * level, **more).to_csv(path, index=False)
    return path


def test_the_scatter_of_seeds_is_used(tmp_path: Path) -> None:
    path = deltas(tmp_path / "my.csv")
    found = json.loads(run("fit", path, "--law", "kumar_eq2", "--resamples", "40", "--json").output)
    assert "seed noise from 27 cells with several seeds" in found["reasons"]
    assert set(found["noise"]["cv"]) == {"3.0", "4.0", "5.0"}
    assert found["seed_sd"] / np.median([0.1]) > 0.02 or found["seed_sd"] > 0
    assert found["noise"]["cv"]["4.0"] == pytest.approx(0.05, rel=0.5)
    # A law of one input has cells of many N and D; what they change is no noise of seeds.
    bits = json.loads(run("fit", path, "--law", "ouyang_bits", "--resamples", "40", "--json").output)
    assert bits["noise"] == found["noise"]
    words = ("--law", "kumar_eq2", "--law", "ouyang_joint", "--resamples", "20")
    assert "seed noise from 27 cells" in json.loads(run("compare", path, *words, "--json").output)["notes"][-1]
    pd.read_csv(path).drop(columns="trunk_id").to_csv(path, index=False)
    for command, key in (("fit", "reasons"), ("compare", "notes")):
        plain = json.loads(run(command, path, *(words if command == "compare" else words[:2]), "--json").output)
        assert any("no column 'trunk_id' says which rows share" in line for line in plain[key])


def test_a_trunk_is_one_trained_model(tmp_path: Path) -> None:
    """Seeds numbered alike at every size would be drawn together, as if one model had several N."""
    path = deltas(tmp_path / "my.csv")
    table = pd.read_csv(path)
    table.assign(seed=table["trunk_id"].str[-1]).to_csv(path, index=False)
    words = ("--law", "kumar_eq2", "--resamples", "20")
    said = "row 19 (line 20), column 'seed' (trunk_id): '0' has another N in row 1; name each trained model apart"
    assert said in sentence("fit", path, *words, "--map", "trunk_id=seed")
    assert said in sentence("compare", path, *words, "--law", "ouyang_joint", "--map", "trunk_id=seed")
    table.assign(trunk_id=table["trunk_id"].where(table.index != 2)).to_csv(path, index=False)
    assert THIRD + "'trunk_id': the cell is empty; name the trained model of every row" in sentence("fit", path, *words)


def test_seeds_of_fewer_trunks_than_sizes_say_nothing_of_their_spread() -> None:
    table = pd.DataFrame({"N": [1.0, 1.0, 2.0, 2.0], "delta": [0.1, 0.11, 0.2, 0.22], "trunk_id": "a"})
    assert seed_noise(table, ["N"]).dof == 0


def test_negative_errors_are_refused(tmp_path: Path) -> None:
    path = deltas(tmp_path / "my.csv")
    pd.read_csv(path).assign(delta_se=lambda t: t["delta_se"].where(t.index != 2, -0.1)).to_csv(path, index=False)
    assert THIRD + "'delta_se': a standard error cannot be negative" in sentence("fit", path, "--law", "kumar_eq2")


def test_all_compares_the_laws_that_can_be(tmp_path: Path) -> None:
    shown = run("compare", deltas(tmp_path / "my.csv"), "--law", "all", "--resamples", "20", "--json")
    assert shown.exit_code == 0, shown.exception
    for name, lacking in (("ouyang_bits", "D, N"), ("ouyang_tokens", "N"), ("ouyang_size", "D")):
        assert f"{name}: left out (it has no {lacking}, so it predicts no other one)" in shown.output
    found = json.loads(shown.stdout)
    assert {"kumar_eq2", "ouyang_joint", "page_full"} <= {score["law"] for score in found["scores"]}


def test_rows_keep_their_numbers_through_a_selection(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    table = losses()
    table.loc[[6, 40], "tokens"] = [-1.0, np.nan]
    table.to_csv(path, index=False)
    chosen = read_user_table(path, {"N": "params"}, "tokens < 0 or params > 1e9")
    assert chosen["row"].iloc[0] <= 7
    assert 7 in set(chosen["row"])
    assert "row 7 (line 8), column 'tokens' (D)" in sentence(
        "fit", path, "--law", "chinchilla", *MAPPED, "--where", "tokens < 0 or params > 1e9"
    )


def test_every_group_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    words = ("fit", path, "--law", "frantar", *MAPPED, "--map", "compression=method")
    losses().assign(method=lambda t: t["method"].where(t.index != 2)).to_csv(path, index=False)
    assert THIRD + "'method' (compression): the cell is empty; name the group of every row" in sentence(*words)
    losses().assign(method="bf16").to_csv(path, index=False)
    assert f"{path}: column 'compression' has 1 group" in sentence(*words)


def test_named_indices_of_parquet_are_columns(tmp_path: Path) -> None:
    losses().set_index(["params", "tokens"]).to_parquet(tmp_path / "my.parquet")
    table = read_user_table(tmp_path / "my.parquet", {"N": "params", "D": "tokens"})
    assert table["N"].tolist() == losses()["params"].tolist()
    losses().iloc[5:].to_parquet(tmp_path / "my.parquet")  # rows without a name
    assert "index" not in read_user_table(tmp_path / "my.parquet").columns


def test_a_fit_that_fails_has_no_interval_and_says_so(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--fix", "E=15", "--starts", "4", "--resamples", "20", "--out", out)
    shown = run("fit", table, "--law", "chinchilla", *MAPPED[:6], *options).output
    assert "chinchilla: FAILED" in shown
    assert "none converged" in shown
    assert "nan" not in shown
    told = run("predict", out / "fit.json", "--N", "1e9", "--D", "1e11").output
    assert "without an interval: no resample converged" in told
    assert "warning: the fit is FAILED" in told
    assert f"--out {table}: is a file; name a folder" in sentence("fit", table, "--law", "chinchilla", "--out", table)


def test_laws_of_two_targets_are_not_compared(table: Path) -> None:
    words = ("--law", "chinchilla", "--law", "kumar_eq2")
    said = sentence("compare", table, *words, *MAPPED, "--map", "bits=params", "--map", "delta=val_loss")
    assert said == "chinchilla predicts loss and kumar_eq2 predicts delta: compare laws of one target"


def test_codes_put_the_unquantized_group_first() -> None:
    table = pd.DataFrame({"compression": ["int4", "BF16", "int8", "int4"]})
    rows, groups = coded(table, "compression", None, "t")
    assert groups == ("BF16", "int4", "int8")
    assert rows["compression"].tolist() == [1.0, 0.0, 2.0, 1.0]
    numbers, groups = coded(pd.DataFrame({"compression": [16.0, 4.0]}), "compression", None, "t")
    assert groups == ("16", "4")
    assert numbers["compression"].tolist() == [0.0, 1.0]


def test_zero_is_an_input_where_the_law_says_so() -> None:
    law, _ = for_table("capybara", pd.DataFrame())
    assert isinstance(law, Law)
    assert {"E", "M"} <= set(law.at_least_zero)
    assert "E" not in EQ3_BIAS.at_least_zero
