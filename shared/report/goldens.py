"""Freshly regenerated results against committed goldens, within stated tolerances.

Only quantities that the data pin down are compared: elasticities and what else claims are judged on, with intervals,
predictions at stated points, held-out errors and counts of rows. Bare constants of a law are not: they trade off
against each other.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from shared.checked import check
from shared.errors import BitlawError
from shared.files import read_json, write_json
from shared.laws.settings import Strict, read_settings
from shared.report.evidence import Seen
from shared.report.figures.style import tokens_label
from shared.report.results import PaperFit, Part

Inputs = dict[str, dict[str, str]]  # paper -> file -> sha256 of what its results were made from
Quantity = dict[str, Any]  # {"kind", "value", "low", "high"}; the interval where the kind has one


class Tolerance(Strict):
    """How far a quantity may move: the largest of the three allowances, and why that much."""

    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)  # of the golden value
    half_widths: float = Field(ge=0)  # of the golden 95 % interval
    why: str = Field(min_length=1)


class Tolerances(Strict):
    """tolerances.yaml."""

    elasticity: Tolerance
    interval_end: Tolerance
    predicted_delta: Tolerance
    heldout_error: Tolerance
    rows: Tolerance

    def of(self, kind: str) -> Tolerance:
        """The tolerance of a quantity's kind."""
        return dict(self)[kind]


Kind = Literal["elasticity", "interval_end", "predicted_delta", "heldout_error", "rows"]  # as in Tolerances


@dataclass(frozen=True)
class _Quantity:
    kind: Kind
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Goldens:
    quantities: dict[str, _Quantity]
    inputs: Inputs


@dataclass(frozen=True)
class Difference:
    """A quantity that moved too far; `golden` is None for one that the goldens lack, `fresh` for one missing now."""

    name: str
    golden: float | None
    fresh: float | None
    allowed: float | None


def quantities(fits: list[PaperFit]) -> dict[str, Quantity]:
    """Name -> quantity, of every part of every paper."""
    found: dict[str, Quantity] = {}
    for fit in fits:
        for part in fit.parts:
            for name, quantity in _of_part(part):
                found[f"{fit.paper}/{part.key}/{name}"] = quantity
    return found


def of_evidence(evidence: Mapping[str, Seen]) -> dict[str, Quantity]:
    """Name -> quantity, of what claims are judged on: its value and the ends of its interval."""
    found: dict[str, Quantity] = {}
    for name, item in evidence.items():
        ends = {"low": item.low, "high": item.high}
        found[name] = {"kind": "elasticity", "value": item.value, **ends}
        for end, value in ends.items():
            found[f"{name} {end}"] = {"kind": "interval_end", "value": value, **ends}
    return found


def _of_part(part: Part) -> list[tuple[str, Quantity]]:
    found: list[tuple[str, Quantity]] = [("rows", {"kind": "rows", "value": part.rows})]
    for name, estimate in part.elasticities.items():
        for end in ("value", "low", "high"):
            kind = "elasticity" if end == "value" else "interval_end"
            ends = {"low": estimate["low"], "high": estimate["high"]}
            label = f"elasticity {name}" if end == "value" else f"elasticity {name} {end}"
            found.append((label, {"kind": kind, "value": estimate[end], **ends}))
    for name, estimate in _law_free(part):
        ends = {"low": estimate["low"], "high": estimate["high"]}
        found.append((f"law-free {name}", {"kind": "elasticity", "value": estimate["value"], **ends}))
    sizes = {curve["N"] for curve in part.curves}
    for curve in part.curves:
        # The corners of the fitted plane at the longest horizon: levels, where a changed slope shows most.
        if curve["N"] in (min(sizes), max(sizes)):
            name = f"delta N={curve['N']:.0f} D={tokens_label(curve['D'][-1])} bits={curve['bits']:g}"
            found.append((name, {"kind": "predicted_delta", "value": curve["delta"][-1]}))
    if part.heldout.get("median_abs_log_error") is not None:
        found.append(("held-out error", {"kind": "heldout_error", "value": part.heldout["median_abs_log_error"]}))
    return found


def _law_free(part: Part) -> list[tuple[str, dict[str, float]]]:
    """Slopes measured without the law: one for each N or D, and those over all cells."""
    found = [(f"D slope at N={e['N']:.0f}", e) for e in part.law_free.get("D_at_N", [])]
    found += [(f"N slope at D={tokens_label(e['D'])}", e) for e in part.law_free.get("N_at_D", [])]
    single = ("bits", "bits_r2", "bits_curvature", "D_drift")
    return [*found, *((name, part.law_free[name]) for name in single if part.law_free.get(name))]


def compare(golden: Mapping[str, Quantity], fresh: Mapping[str, Quantity], tolerances: Tolerances) -> list[Difference]:
    """Every quantity that moved further than allowed, that is missing now, or that the goldens do not know."""
    differences = []
    for name in sorted({*golden, *fresh}):
        if name not in fresh:
            differences.append(Difference(name, golden[name]["value"], None, None))
        elif name not in golden:
            differences.append(Difference(name, None, fresh[name]["value"], None))
        else:
            allowed = _allowed(golden[name], tolerances.of(golden[name]["kind"]))
            was, now = golden[name]["value"], fresh[name]["value"]
            if not _within(was, now, allowed):
                differences.append(Difference(name, was, now, allowed))
    return differences


def _allowed(golden: Quantity, tolerance: Tolerance) -> float:
    value, low, high = golden["value"], golden.get("low"), golden.get("high")
    half_width = (high - low) / 2 if low is not None and high is not None else 0.0
    # Tables hold six significant digits: equal numbers may differ by one unit of the sixth.
    rounding = 1e-5 * abs(value or 0.0) if tolerance.relative or tolerance.half_widths else 0.0
    relative = tolerance.relative * abs(value or 0.0)
    return max(tolerance.absolute, relative, tolerance.half_widths * half_width, rounding)


def _within(was: float | None, now: float | None, allowed: float) -> bool:
    if was is None or now is None:
        return was is now
    return math.isfinite(now) and abs(now - was) <= allowed


def read_tolerances(path: Path) -> Tolerances:
    return read_settings(path, Tolerances)


def write_goldens(path: Path, fresh: Mapping[str, Quantity], inputs: Inputs) -> None:
    write_json(path, {"inputs": inputs, "quantities": dict(fresh)})


def read_goldens(path: Path) -> tuple[dict[str, Quantity], Inputs]:
    """Quantities and the inputs' sha256. Raises BitlawError when the file is absent or holds something else."""
    if not path.exists():
        raise BitlawError(f"{path}: there are no goldens to compare with; write them with `bitlaw check --update`")
    values = read_json(path)
    check(_Goldens, values, path, "file of goldens", "restore it from git")
    return values["quantities"], values["inputs"]
