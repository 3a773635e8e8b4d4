"""The Capybara law of Sun et al. (arXiv 2501.02423, Eq. 1): training with floating-point numbers of E and M bits.

    L = n / N^alpha + d / D^beta + epsilon + D^beta / N^alpha * log2 B / (gamma (E + 1/2)^delta (M + 1/2)^nu)

in nats per token; N parameters without embeddings and D tokens, both raw; E exponent and M mantissa bits beside a sign
bit, P = E + M + 1; B the elements that share a scale. gamma is a coefficient, delta and nu are the exponents; alpha and
beta are shared by the penalty and the first two terms. With B = 1 nothing is lost.
"""

import numpy as np

from shared.laws.law import Array, Columns
from shared.laws.terms import CONSTANT, LEVEL, LOG_D, LOG_N, Parameter, Term, exponent, factor, law_of_terms, split

LAYOUT, LAYOUT_STARTS = (-5.0, 15.0), (0.5, 5.0)
LOG_HALF_BITS = float(np.log(2.5))  # E or M = 2


def _terms(theta: Array, columns: Columns) -> list[Term]:
    level_n, alpha, level_d, beta, _, level, delta, nu = split(theta)
    n, d = np.log(columns["N"]) - LOG_N, np.log(columns["D"]) - LOG_D
    e, m = np.log(columns["E"] + 0.5) - LOG_HALF_BITS, np.log(columns["M"] + 0.5) - LOG_HALF_BITS
    shared = columns["B"] > 1
    b = np.log(np.log2(np.where(shared, columns["B"], 2.0)))
    penalty = -level + beta * d - alpha * n + b - delta * e - nu * m
    return [
        Term(level_n - alpha * n, {0: 1.0, 1: -n}),
        Term(level_d - beta * d, {2: 1.0, 3: -d}),
        Term(np.where(shared, penalty, -np.inf), {1: -n, 3: d, 5: -1.0, 6: -e, 7: -m}),
    ]


LAW = law_of_terms(
    name="capybara",
    source="Sun et al., arXiv 2501.02423, Eq. 1",
    inputs=("N", "D", "E", "M", "B"),
    parameters=(
        factor("n", alpha=-LOG_N),
        exponent("alpha"),
        factor("d", beta=-LOG_D),
        exponent("beta"),
        Parameter("epsilon", CONSTANT, (0.0, 2.0)),
        # The level is the logarithm of what divides log2 B at the reference point.
        Parameter(
            "gamma",
            LEVEL,
            None,
            log=True,
            reference={"alpha": LOG_N, "beta": -LOG_D, "delta": LOG_HALF_BITS, "nu": LOG_HALF_BITS},
        ),
        Parameter("delta", LAYOUT, LAYOUT_STARTS),
        Parameter("nu", LAYOUT, LAYOUT_STARTS),
    ),
    terms=_terms,
    constant="epsilon",
    at_least_zero=("E", "M"),
    unquantized={"B": 1.0},
)
LAWS = (LAW,)
