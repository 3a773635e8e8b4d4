"""From what the earlier stages wrote under `reports/` to figures, comparison, metrics, goldens and the page."""

import importlib
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pandas as pd

from replications import copying, low_precision, trained
from replications.comparison import (
    copied,
    copied_figure,
    corpora,
    decay,
    derived,
    elasticities,
    evidence,
    inside,
    orders,
    own,
)
from replications.comparison import figures as comparison_figures
from replications.copying import read_comparable
from replications.explorer.explorer import explorer
from replications.papers import EVIDENCE, GUIDE, HELD_OUT, HERE, PAPERS, REFITS, Paper, all_published, find
from replications.unified import results as unified
from shared.errors import BitlawError
from shared.files import write_json, write_text
from shared.laws.law import Law
from shared.laws.settings import HeldOut, Published, Selection, read_settings
from shared.laws.study import FITTED as FITTED_ROWS
from shared.laws.study import select
from shared.laws.tables import MEASUREMENTS, RUNS, Kind, read_pool, read_table
from shared.report import goldens, metrics, page
from shared.report.compared import read_copying, read_rows
from shared.report.conclusion import WORDS
from shared.report.evidence import read_seen
from shared.report.figures import style
from shared.report.figures.gallery import Drawing, read_gallery, write_gallery
from shared.report.figures.paper import PHASES, Material
from shared.report.figures.points import COLUMNS, points
from shared.report.prose import blocks, section
from shared.report.provenance import provenance
from shared.report.refits import read_refits
from shared.report.results import Claim, PaperFit, read_claims, read_fit

COMPARISON = "comparison"
# Columns of measurements.csv beside those that a pool of cells needs.
OF_RUN: dict[str, Kind] = {
    "size": "text", "n_blocks": "positive", "tokens": "positive", "cooled": "flag", "seed": "text",
    "relative_mse": "maybe",
}  # fmt: skip
FITTED = [name for name, paper in PAPERS.items() if paper.fitted]
DRAWN = [name for name, paper in PAPERS.items() if paper.file("figures.py").exists()]
FIRST = FITTED[0]  # whose selection of rows the comparison of phases and the plots take


def phase_points(paper: str, reports: Path) -> dict[str, pd.DataFrame]:
    """Measured points of each phase, per channel, as the paper selects them; empty tables while there are no runs."""
    rows = _selected(paper, reports)
    if rows is None:
        return {phase: pd.DataFrame(columns=COLUMNS) for phase in PHASES}
    return {phase: points(_law_of(paper), rows, phase, "channel") for phase in PHASES}


def _selected(paper: str, reports: Path) -> pd.DataFrame | None:
    """The pool's rows with what the paper makes of each (`study.select`), or None while there are no tables."""
    tables = reports / "runs.csv", reports / "measurements.csv"
    if not all(path.exists() for path in tables):
        return None
    selection = read_settings(find(paper).file("experiment.yaml"), Selection, "fit")
    return select(read_pool(*tables), selection, read_settings(HELD_OUT, HeldOut))


def _law_of(paper: str) -> Law:
    """Raises BitlawError for a paper whose law is not fitted to our runs."""
    found = find(paper)
    if found.law is None or not found.fitted:
        raise BitlawError(f"{paper} is not fitted to our runs yet, so it has no figures; use {', '.join(FITTED)}")
    return found.law


def draw_paper(paper: str, reports: Path) -> list[Path]:
    """Draw a paper's figures into its folder of `reports`. Raises BitlawError for an unknown paper, one that has no
    figures, and no fit."""
    with style.theme():
        return write_gallery(reports / paper, drawings(paper, reports))


def drawings(paper: str, reports: Path) -> list[Drawing]:
    """A paper's figures; call inside `style.theme`. Raises BitlawError as `draw_paper`."""
    found = find(paper)
    if not found.file("figures.py").exists():
        raise BitlawError(f"{paper} has no figures of our runs; use {', '.join(DRAWN)}")
    material = (
        Material(read_fit(reports / paper / "fit.json"), phase_points(paper, reports))
        if found.fitted
        else low_precision.material(paper, reports)
    )
    drawn: list[Drawing] = figures_of(paper).draw(material)
    return drawn


def compare(reports: Path) -> list[Path]:
    """Write comparison/elasticities.json and the other tables of the comparison, and draw what sets papers and phases
    side by side."""
    published = all_published()
    fitted = [read_fit(reports / paper / "fit.json") for paper in FITTED]
    refitted = reports / REFITS.parent / "elasticities.json"
    rows = elasticities.compare(fitted, published, read_refits(reports / REFITS), read_rows(refitted))
    target = reports / COMPARISON / "elasticities.json"
    write_json(target, rows)
    derivations = target.parent / "derived.json"
    derivations_ours, seen = _of_the_pool(reports, fitted)
    write_json(derivations, [*derivations_ours, *derived.derived(published)])
    write_json(reports / EVIDENCE, {name: asdict(item) for name, item in seen.items()})
    ordered = target.parent / "orders.json"
    runs = reports / "runs.csv"
    write_json(ordered, orders.judge(runs) if runs.exists() else [])
    write_json(target.parent / "decay.json", decays(reports))
    write_json(target.parent / "corpora.json", of_corpora(reports))
    phases = phase_points(FIRST, reports)
    with style.theme():
        values, copying_drawn = of_copying(reports)
        write_json(target.parent / "copying.json", values)
        drawn = [*comparison_figures.draw(read_rows(target), phases["cooled"], phases["trunk"]), copying_drawn]
        written = [target, derivations, reports / EVIDENCE, ordered]
        written += [target.parent / name for name in ("decay.json", "corpora.json", "copying.json")]
        return [*written, *write_gallery(target.parent, drawn)]


def _of_the_pool(reports: Path, fitted: list[PaperFit]) -> tuple[list[dict[str, object]], evidence.Evidence]:
    """What our own fits imply, and what claims look up of our tables; nothing while there are none."""
    rows = _selected(FIRST, reports)
    if rows is None:
        return [], {}
    runs = read_comparable(reports / "runs.csv", {**RUNS, "loss_se": "maybe"})
    mine = own.fit_own(rows, trained.unquantized(runs, read_settings(HELD_OUT, HeldOut)))
    sizes = sorted({float(N) for N in rows.loc[rows["use"] == FITTED_ROWS, "N"]})
    tables = reports / "runs.csv", reports / "measurements.csv"
    rates = reports / "learning_rate" / "runs.csv"
    seen = evidence.collect(
        rows,
        runs,
        fitted,
        mine,
        pool=read_pool(*tables),
        rates=read_comparable(rates, RUNS) if rates.exists() else None,
    )
    seen |= inside.collect(
        inside.read_statistics(reports / "statistics.csv"), cells_of(tables[1]), inside.four_bits(runs)
    )
    return own.derived_rows(mine, sizes), seen


def cells_of(path: Path) -> pd.DataFrame:
    """measurements.csv with what it repeats of its runs, unquantized and low-precision ones. Raises BitlawError for a
    bad table."""
    return read_table(path, {**MEASUREMENTS, **OF_RUN})


def decays(reports: Path) -> list[dict[str, object]]:
    """What tokens and the decay of the learning rate do (comparison/decay.py); nothing while there are no cells."""
    rows = _selected(FIRST, reports)
    if rows is None:
        return []
    cells = cells_of(reports / "measurements.csv")
    plain = cells[cells["run_id"].isin(rows["run_id"])]
    cosine = reports / "decay" / "measurements.csv"
    return decay.judge(plain, cells_of(cosine) if cosine.exists() else plain.iloc[:0])


def of_corpora(reports: Path) -> list[dict[str, object]]:
    """English beside Python (comparison/corpora.py); nothing while reports/english has no tables."""
    folders = {"python": reports, "english": reports / "english"}
    if not all((folder / name).exists() for folder in folders.values() for name in ("runs.csv", "measurements.csv")):
        return []
    rules = read_settings(HELD_OUT, HeldOut)
    runs = {name: read_comparable(folder / "runs.csv", RUNS) for name, folder in folders.items()}
    compressed = {name: low_precision.cells(table, rules, corpus=name) for name, table in runs.items()}
    plain = {name: set(table.loc[table["base_run_id"] == "", "run_id"]) for name, table in runs.items()}
    cells = {name: cells_of(folder / "measurements.csv") for name, folder in folders.items()}
    return corpora.judge({name: table[table["run_id"].isin(plain[name])] for name, table in cells.items()}, compressed)


def of_copying(reports: Path) -> tuple[dict[str, object], Drawing]:
    """`counted`: how many runs of each size and horizon copy from their context, and which are left out for it
    (copying.py); `explained`: what rounding adds to those that do (comparison/copied.py). And the figure of both."""
    if not all((reports / name).exists() for name in ("runs.csv", "measurements.csv")):
        none = pd.DataFrame(columns=["size", "gain", "delta", "mixed", "copying", "left"])
        return {"counted": [], "explained": []}, copied_figure.draw(none, none)
    gain = copying.read_copying(reports / copying.STATISTICS)
    runs = read_table(reports / "runs.csv", {**RUNS, "n_layer": "maybe"})
    plain = runs.loc[runs["base_run_id"] == "", ["run_id", "trunk_id", "n_layer"]]
    cells = cells_of(reports / "measurements.csv").drop(columns="trunk_id", errors="ignore").merge(plain, on="run_id")
    values: dict[str, object] = {"counted": copying.counted(runs, gain), "explained": copied.explain(cells, gain)}
    left = copied.what_is_left(cells, gain, copied_figure.FORMAT)
    return values, copied_figure.draw(copying.low_precision(runs, gain), left)


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
    rows, pairs, views = (
        read_rows(reports / COMPARISON / f"{name}.json") for name in ("elasticities", "orders", "trained")
    )
    implied, measured, decayed, english = (
        read_rows(reports / COMPARISON / f"{name}.json") for name in ("derived", "methods", "decay", "corpora")
    )
    write_json(reports / "metrics.json", metrics.flat_metrics(list(found.values()), judged, source))
    metrics.write_plots(reports / "plots", list(found.values()), phase_points(FIRST, reports))
    target = reports / "index.html"
    write_text(
        target,
        page.render(
            shown, source, rows, pairs, views, read_gallery(reports / COMPARISON), explorer(reports),
            derived=implied, chinchilla=_chinchilla(reports), methods=measured, decay=decayed, corpora=english,
            copying=read_copying(reports / COMPARISON / "copying.json"),
            tournament=unified.report_rows(reports), tournament_figures=read_gallery(reports / unified.FOLDER),
        ),
    )  # fmt: skip
    return target


def _chinchilla(reports: Path) -> list[dict[str, object]]:
    """Chinchilla's constants as Besiroglu et al. publish them, with standard errors and intervals, and our refit."""
    known, refits = all_published()[GUIDE.name].laws, read_refits(reports / REFITS)
    found: list[dict[str, object]] = []
    for name, constant in known["besiroglu"].items():
        ends = {end: known[f"besiroglu_{end}"][name].value for end in ("se", "low", "high")}
        ours = refits.get(f"chinchilla/{name}")
        published = constant.model_dump() | ends
        found.append({"name": name, "published": published, "ours": asdict(ours) if ours else None})
    return found


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
        words=section(text, WORDS),
        rounds=paper.fitted,
        drawn=paper.name in DRAWN,
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
    fresh = _quantities(reports, present)
    return len(golden), goldens.compare(golden, fresh, tolerances), _inputs(present) == inputs


def update_goldens(reports: Path) -> int:
    """Write the present results as goldens; returns how many. Raises BitlawError when nothing is fitted yet."""
    present = fits(reports)
    fresh = _quantities(reports, present)
    if not fresh:
        raise BitlawError(f"{reports}: nothing is fitted yet, so there is nothing to record; run `dvc repro` first")
    goldens.write_goldens(reports / "goldens.json", fresh, _inputs(present))
    return len(fresh)


def _quantities(reports: Path, present: list[PaperFit]) -> dict[str, goldens.Quantity]:
    found = goldens.quantities(present)
    for path in sorted(reports.glob("*/evidence.json")):
        found |= goldens.of_evidence(read_seen(path))
    return found


def _inputs(present: list[PaperFit]) -> goldens.Inputs:
    return {fit.paper: fit.inputs for fit in present}


def figures_of(paper: str) -> ModuleType:
    """A paper's module of figures: TITLE, PANELS and draw. Raises BitlawError for an unknown paper."""
    find(paper)
    return importlib.import_module(f"replications.{paper}.figures")
