"""What rows that are not measured yet would tell about a law's constants: their expected intervals.

To first order the least-squares estimate of theta from independent rows has the covariance
(sum_i g_i g_i^T / sd_i^2)^-1, with g_i the law's gradient at row i (Fisher's information). That needs no simulated
fit, so that many plans can be compared in a second; it knows nothing of bounds, starts and lack of fit.

Shape letters: n rows, P constants.
"""

import numpy as np

from shared.laws.law import Array, Columns, Law

# A direction of theta with less information than this share of the largest, after scaling, cannot be told.
SMALLEST_SHARE = 1e-12
STEP = 1e-6


def half_widths(law: Law, theta: Array, columns: Columns, sd: Array, z: float = 1.96) -> dict[str, float]:
    """Half of the expected 95 % interval of each raw constant; infinite where the rows cannot tell it.

    theta (P,) internal; columns of n rows; sd (n,) standard deviations of the target in nats per token.
    """
    with np.errstate(all="ignore"):
        gradient_nP = law.gradient(theta, columns) / sd[:, None]
    gradient_nP = np.where(np.isfinite(gradient_nP), gradient_nP, 0.0)
    scale_P = np.sqrt((gradient_nP**2).sum(0))
    seen_P = scale_P > 0
    scaled_nP = gradient_nP[:, seen_P] / scale_P[seen_P]
    values, vectors = np.linalg.eigh(scaled_nP.T @ scaled_nP)
    told = values > SMALLEST_SHARE * values.max()
    blind_P = np.zeros(len(theta), dtype=bool)
    blind_P[seen_P] = (np.abs(vectors[:, ~told]) > 1e-3).any(axis=1)
    covariance = np.zeros((len(theta), len(theta)))
    inverse = (vectors[:, told] / values[told]) @ vectors[:, told].T
    covariance[np.ix_(seen_P, seen_P)] = inverse / np.outer(scale_P[seen_P], scale_P[seen_P])
    found = {}
    for k, name in enumerate(law.parameters):
        slope_P = _slope(law, theta, k)
        used = slope_P != 0
        unknown = bool((used & (blind_P | ~seen_P)).any())
        found[name] = np.inf if unknown else float(z * np.sqrt(slope_P @ covariance @ slope_P))
    return found


def _slope(law: Law, theta: Array, k: int) -> Array:
    """(P,) derivative of the k-th raw constant by theta."""
    slope = np.zeros(len(theta))
    for j in range(len(theta)):
        moved = np.stack([theta, theta])
        moved[0, j] += STEP
        moved[1, j] -= STEP
        high, low = law.to_raw(moved)[:, k]
        slope[j] = (high - low) / (2 * STEP) if high != low else 0.0
    return slope
