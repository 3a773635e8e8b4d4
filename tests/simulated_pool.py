"""A pool of runs and measurements with a known truth: no training, only the two tables that training would leave."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.laws.law import Law

SIZES = {"S": 106_496, "S4": 212_992, "M": 376_832, "M3": 565_248, "W": 753_664, "L": 851_968}
HORIZONS = tuple(2**20 * 2**k for k in range(6))


@dataclass(frozen=True)
class Truth:
    """A law and its noise; every term but `floor` is a share of delta."""

    law: Law
    constants: dict[str, float]
    seed_cv: float = 0.06  # spread over seeds, of which `shared` of the variance is common to a trunk
    shared: float = 0.5
    misfit: float = 0.0  # what the law leaves unexplained, common to the seeds of a cell
    error: float = 0.01  # of the validation sequences, common to the seeds too
    floor: float = 1e-5  # of the same, in nats


def simulate(
    truth: Truth,
    seeds: dict[str, int],
    generator: np.random.Generator,
    *,
    group_sizes: tuple[str, ...] = ("channel",),
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8),
    horizons: tuple[int, ...] = HORIZONS,
    phases: tuple[str, ...] = ("cooled",),
    first_seed_only: tuple[str, ...] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs and measurements. Group sizes in `first_seed_only` are measured for the first seed alone."""
    theta = truth.law.internal(truth.constants)
    grid = pd.DataFrame(
        [
            (size, SIZES[size], D, phase, group, b)
            for size in seeds
            for D in horizons
            for phase in phases
            for group in group_sizes
            for b in bits
        ],
        columns=["size", "N", "D", "phase", "group_size", "bits"],
    )
    columns = {name: grid[name].to_numpy(float) for name in ("N", "D", "bits")}
    finer = np.where(grid["group_size"] == "channel", 1.0, 0.7)
    grid["level"] = truth.law.predict(theta, columns) * finer
    grid["delta_se"] = np.hypot(truth.error * grid["level"], truth.floor)
    common = truth.misfit * generator.standard_normal(len(grid))
    grid["cell"] = grid["level"] * (1 + common) + grid["delta_se"] * generator.standard_normal(len(grid))

    runs, rows = [], []
    for size, n_seeds in seeds.items():
        for seed in range(n_seeds):
            trunk = _id(f"{size} {seed}")
            effect = generator.standard_normal()
            mine = grid[grid["size"] == size]
            for (D, phase), cells in mine.groupby(["D", "phase"], sort=True):
                run_id = _id(f"{size} {seed} {D} {phase}")
                at = {"run_id": run_id, "trunk_id": trunk, "size": size, "n_blocks": SIZES[size], "tokens": D}
                at |= {"cooled": phase == "cooled", "seed": seed, "numerics_version": 1}
                loss = 2.0 + 1.5 * (D / 2**20) ** -0.3
                more = {
                    "profile": "cpu",
                    "corpus": "python",
                    "loss": loss,
                    "loss_se": 0.01,
                    "diverged": False,
                    "base_run_id": "",
                }
                runs.append({**at, **more, "seconds": D / 4e4})
                own = generator.standard_normal(len(cells))
                spread = np.sqrt(truth.shared) * effect + np.sqrt(1 - truth.shared) * own
                delta = cells["cell"] + truth.seed_cv * cells["level"] * spread
                for cell, value in zip(cells.itertuples(), delta, strict=True):
                    if seed and cell.group_size in first_seed_only:
                        continue
                    quantization = {"method": "rtn", "format": f"INT{cell.bits}", "bits": cell.bits}
                    quantization |= {"activation_format": "none", "kv_format": "none", "calibration": "none"}
                    quantization |= {"group_size": cell.group_size, "bits_per_weight": cell.bits + 0.1}
                    measured = {"loss": loss + value, "delta": value, "delta_se": cell.delta_se, "seconds": 1.0}
                    rows.append({**at, **quantization, **measured})
    key = ["run_id", "format", "group_size"]
    return (
        pd.DataFrame(runs).sort_values("run_id", ignore_index=True),
        pd.DataFrame(rows).sort_values(key, ignore_index=True),
    )


def write_pool(root: Path, tables: tuple[pd.DataFrame, pd.DataFrame]) -> tuple[Path, Path]:
    """The two tables as `reports/runs.csv` and `reports/measurements.csv` under `root`."""
    folder = root / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "runs.csv", folder / "measurements.csv"
    for path, table in zip(paths, tables, strict=True):
        table.to_csv(path, index=False, float_format="%.6g")
    return paths


def fit_table(measurements: pd.DataFrame) -> pd.DataFrame:
    """Measurements under the names that laws use."""
    return measurements.rename(columns={"n_blocks": "N", "tokens": "D"})


def _id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
