"""From the pool's tables to reports/unified: selection.json, tournament.json, tournament.csv and the figures; and from
published runs to published.json, apart, because their tables are not in git."""

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from replications.copying import STATISTICS
from replications.papers import HELD_OUT
from replications.unified import figures
from replications.unified.files import read_published, read_selection_json, read_tournament
from replications.unified.forms import Form
from replications.unified.law import CHOSEN, POOL
from replications.unified.parts import Pool, read
from replications.unified.score import Unseen, log_ratio
from replications.unified.select import Candidate, Selection, choose
from replications.unified.tournament import LEAST_CELLS, TOO_FEW, Row, Verdict, compete, fit_whole, whole_pool
from shared.files import sha256_file, six_digits, write_json, write_text
from shared.laws.result import Fit
from shared.report.figures import style
from shared.report.figures.gallery import write_gallery

FOLDER = "unified"
DIFFERS = (
    "On these rows the choice falls on '{found}' (score {score:.3g}), which is what competes here; '{registered}' "
    "({other:.3g}) was chosen on fewer rows, the published runs were scored with it, and `bitlaw predict` and `plan` "
    "use it."
)


def write(reports: Path) -> list[Path]:
    """Choose the form, let the laws compete, draw. Raises BitlawError for tables that are absent, damaged or too small
    to choose a form on."""
    tables = {f"reports/{name}": reports / name for name in ("runs.csv", "measurements.csv", STATISTICS)}
    # Before they are read: a sweep may append to them meanwhile, and then this says that the result is of the old ones.
    inputs = {name: sha256_file(path) for name, path in tables.items() if path.exists()}
    pool = read(reports)
    selection = choose(pool.parts, dict(pool.base))
    parts, verdicts = compete(pool, selection)
    target = reports / FOLDER
    inputs["replications/comparison/heldout.yaml"] = sha256_file(HELD_OUT)
    chosen = selection_json(selection)
    write_json(target / "selection.json", {"inputs": inputs, "base": dict(pool.base), **chosen})
    whole = fit_whole(pool)
    if whole is not None:
        write_json(target / "fit.json", whole.to_json())
    found = {
        "inputs": inputs,
        "form": asdict(selection.form),
        "note": _note(selection),
        "one_fit": None if whole is None else one_fit(whole, pool),
        "parts": parts,
        "verdicts": [asdict(one) for one in verdicts],
        "summary": summary(parts, verdicts),
    }
    write_json(target / "tournament.json", found)
    write_text(target / "tournament.csv", as_csv(parts))
    names = ("selection.json", "tournament.json", "tournament.csv", *(("fit.json",) if whole else ()))
    return [*(target / name for name in names), *draw(reports)]


def _note(selection: Selection) -> str:
    """What to say when the rows prefer another form than the registered one."""
    if selection.form == CHOSEN:
        return ""
    scores = {one.form: one.score for one in (*selection.links, *selection.exponents)}
    return DIFFERS.format(
        found=selection.form.name, score=scores[selection.form], registered=CHOSEN.name,
        other=scores.get(CHOSEN, float("nan")),
    )  # fmt: skip


def one_fit(found: Fit, pool: Pool) -> dict[str, Any]:
    """What the page shows of fit.json, and its error on all held-out cells."""
    part = whole_pool(pool)
    constants = {name: e for name, e in found.parameters.items() if name not in found.fixed}
    error = None
    if part is not None and len(part.hidden):
        unseen = Unseen.of(part, part.hidden)
        off = np.abs(log_ratio(unseen.delta, POOL.predict(found.theta, unseen.columns(POOL))))
        error = float(np.median(off[unseen.clear])) if unseen.clear.any() else None
    return {
        "constants": {name: e.value for name, e in constants.items()},
        "intervals": {name: {"low": e.low, "high": e.high} for name, e in constants.items()},
        "held": dict(found.fixed), "status": found.status, "reasons": list(found.reasons), "tau": found.tau,
        "cells": len(found.residuals), "held_out_error": error,
    }  # fmt: skip


def draw(reports: Path) -> list[Path]:
    """The figures of what is there."""
    target = reports / FOLDER
    found, chosen = read_tournament(target / "tournament.json"), read_selection_json(target / "selection.json")
    with style.theme():
        return write_gallery(target, figures.draw(found, chosen, published(reports)))


def write_published(reports: Path) -> Path:
    """Score the form of selection.json on published runs. Raises BitlawError when it or a table is not there."""
    from replications.unified import published as runs

    target = reports / FOLDER / "tournament.json"
    known = read_tournament(target)["one_fit"]
    constants = known["constants"] if known else {}
    # QuEST's models were trained in their format: the slope and the exponent of D have a part of theirs.
    exponents = {name: constants.get(name, 0.0) + constants.get(f"{name}_t", 0.0) for name in ("g", "a", "b")}
    written = runs.write(reports, read_selection(reports), exponents)
    draw(reports)
    return written


def read_selection(reports: Path) -> Selection:
    """The choice as `write` left it. Raises BitlawError when it is not there or is none."""
    path = reports / FOLDER / "selection.json"
    values = read_selection_json(path)
    links, exponents = ([_candidate(one) for one in values[name]] for name in ("links", "exponents"))
    return Selection(tuple(links), tuple(exponents))


def _candidate(values: dict[str, Any]) -> Candidate:
    form = Form(**{one.name: values[one.name] for one in fields(Form)})
    return Candidate(form, values["score"], values["errors"])


def selection_json(selection: Selection) -> dict[str, Any]:
    return {
        "form": asdict(selection.form),
        "registered": asdict(CHOSEN),
        "links": [one.to_json() for one in selection.links],
        "exponents": [one.to_json() for one in selection.exponents],
    }


def published(reports: Path) -> dict[str, Any] | None:
    """published.json, or None where nobody has scored the published runs."""
    path = reports / FOLDER / "published.json"
    return read_published(path) if path.exists() else None


def summary(parts: list[dict[str, Any]], verdicts: list[Verdict]) -> dict[str, Any]:
    """Who won how many parts, and on how many of the papers' parts the unified law is below."""
    wins: dict[str, int] = {}
    ties: dict[str, int] = {}
    for part in parts:
        for row in part["laws"]:
            if row["place"] == "wins":
                wins[row["law"]] = wins.get(row["law"], 0) + 1
            if row["place"] == "ties":
                ties[row["law"]] = ties.get(row["law"], 0) + 1
    scored = [part["part"] for part in parts if any(row["place"] == "wins" for row in part["laws"])]
    judged = [one for one in verdicts if one.verdict != TOO_FEW]
    below = [one for one in judged if one.difference < 0]
    own = [part["part"] for part in parts if part["own"]]
    lacking = [name for name in own if name not in {one.part for one in judged}]
    return {
        "scored_parts": len(scored),
        "not_scored": [part["part"] for part in parts if part["part"] not in scored],
        "wins": wins,
        "ties": ties,
        "verdicts": len(judged),
        "verdict_parts": len({one.part for one in judged}),
        "without_verdict": lacking,
        "below": len(below),
        "below_beyond_chance": sum(one.verdict == "below" for one in judged),
        "above_beyond_chance": sum(one.verdict == "above" for one in judged),
        "counts": bool(judged) and not lacking and len(below) == len(judged),
    }


def as_csv(parts: list[dict[str, Any]]) -> str:
    """One row a law and part, floats to six digits."""
    text = io.StringIO()
    names = [one.name for one in fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for part in parts:
        writer.writerows(six_digits({name: "" if row[name] is None else row[name] for name in names})
                         for row in part["laws"])  # fmt: skip
    return text.getvalue()


def statement(found: dict[str, Any], of_published: dict[str, Any] | None) -> str:
    """What the tournament says, in sentences: for the terminal and the page."""
    said = found["summary"]
    text = (
        f"On the {said['verdict_parts']} parts of the pool that have a paper's own law and {LEAST_CELLS} held-out "
        f"cells the unified law ({Form(**found['form']).name}) has a held-out error below it, with at most as many "
        f"constants, in {said['below']} of {said['verdicts']} comparisons ({said['below_beyond_chance']} beyond "
        f"chance; above beyond chance in {said['above_beyond_chance']})."
    )
    if said["without_verdict"]:
        text += f" Without a verdict, for too few cells, fitted or held out: {'; '.join(said['without_verdict'])}."
    if of_published is None:
        return f"{text} The published runs have not been scored."
    against = {name: one["against"] for name, one in of_published["comparisons"].items() if name.startswith("quest")}
    whole: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for name, some in against.items():
        (whole if name.startswith("quest/all") else parts).extend(some)
    text += f" On QuEST's 104 runs, which the choice did not read, it is below in {_below(whole)} (law, split) pairs"
    above = {f"{row['paper']} ({row['paper_constants']} constants)": 0 for row in whole if row["verdict"] != "below"}
    text += f", above {' and '.join(above)}" if above else ""
    text += f"; on those of integers and of weights alone, in {_below(parts)}." if parts else "."
    counts = said["counts"] and bool(whole) and all(row["verdict"] == "below" for row in [*whole, *parts])
    told = "So it counts." if counts else "So no form counts: it would have to be below in all, on every paper's part."
    return f"{text} {told}"


def _below(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row['verdict'] == 'below' for row in rows)} of {len(rows)}"


def ranked(name: str, comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison on published runs as a part of the tournament: its laws by the split that decides."""
    rows = []
    for score in comparison["scores"]:
        error, behind = score["errors"][comparison["split"]], score["behind"]
        place = "wins" if behind is None else "ties" if behind["low"] <= 0 else "behind"
        rows.append({
            "law": score["law"], "constants": score["parameters"], "place": place, "reason": "",
            "error": error["value"], "low": error["low"], "high": error["high"], "behind_low": behind and behind["low"],
            "behind_high": behind and behind["high"],
        })  # fmt: skip
    cells = min(score["errors"][comparison["split"]]["rows"] for score in comparison["scores"])
    return {"part": f"{name}, {comparison['split']}", "clear_cells": cells, "laws": rows}


def report_rows(reports: Path) -> dict[str, Any] | None:
    """What the page shows: {"statement", "parts", "verdicts", "published"}, or None while there is no tournament."""
    path = reports / FOLDER / "tournament.json"
    if not path.exists():
        return None
    found = read_tournament(path)
    of_published = published(reports)
    quest = of_published["comparisons"] if of_published else {}
    return {
        "statement": statement(found, of_published),
        "note": found["note"],
        "one_fit": found["one_fit"],
        "parts": found["parts"],
        "ranked": [ranked(name, one) for name, one in quest.items()],
        "verdicts": found["verdicts"],
        "published": [{"table": name, **row} for name, one in quest.items() for row in one["against"]],
    }
