"""The precision-aware loss predictor: fine-tuning, rounding, penalty laws, effective parameters, the command.

Shape letters: S windows or blocks, T positions.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from ptq_models import CONTEXT, VOCABULARY, folder, text
from ptq_models import model as tiny_model
from scipy.stats import linregress
from scipy.stats import t as student
from typer.testing import CliRunner, Result

from replications.commands import predictor as command
from replications.precision_predictor import finetune as training
from replications.precision_predictor.effective import CleanLaw, clean_of_pool, effective_parameters, effective_sizes
from replications.precision_predictor.figures_predictor import predictor_drawings
from replications.precision_predictor.finetune import Recipe, finetune, schedule
from replications.precision_predictor.forms import FREE, as_the_page, choose, fit_form, table_of
from replications.precision_predictor.law import SIMPLE
from replications.precision_predictor.measure import BITS, integer, losses_of, parse_bits, rounded, rounded_losses
from replications.precision_predictor.predictor import lines, student_interval, summarise
from shared.errors import BitlawError
from shared.files import read_json, six_digits
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import fit
from shared.ptq.layers import weight_OI
from shared.quantize.quantizer import fake_quantize
from shared.report.figures import style
from shared.report.figures.gallery import read_gallery, write_gallery

BASE = 3.0
LAW: dict[str, Callable[[float], float]] = {
    "gap": lambda b: 2e-12 * (16 - b) ** 9.0,
    "exponential": lambda b: 30 * float(np.exp(-b / 0.7)),
    "power": lambda b: 50 / b**5.0,
}
SMALL_RECIPE = Recipe(epochs=2, batch=2, accumulation=2, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows_of(law: Callable[[float], float], **about: Any) -> list[dict[str, Any]]:
    first = {"model": "m", "N": 1e5, "D": 4e6, "text": "t", "finetuned_tokens": 0, "method": "rtn",
             "group_size": "channel", "windows": 8, "base_loss": BASE, "base_loss_se": 0.01}  # fmt: skip
    return [
        {**first, **about, "bits": b, "loss": BASE + law(b), "delta": law(b), "delta_se": 1e-9, "loss_se": 0.01}
        for b in BITS
    ]


def blocks(count: int, length: int = 16) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


# Fine-tuning


def test_the_defaults_are_the_page_s() -> None:
    page = Recipe()
    assert (page.epochs, page.batch, page.accumulation, page.learning_rate) == (2, 2, 4, 5e-5)
    assert command.PAGE_CONTEXT == 512


@given(count=st.integers(1, 40), batch=st.integers(1, 5), accumulation=st.integers(1, 5), epochs=st.integers(1, 3))
def test_each_epoch_has_every_block_once(count: int, batch: int, accumulation: int, epochs: int) -> None:
    steps = schedule(count, Recipe(epochs, batch, accumulation))
    of_epoch = math.ceil(math.ceil(count / batch) / accumulation)
    assert len(steps) == epochs * of_epoch
    for epoch in range(epochs):
        taken = [
            row for step in steps[epoch * of_epoch : (epoch + 1) * of_epoch] for part in step for row in part.tolist()
        ]
        assert sorted(taken) == list(range(count))


def test_a_step_is_that_of_the_mean_loss_at_a_falling_rate() -> None:
    """Against AdamW's first steps written out: mean over all blocks of a step, clipped at norm 1."""
    found, recipe, text_ST = tiny_model("llama"), Recipe(1, 2, 2, 1e-3), blocks(8)
    other = deepcopy(found)
    finetune(found, text_ST, recipe)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    other.train()
    for number, step in enumerate(schedule(8, recipe)):
        ids_BT = text_ST[torch.cat(step)]
        optimizer.zero_grad()
        other(input_ids=ids_BT, labels=ids_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - number / 2)
        optimizer.step()
    for one, two in zip(found.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-6)


@pytest.mark.parametrize(("kind", "optimizer"), [("gpt2", "adamw"), ("gpt2", "adamw8bit")])
def test_a_stopped_run_ends_where_an_unbroken_one_does(kind: str, optimizer: str, tmp_path: Path) -> None:
    """gpt2 has dropout and a head tied to its embedding."""
    recipe, state = Recipe(2, 2, 2, 1e-3, optimizer), tmp_path / "training.safetensors"
    whole, broken = tiny_model(kind, tied=True, width=64), tiny_model(kind, tied=True, width=64)
    first = finetune(whole, blocks(8), recipe)
    finetune(broken, blocks(8), recipe, state, stop=2)
    assert state.exists()
    resumed = tiny_model(kind, tied=True, width=64)
    second = finetune(resumed, blocks(8), recipe, state)
    assert not state.exists()
    assert (first.steps, first.first_loss, first.last_loss) == (second.steps, second.first_loss, second.last_loss)
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_state_of_another_recipe_is_not_taken_up(tmp_path: Path) -> None:
    state = tmp_path / "training.safetensors"
    finetune(tiny_model("llama"), blocks(8), SMALL_RECIPE, state, stop=1)
    with pytest.raises(BitlawError, match=r"another learning rate \(0\.001, not 0\.01\): choose another --out"):
        finetune(tiny_model("llama"), blocks(8), Recipe(2, 2, 2, 0.01), state)


def test_what_diverges_says_so() -> None:
    with pytest.raises(BitlawError, match="is not finite: give a lower --learning-rate"):
        finetune(tiny_model("llama"), blocks(8), Recipe(2, 2, 2, 1e30))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"optimizer": "adamw8bt"}, "did you mean 'adamw8bit'"), ({"epochs": 0}, "epochs must be above zero"),
     ({"learning_rate": float("nan")}, "learning rate must be above zero")],
)  # fmt: skip
def test_a_wrong_recipe(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BitlawError, match=said):
        Recipe(**wrong)


# Rounding


def test_rounded_is_fake_quantize_and_leaves_no_trace() -> None:
    found = tiny_model("gpt2")
    before = [parameter.clone() for parameter in found.parameters()]
    layer = found.transformer.h[0].mlp.c_fc
    expected = fake_quantize(weight_OI(layer), integer(3))
    with rounded(found, integer(3)) as made:
        assert torch.equal(weight_OI(layer), expected)
        assert 3 < made.bits_per_weight < 5
        assert 0 < made.relative_mse < 1
    assert all(torch.equal(one, two) for one, two in zip(found.parameters(), before, strict=True))


def test_stochastic_rounding_is_its_seed_s() -> None:
    found, windows_ST = tiny_model("llama"), blocks(4, CONTEXT + 1)

    def losses(seed: int) -> torch.Tensor:
        with rounded(found, integer(4, rounding="stochastic"), seed):
            return losses_of(found, windows_ST)

    assert torch.equal(losses(1), losses(1))
    assert not torch.equal(losses(1), losses(2))
    assert not torch.equal(losses(1), rounded_losses(found, 4, windows_ST))


@pytest.mark.parametrize("words", ["8,4", "8,6,5,9", "8,6,5,x", "8,6,5,5"])
def test_wrong_bits(words: str) -> None:
    with pytest.raises(BitlawError, match="give at least 4 widths from 2 to 8"):
        parse_bits(words, 4)


def test_bits_are_sorted() -> None:
    assert parse_bits("4, 8 2,3", 4) == (8, 4, 3, 2)


# Penalty laws


@pytest.mark.parametrize("name", list(LAW))
def test_the_form_that_made_the_rows_is_found(name: str) -> None:
    table = table_of(rows_of(LAW[name]), "m")
    forms = {form: fit_form(form, table) for form in FREE}
    found = forms[name]
    assert np.allclose(found.predicted, [LAW[name](b) for b in sorted(BITS)], rtol=1e-6)
    assert found.unseen_error < 1e-5
    choice = choose(list(forms.values()))
    assert (choice["best"], choice["decided"]) == (name, True)


@settings(max_examples=5, deadline=None)
@given(delta=st.floats(1, 25), level=st.floats(-6, 1))
def test_the_exponent_of_the_gap_is_recovered(delta: float, level: float) -> None:
    eta = 10**level / 14**delta
    found = fit_form("gap", table_of(rows_of(lambda b: eta * (16 - b) ** delta), "m")).constants
    assert found["delta"]["value"] == pytest.approx(delta, rel=1e-6)
    assert found["eta"]["value"] == pytest.approx(eta, rel=1e-5)


@pytest.mark.parametrize("name", list(FREE))
def test_intervals_are_those_of_a_regression(name: str) -> None:
    """Against scipy's linregress; the constants themselves are the engine's."""
    scatter = dict(zip(BITS, np.random.default_rng(0).normal(0, 0.1, len(BITS)), strict=True))
    table = table_of(rows_of(lambda b: LAW[name](b) * float(np.exp(scatter[round(b)]))), "m")
    bits = table["bits"].to_numpy()
    x = {"gap": np.log(16 - bits), "exponential": -bits, "power": -np.log(bits)}[name]
    line = linregress(x, np.log(table["delta"]))
    level, power = (fit_form(name, table).constants[key] for key in FREE[name])
    half = student.ppf(0.975, len(x) - 2)
    assert level["value"] == pytest.approx(np.exp(line.intercept), rel=1e-5)
    assert level["low"] == pytest.approx(np.exp(line.intercept - half * line.intercept_stderr), rel=1e-9)
    slopes = [line.slope, line.slope - half * line.stderr, line.slope + half * line.stderr]
    value, low, high = slopes if name != "exponential" else (1 / slopes[0], 1 / slopes[2], 1 / slopes[1])
    assert power["value"] == pytest.approx(value, rel=1e-6)
    assert (power["low"], power["high"]) == pytest.approx((low, high), rel=1e-9)


def test_a_width_left_out_is_not_seen() -> None:
    """One width of an exact law moved tenfold: it alone is missed by that factor by the fit without it."""
    rows = rows_of(LAW["gap"])
    rows[2]["delta"] *= 10
    found = fit_form("gap", table_of(rows, "m"))
    moved = found.bits.tolist().index(rows[2]["bits"])
    assert found.unseen[moved] == pytest.approx(-np.log(10), rel=1e-6)
    assert 0.01 < np.abs(np.delete(found.unseen, moved)).max() < np.log(10)


def test_the_page_s_fit_is_least_squares_of_the_loss() -> None:
    """curve_fit agrees with this project's engine on the page's law, L_base held."""
    noise = np.random.default_rng(1).normal(0, 0.02, len(BITS))
    rows = rows_of(LAW["gap"])
    for row, off in zip(rows, noise, strict=True):
        row["loss"] += off
    table = table_of(rows, "m")
    found = as_the_page(table, BASE)
    ours = fit(SIMPLE, table, recipe="least-squares", fixed={"L_base": BASE}, n_boot=20, name="m")
    assert found["status"] == "CONVERGED"
    assert found["delta"]["value"] == pytest.approx(ours.parameters["delta"].value, rel=1e-3)
    assert found["rms"] == pytest.approx(ours.rms, rel=1e-5)


def test_nothing_is_chosen_where_criteria_disagree() -> None:
    rows = rows_of(lambda b: float(np.sqrt(LAW["gap"](b) * LAW["power"](b))))
    choice = choose([fit_form(form, table_of(rows, "m")) for form in ("gap", "power")])
    few = choose([fit_form(form, table_of(rows[:4], "m")) for form in FREE])
    assert not few["decided"]
    assert "under five widths there is no AICc" in few["statement"]
    assert choice["statement"].startswith(choice["best"] if choice["decided"] else "undecided")


def test_five_widths_decide_nothing() -> None:
    """Exact rows of one form, which AICc names by far: decided on six widths, not on five."""
    rows = rows_of(LAW["exponential"])
    six, five = (choose([fit_form(form, table_of(some, "m")) for form in FREE]) for some in (rows, rows[1:]))
    assert (six["best"], six["decided"]) == (five["best"], True) == ("exponential", True)
    assert not five["decided"]
    assert five["statement"].startswith("undecided (nearest: exponential); 5 widths, 6 are the least to decide; AICc:")


def test_a_law_needs_widths_that_are_clear() -> None:
    rows = rows_of(LAW["gap"])
    for row in rows[:3]:
        row["delta_se"] = 1.0
    with pytest.raises(BitlawError, match="m: 3 bit widths have a penalty clear of zero, 4 are the least"):
        table_of(rows, "m")
    with pytest.raises(BitlawError, match="each bit width once"):
        table_of([*rows, rows[0]], "m")


# Effective parameters


def clean(A: float = 30.0, alpha: float = 0.2, smallest_N: float | None = None) -> CleanLaw:
    theta = CHINCHILLA.internal({"A": A, "alpha": alpha, "B": 500.0, "beta": 0.4, "E": 1.0})
    return CleanLaw(CHINCHILLA, np.stack([theta, theta, theta]), "a law", smallest_N)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 1.0), N=st.floats(1e4, 1e9), alpha=st.floats(0.05, 0.6))
def test_effective_sizes_invert_the_law(share: float, N: float, alpha: float) -> None:
    """Chinchilla's closed form: A N_eff^-alpha = A N^-alpha + delta."""
    delta = 30 * ((share * N) ** -alpha - N**-alpha)
    assert effective_sizes(clean(alpha=alpha), N, 1e7, delta)[0] == pytest.approx(share * N, rel=1e-6)


def test_no_model_is_small_enough() -> None:
    assert effective_sizes(clean(A=1.0), 1e5, 1e7, 5.0)[0] == 0


def test_eta_prime_is_the_best_line_and_first_order_its_limit() -> None:
    bits, N, power = [2.0, 3.0, 4.0, 8.0], 1e6, 3.0
    gap = (16 - np.array(bits)) ** power
    found = effective_parameters(clean(), N, 1e7, bits, (1e-8 * gap).tolist(), 1e-8, power, 16.0)
    lost = N - np.array([row["n_eff"] for row in found["sizes"]])
    assert found["eta_prime"]["value"] == pytest.approx(float(lost @ gap / (gap @ gap)), rel=1e-9)
    assert found["first_order"]["value"] == pytest.approx(1e-8 / (30 * 0.2 * N**-1.2), rel=1e-5)
    assert found["eta_prime"]["value"] == pytest.approx(found["first_order"]["value"], rel=1e-3)  # small penalties
    large = effective_parameters(clean(), N, 1e7, bits, (1e-3 * gap).tolist(), 1e-3, power, 16.0)
    assert large["residual_first_order"] > large["residual"] > 10 * found["residual"]


# The summary and the command


def test_summary_of_three_models(tmp_path: Path) -> None:
    rows = [row for k in range(3) for row in rows_of(LAW["power"], model=f"m{k}")]
    summary = summarise(rows, clean())
    assert [model["choice"]["best"] for model in summary["models"]] == ["power"] * 3
    assert summary["across"]["gap_lead_aicc"]["value"] < 0
    assert summary["across"]["gap_excess_unseen_error"]["n"] == 3
    shares = [row["share"] for row in summary["models"][0]["n_eff"]["sizes"]]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    with style.theme():
        write_gallery(tmp_path, predictor_drawings(six_digits(summary)))
    assert [drawing.name for drawing in read_gallery(tmp_path)] == ["penalty", "effective_parameters"]
    assert any("N_eff / N by a law" in line for line in lines(summary))


def test_a_size_below_the_fitted_ones_is_extrapolated(tmp_path: Path) -> None:
    """The boundary falls between two widths; the figure's markers of the widths below it are hollow."""
    sizes = summarise(rows_of(LAW["gap"]), clean())["models"][0]["n_eff"]
    assert sizes["smallest_N"] is None
    assert {one["extrapolated"] for one in sizes["sizes"]} == {None}
    between = (sizes["sizes"][1]["n_eff"] + sizes["sizes"][2]["n_eff"]) / 2
    summary = summarise(rows_of(LAW["gap"]), clean(smallest_N=between))
    assert [one["extrapolated"] for one in summary["models"][0]["n_eff"]["sizes"]] == [True, True] + [False] * 4
    assert " ".join(lines(summary)).count("(extrapolated)") == 2
    with style.theme():
        drawing = predictor_drawings(six_digits(summary))[1]
    points = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "o"]
    assert [str(line.get_markerfacecolor()) == "white" for line in points] == [True, True] + [False] * 4
    assert "Hollow: extrapolated" in drawing.caption


def test_the_pool_s_law_knows_its_smallest_model() -> None:
    cells = [{"N": N, "D": D, "run_id": f"{N}-{D}", "trunk_id": str(N), "phase": phase, "use": "fitted",
              "loss": 30 * N**-0.2 + 500 * D**-0.4 + 1, "delta": 0.0}
             for N in (1e5, 2e5, 4e5) for D in (4e6, 8e6, 16e6) for phase in ("cooled",)]  # fmt: skip
    trunk = {**cells[0], "N": 5e4, "run_id": "trunk", "phase": "trunk"}
    assert clean_of_pool(pd.DataFrame([*cells, trunk])).smallest_N == 1e5


def test_a_model_without_a_law_stops_nothing(tmp_path: Path) -> None:
    """Two of its widths are clear. The others' summary is as if it were not there."""
    poor = rows_of(LAW["power"], model="poor")
    for row in poor[:4]:
        row["delta_se"] = 1.0
    poor[0]["delta"] = -1e-4
    rich = [row for k in range(3) for row in rows_of(LAW["power"], model=f"m{k}")]
    summary = summarise([*rich, *poor], clean())
    [lost] = [model for model in summary["models"] if model["model"] == "poor"]
    assert lost["missing"].startswith("2 bit widths have a penalty clear of zero, 4 are the least")
    assert "forms" not in lost
    assert summary["across"] == summarise(rich, clean())["across"]
    assert summary["across"]["models"] == 3
    assert summarise([*rich[:12], *poor], clean())["across"] is None
    said = lines(summary)
    assert sum(line.startswith("  no law: 2 bit widths") for line in said) == 1
    assert "(n = 3 with an AICc)" in said[-1]
    with style.theme():
        panels = predictor_drawings(six_digits(summary))[0].figure.axes
    least = min(row["delta"] for row in [*rich, *poor] if row["delta"] > 0)
    assert all(axes.get_ylim()[0] < least for axes in panels)
    for some in (summary, summarise(poor, clean())):
        with style.theme():
            write_gallery(tmp_path, predictor_drawings(six_digits(some)))
            assert len(predictor_drawings(six_digits(some))[0].figure.axes) == len(some["models"])
    with pytest.raises(BitlawError, match="each bit width once"):
        summarise([*rich, rich[0]])


def test_only_finite_leads_are_counted() -> None:
    rows = [row for k in range(3) for row in rows_of(LAW["power"], model=f"m{k}")]
    for row in rows[:2]:  # four widths of the first model are clear: no AICc
        row["delta_se"] = 1.0
    summary = summarise(rows)
    assert (summary["across"]["models"], summary["across"]["gap_lead_aicc"]["n"]) == (3, 2)
    assert "over 3 models" in lines(summary)[-1]
    assert "(n = 2 with an AICc)" in lines(summary)[-1]


def test_summary_says_what_it_lacks() -> None:
    found = summarise(rows_of(LAW["gap"], D=None), clean())
    assert found["across"] is None
    assert found["models"][0]["n_eff"] == {
        "missing": "the effective parameters need the tokens it was trained on (--D)"
    }
    assert "--base-law" in summarise(rows_of(LAW["gap"]))["models"][0]["n_eff"]["missing"]
    with pytest.raises(BitlawError, match="run `bitlaw predictor` first"):
        summarise([])


def test_students_interval() -> None:
    found = student_interval([1.0, 2.0, 3.0])
    assert found["value"] == 2.0
    assert found["high"] == pytest.approx(2 + 4.302653 / np.sqrt(3), rel=1e-6)
    assert student_interval([1.0])["high"] == float("inf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    return {"text": text(parent / "words.txt", 6000), "llama": folder(parent, "llama")}


def run(*words: object) -> Result:
    app = typer.Typer()
    app.command()(command.predictor)
    return CliRunner().invoke(app, [str(word) for word in words])


def small(folders: dict[str, Path], out: Path, *more: object) -> tuple[object, ...]:
    given = ("--text", folders["text"], "--context", CONTEXT, "--windows", 16, "--train-tokens", 4 * CONTEXT)
    return (folders["llama"], *given, "--device", "cpu", "--base-law", "none", "--out", out, *more)


def test_the_command_resumes(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run(*small(folders, out, "--dry-run")).exit_code == 0
    assert not out.exists()
    # Ctrl-C between two widths: what is finished stays.
    from replications.precision_predictor import measure

    whole, count = measure.sweep, 0

    def stopped(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(measure, "sweep", stopped)
    assert run(*small(folders, out)).exit_code != 0
    assert (out / "llama" / "model" / "model.safetensors").exists()
    monkeypatch.setattr(measure, "sweep", whole)
    monkeypatch.setattr(training, "finetune", lambda *_: pytest.fail("trained again"))
    second = run(*small(folders, out))
    assert second.exit_code == 0, second.output
    table = (out / "table.csv").read_bytes()
    summary = read_json(out / "summary.json")
    assert summary["models"][0]["N"] == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64)
    assert run(*small(folders, out)).exit_code == 0
    assert (out / "table.csv").read_bytes() == table
    wrong = run(*small(folders, out, "--epochs", 3))
    assert isinstance(wrong.exception, BitlawError)
    assert "another recipe" in str(wrong.exception)


def test_no_finetune_measures_the_model_itself(folders: dict[str, Path], tmp_path: Path) -> None:
    found = run(*small(folders, tmp_path, "--no-finetune"))
    assert found.exit_code == 0, found.output
    assert not (tmp_path / "llama" / "model").exists()
    assert "curve_fit" in found.output


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--context", 65), "takes 64 positions at most"), (("--bits", "8,4"), "give at least 4 widths"),
     (("--method", "rnt"), "rnt"), (("--base-law", "nowhere.json"), "nowhere.json"),
     (("--group", "5"), "do not divide"), (("--optimizer", "adamw9bit"), "did you mean 'adamw8bit'")],
)  # fmt: skip
def test_bad_options_say_what_is_wrong(
    more: tuple[object, ...], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    found = run(*small(folders, tmp_path, *more))
    assert isinstance(found.exception, BitlawError)
    assert said in str(found.exception)
