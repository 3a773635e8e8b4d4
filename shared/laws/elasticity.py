"""Elasticities: what papers have in common whatever the form of their law.

d ln delta / d ln D and d ln delta / d ln N, and d ln delta per bit, at a stated point; and the same slope measured
between neighbouring horizons without any law.
"""

import numpy as np
import pandas as pd

from shared.laws.cells import Cells
from shared.laws.fit import interval
from shared.laws.law import Array, Law

# These inputs are counted in steps of one; every other input by its logarithm.
LINEAR_INPUTS = ("bits",)
STEP = 1e-4
CLEAR = 2.0  # standard errors above zero from which a delta has a logarithm worth showing
Z = 1.959964


def slope(law: Law, theta: Array, name: str, at: dict[str, float]) -> Array:
    """d ln prediction / d ln `name` (or per unit of a linear input) for `theta` (..., P) at one point: shape (...)."""
    ends = []
    for sign in (1, -1):
        moved = at[name] + sign * STEP if name in LINEAR_INPUTS else at[name] * np.exp(sign * STEP)
        columns = {key: np.array([moved if key == name else value], dtype=float) for key, value in at.items()}
        ends.append(np.log(law.predict(theta, columns))[..., 0])
    return (ends[0] - ends[1]) / (2 * STEP)


def elasticities(law: Law, theta: Array, draws: Array | None, at: dict[str, float]) -> dict[str, dict[str, float]]:
    """{"D": {"value", "low", "high"}, ...} for each input; a linear input carries "at". Without draws, values only."""
    found = {}
    for name in law.inputs:
        found[name] = {"value": float(slope(law, theta, name, at))}
        if draws is not None:
            low, high = interval(slope(law, draws, name, at))
            found[name] |= {"low": float(low), "high": float(high)}
        if name in LINEAR_INPUTS:
            found[name]["at"] = at[name]
    return found


def local_elasticities(cells: Cells) -> list[dict[str, float | None]]:
    """d ln delta / d ln D between neighbouring horizons of each (N, bits), in order, with 95 % intervals.

    The interval is normal, from the validation error and the seed noise of both ends taken as independent; what a
    trunk's horizons share cancels in truth, so it is rather too wide. Where an end is not two standard errors above
    zero the slope has no meaning, and value, low and high are None.
    """
    sd = cells.measured_sd(np.abs(cells.target))
    table = pd.DataFrame({name: cells.columns[name] for name in ("N", "bits", "D")})
    table = table.assign(delta=cells.target, sd=sd).sort_values(["N", "bits", "D"])
    found: list[dict[str, float | None]] = []
    for (N, bits), some in table.groupby(["N", "bits"], sort=True):
        D, delta, spread = (some[name].to_numpy() for name in ("D", "delta", "sd"))
        for i in range(len(D) - 1):
            step: dict[str, float | None] = {"N": N, "bits": bits, "D_from": D[i], "D_to": D[i + 1]}
            step |= {"value": None, "low": None, "high": None}
            ends = slice(i, i + 2)
            if np.all(delta[ends] > CLEAR * spread[ends]):
                width = np.log(D[i + 1] / D[i])
                value = float(np.log(delta[i + 1] / delta[i]) / width)
                half = float(Z * np.linalg.norm(spread[ends] / delta[ends]) / width)
                step |= {"value": value, "low": value - half, "high": value + half}
            found.append(step)
    return found
