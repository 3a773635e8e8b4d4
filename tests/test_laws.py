"""Every law as data: gradients, units, recovery from noise-free tables, bad tables; and the settings files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import CASES, Case

from replications import papers
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision.law import EQ9
from replications.qat_scaling.law import LAW as CHEN
from shared.errors import BitlawError
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import fit
from shared.laws.settings import HeldOut, Params, Published, Selection, read_settings

ROOT = Path(__file__).parent.parent
LAWS = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


def near(case: Case, n: int, spread: float = 0.02) -> np.ndarray:
    """(n, P) parameters around the case's own."""
    return case.theta + np.random.default_rng(0).normal(0, spread, size=(n, len(case.law.parameters)))


@LAWS
def test_gradient_agrees_with_the_complex_step(case: Case) -> None:
    theta, at = near(case, 3), case.columns
    gradient, prediction = case.law.gradient(theta, at), case.law.predict(theta, at)
    assert gradient.shape == (3, len(case.grid), len(case.law.parameters))
    for k in range(theta.shape[-1]):
        moved = theta.astype(complex)
        moved[:, k] += 1e-30j
        exact = case.law.predict(moved, at).imag / 1e-30
        np.testing.assert_allclose(gradient[..., k], exact, rtol=1e-11, atol=1e-13 * float(np.max(np.abs(prediction))))


@LAWS
def test_prediction_and_gradient_in_one_go_are_the_same(case: Case) -> None:
    assert case.law.both is not None
    value, gradient = case.law.both(near(case, 2), case.columns)
    np.testing.assert_allclose(value, case.law.predict(near(case, 2), case.columns), rtol=1e-14)
    np.testing.assert_array_equal(gradient, case.law.gradient(near(case, 2), case.columns))
    one, slopes = case.law.both(case.theta, case.columns)
    assert one.shape == (len(case.grid),)
    assert slopes.shape == (len(case.grid), len(case.law.parameters))


@LAWS
def test_raw_and_internal_units_are_inverse(case: Case) -> None:
    raw = case.law.to_raw(near(case, 5, 0.1))
    np.testing.assert_allclose(case.law.to_raw(case.law.from_raw(raw)), raw, rtol=1e-11)
    assert case.law.raw(case.theta) == pytest.approx({name: case.constants[name] for name in case.law.parameters})


@LAWS
def test_published_constants_and_starts_lie_inside_the_bounds(case: Case) -> None:
    lower, upper = case.law.bounds.T
    assert np.all((lower < case.theta) & (case.theta < upper))
    table = case.table()
    target = table[case.law.target].to_numpy()
    starts = case.law.starts(np.random.default_rng(1), 50, case.columns, target, 0 * target)
    assert starts.shape == (50, len(case.law.parameters))
    assert np.all((lower <= starts) & (starts <= upper))
    assert np.all(np.isfinite(case.law.predict(starts, case.columns)))
    assert len(np.unique(starts, axis=0)) == 50


@LAWS
def test_noise_free_data_give_the_constants_back(case: Case) -> None:
    table = case.table()
    result = fit(case.law, table, n_starts=16, n_boot=20)
    assert result.status == "CONVERGED"
    np.testing.assert_allclose(case.law.predict(result.theta, case.columns), table[case.law.target], rtol=1e-9)
    for name in case.law.parameters:
        assert result.parameters[name].value == pytest.approx(case.constants[name], rel=1e-6), name


@LAWS
def test_nothing_is_lost_where_nothing_is_quantized(case: Case) -> None:
    if not case.law.unquantized:
        assert case.law.target == "delta" or not set(case.law.inputs) - {"N", "D"}
        return
    clean = case.columns | {name: np.full(len(case.grid), value) for name, value in case.law.unquantized.items()}
    quantized, unquantized = case.law.predict(case.theta, case.columns), case.law.predict(case.theta, clean)
    assert np.all(np.isfinite(unquantized))
    assert np.all(quantized >= unquantized - 1e-12)
    assert np.any(quantized > unquantized + 1e-4)


@LAWS
def test_bad_tables_get_one_sentence(case: Case) -> None:
    law, table = case.law, case.table()
    first, last = law.inputs[0], law.inputs[-1]
    below = -1.0 if last in law.at_least_zero else 0.0
    bad = {
        f"column '{first}' is missing": table.drop(columns=first),
        f"column '{law.target}' is missing": table.drop(columns=law.target),
        f"row 2 (line 3), column '{last}': nan is not finite": changed(table, last, float("nan")),
        f"row 2 (line 3), column '{law.target}': inf is not finite": changed(table, law.target, float("inf")),
        f"row 2 (line 3), column '{last}': {below:g} must": changed(table, last, below),
        f"row 2 (line 3), column '{last}': 'many' is not a number": changed(table.astype({last: object}), last, "many"),
        f"column '{first}' has one value only": table.assign(**{first: table[first].iloc[0]}, seed=range(len(table))),
        "rows are fewer than the": table.iloc[: len(law.parameters) - 1],
        "repeats row": pd.concat([table, table.iloc[:1]], ignore_index=True),
    }
    for sentence, wrong in bad.items():
        with pytest.raises(BitlawError) as error:
            fit(law, wrong, name="mine.csv", n_starts=2, n_boot=20)
        assert sentence in str(error.value)
        assert str(error.value).startswith("mine.csv: ")
        assert "\n" not in str(error.value)


def changed(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    """The second row's cell replaced."""
    table = table.reset_index(drop=True)
    table.loc[1, column] = value
    return table


@given(st.floats(1e7, 1e11), st.floats(1e8, 1e14), st.floats(1.01, 100))
@settings(max_examples=50, deadline=None)
def test_the_clean_loss_falls_with_size_and_tokens(N: float, D: float, times: float) -> None:
    theta = CASES["chinchilla"].theta
    at = {"N": np.array([N, N * times, N]), "D": np.array([D, D, D * times])}
    loss, larger, longer = CHINCHILLA.predict(theta, at)
    assert larger < loss
    assert longer < loss
    assert min(larger, longer) > 1.81686


def test_groups_of_a_family_are_checked() -> None:
    law = effective_parameters(("BF16", "W4A4", "W2A2"))
    assert law.parameters == ("A", "alpha", "B", "beta", "E", "eff_W4A4", "eff_W2A2")
    assert effective_parameters_and_data(("a/a", "b/a", "b/c")).parameters[5:] == ("gamma", "effN_b", "effD_c")
    with pytest.raises(BitlawError, match="has 1 group"):
        effective_parameters(("BF16",))
    with pytest.raises(BitlawError, match="'W4' of column 'compression' is named twice"):
        effective_parameters(("BF16", "W4", "W4"))
    with pytest.raises(BitlawError, match="'MXFP4' is no pair of precisions; name it forward/backward"):
        effective_parameters_and_data(("BF16/BF16", "MXFP4"))


def test_files_of_the_repository_are_valid() -> None:
    held_out = read_settings(papers.HELD_OUT, HeldOut)
    assert len(held_out.formats) == 2
    assert held_out.sizes == ("L",)
    assert read_settings(ROOT / "params.yaml", Params).fit.n_boot >= 1000
    for paper in papers.PAPERS.values():
        assert paper.published().paper
        if paper.fitted:
            selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
            assert set(held_out.formats) < set(selection.formats)
        if paper.published().law:
            assert paper.law is not None
            assert set(paper.published().law) == set(paper.law.parameters)


def test_constants_are_those_of_the_named_set_or_none() -> None:
    chen = papers.find("qat_scaling").published()
    assert chen.constants(CHEN)["k"].value == 0.1582  # type: ignore[index]
    assert chen.constants(CHEN, "W4A16")["k"].value == 0.2522  # type: ignore[index]
    assert chen.constants(CHEN, "W2A2") is None
    assert papers.find("kumar_precision").published().constants(EQ9) is None  # C_w, C_a, C_kv are printed nowhere
    assert chen.values()["W4A16/gamma_N"] == 0.3589


def test_no_number_is_from_memory() -> None:
    for paper in [*papers.PAPERS.values(), papers.GUIDE]:
        text = paper.file("published.yaml").read_text(encoding="utf-8")
        assert "MEM" not in text
        known = paper.published()
        everything = [known.law, known.numbers, *known.laws.values()]
        assert all(constant.source for some in everything for constant in some.values())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("n_boot:", "n_bot:"), "unknown key 'fit.n_bot', did you mean 'n_boot'?"),
        (("n_boot: 1000", "n_boot: many"), "key 'fit.n_boot' is 'many': input should be a valid integer"),
        (("n_boot: 1000", "n_boot: 3"), "key 'fit.n_boot' is 3: input should be greater than or equal to 20"),
        (("  seed: 1 ", "# "), "key 'fit.seed' is missing"),
        (("fit:", "fits:"), "unknown key 'fits', did you mean 'fit'?"),
        (("fit:", "- fit:"), "params.yaml"),
    ],
)
def test_wrong_settings_get_a_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(BitlawError) as error:
        read_settings(path, Params)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_published_numbers_need_a_known_confidence(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(
        "paper: a\narxiv: b\nnumbers: {}\nlaws: {}\nlaw:\n  k: {value: 1, source: memory, confidence: MEM}\n",
        encoding="utf-8",
    )
    with pytest.raises(BitlawError, match=r"key 'law.k.confidence' is 'MEM'"):
        read_settings(path, Published)
