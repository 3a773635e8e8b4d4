"""Which form the unified law has: chosen by what each predicts inside the rows that fits may see, and by nothing else.

Inner splits of a part's fitted rows: each format left out in turn, each size left out in turn, and each size's largest
horizon. The score of a form is the geometric mean, over parts and kinds of split, of its median |ln(measured /
predicted)|: every part counts the same however many rows it has. First link and measure are chosen with free exponents,
then, for each number of constants, the exponents of that link and measure.

This module reads no published table and no held-out row: its argument is `Part.without_hidden`, and it imports nothing
that could read another (tests/test_unified.py takes both away and asks for the same choice).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replications.unified.difference import difference
from replications.unified.forms import LADDER, LINKS, MEASURES, Form, Link, Measure, loss_law
from replications.unified.parts import Part
from replications.unified.score import MOST_STEPS, SEED, Unseen, log_ratio
from shared.errors import BitlawError
from shared.laws.fit import prepared
from shared.laws.law import Law
from shared.laws.solve import solve
from shared.laws.tables import too_little

# Parts that the forms are chosen on: together they hold each kind of compression once. The others are parts of these.
CHOSEN_ON = (
    "rounded, all groups, cooled",
    "rounded, all groups, before the cooldown",
    "weights, all groups",
    "weights and activations, all groups",
    "floating point, Sun's",
    "compressions, Frantar's",
)
LEAST_CELLS = 8  # of a part, and of what a split leaves to fit
N_STARTS = 12


@dataclass(frozen=True)
class Candidate:
    """A form and its median error for each "part: kind of split", with their geometric mean."""

    form: Form
    score: float
    errors: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.form), "constants": self.form.constants, "score": self.score, "errors": self.errors}


@dataclass(frozen=True)
class Selection:
    """Candidates of both steps, and the chosen form for each number of constants (the first is that of four)."""

    links: tuple[Candidate, ...]
    exponents: tuple[Candidate, ...]

    @property
    def form(self) -> Form:
        return self.of(4)

    def of(self, constants: int) -> Form:
        """The best form with that many constants, or the largest number below it that any has."""
        most = max((c.form.constants for c in self.exponents if c.form.constants <= constants), default=0)
        some = [c for c in self.exponents if c.form.constants == most]
        if not some:
            raise BitlawError(f"no form has as few as {constants} constants")
        return min(some, key=lambda c: c.score).form


def choose(
    parts: Sequence[Part],
    base: dict[str, float],
    links: Sequence[Link] = LINKS,
    measures: Sequence[Measure] = MEASURES,
) -> Selection:
    """Of all `links` and `measures`. Raises BitlawError when no part has rows enough for an inner split."""
    seen = [part.without_hidden() for part in parts if part.name in CHOSEN_ON]
    usable = [part for part in seen if part.table["cell"].nunique() >= LEAST_CELLS and _told(part, base)]
    first = [candidate(Form(link, measure, "free"), usable, base) for link in links for measure in measures]
    if not first[0].errors:
        raise BitlawError(f"no part of the pool has {LEAST_CELLS} cells that a fit may see: train more before a choice")
    best = min(first, key=lambda one: one.score).form
    ladder = [candidate(Form(best.link, best.measure, exponents), usable, base) for exponents in LADDER]
    return Selection(tuple(first), tuple(ladder))


def _told(part: Part, base: dict[str, float]) -> bool:
    """Whether its inputs vary, so that a fit can tell their exponents."""
    law = difference(loss_law(Form("additive", "energy", "free"), streams=part.streams), base)
    return too_little(law, part.table) is None


def candidate(form: Form, parts: Sequence[Part], base: dict[str, float]) -> Candidate:
    errors: dict[str, float] = {}
    for part in parts:
        errors |= _inner(form, part, base)
    score = float(np.exp(np.mean(np.log(list(errors.values()))))) if errors else float("inf")
    return Candidate(form, score, errors)


def _inner(form: Form, part: Part, base: dict[str, float]) -> dict[str, float]:
    """{"part: kind": median error}, all splits of a part solved as one batch that starts from the full fit."""
    law = difference(loss_law(form, streams=part.streams), base)
    law, _, rows, solved, _ = prepared(
        law, part.table, recipe=None, noise=part.noise, n_starts=N_STARTS, n_boot=2, seed=SEED, clusters="trunk_id",
        strata="N", name=part.name, fixed=None,
    )  # fmt: skip
    unseen = Unseen.of(part, rows)
    splits = [(kind, left) for kind, left in _splits(part, law)]
    if not splits:
        return {}
    size = np.bincount(solved.of_row)
    kept = np.stack([np.bincount(solved.of_row, (~left).astype(float), len(size)) / size for _, left in splits])
    theta = solve(
        law, solved.columns, np.tile(solved.theta, (len(splits), 1)), solved.target, kept * solved.weight, MOST_STEPS
    ).theta
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(log_ratio(unseen.delta, law.predict(theta, unseen.columns(law))))
    found: dict[str, list[float]] = {}
    for (kind, left), one in zip(splits, off, strict=True):
        cells = left[unseen.first] & unseen.clear
        found.setdefault(f"{part.name}: {kind}", []).extend(one[cells])
    return {name: float(np.median(values)) for name, values in found.items() if values}


def _splits(part: Part, law: Law) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    table = part.table
    largest = table["D"] == table.groupby("size")["D"].transform("max")
    masks = [("formats", (table["format"] == one)) for one in sorted(set(table["format"]))]
    masks += [("sizes", (table["size"] == one)) for one in sorted(set(table["size"]))]
    masks.append(("largest D", largest))
    for kind, mask in masks:
        left = mask.to_numpy(bool)
        rest = table[~left]
        several = all(rest[name].nunique() > 1 for name in ("N", "D"))
        if left.any() and several and rest["cell"].nunique() >= max(LEAST_CELLS, len(law.parameters) + 1):
            yield kind, left
