"""What the rows of `bitlaw allocate` say, their figures, and the command: it resumes and refuses."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ptq_models import CONTEXT, folder
from typer.testing import CliRunner

from replications.commands import allocate as command
from replications.precision_predictor.allocation_summary import interval, summarise
from replications.precision_predictor.lnq_steps import summarise as summarise_steps
from shared.errors import BitlawError

CHECKPOINTS = ("a", "b", "c", "d")
DELTAS = {"uniform": 0.4, "magnitude": 0.6, "magnitude_linear": 0.5, "fisher": 0.2, "fisher_linear": 0.3}


def rows(checkpoints: tuple[str, ...] = CHECKPOINTS) -> list[dict[str, Any]]:
    """Penalties that double from checkpoint to checkpoint; an allocation keeps its share of them."""
    found = []
    for power, checkpoint in enumerate(checkpoints):
        for budget in (2.5, 4.0):
            for allocation, delta in DELTAS.items():
                peer = "magnitude_linear" if allocation == "fisher_linear" else "magnitude"
                found.append(
                    {
                        "checkpoint": checkpoint,
                        "unit": "channel",
                        "method": "rtn",
                        "budget": budget,
                        "allocation": allocation,
                        "delta": delta * 2**power,
                        "over_uniform": (0.4 - delta) * 2**power,
                        "over_uniform_se": 0.09,
                        "over_magnitude": (DELTAS[peer] - delta) * 2**power,
                    }
                )
    return found


GAINS = (("exact", 1.0, 0.04), ("fisher", 2.0, 0.03), ("page", 1.5, 0.01), ("uniform", 3.0, 0.0))


def studied(grow: bool = False) -> list[dict[str, Any]]:
    found = []
    for power, checkpoint in enumerate(CHECKPOINTS):
        for name, value, gain in (
            ("exact", 1.0, 0.04),
            ("fisher", 2.0, 0.03),
            ("page", 1.5, 0.01),
            ("uniform", 3.0, 0),
        ):
            found.append(
                {
                    "checkpoint": checkpoint,
                    "budget": 2.5,
                    "criterion": name,
                    "quadratic": value * 2**power,
                    "over_uniform": gain * (2**power if grow else 1),
                    "inside_rows": 0.9,
                    "rank_correlation": 0.8 if name == "fisher" else float("nan"),
                }
            )
    return found


def test_gains_and_their_intervals() -> None:
    summary = summarise(rows(), studied())
    cell = next(c for c in summary["cells"] if (c["budget"], c["allocation"]) == (2.5, "fisher"))
    gains = [0.2, 0.4, 0.8, 1.6]
    # By hand: mean .75, standard deviation .6191, t of three degrees of freedom 3.1824.
    spread = math.sqrt(sum((g - 0.75) ** 2 for g in gains) / 3)
    assert cell["over_uniform"]["value"] == pytest.approx(0.75)
    assert cell["over_uniform"]["high"] == pytest.approx(0.75 + 3.182446 * spread / 2, rel=1e-6)
    assert cell["over_magnitude"]["value"] == pytest.approx(1.5)
    assert cell["log_uniform"] == pytest.approx(dict.fromkeys(("value", "low", "high"), math.log(2)) | {"n": 4})
    assert cell["log_magnitude"]["value"] == pytest.approx(math.log(3))
    assert (cell["better"], cell["worse"]) == (4, 0)
    worse = next(c for c in summary["cells"] if (c["budget"], c["allocation"]) == (2.5, "magnitude_linear"))
    assert (worse["better"], worse["worse"]) == (0, 3)  # 0.1 is below 1.96 * 0.09


def test_the_claim_reads_low_budgets_only() -> None:
    """Of the optimum and of the page's map, over uniform and over magnitude by the same rule."""
    s8 = summarise(rows(), [])["s8"]
    assert set(s8) == {"linear", "optimum"}
    (only,) = s8["linear"]["over_magnitude"]
    (log,) = s8["linear"]["log_uniform"]
    assert log["value"] == pytest.approx(math.log(4 / 3))
    assert only["label"] == "channel, rtn, 2.5 bits"
    assert only["value"] == pytest.approx((0.5 - 0.3) * 15 / 4)
    assert only["n"] == 4


def test_two_checkpoints_make_no_interval() -> None:
    cell = summarise(rows(CHECKPOINTS[:2]), [])["cells"][0]
    assert cell["over_uniform"]["low"] is None
    assert interval([1.0, 2.0, 3.0])["low"] == pytest.approx(2 - 4.302653 / math.sqrt(3), rel=1e-6)


def test_surrogates_keep_a_share_of_the_exact_gain() -> None:
    by_name = {one["criterion"]: one for one in summarise(rows(), studied())["surrogates"]}
    assert by_name["exact"]["kept"]["value"] == 1
    assert by_name["fisher"]["kept"]["value"] == pytest.approx(0.5)
    assert by_name["fisher"]["kept_loss"] == pytest.approx(0.75)
    assert by_name["uniform"]["kept"]["value"] == 0
    assert by_name["fisher"]["rank_correlation"] == pytest.approx(0.8)
    assert by_name["page"]["rank_correlation"] is None
    unsure = summarise(rows(), studied(grow=True))["surrogates"]  # gains from .04 to .32: their interval holds zero
    assert {one["kept_loss"] for one in unsure} == {None}


def test_figures(tmp_path: Path) -> None:
    """Drawn from the summary alone, also with nothing measured; the same numbers give the same bytes."""
    from replications.precision_predictor.figures_allocation import allocation_drawings
    from shared.report.figures import style
    from shared.report.figures.gallery import write_gallery

    full = summarise(rows(), studied())
    for name, summary in (("one", full), ("two", copy.deepcopy(full)), ("none", summarise([], []))):
        with style.theme():
            write_gallery(tmp_path / name, allocation_drawings(summary))
    for stem in ("allocation", "surrogates"):
        first = (tmp_path / "one" / f"{stem}.svg").read_bytes()
        assert first == (tmp_path / "two" / f"{stem}.svg").read_bytes()
        assert first != (tmp_path / "none" / f"{stem}.svg").read_bytes()
    assert "needs runs" in (tmp_path / "none" / "allocation.svg").read_text()


def test_the_steps_of_lnq_are_judged_by_the_largest_rise() -> None:
    def row(step: int, before: float, proposed: float, entries: str = "FP32") -> dict[str, Any]:
        about = {"checkpoint": "a", "layer": "x", "bits": 2, "entries": entries}
        return {**about, "step": step, "before": before, "proposed": proposed}

    rows = [row(1, 2.0, 1.0), row(2, 1.0, 1.01), row(1, 2.0, 1.9, "FP16")]
    found = summarise_steps(rows)
    assert found["FP32"]["highest"] == pytest.approx(math.log(1.01))
    assert found["FP32"]["lowest"] == pytest.approx(math.log(0.5))
    assert (found["FP32"]["steps"], found["FP32"]["matrices"]) == (2, 1)
    assert found["FP16"]["highest"] < 0
    assert summarise_steps([]) == {}
    with pytest.raises(BitlawError, match=r"lnq\.csv: a x has no positive objective"):
        summarise_steps([row(1, 0.0, 1.0)])


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """`bitlaw allocate` on a tiny model and random text."""
    import typer

    from shared.ptq.text import Windows

    def windows(_name: str, _tokenizer: Any, context: int, calibration: int, evaluation: int) -> Windows:
        text = torch.randint(0, 64, (calibration + evaluation, context + 1), generator=torch.Generator().manual_seed(0))
        return Windows(text[:calibration, :-1], text[calibration:], "random tokens")

    monkeypatch.setattr("shared.ptq.text.from_dataset", windows)
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command()(command.allocate)
    model = folder(tmp_path, "llama")
    threads = torch.get_num_threads()

    def run(*options: str) -> Any:
        short = ["--units", "channel", "--methods", "rtn", "--budgets", "3", "--allocations", "fisher"]
        small = ["--calibration", "2", "--windows", "3", "--context", str(CONTEXT), "--no-surrogates"]
        where = ["--checkpoints", str(model), "--device", "cpu", "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(made, [*short, *small, *where, *options])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    yield run
    torch.set_num_threads(threads)


def test_the_command_writes_and_resumes(app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = app("--dry-run")
    assert "1 combinations of unit, method and budget" in dry.output
    assert not (tmp_path / "out").exists()
    done = app()
    assert "optimum over uniform, channel, rtn, 3 bits" in done.output
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"trials.csv", "summary.json", "settings.json", "allocation.svg", "figures.json"} <= set(before)
    lines = before["trials.csv"].decode().splitlines()
    assert len(lines) == 1 + 4  # uniform, magnitude, its linear map, fisher
    steps = pd.read_csv(tmp_path / "out" / "lnq.csv")
    # Three widths, two ways to store, four steps: each matrix of the model.
    assert len(steps) == 24 * steps["layer"].nunique()
    assert set(steps.loc[steps["step"] % 2 == 0, "of"]) == {"codes"}
    # Each begins where the last one ended, once the channels that it raised were held back.
    of_one = steps[(steps["layer"] == steps["layer"][0]) & (steps["bits"] == 2) & (steps["entries"] == "FP32")]
    assert (of_one["before"].to_numpy()[1:] <= of_one["proposed"].to_numpy()[:-1] * (1 + 1e-5)).all()
    assert "LNQ, entries in FP32: " in done.output

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("replications.precision_predictor.allocating.open_bench", never)
    app()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(BitlawError, match="holds results with another windows"):
        app("--windows", "4")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--budgets", "1.5"), "a budget of 1.5 bits a weight is outside of 2 to 8"),
        (("--budgets", "9"), "a budget of 9 bits a weight is outside of 2 to 8"),
        (("--budgets", "three"), "--budgets three: could not convert"),
        (("--budgets", ","), "--budgets names nothing"),
        (("--units", "row"), "unit 'row' is unknown"),
        (("--methods", "gided"), "method 'gided' is unknown, did you mean 'guided'"),
        (("--allocations", "fischer"), "allocation 'fischer' is unknown, did you mean 'fisher'"),
        (("--b-min", "6", "--b-max", "4"), "widths from 6 to 4 bits"),
        (("--context", "4096"), "takes 64 positions at most"),
    ],
)
def test_the_command_refuses(app: Any, options: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BitlawError, match=sentence):
        app(*options)
