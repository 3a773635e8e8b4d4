"""Tokens or the decay of the learning rate: which makes a model fragile? (Catalan-Tatjer et al., arXiv 2510.06213)

Three schedules to the same tokens: constant (the pool's trunks), constant with a cooldown (its cooled branches) and a
cosine (reports/decay). Two questions, each for a method and a format of weights:

- `slope`   d ln delta / d ln D within a schedule, one slope for all sizes, each size with its own level. If decay alone
            made models fragile, it would be about zero under a constant rate.
- `decayed` delta after a decay over that of the trunk at the same N and D, and over D whether that grows: the
            part that decay has in it.

Intervals are Student's over the cells of a fit or over pairs; noise of seeds is in their scatter.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from shared.laws.law import Array
from shared.laws.means import geometric

SCHEDULES = ("constant", "cooldown", "cosine")
FORMATS = ("INT4", "INT3", "INT2")
METHODS = ("rtn", "gptq", "awq")
TOKENS_PER_PARAMETER = 10.0  # as in the papers' experiment.yaml
LEAST = 4  # cells of a slope


@dataclass(frozen=True)
class Answer:
    """`quantity` is slope, decayed (a ratio of deltas), or growth (its slope over ln D)."""

    quantity: str
    schedule: str
    method: str
    format: str
    cells: int
    sizes: str
    value: float
    low: float
    high: float


def judge(pool: pd.DataFrame, cosine: pd.DataFrame) -> list[dict[str, object]]:
    """Answers from rows of measurements.csv: the pool's of unquantized runs, and those of reports/decay (may be empty).

    Columns: size, n_blocks, tokens, cooled, seed, method, format, group_size, delta. Seed 1, per channel.
    """
    rows = pd.concat([_named(pool, "constant", "cooldown"), _named(cosine, "", "cosine")])
    found: list[Answer] = []
    for (method, form), cells in rows.groupby(["method", "format"], sort=False):
        for schedule in SCHEDULES:
            mine = cells[cells["schedule"] == schedule]
            found += _slope("slope", schedule, str(method), str(form), mine, np.log(mine["delta"].to_numpy(float)))
        constant = cells[cells["schedule"] == "constant"]
        for schedule in SCHEDULES[1:]:
            mine = cells[cells["schedule"] == schedule]
            both = mine.merge(constant[["size", "tokens", "delta"]], on=["size", "tokens"], suffixes=("", "_constant"))
            found += _decayed(schedule, str(method), str(form), both)
    rank = {name: k for k, name in enumerate((*METHODS, *FORMATS, *SCHEDULES))}
    found.sort(key=lambda one: (one.quantity, rank[one.method], rank[one.format], rank[one.schedule]))
    return [asdict(one) for one in found]


def _named(table: pd.DataFrame, trunk: str, cooled: str) -> pd.DataFrame:
    if not len(table):
        return pd.DataFrame(columns=[*table.columns, "schedule"])
    keep = (
        (table["seed"].astype(int) == 1)
        & (table["group_size"] == "channel")
        & table["method"].isin(METHODS)
        & table["format"].isin(FORMATS)
        & (table["tokens"] >= TOKENS_PER_PARAMETER * table["n_blocks"])
        & (table["delta"] > 0)  # a logarithm is taken; per channel at 2 to 4 bits none is negative
    )
    some = table[keep]
    named = some.assign(schedule=np.where(some["cooled"].astype(bool), cooled, trunk))
    return named[named["schedule"] != ""]


def _slope(quantity: str, schedule: str, method: str, form: str, cells: pd.DataFrame, y: Array) -> list[Answer]:
    """Least squares with a level for each size and one slope in ln D."""
    if len(cells) < LEAST:
        return []
    levels = pd.get_dummies(cells["size"]).to_numpy(float)
    x = np.column_stack([np.log(cells["tokens"].to_numpy(float)), levels])
    free = len(y) - x.shape[1]
    if free < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        return []
    beta, *_ = np.linalg.lstsq(x, y, rcond=None)
    variance = float(np.sum((y - x @ beta) ** 2)) / free * np.linalg.inv(x.T @ x)[0, 0]
    half = float(student.ppf(0.975, free) * np.sqrt(variance))
    sizes = " ".join(sorted(set(cells["size"])))
    value = float(beta[0])
    return [Answer(quantity, schedule, method, form, len(y), sizes, value, value - half, value + half)]


def _decayed(schedule: str, method: str, form: str, both: pd.DataFrame) -> list[Answer]:
    if len(both) < 2:
        return []
    logs = np.log(both["delta"].to_numpy(float) / both["delta_constant"].to_numpy(float))
    sizes = " ".join(sorted(set(both["size"])))
    ratio = Answer("decayed", schedule, method, form, len(logs), sizes, *geometric(logs))
    return [ratio, *_slope("growth", schedule, method, form, both, logs)]
