"""What earlier stages wrote to reports/comparison: each file checked as far as the page reads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.checked import check
from shared.files import read_json

ADVICE = "write it again with `bitlaw {}`"


@dataclass(frozen=True)
class _Ends:
    low: float | None
    high: float | None


@dataclass(frozen=True)
class _Interval(_Ends):
    value: float | None


@dataclass(frozen=True)
class _Slope(_Interval):
    at: float | None = None


@dataclass(frozen=True)
class _Elasticities:
    law: str
    label: str
    of: str
    at: dict[str, float]
    D: _Slope | None
    N: _Slope | None
    bits: _Slope | None
    G: _Slope | None


@dataclass(frozen=True)
class _Derived(_Interval):
    paper: str
    quantity: str
    setting: str
    unit: str


@dataclass(frozen=True)
class _Decay(_Interval):
    quantity: str
    schedule: str
    method: str
    format: str


@dataclass(frozen=True)
class _Corpora(_Interval):
    quantity: Literal["slope", "steeper", "ratio", "trained"]  # page.CORPORA has words for these
    corpus: str
    of: str
    tokens: list[float]
    seeds: list[int]


@dataclass(frozen=True)
class Counted:
    """Cooled runs of one size and horizon that copy (replications/copying.py); `left_out` are mixed, by their
    compression and seed."""

    size: str
    tokens: float
    unquantized: int
    unquantized_copy: int
    low_precision: int
    low_precision_copy: int
    unknown: int
    left_out: list[str]


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Explained:
    """`without`, `with_copying` and `with_layers`: the terms by name (replications/comparison/copied.py); rms, the
    standard deviation of what is left of ln delta."""

    phase: str
    format: str
    cells: int
    trunks: int
    without: dict[str, Estimate]
    with_copying: dict[str, Estimate]
    with_layers: dict[str, Estimate]
    rms_without: float
    rms_with_copying: float
    rms_with_layers: float


@dataclass(frozen=True)
class _Copying:
    counted: list[Counted]
    explained: list[Explained]


@dataclass(frozen=True)
class _Order(_Interval):
    statement: str
    size: str
    tokens: float
    seeds: int
    worse: float | None
    better: float | None
    verdict: str


@dataclass(frozen=True)
class _Method(_Interval):
    competes: bool
    bits_per_weight: float


@dataclass(frozen=True)
class _MethodRow:
    size: str
    phase: str
    D: float
    bits: float
    group_size: str
    methods: dict[str, _Method]
    winner: str | None
    real: bool


@dataclass(frozen=True)
class _Methods:
    rows: list[_MethodRow]


@dataclass(frozen=True)
class _Constant(_Interval):
    published: float | None


@dataclass(frozen=True)
class _View:
    paper: str
    view: str
    status: str
    reasons: list[str]
    parameters: dict[str, _Constant]


@dataclass(frozen=True)
class _HeldOut:
    rows: int
    median_abs_error: float | None


@dataclass(frozen=True)
class _Fitted:
    """What a view has beside, where its law was fitted."""

    rows: int
    compressed: int
    rms: float
    heldout: _HeldOut


@dataclass(frozen=True)
class _Trained:
    views: list[_View]


# By the file's name: what it holds, the key under which its rows stand, and the command that writes it.
KINDS: dict[str, tuple[Any, str | None, str]] = {
    "elasticities": (list[_Elasticities], None, "replicate compare"),
    "derived": (list[_Derived], None, "replicate compare"),
    "orders": (list[_Order], None, "replicate compare"),
    "decay": (list[_Decay], None, "replicate compare"),
    "corpora": (list[_Corpora], None, "replicate compare"),
    "methods": (_Methods, "rows", "replicate methods"),
    "trained": (_Trained, "views", "replicate trained"),
}


def read_copying(path: Path) -> dict[str, Any]:
    """`counted` and `explained` of copying.json, both empty where the file is not there. Raises as `read_rows`."""
    if not path.exists():
        return {"counted": [], "explained": []}
    values = read_json(path)
    check(_Copying, values, path, "comparison of copying", ADVICE.format("replicate compare"))
    return dict(values)


def read_rows(path: Path) -> list[Any]:
    """The rows of one of `KINDS`, none where the file is not there. Raises BitlawError naming the file and the place
    when it is no JSON or not what the page shows."""
    if not path.exists():
        return []
    kind, key, command = KINDS[path.stem]
    values, what, advice = read_json(path), f"comparison of {path.stem}", ADVICE.format(command)
    check(kind, values, path, what, advice)
    rows: list[Any] = values if key is None else values[key]
    if path.stem == "trained":
        fitted = {f"views[{k}]": view for k, view in enumerate(rows) if view["parameters"]}
        check(dict[str, _Fitted], fitted, path, what, advice)
    return rows
