"""One law on one pool: select rows, split them into parts that are never mixed, fit each, score what was held out."""

from typing import Any

import numpy as np
import pandas as pd

from shared.laws.cells import gather
from shared.laws.elasticity import elasticities, local_elasticities
from shared.laws.fit import Fit, fit, predicted
from shared.laws.law import Law
from shared.laws.noise import SeedNoise, seed_noise
from shared.laws.settings import FitSettings, HeldOut, Selection
from shared.laws.slopes import law_free
from shared.laws.tables import one_version, too_little

FITTED, SHORT, HELD_OUT, DIVERGED = "fitted", "short", "held out", "diverged"
ENDS = ("value", "low", "high", "loo_low", "loo_high")
CELL = ["N", "D", "format", "group_size"]
# Where elasticities are stated; the exponents of power laws do not depend on it, the slope in bits does.
REFERENCE = {"N": 2.0**18, "D": 2.0**23, "bits": 4.0}


def select(pool: pd.DataFrame, selection: Selection, held_out: HeldOut) -> pd.DataFrame:
    """The rows of `tables.read_pool` that a paper reads, with what becomes of each.

    Adds `use` (fitted, short, held out, diverged: the first that applies of diverged, short, held out) and `why`
    (the reasons for holding out, joined by ' + '). Only weights are quantized, of models trained unquantized.
    """
    rows = pool[
        (pool["corpus"] == selection.corpus)
        & (pool["method"] == selection.method)
        & pool["format"].isin(selection.formats)
        & pool["group_size"].isin(selection.group_sizes)
        & pool["phase"].isin(selection.phases)
        & pool["activation_format"].isin(["", "none"])
        & pool["kv_format"].isin(["", "none"])
        & (pool["base_run_id"] == "")
    ].copy()
    short = (rows["D"] / selection.tokens_per_step < selection.min_steps) | (
        rows["D"] / rows["N"] < selection.min_tokens_per_parameter
    )
    largest = rows["size"].map(lambda size: held_out.largest_tokens.get(size, np.inf)).astype(float)
    reasons = {
        "size": rows["size"].isin(held_out.sizes),
        "format": rows["format"].isin(held_out.formats),
        "largest D": rows["D"] >= largest,
    }
    rows["why"] = [" + ".join(name for name, hit in reasons.items() if hit.loc[i]) for i in rows.index]
    rows["use"] = np.select([rows["diverged"], short, rows["why"] != ""], [DIVERGED, SHORT, HELD_OUT], FITTED)
    return rows


def study(
    law: Law, pool: pd.DataFrame, selection: Selection, held_out: HeldOut, settings: FitSettings, name: str
) -> dict[str, Any]:
    """{"status", "selection", "parts", "unfitted", "trunk_hours"} as plain values, for fit.json, and "fits":
    {phase/group size: the part's whole fit}, for fits.json.

    A part is one phase and group size. A part whose rows cannot be fitted (one size only, too few rows) stands in
    `unfitted` with its reason; one without any row to fit is absent. Raises BitlawError for mixed numerics.
    """
    rows = select(pool, selection, held_out)
    one_version(rows, name)
    parts, unfitted, fits = [], [], {}
    for phase in selection.phases:
        of_phase = rows[rows["phase"] == phase]
        noise = seed_noise(of_phase[of_phase["use"] == FITTED], CELL)
        # Held-out formats have replicates of their own; a fit may not look at them, a score and a figure must.
        shown_noise = seed_noise(of_phase[of_phase["use"] != DIVERGED], CELL)
        for group_size in selection.group_sizes:
            of_part = of_phase[of_phase["group_size"] == group_size]
            usable = of_part[of_part["use"] == FITTED]
            if usable.empty:
                continue
            about = {
                "phase": phase,
                "group_size": group_size,
                "corpus": selection.corpus,
                "rows": len(usable),
                "trunks": {
                    str(size): int(count) for size, count in usable.groupby("size")["trunk_id"].nunique().items()
                },
            }
            reason = too_little(law, usable)
            if reason:
                unfitted.append({**about, "status": "FAILED", "reason": reason})
            else:
                result = _fitted(law, usable, noise, settings, name)
                fits[f"{phase}/{group_size}"] = result.kept()
                parts.append({**about, **_part(law, result, of_part, noise, shown_noise, settings)})
    counts = rows["use"].value_counts()
    rule = f"short (under {selection.min_steps} steps or D/N < {selection.min_tokens_per_parameter:g})"
    return {
        "status": "fitted" if parts else "needs runs",
        "selection": {
            "rows_read": len(rows),
            "rows_fitted": int(counts.get(FITTED, 0)),
            "left_out": {
                rule: int(counts.get(SHORT, 0)),
                "held out": int(counts.get(HELD_OUT, 0)),
                "diverged": int(counts.get(DIVERGED, 0)),
            },
        },
        "parts": parts,
        "unfitted": unfitted,
        "trunk_hours": _trunk_hours(rows),
        "fits": fits,
    }


def _fitted(law: Law, rows: pd.DataFrame, noise: SeedNoise, settings: FitSettings, name: str) -> Fit:
    return fit(
        law,
        rows,
        noise=noise,
        n_starts=settings.n_starts,
        n_boot=settings.n_boot,
        seed=settings.seed,
        condition_limit=settings.condition_limit,
        name=name,
    )


def _part(
    law: Law, result: Fit, rows: pd.DataFrame, noise: SeedNoise, shown_noise: SeedNoise, settings: FitSettings
) -> dict[str, Any]:
    fitted_rows = rows[rows["use"] == FITTED]
    cells = gather(law, fitted_rows, noise, "trunk_id", "N")
    free = law_free(cells, noise, n_boot=settings.n_boot, seed=settings.seed, signal_to_noise=settings.signal_to_noise)
    shown = gather(law, rows[rows["use"] != DIVERGED], shown_noise, "trunk_id", "N")
    return {
        "status": result.status,
        "reasons": list(result.reasons),
        "parameters": {
            key: {end: getattr(estimate, end) for end in ENDS} for key, estimate in result.parameters.items()
        },
        "diagnostics": {
            "share_of_starts_within_1pct": result.share_of_starts_within_1pct,
            "condition_number": result.condition_number,
            "bound_hits": list(result.bound_hits),
            "chi2_per_dof": result.chi2_per_dof,
            "seed_sd": result.seed_sd,
            "seed_cv": noise.cv,
            "seed_shared": noise.shared,
            "seed_dof": noise.dof,
            "tau": result.tau,
            "failed_draws": result.failed_draws,
            "cells": len(result.residuals),
        },
        "domain": {key: [int(end) if end.is_integer() else end for end in ends] for key, ends in result.domain.items()},
        "residuals": [
            {
                **_whole(residual.inputs),
                "delta": residual.target,
                "predicted": residual.predicted,
                "sigma": residual.sigma,
            }
            for residual in result.residuals
        ],
        "heldout": _score(law, result, rows[rows["use"] == HELD_OUT], shown_noise),
        "elasticities": elasticities(law, result.theta, result.draws, REFERENCE),
        "local_elasticities": [_whole(step) for step in local_elasticities(shown)],
        "law_free": {
            key: [_whole(x) for x in value] if isinstance(value, list) else value for key, value in free.items()
        },
        "curves": _curves(law, result, rows[rows["use"] != DIVERGED]),
    }


def _score(law: Law, result: Fit, rows: pd.DataFrame, noise: SeedNoise) -> dict[str, Any]:
    """The fit against cells it has not seen. `log_error` is |ln(measured / predicted)|, None for a delta that is not
    two standard errors above zero; `z` counts the error in standard deviations of measurement and lack of fit."""
    if rows.empty:
        return {"rows": 0, "median_abs_log_error": None, "by_reason": {}, "rows_detail": []}
    cells = gather(law, rows, noise, "trunk_id", "N")
    value, low, high = predicted(law, result, cells.columns)
    spread = cells.measured_sd(np.abs(value))
    clear = cells.target > 2 * cells.measured_sd(np.abs(cells.target))
    error = np.abs(np.log(np.where(clear, cells.target, value) / value))
    why = rows.sort_values([*law.inputs, "trunk_id"], kind="stable").groupby(list(law.inputs))["why"].first().to_list()
    detail = [
        {
            **_whole({key: float(column[i]) for key, column in cells.columns.items()}),
            "why": why[i],
            "rows": int(cells.rows[i]),
            "delta": float(cells.target[i]),
            "delta_se": float(cells.error[i]),
            "predicted": float(value[i]),
            "low": float(low[i]),
            "high": float(high[i]),
            "log_error": float(error[i]) if clear[i] else None,
            "z": float((cells.target[i] - value[i]) / np.hypot(spread[i], result.tau * value[i])),
        }
        for i in range(len(value))
    ]
    by_reason = {}
    for reason in sorted({part for text in why for part in text.split(" + ")}):
        of_reason = np.array([reason in text.split(" + ") for text in why])
        by_reason[reason] = {"cells": int(of_reason.sum()), "median_abs_log_error": _median(error[of_reason & clear])}
    return {
        "rows": len(rows),
        "median_abs_log_error": _median(error[clear]),
        "by_reason": by_reason,
        "rows_detail": detail,
    }


def _curves(law: Law, result: Fit, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The fitted law at every measured horizon of each (N, bits), for figures."""
    curves = []
    for (N, bits), some in rows.groupby(["N", "bits"], sort=True):
        D = np.sort(some["D"].unique()).astype(float)
        columns = {"N": np.full(len(D), float(N)), "D": D, "bits": np.full(len(D), float(bits))}
        value, low, high = predicted(law, result, columns)
        at = _whole({"N": N, "bits": bits})
        curves.append({**at, "D": [int(d) for d in D], "delta": value, "low": low, "high": high})
    return curves


def _trunk_hours(rows: pd.DataFrame) -> dict[str, float]:
    """Of each size, the mean time of a trunk to its longest checkpoint, in hours."""
    longest = rows.groupby(["size", "trunk_id"], sort=True)["seconds"].max().dropna() / 3600
    return {str(size): float(hours) for size, hours in longest.groupby("size").mean().items()}


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    """N, D and bits as integers where they are: a file keeps six digits of a float, and tables are joined by them."""
    return {
        key: int(value) if key in REFERENCE | {"D_from": 0, "D_to": 0} and float(value).is_integer() else value
        for key, value in values.items()
    }


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
