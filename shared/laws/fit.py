"""Fit a law to a table: values, intervals, and everything that says how far to trust them."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from shared.errors import BitlawError
from shared.laws.bootstrap import resample
from shared.laws.cells import Cells, gather
from shared.laws.law import Array, Columns, Law
from shared.laws.noise import NO_NOISE, SeedNoise
from shared.laws.solve import condition_number, solve
from shared.laws.tables import check

Status = Literal["CONVERGED", "BOUND_HIT", "WEAKLY_IDENTIFIED", "FAILED"]

CONDITION_LIMIT = 1e8
LARGEST_TAU = 3.0  # a law that is off by more describes nothing
FIRST_TAU = 0.3
MOST_ROUNDS = 200
STEPS_A_ROUND = 4  # the weights move again in the next round
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A value, its percentile 95 % interval, and its range when each size is left out in turn (None: under three)."""

    value: float
    low: float
    high: float
    loo_low: float | None = None
    loo_high: float | None = None


@dataclass(frozen=True)
class Residual:
    """One cell: its inputs, the mean of its rows, the law's value and the standard deviation that weighted it."""

    inputs: dict[str, float]
    rows: int
    target: float
    predicted: float
    sigma: float


@dataclass(frozen=True)
class Fit:
    """The result of `fit`. `theta` (P,) and `draws` (resamples, P) are internal; `parameters` are the paper's."""

    law: str
    status: Status
    reasons: tuple[str, ...]  # why the status is not CONVERGED, and what to know about the noise
    parameters: dict[str, Estimate]
    theta: Array
    draws: Array
    failed_draws: int
    start_costs: Array
    share_of_starts_within_1pct: float
    condition_number: float
    bound_hits: tuple[str, ...]
    chi2_per_dof: float  # against measurement and seed noise alone, tau = 0
    tau: float
    noise: SeedNoise
    seed_sd: float  # median over cells of one seed's standard deviation, nats per token
    residuals: tuple[Residual, ...]
    rows: int
    domain: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, all draws included."""
        arrays = {name: getattr(self, name).tolist() for name in ("theta", "draws", "start_costs")}
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in arrays}
        plain["parameters"] = {name: asdict(value) for name, value in self.parameters.items()}
        plain["residuals"] = [asdict(value) for value in self.residuals]
        plain["noise"] = asdict(self.noise)
        return {**plain, **arrays}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Fit":
        """Raises BitlawError when `values` are not those of `to_json`."""
        try:
            parsed = dict(values)
            for name in ("theta", "draws", "start_costs"):
                parsed[name] = np.array(values[name], dtype=float)
            parsed["parameters"] = {name: Estimate(**value) for name, value in values["parameters"].items()}
            parsed["residuals"] = tuple(Residual(**value) for value in values["residuals"])
            parsed["noise"] = SeedNoise(**values["noise"])
            parsed["domain"] = {name: (low, high) for name, (low, high) in values["domain"].items()}
            parsed["reasons"], parsed["bound_hits"] = tuple(values["reasons"]), tuple(values["bound_hits"])
            return cls(**parsed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BitlawError(f"these values are not a saved fit ({error!r}); save one with Fit.to_json") from error


def fit(
    law: Law,
    table: pd.DataFrame,
    *,
    noise: SeedNoise = NO_NOISE,
    n_starts: int = 64,
    n_boot: int = 1000,
    seed: int = 0,
    condition_limit: float = CONDITION_LIMIT,
    clusters: str = "trunk_id",
    strata: str = "N",
    name: str = "table",
) -> Fit:
    """Least squares of `law` on `table`, which holds the law's inputs (raw), its target and `<target>_se`, and
    where known the columns `clusters`, `strata` and `noise.by`.

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
    they are solved together with the last round of starts, as one batch. WEAKLY_IDENTIFIED means that the condition
    number exceeds `condition_limit`, or that an input has two values only: its exponent then passes through two
    points whatever the law, and nothing in the data tests it.

    Raises BitlawError for a table that cannot be fitted (tables.check); anything else is said by the status.
    """
    check(law, table, name)
    cells = gather(law, table, noise, clusters, strata)
    generator = np.random.default_rng(seed)
    theta_starts = law.starts(generator, n_starts, cells.columns, cells.target, cells.error)
    best, level, tau, settled = _settle(law, cells, theta_starts)
    weight = 1 / _variance(cells, level, tau)

    targets, present = resample(cells, generator, n_boot, level, noise, tau)
    left_out = _leave_one_out(cells, strata)
    batch_theta = np.concatenate([theta_starts, np.tile(best, (n_boot + len(left_out), 1))])
    full = np.broadcast_to(cells.target, (n_starts, len(level)))
    again = np.broadcast_to(cells.target, left_out.shape)
    batch_target = np.concatenate([full, targets, again])
    batch_weight = weight * np.concatenate([np.ones_like(full), present, left_out])
    solved = solve(law, cells.columns, batch_theta, batch_target, batch_weight)

    start_costs = solved.cost[:n_starts]
    final = solve(law, cells.columns, best[None], cells.target, weight)
    lowest = min(float(final.cost[0]), float(np.min(start_costs)))
    negligible = 1e-12 * float(np.sum(weight * cells.target**2))
    share = float(np.mean(start_costs <= 1.01 * lowest + negligible))
    arrived = solved.converged[n_starts : n_starts + n_boot]
    draws = solved.theta[n_starts : n_starts + n_boot][arrived]
    loo = solved.theta[n_starts + n_boot :][solved.converged[n_starts + n_boot :]]

    condition, weakest = condition_number(law, cells.columns, best, weight)
    hits = tuple(_bound_hits(law, best))
    ok = bool(final.converged[0]) and len(draws) >= 0.9 * n_boot and settled and tau < LARGEST_TAU
    weak = _weaknesses(law, cells, condition, weakest, condition_limit)
    status: Status = "FAILED" if not ok else "BOUND_HIT" if hits else "WEAKLY_IDENTIFIED" if weak else "CONVERGED"
    reasons = list(weak)
    if not final.converged[0]:
        reasons.append("the best start did not reach a stationary point")
    if not settled:
        reasons.append(f"the weights had not settled after {MOST_ROUNDS} rounds")
    if len(draws) < n_boot:
        reasons.append(
            f"{n_boot - len(draws)} of {n_boot} resamples did not converge and are left out of the intervals"
        )
    if tau >= LARGEST_TAU:
        reasons.append(f"the law misses these cells by over {LARGEST_TAU:.0%}")
    if hits:
        reasons.append(f"at a bound: {', '.join(hits)}")
    if f"{law.target}_se" not in table:
        reasons.append(f"no column '{law.target}_se': measurement errors are taken as zero")
    reasons.append(noise.note)
    prediction = law.predict(best, cells.columns)
    dof = len(level) - len(law.parameters)
    chi2 = float(np.sum((cells.target - prediction) ** 2 / _variance(cells, level, 0.0)))
    sigma = np.sqrt(_variance(cells, level, tau))
    return Fit(
        law=law.name,
        status=status,
        reasons=tuple(reasons),
        parameters=_estimates(law, best, draws, loo),
        theta=best,
        draws=draws,
        failed_draws=n_boot - len(draws),
        start_costs=start_costs,
        share_of_starts_within_1pct=share,
        condition_number=condition,
        bound_hits=hits,
        chi2_per_dof=chi2 / dof if dof else float("nan"),
        tau=tau,
        noise=noise,
        seed_sd=float(np.median(cells.seed_sd(level))),
        residuals=tuple(
            Residual(
                inputs={key: float(column[i]) for key, column in cells.columns.items()},
                rows=int(cells.rows[i]),
                target=float(cells.target[i]),
                predicted=float(prediction[i]),
                sigma=float(sigma[i]),
            )
            for i in range(len(level))
        ),
        rows=len(table),
        domain={key: (float(column.min()), float(column.max())) for key, column in cells.columns.items()},
    )


def interval(values: Array) -> tuple[Array, Array]:
    """The percentile 95 % interval over the first axis."""
    if len(values) == 0:
        empty = np.full(np.shape(values)[1:], np.nan)
        return empty, empty
    low, high = np.quantile(values, INTERVAL, axis=0)
    return low, high


def predicted(law: Law, result: Fit, columns: Columns) -> tuple[Array, Array, Array]:
    """The fitted law at raw inputs (n,): value, low and high (n,) of the law itself, without measurement noise."""
    low, high = interval(law.predict(result.draws, columns))
    return law.predict(result.theta, columns), low, high


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


def _lack_of_fit(cells: Cells, level: Array, residual: Array, dof: int) -> float:
    """tau at which chi^2 equals the degrees of freedom, by bisection; zero when chi^2 is below them without it."""

    def excess(tau: float) -> float:
        return float(np.sum(residual**2 / _variance(cells, level, tau))) - dof

    if dof <= 0 or excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, LARGEST_TAU
    if excess(high) > 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def _leave_one_out(cells: Cells, strata: str) -> Array:
    """(sizes, n) of 0 and 1: each size left out in turn, where at least two remain."""
    sizes = cells.columns.get(strata, np.zeros(len(cells.target)))
    distinct = np.unique(sizes)
    if len(distinct) < 3:
        return np.zeros((0, len(cells.target)))
    return (sizes[None, :] != distinct[:, None]).astype(float)


def _bound_hits(law: Law, theta: Array) -> list[str]:
    lower, upper = law.bounds.T
    near = 1e-6 * (upper - lower)
    at_bound = (theta <= lower + near) | (theta >= upper - near)
    return [name for name, hit in zip(law.parameters, at_bound, strict=True) if hit]


def _weaknesses(law: Law, cells: Cells, condition: float, weakest: Array, limit: float) -> list[str]:
    reasons = [
        f"{key} has two values only, so its exponent passes through two points and is untested"
        for key, column in cells.columns.items()
        if len(np.unique(column)) == 2
    ]
    if not condition <= limit:
        names = [name for name, part in zip(law.parameters, weakest, strict=True) if abs(part) > 0.3]
        reasons.append(f"{', '.join(names)} cannot be told apart by these inputs (condition number {condition:.1e})")
    return reasons


def _estimates(law: Law, theta: Array, draws: Array, loo: Array) -> dict[str, Estimate]:
    value = law.to_raw(theta)
    low, high = interval(law.to_raw(draws))
    estimates = {
        name: Estimate(float(value[i]), float(low[i]), float(high[i])) for i, name in enumerate(law.parameters)
    }
    if len(loo):
        raw = law.to_raw(loo)
        estimates = {
            name: replace(estimate, loo_low=float(raw[:, i].min()), loo_high=float(raw[:, i].max()))
            for i, (name, estimate) in enumerate(estimates.items())
        }
    return estimates
