"""The pool's checkpoints and cells as points: what was measured, under which quantization, read by which papers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replications.compressed import VIEWS, Widths, compression_of
from replications.low_precision import group_of
from replications.papers import GUIDE, HELD_OUT, PAPERS, Paper
from replications.trained import CORPUS, held_out, runs_of, usable
from shared.errors import BitlawError
from shared.formats.names import format_named
from shared.laws.settings import HeldOut, Selection, read_settings
from shared.laws.study import FITTED, SHORT, select
from shared.laws.study import HELD_OUT as UNSEEN
from shared.laws.tables import MEASUREMENTS, read_pool, read_table

Z = 1.959964  # 95 % of a normal distribution
NONE = "none"
TEXT = ["kind", "papers", "method", "format", "size", "phase", "group", "use", "seed", "what"]
VALUE = ["N", "D", "bits", "G", "E", "M", "delta", "low", "high", "loss"]
ROUNDED, TRAINED, PLAIN = "rounded after training", "trained in low precision", "unquantized"
READER_OF_METHODS = "precision_predictor"  # the page compares methods; no paper's law is fitted to them


def points(reports: Path) -> pd.DataFrame:
    """A row a checkpoint or cell with columns TEXT and VALUE; no rows while the tables are not there.

    `low` and `high` are of the validation sequences alone: another seed moves a point further. `use` is what the fits
    of the papers that read it make of it: fitted, held out, short; diverged ones have no loss and are not here.
    """
    tables = reports / "runs.csv", reports / "measurements.csv"
    if not all(path.exists() for path in tables):
        return pd.DataFrame(columns=[*TEXT, *VALUE])
    whole = pd.concat([_rounded(*tables), _trained(tables[0])], ignore_index=True)
    shown = whole[whole["loss"].notna()]
    return shown.sort_values(["kind", "N", "D", "phase", "method", "format", "group", "seed"], ignore_index=True)


def _rounded(runs: Path, measurements: Path) -> pd.DataFrame:
    cells = read_table(measurements, {**MEASUREMENTS, "size": "text", "seed": "text", "n_blocks": "positive",
        "tokens": "positive", "cooled": "flag", "group_size_d_model": "maybe"})  # fmt: skip
    readers, uses = _readers(read_pool(runs, measurements))
    key = [_key(row) for row in cells.to_dict("records")]
    table = pd.DataFrame(
        {
            "kind": ROUNDED,
            "papers": [" ".join(readers.get(k, [READER_OF_METHODS])) for k in key],
            "method": cells["method"],
            "format": cells["format"],
            "size": cells["size"],
            "phase": np.where(cells["cooled"].astype(bool), "cooled", "trunk"),
            "group": cells["group_size"],
            "use": [uses.get(k, "in no fit") for k in key],
            "seed": cells["seed"],
            "N": cells["n_blocks"].astype(float),
            "D": cells["tokens"].astype(float),
            "bits": cells["bits"].astype(float),
            "G": cells["group_size_d_model"].astype(float),
            "delta": cells["delta"].astype(float),
            "loss": cells["loss"].astype(float),
        }
    )
    half = Z * cells["delta_se"].astype(float)
    table = table.assign(low=table["delta"] - half, high=table["delta"] + half)
    what = table["method"] + " " + table["format"] + ", " + np.where(table["group"] == "channel", "", "group ")
    return table.assign(**_layout(table["format"]), what=what + table["group"])[[*TEXT, *VALUE]]


def _key(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return str(row["run_id"]), str(row["method"]), str(row["format"]), str(row["group_size"])


def _readers(pool: pd.DataFrame) -> tuple[dict[tuple[str, ...], list[str]], dict[tuple[str, ...], str]]:
    """{cell: papers that read it}, {cell: what their fits make of it}."""
    readers: dict[tuple[str, ...], list[str]] = {}
    uses: dict[tuple[str, ...], str] = {}
    for paper in (one for one in PAPERS.values() if one.fitted):
        for row in _selected(paper, pool).to_dict("records"):
            readers.setdefault(_key(row), []).append(paper.name)
            uses[_key(row)] = str(row["use"])
    return readers, uses


def _selected(paper: Paper, pool: pd.DataFrame) -> pd.DataFrame:
    selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
    return select(pool, selection, read_settings(HELD_OUT, HeldOut))


def _trained(path: Path) -> pd.DataFrame:
    runs = runs_of(path)
    runs = runs[(runs["corpus"] == CORPUS) & ~runs["diverged"].astype(bool)].reset_index(drop=True)
    for name in ("delta", "delta_se"):
        runs[name] = pd.to_numeric(runs[name], errors="coerce")
    long, hidden = set(usable(runs)["run_id"]), held_out(runs, read_settings(HELD_OUT, HeldOut))
    rows = []
    for row, unseen in zip(runs.to_dict("records"), hidden, strict=True):
        # What was quantized in training has a base run to be compared with.
        fields = compression_of(row) if row["base_run_id"] else {}
        use = SHORT if row["run_id"] not in long else UNSEEN if unseen else FITTED
        delta, half = (float(row["delta"]), Z * float(row["delta_se"])) if fields else (np.nan, np.nan)
        forms = list(dict.fromkeys(str(text).partition("@")[0] for text in fields.values() if "@" in str(text)))
        group = group_of(fields) if fields else NONE
        rows.append(
            {
                "kind": TRAINED if fields else PLAIN,
                "papers": " ".join(_views(fields, row)) if fields else GUIDE.name,
                "method": "training",
                "format": " ".join(forms) or NONE,
                "size": str(row["size"]),
                "phase": "cooled" if row["cooled"] else "trunk",
                "group": group,
                "use": use,
                "seed": str(row["seed"]),
                "what": ", ".join(f"{name} {value}" for name, value in sorted(fields.items())) or PLAIN,
                "N": float(row["n_blocks"]),
                "D": float(row["tokens"]),
                "bits": _bits(forms[0]) if len(forms) == 1 else np.nan if forms else 16.0,
                "G": float(group) if group.isdigit() else float(row["d_model"]) if fields else 1.0,
                "delta": delta,
                "low": delta - half,
                "high": delta + half,
                "loss": float(row["loss"]),
            }
        )
    table = pd.DataFrame(rows, columns=[name for name in (*TEXT, *VALUE) if name not in ("E", "M")])
    return table.assign(**_layout(table["format"]))[[*TEXT, *VALUE]]


def _views(fields: Mapping[str, Any], row: Mapping[Any, Any]) -> list[str]:
    """Papers one of whose views reads this compression."""
    widths = Widths(int(row["d_model"]), int(row["d_ff"]))
    return list(dict.fromkeys(view.paper for view in VIEWS if view.read(fields, widths) is not None))


def _layout(formats: "pd.Series[str]") -> dict[str, list[float]]:
    """Exponent and mantissa bits where the format is a minifloat."""
    found = {name: _of_float(name) for name in dict.fromkeys(formats)}
    return {"E": [found[name][0] for name in formats], "M": [found[name][1] for name in formats]}


def _of_float(name: str) -> tuple[float, float]:
    try:
        form = format_named(name)
    except BitlawError:
        return np.nan, np.nan
    return (float(form.exponent), float(form.mantissa)) if form.kind == "float" else (np.nan, np.nan)


def _bits(name: str) -> float:
    try:
        return float(format_named(name).bits)
    except BitlawError:
        return np.nan
