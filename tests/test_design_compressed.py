"""What low-precision runs would tell: papers' readings of runs, noise from seeds, intervals by Fisher's information."""

import numpy as np
import pandas as pd
import pytest

from replications.comparison.orders import FLOATS
from replications.compressed import BASE, VIEWS, Widths, compression_of, rows_of
from replications.compression_laws.law import GROUPED
from replications.design_compressed import design_compressed, noise_of, training_noise, truth
from replications.pool import expand
from shared.errors import BitlawError
from shared.laws.chinchilla import LAW
from shared.laws.fit import fit
from shared.laws.information import half_widths
from shared.sweep.spec import COMPRESSION, DEFAULTS

THETA = LAW.internal({"A": 60.0, "alpha": 0.3, "B": 400.0, "beta": 0.35, "E": 1.5})
GRID = np.array([(N, D) for N in (1e5, 4e5, 8e5) for D in (4e6, 8e6, 16e6, 32e6)])
COLUMNS = {"N": GRID[:, 0], "D": GRID[:, 1]}


def view(paper: str, name: str | None = None):  # type: ignore[no-untyped-def]
    return next(v for v in VIEWS if v.paper == paper and name in (None, v.name))


def test_expected_intervals_are_those_of_repeated_fits() -> None:
    sd = np.full(len(GRID), 1e-3)
    expected = half_widths(LAW, THETA, COLUMNS, sd)
    generator = np.random.default_rng(0)
    clean = LAW.predict(THETA, COLUMNS)
    found = []
    for _ in range(60):
        table = pd.DataFrame({**COLUMNS, "loss": clean + sd * generator.standard_normal(len(sd))})
        table["trunk_id"] = [f"t{k}" for k in range(len(table))]
        result = fit(LAW, table, recipe="least-squares", n_starts=8, n_boot=20)
        found.append([result.parameters[name].value for name in ("alpha", "beta")])
    seen = 1.96 * np.std(found, axis=0, ddof=1)
    # The standard deviation of 60 draws is known to a tenth; the law is not quite linear in its constants.
    assert seen == pytest.approx([expected["alpha"], expected["beta"]], rel=0.35)


def test_more_rows_and_less_noise_tell_more() -> None:
    sd = np.full(len(GRID), 1e-3)
    once = half_widths(LAW, THETA, COLUMNS, sd)
    twice = half_widths(LAW, THETA, {k: np.tile(v, 2) for k, v in COLUMNS.items()}, np.tile(sd, 2))
    for name in LAW.parameters:
        assert twice[name] == pytest.approx(once[name] / np.sqrt(2), rel=1e-6)
        assert half_widths(LAW, THETA, COLUMNS, 2 * sd)[name] == pytest.approx(2 * once[name], rel=1e-6)


def test_what_rows_cannot_tell_is_infinite() -> None:
    one_size = {"N": np.full(4, 1e5), "D": GRID[:4, 1]}
    found = half_widths(LAW, THETA, one_size, np.full(4, 1e-3))
    assert found["alpha"] == np.inf
    assert found["E"] == np.inf  # one size: A / N^alpha and E are one number


W4 = {"weights": "INT4@channel"}


@pytest.mark.parametrize(
    ("paper", "name", "fields", "read"),
    [
        ("kumar_precision", "Eq. 4", W4 | {"keys_values": "INT6@token"}, {"P_w": 4, "P_a": 16, "P_kv": 6}),
        ("kumar_precision", "Eq. 4", W4 | {"activations": "INT4@token"}, None),
        ("kumar_precision", "Eq. 4", {"weights": "INT4@8"}, None),
        ("qat_scaling", "W4A4", {"weights": "INT4@8", "activations": "INT4@8"}, {"G": 8}),
        ("qat_scaling", "W4A4", {"weights": "INT4@8", "activations": "INT4@16"}, None),
        ("qat_scaling", "W4A4", {"weights": "INT4@8"}, None),
        ("qat_scaling", "W3A16", {"weights": "INT3@8"}, {"G": 8}),
        ("capybara_fp", None, dict.fromkeys(FLOATS, "E2M1@8"), {"E": 2, "M": 1, "B": 8}),
        ("capybara_fp", None, {"weights": "E2M1@8"}, None),
        ("compression_laws", None, {"weights": "INT4@channel", "activations": "INT4@token"}, {GROUPED: "W4A4"}),
        ("compression_laws", None, {"weights": "BINARY@channel"}, {GROUPED: "W1"}),
        ("compression_laws", None, {"sparsity": 0.5, "sparsity_pattern": "2:4"}, {GROUPED: "2:4"}),
        ("compression_laws", None, {"sparsity": 0.5, "weights": "INT4@channel"}, {GROUPED: "sparse0.5+W4"}),
        ("compression_laws", None, {"weights": "INT4@8"}, None),
    ],
)  # fmt: skip
def test_views_read_their_own_runs(paper: str, name: str | None, fields: dict[str, object], read: object) -> None:
    assert view(paper, name).read(fields, Widths(64, 192)) == read


def test_a_channel_counts_as_the_mean_of_its_inputs() -> None:
    read = view("qat_scaling", "W4A4").read({"weights": "INT4@channel", "activations": "INT4@token"}, Widths(64, 192))
    assert read is not None
    # 2 matrices in 3 of the weights have 64 inputs ... by weights: (4 64^2 + 2 64 192) against 64 192.
    share = 64 * 192 / (4 * 64**2 + 3 * 64 * 192)
    assert read["G"] == pytest.approx(64 ** (1 - share) * 192**share)


def test_a_row_of_the_table_reads_as_its_run() -> None:
    row: dict[str, object] = {name: str(DEFAULTS[name]) for name in COMPRESSION}
    assert compression_of(row) == {}
    row |= {"weights": "INT4@8", "sparsity": "0.5", "sparsity_end": "500", "learned_clip": "True"}
    assert compression_of(row) == {"weights": "INT4@8", "sparsity": 0.5, "learned_clip": True}


def measured(seeds: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    plain: dict[str, object] = {name: DEFAULTS[name] for name in COMPRESSION}
    rows: list[dict[str, object]] = []
    for d_model, d_ff, N in ((64, 192, 106_496), (128, 320, 376_832), (256, 640, 753_664)):
        for D in (4e6, 8e6, 16e6, 32e6):
            loss = float(LAW.predict(THETA, {"N": np.array([N]), "D": np.array([D])})[0])
            known: dict[str, object] = {
                "n_blocks": N,
                "tokens": D,
                "d_model": d_model,
                "d_ff": d_ff,
                "cooled": True,
                "diverged": False,
            }
            known |= {"base_run_id": ""}
            rows += [{**plain, **known, "loss": loss + 0.01 * generator.standard_normal()} for _ in range(seeds)]
            rows += [{**plain, **known, "loss": loss + 0.3, "weights": "INT2@channel", "base_run_id": "x"}]
    return pd.DataFrame(rows)


def test_noise_is_the_scatter_of_seeds() -> None:
    noise = training_noise(measured(seeds=200))
    assert list(noise) == [4_000_000, 8_000_000, 16_000_000, 32_000_000]
    assert list(noise.values()) == pytest.approx([0.01] * 4, rel=0.15)
    assert noise_of(np.array([1e6, 20e6]), {4: 0.1, 16_000_000: 0.2}).tolist() == [0.2, 0.2]
    with pytest.raises(BitlawError, match="two seeds"):
        training_noise(measured(seeds=1))


def test_rows_of_a_view_hold_base_runs() -> None:
    found = rows_of(view("compression_laws"), measured())
    assert found is not None
    law, table = found
    assert law.groups == (BASE, "W2")
    assert sorted(table[GROUPED].unique()) == [0.0, 1.0]
    assert rows_of(view("capybara_fp"), measured()) is None


def test_the_pool_has_a_design() -> None:
    found = design_compressed(expand("cpu", "0" * 64), lambda runs: float(len(runs)), measured())
    assert found is not None
    told = {(row.paper, row.view, row.constant): row for row in found.expected}
    narrow = told["qat_scaling", "W2A16", "gamma_D"]
    assert narrow.half_width < 0.2
    assert min(narrow.without.values()) >= 1 - 1e-9  # leaving runs out never tells more
    assert design_compressed(expand("smoke", "0" * 64), lambda runs: 0.0, measured()) is None


def _run(N: float, D: float, loss: float, fields: dict[str, str], number: int) -> dict[str, object]:
    return {
        **DEFAULTS, **fields, "n_blocks": N, "tokens": D, "loss": loss, "cooled": True, "diverged": False,
        "d_model": 64, "d_ff": 192, "size": f"{N:g}", "seed": 1, "trunk_id": f"t{number}", "base_run_id": "",
    }  # fmt: skip


@pytest.mark.parametrize(("cost", "level"), [(0.1, None), (-0.1, "levels as published: the runs so far put k on a ")])
def test_a_truth_whose_penalty_the_runs_do_not_show_has_the_published_level(cost: float, level: str | None) -> None:
    W4A4 = {"weights": "INT4@8", "activations": "INT4@8"}
    clean = LAW.predict(THETA, COLUMNS)
    rows = [_run(N, D, loss, {}, i) for i, ((N, D), loss) in enumerate(zip(GRID, clean, strict=True))]
    rows += [_run(N, D, loss + cost, W4A4, 100 + i) for i, ((N, D), loss) in enumerate(zip(GRID, clean, strict=True))]
    table = pd.DataFrame(rows)
    found = rows_of(view("qat_scaling", "W4A4"), table)
    assert found is not None
    theta, said = truth(view("qat_scaling", "W4A4"), *found, table)
    k = found[0].raw(theta)["k"]
    if level is None:
        assert (said, k > 1e-3) == ("", True)
    else:
        assert said.startswith(level)
        assert k == pytest.approx(0.1582)
