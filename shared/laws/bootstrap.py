"""Resampled tables: what the cells might have been with other seeds, other validation text and another misfit."""

import numpy as np

from shared.laws.cells import Cells
from shared.laws.law import Array
from shared.laws.noise import SeedNoise


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
        total = np.zeros((len(cells.trunks), len(cells.target)))
        rows = np.zeros_like(total)
        np.add.at(total, (cells.row_trunk, cells.row_cell), cells.row_target)
        np.add.at(rows, (cells.row_trunk, cells.row_cell), 1.0)
        drawn = counts @ rows
        mean = np.divide(counts @ total, drawn, out=np.zeros_like(drawn), where=drawn > 0)
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
