"""Which runs have learned to copy from their context, and which pairs of runs that keeps from being compared.

A model learns to copy within few steps (induction heads, Olsson et al., arXiv 2209.11895), and its loss falls by .1 to
.4 nats per token then: more than 4 bits cost. Runs of one seed differ in when that happens. In a `mixed` run, one that
was trained in low precision, either it copies and its base run does not, or the other way round: its delta is then
about that event, not about the bits. Such runs are left out of every fit, noise and comparison of low-precision
training.

The rule was made after the losses were seen, from runs that were better in few bits than in many; what it looks at is
`copying` of statistics.csv, which no claim is about (docs/log.md, "Some runs copy").
"""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from replications.comparison.inside import read_statistics
from replications.compressed import compression_of
from shared.laws.tables import Kind, read_table
from shared.report.compared import Counted

STATISTICS = "statistics.csv"
# Nats per token. In our pool nothing lies between .143 (one layer, which cannot join two heads) and .186.
COPIES = 0.15


def read_copying(path: Path) -> "pd.Series[float]":
    """What each run gains by copying, in nats per token, by run_id; no value where there is no file. Raises BitlawError
    for a bad table."""
    rows = read_statistics(path)
    rows = rows[rows["quantity"] == "copying"]
    return pd.Series(rows["value"].to_numpy(float), index=rows["run_id"].to_numpy(str), dtype=float)


def mixed(runs: pd.DataFrame, gain: "pd.Series[float]") -> "pd.Series[bool]":
    """Low-precision runs that copy where their base run does not, or do not where it does. False where either's is not
    measured."""
    own, base = runs["run_id"].map(gain), runs["base_run_id"].map(gain)
    return ((own > COPIES) != (base > COPIES)) & own.notna() & base.notna()


def comparable(runs: pd.DataFrame, reports: Path) -> pd.DataFrame:
    """`runs` without those that `statistics.csv` of their folder calls mixed."""
    return runs[~mixed(runs, read_copying(reports / STATISTICS))].reset_index(drop=True)


def read_comparable(path: Path, kinds: "dict[str, Kind]") -> pd.DataFrame:
    """`tables.read_table` of a runs.csv, without its mixed runs. Raises BitlawError for a bad table."""
    return comparable(read_table(path, kinds), path.parent)


def counted(runs: pd.DataFrame, gain: "pd.Series[float]") -> list[dict[str, object]]:
    """A row for each size and horizon of cooled runs that did not diverge."""
    some = runs[runs["cooled"].astype(bool) & ~runs["diverged"].astype(bool)]
    some = some.assign(gain=some["run_id"].map(gain), mixed=mixed(some, gain), plain=some["base_run_id"] == "")
    found = []
    for (size, tokens), cells in some.groupby(["size", "tokens"]):
        copies, plain = cells["gain"] > COPIES, cells["plain"]
        names = [name_of(row) for row in cells[cells["mixed"]].to_dict("records")]
        one = Counted(
            size=str(size), tokens=float(str(tokens)),
            unquantized=int(plain.sum()), unquantized_copy=int((plain & copies).sum()),
            low_precision=int((~plain).sum()), low_precision_copy=int((~plain & copies).sum()),
            unknown=int(cells["gain"].isna().sum()), left_out=sorted(names),
        )  # fmt: skip
        found.append(one)
    return [asdict(one) for one in found]


def low_precision(runs: pd.DataFrame, gain: "pd.Series[float]") -> pd.DataFrame:
    """size, gain, delta and whether it is mixed, of cooled low-precision runs that did not diverge."""
    some = runs[runs["cooled"].astype(bool) & ~runs["diverged"].astype(bool) & (runs["base_run_id"] != "")]
    delta = pd.to_numeric(some["delta"], errors="coerce")
    found = some[["size"]].assign(gain=some["run_id"].map(gain), delta=delta, mixed=mixed(some, gain))
    return found.dropna(subset=["gain", "delta"])


def name_of(row: dict[str, object]) -> str:
    fields = compression_of(row)
    return ", ".join([*(f"{name}={value}" for name, value in sorted(fields.items())), f"seed {row['seed']}"])
