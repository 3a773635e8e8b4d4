"""Orders of low-precision training: paired by seed, judged by Student's interval."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from replications.comparison.orders import ORDERS, Order, judge
from replications.pool import expand
from shared.laws.tables import RUNS
from shared.sweep.spec import COMPRESSION, DEFAULTS


def row(seed: int, delta: float, **columns: object) -> dict[str, object]:
    known = dict.fromkeys(RUNS, "1") | {name: DEFAULTS[name] for name in COMPRESSION}
    known |= {"size": "S", "corpus": "python", "tokens": 4194304, "cooled": True, "diverged": False, "seed": seed}
    return known | {"loss": 3.0 + delta, "delta": delta} | columns


def table(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "runs.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def found(path: Path, name: str) -> dict[str, object]:
    (one,) = [seen for seen in judge(path) if seen["name"] == name]
    return one


W3_W4 = "W3 above W4"


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.05, "holds"), (-0.05, "reversed"), (0.0, "undecided")], ids=["up", "down", "none"]
)
def test_the_interval_is_that_of_paired_differences(tmp_path: Path, shift: float, verdict: str) -> None:
    noise = np.array([0.004, -0.003, -0.001])
    common = [0.1, 0.3, 0.2]  # what the seed does to both sides cancels
    rows = [row(k, common[k], weights="INT4@channel") for k in range(3)]
    rows += [row(k, common[k] + shift + noise[k], weights="INT3@channel") for k in range(3)]
    seen = found(table(tmp_path, rows), W3_W4)
    interval = ttest_1samp(shift + noise, 0.0).confidence_interval(0.95)
    assert (seen["low"], seen["high"]) == pytest.approx((interval.low, interval.high))
    assert seen["value"] == pytest.approx(shift + noise.mean())
    assert seen["verdict"] == verdict


def test_other_compressions_and_seeds_without_a_partner_are_no_pairs(tmp_path: Path) -> None:
    rows = [row(1, 0.1, weights="INT4@channel"), row(2, 0.2, weights="INT3@channel")]
    rows += [row(1, 0.3, weights="INT3@channel", activations="INT8@token")]
    rows += [row(1, 0.3, weights="INT3@channel", sparsity=0.5), row(1, 0.3, weights="INT3@channel", cooled=False)]
    rows += [row(1, np.nan, weights="INT3@channel", diverged=True)]
    assert found(table(tmp_path, rows), W3_W4)["verdict"] == "needs runs"


def test_one_pair_has_no_interval(tmp_path: Path) -> None:
    seen = found(table(tmp_path, [row(1, 0.1, weights="INT4@channel"), row(1, 0.2, weights="INT3@channel")]), W3_W4)
    assert seen["low"] is None
    assert seen["verdict"] == "undecided"


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
def test_the_pool_trains_both_sides(order: Order) -> None:
    """Every stated order is of runs that the cpu profile has, over three seeds."""
    runs = expand("cpu", "c" * 64).runs
    for side in (order.worse, order.better):
        want = {name: DEFAULTS[name] for name in COMPRESSION} | dict(side)
        seeds = {run.spec.seed for run in runs if {name: getattr(run.spec, name) for name in want} == want}
        assert len(seeds) >= 3
