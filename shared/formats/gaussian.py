"""How well a grid of values holds a standard normal variable: its mean squared error, integrated exactly.

With x ~ N(0, 1), the nearest value v and cells between the midpoints (a, b),
    E (x - v)^2 = sum over v of (1 + v^2) [Phi(b) - Phi(a)] - [b phi(b) - a phi(a)] + 2 v [phi(b) - phi(a)].
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from shared.formats.format import Format
from shared.formats.oracle import values

# The largest value, in standard deviations, among which the best is looked for; finer near the usual 1 to 5.
CLIPS = np.geomspace(0.2, 64.0, 240)


@dataclass(frozen=True)
class GaussianFit:
    """The least mean squared error over all scales, and the largest value at that scale (in standard deviations)."""

    mse: float
    clip: float


def mean_squared_error(grid_V: NDArray[np.float64]) -> float:
    """E (x - nearest)^2 for x ~ N(0, 1) and ascending values."""
    middles = (grid_V[1:] + grid_V[:-1]) / 2
    cumulated = np.concatenate([[0.0], special.ndtr(middles), [1.0]])
    density = np.concatenate([[0.0], np.exp(-(middles**2) / 2) / math.sqrt(2 * math.pi), [0.0]])
    moment = np.concatenate([[0.0], middles, [0.0]]) * density
    cells_V = (1 + grid_V**2) * np.diff(cumulated) - np.diff(moment) + 2 * grid_V * np.diff(density)
    return float(cells_V.sum())


def gaussian_fit(form: Format) -> GaussianFit:
    """The best scale of a format for N(0, 1) (and for UINTk the best zero point, which is the middle one)."""
    grid_V = np.array(values(form))
    if form.lowest is not None:
        grid_V = grid_V - math.floor(form.limit / 2)
    grid_V = grid_V / np.abs(grid_V).max()
    return best_scale(grid_V)


def best_scale(grid_V: NDArray[np.float64]) -> GaussianFit:
    """The multiple of the grid (largest magnitude 1) with the least error: a scan, refined around its best point."""
    errors = [mean_squared_error(clip * grid_V) for clip in CLIPS]
    best = int(np.argmin(errors))
    low, high = CLIPS[max(best - 1, 0)], CLIPS[min(best + 1, len(CLIPS) - 1)]
    found = optimize.minimize_scalar(
        lambda clip: mean_squared_error(clip * grid_V), bounds=(low, high), method="bounded", options={"xatol": 1e-9}
    )
    return GaussianFit(float(found.fun), float(found.x))
