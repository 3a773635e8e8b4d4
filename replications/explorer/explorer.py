"""The explorer of the report as one value: curves, formulas and points."""

from pathlib import Path

from replications.explorer import curves as laws
from replications.explorer.errors import errors
from replications.explorer.points import TEXT, VALUE, points
from replications.papers import GUIDE, PAPERS
from shared.report.explorer.data import Explorer


def explorer(reports: Path) -> Explorer:
    """What `reports` holds; published laws are there without it. Raises BitlawError for a damaged table or fit."""
    curves = [*laws.published(), *laws.ours(reports)]
    titles = {name: paper.published().paper for name, paper in {**PAPERS, GUIDE.name: GUIDE}.items()}
    titles[laws.UNIFIED] = "One law for all: a format enters by its relative error"
    needed = any("e" in curve.reads.values() for curve in curves)
    found = errors() if needed else {}
    return Explorer(curves, laws.formulas(curves), points(reports), TEXT, VALUE, titles, found)
