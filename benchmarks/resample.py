"""The bootstrap: 1,000 resamples solved as one batch, against a loop of scipy's least squares.

Both minimise the same sum (Huber's cost of the log residual, each row as often as it or its trunk was drawn) from the
same fit, on one thread, in turns. The peer, with the analytic gradient, gets a share of the resamples, and its time is
scaled by it; the ends of the intervals are compared on that share.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from benchmarks.turns import compared, in_turns
from shared.laws.bootstrap import Clusters, resample_rows
from shared.laws.chinchilla import LAW
from shared.laws.law import Array, Law
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


def peer(law: Law, theta: Array, columns: dict[str, Array], target: Array, weight: Array, misfit: Misfit) -> Array:
    """The constants of one resample by `least_squares`: rows that were not drawn are left out, others repeated."""
    rows = np.repeat(np.arange(len(target)), np.round(weight / weight[weight > 0].min()).astype(int))
    seen = {name: column[rows] for name, column in columns.items()}
    goal = np.log(target[rows])

    def residual(one: Array) -> Array:
        return goal - np.log(law.predict(one, seen))

    def slope(one: Array) -> Array:
        return -law.gradient(one, seen) / law.predict(one, seen)[:, None]

    tight = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}
    return least_squares(residual, theta, slope, loss="huber", f_scale=misfit.huber, x_scale="jac", **tight).x


def race(
    law: Law, constants: Mapping[str, float], table: pd.DataFrame, resamples: int, share: int, rounds: int
) -> dict[str, Any]:
    """Seconds of both, and how far their constants lie apart; `constants` are near the fit."""
    misfit = find("hoffmann-huber").misfit
    columns = {name: table[name].to_numpy(float) for name in law.inputs}
    target = table["loss"].to_numpy(float)
    start = law.internal(constants)[None]
    theta = solve(law, columns, start, target, np.ones(len(target)), misfit=misfit).theta[0]
    prediction = law.predict(theta, columns)
    slope = law.gradient(theta, columns) / prediction[:, None]
    groups = Clusters.of(table, "trunk_id", "N")
    drawn = resample_rows(
        law, table, groups, np.random.default_rng(0), resamples, misfit, prediction, np.log(target / prediction), slope
    )
    starts = np.tile(theta, (resamples, 1))
    found: dict[str, Array] = {}

    def ours() -> None:
        solved = solve(law, columns, starts, drawn.target, drawn.weight, misfit=misfit)
        assert solved.converged.all()
        found["ours"] = law.to_raw(solved.theta)

    def theirs() -> None:
        some = [peer(law, theta, columns, target, weight, misfit) for weight in drawn.weight[: resamples // share]]
        found["scipy"] = law.to_raw(np.array(some))

    steps: dict[str, Callable[[], object]] = {"ours": ours, "scipy": theirs}
    seconds = in_turns(steps, rounds, warm_up=1)
    same = found["ours"][: len(found["scipy"])]
    size = np.std(same, axis=0)
    return {
        "seconds": seconds,
        "largest_difference_in_standard_errors": float(np.max(np.abs(same - found["scipy"]) / size)),
        "about": drawn.about,
    }


def told(found: dict[str, Any], share: int) -> dict[str, Any]:
    """What `race` found, for `extra_info`."""
    seconds = found.pop("seconds")
    ratio = compared("times_faster_than_scipy", seconds, "scipy", "ours")
    ratio["times_faster_than_scipy"] *= share
    return {"seconds": sorted(seconds["ours"])[len(seconds["ours"]) // 2], **ratio, **found}


def test_resamples(benchmark: Any) -> None:
    found = race(LAW, CONSTANTS, trunk_table(TRUNKS, HORIZONS), RESAMPLES, SHARE, ROUNDS)
    seconds = found["seconds"]
    benchmark.extra_info |= {"rows": TRUNKS * HORIZONS, "resamples": RESAMPLES, **told(found, SHARE)}
    turns = iter(seconds["ours"])
    benchmark.pedantic(lambda: next(turns), rounds=1)
