"""`bitlaw verify`: which rows are trained again, and what counts as the same."""

from dataclasses import replace

import pytest

from replications.verify import START_SECONDS, chosen, compared
from shared.errors import BitlawError
from shared.sweep.launch import expected_seconds
from shared.sweep.spec import NUMERICS_VERSION, Run, RunSpec

SPEC = RunSpec("c" * 64, n_layer=2, d_model=64, d_ff=192, seed=1, learning_rate=0.004, tokens=2**20, cooled=True)
RUNS = [
    Run(replace(SPEC, tokens=tokens, seed=seed), "S", "python") for tokens in (2**20, 2**25) for seed in range(1, 6)
]
SPEEDS = {"S": 70.0}
MACHINE = {"cpu_model": "a", "torch_version": "2", "device": "cpu"}


def row(loss: float, **columns: str) -> dict[str, str]:
    known = {"diverged": "False", "numerics_version": str(NUMERICS_VERSION), "loss": f"{loss:.6g}"}
    return known | MACHINE | columns


ROWS = {run.spec.run_id: row(3.0) for run in RUNS}


def test_the_choice_fits_the_time_and_changes_with_the_seed() -> None:
    seconds = 600.0
    found = chosen(RUNS, ROWS, SPEEDS, seconds, seed=1)
    assert 0 < sum(expected_seconds([run], SPEEDS) + START_SECONDS for run in found) <= seconds
    assert chosen(RUNS, ROWS, SPEEDS, seconds, seed=1) == found
    assert any(chosen(RUNS, ROWS, SPEEDS, seconds, seed=k) != found for k in range(2, 6))


def test_only_sound_rows_are_trained_again() -> None:
    one, two, three = (run.spec.run_id for run in RUNS[:3])
    rows = {one: row(3.0, diverged="True"), two: row(3.0, numerics_version="1"), three: row(3.0)}
    assert [run.spec.run_id for run in chosen(RUNS, rows, SPEEDS, 1e6, seed=0)] == [three]
    with pytest.raises(BitlawError, match="nothing to verify"):
        chosen(RUNS, {}, SPEEDS, 1e6, seed=0)
    with pytest.raises(BitlawError, match="--minutes"):
        chosen(RUNS, ROWS, SPEEDS, 1.0, seed=0)


@pytest.mark.parametrize(
    ("again", "other", "holds"),
    [(3.0, False, True), (3.0001, False, False), (3.02, True, True), (3.04, True, False), (float("nan"), True, False)],
)
def test_exact_on_the_same_machine_and_within_the_noise_elsewhere(again: float, other: bool, holds: bool) -> None:
    run = RUNS[0]
    new = row(again, **({"torch_version": "3"} if other else {}))
    (verdict,) = compared([run], ROWS, {run.spec.run_id: new}, {2**20: 0.01, 2**25: 1.0})
    assert verdict.exact is not other
    assert verdict.holds is holds


def test_without_noise_another_machine_must_match_too() -> None:
    run = RUNS[0]
    (verdict,) = compared([run], ROWS, {run.spec.run_id: row(3.001, device="cuda")}, {})
    assert not verdict.holds
