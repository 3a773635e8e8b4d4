"""Every law on every part of the pool, scored by what it has not seen; and whether the unified law is below each
paper's own law on that paper's part, with at most as many constants.

Constants are those of the penalty: the five of the unquantized loss are shared (difference.py). The unified law
competes as selected (select.py) with 4, 3 and 2 constants, plus one for each stream beyond the weights that a part has
(activations, KV cache); beside it stands one fit of it to the whole pool, whose constants no part chose alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from replications.unified.forms import STREAMS, TRAINED, Form, loss_law
from replications.unified.law import POOL
from replications.unified.parts import ERROR_COLUMNS, Part, Pool
from replications.unified.score import (
    N_BOOT,
    N_STARTS,
    SEED,
    Result,
    Unseen,
    competing,
    log_ratio,
    resamples,
    score,
    weighted_median,
)
from replications.unified.select import Selection
from shared.errors import BitlawError
from shared.laws.fit import Fit, fit
from shared.laws.law import Array, Law
from shared.laws.noise import SeedNoise
from shared.laws.result import interval

LEAST_CELLS = 5  # held-out ones, clear of zero, of which a median has an interval
TOO_FEW = f"fewer than {LEAST_CELLS} held-out cells"
UNIFIED, ONE_FIT = "unified", "unified, one fit"
NAMES = {4: UNIFIED, 3: "unified_3", 2: "unified_2"}
ROUNDED, EVERYTHING = "rounded, all groups, cooled", "everything trained"


@dataclass(frozen=True)
class Row:
    """One law on one part. `place`: wins, ties (its difference to the winner may be chance), behind, or not ranked,
    TOO_FEW (an error without an interval);
    `reason` says why not, or what to know of the fit. Errors are |ln(measured / predicted)|, `nats` their mean without
    the logarithm; `behind_low` and `behind_high` are the ends of its error less the winner's."""

    part: str
    law: str
    constants: int
    place: str
    reason: str = ""
    error: float | None = None
    low: float | None = None
    high: float | None = None
    nats: float | None = None
    behind_low: float | None = None
    behind_high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The unified law against a paper's own on its part; `difference` is the unified error less the paper's."""

    part: str
    paper: str
    paper_constants: int
    unified: str
    unified_constants: int
    paper_error: float
    unified_error: float
    difference: float
    low: float | None  # None: TOO_FEW
    high: float | None
    verdict: str


def compete(pool: Pool, selection: Selection, n_starts: int = N_STARTS) -> tuple[list[dict[str, Any]], list[Verdict]]:
    """({"part", "about", cell counts, "laws": rows} for each part, verdicts). Parts that nothing can be scored on stand
    with the reason of each law."""
    whole = _one_fit(pool, selection.form, n_starts)
    found, verdicts = [], []
    for part in pool.parts:
        results, reasons, counts = _part(part, pool, selection, n_starts)
        if whole is not None and (fits := _of_whole(part, *whole)) is not None and results:
            results[ONE_FIT] = fits
        unseen = Unseen.of(part, part.hidden)
        few = int(unseen.clear.sum()) < LEAST_CELLS
        rows = _rows(part, results, reasons, counts, few)
        found.append({
            "part": part.name, "about": part.about, "own": list(part.own),
            "fitted_cells": int(part.fitted["cell"].nunique()), "held_out_cells": len(unseen.delta),
            "clear_cells": int(unseen.clear.sum()),
            "laws": [asdict(row) for row in rows],
        })  # fmt: skip
        verdicts += _verdicts(part, results, counts, few)
    return found, verdicts


def _part(
    part: Part, pool: Pool, selection: Selection, n_starts: int
) -> tuple[dict[str, Result], dict[str, str], dict[str, int]]:
    fitted, unseen = part.fitted, Unseen.of(part, part.hidden)
    weights = (
        resamples(pd.concat([fitted, part.hidden], ignore_index=True))
        if len(part.hidden)
        else np.ones((1, len(fitted)))
    )
    laws: dict[str, Law] = {law.name: law for law in part.laws}
    for constants, name in NAMES.items():
        form = selection.of(constants)
        if form.constants == constants:
            laws[name] = loss_law(form, name=name, streams=part.streams)
    results: dict[str, Result] = {}
    reasons: dict[str, str] = {}
    counts: dict[str, int] = {}
    for name, law in laws.items():
        mine = competing(law, part, dict(pool.base))
        counts[name] = len(mine.parameters)
        try:
            results[name] = score(mine, part, fitted, unseen, weights, n_starts)
        except BitlawError as error:
            reasons[name] = _short(str(error), part)
    return results, reasons, counts


def _short(reason: str, part: Part) -> str:
    """Without the table's name; what is too little begins with `not enough rows`."""
    said = reason.removeprefix(f"{part.name}: ").partition(";")[0]
    few = "needed for" in said or "fewer than" in said or "one value only" in said or said.startswith("no held-out")
    return f"not enough rows: {said}" if few else said


def _rows(
    part: Part, results: Mapping[str, Result], reasons: Mapping[str, str], counts: Mapping[str, int], few: bool
) -> list[Row]:
    ranked = sorted(results, key=lambda name: float(results[name].median[0]))
    rows = []
    for name in ranked:
        mine = results[name].median
        apart = mine - results[ranked[0]].median
        low, high = _ends(apart)
        place = "wins" if name == ranked[0] else "ties" if low <= 0 else "behind"
        about = part.name, name, counts.get(name, len(results[name].theta))
        said, error, nats = results[name].said, float(mine[0]), results[name].nats
        if few:
            rows.append(Row(*about, TOO_FEW, said, error, nats=nats))
        else:
            rows.append(Row(*about, place, said, error, *_ends(mine), nats, low, high))
    return rows + [Row(part.name, name, counts[name], "not ranked", reason) for name, reason in reasons.items()]


def _ends(values: Array) -> tuple[float, float]:
    """The 95 % interval over resamples, without those that had nothing to predict; the value where there are none."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return float(values[0]), float(values[0])
    low, high = interval(drawn)
    return float(low), float(high)


def _verdicts(part: Part, results: Mapping[str, Result], counts: Mapping[str, int], few: bool) -> list[Verdict]:
    found = []
    for own in (name for name in part.own if name in results):
        allowed = [name for name in NAMES.values() if name in results and counts[name] <= counts[own]]
        if not allowed:
            continue
        mine = max(allowed, key=lambda name: counts[name])
        apart = results[mine].median - results[own].median
        low, high = (None, None) if few else _ends(apart)
        value = float(apart[0])
        verdict = (
            TOO_FEW
            if low is None or high is None
            else "below"
            if high < 0
            else "above"
            if low > 0
            else "below, may be chance"
            if value < 0
            else "not below"
        )
        found.append(
            Verdict(part.name, own, counts[own], mine, counts[mine], float(results[own].median[0]),
                    float(results[mine].median[0]), value, low, high, verdict)
        )  # fmt: skip
    return found


def whole_pool(pool: Pool) -> Part | None:
    """Rounded (cooled) and trained cells as one part with the streams apart; None where either is missing."""
    names = {part.name for part in pool.parts}
    if not {ROUNDED, EVERYTHING} <= names:
        return None
    before, after = pool.part(ROUNDED), pool.part(EVERYTHING)
    tables = [before.table.assign(**{TRAINED: 0.0, **dict.fromkeys(STREAMS.values(), 0.0)}), after.table]
    shared = ["N", "D", "size", "format", "cell", "delta", "delta_se", "trunk_id", "use", *ERROR_COLUMNS, TRAINED]
    table = pd.concat([one[shared] for one in tables], ignore_index=True)
    # Deltas of trained cells carry the scatter of seeds in their standard error already.
    cv = {**before.noise.cv, **dict.fromkeys(sorted(set(after.table["format"])), 0.0)}
    noise = SeedNoise(cv=cv, shared=before.noise.shared, cells=before.noise.cells, dof=before.noise.dof)
    return replace(after, name="the whole pool", table=table, laws=(), own=(), noise=noise, shown=noise)


def whole_law(form: Form, part: Part, pool: Pool) -> Law:
    """The unified law of delta for rounded and trained models, as it is fitted to `whole_pool`."""
    return competing(loss_law(form, name=ONE_FIT, streams=part.streams, trained=True), part, dict(pool.base))


def _one_fit(pool: Pool, form: Form, n_starts: int) -> tuple[Part, Result, Law] | None:
    part = whole_pool(pool)
    if part is None:
        return None
    law = whole_law(form, part, pool)
    weights = np.ones((1, len(part.fitted) + len(part.hidden)))
    try:
        return part, score(law, part, part.fitted, Unseen.of(part, part.hidden), weights, n_starts), law
    except BitlawError:
        return None


def _of_whole(part: Part, whole: Part, result: Result, law: Law) -> Result | None:
    """The one fit on a part's held-out cells. Its interval is of the held-out rows alone: the fit is not repeated."""
    unseen = Unseen.of(part, part.hidden)
    if not unseen.clear.any():
        return None
    everywhere = Unseen.of(whole, whole.hidden)
    cells = everywhere.table["cell"].to_numpy(str)[everywhere.first]
    at = {cell: k for k, cell in enumerate(cells)}
    mine = unseen.table["cell"].to_numpy(str)[unseen.first]
    if not set(mine) <= set(at):
        return None
    predicted = result.predicted[[at[cell] for cell in mine]]
    weights = resamples(pd.concat([part.fitted, part.hidden], ignore_index=True))[:, len(part.fitted) :]
    counts = np.zeros((len(weights), len(unseen.delta)))
    np.add.at(counts.T, unseen.of_row, weights.T)
    off = np.abs(log_ratio(unseen.delta, predicted))[unseen.clear]
    median = np.array([weighted_median(off, c[unseen.clear]) for c in counts])
    return Result(law, median, float(np.mean(np.abs(unseen.delta - predicted))), predicted, result.theta, result.tau)


def fit_whole(pool: Pool, n_starts: int = N_STARTS) -> Fit | None:
    """The registered law of the whole pool (law.POOL) on all cells that a fit may see, with resamples: what `bitlaw
    predict` and a planner read. A stream that no cell has is held at r = 1. None where the pool cannot tell it."""
    part = whole_pool(pool)
    if part is None:
        return None
    table = part.fitted
    held = {f"r_{x}": 1.0 for x, column in STREAMS.items() if not (table[column] > 0).any()}
    try:
        return fit(
            POOL, table, noise=part.noise, n_starts=n_starts, n_boot=N_BOOT, seed=SEED, fixed=held, name=part.name
        )
    except BitlawError:
        return None
