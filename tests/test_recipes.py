"""Fits of losses by named recipes: solver, starts, intervals, held constants, very large tables."""

import doctest
import resource
import time
import tracemalloc
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_cases import CASES
from scipy import stats
from scipy.optimize import least_squares
from simulated_pool import HORIZONS, SIZES

from replications.compression_laws.law import effective_parameters
from replications.kumar_precision.law import EQ3_BIAS
from replications.kumar_precision.law import LAW as KUMAR
from replications.precision_predictor.law import LAW as PAGE
from replications.qat_scaling.law import LOSS as CHEN
from shared.errors import BitlawError
from shared.laws import fit as fit_module
from shared.laws import rows as rows_module
from shared.laws import weighted as weighted_module
from shared.laws.bootstrap import _components, resample
from shared.laws.cells import gather
from shared.laws.chinchilla import LAW
from shared.laws.fit import Fit, fit, hold, outside
from shared.laws.law import Array, Columns, Law
from shared.laws.noise import NO_NOISE, SeedNoise
from shared.laws.recipes import RECIPES, find, starting_points
from shared.laws.solve import Misfit, solve

CONSTANTS = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
DELTA = {"C_T": 0.06, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.6}
SPREAD = 0.05
SEEDS = {"S": 3, "M": 2, "S4": 1, "M3": 1, "W": 1, "L": 1}


def losses(noise: float = 0.0, seed: int = 0, n: int = 120) -> pd.DataFrame:
    """N, D and a loss of Chinchilla's form with so much normal noise in its logarithm."""
    generator = np.random.default_rng(seed)
    N, D = (
        np.exp(generator.uniform(np.log(1e7), np.log(1e10), n)),
        np.exp(generator.uniform(np.log(1e9), np.log(1e12), n)),
    )
    columns = {"N": N, "D": D}
    loss = LAW.predict(LAW.internal(CONSTANTS), columns) * np.exp(noise * generator.standard_normal(n))
    return pd.DataFrame({**columns, "loss": loss})


def at(table: pd.DataFrame) -> Columns:
    return {name: table[name].to_numpy(float) for name in LAW.inputs}


def straight_line() -> Law:
    """y = level + slope x: linear, so that every interval is known."""

    def predict(theta: Array, columns: Columns) -> Array:
        return theta[..., 0, None] + theta[..., 1, None] * columns["x"]

    def gradient(theta: Array, columns: Columns) -> Array:
        slope = np.broadcast_to(columns["x"], (*theta.shape[:-1], len(columns["x"])))
        return np.stack([np.ones_like(slope), slope], axis=-1)

    return Law(
        name="line",
        source="test",
        inputs=("x",),
        parameters=("level", "slope"),
        target="y",
        predict=predict,
        gradient=gradient,
        bounds=np.array([[-100.0, 100.0], [-100.0, 100.0]]),
        starts=lambda generator, n, columns, target, error: generator.normal(size=(n, 2)),
        to_raw=lambda theta: theta,
        from_raw=lambda raw: raw,
    )


# The solver


@given(st.floats(-5, 5), st.sampled_from([None, 0.1, 1.0]))
def test_pull_is_the_slope_of_the_cost(residual: float, huber: float | None) -> None:
    misfit, h = Misfit(huber=huber), 1e-6
    slope = (misfit.cost(np.array(residual + h)) - misfit.cost(np.array(residual - h))) / (2 * h)
    assert float(slope) == pytest.approx(float(misfit.pull(np.array(residual))), abs=1e-5)


@pytest.mark.parametrize("huber", [None, 1e-3, 1e-2])
def test_robust_batches_find_the_optimum_of_scipy(huber: float | None) -> None:
    table = losses(0.005)
    table.loc[::17, "loss"] *= 1.2
    goal, columns = np.log(table["loss"].to_numpy()), at(table)
    starts = LAW.starts(np.random.default_rng(0), 12, columns, table["loss"].to_numpy(), np.zeros(len(table)))
    ours = solve(LAW, columns, starts, table["loss"].to_numpy(), np.ones(len(table)), misfit=Misfit(True, huber))
    peer = least_squares(
        lambda theta: goal - np.log(LAW.predict(theta, columns)),
        LAW.internal(CONSTANTS),
        loss="linear" if huber is None else "huber",
        f_scale=huber or 1.0,
        x_scale="jac",
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert ours.converged.all()
    assert ours.cost.max() <= peer.cost * (1 + 1e-7)
    assert ours.cost.min() == pytest.approx(peer.cost, rel=1e-4)


def test_a_problem_moves_only_at_right_angles_to_what_it_may_not_change() -> None:
    table = losses(0.005)
    theta = LAW.internal(CONSTANTS)
    across = np.array([[0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0, 0.0]])
    start = np.tile(theta, (2, 1)) + 0.02
    found = solve(LAW, at(table), start, table["loss"].to_numpy(), np.ones(120), misfit=Misfit(True), across=across)
    free = solve(LAW, at(table), start, table["loss"].to_numpy(), np.ones(120), misfit=Misfit(True))
    np.testing.assert_allclose(np.sum(across * (found.theta - start), axis=-1), 0, atol=1e-9)
    assert found.converged.all()
    assert (found.cost > free.cost).all()


def test_starts_where_a_term_has_vanished_come_back() -> None:
    """A = 1, alpha = 2: at a billion parameters the term is 1e-18 of the loss."""
    table = losses(0.005)
    start = LAW.internal({"A": 1.0, "alpha": 2.0, "B": 1.0, "beta": 2.0, "E": 2.7})[None]
    found = solve(LAW, at(table), start, table["loss"].to_numpy(), np.ones(120), misfit=Misfit(True, 1e-3))
    best = fit(LAW, table, n_boot=20).objective
    assert found.cost[0] == pytest.approx(best, rel=1e-6)


# Recipes


def test_grids_hold_all_combinations_and_other_constants_start_where_the_law_says() -> None:
    table = losses()
    generator = np.random.default_rng(0)
    zero = np.zeros(len(table))
    grid = starting_points(RECIPES["hoffmann-huber"], LAW, generator, 7, at(table), table["loss"].to_numpy(), zero)
    assert grid.shape == (4500, 5)
    raw = LAW.to_raw(grid)
    assert {tuple(row) for row in np.round(raw[:, [1, 3]], 9)} == set(product((0, 0.5, 1, 1.5, 2), repeat=2))
    assert sorted(set(np.round(np.log(raw[:, 0]), 6))) == [0, 5, 10, 15, 20, 25]
    columns = {**at(table), "bits": np.full(len(table), 4.0)}
    more = starting_points(RECIPES["hoffmann-huber"], EQ3_BIAS, generator, 7, columns, table["loss"].to_numpy(), zero)
    assert more.shape == (4500, 7)
    assert len(np.unique(np.round(more[:, 5], 6))) > 1000
    without = RECIPES["quartet-huber"]  # Chinchilla's law has no gamma
    assert len(starting_points(without, LAW, generator, 7, at(table), table["loss"].to_numpy(), zero)) == 7


def test_losses_are_fitted_by_huber_and_outliers_do_not_pull() -> None:
    clean = losses(0.001)
    spoilt = clean.assign(loss=clean["loss"] * np.where(np.arange(120) % 20 == 0, 1.3, 1.0))
    robust = fit(LAW, spoilt, n_boot=20)
    plain = fit(LAW, spoilt, n_boot=20, recipe="least-squares-log")
    assert robust.recipe == "huber"
    error = [abs(found.parameters["E"].value - 1.8) for found in (robust, plain)]
    assert error[0] < 0.02
    assert error[0] < 0.2 * error[1]


def test_the_same_seed_gives_the_same_fit() -> None:
    table = losses(0.005)
    first, again, other = (fit(LAW, table, n_boot=50, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.draws, again.draws)
    assert not np.array_equal(first.draws, other.draws)
    assert first.parameters["E"].value == pytest.approx(other.parameters["E"].value, rel=1e-6)


def test_unknown_recipes_get_a_sentence() -> None:
    with pytest.raises(BitlawError, match="recipe 'hofmann-huber' is unknown, did you mean 'hoffmann-huber'"):
        find("hofmann-huber")


# Held constants


def test_held_constants_stay() -> None:
    table = losses(0.005)
    free, held = fit(LAW, table, n_boot=20), fit(LAW, table, n_boot=20, fixed={"E": 1.5})
    assert held.parameters["E"].value == pytest.approx(1.5)
    assert (held.draws[:, 4] == 1.5).all()
    assert held.bound_hits == ()
    assert held.objective > free.objective
    assert held.fixed == {"E": 1.5}


@pytest.mark.parametrize(
    ("fixed", "sentence"),
    [
        ({"E": -1.0}, "E = -1 is outside the bounds of chinchilla"),
        ({"e": 1.0}, "chinchilla has no constant 'e'"),
        ({"A": 400.0}, "A cannot be held alone: it is fitted together with alpha; hold both"),
    ],
)
def test_constants_that_cannot_be_held_get_a_sentence(fixed: dict[str, float], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        hold(LAW, fixed)


def test_a_factor_is_held_with_its_exponent() -> None:
    held = hold(LAW, {"A": 400.0, "alpha": 0.34})
    found = fit(LAW, losses(0.005), n_boot=20, fixed={"A": 400.0, "alpha": 0.34})
    assert (held.bounds[:2, 0] == held.bounds[:2, 1]).all()
    assert found.parameters["A"].value == pytest.approx(400.0)


# Intervals


def test_profiles_of_a_linear_law_are_students_intervals() -> None:
    generator = np.random.default_rng(0)
    x = np.linspace(1, 2, 12)
    y = 1 + 2 * x + 0.1 * generator.standard_normal(12)
    found = fit(straight_line(), pd.DataFrame({"x": x, "y": y}), recipe="least-squares", n_boot=20, profile=True)
    exact = stats.linregress(x, y)
    half = stats.t.ppf(0.975, 10) * exact.stderr
    slope = found.parameters["slope"]
    assert slope.value == pytest.approx(exact.slope, rel=1e-6)
    assert slope.profile_low == pytest.approx(exact.slope - half, abs=0.01 * half)
    assert slope.profile_high == pytest.approx(exact.slope + half, abs=0.01 * half)


def test_profiles_end_at_bounds_and_say_when_they_are_open() -> None:
    table = losses(0.02, n=40).assign(loss=lambda t: t["loss"] - 1.75)
    found = fit(LAW, table, recipe="least-squares-log", n_boot=20, profile=True)
    assert found.parameters["E"].profile_low == 0.0
    one_level = losses(0.005).assign(loss=lambda t: 2.0 + 400 / t["N"] ** 0.35)
    nothing = fit(LAW, one_level, recipe="least-squares-log", n_boot=20, profile=True)
    assert nothing.status != "CONVERGED"  # no D in it: beta can be anything
    assert nothing.parameters["alpha"].value == pytest.approx(0.35, rel=1e-3)


def test_the_profile_of_a_tiny_constant_is_found() -> None:
    """eta of 1e-26: its interval in eta, where the slope does not change, is no interval in ln eta."""
    case = CASES["page_full"]
    table = case.table().assign(loss=0.0)
    level = PAGE.predict(PAGE.internal({"eta": 1.3e-26, "beta": 0.47, "delta": 22.0}), case.columns)
    off = 1 + 0.1 * np.random.default_rng(0).standard_normal(len(table))
    found = fit(PAGE, table.assign(delta=level * off, delta_se=0.1 * level), n_starts=8, n_boot=200, profile=True)
    eta = found.parameters["eta"]
    assert eta.profile_low is not None
    assert eta.profile_high is not None
    assert eta.profile_high / eta.profile_low == pytest.approx(eta.high / eta.low, rel=1.5)
    assert eta.profile_high / eta.profile_low > 2


def test_a_flat_bottom_of_hubers_cost_is_weak() -> None:
    """Bits that the law does not know put nearly all residuals beyond the corner: many constants cost the same."""
    rows = list(product((1e8, 3e8, 1e9, 3e9), (2e9, 8e9, 3e10), (2.0, 3.0, 4.0, 16.0)))
    table = pd.DataFrame(rows, columns=["N", "D", "bits"])
    truth = EQ3_BIAS.internal({**CONSTANTS, "A": 480, "B": 2100, "beta": 0.37, "gamma_w": 2.1, "n_w": 0.25})
    noise = np.exp(0.002 * np.random.default_rng(1).standard_normal(len(table)))
    table["loss"] = EQ3_BIAS.predict(truth, {k: table[k].to_numpy() for k in EQ3_BIAS.inputs}) * noise
    several = [fit(LAW, table, n_starts=n, n_boot=20) for n in (4, 8, 16, 64)]
    objectives = [found.objective for found in several]
    assert max(objectives) == pytest.approx(min(objectives), rel=1e-9)
    assert {found.status for found in several} == {"WEAKLY_IDENTIFIED"}
    assert "residuals lie within Huber's corner" in " ".join(several[0].reasons)
    assert fit(LAW, table, n_starts=8, n_boot=20, recipe="least-squares-log").status == "CONVERGED"
    assert fit(EQ3_BIAS, table, n_starts=8, n_boot=20).status == "CONVERGED"


def test_rows_are_resampled_as_the_formula_says() -> None:
    table = losses(0.005, n=300)
    found = fit(LAW, table, recipe="least-squares-log", n_boot=600)
    theta = found.theta
    slope = LAW.gradient(theta, at(table)) / LAW.predict(theta, at(table))[:, None]
    covariance = 0.005**2 * np.linalg.inv(slope.T @ slope)
    np.testing.assert_allclose(found.draws.std(axis=0), np.sqrt(np.diag(covariance)), rtol=0.25)
    assert found.resampling == "rows"


def test_resamples_of_grouped_laws_keep_every_group() -> None:
    groups = ("bf16", "int4", "int2")
    law = effective_parameters(groups)
    table = losses(n=24).assign(compression=np.repeat([0.0, 1.0, 2.0], [20, 3, 1]))
    truth = law.internal({**CONSTANTS, "eff_int4": 0.7, "eff_int2": 0.2})
    columns = {name: table[name].to_numpy() for name in law.inputs}
    noise = np.exp(0.002 * np.random.default_rng(1).standard_normal(24))
    table["loss"] = law.predict(truth, columns) * noise
    found = fit(law, table, recipe="least-squares-log", n_boot=200)
    assert found.resampling == "rows within each compression"
    assert found.failed_draws == 0
    low, high = found.parameters["eff_int4"].low, found.parameters["eff_int4"].high
    assert 0.5 < low < 0.7 < high < 0.95
    again = Fit.from_json(found.to_json())
    assert again.groups == groups
    assert again.parameters == found.parameters


TRUTHS = {
    "chinchilla": {"A": 60.0, "alpha": 0.3, "B": 300.0, "beta": 0.35, "E": 1.5},
    "chen_loss": {
        "A": 60.0, "alpha": 0.3, "B": 300.0, "E": 1.5, "k": 0.02, "gamma_N": 0.2, "gamma_D": 0.15, "gamma_G": 0.8,
    },
}  # fmt: skip
GROUPS = (1.0, 8.0, 32.0, 128.0)  # of Chen's law, each trained as a trunk of its own


def clustered(law: Law, seed: int, noise: float = 1e-3, shared: float = 0.5) -> pd.DataFrame:
    """The pool's cluster structure: six sizes, six horizons, trunks with three, two or one seeds; `shared` of the
    variance of ln loss is common to a trunk's horizons."""
    generator = np.random.default_rng(seed)
    truth = law.internal(TRUTHS[law.name])
    parts = []
    for (size, seeds), G in product(SEEDS.items(), GROUPS if "G" in law.inputs else (1.0,)):
        for number in range(seeds):
            D = np.array(HORIZONS, dtype=float)
            common = np.sqrt(shared) * generator.standard_normal()
            off = common + np.sqrt(1 - shared) * generator.standard_normal(len(D))
            columns = {"N": np.full(len(D), float(SIZES[size])), "D": D, "G": np.full(len(D), G)}
            loss = law.predict(truth, columns) * np.exp(noise * off)
            inputs = {name: columns[name] for name in law.inputs}
            parts.append(pd.DataFrame({**inputs, "loss": loss, "trunk_id": f"{size}{number}{G}"}))
    return pd.concat(parts, ignore_index=True)


def coverage(sets: int, shared: float, name: str) -> dict[str, float]:
    """The share of 95 % intervals of a predicted loss, inside and beyond the grid, and of constants, with the truth."""
    law, truth = {one.name: one for one in (LAW, CHEN)}[name], TRUTHS[name]
    places = {"middle": (3e5, 8e6, 16.0), "larger": (3.4e6, 1.3e8, 16.0)}
    hits = dict.fromkeys([*truth, *places], 0)
    for seed in range(sets):
        table = clustered(law, seed, shared=shared)
        found = fit(law, table, recipe="least-squares-log", n_boot=200, n_starts=8, seed=seed)
        for constant, value in truth.items():
            hits[constant] += found.parameters[constant].low <= value <= found.parameters[constant].high
        for place, (N, D, G) in places.items():
            where = {"N": np.array([N]), "D": np.array([D]), "G": np.array([G])}
            _, low, high = fit_module.predicted(law, found, where)
            hits[place] += bool(low[0] <= law.predict(law.internal(truth), where)[0] <= high[0])
    return {constant: count / sets for constant, count in hits.items()}


def test_intervals_of_losses_cover() -> None:
    """A quick look at what `test_intervals_of_losses_cover_in_full` measures."""
    assert min(coverage(12, 0.5, "chinchilla").values()) >= 0.75


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("law", ["chinchilla", "chen_loss"])
def test_intervals_of_losses_cover_in_full(law: str, shared: float) -> None:
    """200 sets with 0.1 % noise on the loss; what was found is in docs/log.md. Intervals that always hold the truth
    are too wide: at most 99 % may, and the binomial error of that, .007."""
    found = coverage(200, shared, law)
    print(law, shared, found)
    assert min(found.values()) >= 0.9
    assert max(found.values()) <= 0.99 + np.sqrt(0.99 * 0.01 / 200)


def test_the_noise_of_rows_and_of_trunks_is_found_in_the_residuals() -> None:
    generator = np.random.default_rng(0)
    of_row = np.repeat(np.arange(12), 6)
    slope = np.stack([np.ones(72), np.repeat(generator.normal(size=12), 6), np.tile(np.arange(6.0), 12)], axis=-1)
    Q = np.linalg.qr(slope)[0]
    found = []
    for _ in range(400):
        noise = 0.3 * generator.standard_normal(72) + 0.5 * generator.standard_normal(12)[of_row]
        found.append(_components(noise - Q @ (Q.T @ noise), slope, of_row, 12))
    variances = np.mean(np.square(found)[:, :2], axis=0)
    np.testing.assert_allclose(variances, [0.09, 0.25], rtol=0.06)
    assert found[0][2] == pytest.approx(10.0)  # twelve trunks less what is constant in each of them


# Domain


def test_the_distance_outside_the_domain_is_a_factor() -> None:
    found = fit(LAW, losses(0.005), n_boot=20)
    N_low, D_high = found.domain["N"][0], found.domain["D"][1]
    assert outside(found, {"N": 2e8, "D": 1e11}) == {}
    assert outside(found, {"N": N_low / 5, "D": 3 * D_high}) == pytest.approx({"N": 1 / 5, "D": 3.0})


# Many rows


def test_many_rows_are_approximated_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    table = losses(0.005, n=3000)
    whole = fit(LAW, table, n_boot=300)
    monkeypatch.setattr(rows_module, "LARGE", 2000)
    monkeypatch.setattr(rows_module, "SAMPLE", 500)
    monkeypatch.setattr(fit_module, "LARGE", 2000)
    quick = fit(LAW, table, n_boot=300, profile=True)
    assert quick.objective == pytest.approx(whole.objective, rel=1e-9)
    np.testing.assert_allclose(quick.draws.std(axis=0), whole.draws.std(axis=0), rtol=0.2)
    said = " ".join(quick.reasons)
    assert "a sample of 500" in said
    assert "one Newton step" in said
    assert quick.parameters["E"].profile_low is None


@pytest.mark.slow
def test_a_million_rows_take_under_a_minute() -> None:
    table = losses(0.005, n=1_000_000)
    start = time.perf_counter()
    found = fit(LAW, table)
    assert time.perf_counter() - start < 60
    assert found.status == "CONVERGED"
    assert found.parameters["E"].low < 1.8 < found.parameters["E"].high


def deltas(n: int, kind: str, seed: int = 0) -> pd.DataFrame:
    """`n` rows of Kumar's Eq. 2 with 5 % noise: each a cell of its own, or two rows a cell (`repeated`), or in trunks
    of 20 rows, two trunks a cell, half of whose variance is common to a trunk (`trunks`)."""
    generator = np.random.default_rng(seed)
    rows = {"trunks": 20, "repeated": 1, "cells": 1}[kind]
    copies = 1 if kind == "cells" else 2
    models = n // rows // copies
    trunk = np.repeat(np.tile(np.arange(models), copies) + models * np.repeat(np.arange(copies), models), rows)
    N = np.exp(generator.choice(np.linspace(np.log(1e7), np.log(1e10), 30), models))
    D = np.exp(generator.uniform(np.log(1e9), np.log(1e12), models))
    columns = {
        "N": np.repeat(np.tile(N, copies), rows),
        "D": np.repeat(np.tile(D, copies), rows) * np.tile(np.linspace(1, 2, rows), models * copies),
        "bits": np.tile(generator.integers(2, 7, models * rows), copies).astype(float),
    }
    common = generator.standard_normal(trunk.max() + 1)[trunk] if kind == "trunks" else 0.0
    share = 0.5 if kind == "trunks" else 0.0
    noise = SPREAD * (np.sqrt(share) * common + np.sqrt(1 - share) * generator.standard_normal(n))
    level = KUMAR.predict(KUMAR.internal(DELTA), columns)
    table = pd.DataFrame({**columns, "delta": level * (1 + noise), "delta_se": 1e-3 * level})
    return table.assign(trunk_id=trunk) if kind == "trunks" else table


def true_spread(table: pd.DataFrame, kind: str) -> Array:
    """(P,) standard deviations of the constants fitted to `deltas`, to first order, from the noise that it has."""
    cells = gather(KUMAR, table, NO_NOISE, "trunk_id", "N")
    theta = KUMAR.internal(DELTA)
    level = KUMAR.predict(theta, cells.columns)
    slope = KUMAR.gradient(theta, cells.columns) / level[:, None]
    of_row = SPREAD * (np.linalg.solve(slope.T @ slope, slope.T) / cells.rows)[:, cells.row_cell]
    share = 0.5 if kind == "trunks" else 0.0
    of_trunk = np.stack([np.bincount(cells.row_trunk, row) for row in of_row])
    return np.sqrt(share * np.sum(of_trunk**2, axis=1) + (1 - share) * np.sum(of_row**2, axis=1))


@pytest.mark.parametrize("kind", ["cells", "repeated", "trunks"])
def test_many_deltas_are_approximated_and_it_is_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = deltas(2400, kind)
    noise = SeedNoise(cv={"": SPREAD}, cells=100, dof=60)
    whole = fit(KUMAR, table, noise=noise, n_starts=8, n_boot=300)
    monkeypatch.setattr(weighted_module, "LARGE", 1000)
    monkeypatch.setattr(weighted_module, "SAMPLE", 500)
    monkeypatch.setattr(fit_module, "LARGE", 1000)
    quick = fit(KUMAR, table, noise=noise, n_starts=8, n_boot=300, profile=True)
    assert quick.status == "CONVERGED"
    assert quick.tau == pytest.approx(whole.tau, abs=1e-6)
    np.testing.assert_allclose(quick.theta, whole.theta, rtol=1e-6)
    np.testing.assert_allclose(quick.draws.std(axis=0), true_spread(table, kind), rtol=0.2)
    np.testing.assert_allclose(np.corrcoef(quick.draws.T), np.corrcoef(whole.draws.T), atol=0.2)
    if kind == "cells":
        np.testing.assert_allclose(quick.draws.std(axis=0), whole.draws.std(axis=0), rtol=0.2)
    said = " ".join(quick.reasons)
    assert "2400 rows in" in said
    assert "a sample of 500 cells" in said
    assert "one Newton step" in said
    assert quick.parameters["gamma_D"].profile_low is None


def test_trunks_and_cells_are_resampled_without_a_table_of_both() -> None:
    """20,000 rows, two a cell, each a trunk of its own: 10,000 x 20,000 numbers would be 1.6 GB."""
    cells = gather(KUMAR, deltas(20_000, "repeated"), NO_NOISE, "trunk_id", "N")
    tracemalloc.start()
    drawn, present = resample(cells, np.random.default_rng(0), 20, cells.target, NO_NOISE, 0.0)
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()
    assert drawn.shape == present.shape == (20, 10_000)
    assert 0.7 < present.mean() < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cells", "repeated", "trunks"])
def test_a_million_deltas_take_under_a_minute(kind: str) -> None:
    table = deltas(1_000_000, kind)
    start = time.process_time()
    found = fit(KUMAR, table)
    seconds = time.process_time() - start
    print(kind, f"{seconds:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")
    assert seconds < 60
    assert found.status == "CONVERGED"
    assert found.parameters["gamma_D"].low < DELTA["gamma_D"] < found.parameters["gamma_D"].high


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 0.6), st.floats(0.2, 0.6))
def test_noise_free_losses_give_the_law_back(seed: int, alpha: float, beta: float) -> None:
    table = losses(seed=seed, n=60)
    truth = LAW.internal({**CONSTANTS, "A": 4 * 1e8**alpha, "alpha": alpha, "B": 3 * 1e10**beta, "beta": beta})
    table["loss"] = LAW.predict(truth, at(table))
    found = fit(LAW, table, n_boot=20, n_starts=16)
    np.testing.assert_allclose(LAW.predict(found.theta, at(table)), table["loss"], rtol=1e-9)


def test_documented_examples_run() -> None:
    assert doctest.testmod(fit_module).failed == 0
    readme = Path(fit_module.__file__).with_name("README.md")
    assert doctest.testfile(str(readme), module_relative=False).failed == 0


def test_inputs_of_a_held_law_may_have_one_value() -> None:
    table = losses(0.005).assign(bits=4.0)
    with pytest.raises(BitlawError, match="column 'bits' has one value only"):
        fit(EQ3_BIAS, table, n_boot=20)
    held = fit(EQ3_BIAS, table, n_boot=20, fixed={"gamma_w": 2.0, "n_w": 0.2})
    assert held.parameters["gamma_w"].value == pytest.approx(2.0)
    assert replace(held).status in ("CONVERGED", "WEAKLY_IDENTIFIED")
