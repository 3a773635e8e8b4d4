"""Fit a law to a table: values, intervals, and everything that says how far to trust them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from shared.errors import BitlawError, nearest
from shared.laws import recipes
from shared.laws.law import Array, Columns, Law
from shared.laws.noise import NO_NOISE, SeedNoise, unseeded
from shared.laws.profile import profiles
from shared.laws.recipes import Recipe
from shared.laws.result import Estimate, Fit, Residual, Status, estimates, interval, outside, predicted
from shared.laws.rows import LARGE, Solved, fit_rows
from shared.laws.solve import condition_number
from shared.laws.tables import check, collinear, numbers, observations
from shared.laws.weighted import LARGEST_TAU, MOST_ROUNDS, Weighted, fit_weighted

CONDITION_LIMIT = 1e8
ON_CORNER = 1e-6  # of Huber's corner: that near it a residual is on it

__all__ = ["Estimate", "Fit", "Residual", "Status", "fit", "hold", "interval", "outside", "predicted"]


def fit(
    law: Law,
    table: pd.DataFrame,
    *,
    recipe: Recipe | str | None = None,
    noise: SeedNoise = NO_NOISE,
    n_starts: int = 64,
    n_boot: int = 1000,
    seed: int = 0,
    condition_limit: float = CONDITION_LIMIT,
    clusters: str = "trunk_id",
    strata: str = "N",
    name: str = "table",
    fixed: Mapping[str, float] | None = None,
    profile: bool = False,
) -> Fit:
    """Fit `law` to `table`, which holds the law's inputs (raw) and its target, and where known `<target>_se`, and the
    columns `clusters`, `strata` and `noise.by`.

    Without a `recipe` (recipes.py), losses are fitted by Huber's cost of their logarithm, row by row (rows.py), and
    deltas by squares weighted with their noise, cell by cell (weighted.py). `n_starts` starting points are solved
    (a recipe with a grid solves its grid), and the best one is the fit. `n_boot` resamples give the intervals: see
    bootstrap.py. `fixed` holds raw constants at a value. `profile` adds profile intervals.

    The status is FAILED when the best start has not arrived, a tenth of the resamples have not, or the law misses
    the data by over 300 %; else BOUND_HIT when a constant sits on a bound of the law; else WEAKLY_IDENTIFIED when the
    condition number exceeds `condition_limit`, inputs are collinear, or an input has two values only: its exponent
    then passes through two points whatever the law, and nothing in the data tests it.

    Raises BitlawError for a table that cannot be fitted (tables.check), an unknown recipe, and a constant that cannot
    be held; anything else is said by the status.

    >>> from shared.laws.chinchilla import LAW
    >>> grid = [(N, D) for N in (1e6, 4e6, 16e6, 64e6) for D in (1e8, 1e9, 1e10)]
    >>> table = pd.DataFrame(grid, columns=["N", "D"])
    >>> table["loss"] = 400 / table.N**0.35 + 2000 / table.D**0.37 + 1.8
    >>> found = fit(LAW, table, n_boot=20)
    >>> found.status, round(found.parameters["alpha"].value, 6)
    ('CONVERGED', 0.35)
    """
    law, chosen, table, solved, said = prepared(
        law,
        table,
        recipe=recipe,
        noise=noise,
        n_starts=n_starts,
        n_boot=n_boot,
        seed=seed,
        clusters=clusters,
        strata=strata,
        name=name,
        fixed=fixed,
    )
    theta, best = solved.theta, law.raw(solved.theta)

    counted = _counted(law, solved)
    condition, weakest = condition_number(law, solved.columns, theta, counted)
    hits = tuple(_bound_hits(law, theta))
    enough = len(solved.draws) >= 0.9 * solved.n_boot
    ok = solved.converged and enough and said.settled and said.tau < LARGEST_TAU
    weak = _weaknesses(law, solved.columns, theta, condition, weakest, condition_limit)
    if not condition <= condition_limit and np.sum(counted > 0) < 2 * len(theta):
        weak.append(
            f"only {np.sum(counted > 0)} of {len(counted)} residuals lie within Huber's corner, and the others hold no "
            "constant in its place; try the recipe least-squares-log"
        )
    status: Status = "FAILED" if not ok else "BOUND_HIT" if hits else "WEAKLY_IDENTIFIED" if weak else "CONVERGED"
    reasons = list(weak)
    if not solved.converged:
        reasons.append("the best start did not reach a stationary point")
    if not said.settled:
        reasons.append(f"the weights had not settled after {MOST_ROUNDS} rounds")
    if len(solved.draws) < solved.n_boot:
        missing = solved.n_boot - len(solved.draws)
        reasons.append(f"{missing} of {solved.n_boot} resamples did not converge and are left out of the intervals")
    if said.tau >= LARGEST_TAU:
        reasons.append(f"the law misses these cells by over {LARGEST_TAU:.0%}")
    if hits:
        reasons.append(f"at a bound: {', '.join(f'{name} = {best[name]:.4g}' for name in hits)}")
    if chosen.noise:
        if f"{law.target}_se" not in table:
            reasons.append(f"no column '{law.target}_se': measurement errors are taken as zero")
        reasons.append(noise.note if noise.cells or clusters in table else unseeded(clusters))
    reasons += [*solved.notes, *observations(law, table)]

    found = estimates(law, theta, solved.draws, solved.loo)
    # A search that has not arrived has no cost for others to rise from.
    if profile and solved.converged and len(solved.target) <= LARGE:
        free = int(np.sum(law.bounds[:, 1] > law.bounds[:, 0]))  # constants that `fixed` holds are not fitted
        dof = max(len(solved.target) - free, 1)
        rise = 0.5 * float(stats.t.ppf(0.975, dof)) ** 2 * solved.noise_cost
        ends = profiles(law, solved.columns, solved.target, solved.weight, solved.misfit, theta, solved.cost, rise)
        found = {
            key: replace(estimate, profile_low=low, profile_high=high)
            for (key, estimate), (low, high) in zip(found.items(), ends, strict=True)
        }
    residual = solved.misfit.residual(solved.target, law.predict(theta, solved.columns))
    return Fit(
        law=law.name,
        status=status,
        reasons=tuple(reasons),
        parameters=found,
        theta=theta,
        draws=solved.draws,
        failed_draws=solved.n_boot - len(solved.draws),
        start_costs=solved.start_costs,
        share_of_starts_within_1pct=solved.share,
        condition_number=condition,
        bound_hits=hits,
        chi2_per_dof=said.chi2_per_dof,
        tau=said.tau,
        noise=noise,
        seed_sd=said.seed_sd,
        residuals=solved.residuals,
        rows=len(table),
        domain={key: (float(column.min()), float(column.max())) for key, column in solved.columns.items()},
        recipe=chosen.name,
        objective=solved.cost,
        rms=float(np.sqrt(np.mean(residual**2))),
        fixed=dict(fixed or {}),
        groups=law.groups,
        resampling=solved.resampling,
    )


def prepared(
    law: Law,
    table: pd.DataFrame,
    *,
    recipe: Recipe | str | None,
    noise: SeedNoise,
    n_starts: int,
    n_boot: int,
    seed: int,
    clusters: str,
    strata: str,
    name: str,
    fixed: Mapping[str, float] | None,
) -> tuple[Law, Recipe, pd.DataFrame, Solved, Weighted]:
    """The checked table as numbers, and its solution by the recipe: what `fit` reports on and `compare` scores."""
    chosen = recipes.find(recipe) if isinstance(recipe, str) else recipe or recipes.default(law)
    law = hold(law, fixed or {})
    check(law, table, name, positive_target=chosen.misfit.log)
    table = numbers(law, table)
    generator = np.random.default_rng(seed)
    if chosen.noise:
        solved, said = fit_weighted(law, table, noise, n_starts, n_boot, generator, clusters, strata)
        return law, chosen, table, solved, said
    solved = fit_rows(law, table, chosen, n_starts, n_boot, generator, clusters, strata)
    return law, chosen, table, solved, Weighted(tau=0.0, settled=True, chi2_per_dof=float("nan"), seed_sd=0.0)


def hold(law: Law, constants: Mapping[str, float]) -> Law:
    """`law` with raw constants held at a value.

    Raises BitlawError for an unknown constant, a value outside the law's bounds, and one that is fitted together with
    another that is free (the factor A with its exponent alpha).
    """
    if not constants:
        return law
    for name in constants:
        if name not in law.parameters:
            raise BitlawError(f"{law.name} has no constant '{name}'{nearest(name, list(law.parameters))}")
    raw = law.to_raw(np.clip(np.full(len(law.parameters), 0.5), *law.bounds.T))
    at = [law.parameters.index(name) for name in constants]
    raw[at] = list(constants.values())
    with np.errstate(divide="ignore", invalid="ignore"):
        theta = law.from_raw(raw)
    bounds = law.bounds.copy()
    for k, name in zip(at, constants, strict=True):
        for other in range(len(raw)):
            moved = raw.copy()
            moved[other] *= 1.01
            if other not in at and abs(law.from_raw(moved)[k] - theta[k]) > 1e-9:
                raise BitlawError(
                    f"{name} cannot be held alone: it is fitted together with {law.parameters[other]}; hold both"
                )
        low, high = law.bounds[k]
        if not low <= theta[k] <= high:
            raise BitlawError(f"{name} = {constants[name]:g} is outside the bounds of {law.name}; choose another value")
        bounds[k] = theta[k]
    return replace(law, bounds=bounds)


def _counted(law: Law, solved: Solved) -> Array:
    """The weights of rows as the residual's scale sees them, for the condition number. Beyond Huber's corner the cost
    is a straight line: such a row has no curvature, and holds nothing in its place. (Nor does one on the corner, where
    a search along a flat bottom ends.)"""
    prediction = law.predict(solved.theta, solved.columns)
    weight = solved.weight / prediction**2 if solved.misfit.log else solved.weight
    if solved.misfit.huber is None:
        return weight
    residual = solved.misfit.residual(solved.target, prediction)
    return np.where(np.abs(residual) < (1 - ON_CORNER) * solved.misfit.huber, weight, 0.0)


def _bound_hits(law: Law, theta: Array) -> list[str]:
    lower, upper = law.bounds.T
    near = 1e-6 * (upper - lower)
    at_bound = ((theta <= lower + near) | (theta >= upper - near)) & (upper > lower)
    return [name for name, hit in zip(law.parameters, at_bound, strict=True) if hit]


def _weaknesses(law: Law, columns: Columns, theta: Array, condition: float, weakest: Array, limit: float) -> list[str]:
    reasons = [
        f"{key} has two values only, so its exponent passes through two points and is untested"
        for key, column in columns.items()
        if len(np.unique(column)) == 2 and key != law.grouped
    ]
    names = ", ".join(name for name, part in zip(law.parameters, weakest, strict=True) if abs(part) > 0.3)
    pair = collinear(columns)
    if pair:
        first, second, power = pair
        exponents = _exponents(law, columns, theta, (first, second))
        told = f"the exponents {', '.join(exponents)}" if exponents else names
        reasons.append(
            f"columns '{first}' and '{second}' move together in every row ({second} ~ {first}^{power:.3g}), "
            f"so that {told} cannot be told apart (condition number {condition:.1e})"
        )
    elif not condition <= limit:
        reasons.append(f"{names} cannot be told apart by these inputs (condition number {condition:.1e})")
    return reasons


def _exponents(law: Law, columns: Columns, theta: Array, inputs: tuple[str, ...]) -> list[str]:
    """The constants that are exponents of these inputs: over the slope of some other constant (the factor of their
    term), theirs is a straight line in the logarithm of the input, and not level."""
    found = set()
    n = len(next(iter(columns.values())))
    for name in inputs:
        log_x = np.linspace(np.log(columns[name].min()), np.log(columns[name].max()), 4)
        for row in {0, n // 2, n - 1}:  # a term may be absent at one of them
            at = {key: np.full(4, column[row]) for key, column in columns.items()} | {name: np.exp(log_x)}
            slopes = law.gradient(theta, at)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = slopes[:, :, None] / slopes[:, None, :]
                change, bend, size = np.diff(ratio, axis=0), np.diff(ratio, 2, axis=0), np.max(np.abs(ratio), axis=0)
            straight = np.all(np.abs(bend) < 1e-6 * size, axis=0) & np.all(np.abs(change) > 1e-3 * size, axis=0)
            found |= set(np.flatnonzero(straight.any(axis=1)))
    return [law.parameters[k] for k in sorted(found)]
