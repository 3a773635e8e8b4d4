"""The fit of a table by a recipe: every row counts the same, a residual costs what the recipe says."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.laws.bootstrap import Clusters, resample_rows
from shared.laws.law import Array, Columns, Law
from shared.laws.recipes import Recipe, starting_points
from shared.laws.result import Residual
from shared.laws.solve import Misfit, Solution, solve

# Starts are first solved on a sample of this many rows (or 8 for each parameter), then on all, if there are twice as
# many: far from the optimum a few rows show the way as well. There the corner of Huber's cost is `WIDER` times as far,
# since a cost with hardly any curvature is slow to descend.
SCREEN, WIDER, SCREENED = 64, 10.0, 1e-4
# More rows than `LARGE`: starts see a sample of `SAMPLE` rows, the best one all rows, and resamples are one Newton
# step from it, of sums over `BLOCKS` blocks of rows.
LARGE, SAMPLE, BLOCKS = 20_000, 5_000, 2_000
NEGLIGIBLE = 1e-12  # of the weighted squares of the data: no cost
MOST_SHOWN = 5_000  # residuals kept in a result
MOST_SIZES, PARTS = 32, 8  # more values of N than that are no sizes: they are put into so many parts


@dataclass(frozen=True)
class Solved:
    """What both ways of fitting hand to `fit.fit`. `noise_cost`: the cost that one degree of freedom takes, over 1/2
    (the variance of a residual, for squares without weights)."""

    columns: Columns
    target: Array
    weight: Array
    misfit: Misfit
    of_row: NDArray[np.int64]  # which of these rows each row of the table became
    theta: Array
    cost: float
    converged: bool
    start_costs: Array
    share: float
    draws: Array
    n_boot: int
    loo: Array
    noise_cost: float
    resampling: str
    notes: tuple[str, ...]
    residuals: tuple[Residual, ...]


def fit_rows(
    law: Law,
    table: pd.DataFrame,
    recipe: Recipe,
    n_starts: int,
    n_boot: int,
    generator: np.random.Generator,
    clusters: str,
    strata: str,
) -> Solved:
    """Starts, resamples and leave-one-size-out fits by `recipe`; see `fit.fit`."""
    misfit = recipe.misfit
    columns = {name: table[name].to_numpy(float) for name in law.inputs}
    target = table[law.target].to_numpy(float)
    n = len(target)
    large = n > LARGE
    some = np.sort(generator.choice(n, SAMPLE, replace=False)) if large else np.arange(n)
    seen = {name: column[some] for name, column in columns.items()}
    starts = starting_points(recipe, law, generator, n_starts, seen, target[some], np.zeros(len(some)))
    notes = []
    if large:
        notes.append(
            f"{n} rows: starts were solved on a sample of {SAMPLE} (their costs are its), the best on all rows"
        )
    lacking = [name for name, _ in recipe.grid if name not in law.parameters]
    if lacking:
        notes.append(f"{law.name} has no {', '.join(lacking)} for the grid of {recipe.name}: {n_starts} random starts")
    solved = search(law, seen, target[some], misfit, starts, generator)
    best = solved.theta[np.argmin(solved.cost)]
    ones = np.ones(n)
    final = solve(law, columns, best[None], target, ones, misfit=misfit)
    theta, cost = final.theta[0], float(final.cost[0])
    reference = float(np.min(solved.cost)) if large else min(cost, float(np.min(solved.cost)))
    size = float(np.sum(misfit.scaled(target[some]) ** 2))

    free = int(np.sum(law.bounds[:, 1] > law.bounds[:, 0]))
    prediction = law.predict(theta, columns)
    residual = misfit.residual(target, prediction)
    spread = float(np.sqrt(np.sum(residual**2) / max(n - free, 1)))
    groups = Clusters.of(table, clusters, strata)
    slope = law.gradient(theta, columns) / (prediction[:, None] if misfit.log else 1.0)
    slope = slope[:, (theta > law.bounds[:, 0]) & (theta < law.bounds[:, 1])]
    if large:
        draws, resampling = _one_step(law, misfit, theta, residual, slope, groups, n_boot, generator)
        notes.append(f"resamples are one Newton step from the fit, over {resampling}")
        loo = np.zeros((0, len(theta)))
        notes.append("no leave-one-size-out fits and no profile intervals with so many rows")
    else:
        drawn = resample_rows(law, table, groups, generator, n_boot, misfit, prediction, residual, slope)
        resampling = drawn.about
        left_out = leave_one_out(columns, strata)
        again = solve(
            law,
            columns,
            np.tile(theta, (n_boot + len(left_out), 1)),
            np.concatenate([np.broadcast_to(drawn.target, (n_boot, n)), np.broadcast_to(target, left_out.shape)]),
            np.concatenate([np.broadcast_to(drawn.weight, (n_boot, n)), left_out]),
            misfit=misfit,
        )
        draws = again.theta[:n_boot][again.converged[:n_boot]]
        loo = again.theta[n_boot:][again.converged[n_boot:]]
    return Solved(
        columns=columns,
        target=target,
        weight=ones,
        misfit=misfit,
        of_row=np.arange(n),
        theta=theta,
        cost=cost,
        converged=bool(final.converged[0]),
        start_costs=solved.cost,
        share=near_best(solved.cost, reference, size),
        draws=draws,
        n_boot=n_boot,
        loo=loo,
        noise_cost=noise_cost(misfit, residual, free),
        resampling=resampling,
        notes=tuple(notes),
        residuals=_residuals(columns, target, prediction, spread, misfit),
    )


def levels(column: Array, most: int = MOST_SIZES) -> NDArray[np.int64]:
    """(n,) the level of each row: its distinct value, or one of eight parts of equal size where there are more than
    `most`."""
    values, level = np.unique(column, return_inverse=True)
    if len(values) <= most:
        return level
    edges = np.unique(np.quantile(column, np.arange(1, PARTS) / PARTS))
    return np.searchsorted(edges, column, side="left")


def leave_one_out(columns: Columns, strata: str) -> Array:
    """(sizes, n) of 0 and 1: each level of the input `strata` left out in turn, where at least two remain."""
    n = len(next(iter(columns.values())))
    sizes = levels(columns.get(strata, np.zeros(n)))
    distinct = np.unique(sizes)
    if len(distinct) < 3:
        return np.zeros((0, n))
    return (sizes[None, :] != distinct[:, None]).astype(float)


def near_best(costs: Array, lowest: float, size: float) -> float:
    """The share of starts within 1 % of the lowest cost; `size` is the weighted sum of squares of the data."""
    lowest = min(lowest, float(np.min(costs)))
    return float(np.mean(costs <= 1.01 * lowest + NEGLIGIBLE * size))


def noise_cost(misfit: Misfit, residual: Array, free: int) -> float:
    """What a free parameter takes off the sum of costs by chance, times two: the variance of a residual for squares,
    mean(pull^2) / mean(stiffness) for Huber's cost (Schrader and Hettmansperger 1980), over n - `free`."""
    n = len(residual)
    stiffness = 1.0 if misfit.huber is None else float(np.mean(np.abs(residual) <= misfit.huber))
    # With no residual inside the corner the cost has no curvature to tell; one row's worth is the least it can be.
    return float(np.sum(misfit.pull(residual) ** 2) / max(n - free, 1) / max(stiffness, 1 / n))


def search(
    law: Law, columns: Columns, target: Array, misfit: Misfit, starts: Array, generator: np.random.Generator
) -> Solution:
    """Every start on all rows, after a look at a sample of them."""
    n, few = len(target), max(SCREEN, 8 * len(law.parameters))
    if n >= 2 * few and len(starts) > 1:
        look = np.sort(generator.choice(n, few, replace=False))
        wide = Misfit(misfit.log, None if misfit.huber is None else WIDER * misfit.huber)
        seen = {name: column[look] for name, column in columns.items()}
        starts = solve(law, seen, starts, target[look], np.ones(few), misfit=wide, stationary=SCREENED).theta
    return solve(law, columns, starts, target, np.ones(n), misfit=misfit)


def _one_step(
    law: Law,
    misfit: Misfit,
    theta: Array,
    residual: Array,
    slope: Array,
    groups: Clusters,
    n_boot: int,
    generator: np.random.Generator,
) -> tuple[Array, str]:
    """Draws (n_boot, P): theta plus the Newton step of each resample, whose clusters (or blocks of rows) are weighed
    by how often they were drawn. Exact to first order in 1 / sqrt(n). `slope` (n, free) is the residuals' gain."""
    stiffness = np.ones(len(residual)) if misfit.huber is None else (np.abs(residual) <= misfit.huber).astype(float)
    free = (theta > law.bounds[:, 0]) & (theta < law.bounds[:, 1])
    normal = (slope * stiffness[:, None]).T @ slope
    blocks: NDArray[np.int64]
    if groups.single:
        blocks, about = generator.integers(0, BLOCKS, len(residual)), f"{BLOCKS} random blocks of rows"
    else:
        blocks, about = groups.of_row, f"{len(groups.stratum)} clusters"
    pull = misfit.pull(residual)
    n_blocks = int(blocks.max()) + 1
    scores = np.stack([np.bincount(blocks, pull * column, n_blocks) for column in slope.T], axis=-1)
    counts = generator.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_boot) - 1.0
    draws = np.tile(theta, (n_boot, 1))
    draws[:, free] += np.linalg.lstsq(normal, (counts @ scores).T, rcond=None)[0].T
    return np.clip(draws, *law.bounds.T), about


def _residuals(
    columns: Columns, target: Array, prediction: Array, spread: float, misfit: Misfit
) -> tuple[Residual, ...]:
    shown = np.unique(np.linspace(0, len(target) - 1, min(len(target), MOST_SHOWN)).astype(int))
    return tuple(
        Residual(
            inputs={name: float(column[i]) for name, column in columns.items()},
            rows=1,
            target=float(target[i]),
            predicted=float(prediction[i]),
            sigma=spread * abs(float(prediction[i])) if misfit.log else spread,
        )
        for i in shown
    )
