"""What the explorer is given: laws with their constants, and measured points, as compact plain values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from shared.report.explorer.formula import Formula, javascript

# What a law may read: the sliders, and e, the relative error of their format at their group size.
SLIDERS = ("N", "D", "bits", "G", "E", "M", "e")
UNROUNDED = 1e300  # JSON has no infinity; bits enter laws as exp(-bits / gamma)


@dataclass(frozen=True)
class Curve:
    """A law with constants, ready to be drawn.

    `reads` says for each input of the law which slider it is, or its fixed value; `base` are inputs at which nothing is
    quantized, from which a law of the loss counts its delta. `constants` are raw; `draws` (resamples, constants) in the
    same order give the band, none where only values are published. `by_bits` maps a constant of the formula to that of
    each bit width, for laws with a constant a precision; `only_bits` are the widths of constants that hold for those
    alone. `domain` is the fitted range of each slider; `command` are the words of `bitlaw predict` before the inputs,
    and `groups` its group at each bit width. `points` are the filters of the points that a fit was made from.
    """

    id: str
    paper: str
    label: str
    kind: str  # published, ours
    law: str
    target: str
    reads: Mapping[str, str | float]
    constants: Mapping[str, float]
    base: Mapping[str, float] = field(default_factory=dict)
    draws: Sequence[Sequence[float]] = ()
    by_bits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    only_bits: Sequence[int] = ()
    domain: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    warning: str = ""  # what stands beside every reading
    command: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    grouped: str = ""
    points: Mapping[str, str] = field(default_factory=dict)
    shown: bool = False  # when the page opens


@dataclass(frozen=True)
class Explorer:
    """Curves in their order, the formula of each of their laws with its inputs, points as a table with columns N, D
    (numbers), `text` ones (any words) and `value` ones (numbers, not a number where absent), papers' titles by id;
    `errors` are relative errors of formats at groups of 1, 2, 4, ... values."""

    curves: Sequence[Curve]
    formulas: Mapping[str, tuple[Formula, Sequence[str], Sequence[str]]]  # formula, inputs, constants
    points: pd.DataFrame
    text: Sequence[str]
    value: Sequence[str]
    papers: Mapping[str, str]
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)


def script_of(explorer: Explorer) -> str:
    """One JavaScript object with a function for each law."""
    lines = [
        f"  {name}: {javascript(formula, inputs, constants)},"
        for name, (formula, inputs, constants) in sorted(explorer.formulas.items())
    ]
    return "\n".join(["const LAWS = {", *lines, "};"])


def data_of(explorer: Explorer) -> Markup:
    """JSON to stand inside a <script>: no byte of it can end the element or open another."""
    curves = []
    for curve in explorer.curves:
        values = {key: value for key, value in asdict(curve).items() if value or key in ("id", "constants")}
        # Keys are sorted in the file, so that the order of the draws' columns stands beside them.
        draws = [[_digits(x) for x in draw] for draw in curve.draws]
        curves.append(values | {"draws": draws, "names": list(curve.constants)})
    columns: dict[str, Any] = {}
    for name in explorer.text:
        # Words once, and the place of each row's among them.
        levels = list(dict.fromkeys(explorer.points[name].astype(str)))
        places = {word: place for place, word in enumerate(levels)}
        columns[name] = {"levels": levels, "codes": [places[word] for word in explorer.points[name].astype(str)]}
    for name in explorer.value:
        columns[name] = [None if pd.isna(x) else _digits(float(x)) for x in explorer.points[name]]
    errors = {name: [_digits(e) for e in row] for name, row in explorer.errors.items()}
    whole = {"errors": errors, "curves": curves, "points": columns, "papers": dict(explorer.papers)}
    return inert(whole)


def inert(value: Any) -> Markup:
    """Compact JSON in which nothing means anything to HTML."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _digits(value: float) -> float | int:
    """Seven digits: one more than files have, so that nothing is rounded twice to another number of six."""
    if not abs(value) < UNROUNDED:
        return UNROUNDED
    short = float(f"{value:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
