"""What the rows of `bitlaw allocate` say: gains over uniform and over magnitude allocation, with intervals.

Pure: rows in, numbers out. Two kinds of interval, both 95 %: `low` and `high` are Student's over the checkpoints'
differences (three at least, else none), and `better` and `worse` count the checkpoints whose own interval, paired over
its validation windows, lies wholly on one side of zero. Checkpoints of one trunk share their weights' beginnings, so
the first kind is somewhat too narrow where they are of few trunks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.laws.means import half_width

LEAST_CHECKPOINTS = 3
# The page's map, and what a solver makes of the same gradients: named before they were measured at large.
GUIDED = {"linear": "fisher_linear", "optimum": "fisher"}
LOW_BUDGETS = (2.0, 3.0)  # "at 2-3 bits"

Row = Mapping[str, Any]


def summarise(trials: Sequence[Row], surrogates: Sequence[Row]) -> dict[str, Any]:
    """The tables of the two CSV files, `trials` and `surrogates`, as the claim and the figure need them.

    `over_...` are differences of loss in nats a token, `log_...` logarithms of ratios of penalties: what a checkpoint
    loses grows tenfold with its tokens, so that differences scatter where ratios agree.
    """
    cells = _cells(trials)
    return {
        "checkpoints": sorted({str(row["checkpoint"]) for row in trials}),
        "cells": cells,
        "s8": {
            kind: {
                key: [
                    {"label": f"{cell['unit']}, {cell['method']}, {cell['budget']:g} bits", **cell[key]}
                    for cell in cells
                    if cell["allocation"] == name
                    and LOW_BUDGETS[0] <= cell["budget"] <= LOW_BUDGETS[1]
                    and cell[key] is not None
                ]
                for key in ("over_uniform", "over_magnitude", "log_uniform", "log_magnitude")
            }
            for kind, name in GUIDED.items()
        },
        "surrogates": _surrogates(surrogates),
    }


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean with Student's 95 % interval; no interval of fewer than three values."""
    n = len(values)
    mean = float(np.mean(values))
    if n < LEAST_CHECKPOINTS:
        return {"value": mean, "low": None, "high": None, "n": n}
    half = half_width(np.array(values, dtype=float))
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n}


def _cells(trials: Sequence[Row]) -> list[dict[str, Any]]:
    """A unit, method, budget and allocation, over the checkpoints."""
    groups: dict[tuple[str, str, float, str], list[Row]] = {}
    for row in trials:
        key = (str(row["unit"]), str(row["method"]), float(row["budget"]), str(row["allocation"]))
        groups.setdefault(key, []).append(row)
    cells = []
    for (unit, method, budget, allocation), rows in sorted(groups.items()):
        rows = sorted(rows, key=lambda row: str(row["checkpoint"]))
        cells.append(
            {
                "unit": unit,
                "method": method,
                "budget": budget,
                "allocation": allocation,
                "delta": float(np.mean([float(row["delta"]) for row in rows])),
                "over_uniform": interval([float(row["over_uniform"]) for row in rows]),
                "over_magnitude": interval([float(row["over_magnitude"]) for row in rows]),
                "log_uniform": _logs(rows, "over_uniform"),
                "log_magnitude": _logs(rows, "over_magnitude"),
                "better": _beyond(rows, 1.0),
                "worse": _beyond(rows, -1.0),
            }
        )
    return cells


def _logs(rows: Sequence[Row], against: str) -> dict[str, float | int | None] | None:
    """ln(the other's penalty / this one's): comparable where penalties differ tenfold between checkpoints.

    Checkpoints on which a penalty is not positive (8 bits, noise) have none; None when that is all of them.
    """
    pairs = [(float(row["delta"]), float(row["delta"]) + float(row[against])) for row in rows]
    logs = [math.log(other / delta) for delta, other in pairs if delta > 0 and other > 0]
    return interval(logs) if logs else None


def _beyond(rows: Sequence[Row], sign: float) -> int:
    """Checkpoints whose gain over uniform is beyond zero by 1.96 of its standard errors."""
    return sum(sign * float(row["over_uniform"]) > 1.96 * float(row["over_uniform_se"]) for row in rows)


def _surrogates(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each criterion the share that it keeps of what exact second derivatives gain over uniform.

    `kept` by the exact quadratic form, checkpoint by checkpoint; `kept_loss` by the measured loss, as a ratio of means,
    where the exact allocation's own gain is surely positive. `over_uniform` is the measured gain itself.
    """
    groups: dict[tuple[float, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((float(row["budget"]), str(row["criterion"])), {})[str(row["checkpoint"])] = row
    found = []
    for (budget, criterion), by_checkpoint in sorted(groups.items()):
        exact, even = groups[budget, "exact"], groups[budget, "uniform"]
        names = sorted(by_checkpoint)
        gains = {c: float(even[c]["quadratic"]) - float(by_checkpoint[c]["quadratic"]) for c in names}
        whole = {c: float(even[c]["quadratic"]) - float(exact[c]["quadratic"]) for c in names}
        kept = [gains[c] / whole[c] for c in names if whole[c] > 0]
        losses = [float(by_checkpoint[c]["over_uniform"]) for c in names]
        best = interval([float(exact[c]["over_uniform"]) for c in names])
        sure = best["value"] if best["low"] is not None and best["low"] > 0 else None
        ranks = [float(r) for c in names if (r := by_checkpoint[c]["rank_correlation"]) not in (None, "")]
        ranks = [rank for rank in ranks if math.isfinite(rank)]
        found.append(
            {
                "budget": budget,
                "criterion": criterion,
                "kept": interval(kept) if kept else None,
                "kept_loss": float(np.mean(losses)) / sure if sure else None,
                "over_uniform": interval(losses),
                "rank_correlation": float(np.mean(ranks)) if ranks else None,
                "inside_rows": float(np.mean([float(by_checkpoint[c]["inside_rows"]) for c in names])),
            }
        )
    return found
