"""Elasticities of each paper's law, published and fitted to our runs, side by side: the common currency of the laws.

Every row states its point. Laws that publish no constant (the page's), or not all that their slopes need (Kumar's
Eq. 9: its C_w, C_a and C_kv are printed nowhere), have no published row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replications.capybara_fp.law import LAW as SUN
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision import law as kumar
from replications.kumar_precision.optimum import gamma_bar
from replications.qat_scaling.law import LAW as CHEN
from replications.undertrained_qid import law as ouyang
from replications.undertrained_qid.law import LAW as OUYANG
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.elasticity import elasticities, slope
from shared.laws.law import Array, Law
from shared.laws.result import interval
from shared.laws.settings import Published
from shared.laws.study import REFERENCE
from shared.report.refits import Refit
from shared.report.results import PaperFit

QUANTITIES = ("D", "N", "bits", "G")
# Inside the grids of all papers: 200M parameters, 100 tokens for each, 4 bits, groups of 128.
POINT = {
    "N": 2e8,
    "D": 2e10,
    "bits": 4.0,
    "P_w": 4.0,
    "P_a": 4.0,
    "P_kv": 4.0,
    "E": 2.0,
    "M": 1.0,
    "G": 128.0,
    "B": 128.0,
}
QUEST_GROUPS = (
    "BF16", "W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP4", "2of4_INT4", "W1", "W2", "W3", "W4",
)  # fmt: skip
QUARTET_GROUPS = ("BF16/BF16", "MXFP4/BF16", "BF16/MXFP4", "MXFP4/MXFP4")
QUEST, QUARTET = effective_parameters(QUEST_GROUPS), effective_parameters_and_data(QUARTET_GROUPS)


@dataclass(frozen=True)
class Reading:
    """A law with published constants at one point."""

    paper: str
    label: str
    law: Law
    constants: str | None = None  # the set in published.yaml where it is not the law's own
    at: Mapping[str, float] = field(default_factory=dict)  # what differs from `POINT`
    # A bit more is this much of each input: of a layout its best share, of tied streams one each.
    bit: Mapping[str, float] = field(default_factory=lambda: {"bits": 1.0})
    # Constants that the paper does not print as such. A power law's slopes do not depend on its factor: one in its
    # place gives the slopes, but no delta (`whole` is False).
    given: Mapping[str, float] | None = None
    whole: bool = True

    def theta(self, published: Mapping[str, Published]) -> Array | None:
        """Internal constants (P,), or None where one of them is not published."""
        if self.given is not None:
            return self.law.internal({**published[self.paper].values(), **self.given})
        known = published[self.paper].constants(self.law, self.constants)
        return self.law.internal({name: constant.value for name, constant in known.items()}) if known else None

    def point(self) -> dict[str, float]:
        return {**POINT, **self.at}


def readings(published: Mapping[str, Published]) -> list[Reading]:
    """Every law with published constants, at 4 bits where it knows bits."""
    sun = published["capybara_fp"].values()
    total = sun["delta"] + sun["nu"]
    streams = {"P_w": 1.0, "P_a": 1.0, "P_kv": 1.0}
    alone = published["undertrained_qid"].values()
    bar = {"gamma_bar": gamma_bar(published["kumar_precision"].values())}
    chen = [("W4A4", None), *((name, name) for name in published["qat_scaling"].laws)]
    return [
        Reading("kumar_precision", "published, rounding (Eq. 2)", kumar.LAW),
        Reading("kumar_precision", "published, weights in 4 bits (Eq. 3)", kumar.EQ3_BIAS_TIED),
        Reading("kumar_precision", "published, weights in 4 bits (Eq. 3 as printed, no bias)", kumar.EQ3_TIED),
        Reading("kumar_precision", "published, all in 4 bits (Eq. 4)", kumar.EQ4_BIAS, bit=streams),
        Reading("kumar_precision", "published, all in 4 bits (Eq. 4 as printed, no biases)", kumar.EQ4, bit=streams),
        Reading("kumar_precision", "published, all in 4 bits (Eq. 4, mean gamma)", kumar.EQ4_BAR, given=bar),
        Reading("undertrained_qid", "published, rounding (Eq. 8)", OUYANG),
        *(
            Reading("undertrained_qid", f"published, {name} alone ({equation})", law, bit=bit, whole=False,
                    given={"k": 1.0, constant: alone[f"{constant}_alone"]})
            for name, equation, law, constant, bit in (
                ("tokens", "Eq. 5", ouyang.TOKENS, "beta", {}),
                ("size", "Eq. 6", ouyang.SIZE, "alpha", {}),
                ("bits", "Eq. 7", ouyang.BITS, "gamma", {"bits": 1.0}),
            )
        ),
        *(
            Reading(
                "compression_laws", f"published by QuEST, {group}", QUEST, "quest",
                {"compression": float(QUEST_GROUPS.index(group))}, {},
            )
            for group in ("W4A4", "W4")
        ),
        *(
            Reading(
                "compression_laws", f"published by Quartet, {group}", QUARTET, "quartet",
                {"compression": float(QUARTET_GROUPS.index(group))}, {},
            )
            for group in QUARTET_GROUPS[1:]
        ),
        *(Reading("qat_scaling", f"published, {label}", CHEN, which, {}, {}) for label, which in chen),
        Reading(
            "capybara_fp", "published, E2M1", SUN, None, {}, {"E": sun["delta"] / total, "M": sun["nu"] / total}
        ),
    ]  # fmt: skip


def slopes(
    law: Law, theta: Array, at: Mapping[str, float], bit: Mapping[str, float], draws: Array | None = None
) -> dict[str, dict[str, float]]:
    """The quantities of `QUANTITIES` that the law knows, with intervals where there are draws (resamples, P).
    B and G are both the elements that share a scale."""
    found = elasticities(law, theta, draws, at)
    named: dict[str, dict[str, float]] = {name: found[name] for name in ("D", "N") if name in found}
    if bit and set(bit) <= set(law.inputs):

        def per_bit(some: Array) -> Array:
            return np.sum([share * slope(law, some, name, at) for name, share in bit.items()], axis=0)

        named["bits"] = {"value": float(per_bit(theta)), "at": at["bits"]}
        if draws is not None:
            low, high = interval(per_bit(draws))
            named["bits"] |= {"low": float(low), "high": float(high)}
    group = next((name for name in ("G", "B") if name in found), None)
    named |= {"G": found[group]} if group else {}
    return {name: {end: _exact(value) for end, value in entry.items()} for name, entry in named.items()}


def _exact(value: float) -> float:
    """A slope is a difference of logarithms over a small step: what is under its rounding is zero."""
    return 0.0 if abs(value) < 1e-8 else value


def where(law: Law, at: Mapping[str, float], without: tuple[str, ...] = ()) -> dict[str, float]:
    """The point in the law's own inputs, and N and D; a group of runs is named by the row's label."""
    # Groups and Chen's settings are of 4 bits without saying so by an input.
    implied = ("bits",) if law.grouped or "G" in law.inputs else ()
    names = dict.fromkeys(("N", "D", *implied, *law.inputs))
    return {name: at[name] for name in names if name != law.grouped and name not in without}


def published_rows(published: Mapping[str, Published], without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows as of `compare` for every published law at `POINT`, but for the laws named in `without`."""
    rows = []
    for reading in readings(published):
        theta = reading.theta(published)
        if theta is not None and reading.law.name not in without:
            at = reading.point()
            found = slopes(reading.law, theta, at, reading.bit)
            rows.append(
                _row(reading.paper, reading.law.name, "published", reading.label, found, where(reading.law, at))
            )
    return rows


def unquantized_rows(published: Mapping[str, Published]) -> list[dict[str, Any]]:
    """Laws that know no quantization: their slopes are those of the loss itself, so that they stand apart
    ("of": "loss"). Ouyang's 16-bit loss, and Chinchilla's law as published."""
    rows = []
    for paper, law, which in (("comparison", CHINCHILLA, "chinchilla"), ("undertrained_qid", ouyang.LOSS_16BIT, None)):
        known = published[paper].constants(law, which)
        if known:
            theta = law.internal({name: constant.value for name, constant in known.items()})
            found = slopes(law, theta, POINT, {})
            rows.append(_row(paper, law.name, "published", "published", found, where(law, POINT), of="loss"))
    return rows


def refitted_row(
    paper: str, law: Law, label: str, theta: Array, draws: Array, at: Mapping[str, float], bit: Mapping[str, float],
    without: tuple[str, ...] = (), of: str = "delta",
) -> dict[str, Any]:  # fmt: skip
    """A row of `compare` from a fit on published runs. `without`: inputs that those runs do not vary."""
    found = slopes(law, theta, at, bit, draws)
    if {"G", "B"} & set(without):
        found.pop("G", None)
    return _row(paper, law.name, "refitted", label, found, where(law, at, without), of=of)


def chen_rows(refits: Mapping[str, Refit]) -> list[dict[str, Any]]:
    """Chen's exponents on other groups' runs, where the refits have both: they are the slopes, at every point."""
    runs = [(f"quest/{{}}/{bits}", f"QuEST, W = A in {bits} bits", bits) for bits in (2, 3, 4)]
    runs += [(f"quartet/{side}/{{}}", f"Quartet, {side} pass in MXFP4", 4) for side in ("forward", "backward")]
    rows = []
    for name, label, bits in runs:
        found = {key: refits.get(name.format(f"gamma_{key}")) for key in ("D", "N")}
        if found["D"] and found["N"]:
            D, N = found["D"], found["N"]  # delta falls with N as N^-gamma_N
            slopes = {
                "D": {"value": D.value, "low": D.low, "high": D.high},
                "N": {"value": -N.value, "low": -N.high, "high": -N.low},
            }
            at = {"N": POINT["N"], "D": POINT["D"], "bits": float(bits)}
            rows.append(_row("qat_scaling", CHEN.name, "refitted", f"refitted, {label}", slopes, at))
    return rows


def compare(
    fits: list[PaperFit],
    published: Mapping[str, Published] | None = None,
    refits: Mapping[str, Refit] | None = None,
    refitted: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Rows {"paper", "law", "source", "phase", "group_size", "label", "of", "at", "D", "N", "bits", "G"}; `at` is the
    point {"N", "D", ...} and the last four are estimates {"value", "low", "high", "at"}, or None where the law has no
    such slope. Fitted laws first, then what `published` has of others, then the refits and `refitted`, rows that were
    made with them (published/elasticities.json). A slope of zero is a statement too: a multiplier of N knows no D."""
    rows = []
    for fit in fits:
        found, at = fit.published["elasticities"], dict(REFERENCE)
        rows.append(_row(fit.paper, fit.law, "published", "published", found, at))
        rows += [
            _row(fit.paper, fit.law, "ours", f"ours, {p.name}", p.elasticities, at, p.phase, p.group_size)
            for p in fit.parts
        ]
    rows += published_rows(published, tuple(fit.law for fit in fits)) if published else []
    rows += chen_rows(refits or {}) + [row for row in refitted or [] if row["of"] == "delta"]
    rows += unquantized_rows(published) if published else []
    return rows + [row for row in refitted or [] if row["of"] != "delta"]


def _row(
    paper: str, law: str, source: str, label: str, slopes: Mapping[str, dict[str, float]], at: Mapping[str, float],
    phase: str | None = None, group_size: str | None = None, of: str = "delta",
) -> dict[str, Any]:  # fmt: skip
    named = {name: _estimate(slopes.get(name)) for name in QUANTITIES}
    return {
        "paper": paper, "law": law, "source": source, "phase": phase, "group_size": group_size, "label": label,
        "of": of, "at": dict(at), **named,
    }  # fmt: skip


def _estimate(slope: Mapping[str, float] | None) -> dict[str, float | None] | None:
    return {end: slope.get(end) for end in ("value", "low", "high", "at")} if slope else None
