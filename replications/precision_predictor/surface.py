"""The page's surface L_PTQ(N, D, b) on the pool: its full law, iso-loss curves, and 3 bits trained from scratch.

    L_PTQ(N, D, b) = L(N, D) + eta (D / N)^beta (b_train - b)^delta

L is Chinchilla's law on the unquantized runs; the penalty is fitted to the cells that are rounded to nearest per
channel, by least squares of the logarithm (forms.py says why). Whether its exponents are the same everywhere is asked
by a regression for each N and each D alone, with errors that allow for what the widths of one checkpoint share.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from replications.precision_predictor.effective import CleanLaw
from replications.precision_predictor.forms import CLEAR, RECIPE
from replications.precision_predictor.law import B_TRAIN, FULL
from replications.precision_predictor.predictor import student_interval
from shared.errors import BitlawError
from shared.laws.fit import fit
from shared.laws.law import Array
from shared.laws.study import DIVERGED, FITTED

GROUP = "channel"
SHOWN_BITS = (2, 3, 4, 8)
REFERENCE_BITS = 4.0
N_BOOT, SEED, HALVINGS, POINTS = 400, 1, 60, 25
LEAST_CELLS = 6
TWO_TRUNKS = 2


def summarise(rows: pd.DataFrame, scratch: pd.DataFrame, clean: CleanLaw | None) -> dict[str, Any]:
    """`rows` of `study.select`; `scratch`: runs trained with 3-bit weights (N, D, phase, seed, base_run_id, loss,
    delta, delta_se). {"phases": the law of each, "stability", "iso_loss", "constant_penalty", "scratch"}, plain values.

    Raises BitlawError when no cell can be fitted.
    """
    cells = rows[(rows["group_size"] == GROUP) & (rows["use"] != DIVERGED)].copy()
    for name in ("N", "D", "bits", "loss", "delta", "delta_se"):
        cells[name] = cells[name].astype(float)
    fitted = cells[(cells["use"] == FITTED) & (cells["delta"] > CLEAR * cells["delta_se"])]
    if len(fitted) < LEAST_CELLS:
        raise BitlawError(f"the surface needs {LEAST_CELLS} cells per {GROUP} that are clear of zero: measure the pool")
    phases = {phase: _law(some) for phase, some in fitted.groupby("phase")}
    found: dict[str, Any] = {
        "phases": phases,
        "stability": {phase: _stability(some) for phase, some in fitted.groupby("phase")},
        "scratch": _scratch(cells, scratch),
        "iso_loss": None,
        "constant_penalty": None,
    }
    cooled = phases.get("cooled")
    if cooled and clean:
        raw = {name: item["value"] for name, item in cooled["constants"].items()}
        found["misfit"] = _misfit(fitted, raw)
        found["iso_loss"] = _iso_loss(fitted[fitted["phase"] == "cooled"], raw, clean)
        found["constant_penalty"] = {
            f"{bits:g}": ((B_TRAIN - bits) / (B_TRAIN - REFERENCE_BITS)) ** (raw["delta"] / raw["beta"])
            for bits in SHOWN_BITS
            if raw["beta"] > 0
        }
    return found


def penalty(raw: Mapping[str, float], N: Array, D: Array, bits: Array) -> Array:
    """nats/token of the page's full law."""
    return raw["eta"] * (D / N) ** raw["beta"] * (B_TRAIN - bits) ** raw["delta"]


def _law(table: pd.DataFrame) -> dict[str, Any]:
    taken = table[["N", "D", "bits", "delta", "trunk_id", "seed"]].reset_index(drop=True)
    result = fit(FULL, taken, recipe=RECIPE, n_boot=N_BOOT, seed=SEED, name="cells of the pool")
    return {
        "constants": {n: {"value": e.value, "low": e.low, "high": e.high} for n, e in result.parameters.items()},
        "status": result.status,
        "rms": result.rms,
        "cells": len(taken),
        "trunks": int(taken["trunk_id"].nunique()),
        "resampling": result.resampling,
        "robust": regress(table),
    }


def regress(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """beta and delta by ln(penalty) = ln eta + beta ln(D/N) + delta ln(gap), least squares; intervals by the sandwich
    over clusters of one N and D (Liang and Zeger 1986), with Student's quantile of clusters less one."""
    X = np.stack([np.ones(len(table)), np.log(table["D"] / table["N"]), np.log(B_TRAIN - table["bits"])], axis=-1)
    X[:, 1:] -= X[:, 1:].mean(axis=0)
    y = np.log(table["delta"].to_numpy())
    inverse = np.linalg.pinv(X.T @ X)
    theta = inverse @ X.T @ y
    score = X * (y - X @ theta)[:, None]
    cluster = table.groupby(["N", "D"]).ngroup().to_numpy()
    G = int(cluster.max()) + 1
    sums = np.stack([np.bincount(cluster, column, G) for column in score.T], axis=-1)
    covariance = inverse @ (sums.T @ sums) @ inverse * (G / max(G - 1, 1))
    half = student.ppf(0.975, G - 1) * np.sqrt(np.diag(covariance)) if G > 1 else np.full(3, np.inf)
    return {
        name: {"value": float(theta[i]), "low": float(theta[i] - half[i]), "high": float(theta[i] + half[i]),
               "clusters": G}
        for i, name in ((1, "beta"), (2, "delta"))
    }  # fmt: skip


def _stability(table: pd.DataFrame) -> dict[str, Any]:
    """Exponents at each N (beta by D) and at each D (beta by N), and the largest difference of each over its mean."""
    found: dict[str, Any] = {}
    for over, other in (("N", "D"), ("D", "N")):
        each: list[dict[str, Any]] = [
            {over: float(value), **regress(some), "cells": len(some)}
            for value, some in table.groupby(over)
            if some[other].nunique() > 2 and some["bits"].nunique() > 2
        ]
        found[over] = {"each": each, **{name: _spread([one[name] for one in each]) for name in ("beta", "delta")}}
    return found


def _spread(items: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """The largest less the smallest, over the mean of all; errors of the two taken as independent."""
    if len(items) < 2:
        return None
    low, high = (pick(items, key=lambda item: item["value"]) for pick in (min, max))
    mean = float(np.mean([item["value"] for item in items]))
    half = float(np.linalg.norm([(item["high"] - item["low"]) / 2 for item in (low, high)]))
    apart = high["value"] - low["value"]
    ends = [(apart - half) / abs(mean), (apart + half) / abs(mean)]
    return {"value": apart / abs(mean), "low": ends[0], "high": ends[1]}


def _misfit(cells: pd.DataFrame, raw: Mapping[str, float]) -> dict[str, Any]:
    """How far the surface is off the cooled cells that it was fitted to: mean |ln (predicted / measured)|, and the mean
    of its sign at each width. Held-out cells are scored elsewhere, once (comparison/heldout.yaml)."""
    used = cells[cells["phase"] == "cooled"]
    off = np.log(penalty(raw, used["N"], used["D"], used["bits"]) / used["delta"])
    return {
        "cells": len(used),
        "mean_abs": float(off.abs().mean()) if len(used) else None,
        "bias_by_bits": {f"{bits:g}": float(some.mean()) for bits, some in off.groupby(used["bits"])},
    }


def _iso_loss(table: pd.DataFrame, raw: Mapping[str, float], clean: CleanLaw) -> dict[str, Any]:
    """Curves of N against D on which the surface has the loss of the middle of the pool in 16 bits, at each width; and
    the surface itself along D at each N. An empty place of a curve is a loss that no N in reach has."""
    sizes, horizons = np.unique(table["N"]), np.unique(table["D"])
    N_ends, D = (sizes[0] / 4, sizes[-1] * 16), np.geomspace(horizons[0], horizons[-1], POINTS)
    theta = clean.theta[0]

    def surface(N: Array, D: Array, bits: float) -> Array:
        columns = {"N": N, "D": D, **{name: np.full(len(N), value) for name, value in clean.law.unquantized.items()}}
        exact = clean.law.predict(theta, columns)
        return exact + (penalty(raw, N, D, np.full(len(N), bits)) if bits < B_TRAIN else 0.0)

    middle = float(surface(np.array([np.median(sizes)]), np.array([np.median(horizons)]), B_TRAIN)[0])
    curves = []
    for level in (middle + 0.2, middle, middle - 0.1):
        for bits in (*SHOWN_BITS, B_TRAIN):
            low, high = (np.full(POINTS, np.log(end)) for end in N_ends)
            reached = (surface(np.exp(high), D, bits) <= level) & (surface(np.exp(low), D, bits) >= level)
            for _ in range(HALVINGS):
                half = (low + high) / 2
                above = surface(np.exp(half), D, bits) > level
                low, high = np.where(above, half, low), np.where(above, high, half)
            N = np.where(reached, np.exp(high), np.nan)
            curves.append(
                {"loss": level, "bits": bits, "D": D.tolist(), "N": [float(n) if n == n else None for n in N]}
            )
    along = [
        {"N": float(N), "bits": float(bits), "D": D.tolist(), "loss": surface(np.full(POINTS, N), D, bits).tolist()}
        for N in sizes
        for bits in (*SHOWN_BITS, B_TRAIN)
    ]
    return {"curves": curves, "along_D": along, "clean": clean.source}


def _scratch(cells: pd.DataFrame, scratch: pd.DataFrame) -> dict[str, Any]:
    """Runs trained with 3-bit weights against the same base runs rounded to 3 bits after training: for each N and D the
    losses over the base's, and their ratio over seeds."""
    rounded = cells[cells["bits"] == 3][["run_id", "delta", "delta_se"]]
    both = scratch.merge(rounded, left_on="base_run_id", right_on="run_id", suffixes=("", "_rounded"))
    each: list[dict[str, Any]] = []
    for (N, D, phase), some in both.groupby(["N", "D", "phase"]):
        positive = (some["delta"] > 0) & (some["delta_rounded"] > 0)
        ratio = student_interval(np.log(some["delta_rounded"] / some["delta"])[positive].tolist())
        ends = {key: float(np.exp(ratio[key])) for key in ("value", "low", "high")}
        bounded = int(positive.sum()) >= TWO_TRUNKS
        each.append({
            "N": float(N), "D": float(D), "phase": phase, "seeds": len(some),
            "trained": student_interval(some["delta"].tolist()),
            "rounded": student_interval(some["delta_rounded"].tolist()),
            "rounded_over_trained": ends if bounded else None,
        })  # fmt: skip
    logs = np.log(
        [item["rounded"]["value"] / item["trained"]["value"] for item in each if item["trained"]["value"] > 0]
    )
    slope = None
    grown = [item for item in each if item["trained"]["value"] > 0]
    if len({item["D"] for item in grown}) > 2:
        slope = _slope(np.log([item["D"] for item in grown]), np.log([item["trained"]["value"] for item in grown]),
                       np.array([item["N"] for item in grown]))  # fmt: skip
    return {
        "runs": len(scratch),
        "pairs": len(both),
        "each": each,
        "ln_ratio": student_interval(logs.tolist()) if len(logs) else None,
        "trained_rises_with_D": slope,
        "missing": "" if len(both) else "no run trained with 3-bit weights has its base run's measurement yet",
    }


def _slope(x: Array, y: Array, groups: Array) -> dict[str, Any] | None:
    """d y / d x within groups, with Student's interval."""
    for value in np.unique(groups):
        mine = groups == value
        x, y = np.where(mine, x - x[mine].mean(), x), np.where(mine, y - y[mine].mean(), y)
    dof = len(x) - len(np.unique(groups)) - 1
    if dof < 1 or not (x @ x) > 0:
        return None
    slope = float(x @ y / (x @ x))
    half = float(student.ppf(0.975, dof) * np.sqrt(np.sum((y - slope * x) ** 2) / dof / (x @ x)))
    return {"value": slope, "low": slope - half, "high": slope + half, "n": len(x)}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    said = []
    for phase, law in summary["phases"].items():
        constants = ", ".join(
            f"{n} {i['value']:.3g} [{i['low']:.3g}, {i['high']:.3g}]" for n, i in law["constants"].items()
        )
        said.append(
            f"{phase}, {law['cells']} cells of {law['trunks']} trunks: {constants}; off by {law['rms']:.2f} (rms of ln)"
        )
        for over, one in summary["stability"][phase].items():
            for name in ("beta", "delta"):
                if one[name]:
                    at = ", ".join(f"{item[name]['value']:.3g}" for item in one["each"])
                    ends = f"[{one[name]['low']:.2f}, {one[name]['high']:.2f}]"
                    said.append(
                        f"  {name} at each {over}: {at}; largest difference over the mean "
                        f"{one[name]['value']:.2f} {ends}"
                    )
    scratch = summary["scratch"]
    for item in scratch["each"]:
        ends = item["rounded_over_trained"]
        ratio = f", ratio {ends['value']:.2f} [{ends['low']:.2f}, {ends['high']:.2f}]" if ends else ""
        said.append(
            f"3 bits, N = {item['N'] / 1e6:.3g}M, D = {item['D'] / 2**20:g}M, {item['phase']}: "
            f"trained +{item['trained']['value']:.3f}, rounded after +{item['rounded']['value']:.3f}{ratio} "
            f"({item['seeds']} seeds)"
        )
    if scratch["missing"]:
        said.append(f"3 bits from scratch: {scratch['missing']}")
    if summary["constant_penalty"]:
        each = ", ".join(f"{bits} bits {value:.3g}" for bits, value in summary["constant_penalty"].items())
        said.append(f"N for the penalty of 4 bits, over its N: {each}")
    return said
