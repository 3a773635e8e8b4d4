"""A claim of a paper, the region in which its quantity must lie, and the verdict that evidence allows."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Evidence = Literal["recomputed", "refitted", "measured"]
Verdict = Literal["holds", "fails", "inconclusive", "needs runs", "out of reach"]

# Seeds shrink an interval with the root of their number; past this many times those there are it is no advice.
MOST_TIMES = 20


@dataclass(frozen=True)
class Region:
    """Where the claim puts its quantity: the open interval (low, high)."""

    text: str
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    """Stated before the runs: what the paper says, where, and what would make it true here."""

    id: str
    paper: str
    statement: str
    source: str
    evidence: Evidence
    region: Region


def stating(paper: str, evidence: Evidence) -> Callable[[str, str, str, str, float, float], Claim]:
    """A maker of claims of one paper and one kind of evidence: (id, statement, source, region in words, low, high)."""
    return lambda id, statement, source, text, low, high: Claim(
        id, paper, statement, source, evidence, Region(text, low, high)
    )


@dataclass(frozen=True)
class Interval:
    """A quantity with its 95 % interval. `label` says which one it is, where a claim has several."""

    value: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True)
class Cost:
    """What the evidence took: trunks trained, the hours of another one at the dearest size, and whether seeds are what
    limits it (else the law's lack of fit is, which more seeds leave as it is)."""

    trunks: int
    hours_per_trunk: float | None
    seeds_limit: bool = True


@dataclass(frozen=True)
class Finding:
    """A judged claim."""

    claim: Claim
    verdict: Verdict
    detail: str
    scale: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    smallest_visible_effect: float | None = None  # half the interval, in the quantity's unit

    def to_json(self) -> dict[str, Any]:
        claim = self.claim
        return {
            "id": claim.id,
            "statement": claim.statement,
            "source": claim.source,
            "evidence": claim.evidence,
            "region": claim.region.text,
            "verdict": self.verdict,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "detail": self.detail,
            "smallest_visible_effect": self.smallest_visible_effect,
            "scale": self.scale,
        }


def judge(region: Region, low: float, high: float) -> Verdict:
    """`holds` when the closed interval lies wholly inside the open region, `fails` when wholly outside."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "inconclusive"
    if region.low < low and high < region.high:
        return "holds"
    if high <= region.low or low >= region.high:
        return "fails"
    return "inconclusive"


def deciding(claim: Claim, intervals: Sequence[Interval]) -> int:
    """Which of one interval or more decides: of those with the claim's verdict the one that reaches furthest out of the
    region, or leaves the least room inside it."""
    verdicts = [judge(claim.region, item.low, item.high) for item in intervals]
    order: tuple[Verdict, ...] = ("fails", "inconclusive", "holds")
    verdict = next(one for one in order if one in verdicts)
    among = [k for k, found in enumerate(verdicts) if found == verdict]
    room = [min(item.low - claim.region.low, claim.region.high - item.high) for item in intervals]
    return min(among, key=lambda k: room[k])


def measured(claim: Claim, intervals: Sequence[Interval], *, scale: str, cost: Cost, note: str = "") -> Finding:
    """Judge a claim that must hold for each of `intervals`: it fails if one fails, and holds if all hold.

    The value shown is that of the interval that decided.
    """
    if not intervals:
        return needs_runs(claim, note or "no rows for this quantity yet")
    verdicts = [judge(claim.region, item.low, item.high) for item in intervals]
    worst = intervals[deciding(claim, intervals)]
    verdict = judge(claim.region, worst.low, worst.high)
    half = (worst.high - worst.low) / 2
    pieces = [f"{worst.label}: " if worst.label else "", f"{worst.value:.3g} [{worst.low:.3g}, {worst.high:.3g}]"]
    if len(intervals) > 1:
        pieces.append(f", the one that decides of {len(intervals)} ({verdicts.count('holds')} hold)")
    if verdict == "inconclusive":
        pieces.append(f"; an effect under {half:.2g} cannot be seen; {_decide(claim.region, worst, cost)}")
    if note:
        pieces.append(f"; {note}")
    return Finding(
        claim=claim,
        verdict=verdict,
        detail="".join(pieces),
        scale=scale,
        value=worst.value,
        low=worst.low,
        high=worst.high,
        smallest_visible_effect=half,
    )


def recomputed(claim: Claim, value: float, detail: str) -> Finding:
    """Judge a number that follows from published constants alone: it has no interval."""
    return Finding(
        claim=claim,
        verdict=judge(claim.region, value, value),
        detail=detail,
        scale="the paper's constants",
        value=value,
        low=value,
        high=value,
    )


def needs_runs(claim: Claim, detail: str) -> Finding:
    return Finding(claim=claim, verdict="needs runs", detail=detail, scale="")


def out_of_reach(claim: Claim, reason: str) -> Finding:
    """What no run of ours will decide: a 70B model, a GPU's latency, runs that nobody has published."""
    return Finding(claim=claim, verdict="out of reach", detail=reason, scale="")


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By the numbers in their ids: K2 before K10, K7a before K7b."""
    return sorted(findings, key=lambda f: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", f.claim.id)])


def ledger(paper: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """A paper's claims.json. With 95 % intervals one verdict in twenty is false where the truth lies on an edge.

    An inconclusive claim was tested too: it could have come out wrong.
    """
    judged = [item for item in findings if item.verdict in ("holds", "fails", "inconclusive")]
    tested = sum(item.claim.evidence != "recomputed" for item in judged)
    return {
        "paper": paper,
        "claims": [item.to_json() for item in findings],
        "tested": tested,
        "expected_false_verdicts": 0.05 * tested,
    }


def _decide(region: Region, item: Interval, cost: Cost) -> str:
    """What would take the nearest edge out of the interval: more trunks, if it shrinks with their root, or others."""
    edge = min((region.low, region.high), key=lambda end: abs(item.value - end))
    distance = abs(item.value - edge)
    half = item.value - item.low if edge < item.value else item.high - item.value
    times = (half / distance) ** 2 if distance else math.inf
    if not cost.seeds_limit or times > MOST_TIMES:
        why = f"it lies too near {edge:.3g}" if cost.seeds_limit else "the law's lack of fit limits it"
        return f"{why}: more seeds would not decide it, a trunk of another size or longer{_hours(1, cost)} might"
    more = max(1, math.ceil(cost.trunks * (times - 1) - 1e-9))
    return f"{more} more trunks like these {cost.trunks}{_hours(more, cost)} would decide it"


def _hours(trunks: int, cost: Cost) -> str:
    """' (about 3.1 hours)' for so many trunks, on the machine that trained the others."""
    return "" if cost.hours_per_trunk is None else f" (about {trunks * cost.hours_per_trunk:.2g} hours)"
