"""Elasticities of each paper's law, published and fitted to our runs, side by side: the common currency of the laws."""

from typing import Any

from shared.report.results import PaperFit

QUANTITIES = ("D", "N", "bits")


def compare(fits: list[PaperFit]) -> list[dict[str, Any]]:
    """Rows {"paper", "law", "source", "phase", "group_size", "label", "D", "N", "bits"}; the last three are estimates
    {"value", "low", "high", "at"} or None where the law has no such slope."""
    rows = []
    for fit in fits:
        rows.append(_row(fit, "published", None, None, "published", fit.published["elasticities"]))
        rows += [_row(fit, "ours", p.phase, p.group_size, f"ours, {p.name}", p.elasticities) for p in fit.parts]
    return rows


def _row(
    fit: PaperFit, source: str, phase: str | None, group_size: str | None, label: str, slopes: dict[str, Any]
) -> dict[str, Any]:
    named = {name: _estimate(slopes.get(name)) for name in QUANTITIES}
    return {
        "paper": fit.paper, "law": fit.law, "source": source, "phase": phase, "group_size": group_size, "label": label,
        **named,
    }  # fmt: skip


def _estimate(slope: dict[str, float] | None) -> dict[str, float | None] | None:
    return {end: slope.get(end) for end in ("value", "low", "high", "at")} if slope else None
