"""Elasticities of every law, what follows from them, and the common table of the papers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from law_cases import CASES, Case, published

from replications import papers, results
from replications.comparison.derived import derived
from replications.comparison.elasticities import (
    POINT,
    QUANTITIES,
    compare,
    published_rows,
    readings,
    refitted_row,
)
from replications.comparison.own import Own, derived_rows
from replications.kumar_precision.law import d_crit
from shared.files import read_json, write_json
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.elasticity import critical_tokens, delta_of, effective_share, elasticities, slope
from shared.report.refits import Refit

PUBLISHED = papers.all_published()
ROWS = {(row["paper"], row["label"]): row for row in published_rows(PUBLISHED)}


@pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))
def test_every_law_has_elasticities_and_intervals(case: Case) -> None:
    lossy = case.grid.iloc[delta_of(case.law, case.theta, case.columns).argmax()]
    at = {name: float(lossy[name]) for name in case.law.inputs}
    if case.law.grouped:
        at[case.law.grouped] = 1.0
    draws = case.theta + 0.01 * np.random.default_rng(0).standard_normal((40, len(case.law.parameters)))
    found = elasticities(case.law, case.theta, draws, at)
    assert set(found) == set(case.law.inputs) - {case.law.grouped}
    for estimate in found.values():
        assert np.isfinite(estimate["value"])
        assert estimate["low"] <= estimate["high"]


@pytest.mark.parametrize(
    ("name", "at", "slopes"),
    [
        ("kumar_eq2", {"N": 2e5, "D": 8e6, "bits": 4.0}, {"D": 0.5068, "N": -0.3439, "bits": -1 / 0.5907}),
        ("ouyang_joint", {"N": 2e5, "D": 8e6, "bits": 4.0}, {"D": 0.5251, "N": -0.2261, "bits": -5.4967 / 4}),
        (
            "chen_loss",  # of delta, not of the loss
            {"N": 1e8, "D": 1e10, "G": 128.0},
            {"D": 0.0745, "N": -0.2186, "G": 0.7779 / 7},
        ),
        (
            "capybara",
            {"N": 1e8, "D": 1e10, "E": 2.0, "M": 1.0, "B": 128.0},
            {"D": 0.5162, "N": -0.2368, "E": -3.1926 / 2.5, "M": -2.9543 / 1.5, "B": 1 / 7},
        ),
        ("page_full", {"N": 1e5, "D": 1e7, "bits": 4.0}, {"D": 0.3, "N": -0.3, "bits": -8.0 / 12}),
    ],
)
def test_elasticities_of_power_laws(name: str, at: dict[str, float], slopes: dict[str, float]) -> None:
    found = elasticities(CASES[name].law, CASES[name].theta, None, at)
    assert {key: entry["value"] for key, entry in found.items()} == pytest.approx(slopes, rel=1e-5)
    assert all("low" not in entry for entry in found.values())
    assert {key for key, entry in found.items() if "at" in entry} == set(slopes) - {"N", "D"}


def test_where_nothing_is_lost_there_is_no_slope() -> None:
    case = CASES["chen_loss"]
    assert np.isnan(slope(case.law, case.theta, "D", {"N": 1e8, "D": 1e10, "G": 1.0}))


def test_slopes_of_several_draws_are_those_of_each() -> None:
    case = CASES["capybara"]
    draws = case.theta + 0.05 * np.random.default_rng(1).standard_normal((2, 3, 8))
    at = {"N": 1e8, "D": 1e10, "E": 2.0, "M": 1.0, "B": 128.0}
    many = slope(case.law, draws, "E", at)
    assert many.shape == (2, 3)
    assert many[1, 2] == pytest.approx(slope(case.law, draws[1, 2], "E", at))
    np.testing.assert_allclose(many, -draws[..., 6] / 2.5, rtol=1e-6)


def test_delta_is_what_quantization_adds() -> None:
    case = CASES["chen_loss"]
    parts = CASES["chen_delta"]
    np.testing.assert_allclose(
        delta_of(case.law, case.theta, parts.columns), parts.law.predict(parts.theta, parts.columns), atol=1e-13
    )
    clean = CASES["chinchilla"]
    np.testing.assert_array_equal(
        delta_of(CHINCHILLA, clean.theta, clean.columns), CHINCHILLA.predict(clean.theta, clean.columns)
    )


def test_shares_and_critical_tokens_of_draws() -> None:
    case = CASES["chen_loss"]
    draws = np.stack([case.theta, case.theta])
    at = {"N": 1e9, "D": 1e11, "G": 128.0}
    share = effective_share(case.law, draws, at)
    assert share.shape == (2,)
    assert share[0] == share[1] == effective_share(case.law, case.theta, at)
    assert effective_share(case.law, case.theta, {**at, "G": 1.0}) == pytest.approx(1.0, abs=1e-9)
    tokens = critical_tokens(case.law, draws, {"N": 1e9, "G": 128.0})
    c = published("qat_scaling")
    # d L / d ln D = 0: alpha B D^-alpha = gamma_D k (log2 G)^gamma_G N^-gamma_N D^gamma_D
    ratio = c["alpha"] * c["B"] / (c["gamma_D"] * c["k"] * 7 ** c["gamma_G"] * 1e9 ** -c["gamma_N"])
    np.testing.assert_allclose(tokens, ratio ** (1 / (c["alpha"] + c["gamma_D"])), rtol=2e-3)


def test_where_more_tokens_always_help_there_is_no_critical_number() -> None:
    case = CASES["kumar_eq4_bias"]
    assert critical_tokens(case.law, case.theta, {"N": 1e9, "P_w": 6.0, "P_a": 6.0, "P_kv": 6.0}) == np.inf
    assert critical_tokens(CHINCHILLA, CASES["chinchilla"].theta, {"N": 1e9}) == np.inf


def test_the_common_table_states_each_published_law() -> None:
    assert {paper for paper, _ in ROWS} == set(papers.PAPERS) - {"precision_predictor"}  # the page prints no constant
    expected = {
        ("kumar_precision", "published, rounding (Eq. 2)"): {"D": 0.5068, "N": -0.3439, "bits": -1.6929},
        ("undertrained_qid", "published, rounding (Eq. 8)"): {"D": 0.5251, "N": -0.2261, "bits": -1.3742},
        ("compression_laws", "published by QuEST, W4A4"): {"D": 0.0, "N": -0.0627},
        ("qat_scaling", "published, W4A16"): {"D": 0.161, "N": -0.3589, "G": 0.3533 / 7},
        ("capybara_fp", "published, E2M1"): {"D": 0.5162, "N": -0.2368, "G": 1 / 7},
        ("undertrained_qid", "published, tokens alone (Eq. 5)"): {"D": 0.5316},
        ("undertrained_qid", "published, size alone (Eq. 6)"): {"N": -0.2276},
        ("undertrained_qid", "published, bits alone (Eq. 7)"): {"bits": -5.4812 / 4},
    }
    # Eq. 3 without its bias: d ln delta / d P of N_eff = N (1 - exp(-P / gamma)) at 4 bits, small where f is near 1.
    plain = ROWS["kumar_precision", "published, weights in 4 bits (Eq. 3 as printed, no bias)"]
    assert plain["D"]["value"] == 0.0
    assert plain["bits"]["value"] > ROWS["kumar_precision", "published, weights in 4 bits (Eq. 3)"]["bits"]["value"]
    assert ROWS["qat_scaling", "published, W4A4"]["at"] == {"N": 2e8, "D": 2e10, "bits": 4.0, "G": 128.0}
    assert ROWS["kumar_precision", "published, all in 4 bits (Eq. 4)"]["at"]["P_kv"] == 4.0
    for key, slopes in expected.items():
        for name, value in slopes.items():
            assert ROWS[key][name]["value"] == pytest.approx(value, abs=1e-4), (key, name)
    assert ROWS["compression_laws", "published by QuEST, W4A4"]["bits"] is None
    assert ROWS["capybara_fp", "published, E2M1"]["bits"]["at"] == 4.0


def test_a_bit_of_all_streams_or_of_a_layout() -> None:
    """One bit more of all three streams is the sum of one of each; of a layout, the best share to E and M."""
    c = published("kumar_precision")
    row = ROWS["kumar_precision", "published, all in 4 bits (Eq. 4)"]
    case = CASES["kumar_eq4_bias"]
    ends = [
        np.log(delta_of(case.law, case.law.internal(c), {n: np.array([{**POINT, **p}[n]]) for n in case.law.inputs}))[0]
        for p in ({f"P_{x}": 4 + step for x in ("w", "a", "kv")} for step in (1e-4, -1e-4))
    ]
    assert row["bits"]["value"] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5)


def test_refits_stand_in_the_table_with_their_intervals() -> None:
    refits = {
        "quest/gamma_D/4": Refit(0.169, 0.12, 0.22, "QuEST"),
        "quest/gamma_N/4": Refit(0.352, 0.28, 0.42, "QuEST"),
        "quest/gamma_D/3": Refit(0.166, 0.1, 0.2, "QuEST"),
    }
    (row,) = compare([], None, refits)
    assert (row["source"], row["label"]) == ("refitted", "refitted, QuEST, W = A in 4 bits")
    assert (row["D"]["value"], row["D"]["low"], row["D"]["high"]) == (0.169, 0.12, 0.22)
    assert (row["N"]["value"], row["N"]["low"], row["N"]["high"]) == (-0.352, -0.42, -0.28)


def test_the_point_lies_in_every_grid_and_is_the_same_for_all() -> None:
    assert all(reading.point()["N"] == 2e8 and reading.point()["D"] == 2e10 for reading in readings(PUBLISHED))
    assert set(QUANTITIES) == {"D", "N", "bits", "G"}


def test_a_refitted_law_has_the_slopes_of_its_draws() -> None:
    case = CASES["quartet"]
    draws = case.theta + 0.01 * np.random.default_rng(0).standard_normal((200, len(case.law.parameters)))
    at = {**POINT, "compression": 1.0}
    row = refitted_row("compression_laws", case.law, "refitted, forward", case.theta, draws, at, {})
    assert row["D"]["low"] < row["D"]["value"] < row["D"]["high"]
    assert row["D"]["value"] == pytest.approx(float(slope(case.law, case.theta, "D", at)))
    assert (row["at"], row["bits"], row["source"]) == ({"N": 2e8, "D": 2e10, "bits": 4.0}, None, "refitted")
    assert compare([], None, {}, [row]) == [row]


def test_our_own_critical_tokens_and_shares() -> None:
    """By the closed forms, against bisection of the laws, and with intervals from the draws."""
    clean, rounded = CASES["chinchilla"], CASES["kumar_eq2"]
    pool = simulated_own(clean, rounded)
    constants = {**rounded.constants, **clean.constants}
    assert pool.critical_tokens(1e6, 3)[0] == pytest.approx(d_crit(constants, 1e6, 3), rel=1e-9)
    at = {"N": 1e6, "D": 1e9, "bits": 3.0}
    share = pool.share(1e6, 1e9, 3)[0]
    delta = float(rounded.law.predict(rounded.theta, {k: np.array([v]) for k, v in at.items()})[0])
    A, alpha = clean.constants["A"], clean.constants["alpha"]
    assert A / (1e6 * share) ** alpha == pytest.approx(A / 1e6**alpha + delta, rel=1e-9)
    rows = derived_rows(pool, [1e6])
    assert {row["quantity"] for row in rows} == {"D_crit", "N_eff / N"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)  # type: ignore[operator]
    assert derived_rows(Own(None, None, "no rows"), [1e6]) == []


def simulated_own(clean: Case, rounded: Case) -> Own:
    found = []
    for case in (clean, rounded):
        draws = case.theta + 0.001 * np.random.default_rng(0).standard_normal((50, len(case.law.parameters)))
        found.append(SimpleNamespace(theta=case.theta, draws=draws, status="CONVERGED"))
    return Own(found[0], found[1], "")  # type: ignore[arg-type]


def test_derived_quantities() -> None:
    found = {(row["paper"], row["quantity"], row["setting"]): row["value"] for row in derived(PUBLISHED)}
    assert found["kumar_precision", "P*", "compute-optimal training, with biases"] == pytest.approx(7.002, abs=5e-4)
    assert found["kumar_precision", "N_eff / N", "W = A = KV in 4 bits (Eq. 4, biases)"] == pytest.approx(
        0.191, abs=5e-4
    )
    assert found["capybara_fp", "D_crit", "1B trained in E4M3, B = 128"] == pytest.approx(27.33e12, rel=2e-4)
    assert found["compression_laws", "P*", "QuEST, largest eff / bits of W = A"] == 4
    assert found["qat_scaling", "N_eff / N", "W4A4, G = 128, 595M, 100B"] == pytest.approx(0.712, abs=5e-4)
    assert found["kumar_precision", "D_crit", "1B trained in 4 bits (Eq. 4)"] is None
    deltas = {key: value for key, value in found.items() if key[1] == "delta"}
    assert all(0 < float(str(value)) < 1 for value in deltas.values())
    assert len(found) == len(derived(PUBLISHED))


def test_fitted_laws_stand_first_and_once(tmp_path: Path) -> None:
    from simulated_results import write_results

    reports = write_results(tmp_path)
    rows = compare(results.fits(reports), PUBLISHED)
    assert [row["paper"] for row in rows[:2]] == ["kumar_precision"] * 2
    assert len([row for row in rows if row["law"] == "kumar_eq2" and row["source"] == "published"]) == 1
    of_loss = [row["law"] for row in rows if row["of"] == "loss"]
    assert of_loss == ["chinchilla", "ouyang_16bit"]
    assert len(rows) == len(compare(results.fits(reports))) + len(ROWS) - 2 + len(of_loss)
    assert all({"N", "D"} <= set(row["at"]) for row in rows)
    assert (rows[1]["source"], rows[1]["at"]) == ("ours", {"N": 2.0**18, "D": 2.0**23, "bits": 4.0})
    write_json(tmp_path / "rows.json", rows)  # what the stage does
    assert len(read_json(tmp_path / "rows.json")) == len(rows)
