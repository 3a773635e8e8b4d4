"""Another corpus beside the pool's, on rows made by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from replications.comparison.corpora import judge

SCATTER = {1: -0.02, 2: 0.0, 3: 0.02}


def rows(level: float, slope: float, seeds: tuple[int, ...] = (1, 2, 3), powers: tuple[int, ...] = (22, 23, 24)) -> Any:
    return pd.DataFrame(
        {
            "size": "S", "tokens": 2.0**power, "cooled": True, "seed": seed, "method": "rtn", "format": "INT3",
            "group_size": "channel",
            "delta": level * np.exp(SCATTER[seed]) * (2.0**power / 2**23) ** (slope + SCATTER[seed]),
        }
        for seed in seeds
        for power in powers
    )  # fmt: skip


def runs(delta: float, seeds: int = 3) -> Any:
    return pd.DataFrame(
        [
            {"size": "S", "how": how, "D": 2.0**24, "learning_rate": 0.004, "delta": value, "sd": 0.004, "dof": 9,
             "seeds": seeds}
            for how, value in (("", 0.0), ("weights=INT3@channel", delta))
        ]
    )  # fmt: skip


def found(**tables: Any) -> dict[tuple[str, str], dict[str, Any]]:
    nothing = runs(0.0).iloc[:0]
    answers = judge(
        {"python": tables["python"], "english": tables["english"]},
        {"python": tables.get("trained", nothing), "english": tables.get("trained_english", nothing)},
    )
    return {(str(one["quantity"]), str(one["corpus"])): one for one in answers}


def test_slopes_and_their_difference() -> None:
    answers = found(python=rows(0.1, 0.5), english=rows(0.08, 0.7))
    assert answers["slope", "python"]["value"] == pytest.approx(0.5)
    assert answers["slope", "english"]["value"] == pytest.approx(0.7)
    steeper = answers["steeper", "both"]
    assert steeper["value"] == pytest.approx(0.2)
    # Both scatter by .02 over three seeds: Welch's four degrees of freedom, 2.776 standard errors of .02 sqrt(2 / 3).
    assert steeper["high"] - steeper["value"] == pytest.approx(2.776 * 0.02 * np.sqrt(2 / 3), rel=1e-3)
    assert answers["ratio", "both"]["value"] == pytest.approx(0.8, rel=1e-6)
    assert answers["ratio", "both"]["seeds"] == (3, 3)


def test_only_common_horizons_and_whole_seeds_count() -> None:
    english = rows(0.1, 0.5, powers=(22, 24))
    assert found(python=rows(0.1, 0.5), english=english)["slope", "python"]["tokens"] == [2.0**22, 2.0**24]
    gap = rows(0.1, 0.5).iloc[1:]
    assert found(python=gap, english=rows(0.1, 0.5))["ratio", "both"]["seeds"] == (2, 3)
    assert found(python=rows(0.1, 0.5), english=rows(0.1, 0.5, powers=(24,))) == {}
    assert found(python=rows(0.1, 0.5, seeds=(1,)), english=rows(0.1, 0.5)) == {}
    assert found(python=rows(0.1, 0.5).assign(cooled=False), english=rows(0.1, 0.5)) == {}


def test_low_precision_runs_differ_by_the_noise_of_both() -> None:
    nothing = rows(0.1, 0.5).iloc[:0]
    answers = found(python=nothing, english=nothing, trained=runs(0.1, seeds=1), trained_english=runs(0.13))
    (answer,) = answers.values()
    assert (answer["quantity"], answer["of"], answer["seeds"]) == ("trained", "weights=INT3@channel", (1, 3))
    assert answer["value"] == pytest.approx(0.03)
    assert answer["high"] - answer["value"] == pytest.approx(2.262 * 0.004 * np.sqrt(2), rel=1e-3)
