"""The joint law of Ouyang et al. (arXiv 2411.17691, Eq. 8 and Figure 6): quantization-induced degradation.

    delta = k * D^beta / (N^alpha * P^gamma)

in nats per token; N non-embedding parameters and D tokens, both raw; P the bits of a weight. The paper fits it to
GPTQ-quantized checkpoints along the training of the Pythia suite.
"""

import numpy as np

from shared.laws.law import Array, Columns
from shared.laws.loglinear import REFERENCE_BITS, REFERENCE_D, REFERENCE_N, log_linear

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


def tokens_to_reach(constants: dict[str, float], delta: float, N: float, bits: float) -> float:
    """The D in tokens at which the joint law reaches `delta` nats (the inverse of Eq. 8)."""
    return float(
        (delta * N ** constants["alpha"] * bits ** constants["gamma"] / constants["k"]) ** (1 / constants["beta"])
    )
