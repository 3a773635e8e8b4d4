"""The page's law, its contradictions, and the claims of the papers that it builds on (numbers: facts)."""

import numpy as np
import pytest
from judged import judged, verdicts
from law_cases import CASES, published

from replications.precision_predictor import claims
from replications.precision_predictor.law import FULL, SIMPLE, simple

C = published("precision_predictor")


def test_the_simplified_law_is_the_printed_one() -> None:
    case = CASES["page_simple"]
    c, bits = case.constants, case.grid.bits
    direct = c["L_base"] + c["eta"] * (16 - bits) ** c["delta"]
    np.testing.assert_allclose(SIMPLE.predict(case.theta, case.columns), direct, rtol=1e-12)


def test_the_full_law_is_its_prose() -> None:
    case, t = CASES["page_full"], CASES["page_full"].grid
    c = case.constants
    direct = c["eta"] * (t.D / t.N) ** c["beta"] * (16 - t.bits) ** c["delta"]
    np.testing.assert_allclose(FULL.predict(case.theta, case.columns), direct, rtol=1e-12)


def test_no_penalty_without_a_gap() -> None:
    theta = CASES["page_simple"].theta
    at = {"bits": np.array([16.0, 32.0])}
    np.testing.assert_array_equal(SIMPLE.predict(theta, at), [3.0, 3.0])
    assert np.all(np.isfinite(SIMPLE.gradient(theta, at)))
    assert simple(32.0).predict(theta, at)[0] > 3.0


def test_a_wider_gap_makes_the_law_worse_as_the_page_says() -> None:
    theta, bits = CASES["page_simple"].theta, {"bits": np.array([2.0])}
    lost = [law.predict(law.from_raw(SIMPLE.to_raw(theta)), bits)[0] - 3.0 for law in (simple(16.0), simple(32.0))]
    assert lost[1] / lost[0] == pytest.approx((30 / 14) ** 8.0)


def test_verdicts_that_published_numbers_decide() -> None:
    holds = ("GQ1", "GQ2", "GQ3", "GQ5a", "GQ5b", "GQ6")
    fails = ("S2", "S3a", "S4")
    assert verdicts("precision_predictor") == dict.fromkeys(holds, "holds") | dict.fromkeys(fails, "fails")
    found = judged("precision_predictor")
    assert found["GQ3"].value == pytest.approx((23.31 - 9.00) / (23.31 - 8.83))
    assert "Kumar et al., not Deletang" in found["S2"].detail
    assert {f"S{n}" for n in range(1, 11)} <= {id.rstrip("ab") for id in found}
    assert {f"PD{n}" for n in range(1, 9)} | {f"GQ{n}" for n in range(1, 8)} <= {id.rstrip("ab") for id in found}


@pytest.mark.parametrize(
    ("name", "id", "verdict"),
    [
        ("guidedquant_13B/3_guided", "GQ1", "fails"),
        ("guidedquant_7B/3_lnq", "GQ2", "fails"),
        ("guidedquant_7B/2_guided_g1", "GQ3", "fails"),
        ("guidedquant_70B/3_guided", "GQ6", "holds"),
    ],
)
def test_other_tables_would_be_judged_otherwise(name: str, id: str, verdict: str) -> None:
    changed = {**C, name: 22.0 if name != "guidedquant_70B/3_guided" else 3.45}
    found = {finding.claim.id: finding.verdict for finding in claims.judge({}, changed, {})}
    assert found[id] == verdict
