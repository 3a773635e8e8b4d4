"""The papers, and the files that their fit and their claims read and write.

A paper whose experiment.yaml has a section `fit` is fitted to our cells of post-training quantization; laws of
low-precision training are fitted together (trained.py). Claims that neither decides say which runs they need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from replications.capybara_fp import claims as sun_claims
from replications.capybara_fp.law import LAW as SUN
from replications.comparison import claims as guide_claims
from replications.compression_laws import claims as frantar_claims
from replications.kumar_precision import claims as kumar_claims
from replications.kumar_precision.law import LAW as KUMAR
from replications.precision_predictor import claims as page_claims
from replications.precision_predictor.law import LAW as PAGE
from replications.qat_scaling import claims as chen_claims
from replications.qat_scaling.law import LAW as CHEN
from replications.undertrained_qid import claims as ouyang_claims
from replications.undertrained_qid.law import LAW as OUYANG
from shared.errors import BitlawError, nearest
from shared.files import read_json, sha256_file, write_json
from shared.laws.elasticity import elasticities
from shared.laws.law import Law
from shared.laws.result import Fit
from shared.laws.settings import HeldOut, Params, Published, Selection, read_settings, read_yaml
from shared.laws.study import REFERENCE, study
from shared.laws.tables import read_pool
from shared.report.claim import Finding, ledger
from shared.report.evidence import read_seen
from shared.report.refits import Refit, read_refits

HERE = Path(__file__).parent
HELD_OUT = HERE / "comparison" / "heldout.yaml"
REFITS = Path("published") / "refits.json"
FITS = "fits.json"  # {"fits": {name: a fit as `bitlaw predict` reads it}}
EVIDENCE = Path("comparison") / "evidence.json"  # of the pool's tables, by `replicate compare`
SHOWN = ("channel",)  # group sizes whose exponents are printed


Judge = Callable[[dict[str, Any], dict[str, float], Mapping[str, Refit]], list[Finding]]


@dataclass(frozen=True)
class Paper:
    """A paper's name (its folder), the law that is fitted to our runs (None: its law depends on the table, or it has
    none), and the judge of its claims: (fit.json, published values, refits on published runs) -> findings."""

    name: str
    law: Law | None
    judge: Judge

    def file(self, name: str) -> Path:
        return HERE / self.name / name

    @property
    def fitted(self) -> bool:
        """Whether its law of post-training quantization is fitted to our cells: its experiment.yaml says which."""
        path = self.file("experiment.yaml")
        return self.law is not None and path.exists() and "fit" in read_yaml(path)

    def published(self) -> Published:
        return read_settings(self.file("published.yaml"), Published)


PAPERS = {
    paper.name: paper
    for paper in (
        Paper("kumar_precision", KUMAR, kumar_claims.judge),
        Paper("undertrained_qid", OUYANG, ouyang_claims.judge),
        Paper("compression_laws", None, frantar_claims.judge),
        Paper("qat_scaling", CHEN, chen_claims.judge),
        Paper("capybara_fp", SUN, sun_claims.judge),
        Paper("precision_predictor", PAGE, page_claims.judge),
    )
}
# The guide sums the papers up: its statements are judged by their published numbers.
GUIDE = Paper("comparison", None, lambda fit, published, refits: guide_claims.judge(all_published(), refits))
NO_FIT: dict[str, Any] = {"parts": [], "unfitted": [], "trunk_hours": {}}


def find(name: str) -> Paper:
    """Raises BitlawError for an unknown paper."""
    known = {**PAPERS, GUIDE.name: GUIDE}
    if name not in known:
        raise BitlawError(f"paper '{name}' is unknown{nearest(name, list(known)) or ': use ' + ', '.join(known)}")
    return known[name]


def all_published() -> dict[str, Published]:
    """Every paper's published.yaml, and the comparison's."""
    return {name: paper.published() for name, paper in {**PAPERS, GUIDE.name: GUIDE}.items()}


def kept_fits(paper: str, reports: Path) -> dict[str, Fit]:
    """The fits of a paper's fits.json by part (cooled/channel) or paper/view; none while the file is not there. Raises
    BitlawError for a file that holds something else."""
    path = reports / paper / FITS
    values = read_json(path) if path.exists() else {"fits": {}}
    fits = values.get("fits") if isinstance(values, dict) else None
    if not isinstance(fits, dict):
        raise BitlawError(f"{path}: holds no fits; write it again with `bitlaw replicate fit {paper}`")
    return {name: Fit.from_json(fit) for name, fit in fits.items()}


def write_fit(
    paper: Paper,
    reports: Path,
    params: Path,
    more: Mapping[str, Any] = MappingProxyType({}),
    more_fits: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Fit the paper's law to the two tables of `reports`; returns the path of fit.json. Beside it stands fits.json,
    with each part's whole fit for `bitlaw predict` and the report's curves. `more` and `more_fits` go into the two
    files as they are.

    Raises BitlawError: a paper whose runs the pool does not hold, a table missing or damaged, a wrong key in a
    settings file.
    """
    law = paper.law
    if not paper.fitted or law is None:
        raise BitlawError(
            f"{paper.name} has no law that is fitted to our tables; `bitlaw replicate claims {paper.name}` needs no fit"
        )
    settings = read_settings(params, Params).fit
    selection = read_settings(paper.file("experiment.yaml"), Selection, "fit")
    held_out = read_settings(HELD_OUT, HeldOut)
    published = paper.published()
    tables = {name: reports / name for name in ("runs.csv", "measurements.csv")}
    for path in tables.values():
        if not path.exists():
            raise BitlawError(f"{path}: there is no such table; `bitlaw train` and `bitlaw measure` write it")
    pool = read_pool(tables["runs.csv"], tables["measurements.csv"])
    result = study(law, pool, selection, held_out, settings, str(tables["measurements.csv"]))
    sources = [paper.file("experiment.yaml"), paper.file("published.yaml"), HELD_OUT]
    inputs = {f"reports/{name}": path for name, path in tables.items()}
    inputs |= {path.relative_to(HERE.parent).as_posix(): path for path in sources}
    theta = law.internal({name: constant.value for name, constant in published.law.items()})
    target = reports / paper.name / "fit.json"
    write_json(target.with_name(FITS), {"fits": result.pop("fits") | dict(more_fits)})
    write_json(
        target,
        {
            "paper": paper.name,
            "law": law.name,
            "inputs": {name: sha256_file(path) for name, path in inputs.items()},
            "settings": settings.model_dump(),
            "reference": {name: int(value) for name, value in REFERENCE.items()},
            **result,
            **more,
            "published": {
                "parameters": {name: constant.model_dump() for name, constant in published.law.items()},
                "elasticities": elasticities(law, theta, None, REFERENCE),
            },
        },
    )
    return target


def write_claims(paper: Paper, reports: Path) -> Path:
    """Judge the paper's claims by its fit.json, what it publishes and the refits on published runs, where they are
    there; returns the path of claims.json. Raises BitlawError for a fitted paper without a fit."""
    source = reports / paper.name / "fit.json"
    if paper.fitted and not source.exists():
        raise BitlawError(f"{source}: there is no fit yet; run `bitlaw replicate fit {paper.name}` first")
    fit = read_json(source) if paper.fitted else NO_FIT
    refits = {**read_refits(reports / REFITS), **read_seen(reports / EVIDENCE)}
    refits |= read_seen(reports / paper.name / "evidence.json")  # what only this paper's commands measure
    try:
        findings = paper.judge(fit, paper.published().values(), refits)
    except (KeyError, TypeError) as error:
        if not paper.fitted:
            raise
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
    law = find(fit["paper"]).law
    for part in fit["parts"]:
        if part["group_size"] not in SHOWN:
            continue
        lines.append(f"{part['phase']}, per {part['group_size']}, {part['rows']} rows: {part['status']}")
        for name in law.parameters if law else ():
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
