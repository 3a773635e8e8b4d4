"""The loss of a model trained without quantization, as a sum of powers (Hoffmann et al. 2022, approach 3).

    L = A / N^alpha + B / D^beta + E

in nats per token; N parameters, D tokens, both raw. Laws of quantized training replace N or D by an effective number or
add a term: they take `terms` from here.
"""

import numpy as np

from shared.laws.law import Array, Columns
from shared.laws.terms import CONSTANT, LOG_D, LOG_N, Parameter, Term, exponent, factor, law_of_terms, split


def base(tied: bool) -> tuple[Parameter, ...]:
    """A, alpha, B, beta, E; `tied` leaves beta out, because it is alpha."""
    constant = Parameter("E", CONSTANT, (0.0, 2.0))
    if tied:
        return factor("A", alpha=-LOG_N), exponent("alpha"), factor("B", alpha=-LOG_D), constant
    return factor("A", alpha=-LOG_N), exponent("alpha"), factor("B", beta=-LOG_D), exponent("beta"), constant


def base_terms(theta: Array, columns: Columns, tied: bool) -> list[Term]:
    """The terms in N and D of parameters that begin with those of `base`."""
    n, d = np.log(columns["N"]) - LOG_N, np.log(columns["D"]) - LOG_D
    a, alpha, b = split(theta)[:3]
    if tied:
        return [Term(a - alpha * n, {0: 1.0, 1: -n}), Term(b - alpha * d, {2: 1.0, 1: -d})]
    beta = split(theta)[3]
    return [Term(a - alpha * n, {0: 1.0, 1: -n}), Term(b - beta * d, {2: 1.0, 3: -d})]


LAW = law_of_terms(
    name="chinchilla",
    source="Hoffmann et al. 2022, approach 3",
    inputs=("N", "D"),
    parameters=base(tied=False),
    terms=lambda theta, columns: base_terms(theta, columns, tied=False),
    constant="E",
)
