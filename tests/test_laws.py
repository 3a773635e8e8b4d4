"""The two laws as data: formulas, gradients, units, published numbers, recovery; and their settings files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from replications import papers
from replications.kumar_precision.law import LAW as KUMAR
from replications.kumar_precision.law import d_crit
from replications.undertrained_qid.law import LAW as OUYANG
from replications.undertrained_qid.law import tokens_to_reach
from shared.errors import BitlawError
from shared.laws.elasticity import elasticities
from shared.laws.fit import fit
from shared.laws.law import Law
from shared.laws.settings import HeldOut, Params, Published, Selection, read_settings

ROOT = Path(__file__).parent.parent
GRIDS = {
    # The papers' own sizes and tokens; Ouyang's fact is 160M to 12B at 1B to 206B tokens, 2 to 4 bits.
    "kumar_precision": ((30e6, 60e6, 110e6, 220e6), (1.5e9, 3e9, 6e9, 13e9, 26e9), (3, 4, 5, 6)),
    "undertrained_qid": ((160e6, 1e9, 12e9), (1e9, 8e9, 60e9, 206e9), (2, 3, 4)),
}
LAWS = pytest.mark.parametrize("paper", list(papers.PAPERS.values()), ids=list(papers.PAPERS))


def published(name: str) -> Published:
    return read_settings(papers.find(name).file("published.yaml"), Published)


def grid(name: str) -> pd.DataFrame:
    N, D, bits = np.meshgrid(*GRIDS[name], indexing="ij")
    return pd.DataFrame({"N": N.ravel(), "D": D.ravel(), "bits": bits.ravel().astype(float)})


def columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: table[name].to_numpy(float) for name in ("N", "D", "bits")}


def truth(paper: papers.Paper) -> np.ndarray:
    return paper.law.internal(published(paper.name).values())


def test_formulas_are_the_printed_ones() -> None:
    table = grid("kumar_precision")
    c = published("kumar_precision").values()
    direct = c["C_T"] * table.D ** c["gamma_D"] / table.N ** c["gamma_N"] * np.exp(-table.bits / c["gamma_post"])
    np.testing.assert_allclose(KUMAR.predict(KUMAR.internal(c), columns(table)), direct, rtol=1e-12)
    table = grid("undertrained_qid")
    c = published("undertrained_qid").values()
    direct = c["k"] * table.D ** c["beta"] / (table.N ** c["alpha"] * table.bits ** c["gamma"])
    np.testing.assert_allclose(OUYANG.predict(OUYANG.internal(c), columns(table)), direct, rtol=1e-12)


@LAWS
def test_gradient_agrees_with_the_complex_step(paper: papers.Paper) -> None:
    at = columns(grid(paper.name))
    theta = truth(paper) + np.random.default_rng(0).normal(0, 0.1, size=(3, 4))
    gradient = paper.law.gradient(theta, at)
    assert gradient.shape == (3, len(at["N"]), 4)
    for k in range(4):
        moved = theta.astype(complex)
        moved[:, k] += 1e-30j
        np.testing.assert_allclose(gradient[..., k], paper.law.predict(moved, at).imag / 1e-30, rtol=1e-12)


@LAWS
def test_raw_and_internal_units_are_inverse(paper: papers.Paper) -> None:
    raw = paper.law.to_raw(truth(paper) + np.random.default_rng(0).normal(0, 0.1, size=(5, 4)))
    np.testing.assert_allclose(paper.law.to_raw(paper.law.from_raw(raw)), raw, rtol=1e-12)


@LAWS
def test_noise_free_data_give_the_constants_back(paper: papers.Paper) -> None:
    table = grid(paper.name)
    table["delta"] = paper.law.predict(truth(paper), columns(table))
    table["delta_se"] = 0.0
    result = fit(paper.law, table, n_starts=16, n_boot=20)
    assert result.status == "CONVERGED"
    np.testing.assert_allclose(paper.law.predict(result.theta, columns(table)), table["delta"], rtol=1e-9)
    for name, constant in published(paper.name).law.items():
        assert result.parameters[name].value == pytest.approx(constant.value, rel=1e-6)


def test_kumar_critical_data_sizes() -> None:
    """D_crit / N of Eq. 13 with Table 2, as recomputed in the notes on the paper (three digits)."""
    c = published("kumar_precision").values()
    expected = {30e6: (546, 2950, 16000), 220e6: (147, 797, 4310), 8e9: (13.9, 75, 406), 70e9: (3.3, 18, 98)}
    for N, ratios in expected.items():
        found = [d_crit(c, N, bits) / N for bits in (3, 4, 5)]
        assert found == pytest.approx(ratios, rel=0.015)
    biased = {**c, "C_T": c["C_T"] * np.exp(c["b"])}
    assert [d_crit(biased, 30e6, bits) / 30e6 for bits in (3, 4, 5)] == pytest.approx((177, 959, 5190), rel=0.005)
    assert c["C_T"] * 26e9 ** c["gamma_D"] / 30e6 ** c["gamma_N"] * np.exp(-3 / c["gamma_post"]) == pytest.approx(
        0.190, abs=5e-4
    )


def test_critical_data_size_is_where_the_loss_turns() -> None:
    """Eq. 13 against the loss itself: B D^-beta + delta has its minimum there."""
    c = published("kumar_precision").values()
    D = d_crit(c, 220e6, 4)
    around = D * np.array([0.999, 1.0, 1.001])
    delta = KUMAR.predict(KUMAR.internal(c), {"N": np.full(3, 220e6), "D": around, "bits": np.full(3, 4.0)})
    loss = c["B"] * around ** -c["beta"] + delta
    assert loss.argmin() == 1


def test_ouyang_at_100T_tokens() -> None:
    """The joint law at 100T tokens for 7B, 70B and 405B, as recomputed in the notes on the paper."""
    c = published("undertrained_qid").values()
    theta = OUYANG.internal(c)
    expected = {2: (50.3, 29.9, 20.1), 3: (5.41, 3.21, 2.16), 4: (1.11, 0.66, 0.45)}
    for bits, values in expected.items():
        at = {"N": np.array([7e9, 70e9, 405e9]), "D": np.full(3, 1e14), "bits": np.full(3, float(bits))}
        np.testing.assert_allclose(OUYANG.predict(theta, at), values, rtol=0.015)
    tokens = tokens_to_reach(c, 0.2, 405e9, 4)
    assert tokens == pytest.approx(21.8e12, rel=0.005)
    at_405B = {"N": np.array([405e9]), "D": np.array([tokens]), "bits": np.array([4.0])}
    assert OUYANG.predict(theta, at_405B)[0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("law", "name", "slopes"),
    [
        (KUMAR, "kumar_precision", {"D": 0.5068, "N": -0.3439, "bits": -1 / 0.5907}),
        (OUYANG, "undertrained_qid", {"D": 0.5251, "N": -0.2261, "bits": -5.4967 / 4}),
    ],
)
def test_elasticities_of_the_published_laws(law: Law, name: str, slopes: dict[str, float]) -> None:
    theta = law.internal(published(name).values())
    found = elasticities(law, theta, None, {"N": 2e5, "D": 8e6, "bits": 4.0})
    assert {key: entry["value"] for key, entry in found.items()} == pytest.approx(slopes, rel=1e-6)
    assert found["bits"]["at"] == 4.0
    assert "low" not in found["D"]


def test_files_of_the_repository_are_valid() -> None:
    held_out = read_settings(papers.HELD_OUT, HeldOut)
    assert len(held_out.formats) == 2
    assert held_out.sizes == ("L",)
    assert read_settings(ROOT / "params.yaml", Params).fit.n_boot >= 1000
    for paper in papers.PAPERS.values():
        selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
        assert set(held_out.formats) < set(selection.formats)
        assert set(published(paper.name).law) == set(paper.law.parameters)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("n_boot:", "n_bot:"), "unknown key 'fit.n_bot', did you mean 'n_boot'?"),
        (("n_boot: 1000", "n_boot: many"), "key 'fit.n_boot' is 'many': input should be a valid integer"),
        (("n_boot: 1000", "n_boot: 3"), "key 'fit.n_boot' is 3: input should be greater than or equal to 20"),
        (("  seed: 1 ", "# "), "key 'fit.seed' is missing"),
        (("fit:", "fits:"), "unknown key 'fits', did you mean 'fit'?"),
        (("fit:", "- fit:"), "params.yaml"),
    ],
)
def test_wrong_settings_get_a_sentence(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(BitlawError) as error:
        read_settings(path, Params)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_published_numbers_need_a_known_confidence(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(
        "paper: a\narxiv: b\nnumbers: {}\nlaw:\n  k: {value: 1, source: memory, confidence: MEM}\n", encoding="utf-8"
    )
    with pytest.raises(BitlawError, match=r"key 'law.k.confidence' is 'MEM'"):
        read_settings(path, Published)
