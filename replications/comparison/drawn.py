"""Cells of low-precision training and what they might have been with other seeds, as claims need them: many draws of
all deltas at once, so that a difference of two quantities knows what both share."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from replications.low_precision import SHARED
from shared.errors import BitlawError
from shared.laws.fit import fit
from shared.laws.law import Array, Law
from shared.laws.result import interval
from shared.laws.solve import solve
from shared.laws.study import FITTED
from shared.report.evidence import Seen

N_DRAWS, SEED = 1000, 1
N_STARTS = 32
# Stands for an end of a ratio that noise leaves open: files have no infinity.
OPEN = 1e3


@dataclass(frozen=True)
class Drawn:
    """`table` of `low_precision.cells`, indexed from 0, and `delta` (1 + draws, cells), the measured one first."""

    table: pd.DataFrame
    delta: Array

    def only(self, some: "pd.Series[bool] | Array") -> "Drawn":
        at = np.flatnonzero(np.asarray(some, dtype=bool))
        return Drawn(self.table.iloc[at].reset_index(drop=True), self.delta[:, at])

    def of(self, labelled: pd.DataFrame) -> "Drawn":
        """The cells of a table made from mine (`low_precision.of_view`), in its order, with its columns."""
        place = pd.MultiIndex.from_frame(self.table[IDENTITY])
        at = place.get_indexer(pd.MultiIndex.from_frame(labelled[IDENTITY]))
        return Drawn(labelled.reset_index(drop=True), self.delta[:, at])

    @property
    def fitted(self) -> "Drawn":
        return self.only(self.table["use"] == FITTED)

    @property
    def seeds(self) -> int:
        return int(self.table["seeds"].sum())


IDENTITY = ["size", "N", "D", "learning_rate", "how"]


def draw(table: pd.DataFrame, n: int = N_DRAWS) -> Drawn:
    """Each delta plus its noise: half of the variance over seeds common to all cells of one N and D (their base run),
    the rest and the validation error of each cell alone. Widened as Student's t is, by horizon: few seeds say little
    about a variance."""
    generator = np.random.default_rng(SEED)
    table = table.reset_index(drop=True)
    spread, error, dof = (table[name].to_numpy(float) for name in ("spread", "error", "dof"))
    place = table.groupby(["N", "D"], sort=True).ngroup().to_numpy()
    horizon = table.groupby("D", sort=True).ngroup().to_numpy()
    of_horizon = np.array([dof[horizon == k][0] for k in range(horizon.max() + 1)]) if len(table) else np.zeros(0)
    widen = np.sqrt(of_horizon / generator.chisquare(of_horizon, size=(n, len(of_horizon))))[:, horizon]
    common = generator.standard_normal((n, int(place.max()) + 1 if len(table) else 0))[:, place]
    own = generator.standard_normal((n, len(table)))
    off = widen * spread * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own)
    off += error * generator.standard_normal((n, len(table)))
    target = table["delta"].to_numpy(float)
    return Drawn(table, np.concatenate([target[None], target + off]))


@dataclass(frozen=True)
class Constants:
    """A law of delta on some cells: raw constants (1 + draws,) by name, the fitted ones first, with what to know."""

    values: dict[str, Array]
    theta: Array  # (1 + draws, P)
    note: str
    drawn: Drawn


def constants(law: Law, cells: Drawn, said: str = "") -> Constants | None:
    """`law` fitted to the cells that fits may see, by squares weighted with their noise and the law's own lack of fit.
    None where the cells cannot tell it (too few, or one value of an input)."""
    seen = cells.fitted
    table = seen.table[list(law.inputs)].assign(delta=seen.table["delta"], delta_se=seen.table["sd"])
    table = table.astype(float)
    if len(table) <= len(law.parameters):
        return None
    try:
        found = fit(law, table, n_boot=2, n_starts=N_STARTS, seed=SEED, name=f"low-precision cells ({said})")
    except BitlawError:
        return None
    columns = {name: table[name].to_numpy(float) for name in law.inputs}
    level = np.abs(law.predict(found.theta, columns))
    sigma = np.hypot(table["delta_se"].to_numpy(float), found.tau * level)
    misfit = np.random.default_rng(SEED + 1).standard_normal(seen.delta.shape) * found.tau * level
    misfit[0] = 0.0
    solved = solve(law, columns, np.tile(found.theta, (len(seen.delta), 1)), seen.delta + misfit, 1 / sigma**2)
    kept = solved.converged.copy()
    kept[0] = True
    if kept.mean() < 0.9:
        return None
    theta = np.concatenate([found.theta[None], solved.theta[1:][kept[1:]]])
    raw = law.to_raw(theta)
    # The status counts resamples, of which there are none here; what the inputs cannot tell is in the reasons.
    reasons = [reason for reason in found.reasons if "two values only" in reason or "told apart" in reason]
    note = f"{law.name} on {len(table)} cells{f' of {said}' if said else ''}, tau {found.tau:.2g}"
    note += "".join(f"; {reason}" for reason in (*reasons, *(f"{name} is at its bound" for name in found.bound_hits)))
    return Constants(dict(zip(law.parameters, raw.T, strict=True)), theta, note, seen)


def seen(values: Array, table: pd.DataFrame, *, label: str = "", note: str = "", by_law: bool = False) -> Seen:
    """The first value with the percentiles of the others."""
    low, high = interval(values[1:])
    return ends(float(values[0]), float(low), float(high), table, label=label, note=note, by_law=by_law)


def ends(
    value: float, low: float, high: float, table: pd.DataFrame, *, label: str, note: str = "", by_law: bool = False
) -> Seen:
    if max(-low, high) >= OPEN - 1:  # of 1 - share, too
        note += f"{'; ' if note else ''}an end at {OPEN:g} is open: noise may hide what is divided by"
    return Seen(value, low, high, scale(table), note, label, int(table["seeds"].sum()), by_law)


def scale(table: pd.DataFrame) -> str:
    """In 1e6 parameters and 2^20 tokens."""
    N, D = table["N"] / 1e6, table["D"] / 2**20
    return f"{N.min():.2g}-{N.max():.2g}M parameters, {D.min():g}-{D.max():g}M tokens"


def ratio(above: Array, below: Array) -> Array:
    """above / below (1 + draws,): `OPEN` where the denominator is lost in the noise."""
    sound = below > 0
    return np.where(sound, np.clip(above / np.where(sound, below, 1.0), -OPEN, OPEN), OPEN)


def share(part: Array, whole: Array) -> Array:
    """part / whole (1 + draws,), which may be anything where the whole is lost in the noise: every other such draw is
    `OPEN` to the one side, the rest to the other, so that an interval is open at both ends when over 5 % are (as
    Fieller's is, J. R. Stat. Soc. B 16, 1954)."""
    lost = np.where(np.cumsum(whole <= 0) % 2 == 1, OPEN, -OPEN)
    return np.where(whole > 0, ratio(part, whole), lost)


def place(row: "pd.Series[object]") -> str:
    """Size and horizon."""
    return f"{row['size']}, {float(str(row['D'])) / 2**20:g}M tokens"


def most_apart(values: Array, labels: list[str]) -> tuple[float, float, float, str] | None:
    """The largest over the smallest of quantities (1 + draws, k) by their measured values, with its interval. The two
    were chosen by looking, so that the interval is one of all k (k - 1) / 2 pairs (Bonferroni)."""
    k = values.shape[1]
    if k < 2:
        return None
    top, bottom = int(np.argmax(values[0])), int(np.argmin(values[0]))
    tail = 0.025 / (k * (k - 1) / 2)
    found = ratio(values[:, top], values[:, bottom])
    low, high = np.quantile(found[1:], [tail, 1 - tail])
    return float(found[0]), float(low), float(high), f"{labels[top]} over {labels[bottom]}"
