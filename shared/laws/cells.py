"""Rows with the same inputs form one cell: the seeds of one experiment, fitted as their mean.

For a fixed prediction the sum of squares over a cell's rows is that of their mean plus a constant, so the mean loses
nothing; it keeps a size with three seeds from counting three times where the law itself is what is off.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.laws.law import Array, Columns, Law
from shared.laws.noise import SeedNoise

# Tables keep six significant digits, so that no value is known to better than half a unit of the sixth.
ROUNDING = 5e-7


@dataclass(frozen=True)
class Cells:
    """n cells of m rows. `cv` is the seeds' standard deviation over delta, of one seed."""

    columns: Columns  # each input of the law, (n,)
    target: Array  # (n,) mean over the cell's rows, nats per token
    error: Array  # (n,) root mean square of the rows' standard errors over the validation sequences
    rows: NDArray[np.int64]  # (n,) rows in the cell
    cv: Array  # (n,)
    usual: Array  # (n,) median |target| over the cells of the same format
    row_cell: NDArray[np.int64]  # (m,) the cell of each row
    row_trunk: NDArray[np.int64]  # (m,) index into `trunks`
    row_target: Array  # (m,)
    trunks: tuple[str, ...]
    trunk_stratum: NDArray[np.int64]  # (trunks,)

    def only(self, some: NDArray[np.int64]) -> "Cells":
        """The cells `some` by index, without the rows behind them: enough to fit, not to resample."""
        return replace(
            self,
            columns={name: column[some] for name, column in self.columns.items()},
            **{name: getattr(self, name)[some] for name in ("target", "error", "rows", "cv", "usual")},
            **{name: getattr(self, name)[:0] for name in ("row_cell", "row_trunk", "row_target")},
        )

    def seed_sd(self, level: Array) -> Array:
        """(n,) standard deviation over seeds, of one seed, where delta is about `level`.

        Not less than at the format's usual delta: what seeds do to an 8-bit delta does not vanish where a law that
        falls too fast predicts nothing.
        """
        return self.cv * np.maximum(level, self.usual)

    def measured_sd(self, level: Array) -> Array:
        """(n,) standard deviation of a cell's mean where delta is about `level`: validation sequences and seeds.

        The sequences are the same for every seed, so their error does not shrink with the number of rows.
        """
        return np.sqrt(self.error**2 + self.seed_sd(level) ** 2 / self.rows + (ROUNDING * level) ** 2)


def gather(law: Law, table: pd.DataFrame, noise: SeedNoise, clusters: str, strata: str) -> Cells:
    """The cells of a checked table, sorted by the law's inputs. Without a column `clusters` each row is its own."""
    inputs = list(law.inputs)
    ordered = table.sort_values([*inputs, *([clusters] if clusters in table else [])], kind="stable")
    ordered = ordered.reset_index(drop=True)
    row_cell = ordered.groupby(inputs, sort=True).ngroup().to_numpy()
    n = int(row_cell.max()) + 1
    rows = np.bincount(row_cell, minlength=n)
    first = np.unique(row_cell, return_index=True)[1]
    target = ordered[law.target].to_numpy(float)
    error = ordered[f"{law.target}_se"].to_numpy(float) if f"{law.target}_se" in ordered else np.zeros(len(ordered))
    names = ordered[clusters].astype(str) if clusters in ordered else ordered.index.astype(str).to_series()
    row_trunk, trunks = pd.factorize(names.to_numpy(), sort=True)
    stratum = pd.factorize(ordered[strata].to_numpy(), sort=True)[0] if strata in ordered else np.zeros(len(ordered))
    trunk_stratum = np.zeros(len(trunks), dtype=np.int64)
    trunk_stratum[row_trunk] = stratum
    mean = np.bincount(row_cell, target, n) / rows
    kinds = ordered[noise.by].to_numpy()[first] if noise.by in ordered else np.arange(n)
    return Cells(
        columns={name: ordered[name].to_numpy(float)[first] for name in inputs},
        target=mean,
        error=np.sqrt(np.bincount(row_cell, error**2, n) / rows),
        rows=rows,
        cv=np.bincount(row_cell, noise.of(ordered), n) / rows,
        usual=pd.Series(np.abs(mean)).groupby(kinds).transform("median").to_numpy(),
        row_cell=row_cell,
        row_trunk=row_trunk,
        row_target=target,
        trunks=tuple(map(str, trunks)),
        trunk_stratum=trunk_stratum,
    )
