"""The cluster bootstrap: 1,000 resamples of trunks solved as one batch, against a loop of scipy's least squares.

Both minimise the same sum (Huber's cost of the log residual, each row as often as its trunk was drawn) from the same
fit, on one thread, in turns. The peer, with the analytic gradient, gets a share of the resamples, and its time is
scaled by it; the ends of the intervals are compared on that share.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from benchmarks.turns import compared, in_turns
from shared.laws.bootstrap import Clusters, resample_rows
from shared.laws.chinchilla import LAW
from shared.laws.law import Array
from shared.laws.recipes import find
from shared.laws.solve import Misfit, solve

ROUNDS, RESAMPLES, SHARE = 5, 1000, 20
TRUNKS, HORIZONS = 40, 6  # 240 rows, as many as Chinchilla's points
CONSTANTS = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
SEED_SD, ROW_SD = 3e-3, 1e-3


def trunk_table(trunks: int, horizons: int) -> pd.DataFrame:
    """Runs of Chinchilla's law: a trunk's horizons share part of their noise."""
    generator = np.random.default_rng(0)
    N = np.repeat(np.resize(np.geomspace(1e8, 1e10, 5), trunks), horizons)
    D = np.tile(np.geomspace(2e9, 2e11, horizons), trunks)
    trunk = np.repeat(np.arange(trunks), horizons)
    off = SEED_SD * generator.standard_normal(trunks)[trunk] + ROW_SD * generator.standard_normal(len(N))
    loss = LAW.predict(LAW.internal(CONSTANTS), {"N": N, "D": D}) * np.exp(off)
    return pd.DataFrame({"N": N, "D": D, "loss": loss, "trunk_id": trunk})


def peer(theta: Array, columns: dict[str, Array], target: Array, weight: Array, misfit: Misfit) -> Array:
    """The constants of one resample by `least_squares`: rows that were not drawn are left out, others repeated."""
    rows = np.repeat(np.arange(len(target)), np.round(weight / weight[weight > 0].min()).astype(int))
    seen = {name: column[rows] for name, column in columns.items()}
    goal = np.log(target[rows])

    def residual(one: Array) -> Array:
        return goal - np.log(LAW.predict(one, seen))

    def slope(one: Array) -> Array:
        return -LAW.gradient(one, seen) / LAW.predict(one, seen)[:, None]

    tight = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}
    return least_squares(residual, theta, slope, loss="huber", f_scale=misfit.huber, x_scale="jac", **tight).x


def race(table: pd.DataFrame, resamples: int, share: int, rounds: int) -> dict[str, Any]:
    """Seconds of both, and how far the ends of their intervals lie apart."""
    misfit = find("hoffmann-huber").misfit
    columns = {name: table[name].to_numpy(float) for name in LAW.inputs}
    target = table["loss"].to_numpy(float)
    start = LAW.internal(CONSTANTS)[None]
    theta = solve(LAW, columns, start, target, np.ones(len(target)), misfit=misfit).theta[0]
    prediction = LAW.predict(theta, columns)
    slope = LAW.gradient(theta, columns) / prediction[:, None]
    groups = Clusters.of(table, "trunk_id", "N")
    drawn = resample_rows(
        LAW, table, groups, np.random.default_rng(0), resamples, misfit, prediction, np.log(target / prediction), slope
    )
    starts = np.tile(theta, (resamples, 1))
    found: dict[str, Array] = {}

    def ours() -> None:
        solved = solve(LAW, columns, starts, drawn.target, drawn.weight, misfit=misfit)
        assert solved.converged.all()
        found["ours"] = LAW.to_raw(solved.theta)

    def theirs() -> None:
        some = [peer(theta, columns, target, weight, misfit) for weight in drawn.weight[: resamples // share]]
        found["scipy"] = LAW.to_raw(np.array(some))

    steps: dict[str, Callable[[], object]] = {"ours": ours, "scipy": theirs}
    seconds = in_turns(steps, rounds, warm_up=1)
    same = found["ours"][: len(found["scipy"])]
    size = np.std(same, axis=0)
    return {
        "seconds": seconds,
        "largest_difference_in_standard_errors": float(np.max(np.abs(same - found["scipy"]) / size)),
        "about": drawn.about,
    }


def test_resamples(benchmark: Any) -> None:
    found = race(trunk_table(TRUNKS, HORIZONS), RESAMPLES, SHARE, ROUNDS)
    seconds = found.pop("seconds")
    benchmark.extra_info |= {
        "rows": TRUNKS * HORIZONS,
        "resamples": RESAMPLES,
        "seconds": sorted(seconds["ours"])[ROUNDS // 2],
        **compared("times_faster_than_scipy", seconds, "scipy", "ours"),
        **found,
    }
    benchmark.extra_info["times_faster_than_scipy"] *= SHARE
    turns = iter(seconds["ours"])
    benchmark.pedantic(lambda: next(turns), rounds=1)
