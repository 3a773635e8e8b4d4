"""The page's law of a quantized model: the penalty is a power of the gap between trained and used bits.

    simple  L = L_base + eta (b_train - b_inf)^delta                          one model, several bit widths
    full    delta_L = eta (D / N)^beta (b_train - b_inf)^delta                a pool of models

in nats per token; N and D raw; b_inf are the bits of a weight when it is used, b_train those it was trained in. The
page prints no formula for the full form: it is what its prose says. At b_inf = b_train nothing is lost, and more bits
than b_train do not help.
"""

import numpy as np

from shared.laws.law import Array, Columns, Law
from shared.laws.terms import CONSTANT, LEVEL, LOG_D, LOG_N, Parameter, Term, law_of_terms, split

B_TRAIN = 16.0
POWER, POWER_STARTS = (-5.0, 60.0), (0.5, 12.0)
LOG_GAP = float(np.log(12.0))  # 16 bits to 4


def simple(b_train: float = B_TRAIN) -> Law:
    """L(b_inf) of one model; input `bits`, target `loss`."""
    return law_of_terms(
        name="page_simple",
        source=f"the page's simplified law, b_train = {b_train:g}",
        inputs=("bits",),
        parameters=(
            Parameter("L_base", CONSTANT, (0.0, 5.0)),
            Parameter("eta", LEVEL, None, log=True, reference={"delta": LOG_GAP}),
            Parameter("delta", POWER, POWER_STARTS),
        ),
        terms=lambda theta, columns: [_penalty(split(theta)[1:], columns, b_train, {"eta": 1, "delta": 2})],
        constant="L_base",
        unquantized={"bits": b_train},
    )


def full(b_train: float = B_TRAIN) -> Law:
    """delta(N, D, b_inf); `beta` may take either sign, because the page contradicts itself about it."""

    def terms(theta: Array, columns: Columns) -> list[Term]:
        level, beta, delta = split(theta)
        ratio = (np.log(columns["D"]) - LOG_D) - (np.log(columns["N"]) - LOG_N)
        gap = _penalty([level, delta], columns, b_train, {"eta": 0, "delta": 2})
        return [Term(gap.y + beta * ratio, {**gap.slopes, 1: ratio})]

    return law_of_terms(
        name="page_full",
        source=f"the page's full law in its own words, b_train = {b_train:g}",
        inputs=("N", "D", "bits"),
        parameters=(
            Parameter("eta", LEVEL, None, log=True, reference={"beta": LOG_D - LOG_N, "delta": LOG_GAP}),
            Parameter("beta", (-3.0, 3.0), (-0.5, 1.5)),
            Parameter("delta", POWER, POWER_STARTS),
        ),
        terms=terms,
        target="delta",
    )


def _penalty(parameters: list[Array], columns: Columns, b_train: float, at: dict[str, int]) -> Term:
    level, delta = parameters
    open_gap = columns["bits"] < b_train
    gap = np.log(np.where(open_gap, b_train - columns["bits"], 1.0)) - LOG_GAP
    return Term(np.where(open_gap, level + delta * gap, -np.inf), {at["eta"]: 1.0, at["delta"]: gap})


SIMPLE, FULL = simple(), full()
LAW = FULL
LAWS = (SIMPLE, FULL)
