"""Slopes of ln delta over many cells at once, without a law: how a claim about a trend is judged."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.laws.bootstrap import resample
from shared.laws.cells import Cells
from shared.laws.fit import interval
from shared.laws.law import Array
from shared.laws.noise import SeedNoise


def law_free(
    cells: Cells, noise: SeedNoise, *, n_boot: int, seed: int, signal_to_noise: float
) -> dict[str, int | list[dict[str, Any]] | dict[str, float] | None]:
    """Least squares of ln delta with a level of its own for every value of the other inputs; inputs N, D and bits.

    Only cells at least `signal_to_noise` standard errors above zero enter, because a logarithm needs a sign; there
    the logarithm's bias is under 1 / (2 signal_to_noise^2), 3 % at 4. Intervals are percentiles over resamples.

    - `D_at_N`: at each N, d ln delta / d ln D. `N_at_D`: at each D with two sizes, d ln delta / d ln N.
    - `bits`: d ln delta per bit, `bits_r2` its share of the variance within (N, D), `bits_curvature` the second
      derivative (zero for an exponential law, P^-2 gamma for a power of P).
    - `D_drift`: by how much d ln delta / d ln D changes each time D doubles (zero for a power law).

    A quantity that the cells cannot tell is None, or absent from its list.
    """
    clear = cells.target >= signal_to_noise * cells.measured_sd(np.abs(cells.target))
    level = np.abs(cells.target)
    drawn, present = resample(cells, np.random.default_rng(seed), n_boot, level, noise, 0.0)
    targets = np.concatenate([cells.target[None], np.where(present > 0, drawn, cells.target)])[:, clear]
    # A draw that falls to nothing would send a logarithm to minus infinity; a twentieth is far enough down.
    y = np.log(np.maximum(targets, cells.target[clear] / 20))
    N, D, bits = (cells.columns[name][clear] for name in ("N", "D", "bits"))
    curve_D, curve_bits = np.log2(D), bits - 4

    at_N, at_D = [], []
    for value in np.unique(N):
        here = value == N
        slopes = within(y[:, here], np.log(D[here])[:, None], bits[here])
        if slopes is not None:
            at_N.append({"N": float(value), **_summary(slopes[0][:, 0]), "cells": int(here.sum())})
    for value in np.unique(D):
        here = value == D
        slopes = within(y[:, here], np.log(N[here])[:, None], bits[here])
        if slopes is not None:
            at_D.append({"D": float(value), **_summary(slopes[0][:, 0]), "cells": int(here.sum())})
    straight = within(y, bits[:, None], N, D)
    bent = within(y, np.stack([curve_bits, curve_bits**2], axis=-1), N, D)
    drift = within(y, np.stack([curve_D, curve_D**2], axis=-1), N, bits)
    return {
        "cells": len(cells.target),
        "clear_cells": int(clear.sum()),
        "D_at_N": at_N,
        "N_at_D": at_D,
        "bits": None if straight is None else _summary(straight[0][:, 0]),
        "bits_r2": None if straight is None else _summary(straight[1]),
        "bits_curvature": None if bent is None else _summary(2 * bent[0][:, 1]),
        "D_drift": None if drift is None else _summary(2 * drift[0][:, 1] / np.log(2)),
    }


def within(y: Array, x: Array, *groups: NDArray[Any]) -> tuple[Array, Array] | None:
    """Regress each row of `y` (B, n) on `x` (n, k) with a level of its own for every combination of `groups` (n,).

    Returns slopes (B, k) and R^2 (B,) within the groups, or None when the groups leave `x` no full rank.
    """
    if y.shape[1] == 0:
        return None
    labels = pd.DataFrame(dict(enumerate(groups))).groupby(list(range(len(groups)))).ngroup().to_numpy()
    member = (labels[:, None] == np.unique(labels)).astype(float)
    mean = member / member.sum(axis=0)
    x = x - member @ (mean.T @ x)
    y = y - (y @ mean) @ member.T
    if np.linalg.matrix_rank(x, tol=1e-8 * max(1.0, float(np.abs(x).max()))) < x.shape[1]:
        return None
    slopes = y @ np.linalg.pinv(x).T
    left = np.sum((y - slopes @ x.T) ** 2, axis=-1)
    return slopes, 1 - left / np.maximum(np.sum(y**2, axis=-1), np.finfo(float).tiny)


def _summary(values: Array) -> dict[str, float]:
    """The first value is the measured one, the others its resamples."""
    low, high = interval(values[1:])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
