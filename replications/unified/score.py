"""How far a law that was fitted to some rows of a table is off on the others, and what other trunks would have said.

The fit is that of shared/laws/fit.py: squares weighted by seed noise, validation error and the law's own lack of fit.
The error of a cell is |ln(measured / predicted)|, as in study.py: of cells whose measured delta is two standard errors
above zero. The score is the median over cells, their mean |measured - predicted| in nats per token stands beside it.
Intervals are percentiles over resamples of trunks within each size, fitted and held-out rows of a trunk together (of
rows, where a size has one trunk), with the weights of the full fit, as in shared/laws/compare.py. All laws see the same
resamples, so that a difference of two scores is judged pair by pair.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from replications.unified.difference import difference, freed
from replications.unified.parts import Part
from shared.errors import BitlawError
from shared.laws.bootstrap import Clusters, drawn_within
from shared.laws.cells import ROUNDING
from shared.laws.fit import prepared
from shared.laws.law import Array, Columns, Law
from shared.laws.rows import Solved
from shared.laws.solve import solve
from shared.laws.weighted import LARGEST_TAU

N_STARTS, N_BOOT, SEED = 24, 200, 1
CLEAR = 2.0  # standard errors above zero from which a delta has a logarithm
MOST_STEPS = 60  # of a resample, see compare.py
AS_BAD_AS_NONE = 10.0  # |ln| of a law that predicts no loss at all where there is one


@dataclass(frozen=True)
class Unseen:
    """Held-out cells of a part: rows (n,) of each in `table` with their cell's number, the mean delta of a cell, and
    which are clear of zero."""

    table: pd.DataFrame
    of_row: NDArray[np.int64]
    first: NDArray[np.int64]
    delta: Array
    clear: NDArray[np.bool_]

    @classmethod
    def of(cls, part: Part, table: pd.DataFrame) -> "Unseen":
        names, of_row = np.unique(table["cell"].to_numpy(str), return_inverse=True)
        first = np.unique(of_row, return_index=True)[1]
        count = np.bincount(of_row, minlength=len(names))
        delta = np.bincount(of_row, table["delta"].to_numpy(float), len(names)) / np.maximum(count, 1)
        square = np.bincount(of_row, table["delta_se"].to_numpy(float) ** 2, len(names)) / np.maximum(count, 1)
        cv = part.shown.of(table)[first] if len(table) else np.zeros(0)
        # As Cells.measured_sd where delta is the measured one.
        usual = pd.Series(np.abs(delta)).groupby(table["format"].to_numpy()[first]).transform("median").to_numpy()
        seeds = cv * np.maximum(np.abs(delta), usual)
        sd = np.sqrt(square + seeds**2 / count + (ROUNDING * delta) ** 2)
        return cls(table, of_row, first, delta, delta > CLEAR * sd)

    def columns(self, law: Law) -> Columns:
        return {name: self.table[name].to_numpy(float)[self.first] for name in law.inputs}


@dataclass(frozen=True)
class Result:
    """`median` (1 + resamples,) of |ln(measured / predicted)|, the measured one first; `nats` the mean |error|; `said`
    what to know of the fit."""

    law: Law
    median: Array
    nats: float
    predicted: Array
    theta: Array
    tau: float
    said: str = ""


def competing(law: Law, part: Part, base: dict[str, float]) -> Law:
    """What of `law` is fitted to deltas: the constants of its penalty."""
    return freed(law) if law.target == "delta" else difference(law, base)


def resamples(table: pd.DataFrame, n: int = N_BOOT, seed: int = SEED) -> Array:
    """(1 + n, rows) of how often each row counts, the first of which are ones: compare.py, `_resamples`."""
    groups = Clusters.of(table, "trunk_id", "N")
    alone = np.bincount(groups.stratum) == 1
    by_itself = alone[groups.stratum][groups.of_row]
    unit = np.unique(
        np.where(by_itself, len(groups.stratum) + np.arange(len(table)), groups.of_row), return_inverse=True
    )[1]
    stratum = np.zeros(int(unit.max()) + 1, dtype=np.int64)
    stratum[unit] = groups.stratum[groups.of_row]
    counts = drawn_within(stratum, np.random.default_rng(seed), n)[:, unit]
    return np.concatenate([np.ones((1, len(table))), counts])


def score(law: Law, part: Part, fitted: pd.DataFrame, unseen: Unseen, weights: Array, n_starts: int) -> Result:
    """`law` of delta, fitted to `fitted` (rows of the part's table) and scored on `unseen`; `weights` (1 + resamples,
    fitted rows then unseen rows) of `resamples`.

    Raises BitlawError for rows that cannot be fitted, too few of them for the law's constants, or no unseen cell.
    """
    needed = len(law.parameters) + 1
    cells = fitted["cell"].nunique()
    if cells < needed:
        raise BitlawError(f"{cells} cells, {needed} needed for {len(law.parameters)} constants")
    if not unseen.clear.any():
        raise BitlawError(f"no held-out cell clear of zero (of {len(unseen.delta)})")
    columns = unseen.columns(law)
    if law.grouped is not None and np.any(columns[law.grouped] < 0):
        lacking = int(np.sum(columns[law.grouped] < 0))
        raise BitlawError(
            f"cannot predict {lacking} of {len(unseen.delta)} held-out cells: no constant for their format"
        )
    law, _, rows, solved, said = prepared(
        law, fitted, recipe=None, noise=part.noise, n_starts=n_starts, n_boot=2, seed=SEED, clusters="trunk_id",
        strata="N", name=part.name, fixed=None,
    )  # fmt: skip
    theta = _again(law, solved, weights[:, : len(rows)])
    with np.errstate(over="ignore", invalid="ignore"):
        predicted = law.predict(theta, columns)
    counts = np.zeros((len(weights), len(unseen.delta)))
    np.add.at(counts.T, unseen.of_row, weights[:, len(rows) :].T)
    off = np.abs(log_ratio(unseen.delta, predicted))
    median = np.array([weighted_median(o[unseen.clear], c[unseen.clear]) for o, c in zip(off, counts, strict=True)])
    nats = float(np.mean(np.abs(unseen.delta - np.nan_to_num(predicted[0], nan=0.0, posinf=1e3))))
    note = f"misses the cells it was fitted to by over {LARGEST_TAU:.0%}" if said.tau >= LARGEST_TAU else ""
    return Result(law, median, nats, predicted[0], theta[0], said.tau, note)


def log_ratio(measured: Array, predicted: Array) -> Array:
    """ln(measured / predicted), at most `AS_BAD_AS_NONE` either way."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.log(measured / predicted)
    return np.clip(np.where(np.isfinite(found), found, AS_BAD_AS_NONE), -AS_BAD_AS_NONE, AS_BAD_AS_NONE)


def _again(law: Law, solved: Solved, weights: Array) -> Array:
    """(resamples, P): the fit under each row of `weights`, from the full one, which is the first."""
    size = np.bincount(solved.of_row)
    of_cell = np.stack([np.bincount(solved.of_row, row, len(size)) for row in weights]) / size
    start = np.tile(solved.theta, (len(weights), 1))
    return solve(
        law, solved.columns, start, solved.target, of_cell * solved.weight, MOST_STEPS, misfit=solved.misfit
    ).theta


def weighted_median(values: Array, counts: Array) -> float:
    """The median of values of which each counts so often; NaN where none does. As numpy's for whole equal counts: the
    mean of the two middle ones where the half falls between them."""
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    values, counts = values[counts > 0], counts[counts > 0]
    if not len(values):
        return float("nan")
    below = np.cumsum(counts)
    half = below[-1] / 2
    at = int(np.searchsorted(below, half * (1 - 1e-12)))
    if abs(below[at] - half) <= 1e-9 * half and at + 1 < len(values):
        return float((values[at] + values[at + 1]) / 2)
    return float(values[at])
