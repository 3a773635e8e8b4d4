"""What the Capybara law of Sun et al. (arXiv 2501.02423) implies: critical tokens, best layouts, best precision.

`constants` holds n, alpha, d, beta, gamma, delta and nu of Eq. 1. The cost is C = k (P + b) N D with k = 6/16 and
b = 0, as in the paper. P = E + M + 1 bits are treated as continuous for the best precision, where the penalty at the
best layout is D^beta / N^alpha log2 B / (gamma_rho P^(delta + nu)).
"""

from collections.abc import Mapping

import numpy as np

COST = 6 / 16  # of one bit, one parameter and one token

Constants = Mapping[str, float]


def critical_tokens(constants: Constants, N: float, E: float, M: float, B: float) -> float:
    """D_crit in tokens, beyond which more of them raise the loss."""
    c = constants
    level = c["d"] * c["gamma"] * N ** c["alpha"] * (E + 0.5) ** c["delta"] * (M + 0.5) ** c["nu"] / np.log2(B)
    return float(level ** (1 / (2 * c["beta"])))


def best_layout(constants: Constants, bits: int) -> tuple[int, int]:
    """(E, M) with E + M + 1 = `bits` that loses least. Of two equally good ones, that with more exponent bits."""
    c = constants
    pairs = [(bits - 1 - M, M) for M in range(bits)]
    return max(pairs, key=lambda pair: (pair[0] + 0.5) ** c["delta"] * (pair[1] + 0.5) ** c["nu"])


def gamma_rho(constants: Constants) -> float:
    c = constants
    delta, nu = c["delta"], c["nu"]
    return float(c["gamma"] * delta**delta * nu**nu / (delta + nu) ** (delta + nu))


def gamma_D(constants: Constants) -> float:
    """The coefficient of P_opt at fixed D."""
    c = constants
    total = c["delta"] + c["nu"]
    return (total - c["alpha"]) / (c["n"] * c["alpha"] * gamma_rho(c))


def best_bits_for_tokens(constants: Constants, D: float, B: float) -> float:
    """P_opt at fixed D, N and P free under a cost."""
    c = constants
    return float((gamma_D(c) * D ** c["beta"] * np.log2(B)) ** (1 / (c["delta"] + c["nu"])))


def best_bits_for_size(constants: Constants, N: float, C: float, B: float) -> float:
    """P_opt at fixed N, D and P free under the cost C."""
    c = constants
    total, beta = c["delta"] + c["nu"], c["beta"]
    gamma_N = (beta + total) / (c["d"] * beta * gamma_rho(c))
    right = gamma_N * (C / COST) ** (2 * beta) * N ** -(c["alpha"] + 2 * beta) * np.log2(B)
    return float(right ** (1 / (total + 2 * beta)))


def best_bits_for_cost(constants: Constants, C: float, B: float) -> float:
    """P_opt at the cost C, everything free."""
    c = constants
    total, alpha, beta = c["delta"] + c["nu"], c["alpha"], c["beta"]
    ratio = c["d"] * beta / (c["n"] * alpha) * (total - alpha) / (total + beta)
    both = (alpha + beta) / beta
    right = ratio * (gamma_D(c) * np.log2(B)) ** both * (C / COST) ** alpha
    return float(right ** (1 / (total * both + alpha)))
