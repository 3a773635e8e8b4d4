"""Measured points for figures and plots: the mean over the seeds of each (N, D, bits), with its 95 % interval."""

import numpy as np
import pandas as pd

from shared.laws.cells import gather
from shared.laws.law import Law
from shared.laws.noise import seed_noise
from shared.laws.study import CELL, DIVERGED, FITTED, HELD_OUT, SHORT

Z = 1.959964  # 95 % of a normal distribution
COLUMNS = ["size", "N", "D", "bits", "seeds", "delta", "sd", "low", "high", "use"]

__all__ = ["COLUMNS", "FITTED", "HELD_OUT", "SHORT", "points"]


def points(law: Law, rows: pd.DataFrame, phase: str, group_size: str) -> pd.DataFrame:
    """One row per cell of the law's inputs N, D and bits, sorted by bits, N and D; from the rows of `study.select`.

    Columns: size, N, D, bits, seeds (rows in the cell), delta (mean, nats per token), sd (of the mean, from the
    validation sequences and the seeds, as the fits take them), low, high, and use: fitted, held out or short.
    Diverged runs have no delta and are not here.
    """
    of_phase = rows[rows["phase"] == phase]
    mine = of_phase[(of_phase["group_size"] == group_size) & (of_phase["use"] != DIVERGED)]
    if mine.empty:
        return pd.DataFrame(columns=COLUMNS)
    cells = gather(law, mine, seed_noise(of_phase[of_phase["use"] != DIVERGED], CELL), "trunk_id", "N")
    # One group a cell, in the same order as the cells.
    about = mine.groupby(list(law.inputs), sort=True)[["size", "use"]].first().reset_index(drop=True)
    table = pd.DataFrame({name: cells.columns[name] for name in ("N", "D", "bits")}).join(about)
    sd = cells.measured_sd(np.abs(cells.target))
    table = table.assign(seeds=cells.rows, delta=cells.target, sd=sd)
    table = table.assign(low=cells.target - Z * sd, high=cells.target + Z * sd)
    return table[COLUMNS].sort_values(["bits", "N", "D"], ignore_index=True)
