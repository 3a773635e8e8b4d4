"""The report's figures for a paper: each replication's, the comparison's and the tournament's, as SVG or PDF."""

from collections.abc import Callable
from pathlib import Path

from replications import results
from replications.comparison import figures as comparison_figures
from replications.precision_predictor import results as page_results
from replications.unified import figures as tournament_figures
from replications.unified import results as tournament
from replications.unified.files import read_selection_json, read_tournament
from shared.errors import BitlawError, nearest
from shared.files import read_json
from shared.report.compared import read_rows
from shared.report.figures import style
from shared.report.figures.gallery import Drawing


def write_figures(reports: Path, folder: Path, form: str) -> list[Path]:
    """Write every figure that the results in `reports` allow to `folder`/SOURCE/NAME.`form`; returns the paths.

    The same results give the same bytes. Raises BitlawError: a format that is neither svg nor pdf, nothing to draw, a
    damaged result.
    """
    if form not in style.VECTOR:
        raise BitlawError(
            f"--format {form}: is no format of figures{nearest(form, list(style.VECTOR)) or ': use svg or pdf'}"
        )
    written: list[Path] = []
    with style.theme():
        for name, draw in SOURCES.items():
            written += [style.save_vector(one.figure, folder / name, one.name, form) for one in draw(reports)]
    if not written:
        raise BitlawError(f"{reports}: holds no result that has a figure; `dvc repro` makes them")
    return written


def _paper(name: str) -> Callable[[Path], list[Drawing]]:
    fitted = results.find(name).fitted
    return lambda reports: (
        results.drawings(name, reports) if not fitted or (reports / name / "fit.json").exists() else []
    )


def _page(reports: Path) -> list[Drawing]:
    """Of each study of the page whose summary is there."""
    files = {name: reports / page_results.PAPER / f"{name}.json" for name in page_results.DRAWINGS}
    return [
        drawing
        for name, path in files.items()
        if path.exists()
        for drawing in page_results.DRAWINGS[name](read_json(path))
    ]


def _comparison(reports: Path) -> list[Drawing]:
    path = reports / results.COMPARISON / "elasticities.json"
    if not path.exists():
        return []
    phases = results.phase_points(results.FIRST, reports)
    return comparison_figures.draw(read_rows(path), phases["cooled"], phases["trunk"])


def _tournament(reports: Path) -> list[Drawing]:
    folder = reports / tournament.FOLDER
    found, chosen = folder / "tournament.json", folder / "selection.json"
    if not (found.exists() and chosen.exists()):
        return []
    return tournament_figures.draw(read_tournament(found), read_selection_json(chosen), tournament.published(reports))


SOURCES: dict[str, Callable[[Path], list[Drawing]]] = {
    **{name: _paper(name) for name in results.DRAWN},
    page_results.PAPER: _page,
    results.COMPARISON: _comparison,
    tournament.FOLDER: _tournament,
}
