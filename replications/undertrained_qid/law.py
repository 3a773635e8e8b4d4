"""The laws of Ouyang et al. (arXiv 2411.17691): quantization-induced degradation, and the 16-bit loss under it.

    Eq. 8  delta = k D^beta / (N^alpha P^gamma)               Eq. 5 to 7 have one of its factors each
    Eq. 3  L_16  = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D

in nats per token; N non-embedding parameters and D tokens, both raw; P the bits of a weight. The paper fits them to
GPTQ-quantized checkpoints along the training of the Pythia suite.
"""

import numpy as np

from shared.laws.law import Array, Columns, Law
from shared.laws.loglinear import REFERENCE_BITS, REFERENCE_D, REFERENCE_N, log_linear
from shared.laws.terms import Parameter, Term, law_of_terms, split

_LOG_REFERENCE = np.log([REFERENCE_D, 1 / REFERENCE_N, 1 / REFERENCE_BITS])


def _features(columns: Columns) -> Array:
    return np.stack([np.log(columns["D"]), -np.log(columns["N"]), -np.log(columns["bits"])], axis=-1) - _LOG_REFERENCE


def _to_raw(theta: Array) -> Array:
    level, slopes = theta[..., :1], theta[..., 1:]
    return np.concatenate([np.exp(level - (slopes @ _LOG_REFERENCE)[..., None]), slopes], axis=-1)


def _from_raw(raw: Array) -> Array:
    k, slopes = raw[..., :1], raw[..., 1:]
    return np.concatenate([np.log(k) + (slopes @ _LOG_REFERENCE)[..., None], slopes], axis=-1)


LAW = log_linear(
    name="ouyang_joint",
    source="Ouyang et al., arXiv 2411.17691, Eq. 8 (Figure 6)",
    inputs=("N", "D", "bits"),
    parameters=("k", "beta", "alpha", "gamma"),
    features=_features,
    # Either sign, so that a claim about a sign can fail.
    slope_bounds=[(-3.0, 3.0), (-3.0, 3.0), (-5.0, 40.0)],
    start_box=[(-0.5, 1.5), (-0.5, 1.5), (1.0, 15.0)],
    to_raw=_to_raw,
    from_raw=_from_raw,
)


def _one_factor(name: str, source: str, column: str, parameter: str, reference: float, rises: bool) -> Law:
    """k x^p where delta rises with x, k / x^p where it falls; the other inputs are the same at every row."""
    sign = 1.0 if rises else -1.0

    def terms(theta: Array, columns: Columns) -> list[Term]:
        level, power = split(theta)
        x = sign * (np.log(columns[column]) - np.log(reference))
        return [Term(level + power * x, {0: 1.0, 1: x})]

    return law_of_terms(
        name=name,
        source=f"Ouyang et al., arXiv 2411.17691, {source}",
        inputs=(column,),
        parameters=(
            Parameter("k", (-100.0, 100.0), None, log=True, reference={parameter: sign * float(np.log(reference))}),
            Parameter(parameter, (-5.0, 40.0), (-0.5, 1.5) if column != "bits" else (1.0, 15.0)),
        ),
        terms=terms,
        target="delta",
    )


TOKENS = _one_factor("ouyang_tokens", "Eq. 5 (Figure 3)", "D", "beta", REFERENCE_D, rises=True)
SIZE = _one_factor("ouyang_size", "Eq. 6 (Figure 4)", "N", "alpha", REFERENCE_N, rises=False)
BITS = _one_factor("ouyang_bits", "Eq. 7 (Figure 5)", "bits", "gamma", REFERENCE_BITS, rises=False)


def _terms_16bit(theta: Array, columns: Columns) -> list[Term]:
    log_Nc, alpha_N, log_Dc, alpha_D = split(theta)
    n, d = log_Nc - np.log(columns["N"]), log_Dc - np.log(columns["D"])
    ratio = alpha_N / alpha_D
    return [Term(ratio * n, {0: ratio, 1: n / alpha_D, 3: -n * ratio / alpha_D}), Term(d, {2: 1.0})]


def _draw_16bit(generator: np.random.Generator, theta: Array, columns: Columns) -> None:
    """Both terms share a loss of 1.5 to 5 nats at the middle of the table."""
    loss, share = generator.uniform(1.5, 5.0, len(theta)), generator.uniform(0.05, 0.95, len(theta))
    alpha_N, alpha_D = theta[:, 1], theta[:, 3]
    total = np.log(loss) / alpha_D
    theta[:, 0] = np.median(np.log(columns["N"])) + (total + np.log(share)) * alpha_D / alpha_N
    theta[:, 2] = np.median(np.log(columns["D"])) + total + np.log(1 - share)


LOSS_16BIT = law_of_terms(
    name="ouyang_16bit",
    source="Ouyang et al., arXiv 2411.17691, Eq. 3 (Figure 7)",
    inputs=("N", "D"),
    parameters=(
        Parameter("N_c", (0.0, 100.0), (0.0, 100.0), log=True),
        Parameter("alpha_N", (0.001, 1.0), (0.02, 0.3)),
        Parameter("D_c", (0.0, 100.0), (0.0, 100.0), log=True),
        Parameter("alpha_D", (0.01, 3.0), (0.1, 0.8)),
    ),
    terms=_terms_16bit,
    power="alpha_D",
    draw=_draw_16bit,
)
LAWS = (LAW, TOKENS, SIZE, BITS, LOSS_16BIT)


def tokens_to_reach(constants: dict[str, float], delta: float, N: float, bits: float) -> float:
    """The D in tokens at which the joint law reaches `delta` nats (the inverse of Eq. 8)."""
    return float(
        (delta * N ** constants["alpha"] * bits ** constants["gamma"] / constants["k"]) ** (1 / constants["beta"])
    )
