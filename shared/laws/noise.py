"""What another seed would change, estimated from cells that were trained with several."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from shared.laws.law import Array


@dataclass(frozen=True)
class SeedNoise:
    """The standard deviation over seeds as a share of delta, for each value of column `by`.

    A share, because deltas of one format grow five-fold along D and differ between group sizes, and their spread with
    them. `shared` is the part of its variance that all cells of one trunk have in common (an intraclass correlation).
    """

    cv: dict[str, float] = field(default_factory=dict)
    shared: float = 0.0
    cells: int = 0  # replicated cells behind the estimate
    dof: int = 0  # replicated trunks less their strata: how often a trunk's common part has been seen
    by: str = "format"

    @property
    def note(self) -> str:
        if not self.cells:
            return "no cell has two seeds: seed noise is taken as zero and intervals are too narrow by as much"
        return f"seed noise from {self.cells} cells with several seeds"

    def of(self, table: pd.DataFrame) -> Array:
        """(rows,) of a table. A value of `by` that was never replicated gets the root mean square of the others."""
        if not self.cv:
            return np.zeros(len(table))
        typical = float(np.sqrt(np.mean(np.square(list(self.cv.values())))))
        if self.by not in table:
            return np.full(len(table), typical)
        return table[self.by].map(lambda value: self.cv.get(str(value), typical)).to_numpy(float)


NO_NOISE = SeedNoise()


def unseeded(clusters: str) -> str:
    """What to know of a table without the column that says which rows share a seed."""
    return (
        f"no column '{clusters}' says which rows share a trained model: "
        "seed noise is taken as zero and intervals are too narrow by as much"
    )


def seed_noise(
    table: pd.DataFrame,
    cell: list[str],
    *,
    target: str = "delta",
    by: str = "format",
    clusters: str = "trunk_id",
    strata: str = "N",
) -> SeedNoise:
    """Pool the scatter of `target` within cells (rows equal in the columns `cell`, of different trunks).

    cv^2 = sum of squares within cells / sum over cells of (rows - 1) (mean^2 - error^2), for each value of `by`. The
    validation error is taken off the mean, where it adds to small deltas, but not off the scatter: all seeds share the
    sequences, so most of it cancels within a cell, and what does not makes the estimate larger, never smaller.

    The shared part is the mean product of two deviations of one trunk, each over the standard deviation of its cell.
    """
    groups = table.groupby(cell, sort=True)[target]
    size, mean, spread = groups.transform("size"), groups.transform("mean"), groups.transform("std")
    kept = table[size > 1]
    if kept.empty:
        return SeedNoise(by=by)
    size, mean, spread = (values[kept.index].to_numpy(float) for values in (size, mean, spread))
    off = kept[target].to_numpy(float) - mean
    error = kept[f"{target}_se"].to_numpy(float) if f"{target}_se" in kept else np.zeros(len(kept))
    level = (size - 1) / size * np.maximum(mean**2 - error**2, 0)
    kinds = kept[by].astype(str).to_numpy() if by in kept else np.full(len(kept), "")
    cv: dict[str, float] = {}
    for kind in sorted(set(kinds)):
        of_kind = kinds == kind
        if np.sum(level[of_kind]) > 0:
            cv[kind] = float(np.sqrt(np.sum(off[of_kind] ** 2) / np.sum(level[of_kind])))
    unit = np.divide(off, spread, out=np.zeros_like(off), where=spread > 0)
    trunk = pd.factorize(kept[clusters].to_numpy())[0]
    sums, squares, rows = np.bincount(trunk, unit), np.bincount(trunk, unit**2), np.bincount(trunk)
    pairs = float(np.sum(rows * (rows - 1)))
    mean_square = float(np.mean(unit**2))
    products = float(np.sum(sums**2 - squares))
    shared = float(np.clip(products / pairs / mean_square, 0, 1)) if pairs and mean_square else 0.0
    dof = max(0, len(rows) - (kept[strata].nunique() if strata in kept else 1))
    return SeedNoise(cv=cv, shared=shared, cells=int(kept.groupby(cell).ngroups), dof=dof, by=by)
