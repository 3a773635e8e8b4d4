"""What claims need of a fit.json, and of quantities that were measured on the pool without one: scale and cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.checked import check
from shared.files import read_json
from shared.report.claim import Claim, Cost, Finding, Interval, deciding, measured, needs_runs
from shared.report.refits import Refit


@dataclass(frozen=True)
class Seen(Refit):
    """A quantity measured on our runs, with its 95 % interval; `label` says which one it is where a claim has several,
    `trunks` how many runs are behind it, `by_law` whether a law's misfit limits it rather than seeds."""

    label: str = ""
    trunks: int = 1
    by_law: bool = False


def read_seen(path: Path) -> dict[str, Seen]:
    """{name: Seen} as `bitlaw replicate compare` writes them; empty while the file is not there. Raises BitlawError for
    a file that holds something else."""
    if not path.exists():
        return {}
    values = read_json(path)
    check(dict[str, Seen], values, path, "file of evidence", "write it again with `bitlaw replicate compare`")
    return {name: Seen(**value) for name, value in values.items()}


def seen(claim: Claim, evidence: Mapping[str, Refit], prefix: str, missing: str) -> Finding:
    """Judge a claim that must hold for every quantity whose name starts with `prefix`; without any it needs runs, and
    `missing` says which."""
    found = [item for name, item in sorted(evidence.items()) if name.startswith(prefix) and isinstance(item, Seen)]
    if not found:
        return needs_runs(claim, missing)
    intervals = [Interval(item.value, item.low, item.high, item.label) for item in found]
    worst = found[deciding(claim, intervals)]
    cost = Cost(trunks=max(item.trunks for item in found), hours_per_trunk=None, seeds_limit=not worst.by_law)
    return measured(claim, intervals, scale=worst.scale, cost=cost, note=worst.note)


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
