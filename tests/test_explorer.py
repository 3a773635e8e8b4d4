"""The explorer's laws, data and scripts: the page computes what the laws compute, and no run can write to it."""

import hashlib
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_results import write_results
from typer.testing import CliRunner

from replications.cli import app
from replications.explorer import curves as laws
from replications.explorer.errors import GROUPS as GROUP_SIZES
from replications.explorer.errors import errors
from replications.explorer.explorer import explorer
from replications.explorer.formulas import FORMULAS
from replications.explorer.points import TEXT, VALUE, points
from replications.laws import ENTRIES, restore
from replications.unified.error import relative_error
from shared.errors import BitlawError
from shared.files import write_json
from shared.laws.fit import fit
from shared.laws.law import Law
from shared.report.explorer import scripts
from shared.report.explorer.data import Curve, Explorer, data_of, inert, script_of
from shared.report.explorer.formula import Formula, evaluate, javascript

GROUPS = {"frantar": ("bf16", "W4"), "quartet": ("bf16/bf16", "MXFP4/MXFP4")}
RANGES = {
    "N": (1e5, 1e11), "D": (1e6, 1e13), "bits": (1.0, 20.0), "G": (1.0, 4096.0), "B": (1.0, 4096.0), "E": (0.0, 8.0),
    "M": (0.0, 10.0), "P_w": (2.0, 16.0), "P_a": (2.0, 16.0), "P_kv": (2.0, 16.0), "P_post": (2.0, 16.0),
}  # fmt: skip
ROWS = 60


def sample(law: Law, seed: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Raw constants inside the bounds, near the paper's scale, and inputs that reach where a law breaks off."""
    generator = np.random.default_rng(seed)
    low, high = np.clip(law.bounds.T, -3.0, 3.0)
    theta = generator.uniform(low, high)
    columns = {}
    for name in law.inputs:
        if name == law.grouped:
            columns[name] = generator.integers(0, 2, ROWS).astype(float)
            continue
        if name.startswith("relative_mse"):
            columns[name] = generator.uniform(0.0, 0.7, ROWS) * generator.integers(0, 2, ROWS)
            continue
        if name == "trained":
            columns[name] = generator.integers(0, 2, ROWS).astype(float)
            continue
        ends = RANGES[name]
        spread = np.geomspace if ends[0] > 0 and ends[1] / ends[0] > 100 else np.linspace
        columns[name] = generator.permutation(spread(*ends, ROWS))
    return law.raw(theta), columns


def names_of(law: Law, columns: dict[str, np.ndarray], raw: dict[str, float]) -> dict[str, np.ndarray | float]:
    """Inputs and constants by the formula's names: a multiplier is that of each row's group."""
    values: dict[str, np.ndarray | float] = {**raw, **columns}
    if law.grouped:
        code = columns[law.grouped] == 1
        for name, key in {"eff": "eff_W4", "effN": "effN_MXFP4", "effD": "effD_MXFP4"}.items():
            if key in raw:
                values[name] = np.where(code, raw[key], 1.0)
    return values


@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_formula_says_what_its_law_says(name: str, seed: int) -> None:
    law = restore(name, GROUPS.get(name, ()))
    raw, columns = sample(law, seed)
    with np.errstate(all="ignore"):
        expected = law.predict(law.internal(raw), columns)
    found = evaluate(FORMULAS[name], names_of(law, columns, raw))
    np.testing.assert_allclose(np.broadcast_to(found, expected.shape), expected, rtol=1e-7)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed; tests/test_browser.py has Chromium")
def test_the_javascript_of_every_formula_says_the_same(tmp_path: Path) -> None:
    cases = {}
    for name, formula in FORMULAS.items():
        law = restore(name, GROUPS.get(name, ()))
        raw, columns = sample(law, 2)
        values = names_of(law, columns, raw)
        constants = [key for key in values if key not in columns]
        rows = [{key: float(np.broadcast_to(v, ROWS)[i]) for key, v in values.items()} for i in range(ROWS)]
        expected = np.broadcast_to(evaluate(formula, values), ROWS)
        cases[name] = (javascript(formula, law.inputs, constants), rows, expected)
    code = "\n".join(
        f"out[{json.dumps(name)}] = {json.dumps(rows)}.map((v) => String(({text})(v, v)));"
        for name, (text, rows, _) in cases.items()
    )
    file = tmp_path / "laws.js"
    file.write_text(f'"use strict"; const out = {{}};\n{code}\nconsole.log(JSON.stringify(out));', encoding="utf-8")
    done = subprocess.run(["node", str(file)], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    for name, (_, _, expected) in cases.items():
        got = [math.inf if text == "Infinity" else float(text) for text in found[name]]
        np.testing.assert_allclose(got, expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("text", ["__import__('os')", "a.b", "a[0]", "f(x)", "exp(a, b)", "a; b", "lambda: 1", "'a'"])
def test_a_formula_is_of_its_small_language(text: str) -> None:
    with pytest.raises(BitlawError, match="formula"):
        javascript(Formula(text), ["a", "b", "x"], [])
    with pytest.raises(BitlawError, match="formula"):
        evaluate(Formula(text), {"a": 1.0, "b": 1.0, "x": 1.0})


def test_a_name_without_a_meaning_is_refused() -> None:
    with pytest.raises(BitlawError, match="'gamma' is not of its language"):
        javascript(Formula("gamma * x"), ["x"], ["alpha"])


def test_parts_stand_for_expressions() -> None:
    formula = Formula("1 / f", {"g": "x + 1", "f": "2 * g"})
    assert float(evaluate(formula, {"x": 1.0})) == 0.25
    assert javascript(formula, ["x"], []) == "(c, x) => (1 / (2 * (x.x + 1)))"


def test_every_published_curve_has_all_its_constants() -> None:
    curves = laws.published()
    found = laws.formulas(curves)
    assert len({curve.id for curve in curves}) == len(curves)
    for curve in curves:
        _, inputs, constants = found[curve.law]
        assert set(constants) - {"eff", "effN", "effD"} <= set(curve.constants), curve.id
        assert not curve.draws
        law = ENTRIES[curve.law].law
        assert set(curve.reads) == set(law.inputs) - {law.grouped}, curve.id
        assert set(inputs) == set(law.inputs)
        if law.grouped:
            assert curve.by_bits


def test_points_are_the_rows_of_the_tables(tmp_path: Path) -> None:
    reports = write_results(tmp_path)
    found = points(reports)
    rows = pd.read_csv(reports / "measurements.csv")
    runs = pd.read_csv(reports / "runs.csv")
    assert len(found) == len(rows) + len(runs)
    assert list(found.columns) == [*TEXT, *VALUE]
    rounded = found[found["kind"] == "rounded after training"]
    assert sorted(rounded["delta"]) == sorted(rows["delta"])
    # What both papers fit is read by both.
    assert set(rounded["papers"]) == {"kumar_precision undertrained_qid"}
    assert {"fitted", "held out"} <= set(rounded["use"])
    assert points(tmp_path / "absent").empty


def test_data_are_inert_in_html() -> None:
    nasty = "</script><script>alert(1)</script><!-- & \u2028"
    text = inert({"a": nasty})
    assert not re.search("[<>&]", text)
    assert json.loads(text) == {"a": nasty}
    table = pd.DataFrame({"what": [nasty, "b", nasty], "N": [1.0, float("nan"), 123456789.0]})
    curve = Curve("i", "p", nasty, "ours", "chinchilla", "loss", {}, {"E": 1.0, "A": 2.0}, draws=[[1.5, math.inf]])
    whole = data_of(Explorer([curve], {}, table, ["what"], ["N"], {}))
    assert not re.search("[<>&]", whole)
    found = json.loads(whole)
    assert found["points"] == {"what": {"levels": [nasty, "b"], "codes": [0, 1, 0]}, "N": [1, None, 123456800]}
    # The order of a draw's numbers is told: keys of objects are sorted.
    assert found["curves"][0]["names"] == ["E", "A"]
    assert found["curves"][0]["draws"] == [[1.5, 1e300]]


def test_the_library_is_the_one_that_its_readme_names(tmp_path: Path) -> None:
    readme = (scripts.VENDOR / "README.md").read_text(encoding="utf-8")
    code = (scripts.VENDOR / scripts.LIBRARY).read_bytes()
    assert hashlib.sha256(code).hexdigest() in readme
    assert f"| {scripts.VERSION} | ISC" in readme
    assert f"v{scripts.VERSION} ".encode() in code[:200]
    assert "Permission to use, copy, modify" in " ".join(scripts.library().licence)
    assert len(code) < 400_000
    # It may fetch nothing by itself: the only addresses inside are names of XML's languages and its own home.
    assert set(re.findall(rb"https?://([\w.]+)", code)) == {b"www.w3.org", b"d3js.org"}


def test_a_script_cannot_end_its_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explorer(tmp_path)
    assert len(scripts.scripts(found)) == 2
    assert script_of(found).count("=> ") == len(found.formulas)
    monkeypatch.setattr(scripts, "script_of", lambda _: "const a = '</SCRIPT>';")
    with pytest.raises(BitlawError, match="end its element"):
        scripts.scripts(found)


def test_our_curves_are_the_saved_fits(tmp_path: Path) -> None:
    """Constants, draws, the command and its warning come from fits.json, part by part."""
    law = ENTRIES["kumar_eq2"].law
    rows = pd.DataFrame({"N": [1e5, 1e5, 4e5, 4e5, 2e5, 2e5], "D": [1e6, 8e6, 2e6, 4e6, 1e6, 8e6]})
    rows["bits"] = [2.0, 3.0, 4.0, 2.0, 3.0, 4.0]
    truth = law.internal({"C_T": 0.3, "gamma_D": 0.4, "gamma_N": 0.2, "gamma_post": 0.6})
    columns = {name: rows[name].to_numpy(float) for name in law.inputs}
    rows["delta"] = law.predict(truth, columns) * np.array([1.05, 0.95, 1.02, 0.98, 1.01, 0.99])
    found = fit(law, rows.assign(delta_se=0.02 * rows["delta"], trunk_id=list("aabbcc")), n_starts=4, n_boot=20, seed=1)
    kept = found.kept()
    assert len(kept["draws"]) == len(found.draws)
    write_json(tmp_path / "kumar_precision" / "fits.json", {"fits": {"trunk/32": kept}})
    (curve,) = laws.ours(tmp_path)
    assert curve.label == "Kumar, Eq. 2, trunk, group 32"
    assert curve.constants == pytest.approx({name: e.value for name, e in found.parameters.items()}, rel=1e-4)
    assert len(curve.draws) == len(found.draws)
    assert (curve.warning == "") == (found.status == "CONVERGED")
    assert curve.command == f"bitlaw predict {tmp_path.name}/kumar_precision/fits.json --part 'trunk/32'"
    words = ["predict", str(tmp_path / "kumar_precision" / "fits.json"), "--N", "2e5", "--D", "3e6", "--bits", "3"]
    asked = CliRunner().invoke(app, [*words, "--part", "trunk/32", "--json"])
    assert asked.exit_code == 0
    at = {"N": np.array([2e5]), "D": np.array([3e6]), "bits": np.array([3.0])}
    value = float(evaluate(FORMULAS["kumar_eq2"], {**curve.constants, **at})[0])
    assert json.loads(asked.output)["value"] == pytest.approx(value, rel=1e-4)
    for part, sentence in (("trunk/23", "did you mean 'trunk/32'"), ("", "name one with --part, of trunk/32")):
        wrong = CliRunner().invoke(app, [*words, "--part", part])
        assert isinstance(wrong.exception, BitlawError)
        assert sentence in str(wrong.exception)


def test_the_errors_of_formats_are_those_of_the_unified_law() -> None:
    found = errors()
    assert found["INT4"][6] == relative_error("INT4@64", 64.0)
    assert found["E2M1"][5] == relative_error("E2M1@32", 32.0)
    for row in found.values():
        assert len(row) == len(GROUP_SIZES)
        assert row[0] == 0.0  # a value alone is its own scale
        assert all(np.diff(row[1:8]) > 0)
    assert {name for name in found if name.startswith("INT")} == {f"INT{bits}" for bits in range(2, 9)}


def test_a_multiplier_is_looked_up_by_its_bits() -> None:
    quest = {curve.label: curve for curve in laws.published()}["Frantar, QuEST, weights alone"]
    assert quest.by_bits == {"eff": {str(bits): f"eff_W{bits}" for bits in (1, 2, 3, 4)}}
    assert quest.base["eff"] == 1.0
