"""What the inside of checkpoints says about the papers' mechanisms: quantities of `reports/statistics.csv` with 95 %
intervals, by name, for claims (shared/report/evidence.py). All are ratios; intervals are Student's over the logarithms
of pairs or sizes, each of which counts once.

- `pool/second/...`   delta on another corpus over that on the pool's own (O4)
- `pool/change/...`   change of the weights to the next horizon over the squared error of rounding (O7)
- `pool/kurtosis/...` kurtosis of the input of FC2 after quantized over after unquantized training (C10)
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from replications.compressed import compression_of
from shared.laws.means import geometric
from shared.laws.tables import Kind, read_table
from shared.report.evidence import Seen

Evidence = dict[str, Seen]
COLUMNS: dict[str, Kind] = {
    "run_id": "text", "size": "text", "n_blocks": "positive", "tokens": "positive", "cooled": "flag", "seed": "text",
    "weights": "text", "activations": "text", "quantity": "text", "of": "text", "value": "number",
}  # fmt: skip
PAIR = ["size", "n_blocks", "tokens", "seed"]
BITS = ("INT4", "INT3", "INT2")


def read_statistics(path: Path) -> pd.DataFrame:
    """Rows of the table; none where there is no file. Raises BitlawError for a bad table, naming the cell."""
    if not path.exists():
        texts = [name for name, kind in COLUMNS.items() if kind == "text"]
        return pd.DataFrame({name: [] for name in COLUMNS}).astype(dict.fromkeys(texts, str))
    return read_table(path, COLUMNS)


def collect(statistics: pd.DataFrame, pool: pd.DataFrame, bases: Mapping[str, str]) -> Evidence:
    """`pool`: rows of measurements.csv with run_id, size, n_blocks, tokens, cooled, method, format, group_size, delta
    and relative_mse; `bases`: of `four_bits`."""
    cells = pool[(pool["method"] == "rtn") & (pool["group_size"] == "channel")]
    return {**_second(statistics, cells), **_change(statistics, cells), **_kurtosis(statistics, bases)}


def four_bits(runs: pd.DataFrame) -> dict[str, str]:
    """{run_id: base_run_id} of runs whose weights and activations are INT4, and nothing else of theirs quantized."""
    found = {}
    for row in runs.to_dict("records"):
        fields = compression_of({str(key): value for key, value in row.items()})
        if set(fields) == {"weights", "activations"} and all(str(text).startswith("INT4") for text in fields.values()):
            found[str(row["run_id"])] = str(row["base_run_id"])
    return found


def _second(statistics: pd.DataFrame, cells: pd.DataFrame) -> Evidence:
    found: Evidence = {}
    rows = statistics[statistics["quantity"] == "second"]
    for bits in BITS:
        there = rows[rows["of"].str.contains(f" {bits}@channel", regex=False)][["run_id", "value", *PAIR, "cooled"]]
        both = there.merge(cells[cells["format"] == bits][["run_id", "delta"]], on="run_id")
        both = both[(both["value"] > 0) & (both["delta"] > 0)]
        for cooled, some in both.groupby("cooled"):
            phase = "cooled" if cooled else "trunk"
            name, label = f"pool/second/{phase}/{bits}", f"{bits}, {phase}"
            found |= _ratio(name, label, some["value"] / some["delta"], some, "one checkpoint each of the sizes")
    return found


def _change(statistics: pd.DataFrame, cells: pd.DataFrame) -> Evidence:
    """At each size's last pair of neighbouring horizons."""
    rows = statistics[(statistics["quantity"] == "change") & (statistics["of"] == "all")]
    last = rows[rows["tokens"] == rows.groupby("size")["tokens"].transform("max")]
    found: Evidence = {}
    for bits in BITS:
        both = last.merge(cells[cells["format"] == bits][["run_id", "relative_mse"]], on="run_id")
        note = "our horizons are a factor of 2 in tokens apart, the paper's checkpoints far less"
        found |= _ratio(f"pool/change/{bits}", bits, both["value"] / both["relative_mse"], both, note)
    return found


def _kurtosis(statistics: pd.DataFrame, bases: Mapping[str, str]) -> Evidence:
    """Each run beside its own base run."""
    rows = statistics[(statistics["quantity"] == "kurtosis") & (statistics["of"] == "down")]
    some = rows[rows["run_id"].isin(bases)].assign(base=rows["run_id"].map(dict(bases)))
    some = some.merge(rows[["run_id", "value"]].rename(columns={"run_id": "base"}), on="base", suffixes=("", "_base"))
    return _ratio("pool/kurtosis/down/W4A4", "W4A4", some["value"] / some["value_base"], some, _levels(some))


def _levels(some: pd.DataFrame) -> str:
    if not len(some):
        return ""
    return f"kurtosis {some['value_base'].mean():.3g} unquantized, {some['value'].mean():.3g} quantized on average"


def _ratio(name: str, label: str, ratios: "pd.Series[float]", rows: pd.DataFrame, note: str) -> Evidence:
    """Geometric mean with Student's interval over rows; nothing for fewer than two."""
    logs = np.log(ratios.to_numpy(float))
    if len(logs) < 2:
        return {}
    value, low, high = geometric(logs)
    N, D = rows["n_blocks"].astype(float), rows["tokens"].astype(float)
    scale = f"{N.min() / 1e6:.2g}-{N.max() / 1e6:.2g}M parameters, {D.min() / 2**20:g}-{D.max() / 2**20:g}M tokens"
    return {name: Seen(value, low, high, scale, note, label, len(logs))}
