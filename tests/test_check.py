"""`bitlaw check`: it passes on the recorded results and names whatever moved, went or came."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated_results import LAWS, TRUTH, empty_fit, write_results
from typer.testing import CliRunner, Result

from replications import results
from replications.cli import app
from shared.errors import BitlawError
from shared.files import read_json, write_json, write_text
from shared.report import goldens

PAPER = "kumar_precision"


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Results with goldens recorded from them."""
    folder = write_results(tmp_path)
    results.update_goldens(folder)
    return folder


def check(reports: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["check", "--reports", str(reports), *more], env={"COLUMNS": "200"})


def change(reports: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the first part of the first paper's fit."""
    fit = read_json(reports / PAPER / "fit.json")
    edit(fit["parts"][0])
    write_json(reports / PAPER / "fit.json", fit)


def test_unchanged_results_pass_in_one_line(reports: Path) -> None:
    done = check(reports)
    assert done.exit_code == 0
    n = len(read_json(reports / "goldens.json")["quantities"])
    assert n > 50
    assert done.output == f"check: {n} quantities within tolerance\n"


def test_a_moved_exponent_fails_and_is_named(reports: Path) -> None:
    def move(part: dict[str, Any]) -> None:
        part["elasticities"]["D"]["value"] += 0.01  # its half-width is 0.045, a tenth of which is allowed

    change(reports, move)
    done = check(reports)
    assert done.exit_code == 1
    assert "1 results differ" in done.output
    assert "kumar_precision/python/cooled/channel/elasticity D" in done.output
    assert "0.46" in done.output
    assert "0.0045" in done.output


def test_what_another_processor_does_to_last_digits_passes(reports: Path) -> None:
    def move(part: dict[str, Any]) -> None:
        for estimate in part["elasticities"].values():
            for end in ("value", "low", "high"):
                estimate[end] *= 1 + 1e-5
        for curve in part["curves"]:
            curve["delta"] = [1.00002 * delta for delta in curve["delta"]]
        part["heldout"]["median_abs_log_error"] += 1e-5

    change(reports, move)
    assert check(reports).exit_code == 0


def test_bare_constants_are_not_compared(reports: Path) -> None:
    def move(part: dict[str, Any]) -> None:
        part["parameters"]["C_T"]["value"] *= 10

    change(reports, move)
    assert check(reports).exit_code == 0


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("elasticity N low", lambda part: part["elasticities"]["N"].update(low=-0.4)),
        ("law-free bits", lambda part: part["law_free"]["bits"].update(value=-1.7)),
        ("held-out error", lambda part: part["heldout"].update(median_abs_log_error=0.14)),
        ("rows", lambda part: part.update(rows=71)),
        ("bits=4", lambda part: [c.update(delta=[1.05 * d for d in c["delta"]]) for c in part["curves"]]),
        ("elasticity bits", lambda part: part["elasticities"]["bits"].update(value=None)),
    ],
)
def test_each_kind_of_quantity_can_fail(reports: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    change(reports, edit)
    done = check(reports)
    assert done.exit_code == 1
    assert name in done.output


def test_a_missing_part_fails(reports: Path) -> None:
    fit = read_json(reports / PAPER / "fit.json")
    gone = fit["parts"].pop()
    write_json(reports / PAPER / "fit.json", fit)
    done = check(reports)
    assert done.exit_code == 1
    assert f"{PAPER}/python/{gone['phase']}/{gone['group_size']}/rows" in done.output
    assert "missing" in done.output


def test_a_missing_paper_fails(reports: Path) -> None:
    (reports / PAPER / "fit.json").unlink()
    assert check(reports).exit_code == 1


def test_a_result_without_golden_fails(reports: Path) -> None:
    values = read_json(reports / "goldens.json")
    removed = values["quantities"].pop(f"{PAPER}/python/trunk/32/elasticity D")
    assert removed["kind"] == "elasticity"
    write_json(reports / "goldens.json", values)
    done = check(reports)
    assert done.exit_code == 1
    assert "not a golden" in done.output


def test_other_tables_are_said(reports: Path) -> None:
    fit = read_json(reports / PAPER / "fit.json")
    fit["inputs"]["reports/runs.csv"] = "0" * 64
    fit["parts"][0]["rows"] += 1
    write_json(reports / PAPER / "fit.json", fit)
    assert "made from other inputs" in check(reports).output


def test_absent_goldens_are_bad_input_not_success(reports: Path) -> None:
    (reports / "goldens.json").unlink()
    done = check(reports)
    assert isinstance(done.exception, BitlawError)
    assert "bitlaw check --update" in str(done.exception)


@pytest.mark.parametrize("content", ["[]", '{"quantities": {}}', '{"inputs": {}, "quantities": {"a": {"kind": "b"}}}'])
def test_a_damaged_file_of_goldens_is_bad_input(reports: Path, content: str) -> None:
    write_text(reports / "goldens.json", content)
    done = check(reports)
    assert isinstance(done.exception, BitlawError)
    assert "goldens.json" in str(done.exception)


def test_update_makes_the_present_results_the_goldens(reports: Path) -> None:
    def move(part: dict[str, Any]) -> None:
        part["elasticities"]["D"]["value"] = 0.6

    change(reports, move)
    assert check(reports).exit_code == 1
    assert check(reports, "--update").exit_code == 0
    assert check(reports).exit_code == 0
    first = (reports / "goldens.json").read_bytes()
    check(reports, "--update")
    assert (reports / "goldens.json").read_bytes() == first


def test_nothing_fitted_is_nothing_to_record(tmp_path: Path) -> None:
    for paper in LAWS:
        write_json(tmp_path / paper / "fit.json", empty_fit(paper))
    with pytest.raises(BitlawError, match="nothing is fitted yet"):
        results.update_goldens(tmp_path)
    assert not (tmp_path / "goldens.json").exists()


def test_goldens_hold_predictions_at_the_corners(reports: Path) -> None:
    values = read_json(reports / "goldens.json")["quantities"]
    name = f"{PAPER}/python/cooled/channel/delta N=106496 D=32M bits=4"
    constants = TRUTH.constants
    expected = constants["C_T"] * 33554432 ** constants["gamma_D"] / 106496 ** constants["gamma_N"]
    assert values[name]["value"] == pytest.approx(expected * 2.718281828 ** (-4 / constants["gamma_post"]), rel=1e-4)


def test_every_kind_has_a_stated_tolerance_and_its_reason() -> None:
    tolerances = goldens.read_tolerances(results.HERE / "tolerances.yaml")
    for kind in goldens.Tolerances.model_fields:
        assert len(tolerances.of(kind).why) > 40


def test_a_misspelt_tolerance_is_bad_input(tmp_path: Path) -> None:
    text = (results.HERE / "tolerances.yaml").read_text(encoding="utf-8")
    write_text(tmp_path / "tolerances.yaml", text.replace("relative: 0.02", "relativ: 0.02"))
    with pytest.raises(BitlawError, match="relativ"):
        goldens.read_tolerances(tmp_path / "tolerances.yaml")


def test_what_claims_are_judged_on_is_held_too(reports: Path) -> None:
    def item(value: float, low: float = 0.8) -> dict[str, Any]:
        return {"value": value, "low": low, "high": 1.1, "scale": "", "note": "", "label": "", "trunks": 3}

    path = reports / "comparison" / "evidence.json"
    write_json(path, {"pool/trained/frantar/eff/W3": item(0.9)})
    results.update_goldens(reports)
    assert check(reports).exit_code == 0
    write_json(path, {"pool/trained/frantar/eff/W3": item(0.9, low=0.7)})
    done = check(reports)
    assert done.exit_code == 1
    assert "pool/trained/frantar/eff/W3 low" in done.output
    assert "1 results differ" in done.output
