"""Several laws on one table: which one predicts runs that it has not seen, and whether the difference is real.

Every law is fitted by the same recipe. Scored are

- leave one size out: each size is predicted from all others;
- rollout in N and in D: each level is predicted from the lower ones, as one who plans a larger run would;
- AICc, which counts constants against the fit to all rows (Hurvich and Tsai 1989).

The error of a prediction is |ln(measured / predicted)|; rows whose measured value is not two standard errors above
zero have none. Intervals are percentiles over resamples of trunks within each N (of rows, where the table names no
trunks), for which every split is fitted again; all laws see the same resamples, so that a difference between two
laws is judged pair by pair. A resample without any row to predict says nothing and is left out.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import erf

from shared.errors import BitlawError
from shared.laws.bootstrap import Clusters, drawn_within
from shared.laws.fit import prepared
from shared.laws.law import Array, Columns, Law
from shared.laws.noise import NO_NOISE, SeedNoise, unseeded
from shared.laws.recipes import Recipe
from shared.laws.result import interval
from shared.laws.rows import LARGE, PARTS, SAMPLE, Solved, levels
from shared.laws.solve import solve

LEAST_LEVELS = 2  # that a rollout is fitted to
CLEAR = 2.0
# A resample of few sizes may leave a valley without a floor; where it is after so many steps predicts as well.
MOST_STEPS = 60
ROLLOUT = {"N": "rollout in N", "D": "rollout in D"}
LEFT_OUT = "leave one size out"


@dataclass(frozen=True)
class Error:
    """The mean |ln(measured / predicted)| over the rows that were predicted unseen, with its 95 % interval."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Score:
    """One law. `errors` by the name of the split; one that the law or the table does not allow is absent. `behind` is
    its error less that of the winner on the split that decides, both on the same resamples; None for the winner."""

    law: str
    parameters: int
    rms: float  # on the recipe's scale, over all rows
    aicc: float  # less that of the best law; NaN when there are too few rows
    errors: dict[str, Error]
    behind: Error | None = None


@dataclass(frozen=True)
class Comparison:
    """`winner` has the smallest error on `split`; `real` when no other law's error is plausibly smaller."""

    scores: tuple[Score, ...]  # best first
    split: str
    winner: str
    real: bool
    statement: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Split:
    """One fit and what it predicts: booleans (n,) over the table's rows."""

    name: str
    seen: NDArray[np.bool_]
    unseen: NDArray[np.bool_]


def compare(
    laws: Sequence[Law],
    table: pd.DataFrame,
    *,
    recipe: Recipe | str | None = None,
    noise: SeedNoise = NO_NOISE,
    n_starts: int = 64,
    n_boot: int = 200,
    seed: int = 0,
    clusters: str = "trunk_id",
    name: str = "table",
) -> Comparison:
    """Score `laws`, which must predict the same target, on one table (tables.check).

    Raises BitlawError: fewer than two laws, different targets, a table that one of them cannot be fitted to, or one
    that allows no split (under three sizes and under three horizons).
    """
    if len(laws) < 2:
        raise BitlawError("a comparison needs two laws; name another")
    for law in laws[1:]:
        if law.target != laws[0].target:
            raise BitlawError(
                f"{laws[0].name} predicts {laws[0].target} and {law.name} predicts {law.target}: "
                "compare laws of one target"
            )
    notes = []
    if len(table) > LARGE:
        table = table.sample(SAMPLE, random_state=seed).sort_index()
        notes.append(f"compared on a random sample of {SAMPLE} rows")
    weights, alone = _resamples(table, clusters, n_boot, seed)
    if alone:
        notes.append(f"{alone} of the sizes have one trunk only: there rows were resampled, which hides its seed")
    found = []
    for law in laws:
        held, chosen, rows, solved, _ = prepared(
            law, table, recipe=recipe, noise=noise, n_starts=n_starts, n_boot=2, seed=seed, clusters=clusters,
            strata="N", name=name, fixed=None,
        )  # fmt: skip
        found.append((held, chosen, rows, solved))
    if found[0][1].noise:
        notes.append(noise.note if noise.cells or clusters in table else unseeded(clusters))
    splits = _splits(found[0][2])
    if not splits:
        raise BitlawError(f"{name}: under three sizes and under three horizons leave nothing to predict; add runs")
    errors = {law.name: _errors(law, rows, solved, splits, weights) for law, _, rows, solved in found}
    criterion = {law.name: _aicc(law, chosen, solved) for law, chosen, _, solved in found}
    least = min(criterion.values())
    order = [split for split in (LEFT_OUT, *ROLLOUT.values()) if all(split in errors[law.name] for law in laws)]
    if not order:
        raise BitlawError(f"{name}: no split of N or D can be predicted by all of these laws; compare fewer of them")
    split = order[0]
    ranked = sorted(laws, key=lambda law: float(errors[law.name][split][0]))
    scores = tuple(
        Score(
            law=law.name,
            parameters=len(law.parameters),
            rms=_rms(law, solved),
            aicc=criterion[law.name] - least,
            errors={which: _summary(values, splits, which) for which, values in errors[law.name].items()},
            behind=None
            if law is ranked[0]
            else _summary(errors[law.name][split] - errors[ranked[0].name][split], splits, split),
        )
        for law in ranked
        for solved in [next(s for other, _, _, s in found if other.name == law.name)]
    )
    real, statement = _statement(scores, split)
    return Comparison(scores, split, scores[0].law, real, statement, tuple(notes))


def _splits(table: pd.DataFrame) -> list[_Split]:
    found = []
    for key in ("N", "D"):
        if key not in table:
            continue
        level = levels(table[key].to_numpy(float), PARTS)
        distinct = np.unique(level)
        if len(distinct) < LEAST_LEVELS + 1:
            continue
        if key == "N":
            found += [_Split(LEFT_OUT, level != one, level == one) for one in distinct]
        found += [_Split(ROLLOUT[key], level < one, level == one) for one in distinct[LEAST_LEVELS:]]
    return found


def _resamples(table: pd.DataFrame, clusters: str, n: int, seed: int) -> tuple[Array, int]:
    """(1 + n, rows) of counts, the first of which are ones; and how many sizes have one trunk only, of which the rows
    are drawn. Without trunks all rows are drawn together."""
    groups = Clusters.of(table, clusters, "N")
    generator, rows = np.random.default_rng(seed), len(table)
    if groups.single:
        counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=n).astype(float)
        return np.concatenate([np.ones((1, rows)), counts]), 0
    alone = np.bincount(groups.stratum) == 1
    by_itself = alone[groups.stratum][groups.of_row]
    unit = np.unique(np.where(by_itself, len(groups.stratum) + np.arange(rows), groups.of_row), return_inverse=True)[1]
    stratum = np.zeros(int(unit.max()) + 1, dtype=np.int64)
    stratum[unit] = groups.stratum[groups.of_row]
    counts = drawn_within(stratum, generator, n)[:, unit]
    return np.concatenate([np.ones((1, rows)), counts]), int(alone.sum())


def _errors(law: Law, table: pd.DataFrame, solved: Solved, splits: list[_Split], weights: Array) -> dict[str, Array]:
    """{split: (1 + resamples,) mean errors}, all fits of one law as one batch that starts from the full fit. NaN where
    a resample has no row to predict."""
    columns = {name: table[name].to_numpy(float) for name in law.inputs}
    target = table[law.target].to_numpy(float)
    error = table[f"{law.target}_se"].to_numpy(float) if f"{law.target}_se" in table else np.zeros(len(table))
    clear = target > CLEAR * error
    usable = [split for split in splits if _allows(law, columns, split)]
    size = np.bincount(solved.of_row)
    total: dict[str, Array] = {}
    count: dict[str, Array] = {}
    for split in usable:
        mine = weights * split.seen
        of_cell = np.stack([np.bincount(solved.of_row, row, len(size)) for row in mine]) / size
        weight = of_cell * solved.weight
        first = solve(law, solved.columns, solved.theta[None], solved.target, weight[0], misfit=solved.misfit)
        start = np.tile(first.theta, (len(mine), 1))
        fits = solve(law, solved.columns, start, solved.target, weight, MOST_STEPS, misfit=solved.misfit).theta
        rows = np.flatnonzero(split.unseen & clear)
        at: Columns = {name: column[rows] for name, column in columns.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.abs(np.log(target[rows] / law.predict(fits, at)))
        # A law that predicts no loss at all is off by as much as there is.
        off = np.where(np.isfinite(off), off, 1e3)
        total[split.name] = total.get(split.name, 0.0) + np.sum(weights[:, rows] * off, axis=-1)
        count[split.name] = count.get(split.name, 0.0) + np.sum(weights[:, rows], axis=-1)
    return {
        name: np.divide(total[name], count[name], out=np.full(len(weights), np.nan), where=count[name] > 0)
        for name in total
        if count[name][0] > 0
    }


def _allows(law: Law, columns: Columns, split: _Split) -> bool:
    """Whether the law has the input that the split leaves out, and enough rows and levels of every input to fit."""
    key = "D" if split.name == ROLLOUT["D"] else "N"
    seen = {name: column[split.seen] for name, column in columns.items()}
    several = all(len(np.unique(column)) > 1 for name, column in seen.items() if len(np.unique(columns[name])) > 1)
    return key in law.inputs and several and int(split.seen.sum()) >= len(law.parameters)


def _summary(values: Array, splits: list[_Split], name: str) -> Error:
    low, high = interval(values[1:][np.isfinite(values[1:])])
    rows = int(sum(split.unseen.sum() for split in splits if split.name == name))
    return Error(float(values[0]), float(low), float(high), rows)


def _rms(law: Law, solved: Solved) -> float:
    residual = solved.misfit.residual(solved.target, law.predict(solved.theta, solved.columns))
    return float(np.sqrt(np.mean(residual**2)))


def _aicc(law: Law, recipe: Recipe, solved: Solved) -> float:
    """-2 ln likelihood + 2 k + 2 k (k + 1) / (n - k - 1), k with the noise's one constant.

    With weights the noise is normal, of the fitted standard deviations. Without, the density is exp(-cost / s) over
    its integral: normal for squares, and for Huber's cost normal within the corner and exponential beyond; s is the
    most likely one.
    """
    n, k = len(solved.target), int(np.sum(law.bounds[:, 1] > law.bounds[:, 0])) + 1
    if n <= k + 1:
        return float("nan")
    if recipe.noise:
        doubled = 2 * solved.cost - float(np.sum(np.log(solved.weight / (2 * np.pi))))
    else:
        doubled = _doubled_surprise(solved.cost, n, solved.misfit.huber)
        if solved.misfit.log:  # the density of the target, not of its logarithm
            doubled += 2 * float(np.sum(np.log(solved.target)))
    return doubled + 2 * k + 2 * k * (k + 1) / (n - k - 1)


def _doubled_surprise(cost: float, n: int, huber: float | None) -> float:
    """-2 ln likelihood at the most likely scale of the cost."""
    least = max(cost / n, np.finfo(float).tiny)
    if huber is None:
        return float(n * np.log(2 * np.pi * 2 * least) + n)

    def at(log_s: float) -> float:
        s = float(np.exp(log_s))
        inside = np.sqrt(2 * np.pi * s) * erf(huber / np.sqrt(2 * s))
        outside = 2 * s / huber * np.exp(-(huber**2) / (2 * s))
        return float(2 * cost / s + 2 * n * np.log(inside + outside))

    bracket = (np.log(least) - 3, np.log(least) + 3)
    return float(minimize_scalar(at, bounds=bracket, method="bounded").fun)


def _statement(scores: tuple[Score, ...], split: str) -> tuple[bool, str]:
    best = scores[0]
    mine = best.errors[split]
    said = f"{best.law} predicts best ({split}): off by {_percent(mine.value, mine.low, mine.high)}"
    rivals = [(other, other.behind) for other in scores[1:] if other.behind is not None]
    close = [other.law for other, gap in rivals if gap.low <= 0]
    second, gap = rivals[0]
    said += f", {second.law} by {second.errors[split].value:.2%}; "
    said += f"the difference, {_percent(gap.value, gap.low, gap.high)}, "
    said += "may be chance" if gap.low <= 0 else "is real: every interval of a difference to the others is above zero"
    if gap.low > 0 and close:
        said = said.replace("every interval of a difference to the others is above zero", "over these runs")
        said += f"; that to {', '.join(close)} may be chance"
    by_criterion = min(scores, key=lambda score: score.aicc)
    if by_criterion.law != best.law and np.isfinite(by_criterion.aicc):
        said += f". AICc prefers {by_criterion.law} (by {best.aicc:.3g})"
    return not close, said


def _percent(value: float, low: float, high: float) -> str:
    return f"{value:.2%} [{low:.2%}, {high:.2%}]"
