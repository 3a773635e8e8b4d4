"""Sun et al. (Capybara): the printed law, D_crit, layouts and best precision (numbers: facts)."""

import numpy as np
import pytest
from judged import judged, verdicts
from law_cases import CASES, CHANNEL, published
from scipy.optimize import minimize

from replications.capybara_fp import claims, optimum
from replications.capybara_fp.law import LAW
from shared.laws.elasticity import critical_tokens, delta_of, effective_share

C = published("capybara_fp")
THETA = LAW.internal(C)


def test_the_law_is_the_printed_one() -> None:
    case, t = CASES["capybara"], CASES["capybara"].grid
    layout = C["gamma"] * (t.E + 0.5) ** C["delta"] * (t.M + 0.5) ** C["nu"]
    direct = C["n"] / t.N ** C["alpha"] + C["d"] / t.D ** C["beta"] + C["epsilon"]
    direct += t.D ** C["beta"] / t.N ** C["alpha"] * np.log2(t.B) / layout
    np.testing.assert_allclose(case.law.predict(case.theta, case.columns), direct, rtol=1e-12)


@pytest.mark.parametrize(
    ("B", "tokens"),
    [(128, (1730, 27.33, 0.393)), (64, (2008, 31.7, 0.456)), (32, (2396, 37.9, 0.544))],
)
def test_critical_data_sizes(B: float, tokens: tuple[float, ...]) -> None:
    """1B parameters in E8M7, E4M3 and E2M1, in units of 1e12; only B = 128 gives the printed 1730T, 27T and 0.4T."""
    layouts = ((8, 7), (4, 3), (2, 1))
    assert [optimum.critical_tokens(C, 1e9, *em, B) / 1e12 for em in layouts] == pytest.approx(tokens, rel=2e-3)
    for (E, M), value in zip(layouts, tokens, strict=True):
        at = {"N": 1e9, "E": float(E), "M": float(M), "B": float(B)}
        assert critical_tokens(LAW, THETA, at) == pytest.approx(value * 1e12, rel=2e-3)  # from the loss itself


def test_layouts_of_all_widths() -> None:
    """Figure 5, FP1 to FP16, exactly."""
    assert claims.layouts_reproduced(C) == (16, [])
    printed = "E0M0 E1M0 E1M1 E2M1 E2M2 E3M2 E3M3 E4M3 E4M4 E5M4 E5M5 E6M5 E6M6 E7M6 E7M7 E8M7"
    assert " ".join("E{}M{}".format(*optimum.best_layout(C, bits)) for bits in range(1, 17)) == printed


def test_layouts_would_differ_with_other_exponents() -> None:
    assert claims.layouts_reproduced({**C, "delta": 2.0})[0] < 16


def test_best_precision() -> None:
    tokens = [optimum.best_bits_for_tokens(C, D, 128) for D in (1e10, 1e11, 1e12, 1e13, 1e14, 1e15)]
    assert tokens == pytest.approx((3.52, 4.27, 5.18, 6.28, 7.62, 9.25), abs=0.006)
    costs = [optimum.best_bits_for_cost(C, cost, 128) for cost in (1e21, 1e24, 1e27, 1e30, 1e31, 1e33)]
    assert costs == pytest.approx((4.19, 5.01, 5.98, 7.14, 7.58, 8.53), abs=0.006)
    assert optimum.gamma_rho(C) == pytest.approx(160.697, abs=5e-4)
    assert optimum.gamma_D(C) == pytest.approx(0.0022433, abs=5e-8)


def _loss(log_N: float, log_D: float, bits: float) -> float:
    """At the best continuous layout of `bits` bits, B = 128."""
    penalty = 7 / (optimum.gamma_rho(C) * bits ** (C["delta"] + C["nu"]))
    N, D = np.exp(log_N), np.exp(log_D)
    return float(C["n"] / N ** C["alpha"] + C["d"] / D ** C["beta"] + D ** C["beta"] / N ** C["alpha"] * penalty)


@pytest.mark.parametrize("cost", [1e21, 1e27, 1e31])
def test_best_precision_by_direct_minimisation(cost: float) -> None:
    def loss(x: np.ndarray) -> float:
        log_N, log_bits = x
        return _loss(log_N, np.log(cost / optimum.COST) - log_bits - log_N, float(np.exp(log_bits)))

    options = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 4000}
    starts = ([a, b] for a in (20.0, 25.0, 30.0) for b in (1.2, 1.8))
    found = min((minimize(loss, x, method="Nelder-Mead", options=options) for x in starts), key=lambda r: r.fun)
    assert np.exp(found.x[1]) == pytest.approx(optimum.best_bits_for_cost(C, cost, 128), abs=0.005)
    N = float(np.exp(found.x[0]))
    assert optimum.best_bits_for_size(C, N, cost, 128) == pytest.approx(np.exp(found.x[1]), abs=0.005)
    D = cost / optimum.COST / np.exp(found.x[1]) / N
    assert optimum.best_bits_for_tokens(C, D, 128) == pytest.approx(np.exp(found.x[1]), abs=0.005)


def test_best_layout_without_whole_bits() -> None:
    """E_opt = delta P / (delta + nu) - 1/2 is where the law's penalty at a given width is least."""
    E = C["delta"] * 8 / (C["delta"] + C["nu"]) - 0.5
    at = {name: np.full(3, value) for name, value in {"N": 1e9, "D": 1e11, "B": 128.0}.items()}
    around = np.array([E - 0.01, E, E + 0.01])
    assert delta_of(LAW, THETA, at | {"E": around, "M": 7 - around}).argmin() == 1


def test_effective_share_is_the_papers() -> None:
    """N_eff = N [1 + D^beta log2 B / (gamma_n P^(delta + nu))]^(-1 / alpha) at the best layout."""
    total = C["delta"] + C["nu"]
    P = 4.0
    at = {"N": 6e8, "D": 1e11, "B": 128.0, "E": C["delta"] * P / total - 0.5, "M": C["nu"] * P / total - 0.5}
    closed = (1 + 1e11 ** C["beta"] * 7 / (optimum.gamma_rho(C) * C["n"] * P**total)) ** (-1 / C["alpha"])
    assert effective_share(LAW, THETA, at) == pytest.approx(closed, rel=1e-6)


def test_integer_like_layouts_are_punished() -> None:
    at = {"N": 679_477_248.0, "D": 104_857_600_000.0, "E": 0.0, "M": 7.0, "B": CHANNEL}
    assert delta_of(LAW, THETA, {k: np.array([v]) for k, v in at.items()})[0] == pytest.approx(0.109, abs=5e-4)


def test_printed_sizes() -> None:
    """Layers, hidden, FFN of the listed models give their parameters exactly; the 7B one needs an FFN of 11,008."""
    shapes = {
        40_894_464: (12, 512, 1536), 84_934_656: (12, 768, 2048), 154_140_672: (12, 1024, 2816),
        679_477_248: (24, 1536, 4096), 1_233_125_376: (24, 2048, 5632), 71_236_059_136: (88, 8192, 22016),
    }  # fmt: skip
    for N, shape in shapes.items():
        assert claims.parameters(*shape) == N
    assert claims.parameters(*claims.SHAPE_7B) != claims.N_7B == claims.parameters(35, 4096, 11008)


def test_verdicts_that_equation_1_decides() -> None:
    holds = ("CB1a", "CB1b", "CB2a", "CB2b", "CB2c", "CB2d", "CB3a", "CB3b")
    assert verdicts("capybara_fp") == dict.fromkeys(holds, "holds") | {"CB9": "fails", "CB10": "fails"}
    found = judged("capybara_fp")
    assert "11,008 gives it exactly" in found["CB9"].detail
    assert found["CB7"].verdict == "out of reach"
    assert {f"CB{n}" for n in range(1, 9)} <= {id.rstrip("abcd") for id in found}
