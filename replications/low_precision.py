"""The pool's low-precision runs as cells: one compression at one N and D, the mean over its seeds, and its noise.

What training scatters is additive and far larger than the error over the validation text: a delta is the difference
of two runs, each with its own path through the seeds' noise, so that its variance is that of both, whatever its size.
Half of it is the base run's, which all deltas of one N, D and seed share.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from replications.compressed import VIEWS, View, Widths, compression_of
from replications.copying import read_comparable
from replications.design_compressed import noise_of, training_noise
from replications.papers import EVIDENCE, HELD_OUT, find
from replications.trained import CORPUS, MIN_STEPS, MIN_TOKENS_PER_PARAMETER, TOKENS_PER_STEP, held_out
from shared.errors import BitlawError
from shared.laws import study
from shared.laws.settings import HeldOut, read_settings
from shared.laws.tables import RUNS
from shared.quantize.training import FORWARD, ROLES
from shared.report.compared import read_rows
from shared.report.evidence import read_seen
from shared.report.figures.trained import Trained
from shared.sweep.spec import DEFAULTS

SHARED = 0.5  # of a delta's variance over seeds: the base run's part
KEY = ["size", "N", "D", "d_model", "d_ff", "learning_rate", "how"]
COLUMNS = [
    *KEY, "fields", "seeds", "loss", "base_loss", "delta", "error", "spread", "dof", "sd", "low", "high", "use"
]  # fmt: skip


def cells(
    runs: pd.DataFrame, rules: HeldOut, noise_from: pd.DataFrame | None = None, corpus: str = CORPUS
) -> pd.DataFrame:
    """Cooled runs of one corpus that did not diverge, unquantized ones among them (`how` is empty, delta zero).

    `runs` as `tables.read_table` gives them. Columns: N, D, `how` (the compression as text), `fields` (the same as
    columns of runs.csv), seeds, loss and delta (means, nats per token), error (of delta, over the validation text),
    spread (standard deviation of the mean of delta over seeds) with `dof` degrees of freedom behind it, sd (both),
    low and high (95 %), and use: fitted, held out or short, as in `trained`. The noise is that of `noise_from` where
    `runs` are too few to show theirs. No rows where there is no noise to be had.
    """
    known = noise_by_horizon(_plain(runs if noise_from is None else noise_from, corpus))
    mine = _plain(runs, corpus)
    if not known or mine.empty:
        return pd.DataFrame(columns=COLUMNS)
    base = mine[mine["how"] == ""].set_index("run_id")["loss"]
    mine = mine.assign(base_loss=mine["base_run_id"].map(base).fillna(mine["loss"]))
    groups = mine.groupby(KEY, sort=True)
    table = groups.agg(
        fields=("fields", "first"), seeds=("seed", "nunique"), loss=("loss", "mean"), base_loss=("base_loss", "mean"),
        delta=("delta", "mean"), error=("delta_se", lambda se: float(np.sqrt(np.mean(np.square(se))))),
    ).reset_index()  # fmt: skip
    sd, dof = _nearest(table["D"].to_numpy(float), known)
    quantized = (table["how"] != "").to_numpy()
    table = table.assign(spread=np.where(quantized, sd / np.sqrt(table["seeds"]), 0.0), dof=dof)
    half = student.ppf(0.975, table["dof"]) * table["spread"]
    total = np.hypot(half, 1.959964 * table["error"])
    table = table.assign(sd=np.hypot(table["spread"], table["error"]))
    table = table.assign(low=table["delta"] - total, high=table["delta"] + total)
    short = (table["D"] < MIN_STEPS * TOKENS_PER_STEP) | (table["D"] < MIN_TOKENS_PER_PARAMETER * table["N"])
    hidden = held_out(table.rename(columns={"D": "tokens"}), rules)
    return table.assign(use=np.select([short, hidden], [study.SHORT, study.HELD_OUT], study.FITTED))[COLUMNS]


def _plain(runs: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Cooled runs of the corpus and the pool's decay as numbers, with `fields` and `how`."""
    mine = runs[(runs["corpus"] == corpus) & runs["cooled"].astype(bool) & ~runs["diverged"].astype(bool)].copy()
    if "decay" in mine:
        mine = mine[mine["decay"].fillna("").isin(["", "nan", DEFAULTS["decay"]])].copy()
    fields = [compression_of(row) for row in mine.to_dict("records")]
    mine["fields"] = pd.Series(fields, index=mine.index, dtype=object)
    mine["how"] = [", ".join(f"{name}={value}" for name, value in sorted(some.items())) for some in fields]
    for name in ("loss", "delta", "delta_se", "d_model", "d_ff", "learning_rate", "n_blocks", "tokens"):
        mine[name] = pd.to_numeric(mine[name], errors="coerce").astype(float)
    plain = mine["how"] == ""
    mine.loc[plain, ["delta", "delta_se"]] = 0.0
    return mine.dropna(subset=["loss", "delta", "delta_se"]).rename(columns={"n_blocks": "N", "tokens": "D"})


def noise_by_horizon(mine: pd.DataFrame) -> dict[int, tuple[float, int]]:
    """{D: (standard deviation of one seed's delta, degrees of freedom)}: the scatter of deltas within cells of several
    seeds, and twice the variance of base runs, pooled over the horizons within a factor of two of each."""
    found: list[tuple[float, float, int]] = []  # D, variance of a delta, degrees of freedom
    plain = mine[mine["how"] == ""]
    try:
        of_base = training_noise(mine.rename(columns={"N": "n_blocks", "D": "tokens"}))
    except BitlawError:
        of_base = {}
    for tokens, sd in of_base.items():
        found.append((float(tokens), 2 * sd**2, int((plain[plain["D"] == tokens].groupby("N").size() - 1).sum())))
    for D, some in mine[mine["how"] != ""].groupby("D"):
        groups = some.groupby(KEY)["delta"]
        size, mean = groups.transform("size"), groups.transform("mean")
        dof = round(float(((size - 1) / size).sum()))
        if dof:
            # Deltas of one seed share their base run: of k cells' degrees of freedom only part are their own.
            alone = max(int(some[size > 1]["seed"].nunique()) - 1, round(dof * (1 - SHARED)))
            found.append((float(str(D)), float(((some["delta"] - mean) ** 2).sum() / dof), alone))
    known = {}
    for D in sorted({D for D, _, _ in found}):
        near = [(variance, dof) for other, variance, dof in found if D / 2.01 < other < D * 2.01]
        total = sum(dof for _, dof in near)
        known[int(D)] = float(np.sqrt(sum(v * dof for v, dof in near) / total)), total
    return {D: pair for D, pair in known.items() if pair[0] > 0}


def _nearest(D: np.ndarray, known: Mapping[int, tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    sd = noise_of(D, {tokens: pair[0] for tokens, pair in known.items()})
    dof = noise_of(D, {tokens: float(pair[1]) for tokens, pair in known.items()})
    return sd, dof


def of_paper(paper: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{name of a view: its compressed cells with the inputs of its law}, of the paper's views that have any."""
    found = {}
    for view in (one for one in VIEWS if one.paper == paper):
        some = of_view(view, table)
        if len(some):
            found[view.name] = some
    return found


def of_view(view: View, table: pd.DataFrame) -> pd.DataFrame:
    """A view's compressed cells, with the inputs of its law added as columns, and `group` (a number, or channel)."""
    rows, inputs = [], []
    for index, row in table[table["how"] != ""].iterrows():
        read = view.read(row["fields"], Widths(int(row["d_model"]), int(row["d_ff"])))
        if read is not None:
            rows.append(index)
            inputs.append({**read, "group": group_of(row["fields"])})
    some = table.loc[rows].reset_index(drop=True)
    return pd.concat([some, pd.DataFrame(inputs)], axis=1) if rows else some


def group_of(fields: Mapping[str, Any]) -> str:
    """The elements that share a scale: a number, or channel for whole rows (of activations: tokens)."""
    groups = [str(text).partition("@")[2].partition(":")[0] for text in fields.values() if "@" in str(text)]
    sized = [group for group in groups if group.isdigit()]
    return sized[0] if sized else "channel"


def targets(fields: Mapping[str, Any]) -> tuple[str, str]:
    """(format, which of the six inputs of the products are cast, as 'P2 P4 P6'): empty where formats differ."""
    full = {role: str(fields.get(role, DEFAULTS[role])) for role in ROLES}
    full["weights_backward"] = full["weights"] if full["weights_backward"] == FORWARD else full["weights_backward"]
    if full["activations_backward"] == FORWARD:
        full["activations_backward"] = full["activations"]
    cast = {f"P{k + 1}": full[role] for k, role in enumerate(ROLES) if full[role] != "none"}
    forms = {text.partition("@")[0] for text in cast.values()}
    alone = set(fields) <= set(ROLES)
    return (forms.pop(), " ".join(cast)) if len(forms) == 1 and alone else ("", "")


def material(paper: str, reports: Path) -> Trained:
    """What the figures of a paper on low-precision training are drawn from: runs.csv, comparison/trained.json and
    comparison/evidence.json of `reports`, as far as they are there. Raises BitlawError for an unknown paper or a
    damaged file."""
    runs, trained = reports / "runs.csv", reports / "comparison" / "trained.json"
    table = pd.DataFrame(columns=COLUMNS)
    if runs.exists():
        table = cells(read_comparable(runs, RUNS), read_settings(HELD_OUT, HeldOut))
    forms = [targets(fields) for fields in table["fields"]]
    table = table.assign(form=[form for form, _ in forms], targets=[where for _, where in forms])
    quantized = table["how"] != ""
    fits = [one for one in read_rows(trained) if one["paper"] == paper]
    return Trained(
        views=of_paper(paper, table),
        every=table[quantized].reset_index(drop=True),
        base=table[~quantized].reset_index(drop=True),
        fits={one["view"]: one for one in fits},
        seen=read_seen(reports / EVIDENCE),
        published=find(paper).published(),
    )
