"""Equation 2 of Kumar et al. (arXiv 2411.04330): what rounding the weights after training costs.

    delta = C_T * D^gamma_D / N^gamma_N * exp(-P_post / gamma_post)

in nats per token, for models trained in 16 bits; N non-embedding parameters and D tokens, both raw; P_post the bits
of a weight. Appendix K mentions a bias b in the exponent; C_T and b enter as C_T e^b only, so that here C_T holds both.
"""

import numpy as np

from shared.laws.law import Array, Columns
from shared.laws.loglinear import REFERENCE_BITS, REFERENCE_D, REFERENCE_N, log_linear


def _features(columns: Columns) -> Array:
    return np.stack(
        [
            np.log(columns["D"] / REFERENCE_D),
            -np.log(columns["N"] / REFERENCE_N),
            REFERENCE_BITS - columns["bits"],
        ],
        axis=-1,
    )


def _to_raw(theta: Array) -> Array:
    level, gamma_D, gamma_N, per_bit = np.moveaxis(theta, -1, 0)
    log_C = level - gamma_D * np.log(REFERENCE_D) + gamma_N * np.log(REFERENCE_N) + per_bit * REFERENCE_BITS
    return np.stack([np.exp(log_C), gamma_D, gamma_N, 1 / per_bit], axis=-1)


def _from_raw(raw: Array) -> Array:
    C_T, gamma_D, gamma_N, gamma_post = np.moveaxis(raw, -1, 0)
    level = np.log(C_T) + gamma_D * np.log(REFERENCE_D) - gamma_N * np.log(REFERENCE_N) - REFERENCE_BITS / gamma_post
    return np.stack([level, gamma_D, gamma_N, 1 / gamma_post], axis=-1)


LAW = log_linear(
    name="kumar_eq2",
    source="Kumar et al., arXiv 2411.04330, Eq. 2",
    inputs=("N", "D", "bits"),
    parameters=("C_T", "gamma_D", "gamma_N", "gamma_post"),
    features=_features,
    # The exponents may take either sign, so that a claim about a sign can fail; gamma_post from 0.1 to 20 bits.
    slope_bounds=[(-3.0, 3.0), (-3.0, 3.0), (0.05, 10.0)],
    start_box=[(-0.5, 1.5), (-0.5, 1.5), (0.5, 4.0)],
    to_raw=_to_raw,
    from_raw=_from_raw,
)


def d_crit(constants: dict[str, float], N: float, bits: float) -> float:
    """Equation 13: the D in tokens beyond which more training raises the loss after rounding to `bits`.

    `constants` holds B, beta (= alpha in the paper), C_T, gamma_D, gamma_N and gamma_post. (Equation 12, from which it
    follows, is printed without the factor beta on its left.)
    """
    ratio = constants["beta"] * constants["B"] * N ** constants["gamma_N"] * np.exp(bits / constants["gamma_post"])
    return float(
        (ratio / (constants["gamma_D"] * constants["C_T"])) ** (1 / (constants["gamma_D"] + constants["beta"]))
    )
