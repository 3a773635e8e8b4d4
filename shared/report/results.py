"""What earlier stages wrote about a paper: `fit.json` and `claims.json`, checked as far as they are read here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import BitlawError
from shared.files import read_json

NEEDS_RUNS = "needs runs"


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


def part_name(phase: str, group_size: str) -> str:
    return f"{phase}, per channel" if group_size == "channel" else f"{phase}, group {group_size}"


def read_fit(path: Path) -> PaperFit:
    """Raises BitlawError naming the file and the key when it is missing, no JSON, or not of `replicate fit`."""
    values = _mapping(path)
    taken = {key: _get(values, key, path) for key in ("paper", "law", "inputs", "settings", "selection", "published")}
    parts = []
    for number, part in enumerate(values.get("parts", [])):
        fields = {key: _get(part, key, path, f"parts[{number}].") for key in Part.__dataclass_fields__}
        parts.append(Part(**fields))
    unfitted = [f"{part_name(p['phase'], p['group_size'])}: {p['reason']}" for p in values.get("unfitted", [])]
    return PaperFit(**taken, parts=tuple(parts), unfitted=tuple(unfitted))


def read_claims(path: Path) -> list[Claim]:
    """Raises BitlawError as `read_fit` does."""
    claims = _get(_mapping(path), "claims", path)
    return [
        Claim(**{key: _get(claim, key, path, f"claims[{number}].") for key in Claim.__dataclass_fields__})
        for number, claim in enumerate(claims)
    ]


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise BitlawError(f"{path}: holds no object; write it again with `bitlaw replicate`")
    return values


def _get(values: dict[str, Any], key: str, path: Path, where: str = "") -> Any:
    if key not in values:
        raise BitlawError(f"{path}: key '{where}{key}' is missing; write the file again with `bitlaw replicate`")
    return values[key]
