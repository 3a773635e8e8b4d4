"""Frantar et al.: multipliers of N, QuEST's and Quartet's constants for the same form, the claims (numbers: facts)."""

import numpy as np
import pytest
from judged import judged, verdicts
from law_cases import CASES, published

from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from shared.laws.elasticity import effective_share, elasticities
from shared.report.refits import Refit

C = published("compression_laws")


def test_the_law_is_the_printed_one() -> None:
    case, t = CASES["frantar"], CASES["frantar"].grid
    eff = np.array([1.0, *(case.constants[f"eff_{group}"] for group in case.law.groups[1:])])
    N = t.N * eff[t.compression.astype(int)]
    c = case.constants
    direct = c["A"] / N ** c["alpha"] + c["B"] / t.D ** c["beta"] + c["E"]
    np.testing.assert_allclose(case.law.predict(case.theta, case.columns), direct, rtol=1e-12)


def test_quartet_is_the_printed_one() -> None:
    case, t = CASES["quartet"], CASES["quartet"].grid
    c, code = case.constants, t.compression.astype(int)
    forward, backward = np.array([1, c["effN_MXFP4"]] * 2), np.array([1, 1, c["effD_MXFP4"], c["effD_MXFP4"]])
    inner = c["A"] / (t.N * forward[code]) ** c["alpha"] + c["B"] / (t.D * backward[code]) ** c["beta"]
    np.testing.assert_allclose(case.law.predict(case.theta, case.columns), inner ** c["gamma"] + c["E"], rtol=1e-12)


@pytest.mark.parametrize("name", ["frantar", "quartet"])
def test_the_effective_share_is_the_multiplier(name: str) -> None:
    case = CASES[name]
    for code, group in enumerate(case.law.groups):
        share = effective_share(case.law, case.theta, {"N": 1e8, "D": 1e10, "compression": code})
        forward = group.split("/")[0]
        if name == "frantar":
            expected = case.constants.get(f"eff_{group}", 1.0)
        elif group.endswith("/BF16"):
            expected = case.constants.get(f"effN_{forward}", 1.0)
        else:
            continue  # a multiplier of D has no fixed share of N
        assert share == pytest.approx(expected, rel=1e-6)


def test_a_multiplier_of_N_knows_no_tokens() -> None:
    case = CASES["frantar"]
    found = elasticities(case.law, case.theta, None, {"N": 1e8, "D": 1e10, "compression": 1.0})
    assert set(found) == {"N", "D"}  # the code of a group is no quantity
    assert found["D"]["value"] == pytest.approx(0.0, abs=1e-8)
    assert found["N"]["value"] == pytest.approx(-case.constants["alpha"], rel=1e-6)


def test_forward_passes_lose_more_with_tokens_and_backward_passes_less() -> None:
    """Quartet's outer power makes the two terms interact."""
    case = CASES["quartet"]
    slopes = {
        code: elasticities(case.law, case.theta, None, {"N": 2e8, "D": 2e10, "compression": float(code)})["D"]["value"]
        for code in (1, 2)
    }
    assert slopes[1] > 0.1
    assert slopes[2] < -0.3


def test_only_parameters_of_groups_that_are_there() -> None:
    law = effective_parameters_and_data(("BF16/BF16", "BF16/MXFP4"))
    assert law.parameters[-1] == "effD_MXFP4"
    assert not [name for name in law.parameters if name.startswith("effN")]
    assert effective_parameters(("a", "b")).groups == ("a", "b")


def test_verdicts_that_published_multipliers_decide() -> None:
    assert verdicts("compression_laws") == {"F3a": "holds", "F4a": "holds", "F6": "fails"}
    found = judged("compression_laws")
    assert found["F4a"].value == 4
    assert found["F6"].value == pytest.approx(0.8404 - 0.923)
    assert {f"F{n}" for n in range(1, 6)} <= {id.rstrip("ab") for id in found}


def test_refits_decide_whether_multipliers_are_constants() -> None:
    assert judged("compression_laws")["F2a"].verdict == "needs runs"
    rising = Refit(0.166, 0.12, 0.21, "QuEST, 30M-822M", "one seed")
    flat = Refit(0.0, -0.02, 0.03, "QuEST, 30M-822M")
    found = judged("compression_laws", {"quest/gamma_D/3": rising, "quest/gamma_D/4": flat})["F2a"]
    assert (found.verdict, found.value) == ("fails", 0.166)
    assert found.detail == "quest/gamma_D/3: 0.166 [0.12, 0.21], the one that decides of 2 (1 hold); one seed"
    assert judged("compression_laws", {"quest/gamma_D/4": flat})["F2a"].verdict == "holds"
    wide = Refit(0.04, -0.1, 0.2, "QuEST, 30M-822M")
    assert judged("compression_laws", {"quest/gamma_D/4": wide})["F2a"].smallest_visible_effect == pytest.approx(0.15)
