"""`bitlaw plan`: what it prints and draws, and plans by fits with bootstrap draws."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from replications.commands.plan import plan, plan_base
from replications.planning.budget import Budget
from replications.planning.fitted import view_of
from replications.planning.plan import plan as make
from replications.planning.setting import Setting
from replications.planning.unified import error_of
from shared.errors import BitlawError
from shared.files import write_json
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import Fit, fit
from shared.laws.law import Law

app = typer.Typer()
app.command()(plan)
app.command()(plan_base)
SIZES, TOKENS = (1e7, 4e7, 1.6e8), (1e9, 4e9, 1.6e10)


def run(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Chinchilla's law and Kumar's Eq. 2 fitted to runs that obey them, but for some noise."""
    from replications.kumar_precision.law import LAW as EQ2

    folder, generator = tmp_path_factory.mktemp("fits"), np.random.default_rng(0)
    N, D, bits = (x.ravel() for x in np.meshgrid(SIZES, TOKENS, (3.0, 4.0, 5.0), indexing="ij"))
    clean = 480 / N**0.35 + 2100 / D**0.37 + 1.8
    delta = 0.06 * D**0.5 / N**0.35 * np.exp(-bits / 0.6)

    def noise() -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return 1 + 0.003 * generator.standard_normal(len(N))

    tables = {
        "base": (CHINCHILLA, pd.DataFrame({"N": N, "D": D, "loss": clean * noise()})),
        "rounded": (EQ2, pd.DataFrame({"N": N, "D": D, "bits": bits, "delta": delta * noise()})),
    }
    found = {}
    for name, (law, table) in tables.items():
        found[name] = folder / f"{name}.json"
        recipe = "least-squares-log"
        write_json(found[name], fit(law, table, recipe=recipe, n_boot=40, n_starts=8).to_json())
    return found


def test_the_table_names_each_law_and_its_distance(tmp_path: Path) -> None:
    drawn = tmp_path / "plan.svg"
    arguments = ("--memory", "16", "--train-flops", "1e24", "--groups", "128", "--reports", str(tmp_path))
    text = run(*arguments, "--law", "sun", "--law", "kumar-all", "--plot", str(drawn))
    sun = next(line for line in text.splitlines() if line.startswith("sun "))
    assert "trained" in sun
    assert "N x" in sun
    assert "P* = 7.002 bits" in text
    assert "nothing of INT8" in text
    assert "published constants have no draws" in text
    assert "<svg" in drawn.read_text()
    again = drawn.read_bytes()
    run(*arguments, "--law", "sun", "--law", "kumar-all", "--plot", str(drawn))
    assert drawn.read_bytes() == again, "the same plan, the same bytes"


def test_json_of_a_given_model(tmp_path: Path) -> None:
    drawn = tmp_path / "model.svg"
    text = run(
        *("--N", "8B", "--D", "15T", "--formats", "BF16,INT4", "--groups", "32,channel", "--json"),
        *("--reports", str(tmp_path), "--law", "chen", "--plot", str(drawn)),
    )
    found = json.loads(text)
    assert found["schema"] == "bitlaw.plan/1"
    assert found["budget"]["D"] == 1.5e13
    law = found["laws"][0]
    assert [point["setting"] for point in law["readings"]] == ["BF16", "INT4@32", "INT4@channel"]
    coarse, fine = law["readings"][2]["delta"]["value"], law["readings"][1]["delta"]["value"]
    assert coarse > fine > 0
    assert law["readings"][1]["outside"]["D"] == pytest.approx(150.0)
    assert "added loss" in drawn.read_text()


@pytest.mark.parametrize("option", ["--formats", "--groups"])
@pytest.mark.parametrize("none", ["", " , "])
def test_an_empty_list_allows_nothing(option: str, none: str) -> None:
    with pytest.raises(BitlawError, match=r"^no (format|group) is allowed.*; the nearest possible is "):
        run("--N", "8B", "--D", "15T", option, none)


def test_a_figure_that_is_no_svg_is_refused() -> None:
    with pytest.raises(BitlawError, match=r"name it plan\.svg"):
        run("--N", "8B", "--D", "15T", "--plot", "plan.png")


def test_draws_give_intervals_and_say_how_the_choice_moves(fits: dict[str, Path], tmp_path: Path) -> None:
    budget = Budget(memory=0.1, tokens=1e10, formats=("BF16", "INT5", "INT4", "INT3"))
    found = make(budget, laws=["rounded"], fits=list(fits.values()), reports=tmp_path)
    law = found.laws[0]
    assert law.best is not None
    assert law.choice is not None
    assert law.draws == 40
    loss, delta = law.best.loss, law.best.delta
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low < loss.value < loss.high
    true = 480 / law.best.N**0.35 + 2100 / law.best.D**0.37 + 1.8
    bits = float(law.best.format[3:])
    assert loss.value == pytest.approx(true + 0.06 * law.best.D**0.5 / law.best.N**0.35 * np.exp(-bits / 0.6), rel=0.02)
    assert delta.low is not None
    assert 0 < delta.low < delta.value
    assert sum(law.choice.settings.values()) + law.choice.none == pytest.approx(1.0)
    assert law.choice.N[0] <= law.best.N * 1.2
    assert law.choice.N[1] >= law.best.N / 1.2
    assert law.best.outside == {} or set(law.best.outside) <= {"N"}


def test_critical_tokens_of_a_fit_have_an_interval(fits: dict[str, Path], tmp_path: Path) -> None:
    budget = Budget(N=1e8, D=1e10, formats=("INT3",))
    law = make(budget, laws=["rounded"], fits=list(fits.values()), reports=tmp_path).laws[0]
    critical = law.readings[0].D_crit
    assert critical is not None
    assert critical.low is not None
    assert critical.high is not None
    # beta B D^-beta = gamma_D C_T D^gamma_D / N^gamma_N exp(-P / gamma_post), Eq. 13
    true = (0.37 * 2100 * 1e8**0.35 * np.exp(3 / 0.6) / (0.5 * 0.06)) ** (1 / 0.87)
    assert critical.low < critical.value < critical.high
    assert critical.value == pytest.approx(true, rel=0.15)


def test_a_law_of_delta_needs_its_clean_loss(fits: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BitlawError, match=r"rounded\.json: kumar_eq2 is a law of delta: give a fit of chinchilla"):
        make(Budget(N=1e8, D=1e10), fits=[fits["rounded"]], reports=tmp_path)


def of(law: Law, raw: dict[str, float], **others: object) -> Fit:
    """A fit with these constants and no draws."""
    theta = law.internal(raw)
    domain = dict.fromkeys(law.inputs, (1.0, 1e12))
    values = {
        "law": law.name, "status": "CONVERGED", "reasons": (), "parameters": dict.fromkeys(law.parameters),
        "theta": theta, "draws": np.empty((0, len(theta))), "failed_draws": 0, "start_costs": np.empty(0), "rows": 9,
        "domain": domain, "share_of_starts_within_1pct": 1.0, "condition_number": 1.0, "bound_hits": (), "tau": 0.0,
        "chi2_per_dof": 1.0, "noise": None, "seed_sd": 0.0, "residuals": (), "groups": law.groups,
    }  # fmt: skip
    return Fit(**{**values, **others})  # type: ignore[arg-type]


def test_fits_of_each_form_are_read_or_refused_with_a_reason() -> None:
    from replications.compression_laws.law import effective_parameters
    from replications.qat_scaling.law import LOSS as CHEN

    base = {"A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37, "E": 1.8}
    frantar = effective_parameters(("base", "W4", "W4A4", "2:4"))
    constants = {**base, "eff_W4": 0.9, "eff_W4A4": 0.7, "eff_2:4": 0.8}
    views = view_of(of(frantar, constants), "ours", None, "multipliers")
    assert not isinstance(views, str)
    assert [view.name for view in views] == ["ours-multipliers-weights", "ours-multipliers-all"]
    chen = of(CHEN, {**base, "k": 0.2, "gamma_N": 0.2, "gamma_D": 0.1, "gamma_G": 0.5})
    assert "does not say which weights" in str(view_of(chen, "mine/fit.json", None, ""))
    views = view_of(chen, "ours", None, "W3A16")
    assert not isinstance(views, str)
    assert views[0].read.__name__ == "read"
    assert "INT3" in str(views[0].read(Setting("INT4", 32, 16), np.array([64.0])))


def test_our_fits_are_planned_with(tmp_path: Path) -> None:
    """The committed fits, over a base with few draws."""
    from replications.planning.base import write_base

    reports = Path(__file__).parent.parent / "reports"
    for name in ("runs.csv", "measurements.csv", "kumar_precision/fits.json", "unified/fit.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(reports / name, tmp_path / name)
    params = tmp_path / "params.yaml"
    params.write_text("fit: {n_starts: 8, n_boot: 20, seed: 1, condition_limit: 1.0e+8, signal_to_noise: 4}\n")
    saved = json.loads(write_base(tmp_path, params).read_text())
    found = make(Budget(memory=1e-4, tokens=8e6), laws=["ours-kumar_eq2"], reports=tmp_path)
    assert found.laws[0].origin == "ours"
    assert found.laws[0].best is not None
    assert found.laws[0].best.loss.low is not None
    unified = make(
        Budget(N=2e5, D=8e6, formats=("INT4", "NF4", "E2M1", "UINT4")), laws=["ours-unified"], reports=tmp_path
    )
    rounded = {law.law: law for law in unified.laws}["ours-unified-rounded"]
    assert {point.format for point in rounded.readings} == {"INT4", "NF4", "E2M1"}, "zero points have no error"
    deltas = {point.setting: point.delta for point in rounded.readings}
    assert deltas["INT4@channel"].value > deltas["INT4@32"].value > 0, "a smaller group loses less"
    assert deltas["INT4@32"].low is not None
    from replications.unified.error import relative_error

    assert saved["errors"]["INT4@32"] == pytest.approx(relative_error("INT4@32", 4096.0), rel=1e-5)
    row = np.array([192.0])
    between = error_of(Setting("INT4", "channel", 16), row, saved["errors"])
    assert np.ravel(between)[0] == pytest.approx(relative_error("INT4@channel", 192.0), rel=0.02)


def test_a_damaged_file_of_fits_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "planning").mkdir()
    write_json(tmp_path / "planning" / "base.json", {"fit": []})
    with pytest.raises(BitlawError, match="bitlaw replicate plan-base"):
        make(Budget(N=1e8, D=1e10), reports=tmp_path)
