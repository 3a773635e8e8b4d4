"""Which law predicts unseen runs, on tables whose law is known."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from replications.kumar_precision.law import EQ3, EQ3_BIAS
from replications.kumar_precision.law import LAW as KUMAR
from replications.undertrained_qid.law import LAW as OUYANG
from shared.errors import BitlawError
from shared.laws import compare as module
from shared.laws.chinchilla import LAW
from shared.laws.compare import LEFT_OUT, ROLLOUT, compare
from shared.laws.law import Law
from shared.laws.rows import levels

SIZES, HORIZONS, BITS = (1e8, 3e8, 1e9, 3e9), (5e9, 2e10, 8e10), (2.0, 3.0, 4.0, 16.0)
TRUTH = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8, "gamma_w": 2.1, "n_w": 0.25}


def runs(law: Law, constants: dict[str, float], bits: tuple[float, ...], noise: float, seed: int = 0) -> pd.DataFrame:
    N, D, P = (axis.ravel() for axis in np.meshgrid(SIZES, HORIZONS, bits, indexing="ij"))
    table = pd.DataFrame({"N": N, "D": D, "bits": P})
    columns = {name: table[name].to_numpy() for name in law.inputs}
    noise_of = np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    return table.assign(**{law.target: law.predict(law.internal(constants), columns) * noise_of})


def test_the_law_that_made_the_runs_wins_and_the_difference_is_real() -> None:
    table = runs(EQ3_BIAS, {**TRUTH, "n_w": 0.6}, BITS, 0.002)
    found = compare([EQ3, EQ3_BIAS, LAW], table, n_boot=60)
    assert found.winner == "kumar_eq3_bias"
    assert found.real
    assert "is real" in found.statement
    assert [score.law for score in found.scores] == ["kumar_eq3_bias", "kumar_eq3", "chinchilla"]
    best = found.scores[0]
    assert best.aicc == 0.0
    assert found.scores[1].aicc > 10
    assert set(best.errors) == {LEFT_OUT, *ROLLOUT.values()}
    assert best.errors[LEFT_OUT].rows == len(table)
    assert best.errors["rollout in N"].rows == len(table) // 2  # the two larger of four sizes
    assert best.errors[LEFT_OUT].value < 0.005
    assert best.behind is None
    for other in found.scores[1:]:
        assert other.behind is not None
        assert other.behind.value == pytest.approx(other.errors[LEFT_OUT].value - best.errors[LEFT_OUT].value)
        assert 0 < other.behind.low < other.behind.value < other.behind.high
    for error in best.errors.values():
        assert error.low <= error.value * 1.5
        assert error.high > error.low


def test_laws_that_say_the_same_cannot_be_told_apart() -> None:
    """With the bias at zero both laws are true: the one with more constants must not win for real."""
    table = runs(EQ3_BIAS, {**TRUTH, "n_w": 0.0}, BITS, 0.002)
    found = compare([EQ3, EQ3_BIAS], table, n_boot=60)
    assert not found.real
    assert "may be chance" in found.statement


def test_deltas_are_compared_too() -> None:
    constants = {"C_T": 0.06, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.6}
    table = runs(KUMAR, constants, (3.0, 4.0, 5.0, 6.0), 0.05).assign(delta_se=lambda t: 0.03 * t["delta"])
    found = compare([OUYANG, KUMAR], table, n_boot=40)
    assert found.winner == "kumar_eq2"
    assert found.real


def test_trunks_are_resampled_within_each_size() -> None:
    """Three sizes of two trunks each: rows of a trunk together, every size as often as it is."""
    table = pd.DataFrame({"N": np.repeat([1e5, 2e5, 4e5], 8), "trunk_id": np.repeat(list("abcdef"), 4)})
    weights, alone = module._resamples(table, "trunk_id", 50, seed=0)
    assert weights.shape == (51, 24)
    assert (weights[0] == 1).all()
    assert alone == 0
    by_trunk = weights.reshape(51, 6, 4)
    assert (by_trunk == by_trunk[:, :, :1]).all()
    assert len(np.unique(weights)) > 1
    assert (weights.reshape(51, 3, 8).sum(axis=2) == 8).all()


def test_a_size_of_one_trunk_is_resampled_by_its_rows() -> None:
    table = pd.DataFrame({"N": np.repeat([1e5, 2e5, 4e5], 4), "trunk_id": np.repeat(list("abc"), 4)})
    weights, alone = module._resamples(table, "trunk_id", 50, seed=0)
    assert alone == 3
    assert weights.reshape(51, 3, 4).sum(axis=2) == pytest.approx(4)
    assert (np.ptp(weights[1:].reshape(50, 3, 4), axis=2) > 0).any()


@pytest.mark.parametrize("trunks", [1, 2])
def test_no_resample_has_an_error_of_zero(trunks: int) -> None:
    """Of three sizes, the rollout in N predicts one: where none of its trunks were drawn, errors were zero."""
    constants = {"C_T": 0.06, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.6}
    table = pd.concat([runs(KUMAR, constants, (3.0, 4.0, 5.0), 0.05, seed=s).assign(s=s) for s in range(trunks)])
    table = table[table["N"] < 3e9].assign(
        trunk_id=lambda t: [f"{N:g} {s}" for N, s in zip(t["N"], t["s"], strict=True)]
    )
    found = compare([OUYANG, KUMAR], table.reset_index(drop=True), n_boot=60)
    for score in found.scores:
        assert score.errors["rollout in N"].low > 0.2 * score.errors["rollout in N"].value
    assert any("3 of the sizes have one trunk only" in note for note in found.notes) == (trunks == 1)


def test_a_resample_that_has_nothing_to_predict_is_left_out() -> None:
    """Rows without trunks are drawn together: some resamples lack both rows of the largest N."""
    table = runs(KUMAR, {"C_T": 0.06, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.6}, (3.0, 4.0, 5.0), 0.05)
    table = table[(table["N"] < 3e9) & ((table["N"] < 1e9) | ((table["bits"] == 4) & (table["D"] > 5e9)))]
    found = compare([OUYANG, KUMAR], table.reset_index(drop=True), n_boot=100)
    assert all(score.errors["rollout in N"].low > 0 for score in found.scores)


def test_many_values_become_parts_of_equal_size() -> None:
    assert (levels(np.array([3.0, 1.0, 3.0, 2.0])) == [2, 0, 2, 1]).all()
    assert np.bincount(levels(np.random.default_rng(0).uniform(size=800))).tolist() == [100] * 8


def test_aicc_of_squares_is_the_textbook_one() -> None:
    table = runs(EQ3_BIAS, TRUTH, BITS, 0.002)
    found = {s.law: s for s in compare([EQ3, EQ3_BIAS], table, recipe="least-squares", n_boot=20).scores}
    n = len(table)
    textbook = {}
    for name, k in (("kumar_eq3", 7), ("kumar_eq3_bias", 8)):  # with the variance
        textbook[name] = n * np.log(found[name].rms ** 2) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    difference = textbook["kumar_eq3"] - textbook["kumar_eq3_bias"]
    assert found["kumar_eq3"].aicc - found["kumar_eq3_bias"].aicc == pytest.approx(difference, rel=1e-9)


def test_hubers_density_is_one_over_all_residuals() -> None:
    """Its normaliser against numerical integration."""
    x = np.linspace(-2, 2, 400_001)
    for s in (1e-3, 1e-2, 0.1):
        cost = np.where(np.abs(x) < 0.1, x**2 / 2, 0.1 * (np.abs(x) - 0.05))
        integral = np.trapezoid(np.exp(-cost / s), x)
        n, total = 10, 3.0
        least = module._doubled_surprise(total, n, 0.1)
        here = 2 * total / s + 2 * n * np.log(integral)
        assert least <= here * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize(
    ("laws", "change", "sentence"),
    [
        ([LAW], lambda t: t, "a comparison needs two laws"),
        ([LAW, KUMAR], lambda t: t, "chinchilla predicts loss and kumar_eq2 predicts delta"),
        ([LAW, EQ3], lambda t: t[(t["N"] < 1e9) & (t["D"] < 5e10)], "leave nothing to predict"),
        ([LAW, EQ3], lambda t: t.drop(columns="bits"), "column 'bits' is missing"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(
    laws: list[Law], change: Callable[[pd.DataFrame], pd.DataFrame], sentence: str
) -> None:
    table = runs(EQ3_BIAS, TRUTH, BITS, 0.002)
    with pytest.raises(BitlawError, match=sentence):
        compare(laws, change(table).reset_index(drop=True), n_boot=20)
