"""`bitlaw decode` on tiny models, offline; its summary on tables whose truth is known."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from ptq_models import folder, text
from typer.testing import CliRunner, Result

from replications.commands import decode as command
from replications.precision_predictor.decoding_rows import COLUMNS, UNQUANTIZED, bins
from replications.precision_predictor.decoding_summary import estimate, summarise
from replications.precision_predictor.figures_decoding import decoding_figure, draw
from replications.precision_predictor.schedules import default_losses, parse_schedule
from shared.errors import BitlawError
from shared.report.figures import style
from shared.report.figures.gallery import write_gallery

SMALL = ("--context", 20, "--prefix", 8, "--windows", 4, "--prompts", 3, "--labelled", 20, "--group", 16)
STEPS, HIGHEST = 192, 6


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# --- the summary --------------------------------------------------------------------------------------------------

Penalty = Callable[[int, int, float, float], float]


def simulated(penalty: Penalty, models: int = 3, noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as the command writes them, of penalties(width, step, N, D) that no cache carries on."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    names = default_losses(STEPS, HIGHEST)
    for k in range(models):
        run, N, D = f"m{k}", 1e5 * (1 + k), 4e6 * 4**k
        same = {"run": run, "N": N, "D": D, "group": "32", "prefix": 64, "steps": STEPS, "highest": HIGHEST}
        at_width = {w: np.array([penalty(w, t, N, D) for t in range(STEPS)]) for w in range(2, HIGHEST + 1)}
        mean: dict[str, float] = {}
        for name in names:
            widths = parse_schedule(name, STEPS, HIGHEST).widths
            by_step = np.array([at_width[width][t] for t, width in enumerate(widths)])
            by_step = by_step * (1 + noise * rng.standard_normal(STEPS))
            mean[name] = float(by_step.mean())
            one = same | {"part": "penalty", "name": name, "against": "", "se": 1e-3 * mean[name], "count": 8}
            rows.append(one | {"at": "", "bits": float(np.mean(widths)), "value": mean[name]})
            for a, b in bins(STEPS):
                rows.append(one | {"at": f"{a:04d}", "bits": float(np.mean(widths[a:b])), "value": by_step[a:b].mean()})
        for name in ("linear:5:3", "static:5:4:64"):
            widths = parse_schedule(name, STEPS, HIGHEST).widths
            bits = float(np.mean(widths))
            low = int(bits)
            chord = mean[f"uniform:{low}"] * (1 - bits + low) + mean[f"uniform:{min(low + 1, 6)}"] * (bits - low)
            for control, value in (("chord", chord), ("reverse", mean[f"reverse:{name}"])):
                gain = same | {"part": "gain", "name": name, "against": control, "at": "", "bits": bits, "count": 8}
                rows.append(gain | {"value": value - mean[name], "se": 1e-4})
        rows.append(
            same | {"part": "loss", "name": UNQUANTIZED, "against": "", "at": "", "bits": None, "value": 3.0 - k,
                    "se": 0.01, "count": 8}
        )  # fmt: skip
    return rows


def by_remaining(beta: float, delta: float) -> Penalty:
    return lambda width, t, N, D: 40.0 * (STEPS - t) ** beta / N**0.5 * ((16 - width) / 16) ** delta


def test_the_pages_sum_is_found_again_where_it_is_true() -> None:
    found = summarise(simulated(by_remaining(0.7, 9.0)))
    sums = found["sum_over_steps"]
    assert sums["remaining"]["beta"]["value"] == pytest.approx(0.7, abs=1e-3)
    assert sums["remaining"]["delta"]["value"] == pytest.approx(9.0, abs=1e-3)
    assert sums["remaining"]["error"]["value"] < 1e-3
    assert sums["remaining"]["ratio"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert sums["memoryless"]["error"]["value"] < 0.2  # steps of a row differ in it
    assert sums["training"]["error"]["value"] > 0.2  # no step differs from another there
    assert found["early"]["uniform:3"]["value"] > 0.3
    # More at first is right when early steps weigh more; and the split adds up to the gain.
    split = found["split"]["static:5:4:64"]
    assert split["order"]["low"] is not None
    assert split["order"]["value"] > 0
    both = split["order"]["value"] + split["unevenness"]["value"]
    assert both == pytest.approx(found["gain"]["static:5:4:64 against chord"]["value"])


def test_the_training_reading_is_found_again_where_it_is_true() -> None:
    rows = simulated(lambda width, t, N, D: 1e-3 * (D / N) ** 0.5 * ((16 - width) / 12) ** 8.0)
    sums = summarise(rows)["sum_over_steps"]
    assert sums["training"]["law"]["beta"] == pytest.approx(0.5, abs=1e-3)
    assert sums["training"]["law"]["delta"] == pytest.approx(8.0, abs=1e-3)
    assert sums["training"]["error"]["value"] < 1e-3
    assert abs(sums["remaining"]["beta"]["value"]) < 1e-3
    assert sums["memoryless"]["error"]["value"] < 1e-6
    assert all(abs(one["value"]) < 1e-6 for one in sums["carried"].values())  # no cache in this table


def test_where_all_steps_are_alike_an_uneven_schedule_only_loses() -> None:
    found = summarise(simulated(by_remaining(0.0, 9.0)))
    assert found["gain"]["linear:5:3 against chord"]["high"] < 0
    assert found["split"]["linear:5:3"]["order"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["relative_gain"]["linear:5:3 against chord"]["high"] < -0.05
    # Between neighbouring widths there is no unevenness to pay for.
    assert found["gain"]["static:5:4:64 against chord"]["value"] == pytest.approx(0, abs=1e-9)


def test_later_steps_that_weigh_more_are_seen_as_such() -> None:
    found = summarise(simulated(by_remaining(-0.4, 9.0), noise=0.02))
    assert found["split"]["linear:5:3"]["order"]["high"] < 0
    assert found["early"]["uniform:2"]["high"] < 0
    assert found["sum_over_steps"]["remaining"]["beta"]["high"] < 0


def test_intervals_over_models_and_of_one_model() -> None:
    three = estimate([1.0, 2.0, 3.0])
    assert three["low"] == pytest.approx(2 - 4.302653 / 3**0.5)
    assert estimate([1.0], 0.5) == {"value": 1.0, "low": pytest.approx(0.02), "high": pytest.approx(1.98), "runs": 1}
    assert estimate([1.0])["low"] is None
    one = summarise(simulated(by_remaining(0.7, 9.0), models=1))
    assert "windows of one model" in one["about"]["intervals"]
    assert "training" not in one["sum_over_steps"]  # one D/N makes no law
    assert one["gain"]["linear:5:3 against chord"]["low"] is not None


def test_tables_that_cannot_be_summarised() -> None:
    rows = simulated(by_remaining(0.0, 9.0), models=1)
    with pytest.raises(BitlawError, match="no column 'bits'"):
        summarise([{key: v for key, v in row.items() if key != "bits"} for row in rows])
    with pytest.raises(BitlawError, match="is empty"):
        summarise([])
    with pytest.raises(BitlawError, match="mixes runs"):
        summarise([*rows, rows[0] | {"prefix": 32}])
    with pytest.raises(BitlawError, match="no number"):
        summarise([rows[0] | {"value": "much"}])
    whole = summarise([row for row in rows if not row["at"]])
    assert whole["sum_over_steps"] == {}
    texts = [{key: "" if v is None else str(v) for key, v in row.items()} for row in rows]
    assert summarise(texts)["gain"] == summarise(rows)["gain"]  # as a CSV file gives them


def test_the_figure_is_the_same_twice_and_says_when_there_is_nothing(tmp_path: Path) -> None:
    summary = summarise(simulated(by_remaining(0.7, 9.0)))
    for name in ("a", "b"):
        with style.theme():
            write_gallery(tmp_path / name, draw(summary))
    assert (tmp_path / "a/decoding.svg").read_bytes() == (tmp_path / "b/decoding.svg").read_bytes()
    assert len(decoding_figure(summary | {"sum_over_steps": {}}).axes) == 0


# --- the command --------------------------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command.decode)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def fails(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, BitlawError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("decoding")
    return {"text": text(parent / "words.txt"), "llama": folder(parent, "llama"), "gpt2": folder(parent, "gpt2")}


def test_the_command_measures_resumes_and_keeps_settings_apart(files: dict[str, Path], tmp_path: Path) -> None:
    given = ("--text", files["text"], *SMALL, "--out", tmp_path)
    first = run(files["llama"], *given)
    assert first.exception is None, first.output
    with (tmp_path / "table.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert tuple(rows[0]) == COLUMNS
    keys = [tuple(row[c] for c in ("run", "part", "name", "against", "at")) for row in rows]
    assert keys == sorted(keys)
    whole = {(r["part"], r["name"], r["against"]): float(r["value"]) for r in rows if not r["at"]}
    # Gains are differences of penalties; with six digits each.
    chord = whole["penalty", "uniform:4", ""] - whole["penalty", "linear:6:2", ""]
    assert whole["gain", "linear:6:2", "chord"] == pytest.approx(chord, abs=2e-5)
    # A row for each of twelve steps, whose mean is the whole.
    steps = [float(r["value"]) for r in rows if (r["part"], r["name"]) == ("penalty", "linear:6:2") and r["at"]]
    assert len(steps) == 12
    assert np.mean(steps) == pytest.approx(whole["penalty", "linear:6:2", ""], abs=2e-5)
    assert whole["rouge", "uniform:6", ""] > whole["rouge", "uniform:2", ""]
    assert whole["scheduler", "always 0", ""] == whole["rouge", "uniform:3", ""]
    shares = [whole["scheduler_share", f"static:4:3:{h}", "chosen"] for h in (0, 4, 8, 12)]
    assert sum(shares) == pytest.approx(1)
    mixed = sum(s * whole["scheduler", f"always {h}", ""] for s, h in zip(shares, (0, 4, 8, 12), strict=True))
    assert whole["scheduler", "shares", ""] == pytest.approx(mixed, abs=1e-5)
    assert whole["scheduler", "needed", ""] >= whole["scheduler", "always 12", ""] - 1e-3
    assert whole["stored_bits", "nested", ""] < whole["stored_bits", "separate", ""]

    before = (tmp_path / "table.csv").read_bytes()
    second = run(files["llama"], files["gpt2"], *given)
    assert second.exception is None, second.output
    assert "llama\n" not in second.output  # no line of progress: nothing of it was measured again
    after = (tmp_path / "table.csv").read_text().splitlines()
    assert set(before.decode().splitlines()) <= set(after)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["runs"]) == 2
    assert summary["gain"]["linear:6:2 against chord"]["runs"] == 2
    assert (tmp_path / "decoding.svg").exists()
    assert "another 'prefix'" in fails(files["llama"], *given, "--prefix", 4)


def test_what_a_run_costs_is_shown_before(files: dict[str, Path], tmp_path: Path) -> None:
    shown = run(files["llama"], "--text", files["text"], *SMALL, "--out", tmp_path / "none", "--dry-run")
    assert shown.exception is None, shown.output
    assert "schedules on 4 windows of 20 tokens" in shown.output
    assert not (tmp_path / "none").exists()


def test_bad_input_to_the_command(files: dict[str, Path], tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        return fails(files["llama"], "--text", files["text"], *SMALL, *arguments)

    assert "leaves nothing of a context of 20" in said("--prefix", 20)
    assert "the schedule is empty" in said("--schedule", "")
    assert "above high" in said("--schedule", "static:3:4:2")
    assert "low (5 bits) is above high (4)" in said("--low", 5)
    assert "has 7 bits" in said("--high", 7)
    assert "--group none" in said("--group", "none")
    assert "does not divide" in said("--group", 5, "--out", tmp_path / "g")
    assert "takes 64 positions" in said("--context", 65)
    assert "taken from the 4 windows" in said("--prompts", 5)
    assert "is a file" in said("--out", files["text"])
    assert "did you mean" in fails("e917f2b43925", "--dry-run")
    assert "there is no such folder" in fails("./no", "--dry-run")
