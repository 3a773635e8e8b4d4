"""What rounding adds to models that copy from their context (replications/copying.py), or have more layers, and what
that does to the exponents of N and D. Found after the rows were seen: no claim is judged by it, and held-out cells are
among its rows. Six shapes do not tell copying from depth: those of three layers and more copy first.

    ln delta = c + slope_D ln D + slope_N ln N [+ growth x copying | + slope_layers ln layers]

Copying is in nats per token.

Least squares on unquantized runs rounded to nearest, per channel; intervals by leaving out each trunk (jackknife,
Student's t), since the checkpoints of one trunk are one path.
"""

from dataclasses import asdict

import numpy as np
import pandas as pd
from scipy.stats import t as student

from replications.copying import COPIES
from replications.trained import MIN_STEPS, MIN_TOKENS_PER_PARAMETER, TOKENS_PER_STEP
from shared.laws.law import Array
from shared.report.compared import Estimate, Explained

FORMATS = ("INT4", "INT3", "INT2")
GROUP_SIZE = "channel"
LEAST_TRUNKS = 4
TERMS = ("slope_D", "slope_N")


def explain(cells: pd.DataFrame, gain: "pd.Series[float]") -> list[dict[str, object]]:
    """`cells`: rows of unquantized runs with run_id, trunk_id, n_layer, n_blocks, tokens, cooled, method, format,
    group_size and delta (nats per token). Nothing for a phase and format with too few trunks, or where all copy or
    none.
    """
    cells = _used(cells, gain)
    found = []
    for cooled in (True, False):
        for form in FORMATS:
            some = cells[(cells["cooled"] == cooled) & (cells["format"] == form)]
            if some["trunk_id"].nunique() >= LEAST_TRUNKS and (some["copying"] > COPIES).nunique() == 2:
                found.append(asdict(_explained("cooled" if cooled else "trunk", form, some)))
    return found


def _used(cells: pd.DataFrame, gain: "pd.Series[float]") -> pd.DataFrame:
    """The cells that the papers' fits would take, rounded to nearest, with N, D and copying."""
    D, N = cells["tokens"].astype(float), cells["n_blocks"].astype(float)
    used = (cells["method"] == "rtn") & (cells["group_size"] == GROUP_SIZE) & (cells["delta"] > 0)
    used &= (D >= MIN_STEPS * TOKENS_PER_STEP) & (D >= MIN_TOKENS_PER_PARAMETER * N)
    return cells.assign(copying=cells["run_id"].map(gain), D=D, N=N)[used].dropna(subset=["copying", "n_layer"])


def what_is_left(cells: pd.DataFrame, gain: "pd.Series[float]", form: str) -> pd.DataFrame:
    """size, copying and `left`, ln delta less what ln D and ln N explain, of cooled cells of one format."""
    some = _used(cells, gain)
    some = some[some["cooled"].astype(bool) & (some["format"] == form)]
    x, target = _terms(some), np.log(some["delta"].to_numpy(float))
    left = target - x @ np.linalg.lstsq(x, target, rcond=None)[0] if len(some) else target
    return some[["size", "copying"]].assign(left=left)


def _terms(some: pd.DataFrame) -> Array:
    """(cells, 3) one, ln D and ln N about their means."""
    logs = [np.log(some[name] / some[name].mean()) for name in ("D", "N")]
    return np.stack([np.ones(len(some)), *logs], axis=-1)


def _explained(phase: str, form: str, some: pd.DataFrame) -> Explained:
    terms = _terms(some)
    target, trunk = np.log(some["delta"].to_numpy(float)), some["trunk_id"].to_numpy(str)
    more = {"growth": some["copying"].to_numpy(float), "slope_layers": np.log(some["n_layer"].to_numpy(float))}
    plain, rms = _fitted(terms, target, trunk, TERMS)
    (copies, rms_copies), (layers, rms_layers) = (
        _fitted(np.column_stack([terms, column]), target, trunk, (*TERMS, name)) for name, column in more.items()
    )
    n = len(some), len(set(trunk))
    return Explained(phase, form, *n, plain, copies, layers, rms, rms_copies, rms_layers)


def _fitted(x: Array, y: Array, trunk: Array, names: tuple[str, ...]) -> tuple[dict[str, Estimate], float]:
    solved = np.linalg.lstsq(x, y, rcond=None)[0]
    trunks = np.unique(trunk)
    without = np.array([np.linalg.lstsq(x[trunk != one], y[trunk != one], rcond=None)[0] for one in trunks])
    n = len(trunks)
    se = np.sqrt((n - 1) / n * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    half = student.ppf(0.975, n - 1) * se
    rms = float(np.sqrt(np.sum((y - x @ solved) ** 2) / (len(y) - x.shape[1])))
    estimates = zip(names, solved[1:], half[1:], strict=True)
    return {name: Estimate(float(v), float(v - h), float(v + h)) for name, v, h in estimates}, rms
