"""Runs trained in low precision with made-up losses: what `bitlaw train` would leave, from a known law of delta."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.laws.tables import RUNS
from shared.sweep.spec import COMPRESSION, RunSpec

Delta = Callable[[RunSpec], float]
BASE = {"A": 150.0, "alpha": 0.45, "B": 1200.0, "beta": 0.48, "E": 1.2}
SHAPES = {"S": (2, 64, 192), "M": (2, 128, 320), "W": (1, 256, 640)}
M1 = 2**20
PLAN = {("S", 4), ("S", 8), ("S", 16), ("S", 32), ("M", 8), ("M", 16)}  # size, 2^20 tokens


def spec_of(size: str, millions: int, seed: int, **compression: Any) -> RunSpec:
    n_layer, d_model, d_ff = SHAPES[size]
    return RunSpec(
        "c" * 64, n_layer, d_model, d_ff, seed, 0.004 if size == "S" else 0.002, millions * M1, True, **compression
    )


def base_loss(spec: RunSpec) -> float:
    N, D = spec.shape.n_blocks, spec.tokens
    return float(BASE["A"] * N ** -BASE["alpha"] + BASE["B"] * D ** -BASE["beta"] + BASE["E"])


def of_multiplier(spec: RunSpec, eff: float) -> float:
    """Delta of a run whose N counts as N eff."""
    return float(BASE["A"] * spec.shape.n_blocks ** -BASE["alpha"] * (eff ** -BASE["alpha"] - 1))


def write_runs(
    path: Path,
    compressions: Sequence[Mapping[str, Any]],
    delta: Delta,
    *,
    noise: float = 1e-4,
    plan: set[tuple[str, int]] = PLAN,
) -> Path:
    """A runs.csv with the columns that the analysis reads: base runs of three seeds, each compression once at every
    size and horizon of `plan`. Every run scatters by `noise`, so that the deltas of one base run share its part."""
    generator = np.random.default_rng(2)
    rows: list[dict[str, object]] = []
    for size, millions in sorted(plan | {("W", 8), ("W", 16)}):
        base = 0.0
        for seed in (3, 2, 1):
            spec = spec_of(size, millions, seed)
            base = base_loss(spec) + noise * generator.standard_normal()
            rows.append(row(size, spec, base))
        home = spec_of(size, millions, 1).run_id
        for compression in compressions if (size, millions) in plan else ():
            spec = spec_of(size, millions, 1, **compression)
            loss = base_loss(spec) + delta(spec) + noise * generator.standard_normal()
            rows.append(row(size, spec, loss) | {"base_run_id": home, "delta": loss - base, "delta_se": 1e-5})
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def row(size: str, spec: RunSpec, loss: float) -> dict[str, object]:
    """One run as runs.csv has it, unquantized as far as its delta goes."""
    known: dict[str, object] = dict.fromkeys(RUNS, "1") | {name: getattr(spec, name) for name in COMPRESSION}
    known |= {
        "run_id": spec.run_id,
        "trunk_id": spec.trunk_id,
        "size": size,
        "corpus": "python",
        "numerics_version": "2",
    }
    known |= {"d_model": spec.d_model, "d_ff": spec.d_ff, "n_blocks": spec.shape.n_blocks, "tokens": spec.tokens}
    known |= {"cooled": True, "diverged": False, "seed": spec.seed, "learning_rate": spec.learning_rate}
    return known | {"loss": loss, "loss_se": 0.01, "base_run_id": "", "delta": "", "delta_se": ""}
