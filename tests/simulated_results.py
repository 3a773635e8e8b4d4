"""What the earlier stages would leave under `reports/`, from a simulated pool with a known law; no fit runs."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from simulated_pool import HORIZONS, SIZES, Truth, simulate

from replications.kumar_precision.law import LAW as KUMAR
from replications.undertrained_qid.law import LAW as OUYANG
from shared.files import sha256_file, write_json
from shared.laws.law import Law
from shared.sweep.tables import MEASUREMENT_COLUMNS, RUN_COLUMNS

TRUTH = Truth(
    law=KUMAR,
    constants={"C_T": 0.35, "gamma_D": 0.45, "gamma_N": 0.25, "gamma_post": 0.6},
    misfit=0.05,
    floor=2e-4,
)
LAWS: dict[str, tuple[Law, dict[str, float], dict[str, float]]] = {  # paper: law, published, ours
    "kumar_precision": (
        KUMAR,
        {"C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
        TRUTH.constants,
    ),
    "undertrained_qid": (
        OUYANG,
        {"k": 0.017, "beta": 0.5251, "alpha": 0.2261, "gamma": 5.4967},
        {"k": 0.2, "beta": 0.45, "alpha": 0.25, "gamma": 6.1},
    ),
}
GROUPS = ("channel", "32")
BITS = (2, 4, 8)  # the last is lost in the noise
SEEDS = {"S": 3, "M": 1}


def write_results(root: Path) -> Path:
    """Tables, fits and claims of both papers; returns the folder of reports."""
    reports = root / "reports"
    write_tables(reports)
    for paper in LAWS:
        write_json(reports / paper / "fit.json", fit_json(paper, reports))
        write_json(reports / paper / "claims.json", {"paper": paper, "claims": [claim(paper)]})
    return reports


def write_tables(reports: Path) -> None:
    """runs.csv and measurements.csv with every column of the real ones."""
    runs, rows = simulate(
        TRUTH, SEEDS, np.random.default_rng(5), group_sizes=GROUPS, bits=BITS, phases=("cooled", "trunk"),
        first_seed_only=GROUPS[1:],
    )  # fmt: skip
    runs = runs.assign(
        corpus_sha256="ab" * 32, torch_version="2.13.0", cpu_model="a processor", device="cpu", cooldown=0.2,
        decay="sqrt",
        validation_tokens=262144, corpus_passes=runs["tokens"] / 1.5e8, train_flops=6.0 * runs["tokens"],
        d_model=64, d_ff=192, sparsity=0.0,
    )  # fmt: skip
    rows = rows.assign(corpus="python", activation_format="none", kv_format="none", calibration="none")
    reports.mkdir(parents=True, exist_ok=True)
    for name, table, columns in (("runs", runs, RUN_COLUMNS), ("measurements", rows, MEASUREMENT_COLUMNS)):
        whole = table.reindex(columns=list(columns))
        whole.to_csv(reports / f"{name}.csv", index=False, float_format="%.6g")


def fit_json(paper: str, reports: Path) -> dict[str, Any]:
    """As `bitlaw replicate fit` writes it: the truth as values, and intervals of a tenth around it."""
    law, published, ours = LAWS[paper]
    inputs = {f"reports/{name}.csv": sha256_file(reports / f"{name}.csv") for name in ("runs", "measurements")}
    return {
        "paper": paper,
        "law": law.name,
        "inputs": inputs,
        "settings": {"n_starts": 64},
        "selection": {"rows_read": 420, "rows_fitted": 210, "left_out": {"short": 90, "held out": 120, "diverged": 0}},
        "parts": [part(law, ours, phase, group) for phase in ("cooled", "trunk") for group in GROUPS],
        "unfitted": [
            {"phase": "cooled", "group_size": "16", "status": "FAILED", "reason": "column 'N' has one value only"}
        ],
        "published": {
            "parameters": {name: {"value": value} for name, value in published.items()},
            "elasticities": slopes(law, published, exact=True),
        },
    }


def part(law: Law, ours: dict[str, float], phase: str, group: str) -> dict[str, Any]:
    theta = law.internal(ours)
    D = np.geomspace(HORIZONS[0], HORIZONS[-1], 9)
    curves = []
    for size in SEEDS:
        for bits in BITS:
            columns = {"N": np.full(9, float(SIZES[size])), "D": D, "bits": np.full(9, float(bits))}
            delta = law.predict(theta, columns)
            ends = {"low": (0.9 * delta).tolist(), "high": (1.1 * delta).tolist()}
            curves.append({"N": SIZES[size], "bits": bits, "D": D.tolist(), "delta": delta.tolist(), **ends})
    generator = np.random.default_rng(3)
    local = []
    for size in SEEDS:
        for bits in BITS[:2]:
            for start, end in itertools.pairwise(HORIZONS):
                value = ours[law.parameters[1]] + 0.15 * generator.standard_normal()
                at = {"N": SIZES[size], "bits": bits, "D_from": start, "D_to": end}
                local.append({**at, "value": value, "low": value - 0.2, "high": value + 0.2})
    return {
        "phase": phase,
        "group_size": group,
        "corpus": "python",
        "rows": 70,
        "status": "CONVERGED",
        "reasons": ["seed noise from 9 cells with several seeds"],
        "law_free": {"bits": {"value": -1.6, "low": -1.7, "high": -1.5}, "D_drift": None, "D_at_N": [], "N_at_D": []},
        "parameters": {
            name: {
                "value": value, "low": 0.9 * value, "high": 1.1 * value,
                "loo_low": 0.8 * value, "loo_high": 1.15 * value,
            }
            for name, value in ours.items()
        },
        "diagnostics": {
            "share_of_starts_within_1pct": 1.0, "condition_number": 12.5, "bound_hits": [], "chi2_per_dof": 1.4,
            "seed_sd": 0.003, "tau": 0.05,
        },
        "heldout": {"rows": 30, "median_abs_log_error": 0.11,
            "by_reason": {"size": {"cells": 12, "median_abs_log_error": 0.14}}, "rows_detail": []},
        "elasticities": slopes(law, ours),
        "local_elasticities": local,
        "curves": curves,
    }  # fmt: skip


def slopes(law: Law, constants: dict[str, float], *, exact: bool = False) -> dict[str, dict[str, float]]:
    last = constants[law.parameters[3]]
    values = {
        "D": constants[law.parameters[1]],
        "N": -constants[law.parameters[2]],
        "bits": -1 / last if law is KUMAR else -last / 4,
    }
    found = {name: {"value": value} for name, value in values.items()}
    if not exact:
        for name, value in values.items():
            found[name] |= {"low": value - 0.1 * abs(value), "high": value + 0.1 * abs(value)}
    found["bits"]["at"] = 4
    return found


def claim(paper: str, **changes: Any) -> dict[str, Any]:
    made = {
        "id": "K1a" if paper == "kumar_precision" else "O1a",
        "statement": "delta grows with D at every N",
        "source": "section 3",
        "evidence": "measured",
        "region": "d ln delta / d ln D > 0",
        "verdict": "holds",
        "value": 0.45,
        "low": 0.4,
        "high": 0.5,
        "detail": "12 of 12 sizes and bits",
        "smallest_visible_effect": 0.05,
        "scale": "0.1-0.9M parameters, 1-32M tokens",
    }
    return made | changes


def empty_fit(paper: str) -> dict[str, Any]:
    """The fit of a pool without any row."""
    law, published, _ = LAWS[paper]
    return {
        "paper": paper,
        "law": law.name,
        "status": "needs runs",
        "inputs": {},
        "settings": {},
        "selection": {"rows_read": 0, "rows_fitted": 0, "left_out": {}},
        "parts": [],
        "published": {
            "parameters": {name: {"value": value} for name, value in published.items()},
            "elasticities": slopes(law, published, exact=True),
        },
    }


def empty_tables(reports: Path) -> None:
    """Tables with a header and no row."""
    reports.mkdir(parents=True, exist_ok=True)
    for name, columns in (("runs", RUN_COLUMNS), ("measurements", MEASUREMENT_COLUMNS)):
        pd.DataFrame(columns=list(columns)).to_csv(reports / f"{name}.csv", index=False)
