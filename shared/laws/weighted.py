"""The fit of deltas: cells weighted by validation error, seed noise and the law's own lack of fit."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from shared.laws.bootstrap import resample, resampled_scores
from shared.laws.cells import Cells, gather
from shared.laws.law import Array, Law
from shared.laws.noise import SeedNoise
from shared.laws.result import Residual
from shared.laws.rows import LARGE, MOST_SHOWN, SAMPLE, Solved, leave_one_out, near_best
from shared.laws.solve import SQUARES, solve

LARGEST_TAU = 3.0  # a law that is off by more describes nothing
FIRST_TAU = 0.3
MOST_ROUNDS = 200
STEPS_A_ROUND = 4  # the weights move again in the next round


@dataclass(frozen=True)
class Weighted:
    """What the weights of the fixed point say."""

    tau: float
    settled: bool
    chi2_per_dof: float
    seed_sd: float


def fit_weighted(
    law: Law,
    table: pd.DataFrame,
    noise: SeedNoise,
    n_starts: int,
    n_boot: int,
    generator: np.random.Generator,
    clusters: str,
    strata: str,
) -> tuple[Solved, Weighted]:
    """See `fit.fit`: cells, the fixed point of parameters and weights, resamples of trunks.

    Rows are averaged to cells (cells.py). The residual of a cell is (target - predicted) / sigma with

        sigma^2 = validation error^2 + seed_sd^2 / seeds + (tau * level)^2,    seed_sd = cv * max(level, usual).

    `level` is the size of the prediction and `usual` the format's median |target|. If level moved with the parameters
    during a minimisation, a law could lower its cost by predicting more, because that enlarges sigma: a bias upward
    that grows with tau. Taken from the data instead, low measurements would get high weights: a bias downward. So
    sigma is frozen while the parameters move; then level is set to the geometric mean of its old value and the new
    prediction, and tau to the value at which chi^2 equals the degrees of freedom (zero when it is below them
    already), until nothing changes. At the fixed point the estimating equation, sum (target - predicted) / sigma^2 *
    gradient = 0, has mean zero whatever tau is. Negative targets enter as they are; no logarithm of data is taken
    except to choose starting points.

    Resamples (bootstrap.py) and leave-one-size-out fits keep the sigma of the full fit and start from its solution;
    they are solved together with the last round of starts, as one batch. A table of more than `rows.LARGE` rows is
    approximated, see `_fit_many`.
    """
    cells = gather(law, table, noise, clusters, strata)
    if len(table) > LARGE:
        return _fit_many(law, table, cells, noise, n_starts, n_boot, generator, strata)
    starts = law.starts(generator, n_starts, cells.columns, cells.target, cells.error)
    best, level, tau, settled = _settle(law, cells, starts)
    weight = 1 / _variance(cells, level, tau)

    targets, present = resample(cells, generator, n_boot, level, noise, tau)
    left_out = leave_one_out(cells.columns, strata)
    batch_theta = np.concatenate([starts, np.tile(best, (n_boot + len(left_out), 1))])
    full = np.broadcast_to(cells.target, (n_starts, len(level)))
    again = np.broadcast_to(cells.target, left_out.shape)
    batch_target = np.concatenate([full, targets, again])
    batch_weight = weight * np.concatenate([np.ones_like(full), present, left_out])
    solved = solve(law, cells.columns, batch_theta, batch_target, batch_weight)
    final = solve(law, cells.columns, best[None], cells.target, weight)

    start_costs = solved.cost[:n_starts]
    arrived = solved.converged[n_starts : n_starts + n_boot]
    found = Solved(
        columns=cells.columns,
        target=cells.target,
        weight=weight,
        misfit=SQUARES,
        of_row=table.groupby(list(law.inputs), sort=True).ngroup().to_numpy(),
        theta=best,
        cost=float(final.cost[0]),
        converged=bool(final.converged[0]),
        start_costs=start_costs,
        share=near_best(start_costs, float(final.cost[0]), float(np.sum(weight * cells.target**2))),
        draws=solved.theta[n_starts : n_starts + n_boot][arrived],
        n_boot=n_boot,
        loo=solved.theta[n_starts + n_boot :][solved.converged[n_starts + n_boot :]],
        noise_cost=1.0,
        resampling="trunks, seeds, sequences and lack of fit",
        notes=(),
        residuals=_residuals(law, cells, best, level, tau),
    )
    return found, _said(law, cells, best, level, tau, settled)


def _fit_many(
    law: Law,
    table: pd.DataFrame,
    cells: Cells,
    noise: SeedNoise,
    n_starts: int,
    n_boot: int,
    generator: np.random.Generator,
    strata: str,
) -> tuple[Solved, Weighted]:
    """As `fit_weighted`, of so many rows that every start sees `SAMPLE` cells only, the best one is polished on all,
    and a resample is one Newton step from it (bootstrap.resampled_scores)."""
    n = len(cells.target)
    notes = [f"{len(table)} rows in {n} cells"]
    some = np.sort(generator.choice(n, SAMPLE, replace=False)) if n > SAMPLE else np.arange(n)
    seen = cells.only(some)
    starts = law.starts(generator, n_starts, seen.columns, seen.target, seen.error)
    best, level, tau, settled = _settle(law, seen, starts)
    weight = 1 / _variance(seen, level, tau)
    solved = solve(law, seen.columns, starts, seen.target, weight)
    share = near_best(solved.cost, float(np.min(solved.cost)), float(np.sum(weight * seen.target**2)))
    if n > SAMPLE:
        notes[0] += f": starts were solved on a sample of {SAMPLE} cells (their costs are its), the best on all"
        best, level, tau, settled = _polish(law, cells, best)
        weight = 1 / _variance(cells, level, tau)
    final = solve(law, cells.columns, best[None], cells.target, weight)
    best = final.theta[0]

    free = (best > law.bounds[:, 0]) & (best < law.bounds[:, 1])
    slope = law.gradient(best, cells.columns)[:, free]
    score = weight[:, None] * slope
    scores = resampled_scores(cells, score, generator, n_boot, level, noise, tau)
    draws = np.tile(best, (n_boot, 1))
    draws[:, free] += np.linalg.lstsq(score.T @ slope, scores.T, rcond=None)[0].T
    notes.append("resamples are one Newton step from the fit, with normal noise of the variance that resampling has")
    loo = np.zeros((0, len(best)))
    if n <= LARGE:
        left_out = leave_one_out(cells.columns, strata)
        again = solve(law, cells.columns, np.tile(best, (len(left_out), 1)), cells.target, weight * left_out)
        loo = again.theta[again.converged]
    else:
        notes.append("no leave-one-size-out fits and no profile intervals with so many cells")
    found = Solved(
        columns=cells.columns,
        target=cells.target,
        weight=weight,
        misfit=SQUARES,
        of_row=table.groupby(list(law.inputs), sort=True).ngroup().to_numpy(),
        theta=best,
        cost=float(final.cost[0]),
        converged=bool(final.converged[0]),
        start_costs=solved.cost,
        share=share,
        draws=np.clip(draws, *law.bounds.T),
        n_boot=n_boot,
        loo=loo,
        noise_cost=1.0,
        resampling="trunks, seeds, sequences and lack of fit, to first order",
        notes=tuple(notes),
        residuals=_residuals(law, cells, best, level, tau),
    )
    return found, _said(law, cells, best, level, tau, settled)


def _residuals(law: Law, cells: Cells, theta: Array, level: Array, tau: float) -> tuple[Residual, ...]:
    prediction, sigma = law.predict(theta, cells.columns), np.sqrt(_variance(cells, level, tau))
    shown = np.unique(np.linspace(0, len(level) - 1, min(len(level), MOST_SHOWN)).astype(int))
    return tuple(
        Residual(
            inputs={key: float(column[i]) for key, column in cells.columns.items()},
            rows=int(cells.rows[i]),
            target=float(cells.target[i]),
            predicted=float(prediction[i]),
            sigma=float(sigma[i]),
        )
        for i in shown
    )


def _said(law: Law, cells: Cells, theta: Array, level: Array, tau: float, settled: bool) -> Weighted:
    dof = len(level) - len(law.parameters)
    prediction = law.predict(theta, cells.columns)
    chi2 = float(np.sum((cells.target - prediction) ** 2 / _variance(cells, level, 0.0)))
    return Weighted(
        tau=tau,
        settled=settled,
        chi2_per_dof=chi2 / dof if dof else float("nan"),
        seed_sd=float(np.median(cells.seed_sd(level))),
    )


def _variance(cells: Cells, level: Array, tau: float) -> Array:
    return cells.measured_sd(level) ** 2 + (tau * level) ** 2


def _settle(law: Law, cells: Cells, starts: Array) -> tuple[Array, Array, float, bool]:
    """The fixed point of parameters, level and tau; and whether it was reached."""
    floor = 1e-3 * float(np.max(np.abs(cells.target))) if np.any(cells.target) else 1.0
    level = np.maximum(np.abs(cells.target), np.maximum(2 * cells.error, 1e-3 * floor))
    tau = FIRST_TAU
    first = solve(law, cells.columns, starts, cells.target, 1 / _variance(cells, level, tau))
    theta = first.theta[np.argmin(first.cost)]
    dof = len(level) - len(law.parameters)
    for _ in range(MOST_ROUNDS):
        prediction = np.abs(law.predict(theta, cells.columns))
        new_level = np.sqrt(level * np.maximum(prediction, np.finfo(float).tiny))
        new_tau = _lack_of_fit(cells, new_level, cells.target - law.predict(theta, cells.columns), dof)
        change = float(np.max(np.abs(new_level / level - 1))) + abs(new_tau - tau)
        level, tau = new_level, new_tau
        weight = 1 / _variance(cells, level, tau)
        step = solve(law, cells.columns, theta[None], cells.target, weight, most_steps=STEPS_A_ROUND)
        theta = step.theta[0]
        if change < 1e-7:
            return theta, level, tau, True
    return theta, level, tau, False


def _polish(law: Law, cells: Cells, theta: Array) -> tuple[Array, Array, float, bool]:
    """`_settle` from near its end, where the level may be the prediction itself: a few rounds, not dozens."""
    dof = len(cells.target) - len(law.parameters)
    tau, least = 0.0, 1e-9 * float(np.max(np.abs(cells.target))) or 1.0
    level = np.full(len(cells.target), np.inf)
    for _ in range(MOST_ROUNDS):
        prediction = law.predict(theta, cells.columns)
        new_level = np.maximum(np.abs(prediction), least)
        new_tau = _lack_of_fit(cells, new_level, cells.target - prediction, dof)
        change = float(np.max(np.abs(new_level / level - 1))) + abs(new_tau - tau)
        level, tau = new_level, new_tau
        weight = 1 / _variance(cells, level, tau)
        theta = solve(law, cells.columns, theta[None], cells.target, weight, most_steps=STEPS_A_ROUND).theta[0]
        if change < 1e-7:
            return theta, level, tau, True
    return theta, level, tau, False


def _lack_of_fit(cells: Cells, level: Array, residual: Array, dof: int) -> float:
    """tau at which chi^2 equals the degrees of freedom, by bisection; zero when chi^2 is below them without it."""

    square, measured = residual**2, cells.measured_sd(level) ** 2

    def excess(tau: float) -> float:
        return float(np.sum(square / (measured + (tau * level) ** 2))) - dof

    if dof <= 0 or excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, LARGEST_TAU
    if excess(high) > 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
