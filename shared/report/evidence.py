"""What claims need of a fit.json: the part they are judged on, its scale and what it took."""

from typing import Any

from shared.report.claim import Cost


def part_of(fit: dict[str, Any], phase: str, group_size: str) -> dict[str, Any] | None:
    """The fitted part of this phase and group size, or None."""
    parts = (p for p in fit["parts"] if (p["phase"], p["group_size"]) == (phase, group_size))
    return next(parts, None)


def scale(part: dict[str, Any]) -> str:
    """The range of the fitted rows: N in 1e6 parameters, D in 2^20 tokens."""
    (N_low, N_high), (D_low, D_high) = part["domain"]["N"], part["domain"]["D"]
    return f"{N_low / 1e6:.2g}-{N_high / 1e6:.2g}M parameters, {D_low / 2**20:g}-{D_high / 2**20:g}M tokens"


def cost(fit: dict[str, Any], part: dict[str, Any], *, by_law: bool) -> Cost:
    """Trunks behind the part, and the hours of one more of its dearest size where the runs say so.

    A quantity `by_law` comes from the fitted law; where its lack of fit exceeds the seeds' spread, seeds do not help.
    """
    hours = [fit["trunk_hours"][size] for size in part["trunks"] if size in fit["trunk_hours"]]
    spread = [*part["diagnostics"]["seed_cv"].values(), 0.0]
    return Cost(
        trunks=sum(part["trunks"].values()),
        hours_per_trunk=max(hours) if hours else None,
        seeds_limit=not by_law or part["diagnostics"]["tau"] <= max(spread),
    )
