"""The laws of Chen et al. (arXiv 2505.14302): what training with 4-bit numbers costs.

    delta = k D^gamma_D (log2 G)^gamma_G / N^gamma_N
    L     = A / N^alpha + B / D^beta + E + delta

in nats per token; N parameters without embeddings and D tokens, both raw; G the elements that share a scale. Each
setting (W4A4, W4A16, W16A4, with or without 8 bits for the input of the second MLP matrix) has constants of its own.
With G = 1 nothing is lost, so that unquantized runs are rows with G = 1. alpha = beta in the paper.
"""

import numpy as np

from shared.laws.chinchilla import base, base_terms
from shared.laws.law import Array, Columns, Law
from shared.laws.terms import LEVEL, LOG_D, LOG_N, Parameter, Slopes, Term, law_of_terms, split

# Either sign, so that a claim about a sign can fail.
SIGNED = (-3.0, 3.0)
REFERENCE_LOG_G = float(np.log(7.0))  # G = 128


def _of_delta() -> tuple[Parameter, ...]:
    reference = {"gamma_N": -LOG_N, "gamma_D": LOG_D, "gamma_G": REFERENCE_LOG_G}
    return (
        Parameter("k", LEVEL, None, log=True, reference=reference),
        Parameter("gamma_N", SIGNED, (-0.2, 0.8)),
        Parameter("gamma_D", SIGNED, (-0.2, 0.6)),
        Parameter("gamma_G", SIGNED, (0.05, 1.5)),
    )


def _delta(theta: Array, columns: Columns, first: int) -> Term:
    """Nothing at G = 1, where log2 G = 0."""
    level, gamma_N, gamma_D, gamma_G = split(theta)[first : first + 4]
    n, d = np.log(columns["N"]) - LOG_N, np.log(columns["D"]) - LOG_D
    shared = columns["G"] > 1
    g = np.log(np.log2(np.where(shared, columns["G"], 2.0))) - REFERENCE_LOG_G
    slopes: Slopes = {first: 1.0, first + 1: -n, first + 2: d, first + 3: g}
    return Term(np.where(shared, level - gamma_N * n + gamma_D * d + gamma_G * g, -np.inf), slopes)


LAW = law_of_terms(
    name="chen_delta",
    source="Chen et al., arXiv 2505.14302: delta(N, D, G)",
    inputs=("N", "D", "G"),
    parameters=_of_delta(),
    terms=lambda theta, columns: [_delta(theta, columns, 0)],
    target="delta",
)


def _loss(name: str, tied: bool) -> Law:
    head = base(tied)
    return law_of_terms(
        name=name,
        source="Chen et al., arXiv 2505.14302: L(N, D, G)" + (", alpha = beta" if tied else ""),
        inputs=("N", "D", "G"),
        parameters=(*head, *_of_delta()),
        terms=lambda theta, columns: [*base_terms(theta, columns, tied), _delta(theta, columns, len(head))],
        constant="E",
        unquantized={"G": 1.0},
    )


LOSS = _loss("chen_loss", tied=True)
LOSS_UNTIED = _loss("chen_loss_untied", tied=False)
LAWS = (LAW, LOSS, LOSS_UNTIED)


def delta(constants: dict[str, float], N: float, D: float, G: float) -> float:
    """The printed form, in nats per token."""
    c = constants
    return float(c["k"] * D ** c["gamma_D"] * np.log2(G) ** c["gamma_G"] / N ** c["gamma_N"])
