"""What Table 2 of Kumar et al. (arXiv 2411.04330) implies for the best precision, beside the paper's own algebra.

All of it minimises L = A (N f)^-alpha + B D^-beta + E at the cost C = (6/16) N D P (Eq. 5), P bits for weights,
activations and KV cache alike and

    f(P) = prod_x 1 - exp(-P / gamma_x + n_x).

At fixed P, N f D = (16 C / 6) f / P, so that the best loss depends on P through f / P alone: P* maximises f / P and
depends on neither C, alpha nor beta; N* f goes as (f / P)^(beta / s) and D* as (f / P)^(alpha / s), s = alpha + beta.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy.optimize import brentq, minimize_scalar

STREAMS = ("w", "a", "kv")
LOWEST_BITS, HIGHEST_BITS = 1.0, 64.0

Constants = Mapping[str, float]
Share = Callable[[float], float]  # bits -> N_eff / N


def share(constants: Constants, *, biases: bool) -> Share:
    """f(P) of Eq. 4, with or without the biases of Appendix K; zero where a factor is not above zero."""

    def f(bits: float) -> float:
        kept = [1 - np.exp(-bits / constants[f"gamma_{x}"] + (constants[f"n_{x}"] if biases else 0.0)) for x in STREAMS]
        return float(np.prod(kept)) if min(kept) > 0 else 0.0

    return f


def share_of_weights(constants: Constants, *, biases: bool) -> Share:
    """The factor of the weights alone (Eq. 3)."""
    n = constants["n_w"] if biases else 0.0
    return lambda bits: float(max(0.0, 1 - np.exp(-bits / constants["gamma_w"] + n)))


def share_of_bar(gamma_bar: float) -> Share:
    """(1 - exp(-P / gamma_bar))^3, one gamma for all streams."""
    return lambda bits: float((1 - np.exp(-bits / gamma_bar)) ** 3)


def gamma_bar(constants: Constants) -> float:
    """The mean of the three gammas."""
    return float(np.mean([constants[f"gamma_{x}"] for x in STREAMS]))


def best_bits(f: Share) -> float | None:
    """P*, where f / P is largest; None when it rises towards the lowest bits (no optimum above 1 bit)."""
    found = _highest(lambda bits: f(bits) / bits)
    return found if found > LOWEST_BITS + 1e-3 else None


def optimum_ratios(f: Share, constants: Constants, bits: float, reference: float = 16.0) -> tuple[float, float]:
    """N* and D* at `bits` over those at `reference` bits, at equal cost."""
    alpha, beta = constants["alpha"], constants["beta"]
    gain = (f(bits) / bits) / (f(reference) / reference)
    return gain ** (beta / (alpha + beta)) * f(reference) / f(bits), gain ** (alpha / (alpha + beta))


def bits_where_data_falls(f: Share) -> float:
    """Below how many bits the best D falls under its 16-bit value: where f / P is that of 16 bits again."""
    peak = _highest(lambda bits: f(bits) / bits)
    return float(brentq(lambda bits: f(bits) / bits - f(16.0) / 16.0, LOWEST_BITS, peak))


def best_bits_at(f: Share, constants: Constants, N: float, D: float) -> float:
    """P* at fixed N, where D tokens could be afforded at 16 bits: D at P bits is 16 D / P."""
    c = constants

    def loss(bits: float) -> float:
        kept = f(bits)
        return np.inf if kept <= 0 else c["A"] * (N * kept) ** -c["alpha"] + c["B"] * (16 * D / bits) ** -c["beta"]

    return _highest(lambda bits: -loss(bits))


def printed_eq6_data_ratio(constants: Constants, bits: float, reference: float = 16.0) -> float:
    """D* at `bits` over D* at `reference` as Eq. 6 prints it: [f]^(alpha / (alpha + beta)) P^(beta / (alpha + beta)),
    where f = (1 - exp(-P / gamma_bar))^3. It lacks a factor 1 / P."""
    alpha, beta = constants["alpha"], constants["beta"]
    f = share_of_bar(gamma_bar(constants))
    rise = lambda P: f(P) ** (alpha / (alpha + beta)) * P ** (beta / (alpha + beta))  # noqa: E731
    return rise(bits) / rise(reference)


def printed_eq7_root(constants: Constants) -> float | None:
    """Root of (3 alpha / gamma) u^((3 alpha + 1) / (3 alpha)) e^(-P / gamma) = u / P: Eq. 7 as printed, with
    u = (1 - e^(-P / gamma))^(-3 alpha) and gamma = gamma_bar."""
    a = 3 * constants["alpha"]
    return _root(constants, lambda P, g, u: a / g * u ** ((a + 1) / a) * np.exp(-P / g) - u / P)


def printed_eq28_root(constants: Constants) -> float | None:
    """Root of (3 / gamma) u^(1 / (3 alpha)) e^(-P / gamma) = u / P: Eq. 28 as printed. None: there is none."""
    a = 3 * constants["alpha"]
    return _root(constants, lambda P, g, u: 3 / g * u ** (1 / a) * np.exp(-P / g) - u / P)


def _root(constants: Constants, difference: Callable[[float, float, float], float]) -> float | None:
    g, a = gamma_bar(constants), 3 * constants["alpha"]

    def at(bits: float) -> float:
        return float(difference(bits, g, (1 - np.exp(-bits / g)) ** -a))

    grid = np.linspace(0.05, HIGHEST_BITS, 5000)
    signs = np.sign([at(bits) for bits in grid])
    turns = np.flatnonzero(signs[:-1] != signs[1:])
    return None if len(turns) == 0 else float(brentq(at, grid[turns[0]], grid[turns[0] + 1]))


def _highest(value: Callable[[float], float]) -> float:
    """Where `value` is largest in the range of bits: the best of a grid, polished."""
    grid = np.linspace(LOWEST_BITS, HIGHEST_BITS, 2521)
    best = int(np.argmax([value(bits) for bits in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(minimize_scalar(lambda bits: -value(bits), bounds=ends, method="bounded", options={"xatol": 1e-9}).x)
