"""What earlier stages wrote about a paper: `fit.json` and `claims.json`, checked as far as they are read here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shared.checked import check
from shared.files import read_json

NEEDS_RUNS = "needs runs"
ADVICE = "write it again with `bitlaw replicate`"


@dataclass(frozen=True)
class Part:
    """One fit: one phase (cooled or trunk), group size and corpus. Values are plain JSON."""

    phase: str
    group_size: str
    corpus: str
    rows: int
    status: str
    reasons: list[str]  # why the status is not CONVERGED, and what to know about the noise
    parameters: dict[str, dict[str, float]]  # {"gamma_D": {"value", "low", "high", "loo_low", "loo_high"}}
    diagnostics: dict[str, Any]
    heldout: dict[str, Any]  # {"rows", "median_abs_log_error", "by_reason": {reason: {"cells", ...}}}
    elasticities: dict[str, dict[str, float]]  # {"D": {"value", "low", "high"}, "N": ..., "bits": {..., "at"}}
    local_elasticities: list[dict[str, float | None]]
    law_free: dict[str, Any]  # slopes over many cells without the law, such as {"bits": {"value", "low", "high"}}
    curves: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return part_name(self.phase, self.group_size)

    @property
    def key(self) -> str:
        return f"{self.corpus}/{self.phase}/{self.group_size}"


@dataclass(frozen=True)
class PaperFit:
    paper: str
    law: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    selection: dict[str, Any]
    parts: tuple[Part, ...]
    unfitted: tuple[str, ...]  # parts with rows that cannot be fitted, in words
    published: dict[str, Any]

    def part(self, phase: str, group_size: str = "channel") -> Part | None:
        """The first part of this phase and group size."""
        return next((p for p in self.parts if (p.phase, p.group_size) == (phase, group_size)), None)


@dataclass(frozen=True)
class Claim:
    """A claim and its verdict, as claims.json has it."""

    id: str
    statement: str
    source: str
    evidence: str
    region: str
    verdict: str
    value: float | None
    low: float | None
    high: float | None
    detail: str
    smallest_visible_effect: float | None
    scale: str


@dataclass(frozen=True)
class _Unfitted:
    phase: str
    group_size: str
    reason: str


Some = Annotated[list[float], Field(min_length=1)]


# What fit.json and claims.json hold, as far as it is read here or by who reads these.
@dataclass(frozen=True)
class _Interval:
    value: float | None  # None: what is not finite
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Estimate(_Interval):
    loo_low: float | None = None
    loo_high: float | None = None


@dataclass(frozen=True)
class _AtN(_Interval):
    N: float


@dataclass(frozen=True)
class _AtD(_Interval):
    D: float


@dataclass(frozen=True)
class _LawFree:
    D_at_N: list[_AtN] = field(default_factory=list)
    N_at_D: list[_AtD] = field(default_factory=list)
    bits: _Interval | None = None
    bits_r2: _Interval | None = None
    bits_curvature: _Interval | None = None
    D_drift: _Interval | None = None


@dataclass(frozen=True)
class _Curve:
    N: float
    bits: float
    D: Some
    delta: Some
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class _HeldOut:
    rows: int
    median_abs_log_error: float | None = None


@dataclass(frozen=True)
class _PartFile:
    phase: str
    group_size: str
    corpus: str
    rows: int
    status: str
    reasons: list[str]
    parameters: dict[str, _Estimate]
    diagnostics: dict[str, Any]
    heldout: _HeldOut
    elasticities: dict[str, _Interval]
    local_elasticities: list[dict[str, float | None]]
    law_free: _LawFree
    curves: list[_Curve]


@dataclass(frozen=True)
class _FitFile:
    paper: str
    law: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    selection: dict[str, Any]
    published: dict[str, Any]
    parts: list[_PartFile] = field(default_factory=list)
    unfitted: list[_Unfitted] = field(default_factory=list)


@dataclass(frozen=True)
class _ClaimsFile:
    claims: list[Claim]


@dataclass(frozen=True)
class _Judged:
    id: str
    verdict: str
    evidence: str
    value: float | None
    statement: str


@dataclass(frozen=True)
class _Ledger:
    claims: list[_Judged]
    tested: int
    expected_false_verdicts: float


def part_name(phase: str, group_size: str) -> str:
    return f"{phase}, per channel" if group_size == "channel" else f"{phase}, group {group_size}"


def read_fit(path: Path) -> PaperFit:
    """Raises BitlawError naming the file and the place when it is missing, no JSON, or not of `replicate fit`."""
    values = read_json(path)
    check(_FitFile, values, path, "paper's fit", ADVICE)
    taken = {key: values[key] for key in ("paper", "law", "inputs", "settings", "selection", "published")}
    parts = [Part(**{key: part[key] for key in Part.__dataclass_fields__}) for part in values.get("parts", [])]
    unfitted = [f"{part_name(p['phase'], p['group_size'])}: {p['reason']}" for p in values.get("unfitted", [])]
    return PaperFit(**taken, parts=tuple(parts), unfitted=tuple(unfitted))


def read_claims(path: Path) -> list[Claim]:
    """Raises BitlawError as `read_fit` does."""
    values = read_json(path)
    check(_ClaimsFile, values, path, "file of claims", ADVICE)
    return [Claim(**{key: claim[key] for key in Claim.__dataclass_fields__}) for claim in values["claims"]]


def read_ledger(path: Path) -> dict[str, Any]:
    """claims.json as it is, of which `bitlaw claims` shows a part. Raises BitlawError as `read_fit` does."""
    values: dict[str, Any] = read_json(path)
    check(_Ledger, values, path, "file of claims", ADVICE)
    return values
