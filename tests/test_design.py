"""Design of experiments on a small profile."""

import numpy as np
import pandas as pd
import pytest

from replications import design as module
from replications.design import ASSUMED, cells_of, design, levels_and_noise, simulate
from replications.papers import PAPERS
from replications.pool import CellGroup, Expected, Pool, RunGroup, expand, read_pool
from shared.errors import BitlawError
from shared.laws.noise import SeedNoise, seed_noise
from shared.laws.study import CELL


def small(seeds: int = 2, cells: bool = True) -> Expected:
    """Sizes S, S4 and M, four horizons, formats INT2, INT4 and INT6."""
    pool = read_pool()
    tokens = [2**20 * k for k in (2, 4, 8, 16)]
    group = RunGroup(sizes=["S", "S4", "M"], tokens=tokens, seeds=list(range(1, 1 + seeds)))
    measured = CellGroup(
        method="rtn", formats=["INT2", "INT4", "INT6"], group_sizes=["channel", "8"], seeds=list(range(1, 1 + seeds))
    )
    profile = pool.profiles["cpu"].model_copy(
        update={"runs": {"base": [group]}, "measurements": {"rtn": [measured]} if cells else {}}
    )
    return expand("small", "0" * 64, pool=Pool(sizes=pool.sizes, profiles={"small": profile}))


def hours(runs: list[object]) -> float:
    return 3600.0 * len(runs)


def test_the_grid_is_every_checkpoint_and_format_per_channel() -> None:
    grid = cells_of(small())
    assert len(grid) == 3 * 4 * 2 * 2 * 3  # sizes, horizons, seeds, phases, formats
    assert set(grid["group_size"]) == {"channel"}
    assert grid["trunk_id"].nunique() == 6


def test_simulated_pools_have_the_noise_that_was_asked_for() -> None:
    grid = cells_of(small(seeds=20))
    levels, noise, notes = levels_and_noise(grid, None)
    assert noise == ASSUMED
    assert any("no delta is measured yet" in note for note in notes)
    wanted = SeedNoise(cv={"INT2": 0.08, "INT4": 0.08, "INT6": 0.08}, shared=0.5, cells=1, dof=2)
    pool = simulate(grid.assign(level=1e-2 * levels / levels.mean()), wanted, np.random.default_rng(0))
    cooled = pool[pool["phase"] == "cooled"]
    found = seed_noise(cooled, CELL)
    assert np.mean(list(found.cv.values())) == pytest.approx(0.08, rel=0.2)
    assert found.shared == pytest.approx(0.5, abs=0.2)


def test_levels_are_the_measured_ones() -> None:
    grid = cells_of(small())
    law = PAPERS["kumar_precision"].law
    assert law is not None
    theta = law.internal(PAPERS["kumar_precision"].published().values())
    expected = 7.0 * law.predict(theta, {name: grid[name].to_numpy() for name in law.inputs})
    measured = grid.assign(delta=expected, delta_se=1e-9)
    one_phase = measured[(measured["phase"] == "cooled") & (measured["seed"] == "1")]
    levels, _, notes = levels_and_noise(grid, one_phase)
    np.testing.assert_allclose(levels, expected, rtol=1e-6)
    assert any("not measured yet" in note for note in notes)


def test_a_design_says_what_each_part_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTINGS", module.SETTINGS.model_copy(update={"n_boot": 40}))
    found = design(small(), hours, None, pools=2)
    assert found.runs == 3 * 4 * 2 * 2
    assert found.hours == found.runs
    widths = found.expectation.half_width
    assert 0 < widths["kumar_precision", "gamma_D"] < 1
    assert found.expectation.true["kumar_precision", "gamma_D"] == 0.5068
    assert sum(found.expectation.verdicts["kumar_precision", "K1a"].values()) == 2
    saved = {saving.left_out: saving for saving in found.savings}
    assert set(saved) == {f"{what}{size}{end}" for size in ("S", "S4", "M")
                          for what, end in (("size ", ""), ("seeds of ", " but the first"))}  # fmt: skip
    assert saved["size M"].hours == 16
    assert saved["seeds of M but the first"].hours == 8
    assert all(factor > 0 for saving in found.savings for factor in saving.widening.values())
    # Without the largest size the exponent of N is known much worse.
    assert saved["size M"].widening["kumar_precision", "gamma_N"] > 1.1


def test_a_profile_without_cells_gets_a_sentence() -> None:
    with pytest.raises(BitlawError, match="measures no cell"):
        design(small(cells=False), hours, pd.DataFrame(), pools=2)
