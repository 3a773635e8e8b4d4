"""The report: one HTML file that needs no other file and no network; without scripts all but its explorer is there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.report.conclusion import conclusion, disagreements
from shared.report.explorer.data import Curve, Explorer, data_of
from shared.report.explorer.scripts import library, policy, scripts
from shared.report.figures.gallery import Shown
from shared.report.figures.style import count_label, tokens_label
from shared.report.prose import Block, blocks
from shared.report.provenance import Provenance
from shared.report.results import Claim, PaperFit, Part

HERE = Path(__file__).parent
STYLES = ("page.css", "explorer/explorer.css")
MOST_BITS = 4  # above, no method of rounding costs anything that can be seen
MISS = 0.05  # of a two-sided 95 % interval
SLOPES = ("D", "N", "bits", "G")
TESTED = ("holds", "fails", "inconclusive")
# Quantities of a comparison of corpora in words.
CORPORA = {
    "slope": "d ln delta / d ln D, rounded",
    "steeper": "that slope on English less that on Python",
    "ratio": "delta on English over that on Python, rounded",
    "trained": "delta on English less that on Python, trained so",
}


@dataclass(frozen=True)
class Paper:
    """What the page shows of a paper. `fit` is None while `replicate fit` has not written it."""

    id: str
    title: str
    constants: list[tuple[str, str]]  # (name in fit.json, heading), in the order of the law
    readme: str
    fit: PaperFit | None
    claims: list[Claim]
    figures: list[Shown]
    deviations: list[Block]
    words: str  # what replicated, as the README says it
    rounds: bool = True  # whether its law is fitted to our checkpoints rounded after training, in phases
    drawn: bool = True  # whether figures of our runs belong to it


@dataclass(frozen=True)
class Ledger:
    """Claims by verdict, and how many of the tested ones may be judged wrongly."""

    tested: int
    counts: list[tuple[str, int]]
    false_verdicts: float


def ledger(claims: list[Claim]) -> Ledger:
    """Tested: judged on runs by an interval. A claim recomputed from the paper's constants has no interval to miss."""
    tested = [c for c in claims if c.verdict in TESTED and c.evidence != "recomputed"]
    return Ledger(len(tested), sorted(Counter(c.verdict for c in claims).items()), MISS * len(tested))


def render(
    papers: list[Paper],
    provenance: Provenance,
    elasticities: list[Mapping[str, Any]],
    orders: list[Mapping[str, Any]],
    trained: list[Mapping[str, Any]],
    comparison_figures: list[Shown],
    explorer: Explorer,
    derived: Sequence[Mapping[str, Any]] = (),
    chinchilla: Sequence[Mapping[str, Any]] = (),
    methods: Sequence[Mapping[str, Any]] = (),
    decay: Sequence[Mapping[str, Any]] = (),
    corpora: Sequence[Mapping[str, Any]] = (),
    copying: Mapping[str, Any] | None = None,
    tournament: Mapping[str, Any] | None = None,
    tournament_figures: Sequence[Shown] = (),
) -> str:
    """The page. `elasticities` are rows {"law", "label", "of", "at", "D", "N", "bits", "G"}, the last four estimates or
    None and `at` the point, `derived` rows {"paper", "quantity", "setting", "value", "low", "high", "unit"},
    `chinchilla` rows {"name", "published": {"value", "se", "low", "high"}, "ours"}, `orders` rows
    {"statement", "size", "tokens", "seeds", "worse", "better", "value", "low", "high", "verdict"}, `trained` fits
    {"paper", "view", "status", "reasons", "rows", "parameters": {name: {"value", "low", "high", "published"}}}, `decay`
    rows {"quantity", "schedule", "method", "format", "cells", "sizes", "value", "low", "high"}, `corpora` rows
    {"quantity", "corpus", "of", "tokens", "seeds", "value", "low", "high"}, `tournament` what
    replications.unified.results.report_rows gives."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "count": count_label, "tokens": tokens_label}
    claims = [claim for paper in papers for claim in paper.claims]
    code = scripts(explorer)
    style = Markup("".join((HERE / name).read_text(encoding="utf-8") for name in STYLES))
    drawn = {curve.paper for curve in explorer.curves}
    return environment.get_template("page.html").render(
        scripts=code,
        style=style,
        policy=policy(code, [style]),
        library=library(),
        explorer={"data": data_of(explorer), "by_paper": _by_paper(explorer)},
        p=_provenance(provenance),
        papers=[{**_paper(paper), "claims": paper.claims, "drawn": paper.id in drawn} for paper in papers],
        claims=claims,
        ledger=ledger(claims),
        elasticities=[
            {**row, "at": point(row["at"]), **{name: _estimate(row[name]) for name in SLOPES}} for row in elasticities
        ],
        derived=[{**row, "found": _estimate(row)} for row in derived],
        chinchilla=[
            {**row, "ours": _estimate(row["ours"]), "note": (row["ours"] or {}).get("note", "")} for row in chinchilla
        ],
        methods=[row for row in methods if row["bits"] <= MOST_BITS and row["winner"]],
        method_names=list(dict.fromkeys(name for row in methods if row["winner"] for name in row["methods"])),
        decay=_decay(decay),
        corpora=[{**row, "words": CORPORA[row["quantity"]], "found": _estimate(row)} for row in corpora],
        copying=copying,
        untrained=[view for view in trained if not view["parameters"]],
        trained=[{**view, "constants": _trained(view)} for view in trained if view["parameters"]],
        orders=[{**row, "difference": _estimate(row)} for row in orders if row["value"] is not None],
        comparison_figures=comparison_figures,
        tournament=tournament,
        tournament_figures=tournament_figures,
    )


def _by_paper(explorer: Explorer) -> list[tuple[str, list[Curve]]]:
    """Papers with curves, in their order: (title, curves)."""
    of = {paper: [curve for curve in explorer.curves if curve.paper == paper] for paper in explorer.papers}
    return [(explorer.papers[paper], curves) for paper, curves in of.items() if curves]


def _decay(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method and format: its estimates by quantity and schedule."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        cells = table.setdefault((row["method"], row["format"]), {})
        cells[f"{row['quantity']}_{row['schedule']}"] = _estimate(row)
    return [{"method": method, "format": form, "cells": cells} for (method, form), cells in table.items()]


def _trained(view: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "ours": _estimate(value), "published": value["published"]}
        for name, value in view["parameters"].items()
    ]


def point(at: Mapping[str, float]) -> str:
    """Where a slope is stated: 'N = 200M, D = 20B, bits = 4'."""
    counted = ("N", "D")  # files sort their keys: these two come first
    names = [*(name for name in counted if name in at), *(name for name in at if name not in counted)]
    return ", ".join(f"{n} = {count_label(at[n]) if n in counted else f'{at[n]:.4g}'}" for n in names)


def number(value: float | None) -> str:
    """Three significant digits; a dash for what does not exist."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.2e}"


def _provenance(provenance: Provenance) -> dict[str, Any]:
    values = asdict(provenance)
    sizes = provenance.sizes
    if sizes:
        values |= {
            "smallest": min(int(s["N"]) for s in sizes),
            "largest": max(int(s["N"]) for s in sizes),
            "shortest": min(int(s["from"]) for s in sizes),
            "longest": max(int(s["to"]) for s in sizes),
        }
    return values


def _paper(paper: Paper) -> dict[str, Any]:
    shown = {"id": paper.id, "title": paper.title, "readme": paper.readme, "deviations": paper.deviations}
    shown |= {"figures": paper.figures, "missing": _missing(paper), **_concluded(paper)}
    if paper.fit is None:
        return {**shown, "law": None, "headings": [], "constants": [], "fits": [], "selection": None}
    names = [name for name, _ in paper.constants]
    rows = [{"label": "published", "cells": [_estimate(paper.fit.published["parameters"][n]) for n in names]}]
    rows += [
        {"label": part.name, "cells": [_estimate(part.parameters.get(n)) for n in names]} for part in paper.fit.parts
    ]
    return {
        **shown,
        "law": paper.fit.law,
        "headings": [heading for _, heading in paper.constants],
        "constants": rows,
        "fits": [_quality(part) for part in paper.fit.parts],
        "selection": paper.fit.selection,
    }


def _concluded(paper: Paper) -> dict[str, Any]:
    """A person's words where they agree with the verdicts, else the claims by verdict."""
    agreed = paper.words and not disagreements(paper.words, paper.claims)
    return {"words": blocks(paper.words) if agreed else [], "conclusion": "" if agreed else conclusion(paper.claims)}


def _missing(paper: Paper) -> list[str]:
    """What the section lacks, in words."""
    if paper.fit is None:
        return [f"Needs runs: reports/{paper.id}/fit.json is not there; `bitlaw replicate fit {paper.id}` writes it."]
    found = {part.phase for part in paper.fit.parts}
    names = {"cooled": "cooled checkpoints", "trunk": "trunk checkpoints"}
    missing = [
        f"Needs runs: no fit of {name} yet." for phase, name in names.items() if paper.rounds and phase not in found
    ]
    missing += [f"Not fitted: {sentence}." for sentence in paper.fit.unfitted]
    if not paper.claims:
        missing.append(f"Needs runs: reports/{paper.id}/claims.json holds no verdict.")
    if paper.drawn and not paper.figures:
        missing.append(f"No figure yet: `bitlaw replicate figures {paper.id}` draws them.")
    return missing


def _quality(part: Part) -> dict[str, Any]:
    known = part.diagnostics
    return {
        "name": part.name,
        "status": part.status,
        "reasons": part.reasons,
        "rows": part.rows,
        "chi2_per_dof": known.get("chi2_per_dof"),
        "tau": known.get("tau"),
        "seed_sd": known.get("seed_sd"),
        "share": known.get("share_of_starts_within_1pct"),
        "condition": known.get("condition_number"),
        "heldout_error": part.heldout.get("median_abs_log_error"),
        "heldout_rows": part.heldout.get("rows", 0),
        "heldout_reasons": [
            f"{reason}: {number(found['median_abs_log_error'])} in {found['cells']} cells"
            for reason, found in part.heldout.get("by_reason", {}).items()
        ],
    }


def _estimate(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A value with everything that may stand beside it, None where it does not."""
    if value is None:
        return None
    known = ("value", "low", "high", "loo_low", "loo_high", "at", "source", "confidence")
    return {key: value.get(key) for key in known}
