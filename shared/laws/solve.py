"""Weighted least squares by Levenberg-Marquardt, for many problems of one law at once.

All starting points and all resamples are solved together: one numpy operation serves every problem that is still
moving, and finished ones are dropped. The parameters are scaled by the norms of their Jacobian columns
(Moré 1978, the Levenberg-Marquardt algorithm: implementation and theory, section 3), and the box is kept by holding a
parameter that sits on a bound while its gradient points outward.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.laws.law import Array, Columns, Law

MOST_STEPS = 1000  # few problems need more than 50; those that do cost little once the others are dropped
# The cosine between the residual and every free column of the Jacobian: below it nothing is left to gain.
# (What remains is this share of a standard error.)
STATIONARY = 1e-7
NEARLY_STATIONARY = 1e-5
# Below this share of the weighted data a residual is rounding: the law passes through every point.
EXACT = 1e-22


@dataclass(frozen=True)
class Solution:
    """Of B problems: internal parameters (B, P), costs (B,) = half the weighted sum of squares, and who arrived."""

    theta: Array
    cost: Array
    converged: NDArray[np.bool_]


def solve(
    law: Law, columns: Columns, theta: Array, target: Array, weight: Array, most_steps: int = MOST_STEPS
) -> Solution:
    """Minimise sum weight (target - prediction)^2 / 2 from each row of `theta`, (B, P) internal.

    `target` and `weight` are (n,) for all problems or (B, n); a weight of zero leaves a cell out. Never raises: a
    problem without a finite cost, or stuck away from a stationary point, comes back with converged False.
    """
    lower, upper = law.bounds.T
    theta = np.clip(theta, lower, upper)
    n_problems, n_parameters = theta.shape
    shape = (n_problems, np.shape(target)[-1])
    target, root = np.broadcast_to(target, shape), np.broadcast_to(np.sqrt(weight), shape)
    size = np.sum((root * target) ** 2, axis=-1)
    converged = np.zeros(n_problems, dtype=bool)
    damping = np.full(n_problems, 1e-3)
    alive = np.arange(n_problems)
    # A trial step may overflow; its cost is then not finite and the step is refused.
    with np.errstate(over="ignore", invalid="ignore"):
        cost = _cost(law, columns, theta, target, root)
        for _ in range(most_steps):
            at = theta[alive]
            residual = root[alive] * (target[alive] - law.predict(at, columns))
            jacobian = root[alive][..., None] * law.gradient(at, columns)
            slope = np.matmul(jacobian.mT, residual[..., None])[..., 0]
            norm = np.sqrt(np.sum(jacobian**2, axis=-2))
            norm = np.where((norm > 0) & np.isfinite(norm), norm, 1.0)
            held = ((at <= lower) & (slope < 0)) | ((at >= upper) & (slope > 0))
            slope = np.where(held, 0.0, slope / norm)
            cosine = np.max(np.abs(slope), axis=-1) / np.sqrt(np.maximum(2 * cost[alive], np.finfo(float).tiny))
            exact = 2 * cost[alive] <= EXACT * size[alive]
            # Rounding stops a search before the damping has grown this far.
            stuck = ~(damping[alive] < 1e12) | ~np.isfinite(cost[alive])
            done = (cosine <= STATIONARY) | exact | stuck
            converged[alive] = np.isfinite(cost[alive]) & ((cosine <= NEARLY_STATIONARY) | exact)
            if done.all():
                break
            keep = ~done
            alive, at, slope, norm, held = alive[keep], at[keep], slope[keep], norm[keep], held[keep]
            scaled = jacobian[keep] / norm[:, None, :]
            normal = np.matmul(scaled.mT, scaled)
            normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
            normal[:, range(n_parameters), range(n_parameters)] = 1.0
            normal[:, range(n_parameters), range(n_parameters)] += damping[alive][:, None]
            step = np.linalg.solve(normal, slope[..., None])[..., 0] / norm
            trial = np.clip(at + step, lower, upper)
            trial_cost = _cost(law, columns, trial, target[alive], root[alive])
            better = trial_cost < cost[alive]
            theta[alive] = np.where(better[:, None], trial, at)
            cost[alive] = np.where(better, trial_cost, cost[alive])
            damping[alive] *= np.where(better, 0.2, 5.0)
            damping[alive] = np.maximum(damping[alive], 1e-15)
    return Solution(theta, cost, converged)


def condition_number(law: Law, columns: Columns, theta: Array, weight: Array) -> tuple[float, Array]:
    """Of J^T J with unit columns at one `theta` (P,), and the direction (P,) that the data tell least about."""
    jacobian = np.sqrt(weight)[:, None] * law.gradient(theta, columns)
    norm = np.linalg.norm(jacobian, axis=0)
    if not np.all(norm > 0) or not np.all(np.isfinite(norm)):
        return float("inf"), (~(norm > 0)).astype(float)
    singular, directions = np.linalg.svd(jacobian / norm, full_matrices=False)[1:]
    if singular[-1] == 0:
        return float("inf"), directions[-1]
    return float((singular[0] / singular[-1]) ** 2), directions[-1]


def _cost(law: Law, columns: Columns, theta: Array, target: Array, root: Array) -> Array:
    cost = 0.5 * np.sum((root * (target - law.predict(theta, columns))) ** 2, axis=-1)
    return np.where(np.isfinite(cost), cost, np.inf)
