"""Measured points for figures and plots: the mean over the seeds of each (N, D, bits), with its 95 % interval."""

import numpy as np
import pandas as pd

from shared.laws.noise import seed_noise
from shared.laws.study import CELL, DIVERGED, FITTED, HELD_OUT, SHORT

Z = 1.959964  # 95 % of a normal distribution
COLUMNS = ["size", "N", "D", "bits", "seeds", "delta", "sd", "low", "high", "use"]

__all__ = ["COLUMNS", "FITTED", "HELD_OUT", "SHORT", "points"]


def points(rows: pd.DataFrame, phase: str, group_size: str) -> pd.DataFrame:
    """One row per cell, sorted by bits, N and D, from the rows of `laws.study.select`.

    Columns: size, N, D, bits, seeds (rows in the cell), delta (mean, nats per token), sd, low, high, and use: fitted,
    held out or short. sd^2 = mean of delta_se^2 (all seeds share the validation sequences) + (cv * delta)^2 / seeds,
    where cv is the seeds' spread as a share of delta, pooled over the fitted cells of the format that have several
    seeds, as the fits take it. Diverged runs have no delta and are not here.
    """
    of_phase = rows[rows["phase"] == phase]
    mine = of_phase[(of_phase["group_size"] == group_size) & (of_phase["use"] != DIVERGED)]
    if mine.empty:
        return pd.DataFrame(columns=COLUMNS)
    noise = seed_noise(of_phase[of_phase["use"] == FITTED], CELL)
    mine = mine.assign(variance=mine["delta_se"] ** 2, cv=noise.of(mine))
    key = ["bits", "N", "D", "size", "use"]
    cells = (
        mine.groupby(key, sort=True)
        .agg(seeds=("delta", "size"), delta=("delta", "mean"), variance=("variance", "mean"), cv=("cv", "mean"))
        .reset_index()
    )
    cells["sd"] = np.sqrt(cells["variance"] + (cells["cv"] * cells["delta"]) ** 2 / cells["seeds"])
    cells["low"] = cells["delta"] - Z * cells["sd"]
    cells["high"] = cells["delta"] + Z * cells["sd"]
    return cells[COLUMNS]
