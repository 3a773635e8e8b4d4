"""Resampled tables: what the cells might have been with other seeds, other validation text and another misfit."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array

from shared.laws.cells import Cells
from shared.laws.law import Array, Law
from shared.laws.noise import SeedNoise
from shared.laws.solve import Misfit

# A stratum of fewer clusters says too little about their spread for them to be drawn from it.
FEW = 5


def resample(
    cells: Cells, generator: np.random.Generator, n: int, level: Array, noise: SeedNoise, tau: float
) -> tuple[Array, Array]:
    """`n` resampled targets (n, cells) and whether a cell is present in a resample, (n, cells) of 0 and 1.

    The cluster is the trunk, because all its horizons and formats share one initialisation and one order of batches.

    - A cell of several trunks is the mean over a draw of its stratum's trunks: of G trunks, G - 1 are drawn with
      replacement, which makes the variance of the mean exactly s^2 / G (Rao and Wu 1988, with m = G - 1; G draws
      would give (G - 1) / G of it). A cell that none of the drawn trunks has is absent from that resample.
    - A cell of one trunk is perturbed by `Cells.seed_sd` times a normal deviate, whose variance is split into a part
      common to all cells of the trunk (`noise.shared`) and a part of each cell alone.
    - Both the drawn means' deviations and the common parts are multiplied, in each resample, by
      sqrt(dof / chi^2_dof): two or three seeds say little about a variance, and without it 95 % intervals cover 80 %.
    - Every cell is perturbed by its validation error and by the lack of fit `tau` times `level`. Both are common to
      the seeds of a cell, so that resampling trunks does not show them.

    `level` (cells,) is the size of delta in nats per token to which the relative terms apply (the fitted one, or the
    measured one where there is no law).
    """
    pairs = np.unique(np.stack([cells.row_cell, cells.row_trunk]), axis=1)
    single = np.bincount(pairs[0], minlength=len(cells.target)) == 1
    target = np.broadcast_to(cells.target, (n, len(cells.target))).copy()
    present = np.ones_like(target)
    widen = np.sqrt(noise.dof / generator.chisquare(noise.dof, size=(n, 1))) if noise.dof else np.ones((n, 1))
    if not single.all():
        counts = np.zeros((n, len(cells.trunks)))
        for stratum in np.unique(cells.trunk_stratum):
            members = np.flatnonzero(cells.trunk_stratum == stratum)
            if len(members) > 1:
                even = np.full(len(members), 1 / len(members))
                counts[:, members] = generator.multinomial(len(members) - 1, even, size=n)
        # Sums over trunks of what each has in each cell, which is nothing in nearly all of them.
        drawn = _summed(counts, cells, np.ones_like(cells.row_target))
        total = _summed(counts, cells, cells.row_target)
        mean = np.divide(total, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        target += np.where(single, 0.0, widen * (mean - cells.target))
        present = np.where(single | (drawn > 0), 1.0, 0.0)
    trunk = np.zeros(len(cells.target), dtype=np.int64)
    trunk[cells.row_cell] = cells.row_trunk
    common = widen * generator.standard_normal((n, len(cells.trunks)))[:, trunk]
    own = generator.standard_normal(target.shape)
    seeds = np.where(single, cells.seed_sd(level), 0.0)
    target += seeds * (np.sqrt(noise.shared) * common + np.sqrt(1 - noise.shared) * own)
    target += np.hypot(cells.error, tau * level) * generator.standard_normal(target.shape)
    return target, present


def _summed(counts: Array, cells: Cells, values: Array) -> Array:
    """(n, cells): the `values` of a cell's rows, each as often as its trunk in `counts` (n, trunks)."""
    shape = (len(cells.target), len(cells.trunks))
    return np.ascontiguousarray((coo_array((values, (cells.row_cell, cells.row_trunk)), shape).tocsr() @ counts.T).T)


def resampled_scores(
    cells: Cells, score: Array, generator: np.random.Generator, n: int, level: Array, noise: SeedNoise, tau: float
) -> Array:
    """(n, P) of `resample`: what its targets add to the sum over cells of `score` (cells, P) times the target, drawn
    from the normal distribution of the same variance. No array has more numbers than rows or resamples times P.

    To first order in 1 / sqrt(rows): a cell that none of the drawn trunks has keeps its mean. A cell that m of a
    stratum's G trunks have gets the spread of m trunks: draws of G - 1 of G would give (m - 1) / m of it.
    """
    P = score.shape[1]
    several = np.zeros(len(cells.target), dtype=bool)
    first = np.zeros(len(cells.target), dtype=np.int64)
    first[cells.row_cell] = cells.row_trunk
    several[cells.row_cell[first[cells.row_cell] != cells.row_trunk]] = True

    def of_trunks(rows: NDArray[np.int64], values: Array) -> Array:
        of_row = score[cells.row_cell[rows]] * values[:, None]
        G = len(cells.trunks)
        return np.stack([np.bincount(cells.row_trunk[rows], part, G) for part in of_row.T], axis=-1).astype(float)

    # Drawn trunks: the squares of their sums, with the variance s^2 / m of a mean of m.
    drawn = np.flatnonzero(several[cells.row_cell])
    m = cells.rows / np.maximum(cells.rows - 1, 1)
    off = (cells.row_target - cells.target[cells.row_cell]) / cells.rows[cells.row_cell] * np.sqrt(m)[cells.row_cell]
    part = of_trunks(drawn, off[drawn])
    widened = part.T @ part
    # Cells of one trunk: the part of a trunk and the part of each cell.
    seeds = np.where(several, 0.0, cells.seed_sd(level))
    alone = np.unique(cells.row_cell, return_index=True)[1]
    common = of_trunks(alone, np.sqrt(noise.shared) * seeds[cells.row_cell[alone]])
    widened += common.T @ common
    own = score * np.sqrt((1 - noise.shared) * seeds**2 + cells.error**2 + (tau * level) ** 2)[:, None]
    widen = np.sqrt(noise.dof / generator.chisquare(noise.dof, size=(n, 1))) if noise.dof else np.ones((n, 1))
    parts = [generator.standard_normal((n, P)) @ _root(square) for square in (widened, own.T @ own)]
    return widen * parts[0] + parts[1]


def _root(square: Array) -> Array:
    """The symmetric root of a covariance (P, P), whose columns may differ by many orders of magnitude."""
    size = np.sqrt(np.diag(square))
    scale = np.where(size > 0, size, 1.0)
    values, vectors = np.linalg.eigh(square / np.outer(scale, scale))
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T * scale


@dataclass(frozen=True)
class Clusters:
    """Which rows share their noise: the rows of one trunk. Without a column of clusters each row is its own."""

    of_row: NDArray[np.int64]  # (n,)
    stratum: NDArray[np.int64]  # (clusters,)
    single: bool  # every cluster is one row

    @classmethod
    def of(cls, table: pd.DataFrame, clusters: str, strata: str) -> "Clusters":
        names = table[clusters].astype(str).to_numpy() if clusters in table else np.arange(len(table))
        of_row, found = pd.factorize(names, sort=True)
        stratum = np.zeros(len(found), dtype=np.int64)
        if strata in table:
            stratum[of_row] = pd.factorize(table[strata].to_numpy(), sort=True)[0]
        return cls(of_row=of_row, stratum=stratum, single=len(found) == len(table))


@dataclass(frozen=True)
class Drawn:
    """Resampled targets and weights, each (resamples, n) or (n,), and one clause on what was resampled."""

    target: Array
    weight: Array
    about: str


def resample_rows(
    law: Law,
    table: pd.DataFrame,
    clusters: Clusters,
    generator: np.random.Generator,
    n: int,
    misfit: Misfit,
    prediction: Array,
    residual: Array,
    slope: Array,
) -> Drawn:
    """`n` resamples of a table whose rows weigh the same.

    - Rows that are clusters of their own are drawn with replacement, all together, as the papers do; of a law with a
      constant for each group of rows, within the groups (Rao and Wu, as below; a group of one row stays).
    - Of G clusters in a stratum, where every stratum has at least `FEW`, G - 1 are drawn with replacement and count
      G / (G - 1) times (Rao and Wu 1988).
    - Else new targets are made: the fitted law plus normal noise on the scale of the residuals, with a part of each
      row and a part that a trunk's rows have in common, both as large as the residuals say (`_components`; seeds and
      lack of fit are in them). The common part is widened as in `resample`. `slope` (n, P) is what the residuals gain
      from the free parameters.
    """
    target = table[law.target].to_numpy(float)
    m, G = len(target), len(clusters.stratum)
    if clusters.single and law.grouped is None:
        return Drawn(target, generator.multinomial(m, np.full(m, 1 / m), size=n).astype(float), "rows")
    if clusters.single:
        return Drawn(
            target, drawn_within(table[law.grouped].to_numpy(), generator, n), f"rows within each {law.grouped}"
        )
    if np.bincount(clusters.stratum).min() >= FEW:
        return Drawn(
            target, drawn_within(clusters.stratum, generator, n)[:, clusters.of_row], "trunks within each size"
        )
    own, common, dof = _components(residual, slope, clusters.of_row, G)
    widen = np.sqrt(dof / generator.chisquare(dof, size=(n, 1)))
    off = own * generator.standard_normal((n, m))
    off += common * (widen * generator.standard_normal((n, G)))[:, clusters.of_row]
    made = prediction * np.exp(off) if misfit.log else prediction + off
    unit = " of the loss" if misfit.log else ""
    about = f"new noise of {own:.2g}{unit} for each row and {common:.2g} for each of {G} trunks, from the residuals"
    return Drawn(made, np.ones(m), about)


def _components(residual: Array, slope: Array, of_row: NDArray[np.int64], G: int) -> tuple[float, float, float]:
    """Standard deviations of the noise of a row and of a trunk, and the degrees of freedom behind the latter.

    The sums of squares of the residuals within and between trunks are set to what they are expected to be after a fit
    with these slopes (n, P) (Henderson 1953, method 3): with H the projection on the slopes, Z the members of trunks
    and B the mean over a trunk, E[r' (1 - B) r] and E[r' B r] are linear in both variances.
    """
    n = len(residual)
    size = np.bincount(of_row, minlength=G)
    Q = np.linalg.qr(slope)[0]
    QZ = np.zeros((G, Q.shape[1]))
    np.add.at(QZ, of_row, Q)
    QBQ = (QZ / size[:, None]).T @ QZ
    spread_QZ = float(np.sum((QZ @ (np.eye(Q.shape[1]) - QBQ)) * QZ))  # |(1 - B) Q Q'Z|^2
    between = float(np.sum(np.bincount(of_row, residual, G) ** 2 / size))
    squares = np.array([float(np.sum(residual**2)) - between, between])
    expected = np.array(
        [
            [n - G - Q.shape[1] + np.trace(QBQ), spread_QZ],
            [G - np.trace(QBQ), n - 2 * np.sum(QZ**2) + np.sum((QZ @ QBQ) * QZ)],
        ]
    )
    variances = np.linalg.lstsq(expected, squares, rcond=None)[0]
    if variances[1] < 0:  # no trunk differs by more than its rows
        variances = np.array([squares.sum() / max(expected[:, 0].sum(), 1.0), 0.0])
    own, common = np.sqrt(np.maximum(variances, 0.0))
    return float(own), float(common), max(float(G - np.trace(QBQ)), 1.0)


def drawn_within(stratum: NDArray[np.int64], generator: np.random.Generator, n: int) -> Array:
    """(n, members): how often each member is drawn, G - 1 draws from its stratum of G, times G / (G - 1)."""
    drawn = np.ones((n, len(stratum)))
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        size = len(members)
        if size > 1:
            times = generator.multinomial(size - 1, np.full(size, 1 / size), size=n)
            drawn[:, members] = times * size / (size - 1)
    return drawn
