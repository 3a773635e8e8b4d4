"""What stands in reports/unified: tournament.json, selection.json and published.json, checked as far as the page, the
figures and the scores on published runs read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replications.unified.forms import Exponents, Link, Measure
from shared.checked import check
from shared.errors import BitlawError
from shared.files import read_json

ADVICE = "write it again with `bitlaw tournament`"
ADVICE_PUBLISHED = f"{ADVICE} --published"


@dataclass(frozen=True)
class _Form:
    link: Link
    measure: Measure
    exponents: Exponents


@dataclass(frozen=True)
class _Ends:
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _OneFit:
    constants: dict[str, float]
    intervals: dict[str, _Ends]
    status: str
    tau: float | None
    cells: int
    held_out_error: float | None


@dataclass(frozen=True)
class _Law(_Ends):
    law: str
    constants: int
    place: str
    reason: str
    error: float | None
    behind_low: float | None
    behind_high: float | None


@dataclass(frozen=True)
class _Part:
    part: str
    own: list[str]
    clear_cells: int
    laws: list[_Law]


@dataclass(frozen=True)
class _Verdict(_Ends):
    part: str
    paper: str
    paper_constants: int
    paper_error: float
    unified: str
    unified_constants: int
    unified_error: float
    difference: float
    verdict: str


@dataclass(frozen=True)
class _Summary:
    verdicts: int
    verdict_parts: int
    without_verdict: list[str]
    below: int
    below_beyond_chance: int
    above_beyond_chance: int
    counts: bool


@dataclass(frozen=True)
class _Tournament:
    form: _Form
    note: str
    one_fit: _OneFit | None
    parts: list[_Part]
    verdicts: list[_Verdict]
    summary: _Summary


@dataclass(frozen=True)
class _Candidate(_Form):
    score: float
    constants: int
    errors: dict[str, float]


@dataclass(frozen=True)
class _Selection:
    form: _Form
    links: list[_Candidate]
    exponents: list[_Candidate]


@dataclass(frozen=True)
class _Error:
    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class _Behind:
    low: float
    high: float


@dataclass(frozen=True)
class _Score:
    law: str
    parameters: int
    behind: _Behind | None
    errors: dict[str, _Error]


@dataclass(frozen=True)
class _Against:
    split: str
    paper: str
    paper_constants: int
    paper_error: float
    paper_low: float | None
    paper_high: float | None
    unified: str
    unified_constants: int
    unified_error: float
    unified_low: float | None
    unified_high: float | None
    verdict: str


@dataclass(frozen=True)
class _Comparison:
    split: str
    scores: list[_Score]
    against: list[_Against]


@dataclass(frozen=True)
class _Published:
    comparisons: dict[str, _Comparison]


def read_tournament(path: Path) -> dict[str, Any]:
    """tournament.json as it is. Raises BitlawError naming the file and the place when it is missing, no JSON, or not
    what `bitlaw tournament` writes; so do the others."""
    values: dict[str, Any] = read_json(path)
    check(_Tournament, values, path, "tournament", ADVICE)
    fit = values["one_fit"]
    lacking = sorted(fit["constants"].keys() - fit["intervals"].keys()) if fit else []
    if lacking:
        raise BitlawError(f"{path}: is no tournament (one_fit.intervals: {lacking[0]} is missing); {ADVICE}")
    return values


def read_selection_json(path: Path) -> dict[str, Any]:
    """selection.json as it is."""
    values: dict[str, Any] = read_json(path)
    check(_Selection, values, path, "choice of a form", ADVICE)
    return values


def read_published(path: Path) -> dict[str, Any]:
    """published.json as it is."""
    values: dict[str, Any] = read_json(path)
    check(_Published, values, path, "score on published runs", ADVICE_PUBLISHED)
    for name, one in values["comparisons"].items():
        if not one["scores"] or not all(one["split"] in score["errors"] for score in one["scores"]):
            raise BitlawError(
                f"{path}: is no score on published runs (comparisons.{name}: no error on '{one['split']}'); "
                f"{ADVICE_PUBLISHED}"
            )
    return values
