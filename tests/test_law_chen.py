"""Chen et al.: the printed law, its numbers recomputed, and the gap to the printed ones (numbers: facts)."""

import numpy as np
import pytest
from judged import judged, verdicts
from law_cases import CASES, published

from replications.qat_scaling import audit
from replications.qat_scaling.law import LAW, LOSS, delta

C = published("qat_scaling")


def one(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array([value]) for name, value in values.items()}


def test_the_law_is_the_printed_one() -> None:
    case, table = CASES["chen_delta"], CASES["chen_delta"].grid
    direct = C["k"] * table.D ** C["gamma_D"] * np.log2(table.G) ** C["gamma_G"] / table.N ** C["gamma_N"]
    np.testing.assert_allclose(case.law.predict(case.theta, case.columns), direct, rtol=1e-12)
    assert delta(C, 74e6, 1e10, 32) == pytest.approx(LAW.predict(case.theta, one(N=74e6, D=1e10, G=32))[0], rel=1e-12)


def test_units() -> None:
    """Raw counts give plausible deltas and losses at 595M, 100B and 74M, 10B."""
    for setting, value in (("", 0.0573), ("W4A16", 0.0210), ("W16A4", 0.0400)):
        assert delta(audit.constants(C, setting), 595e6, 1e11, 128) == pytest.approx(value, abs=5e-5)
    clean = LOSS.predict(LOSS.internal(C), {"N": np.array([595e6, 74e6]), "D": np.array([1e11, 1e10]), "G": np.ones(2)})
    assert clean == pytest.approx((2.741, 3.490), abs=5e-4)


def test_groups_of_one_lose_nothing() -> None:
    theta = CASES["chen_delta"].theta
    assert LAW.predict(theta, one(N=1e8, D=1e10, G=1))[0] == 0
    assert np.all(LAW.gradient(theta, one(N=1e8, D=1e10, G=1)) == 0)


def test_falls_and_rises() -> None:
    falls = {s: audit.fall_in_N(C, s) for s in ("", "W4A16", "W16A4")}
    rises = {s: audit.rise_in_D(C, s) for s in ("", "W4A16", "W16A4")}
    assert falls == pytest.approx({"": 0.366, "W4A16": 0.526, "W16A4": 0.315}, abs=6e-4)
    assert rises == pytest.approx({"": 0.187, "W4A16": 0.449, "W16A4": 0.079}, abs=6e-4)


def test_gaps_between_coarse_and_fine_groups() -> None:
    assert [audit.gap(C, "", G) for G in (1536, 2048, 4096)] == pytest.approx((0.035, 0.037, 0.043), abs=5e-4)
    assert audit.gap(C, "W16A4") == pytest.approx(0.0312, abs=5e-5)
    assert audit.gap(C, "W4A16") == pytest.approx(0.0057, abs=5e-5)
    assert audit.gap(C, "W16A4") / audit.gap(C, "W4A16") == pytest.approx(5.5, abs=0.05)


def test_additivity() -> None:
    found = []
    for G in audit.GROUPS:
        both, *parts = (delta(audit.constants(C, s), 595e6, 1e11, G) for s in ("", "W4A16", "W16A4"))
        found.append(both / sum(parts))
    assert (min(found), max(found)) == pytest.approx((0.931, 0.941), abs=6e-4)


@pytest.mark.parametrize(
    ("G", "ratio", "low", "high"), [(32, 100, 1.49, 1.65), (32, 1000, 1.11, 1.23), (256, 1000, 1.49, 1.65)]
)
def test_activations_over_weights(G: float, ratio: float, low: float, high: float) -> None:
    found = audit.activations_over_weights(C, G, ratio)
    assert (min(found), max(found)) == pytest.approx((low, high), abs=0.006)


def test_8_bits_for_the_second_mlp_matrix() -> None:
    gains = []
    for G in (32, 256):
        before, after = (delta(audit.constants(C, s), 595e6, 1e11, G) for s in ("", "W4A4_FC2_8bit"))
        gains.append(1 - after / before)
    assert gains == pytest.approx((0.229, 0.373), abs=6e-4)
    found = [R for G in audit.GROUPS for r in (100, 1000) for R in audit.activations_over_weights(C, G, r, "_FC2_8bit")]
    assert (min(found), max(found)) == pytest.approx((0.79, 1.09), abs=0.006)


def test_delta_at_the_learning_rate_study() -> None:
    assert delta(audit.constants(C, ""), 145e6, 20e9, 128) == pytest.approx(0.0692, abs=5e-5)


@pytest.mark.parametrize(
    ("setting", "G", "shares"),
    [
        ("", 32, (0.800, 0.768, 0.725, 0.679)),
        ("", 128, (0.750, 0.712, 0.662, 0.610)),
        ("", 256, (0.728, 0.688, 0.635, 0.581)),
        ("W4A4_FC2_8bit", 256, (0.801, 0.787, 0.769, 0.751)),
    ],
)
def test_effective_shares_of_the_paper(setting: str, G: float, shares: tuple[float, ...]) -> None:
    """N_eff / N by inverting the clean loss, at 100B tokens, against the closed form of Appendix H."""
    c = audit.constants(C, setting)
    for N, expected in zip((74e6, 595e6, 7e9, 70e9), shares, strict=True):
        found = audit.share(C, setting, N, 1e11, G)
        lost = c["k"] * 1e11 ** c["gamma_D"] * np.log2(G) ** c["gamma_G"] * N ** (C["alpha"] - c["gamma_N"])
        assert found == pytest.approx((C["A"] / (C["A"] + lost)) ** (1 / C["alpha"]), rel=1e-6)
        assert found == pytest.approx(expected, abs=6e-4)


def test_verdicts_that_table_1_decides() -> None:
    same = ("C1a", "C2a", "C4a", "C4b", "C5a", "C5b", "C6a", "C7a", "C8b", "C8c", "C8d", "C9a")
    other = ("C3a", "C6b", "C9b", "C9c")
    holds = (*same, "C3b", "C8a", "C14a", "C15")
    fails = (*other, "C13a", "C13b", "C14b")
    assert verdicts("qat_scaling") == dict.fromkeys(holds, "holds") | dict.fromkeys(fails, "fails")
    found = judged("qat_scaling")
    assert found["C1a"].detail == "the law gives 0.366, printed 0.34; the deltas differ by -3.9%"
    assert found["C6b"].value == pytest.approx(0.69, abs=0.005)
    for id in (*same, *other):  # one yardstick, and both numbers with their gap
        claim, value = found[id].claim, found[id].value
        assert value is not None
        assert (claim.region.low, claim.region.high) == (1 - audit.ERROR, 1 + audit.ERROR)
        assert f"by {value - 1:+.1%}" in found[id].detail
        assert "printed" in found[id].detail
    assert {f"C{n}" for n in range(1, 16)} <= {id.rstrip("abcde") for id in found}
