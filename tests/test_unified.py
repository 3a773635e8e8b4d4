"""The unified law: errors of formats, its candidates as laws, and a choice that sees the pool's training part alone."""

import ast
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from replications.compressed import Widths
from replications.kumar_precision.law import EQ3_BIAS, EQ4_BIAS
from replications.papers import HELD_OUT
from replications.unified import select
from replications.unified.difference import difference, freed
from replications.unified.error import errors_of, mid_rise, pruned_energy, relative_error
from replications.unified.forms import INPUT, LADDER, LINKS, MEASURES, Form, delta_law, loss_law
from replications.unified.law import CHOSEN, LAW, LOSS
from replications.unified.parts import Part, rounded
from replications.unified.select import Candidate, Selection, choose
from shared.errors import BitlawError
from shared.laws.fit import fit
from shared.laws.law import Array, Law
from shared.laws.settings import HeldOut, read_settings
from shared.laws.tables import RUNS, read_table
from shared.quantize.quantizer import fake_quantize, parse_quantizer

S = Widths(64, 192)
BASE = {"A": 150.0, "alpha": 0.45, "B": 1200.0, "beta": 0.48, "E": 1.2}
FORMS = [Form(link, measure, exponents) for link, measure, exponents in product(LINKS, MEASURES, LADDER)]


@pytest.mark.parametrize(
    ("text", "row"), [("INT4@8", 64), ("INT2@channel", 64), ("E2M1@16", 64), ("MXFP4", 64), ("E1M2@32:e8m0", 64)]
)
def test_errors_are_those_of_normal_values(text: str, row: int) -> None:
    """Half a million values, so that a seed moves the measured error by under 1 %."""
    import torch

    x = torch.randn(8192, row, generator=torch.Generator().manual_seed(0))
    quantizer = parse_quantizer(text)
    assert quantizer is not None
    measured = float((fake_quantize(x, quantizer) - x).square().sum() / x.square().sum())
    assert relative_error(text, row) == pytest.approx(measured, rel=0.015)


def test_errors_fall_with_bits_and_rise_with_groups() -> None:
    by_bits = [relative_error(f"INT{bits}@32", 64) for bits in range(2, 9)]
    by_group = [relative_error(f"INT3@{group}", 64) for group in (8, 16, 32, 64)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_group == sorted(by_group)
    assert relative_error("INT3@channel", 64) == by_group[-1]
    assert relative_error("none", 64) == 0


def test_known_errors() -> None:
    """QuEST's grids (number_formats.md), and 1 - 2 / pi for signs with the best scale."""
    assert [mid_rise(bits) for bits in (1, 2, 3, 4)] == pytest.approx(
        [0.36338, 0.118846, 0.0374397, 0.0115429], rel=1e-5
    )
    assert relative_error("BINARY@channel", 64) == pytest.approx(1 - 2 / np.pi)
    assert pruned_energy(0.5) == pytest.approx(0.0713259, rel=1e-5)
    x = np.sort(np.abs(np.random.default_rng(0).standard_normal((200_000, 4))), axis=1) ** 2
    assert pruned_energy(0.5, "2:4") == pytest.approx(x[:, :2].sum() / x.sum(), rel=0.01)


def test_runs_have_the_errors_of_their_fields() -> None:
    weights = errors_of({"weights": "INT3@8"}, S)
    assert (weights.weights, weights.activations, weights.backward) == (
        pytest.approx(relative_error("INT3@8", 64)),
        0,
        0,
    )
    both = errors_of({"weights": "INT3@8", "activations": "INT3@8"}, S)
    assert both.activations == both.weights
    sun = errors_of({"weights": "E2M1@8", "weights_backward": "E2M1@8", "activations_backward": "E2M1@8"}, S)
    assert sun.backward == pytest.approx(2 * sun.weights)
    eased = errors_of({"weights": "INT4@8", "activations": "INT4@8", "exceptions": "down.activations=INT8@8"}, S)
    assert 0.7 * both.activations * 0.1 < eased.activations < relative_error("INT4@8", 64)
    assert errors_of({"sparsity": 0.5, "sparsity_pattern": "2:4"}, S).pruned == pruned_energy(0.5, "2:4")
    assert errors_of({"keys_values": "INT4@token"}, S).keys_values > 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: relative_error("INT4@8:p99", 64), "scale rule 'p99' for normal values is not known"),
        (lambda: relative_error("UINT4@8", 64), "scale rule 'minmax'"),
        (lambda: pruned_energy(1.0), "cannot be pruned"),
        (lambda: pruned_energy(0.5, "3:4"), "use unstructured or 2:4"),
        (lambda: Form("addition", "energy", "free"), "link 'addition' is unknown, did you mean 'additive'?"),  # type: ignore[arg-type]
        (lambda: delta_law(Form("capacity", "log", "free"), "x"), "fit its law of the loss"),
        (lambda: Selection((), ()).of(1), "no form has as few as 1 constants"),
    ],
)
def test_bad_input_gets_one_sentence(call: "object", sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence.replace("(", "\\(").replace("?", "\\?")):
        call()  # type: ignore[operator]


def grid(streams: bool = False) -> dict[str, Array]:
    rows = [(N, D, e) for N in (1e5, 4e5, 8e5) for D in (2e6, 8e6, 32e6) for e in (0.0, 0.001, 0.01, 0.06, 0.3)]
    N, D, e = np.array(rows).T
    more = {"relative_mse_a": np.where(np.arange(len(e)) % 2, 0.02, 0.0), "trained": (np.arange(len(e)) % 3) / 2}
    return {"N": N, "D": D, "relative_mse": e, **(more if streams else {})}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("more", [False, True])
def test_gradients_of_all_candidates(form: Form, more: bool) -> None:
    law = freed(loss_law(form, streams=("a",) if more else (), trained=more))
    columns = grid(more)
    generator = np.random.default_rng(1)
    theta = law.starts(generator, 3, columns, np.full(45, 3.0), np.zeros(45))
    theta = np.clip(theta, law.bounds[:, 0] + 0.05, law.bounds[:, 1] - 0.05)
    gradient, value = law.gradient(theta, columns), law.predict(theta, columns)
    for k in range(theta.shape[-1]):
        moved = theta.astype(complex)
        moved[:, k] += 1e-30j
        exact = law.predict(moved, columns).imag / 1e-30
        np.testing.assert_allclose(gradient[..., k], exact, rtol=1e-10, atol=1e-12 * np.max(np.abs(value)))
    raw = law.to_raw(theta)
    np.testing.assert_allclose(law.to_raw(law.from_raw(raw)), raw, rtol=1e-10)


@pytest.mark.parametrize("link", LINKS)
def test_noise_free_deltas_give_the_constants_back(link: str) -> None:
    law = difference(loss_law(Form(link, "energy", "free")), BASE)  # type: ignore[arg-type]
    truth = {"k": 0.02, "g": 0.9, "a": 0.2, "b": 0.15}
    assert law.parameters == tuple(truth)
    columns = {name: values[grid()["relative_mse"] > 0] for name, values in grid().items()}
    delta = law.predict(law.internal(truth), columns)
    found = fit(law, pd.DataFrame({**columns, "delta": delta, "delta_se": 0.0}), n_starts=8, n_boot=2)
    assert {name: found.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-6)


def test_the_chosen_law_of_delta_is_the_printed_one() -> None:
    c = {"k": 0.02, "g": 0.9, "a": 0.3, "b": 0.35}
    at = grid()
    direct = c["k"] * at["relative_mse"] ** c["g"] * at["D"] ** c["a"] / at["N"] ** c["b"]
    np.testing.assert_allclose(LAW.predict(LAW.internal(c), at), direct, rtol=1e-12)
    loss = BASE["A"] * at["N"] ** -BASE["alpha"] + BASE["B"] * at["D"] ** -BASE["beta"] + BASE["E"]
    np.testing.assert_allclose(LOSS.predict(LOSS.internal({**BASE, **c}), at), loss + direct, rtol=1e-12)


@pytest.mark.parametrize("law", [EQ3_BIAS, EQ4_BIAS, LOSS], ids=lambda law: law.name)
def test_a_difference_is_the_loss_less_the_unquantized_one(law: Law) -> None:
    made = difference(law, BASE)
    columns = grid() | {"bits": np.full(45, 4.0), **dict.fromkeys(("P_w", "P_a", "P_kv"), np.full(45, 6.0))}
    columns = {name: columns[name] for name in law.inputs}
    constants = BASE | {"k": 0.02, "g": 0.9, "a": 0.3, "b": 0.35}
    constants |= {f"{one}_{x}": {"gamma": 2.0, "n": 0.1}[one] for one in ("gamma", "n") for x in ("w", "a", "kv")}
    whole, own = law.internal(constants), made.internal(constants)
    clean = columns | {name: np.full(45, value) for name, value in law.unquantized.items()}
    expected = law.predict(whole, columns) - law.predict(whole, clean)
    np.testing.assert_allclose(made.predict(own, columns), expected, rtol=1e-9, atol=1e-12)
    assert set(made.parameters) == set(law.parameters) - set(BASE)
    assert made.target == "delta"
    np.testing.assert_allclose(made.both(own, columns)[1], made.gradient(own, columns), rtol=1e-12)  # type: ignore[misc]


def simulated(link: str, hidden: float = 1.0, seed: int = 0) -> Part:
    """Cells of a known form under the name of a part that forms are chosen on; held-out ones times `hidden`."""
    law = difference(loss_law(Form(link, "energy", "free")), BASE)  # type: ignore[arg-type]
    theta = law.internal({"k": 0.05, "g": 0.8, "a": 0.25, "b": 0.1} if link == "additive" else
                         {"k": 2.0, "g": 0.8, "a": 0.1, "b": 0.05})  # fmt: skip
    rows = [(s, N, D, f) for (s, N), D, f in product(
        (("S", 1e5), ("M", 4e5), ("W", 8e5)), (4e6, 8e6, 16e6, 32e6), ("INT2", "INT3", "INT4", "INT6"))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["size", "N", "D", "format"])
    table["relative_mse"] = [relative_error(f"{name}@16", 64) for name in table["format"]]
    delta = law.predict(theta, {name: table[name].to_numpy(float) for name in law.inputs})
    table["delta"] = delta * np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(delta)))
    table["delta_se"] = 0.002 * delta
    table["use"] = np.where(table["D"] > 20e6, "held out", "fitted")
    table.loc[table["use"] == "held out", "delta"] *= hidden
    table["cell"] = table[["size", "D", "format"]].astype(str).agg(" ".join, axis=1)
    table["trunk_id"] = table["size"] + table["format"]
    return Part(select.CHOSEN_ON[0], "", table, (), ())


@pytest.mark.parametrize("link", ["additive", "share"])
def test_the_form_that_made_the_cells_is_chosen(link: str) -> None:
    chosen = choose([simulated(link)], BASE, links=("additive", "share"), measures=("energy", "odds"))
    assert chosen.form.link == link
    assert chosen.form.measure == "energy"
    assert [one.form.constants for one in chosen.exponents] == [4, 3, 2, 2]
    assert chosen.of(3).exponents == "ratio"


def test_held_out_rows_do_not_reach_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out deltas a thousand times as large, and no table of other groups at hand: the same choice to the bit."""
    before = choose([simulated("additive")], BASE, links=("additive",), measures=("energy",))
    monkeypatch.setenv("BITLAW_PUBLISHED_RUNS", "/nowhere")
    monkeypatch.setattr("replications.published.sources.locate", None)
    after = choose([simulated("additive", hidden=1000.0)], BASE, links=("additive",), measures=("energy",))
    assert after == before


def test_nothing_that_chooses_imports_published_runs() -> None:
    """By the imports of every module of this package that `select` reaches, itself included."""
    folder = Path(select.__file__).parent
    seen, todo = set(), ["select"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(
                one.startswith(("replications.published", "replications.unified.published")) for one in names
            )
            todo += [one.split(".")[2] for one in names if one.startswith("replications.unified.")]
    assert {"select", "parts", "score", "forms", "error"} <= seen
    assert "published" not in seen


def test_nothing_to_choose_on_gets_a_sentence() -> None:
    part = simulated("additive")
    few = replace(part, table=part.table.iloc[:5])
    with pytest.raises(BitlawError, match="no part of the pool has 8 cells"):
        choose([few], BASE)


def test_the_registered_form_is_one_of_the_candidates() -> None:
    assert CHOSEN in FORMS
    best = Candidate(CHOSEN, 0.2, {"x": 0.2})
    assert Selection((best,), (best,)).of(4) == CHOSEN


def test_errors_are_near_those_measured_on_our_weights() -> None:
    """The README's figures: cooled checkpoints, integers, all groups; normal values against trained ones."""
    reports = Path(__file__).parent.parent / "reports"
    rules = read_settings(HELD_OUT, HeldOut)
    cells = rounded(reports, read_table(reports / "runs.csv", RUNS), rules)[1].table
    measured = pd.read_csv(reports / "measurements.csv", dtype={"group_size": str})
    both = cells.merge(measured, on=["run_id", "method", "format", "group_size"], suffixes=("", "_measured"))
    off = (both[INPUT] / both[f"{INPUT}_measured"] - 1).abs()
    assert len(off) == len(cells) > 400
    assert off.median() < 0.02
    assert off.max() < 0.09
