"""What refits on published runs found, by name, and claims judged on it: evidence `refitted`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict

from shared.checked import check
from shared.files import read_json
from shared.report.claim import Claim, Finding, Verdict, judge, needs_runs

FETCH = "the refits on published runs are not there: `bitlaw published fetch` and `bitlaw published refit` make them"


@dataclass(frozen=True)
class Refit:
    """A quantity with its 95 % interval. `scale` says on which runs, `note` what limits it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    value: float
    low: float
    high: float
    scale: str
    note: str = ""


def read_refits(path: Path) -> dict[str, Refit]:
    """{name: Refit}; empty while the file is not there. Raises BitlawError for a file that holds something else."""
    if not path.exists():
        return {}
    values = read_json(path)
    check(dict[str, Refit], values, path, "file of refits", "write it again with the refit stage")
    return {name: Refit(**value) for name, value in values.items()}


def refitted(claim: Claim, refits: Mapping[str, Refit], names: Sequence[str]) -> Finding:
    """Judge a claim that must hold for each named quantity; those that no refit gave are left out, and without any the
    claim needs runs. The one shown is the one that decides, as in `claim.measured`."""
    found = [(name, refits[name]) for name in names if name in refits]
    if not found:
        return needs_runs(claim, FETCH)
    verdicts = [judge(claim.region, item.low, item.high) for _, item in found]
    order: tuple[Verdict, ...] = ("fails", "inconclusive", "holds")
    verdict = next(one for one in order if one in verdicts)
    among = [pair for pair, mine in zip(found, verdicts, strict=True) if mine == verdict]
    name, worst = min(among, key=lambda pair: min(pair[1].low - claim.region.low, claim.region.high - pair[1].high))
    half = (worst.high - worst.low) / 2
    detail = f"{name}: {worst.value:.3g} [{worst.low:.3g}, {worst.high:.3g}]"
    if len(found) > 1:
        detail += f", the one that decides of {len(found)} ({verdicts.count('holds')} hold)"
    if verdict == "inconclusive":
        detail += f"; an effect under {half:.2g} cannot be seen, and more published runs would decide it"
    return Finding(
        claim=claim,
        verdict=verdict,
        detail=f"{detail}; {worst.note}" if worst.note else detail,
        scale=worst.scale,
        value=worst.value,
        low=worst.low,
        high=worst.high,
        smallest_visible_effect=half,
    )
