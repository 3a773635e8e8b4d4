"""Another corpus: do the same models lose as much, and do their losses grow as fast, when they are trained on English?

Size S, cooled, weights per channel, the tokens that both corpora have. Four quantities:

- `slope`    d ln delta / d ln D of rounding to nearest, one for each seed; Student over seeds.
- `steeper`  the slope on English less that on Python; Welch over seeds.
- `ratio`    delta of rounding on English over that on Python at equal D; Welch on logarithms over seeds, each seed's
             value being its mean over horizons.
- `trained`  delta of a run trained in low precision on English less that on Python, nats per token, at one D; the
             noise of both as `low_precision.cells` has it.

Losses themselves do not compare: the texts have different entropies a token.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import ttest_ind

from shared.laws.law import Array
from shared.laws.means import half_width

SIZE = "S"
FORMATS = ("INT4", "INT3", "INT2")
LEAST_SEEDS = 2
LEAST_HORIZONS = 2


@dataclass(frozen=True)
class Answer:
    """`of`: the format rounded to, or the compression trained in; `tokens`: the horizons; `seeds` on each corpus."""

    quantity: str
    corpus: str  # english, python, or both
    of: str
    tokens: list[float]
    seeds: tuple[int, int]
    value: float
    low: float
    high: float


def judge(rounded: Mapping[str, pd.DataFrame], trained: Mapping[str, pd.DataFrame]) -> list[dict[str, object]]:
    """Answers from {"python": rows, "english": rows}; nothing for what a corpus lacks.

    rounded  rows of measurements.csv with size, tokens, cooled, seed, method, format, group_size, delta.
    trained  cells as `low_precision.cells` makes them.
    """
    found: list[Answer] = []
    for form in FORMATS:
        found += _of_rounding(form, {corpus: _cells(table, form) for corpus, table in rounded.items()})
    return [asdict(one) for one in [*found, *_of_training(trained)]]


def _cells(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """delta by seed (rows) and tokens (columns), of the seeds that have every horizon."""
    if not len(table):
        return pd.DataFrame()
    keep = (
        (table["size"] == SIZE)
        & table["cooled"].astype(bool)
        & (table["method"] == "rtn")
        & (table["group_size"] == "channel")
        & (table["format"] == form)
        & (table["delta"] > 0)  # a logarithm is taken
    )
    return table[keep].pivot_table(index="seed", columns="tokens", values="delta")


def _of_rounding(form: str, cells: Mapping[str, pd.DataFrame]) -> list[Answer]:
    python, english = cells["python"], cells["english"]
    horizons = sorted(set(python.columns) & set(english.columns))
    if len(horizons) < LEAST_HORIZONS:
        return []
    logs = {corpus: np.log(table[horizons].dropna().to_numpy(float)) for corpus, table in cells.items()}
    seeds = len(logs["python"]), len(logs["english"])
    if min(seeds) < LEAST_SEEDS:
        return []
    x = np.log(np.array(horizons, float))
    slopes = {corpus: np.polyfit(x, y.T, 1)[0] for corpus, y in logs.items()}
    levels = {corpus: y.mean(axis=1) for corpus, y in logs.items()}
    found = []
    for corpus, values in sorted(slopes.items()):
        middle, half = float(values.mean()), half_width(values)
        found.append(Answer("slope", corpus, form, horizons, seeds, middle, middle - half, middle + half))
    found.append(Answer("steeper", "both", form, horizons, seeds, *_welch(slopes["english"], slopes["python"])))
    apart = _welch(levels["english"], levels["python"])
    found.append(Answer("ratio", "both", form, horizons, seeds, *(math.exp(value) for value in apart)))
    return found


def _welch(some: Array, others: Array) -> tuple[float, float, float]:
    """Difference of means and its 95 % interval, variances not assumed equal."""
    ends = ttest_ind(some, others, equal_var=False).confidence_interval(0.95)
    return float(some.mean() - others.mean()), float(ends.low), float(ends.high)


def _of_training(cells: Mapping[str, pd.DataFrame]) -> list[Answer]:
    tables = {corpus: table[(table["size"] == SIZE) & (table["how"] != "")] for corpus, table in cells.items()}
    both = tables["english"].merge(tables["python"], on=["how", "D", "learning_rate"], suffixes=("", "_python"))
    found = []
    for row in both.sort_values(["how", "D"]).to_dict("records"):
        value = float(row["delta"] - row["delta_python"])
        half = float(student.ppf(0.975, min(row["dof"], row["dof_python"])) * np.hypot(row["sd"], row["sd_python"]))
        seeds = int(row["seeds_python"]), int(row["seeds"])
        found.append(Answer("trained", "both", row["how"], [row["D"]], seeds, value, value - half, value + half))
    return found
