"""Slopes within a schedule and ratios between schedules, on rows made by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from replications.comparison.decay import judge


def rows(cooled: bool, level: float, slope: float, sizes: tuple[str, ...] = ("S", "M")) -> pd.DataFrame:
    made = []
    for k, size in enumerate(sizes):
        for power in (22, 23, 24, 25):
            D, wobble = 2.0**power, 0.01 * (-1) ** power
            made.append(
                {
                    "size": size, "n_blocks": 1e5 * (k + 1), "tokens": D, "cooled": cooled, "seed": 1, "method": "rtn",
                    "format": "INT3", "group_size": "channel",
                    "delta": level * (1 + k) * (D / 2**22) ** slope * np.exp(wobble),
                }
            )  # fmt: skip
    return pd.DataFrame(made)


def test_slopes_and_ratios() -> None:
    pool = pd.concat([rows(False, 0.1, 0.3), rows(True, 0.2, 0.5)])
    found: dict[tuple[object, object], dict[str, Any]] = {
        (one["quantity"], one["schedule"]): one for one in judge(pool, rows(True, 0.3, 0.0))
    }
    assert found["slope", "constant"]["value"] == pytest.approx(0.3, abs=0.01)
    assert found["slope", "cooldown"]["value"] == pytest.approx(0.5, abs=0.01)
    assert found["slope", "constant"]["low"] < 0.3 < found["slope", "constant"]["high"]
    low, high = found["slope", "cosine"]["low"], found["slope", "cosine"]["high"]
    assert low < 0 < high < 0.03
    # Twice as much at 2^22 and D^.2 more at each doubling: 2 * 2^(.2 * 1.5) on geometric average.
    assert found["decayed", "cooldown"]["value"] == pytest.approx(2 * 2**0.3, rel=1e-6)
    assert found["growth", "cooldown"]["value"] == pytest.approx(0.2, abs=1e-6)
    assert found["growth", "cosine"]["value"] == pytest.approx(-0.3, abs=1e-6)
    assert found["decayed", "cosine"]["sizes"] == "M S"


def test_short_runs_other_seeds_and_groups_stay_out() -> None:
    pool = rows(False, 0.1, 0.3)
    short = pool.assign(n_blocks=1e9)
    assert judge(short, pool.iloc[:0]) == judge(pool.assign(seed=2), pool.iloc[:0]) == []
    assert judge(pool.assign(group_size="32"), pool.iloc[:0]) == []
    assert [one["quantity"] for one in judge(pool, pool.iloc[:0])] == ["slope"]
    assert judge(pool.iloc[:3], pool.iloc[:0]) == []
