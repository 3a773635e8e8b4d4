"""How cost grows: a fit with rows, a training step with parameters, a sweep with workers."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import least_squares

from benchmarks.resample import CONSTANTS
from benchmarks.step import beside_the_trainer, race
from benchmarks.turns import CONTEXT, SEQUENCES, compared, gemm, in_turns, ratio, spread
from shared.corpus.load import load_corpus
from shared.laws.chinchilla import LAW
from shared.laws.fit import fit
from shared.laws.law import Array
from shared.model import Shape
from shared.sweep.tables import UNREPEATABLE, read_runs
from shared.train.batches import Batches
from shared.train.recipe import Recipe
from shared.train.trunk import Trainer

ROWS = [10**2, 10**3, 10**4, 10**5, 10**6]
# From .1M to 10M block parameters: depth and width both grow.
SHAPES = {
    "S": Shape(2, 64, 192),
    "M": Shape(2, 128, 320),
    "L": Shape(4, 128, 384),
    "W4": Shape(4, 256, 640),
    "X4": Shape(4, 512, 1344),
}
PEER_AT = "W4"  # far above the sizes of benchmarks/step.py
WORKERS = [1, 2, 4]  # the last on any machine: on two cores it shows what too many cost


def rows_of(n: int) -> pd.DataFrame:
    """Runs of Chinchilla's law with noise of 1 %."""
    generator = np.random.default_rng(0)
    N, D = np.exp(generator.uniform(np.log(1e7), np.log(1e10), n)), np.exp(generator.uniform(21, 28, n))
    loss = LAW.predict(LAW.internal(CONSTANTS), {"N": N, "D": D}) * np.exp(0.01 * generator.standard_normal(n))
    return pd.DataFrame({"N": N, "D": D, "loss": loss})


@pytest.mark.filterwarnings("ignore")  # of powers that overflow on the way
@pytest.mark.parametrize("n", ROWS)
def test_fit_by_rows(benchmark: Any, n: int) -> None:
    """A whole fit, 64 starts and 200 resamples, against one solve by scipy from one start without any interval."""
    table = rows_of(n)
    columns = {name: table[name].to_numpy() for name in LAW.inputs}
    goal, found = np.log(table["loss"].to_numpy()), {}
    start = LAW.internal({"A": 300.0, "alpha": 0.3, "B": 1000.0, "beta": 0.3, "E": 1.5})

    def residual(theta: Array) -> Array:
        return goal - np.log(LAW.predict(theta, columns))

    def slope(theta: Array) -> Array:
        return -LAW.gradient(theta, columns) / LAW.predict(theta, columns)[:, None]

    def ours() -> None:
        found["ours"] = fit(LAW, table, n_starts=64, n_boot=200).parameters["alpha"]

    def theirs() -> None:
        solved = least_squares(residual, start, slope, loss="huber", f_scale=1e-3, x_scale="jac")
        found["scipy"] = LAW.raw(solved.x)["alpha"]

    steps: dict[str, Callable[[], object]] = {"ours": ours, "scipy": theirs}
    seconds = in_turns(steps, rounds=3 if n >= 10**5 else 5, warm_up=1)
    benchmark.extra_info |= {
        "rows": n,
        "seconds": float(np.median(seconds["ours"])),
        "scipy_seconds": float(np.median(seconds["scipy"])),
        **compared("over_one_scipy_solve_ratio", seconds, "ours", "scipy"),
        "alpha": found["ours"].value,
        "alpha_low": found["ours"].low,
        "alpha_high": found["ours"].high,
        "scipy_alpha": found["scipy"],
        "true_alpha": CONSTANTS["alpha"],
    }
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SHAPES)
def test_step_by_parameters(benchmark: Any, size: str, tmp_path: Path) -> None:
    """Seconds of a training step, and the share of a large BF16 product's FLOP/s that it reaches; at one size beside
    Hugging Face's Trainer."""
    torch.set_num_threads(1)
    torch.compiler.reset()
    shape, corpus = SHAPES[size], load_corpus("python", Path.cwd())
    recipe = Recipe(shape, seed=1, learning_rate=0.001, batch_tokens=SEQUENCES * CONTEXT)
    trainer = Trainer(recipe, Batches(corpus.train, CONTEXT, SEQUENCES, seed=1), torch.device("cpu"))
    product, flops = gemm()
    seconds = in_turns({"step": lambda: trainer.advance(1.0), "gemm": product}, rounds=15, warm_up=3)
    step_flops = shape.flops_per_token() * SEQUENCES * CONTEXT
    benchmark.extra_info |= {
        "n_blocks": shape.n_blocks,
        "step_flops": step_flops,
        "seconds": float(np.median(seconds["step"])),
        "share_of_gemm_peak": step_flops / flops * ratio(seconds, "gemm", "step"),
        "share_of_gemm_peak_spread": spread(seconds, "gemm", "step"),
        "loss": trainer.loss,
        **(beside_the_trainer(race(shape, False, tmp_path)) if size == PEER_AT else {}),
    }
    benchmark.pedantic(lambda: None, rounds=1)


def test_sweep_by_workers(benchmark: Any, tmp_path: Path) -> None:
    """The profile `micro` from nothing by one worker and by more, start-up included; all must give the same rows."""
    seconds: dict[str, list[float]] = {f"{k}_workers": [] for k in WORKERS}
    tables = {}
    for turn in range(3):
        for k in WORKERS:
            folder = tmp_path / f"{turn}-{k}"
            words = ["train", "micro", "--workers", str(k), "--build", str(folder / "build")]
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "replications.cli", *words, "--reports", str(folder)],
                check=True,
                capture_output=True,
            )
            seconds[f"{k}_workers"].append(time.perf_counter() - begun)
            rows = read_runs(folder).values()
            tables[k] = [{name: cell for name, cell in row.items() if name not in UNREPEATABLE} for row in rows]
    assert all(tables[k] == tables[1] for k in WORKERS)
    benchmark.extra_info |= {
        "runs": len(tables[1]),
        **{f"seconds_{name}": float(np.median(times)) for name, times in seconds.items()},
        **compared("times_faster_than_one_worker", seconds, "1_workers", "2_workers"),
        **compared("times_faster_than_one_worker_by_four", seconds, "1_workers", "4_workers"),
        "same_rows": True,
    }
    benchmark.pedantic(lambda: None, rounds=1)
