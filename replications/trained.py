"""The papers' laws of the loss on our low-precision runs: constants with intervals, beside the published ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replications import papers
from replications.compressed import VIEWS, View, compression_of, rows_of
from replications.copying import read_comparable
from replications.papers import FITS, HELD_OUT, PAPERS, Paper
from shared.errors import BitlawError
from shared.files import read_json, sha256_file, write_json
from shared.laws.fit import Fit, fit
from shared.laws.law import Law
from shared.laws.settings import FitSettings, HeldOut, Params, Published, read_settings
from shared.laws.tables import RUNS, one_version

CORPUS = "python"
MIN_STEPS, TOKENS_PER_STEP = 500, 4096  # as in the papers' experiment.yaml
MIN_TOKENS_PER_PARAMETER = 10
RECIPE = "least-squares-log"
ENDS = ("value", "low", "high", "loo_low", "loo_high")


def runs_of(path: Path) -> pd.DataFrame:
    """runs.csv without mixed runs (copying.py), with numbers where views and fits want them. Raises BitlawError for a
    bad table."""
    return read_comparable(path, {**RUNS, "d_model": "positive", "d_ff": "positive", "sparsity": "error"})


def usable(runs: pd.DataFrame) -> pd.DataFrame:
    """Cooled runs of the pool's corpus that converged and are long enough to be fitted."""
    D, N = runs["tokens"].astype(float), runs["n_blocks"].astype(float)
    long = (D >= MIN_STEPS * TOKENS_PER_STEP) & (D >= MIN_TOKENS_PER_PARAMETER * N)
    return runs[(runs["corpus"] == CORPUS) & runs["cooled"].astype(bool) & ~runs["diverged"].astype(bool) & long]


def held_out(runs: pd.DataFrame, settings: HeldOut) -> "pd.Series[bool]":
    """What no fit may see: whole sizes, and each size's largest horizon."""
    largest = runs["size"].map(lambda size: settings.largest_tokens.get(size, np.inf)).astype(float)
    return runs["size"].isin(settings.sizes) | (runs["tokens"].astype(float) >= largest)


def unquantized(runs: pd.DataFrame, rules: HeldOut) -> pd.DataFrame:
    """N, D, loss and trunk_id of the cooled unquantized runs that a fit may see, in the order of `runs`."""
    some = usable(runs)
    some = some[~held_out(some, rules) & (some["base_run_id"] == "")]
    table = some[["n_blocks", "tokens", "loss", "trunk_id"]].rename(columns={"n_blocks": "N", "tokens": "D"})
    return table.astype({"N": float, "D": float, "loss": float})


def write_fit(paper: Paper, reports: Path, params: Path) -> Path:
    """Fit a paper's laws to our tables: of rounding where its experiment.yaml says so, of low-precision training where
    it has views. Writes reports/PAPER/fit.json, the latter as `views`, and beside it fits.json with each whole fit.

    Raises BitlawError: a paper without a law to fit, no table, a damaged one, a wrong key in a settings file.
    """
    if not any(view.paper == paper.name for view in VIEWS):
        return papers.write_fit(paper, reports, params)
    source = reports / "runs.csv"
    views, fits = views_of(paper.name, source, params)
    of_views = {"recipe": RECIPE, "views": views}
    if paper.fitted:
        return papers.write_fit(paper, reports, params, of_views, fits)
    target = reports / paper.name / "fit.json"
    inputs = {f"reports/{source.name}": sha256_file(source)}
    write_json(target.with_name(FITS), {"fits": fits})
    write_json(target, {"paper": paper.name, "inputs": inputs, **of_views})
    return target


def views_of(paper: str, source: Path, params: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each view of a paper fitted to runs.csv as plain values, and {paper/view: its whole fit}."""
    if not source.exists():
        raise BitlawError(f"{source}: there is no such table; `bitlaw train` writes it")
    settings = read_settings(params, Params).fit
    rules = read_settings(HELD_OUT, HeldOut)
    runs = usable(runs_of(source))
    one_version(runs, str(source))
    views = [fitted(view, runs, rules, settings, str(source)) for view in VIEWS if view.paper == paper]
    return views, {f"{paper}/{view['view']}": view.pop("fit") for view in views if "fit" in view}


def write_trained(reports: Path) -> Path:
    """Every paper's views in one file, reports/comparison/trained.json. Raises BitlawError for a missing fit."""
    views: list[Any] = []
    for name in dict.fromkeys(view.paper for view in VIEWS):
        source = reports / name / "fit.json"
        if not source.exists():
            raise BitlawError(f"{source}: there is no such fit; `bitlaw replicate fit {name}` makes it")
        held = read_json(source)
        if not (isinstance(held, dict) and isinstance(held.get("views"), list)):
            raise BitlawError(f"{source}: is no fit; `bitlaw replicate fit {name}` makes it again")
        views += held["views"]
    target = reports / "comparison" / "trained.json"
    write_json(target, {"recipe": RECIPE, "views": views})
    return target


def fitted(view: View, runs: pd.DataFrame, rules: HeldOut, settings: FitSettings, name: str) -> dict[str, Any]:
    """One view's fit as plain values, the whole of it as `fit`; `status` is `needs runs`, with the reason, where its
    compressed runs cannot tell its constants, FAILED where all rows are too few."""
    about: dict[str, Any] = {"paper": view.paper, "view": view.name}
    hidden = held_out(runs, rules)
    found = rows_of(view, runs[~hidden])
    if found is None:
        return {**about, "status": "needs runs", "reasons": ["no run yet"], "rows": 0, "parameters": {}}
    law, table = found
    compressed = table[_is_compressed(table)]
    about |= {
        "law": law.name,
        "rows": len(table),
        "compressed": len(compressed),
        "sizes": {str(size): int(count) for size, count in compressed.groupby("size").size().items()},
        "tokens": sorted({int(tokens) for tokens in compressed["tokens"]}),
        "seeds": int(compressed["seed"].nunique()),
    }
    single = [name for name in view.vary if compressed[name].nunique() < 2]
    if single:
        reason = f"its {len(compressed)} compressed runs have one value of {', '.join(single)}"
        return {**about, "status": "needs runs", "reasons": [reason], "parameters": {}}
    try:
        result = fit(
            law, table, recipe=RECIPE, n_starts=settings.n_starts, n_boot=settings.n_boot, seed=settings.seed,
            condition_limit=settings.condition_limit, name=f"{name} ({view.paper}, {view.name})",
        )  # fmt: skip
    except BitlawError as error:
        return {**about, "status": "FAILED", "reasons": [str(error)], "parameters": {}}
    published = published_constants(view, PAPERS[view.paper].published())
    return {
        **about,
        "status": result.status,
        "reasons": list(result.reasons),
        "rms": result.rms,
        "parameters": {
            key: {end: getattr(estimate, end) for end in ENDS} | {"published": published.get(key)}
            for key, estimate in result.parameters.items()
        },
        "heldout": scored(view, law, result, runs[hidden]),
        "fit": result.kept(),
    }


def published_constants(view: View, published: Published) -> dict[str, float]:
    """The paper's constants by name; of Chen's settings each has its own."""
    if view.paper != "qat_scaling":
        return published.values()
    return {name: constant.value for name, constant in published.laws.get(view.name, {}).items()}


def scored(view: View, law: Law, result: Fit, rows: pd.DataFrame) -> dict[str, Any]:
    """Median |measured - predicted| in nats of held-out compressed runs whose compression the fit has seen."""
    found = rows_of(view, rows)
    nothing: dict[str, Any] = {"rows": 0, "median_abs_error": None}
    if found is None:
        return nothing
    theirs, table = found
    table = table[_is_compressed(table)]
    if law.grouped:
        names = [theirs.groups[int(code)] for code in table[law.grouped]]
        table = table.assign(**{law.grouped: [law.groups.index(n) if n in law.groups else -1 for n in names]})
        table = table[table[law.grouped] >= 0]
    if table.empty:
        return nothing
    columns = {name: table[name].to_numpy(float) for name in law.inputs}
    error = table["loss"].to_numpy(float) - law.predict(result.theta, columns)
    return {"rows": len(table), "median_abs_error": float(np.median(np.abs(error)))}


def _is_compressed(table: pd.DataFrame) -> "pd.Series[bool]":
    return table.apply(lambda row: bool(compression_of(row.to_dict())), axis=1)
