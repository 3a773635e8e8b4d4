"""Kumar et al.: the printed forms, what Table 2 implies, and the errors that it shows (numbers: facts)."""

from collections.abc import Callable

import numpy as np
import pytest
from judged import judged, verdicts
from law_cases import CASES, published
from scipy.optimize import minimize

from replications.kumar_precision import optimum
from replications.kumar_precision.law import EQ3, EQ4, EQ4_BIAS, EQ9, LAW, UNIFIED, d_crit
from shared.laws.elasticity import critical_tokens, effective_share
from shared.report.refits import Refit

C = published("kumar_precision")
BIASED, UNBIASED = optimum.share(C, biases=True), optimum.share(C, biases=False)


def columns(**values: float) -> dict[str, np.ndarray]:
    return {name: np.array([value], dtype=float) for name, value in values.items()}


def test_equation_2_is_the_printed_one() -> None:
    table = CASES["kumar_eq2"].grid
    direct = C["C_T"] * table.D ** C["gamma_D"] / table.N ** C["gamma_N"] * np.exp(-table.bits / C["gamma_post"])
    np.testing.assert_allclose(LAW.predict(LAW.internal(C), CASES["kumar_eq2"].columns), direct, rtol=1e-12)


@pytest.mark.parametrize(("name", "biases"), [("kumar_eq4", False), ("kumar_eq4_bias", True)])
def test_equation_4_is_the_printed_one(name: str, biases: bool) -> None:
    case, table = CASES[name], CASES[name].grid
    f = np.prod(
        [1 - np.exp(-table[f"P_{x}"] / C[f"gamma_{x}"] + biases * C[f"n_{x}"]) for x in ("w", "a", "kv")], axis=0
    )
    direct = C["A"] * (table.N * f) ** -C["alpha"] + C["B"] * table.D ** -C["beta"] + C["E"]
    np.testing.assert_allclose(case.law.predict(case.theta, case.columns), direct, rtol=1e-12)


def test_equation_9_is_the_printed_one() -> None:
    case, table = CASES["kumar_eq9"], CASES["kumar_eq9"].grid
    f = np.prod([1 - np.exp(-table[f"P_{x}"] / C[f"gamma_{x}"] + C[f"n_{x}"]) for x in ("w", "a", "kv")], axis=0)
    kept = np.prod([1 - np.exp(-(table[f"P_{x}"] - table.P_post)) for x in ("w", "a", "kv")], axis=0)  # C_x = 1
    factor = C["C_T"] * table.D ** C["gamma_D"] / (table.N * f) ** C["gamma_N"]
    direct = factor * np.exp(-table.P_post / C["gamma_post"]) * kept
    np.testing.assert_allclose(case.law.predict(case.theta, case.columns), direct, rtol=1e-12)
    loss = CASES["kumar_unified"]
    trained = EQ4_BIAS.predict(EQ4_BIAS.internal(C), loss.columns)
    np.testing.assert_allclose(loss.law.predict(loss.theta, loss.columns), trained + direct, rtol=1e-12)


def test_nothing_is_lost_by_rounding_to_the_bits_of_training() -> None:
    at = columns(N=1e8, D=1e10, P_w=6, P_a=6, P_kv=6, P_post=6)
    theta = CASES["kumar_eq9"].theta
    assert EQ9.predict(theta, at)[0] == 0
    assert np.all(np.isfinite(EQ9.gradient(theta, at)))
    unified = UNIFIED.predict(CASES["kumar_unified"].theta, at)
    np.testing.assert_allclose(unified, EQ4_BIAS.predict(EQ4_BIAS.internal(C), at), rtol=1e-14)


def test_a_model_diverges_where_no_parameter_is_left() -> None:
    """f_a is zero at 3.11 bits and f_kv at 2.32: runs with P_a = 3 diverge in the paper too."""
    at = columns(N=1e8, D=1e10, P_w=16, P_a=3, P_kv=16)
    assert EQ4_BIAS.predict(EQ4_BIAS.internal(C), at)[0] == np.inf
    assert np.isfinite(EQ4.predict(EQ4.internal(C), at)[0])
    assert C["gamma_a"] * C["n_a"] == pytest.approx(3.11, abs=0.005)
    assert C["gamma_kv"] * C["n_kv"] == pytest.approx(2.32, abs=0.005)


def test_losses_of_the_papers_models() -> None:
    bits = {"P_w": 16.0, "P_a": 16.0, "P_kv": 16.0}
    small = EQ4_BIAS.predict(EQ4_BIAS.internal(C), columns(N=30e6, D=1.5e9, **bits))[0]
    large = EQ4_BIAS.predict(EQ4_BIAS.internal(C), columns(N=220e6, D=26e9, **bits))[0]
    assert (small, large) == pytest.approx((4.10, 3.20), abs=0.005)


def test_critical_data_sizes() -> None:
    """D_crit / N of Eq. 13, three digits."""
    expected = {30e6: (546, 2950, 16000), 220e6: (147, 797, 4310), 8e9: (13.9, 75, 406), 70e9: (3.3, 18, 98)}
    for N, ratios in expected.items():
        assert [d_crit(C, N, bits) / N for bits in (3, 4, 5)] == pytest.approx(ratios, rel=0.015)
    biased = {**C, "C_T": C["C_T"] * np.exp(C["b"])}
    assert [d_crit(biased, 30e6, bits) / 30e6 for bits in (3, 4, 5)] == pytest.approx((177, 959, 5190), rel=0.005)
    assert d_crit(C, 30e6, 4) / d_crit(biased, 30e6, 4) == pytest.approx(3.08, abs=0.005)


def test_critical_data_size_is_where_the_loss_turns() -> None:
    """Eq. 13 against the loss itself: B D^-beta + delta has its minimum there."""
    around = d_crit(C, 220e6, 4) * np.array([0.999, 1.0, 1.001])
    delta = LAW.predict(LAW.internal(C), {"N": np.full(3, 220e6), "D": around, "bits": np.full(3, 4.0)})
    assert (C["B"] * around ** -C["beta"] + delta).argmin() == 1
    theta = CASES["kumar_unified"].theta
    at = {"N": 1e8, "P_w": 16.0, "P_a": 16.0, "P_kv": 16.0, "P_post": 4.0}
    share = BIASED(16) ** C["gamma_N"]
    gap = -(np.expm1(-12) ** 3)
    same = {**C, "C_T": C["C_T"] / share * gap}
    assert critical_tokens(UNIFIED, theta, at) == pytest.approx(d_crit(same, 1e8, 4), rel=1e-3)


def test_rounding_with_and_without_the_bias() -> None:
    """N = 30M, D = 26B at 3, 4, 5 and 6 bits."""
    at = {"N": np.full(4, 30e6), "D": np.full(4, 26e9), "bits": np.array([3.0, 4, 5, 6])}
    without = LAW.predict(LAW.internal(C), at)
    np.testing.assert_allclose(without, (0.190, 0.035, 0.0064, 0.0012), rtol=0.03)
    np.testing.assert_allclose(without * np.exp(C["b"]), (0.586, 0.108, 0.020, 0.0036), rtol=0.03)


@pytest.mark.parametrize(
    ("f", "best"),
    [
        (BIASED, 7.002),
        (UNBIASED, 3.47),
        (optimum.share_of_bar(1.9475), 3.71),
        (optimum.share_of_bar(2.6745), 5.09),  # gamma_w for all streams
        (lambda P: _read(lambda x: 1 - np.exp(-(P - C[f"n_{x}"]) / C[f"gamma_{x}"])), 5.60),
        (lambda P: _read(lambda x: 1 - np.exp(-P / (C[f"gamma_{x}"] + C[f"n_{x}"]))), 6.31),
    ],
)
def test_the_best_precision_under_each_reading_of_the_biases(f: optimum.Share, best: float) -> None:
    assert optimum.best_bits(f) == pytest.approx(best, abs=0.005)


def test_the_other_sign_of_the_biases_has_no_optimum() -> None:
    assert optimum.best_bits(lambda P: _read(lambda x: 1 - np.exp(-P / C[f"gamma_{x}"] - C[f"n_{x}"]))) is None


def _read(factor: Callable[[str], float]) -> float:
    return float(np.prod([max(0.0, factor(x)) for x in ("w", "a", "kv")]))


def test_one_gamma_puts_the_optimum_at_a_fixed_multiple_of_it() -> None:
    assert optimum.gamma_bar(C) == pytest.approx(1.9475, abs=5e-5)
    for gamma in (0.7, 1.9475, 4.0):
        assert (optimum.best_bits(optimum.share_of_bar(gamma)) or 0) / gamma == pytest.approx(1.9038, abs=1e-4)


@pytest.mark.parametrize("cost", [1e19, 1e22, 1e25])
@pytest.mark.parametrize("beta", [0.28, 0.35, 0.4965, 0.6])
def test_the_best_precision_by_direct_minimisation(cost: float, beta: float) -> None:
    """L over N and P at D = 16 C / (6 N P), without the algebra of optimum.py."""

    def loss(x: np.ndarray) -> float:
        log_N, P = x
        D = 16 * cost / (6 * np.exp(log_N) * P)
        return float(C["A"] * (np.exp(log_N) * max(BIASED(P), 1e-9)) ** -C["alpha"] + C["B"] * D**-beta)

    starts = [np.array([log_N, P]) for log_N in (16.0, 20.0, 24.0) for P in (5.0, 9.0)]
    options = {"xatol": 1e-7, "fatol": 1e-14, "maxiter": 4000}
    found = min((minimize(loss, x, method="Nelder-Mead", options=options) for x in starts), key=lambda r: r.fun)
    assert found.x[1] == pytest.approx(7.002, abs=0.002)


def test_sizes_and_data_at_the_optimum() -> None:
    assert optimum.optimum_ratios(BIASED, C, 8) == pytest.approx((1.549, 1.291), abs=5e-4)
    assert optimum.optimum_ratios(BIASED, C, 7) == pytest.approx((1.751, 1.305), abs=5e-4)
    assert optimum.optimum_ratios(BIASED, C, 4) == pytest.approx((4.56, 0.877), abs=2e-3)
    assert optimum.bits_where_data_falls(BIASED) == pytest.approx(4.31, abs=0.005)
    data = {bits: optimum.optimum_ratios(BIASED, C, bits)[1] for bits in np.arange(5, 12, 0.5)}
    assert max(data, key=lambda bits: data[bits]) == 7.0


def test_printed_equations() -> None:
    assert optimum.printed_eq7_root(C) == pytest.approx(1.46, abs=0.005)
    assert optimum.printed_eq28_root(C) is None
    bar = optimum.share_of_bar(optimum.gamma_bar(C))
    for bits in (4, 8, 12):
        lost = optimum.printed_eq6_data_ratio(C, bits) / optimum.optimum_ratios(bar, C, bits)[1]
        assert lost == pytest.approx(bits / 16)  # the factor 1 / P


def test_effective_shares() -> None:
    assert BIASED(4) == pytest.approx(0.191, abs=5e-4)
    assert 1 / BIASED(4) == pytest.approx(5.2, abs=0.05)
    assert 1 / UNBIASED(4) == pytest.approx(1.57, abs=0.005)
    assert (BIASED(16), 2 * BIASED(8)) == pytest.approx((0.994, 1.656), abs=5e-4)
    theta, at = EQ4_BIAS.internal(C), {"N": 1e9, "D": 2e10, "P_w": 5.0, "P_a": 6.0, "P_kv": 7.0}
    closed = np.prod([1 - np.exp(-at[f"P_{x}"] / C[f"gamma_{x}"] + C[f"n_{x}"]) for x in ("w", "a", "kv")])
    assert effective_share(EQ4_BIAS, theta, at) == pytest.approx(closed, rel=1e-6)


@pytest.mark.parametrize("N", [8e9, 70e9])
def test_best_precision_at_fixed_size(N: float) -> None:
    found = [optimum.best_bits_at(BIASED, C, N, N * ratio) for ratio in (20, 200, 2000, 20000)]
    assert found == pytest.approx((8.2, 10.9, 13.8, 16.8), abs=0.06)


def test_weights_alone_in_equation_3() -> None:
    at = columns(N=1e8, D=1e10, bits=4)
    direct = C["A"] * (1e8 * optimum.share_of_weights(C, biases=False)(4)) ** -C["alpha"]
    direct += C["B"] * 1e10 ** -C["beta"] + C["E"]
    assert EQ3.predict(EQ3.internal(C), at)[0] == pytest.approx(direct, rel=1e-12)


def test_verdicts_that_table_2_decides() -> None:
    holds = ("K3a", "K3b", "K3c", "K4a", "K6b", "K6d", "K7a", "K8a", "K8c", "K8d", "K9a", "K10", "K14")
    fails = ("K2", "K6c", "K7b", "K7c", "K7d", "K7e", "K8b", "K9b")
    assert verdicts("kumar_precision") == dict.fromkeys(holds, "holds") | dict.fromkeys(fails, "fails")
    found = judged("kumar_precision")
    assert "D* times 1.291" in found["K7b"].detail
    assert "lower by 8 / 16" in found["K7c"].detail
    assert {found[id].verdict for id in ("K13", "K15")} == {"out of reach"}
    assert {f"K{n}" for n in range(1, 16)} <= {id.rstrip("abcdef") for id in found}


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.15, 0.35, "holds"), (-0.1, 0.3, "inconclusive"), (-0.5, -0.1, "fails")]
)
def test_the_sign_of_the_bias_is_judged_on_published_runs(low: float, high: float, verdict: str) -> None:
    assert judged("kumar_precision")["K17a"].verdict == "needs runs"
    refit = Refit((low + high) / 2, low, high, "30M-822M parameters")
    found = judged("kumar_precision", {"quest/weight_only/n_w": refit})["K17a"]
    assert (found.verdict, found.low, found.high, found.scale) == (verdict, low, high, "30M-822M parameters")
