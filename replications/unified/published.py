"""The chosen form on QuEST's 104 runs and on Quartet's forward pass, after the choice. (Scored three times so far, with
one form: README.md says why.)

What is refitted, written down before anything was scored: on the rows that a split leaves, every law, the papers' and
ours alike, fits all of its constants by the same recipe (least squares of ln loss), the five of the unquantized loss
among them. Of the unified law those are k, g and the exponents of its form (and r_a where weights and activations
differ). Link, measure and exponents come from `Selection`, which has never seen these runs. Relative errors are those
of QuEST's grids for normal values (error.py): nothing about a format is fitted. The test without Hadamard rotation has
the errors of the one with it, because a normal tensor has no other: that the law cannot tell them apart is counted
against it. `transferred` has the exponents of our pool and fits k alone.

Against a paper's own law with fewer constants than the form of four, the form of three or two stands in.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from replications.capybara_fp.law import LAW as CAPYBARA
from replications.compression_laws.law import effective_parameters
from replications.kumar_precision import law as kumar
from replications.published import tables
from replications.published.refits import CAPYBARA_DELTA, LOG_SQUARES, SEED, once
from replications.published.sources import locate, sources
from replications.qat_scaling.law import LOSS_UNTIED as CHEN
from replications.unified.difference import freed
from replications.unified.error import mid_rise, pruned_energy
from replications.unified.forms import INPUT, STREAMS, loss_law
from replications.unified.select import Selection
from replications.unified.tournament import NAMES
from shared.files import sha256_file, write_json
from shared.formats import format_named
from shared.formats.gaussian import gaussian_fit
from shared.laws.compare import Comparison, compare
from shared.laws.fit import hold
from shared.laws.law import Law

N_BOOT = 200
WHOLE = 16.0
TRANSFERRED = "unified, transferred"
FORWARD = "QuEST/bf16"
SAME = 1e-3
# What Kumar's Eq. 4 reads of QuEST's runs: two widths. Variants of one width are one to it.
OF_BITS = kumar.effective_bits("kumar_eq4_bias", "Eq. 4 with Appendix K", {"w": "P_w", "a": "P_a"}, biases=True)


def write(reports: Path, selection: Selection, exponents: Mapping[str, float], n_boot: int = N_BOOT) -> Path:
    """reports/unified/published.json. `exponents`: g, a and b (or b alone) of our pool, for what is transferred.

    Raises BitlawError when a table is absent or another one.
    """
    known = sources()
    found = {
        "inputs": {
            name: {"sha256": sha256_file(locate(name)), "origin": known[name].origin, "commit": known[name].commit}
            for name in ("quest", "quartet")
        },
        "form": selection.form.name,
        "refitted": "all constants of every law on the rows that a split leaves, least squares of ln loss",
        "comparisons": {
            name: {**comparison.to_json(), "against": against(comparison)}
            for name, comparison in score(selection, exponents, n_boot).items()
        },
    }
    target = reports / "unified" / "published.json"
    write_json(target, found)
    return target


def score(selection: Selection, exponents: Mapping[str, float], n_boot: int = N_BOOT) -> dict[str, Comparison]:
    """QuEST by family and whole, and Quartet's forward pass; see `compare` for splits and intervals."""
    table = with_errors(tables.quest())
    found = {}
    for name, families, streams in (
        ("quest/int", ("quest_int",), ()),
        ("quest/weight_only", ("quest_weight_only",), ()),
        ("quest/all 104 runs", tuple(sorted(set(table["family"]) - {"bf16"})), ("a",)),
    ):
        rows, groups = tables.with_codes(
            table[table["family"].isin(["bf16", *families])].reset_index(drop=True), "bf16"
        )
        rows = tables.as_floating_point(rows.assign(bits=rows["P_w"]))
        if not streams:
            rows[INPUT] = 1 - (1 - rows[INPUT]) * (1 - rows[STREAMS["a"]])
        laws: list[Law] = [kumar.EQ3_BIAS, effective_parameters(groups)]
        if name == "quest/int":
            laws.append(freed(hold(CAPYBARA, {"delta": CAPYBARA_DELTA})))
        if streams:
            laws[0] = OF_BITS
        laws += unified(selection, streams, exponents)
        found[name] = once(compare(laws, rows, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED, name=name))
    found["quartet/forward"] = _quartet(selection, n_boot)
    return found


def with_errors(table: pd.DataFrame) -> pd.DataFrame:
    """QuEST's runs with the relative errors of their weights and activations. Its 1-bit runs and its 2:4 ones count as
    the grids that the paper names (facts: published_runs.md, number_formats.md)."""
    # The table has 16 bits for FP4: laws of bits read the 4 that it has.
    four = table["family"] == "quest_fp4"
    table = table.assign(P_w=table["P_w"].mask(four, 4.0), P_a=table["P_a"].mask(four, 4.0))
    errors = [_of_run(str(row["family"]), float(row["P_w"]), float(row["P_a"])) for _, row in table.iterrows()]
    return table.assign(**{INPUT: [w for w, _ in errors], STREAMS["a"]: [a for _, a in errors]})


def _of_run(family: str, w_bits: float, a_bits: float) -> tuple[float, float]:
    if family == "quest_fp4":
        e = gaussian_fit(format_named("E2M1")).mse
        return e, e
    weights, activations = (mid_rise(bits) if bits < WHOLE else 0.0 for bits in (w_bits, a_bits))
    if family == "quest_2:4_int4":
        weights = 1 - (1 - weights) * (1 - pruned_energy(0.5, "2:4"))
    return weights, activations


def unified(selection: Selection, streams: tuple[str, ...], exponents: Mapping[str, float]) -> list[Law]:
    """The chosen form with 4, 3 and 2 constants, and with k alone (and r_a) beside our pool's exponents."""
    laws = []
    for constants, name in NAMES.items():
        form = selection.of(constants)
        if form.constants == constants:
            laws.append(freed(loss_law(form, name=name, streams=streams)))
    form = selection.form
    full = loss_law(form, name=TRANSFERRED, streams=streams)
    known: dict[str, float] = {
        name: exponents[name] for name in ("g", "a", "b") if name in full.parameters and name in exponents
    }
    return [*laws, freed(held_powers(full, known))]


def held_powers(law: Law, known: Mapping[str, float]) -> Law:
    """`law` with exponents held. k runs with them in the printed form, so `hold` would want it held too; inside, the
    level at the reference point does not."""
    bounds = law.bounds.copy()
    for name, value in known.items():
        bounds[law.parameters.index(name)] = np.clip(value, *law.bounds[law.parameters.index(name)])
    return replace(law, bounds=bounds)


def _quartet(selection: Selection, n_boot: int) -> Comparison:
    """Quartet's forward pass in one format, with the unquantized runs: what is left of the unified law is k and the
    exponents (g has nothing to tell it, and is held at 1). Errors of its backward passes are not known."""
    table = tables.quartet()
    rows, groups = tables.with_codes(table[table["compression"].isin(["bf16/bf16", FORWARD])].reset_index(drop=True),
                                     "bf16/bf16")  # fmt: skip
    coarse = rows["compression"] > 0
    e = gaussian_fit(format_named("E2M1")).mse
    rows = rows.assign(**{INPUT: np.where(coarse, 1 - (1 - e) ** 2, 0.0), "G": np.where(coarse, 32.0, 1.0)})
    laws: list[Law] = [effective_parameters(groups), freed(hold(CHEN, {"gamma_G": 0.0}))]
    for constants, name in NAMES.items():
        form = selection.of(constants)
        if form.constants == constants:
            laws.append(freed(held_powers(loss_law(form, name=name), {"g": 1.0})))
    return compare(laws, rows, recipe=LOG_SQUARES, n_boot=n_boot, seed=SEED, name="quartet/forward")


def against(comparison: Comparison) -> list[dict[str, Any]]:
    """For each paper's law and split: the unified law with at most as many constants, and both errors."""
    found = []
    by_name = {score.law: score for score in comparison.scores}
    for paper in (name for name in by_name if not name.startswith("unified")):
        allowed = [name for name in NAMES.values() if name in by_name
                   and by_name[name].parameters <= by_name[paper].parameters]  # fmt: skip
        if not allowed:
            continue
        mine = max(allowed, key=lambda name: by_name[name].parameters)
        for split, error in by_name[paper].errors.items():
            if split in by_name[mine].errors:
                ours = by_name[mine].errors[split]
                found.append({
                    "paper": paper, "paper_constants": by_name[paper].parameters, "unified": mine,
                    "unified_constants": by_name[mine].parameters, "split": split, "paper_error": error.value,
                    "unified_error": ours.value, "unified_low": ours.low, "unified_high": ours.high,
                    "paper_low": error.low, "paper_high": error.high, "verdict": _verdict(ours.value, error.value),
                })  # fmt: skip
    return found


def _verdict(ours: float, theirs: float) -> str:
    """Laws that are one where an input has two values only (Quartet's forward pass) differ by the solver's rounding."""
    return "the same" if abs(ours - theirs) < SAME * theirs else "below" if ours < theirs else "above"
