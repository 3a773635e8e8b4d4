"""Flat metrics and long tables, for `dvc metrics` and `dvc plots` and for anybody's own plots."""

from collections import Counter
from pathlib import Path

import pandas as pd

from shared.files import six_digits, write_text
from shared.report.figures.slopes import local_slopes
from shared.report.provenance import Provenance
from shared.report.results import Claim, PaperFit

VERDICTS = ("holds", "fails", "inconclusive", "needs runs", "out of reach")


def flat_metrics(fits: list[PaperFit], claims: dict[str, list[Claim]], provenance: Provenance) -> dict[str, dict]:
    """{"pool": counts, paper: {"cooled": {name: number}, "trunk": ..., "claims": {verdict: count}}}, per channel."""
    metrics: dict[str, dict] = {
        "pool": {
            "runs": provenance.runs,
            "diverged": provenance.diverged,
            "measurements": provenance.measurements,
            "hours": provenance.hours,
        }
    }
    for fit in fits:
        mine: dict[str, dict] = {}
        for part in (part for part in fit.parts if part.group_size == "channel"):
            exponents = {name: estimate["value"] for name, estimate in part.parameters.items()}
            quality = {
                "rows": part.rows,
                "chi2_per_dof": part.diagnostics.get("chi2_per_dof"),
                "heldout_median_abs_log_error": part.heldout.get("median_abs_log_error"),
            }
            values = exponents | quality
            mine[part.phase] = {k: v for k, v in values.items() if v is not None}
        counted = Counter(claim.verdict for claim in claims.get(fit.paper, []))
        mine["claims"] = {verdict: counted[verdict] for verdict in VERDICTS}
        metrics[fit.paper] = mine
    return metrics


def write_plots(folder: Path, fits: list[PaperFit], points: dict[str, pd.DataFrame]) -> list[Path]:
    """delta.csv: measured points by phase; local_elasticities.csv: slopes between neighbouring horizons.

    `points` maps a phase to its table of `points.points`. Six significant digits; headers stand even without rows.
    """
    deltas = [table.assign(phase=phase) for phase, table in points.items() if len(table)]
    columns = ["phase", "bits", "N", "D", "size", "seeds", "delta", "low", "high", "use"]
    delta = pd.concat(deltas)[columns] if deltas else pd.DataFrame(columns=columns)
    slopes = [
        local_slopes(part).assign(paper=fit.paper, phase=part.phase)
        for fit in fits
        for part in fit.parts
        if part.group_size == "channel" and part.local_elasticities
    ]
    columns = ["paper", "phase", "bits", "N", "D_from", "D_to", "ratio", "value", "low", "high"]
    slope = pd.concat(slopes)[columns] if slopes else pd.DataFrame(columns=columns)
    written = []
    for name, table in (("delta", delta), ("local_elasticities", slope)):
        path = folder / f"{name}.csv"
        write_text(path, six_digit_csv(table))
        written.append(path)
    return written


def six_digit_csv(table: pd.DataFrame) -> str:
    """Rows in the order given; floats with six significant digits."""
    lines = [",".join(map(str, table.columns))]
    lines += [",".join(_cell(value) for value in row) for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"  # counts stay exact
    value = six_digits(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
