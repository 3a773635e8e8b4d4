"""From what the earlier stages wrote under `reports/` to figures, comparison, metrics, goldens and the page."""

import importlib
from pathlib import Path
from types import ModuleType

import pandas as pd

from replications.comparison import derived, elasticities, orders
from replications.comparison import figures as comparison_figures
from replications.papers import GUIDE, HELD_OUT, HERE, PAPERS, REFITS, Paper, all_published, find
from shared.errors import BitlawError
from shared.files import read_json, write_json, write_text
from shared.laws.law import Law
from shared.laws.settings import HeldOut, Published, Selection, read_settings
from shared.laws.study import select
from shared.laws.tables import read_pool
from shared.report import goldens, metrics, page
from shared.report.figures import style
from shared.report.figures.gallery import read_gallery, write_gallery
from shared.report.figures.paper import PHASES, Material
from shared.report.figures.points import COLUMNS, points
from shared.report.prose import blocks, section
from shared.report.provenance import provenance
from shared.report.refits import read_refits
from shared.report.results import Claim, PaperFit, read_claims, read_fit

COMPARISON = "comparison"
FITTED = [name for name, paper in PAPERS.items() if paper.fitted]
FIRST = FITTED[0]  # whose selection of rows the comparison of phases and the plots take


def phase_points(paper: str, reports: Path) -> dict[str, pd.DataFrame]:
    """Measured points of each phase, per channel, as the paper selects them; empty tables while there are no runs."""
    tables = reports / "runs.csv", reports / "measurements.csv"
    if not all(path.exists() for path in tables):
        return {phase: pd.DataFrame(columns=COLUMNS) for phase in PHASES}
    selection = read_settings(find(paper).file("experiment.yaml"), Selection, "fit")
    rows = select(read_pool(*tables), selection, read_settings(HELD_OUT, HeldOut))
    return {phase: points(_law_of(paper), rows, phase, "channel") for phase in PHASES}


def _law_of(paper: str) -> Law:
    """Raises BitlawError for a paper whose law is not fitted to our runs."""
    found = find(paper)
    if found.law is None or not found.fitted:
        raise BitlawError(f"{paper} is not fitted to our runs yet, so it has no figures; use {', '.join(FITTED)}")
    return found.law


def draw_paper(paper: str, reports: Path) -> list[Path]:
    """Draw a paper's figures into its folder of `reports`. Raises BitlawError for an unknown paper or no fit."""
    _law_of(paper)
    module = figures_of(paper)
    material = Material(read_fit(reports / paper / "fit.json"), phase_points(paper, reports))
    with style.theme():
        return write_gallery(reports / paper, module.draw(material))


def compare(reports: Path) -> list[Path]:
    """Write comparison/elasticities.json and derived.json, and draw what sets papers and phases side by side."""
    published = all_published()
    fitted = [read_fit(reports / paper / "fit.json") for paper in FITTED]
    rows = elasticities.compare(fitted, published, read_refits(reports / REFITS))
    target = reports / COMPARISON / "elasticities.json"
    write_json(target, rows)
    derivations = target.parent / "derived.json"
    write_json(derivations, derived.derived(published))
    ordered = target.parent / "orders.json"
    runs = reports / "runs.csv"
    write_json(ordered, orders.judge(runs) if runs.exists() else [])
    phases = phase_points(FIRST, reports)
    with style.theme():
        drawings = comparison_figures.draw(read_json(target), phases["cooled"], phases["trunk"])
        return [target, derivations, ordered, *write_gallery(target.parent, drawings)]


def fits(reports: Path) -> list[PaperFit]:
    """The fits that are there."""
    return [read_fit(path) for paper in FITTED if (path := reports / paper / "fit.json").exists()]


def claims(paper: str, reports: Path) -> list[Claim]:
    """A paper's judged claims; none while the file is not there."""
    path = reports / paper / "claims.json"
    return read_claims(path) if path.exists() else []


def write_report(reports: Path) -> Path:
    """Write index.html, metrics.json and plots/*.csv; returns the page's path."""
    found = {fit.paper: fit for fit in fits(reports)}
    judged = {paper: claims(paper, reports) for paper in (*PAPERS, GUIDE.name)}
    source = provenance(reports)
    shown = [_section(find(paper), found.get(paper), judged[paper], reports) for paper in (*PAPERS, GUIDE.name)]
    compared = reports / COMPARISON / "elasticities.json"
    rows = read_json(compared) if compared.exists() else []
    ordered = reports / COMPARISON / "orders.json"
    pairs = read_json(ordered) if ordered.exists() else []
    fitted = reports / COMPARISON / "trained.json"
    views = read_json(fitted)["views"] if fitted.exists() else []
    write_json(reports / "metrics.json", metrics.flat_metrics(list(found.values()), judged, source))
    metrics.write_plots(reports / "plots", list(found.values()), phase_points(FIRST, reports))
    target = reports / "index.html"
    write_text(target, page.render(shown, source, rows, pairs, views, read_gallery(reports / COMPARISON)))
    return target


def _section(paper: Paper, fit: PaperFit | None, judged: list[Claim], reports: Path) -> page.Paper:
    """What the page shows of a paper. One that is not fitted to our runs shows what it publishes."""
    readme = paper.file("README.md")
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    published = paper.published()
    if paper.fitted:
        module = figures_of(paper.name)
        title, constants = module.TITLE, list(module.PANELS)
    else:
        title, constants = published.paper, [(name, name) for name in published.law]
        fit = _without_runs(paper, published)
    return page.Paper(
        # The comparison has a section of its own on the page; these are the guide's statements.
        id=paper.name if paper is not GUIDE else "guide",
        title=title,
        constants=constants,
        readme=f"replications/{paper.name}/README.md",
        fit=fit,
        claims=judged,
        figures=read_gallery(reports / paper.name) if paper is not GUIDE else [],
        deviations=blocks(section(text, "Deviations")),
    )


def _without_runs(paper: Paper, published: Published) -> PaperFit:
    """The fit of a paper whose runs the pool does not hold: its constants alone."""
    return PaperFit(
        paper=paper.name,
        law=paper.law.name if paper.law else "",
        inputs={},
        settings={},
        selection={},
        parts=(),
        unfitted=(),
        published={"parameters": {name: constant.model_dump() for name, constant in published.law.items()}},
    )


def page_of(reports: Path) -> Path:
    """The page as it was written last. Raises BitlawError when it never was."""
    target = reports / "index.html"
    if not target.exists():
        raise BitlawError(f"{target}: there is no report yet; write it with `bitlaw report`")
    return target


def differences(reports: Path) -> tuple[int, list[goldens.Difference], bool]:
    """Quantities compared, those out of tolerance, and whether the goldens were made from these very inputs."""
    golden, inputs = goldens.read_goldens(reports / "goldens.json")
    present = fits(reports)
    tolerances = goldens.read_tolerances(HERE / "tolerances.yaml")
    fresh = goldens.quantities(present)
    return len(golden), goldens.compare(golden, fresh, tolerances), _inputs(present) == inputs


def update_goldens(reports: Path) -> int:
    """Write the present results as goldens; returns how many. Raises BitlawError when nothing is fitted yet."""
    present = fits(reports)
    fresh = goldens.quantities(present)
    if not fresh:
        raise BitlawError(f"{reports}: nothing is fitted yet, so there is nothing to record; run `dvc repro` first")
    goldens.write_goldens(reports / "goldens.json", fresh, _inputs(present))
    return len(fresh)


def _inputs(present: list[PaperFit]) -> goldens.Inputs:
    return {fit.paper: fit.inputs for fit in present}


def figures_of(paper: str) -> ModuleType:
    """A paper's module of figures: TITLE, PANELS and draw. Raises BitlawError for an unknown paper."""
    find(paper)
    return importlib.import_module(f"replications.{paper}.figures")
