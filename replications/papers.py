"""The papers whose laws are fitted to our runs, and the files that their fit and their claims read and write."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replications.kumar_precision import claims as kumar_claims
from replications.kumar_precision.law import LAW as KUMAR
from replications.undertrained_qid import claims as ouyang_claims
from replications.undertrained_qid.law import LAW as OUYANG
from shared.errors import BitlawError, nearest
from shared.files import read_json, sha256_file, write_json
from shared.laws.elasticity import elasticities
from shared.laws.law import Law
from shared.laws.settings import HeldOut, Params, Published, Selection, read_settings
from shared.laws.study import REFERENCE, study
from shared.laws.tables import read_pool
from shared.report.claim import Finding, ledger

HERE = Path(__file__).parent
HELD_OUT = HERE / "comparison" / "heldout.yaml"
SHOWN = ("channel",)  # group sizes whose exponents are printed


@dataclass(frozen=True)
class Paper:
    """A paper's name (its folder), its law, and the judge of its claims: (fit.json, published values) -> findings."""

    name: str
    law: Law
    judge: Callable[[dict[str, Any], dict[str, float]], list[Finding]]

    def file(self, name: str) -> Path:
        return HERE / self.name / name


PAPERS = {
    paper.name: paper
    for paper in (
        Paper("kumar_precision", KUMAR, kumar_claims.judge),
        Paper("undertrained_qid", OUYANG, ouyang_claims.judge),
    )
}


def find(name: str) -> Paper:
    """Raises BitlawError for an unknown paper."""
    if name not in PAPERS:
        raise BitlawError(f"paper '{name}' is unknown{nearest(name, list(PAPERS)) or ': use ' + ', '.join(PAPERS)}")
    return PAPERS[name]


def write_fit(paper: Paper, reports: Path, params: Path) -> Path:
    """Fit the paper's law to the two tables of `reports`; returns the path of fit.json.

    Raises BitlawError: a table missing or damaged, a wrong key in a settings file.
    """
    settings = read_settings(params, Params).fit
    selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
    held_out = read_settings(HELD_OUT, HeldOut)
    published = read_settings(paper.file("published.yaml"), Published)
    tables = {name: reports / name for name in ("runs.csv", "measurements.csv")}
    for path in tables.values():
        if not path.exists():
            raise BitlawError(f"{path}: there is no such table; `bitlaw train` and `bitlaw measure` write it")
    pool = read_pool(tables["runs.csv"], tables["measurements.csv"])
    result = study(paper.law, pool, selection, held_out, settings, str(tables["measurements.csv"]))
    sources = [paper.file("experiment.yaml"), paper.file("published.yaml"), HELD_OUT]
    inputs = {f"reports/{name}": path for name, path in tables.items()}
    inputs |= {path.relative_to(HERE.parent).as_posix(): path for path in sources}
    theta = paper.law.internal({name: constant.value for name, constant in published.law.items()})
    target = reports / paper.name / "fit.json"
    write_json(
        target,
        {
            "paper": paper.name,
            "law": paper.law.name,
            "inputs": {name: sha256_file(path) for name, path in inputs.items()},
            "settings": settings.model_dump(),
            "reference": {name: int(value) for name, value in REFERENCE.items()},
            **result,
            "published": {
                "parameters": {name: constant.model_dump() for name, constant in published.law.items()},
                "elasticities": elasticities(paper.law, theta, None, REFERENCE),
            },
        },
    )
    return target


def write_claims(paper: Paper, reports: Path) -> Path:
    """Judge the paper's claims by its fit.json; returns the path of claims.json. Raises BitlawError without a fit."""
    source = reports / paper.name / "fit.json"
    if not source.exists():
        raise BitlawError(f"{source}: there is no fit yet; run `bitlaw replicate fit {paper.name}` first")
    published = read_settings(paper.file("published.yaml"), Published)
    fit = read_json(source)
    try:
        findings = paper.judge(fit, published.values())
    except (KeyError, TypeError) as error:
        raise BitlawError(
            f"{source}: is not what `bitlaw replicate fit {paper.name}` writes (at {error}); run it again"
        ) from error
    target = reports / paper.name / "claims.json"
    write_json(target, ledger(paper.name, findings))
    return target


def exponent_lines(target: Path) -> list[str]:
    """For the terminal: each part's parameters beside the published ones."""
    fit = read_json(target)
    read = fit["selection"]
    lines = [f"{fit['paper']}: {read['rows_fitted']} of {read['rows_read']} rows fitted by {fit['law']}"]
    for part in fit["parts"]:
        if part["group_size"] not in SHOWN:
            continue
        lines.append(f"{part['phase']}, per {part['group_size']}, {part['rows']} rows: {part['status']}")
        for name in find(fit["paper"]).law.parameters:
            estimate = part["parameters"][name]
            known = fit["published"]["parameters"][name]["value"]
            ends = f"[{estimate['low']:.4g}, {estimate['high']:.4g}]"
            lines.append(f"  {name:<11} {estimate['value']:>10.4g} {ends:<24} published {known:.4g}")
    lines += [f"{part['phase']}, {part['group_size']}: not fitted, {part['reason']}" for part in fit["unfitted"]]
    if not fit["parts"]:
        lines.append("needs runs: no part of the pool can be fitted yet")
    return lines


def verdict_lines(target: Path) -> list[str]:
    """For the terminal: one line a claim."""
    judged = read_json(target)
    lines = [f"{claim['id']:<5} {claim['verdict']:<13} {claim['statement']}" for claim in judged["claims"]]
    return [*lines, f"of {judged['tested']} tested, {judged['expected_false_verdicts']:.2g} may be false by chance"]
