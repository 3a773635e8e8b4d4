"""Elasticities of each paper's law, published and fitted to our runs, side by side: the common currency of the laws."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from replications.capybara_fp.law import LAW as SUN
from replications.compression_laws.law import effective_parameters, effective_parameters_and_data
from replications.kumar_precision import law as kumar
from replications.qat_scaling.law import LAW as CHEN
from replications.undertrained_qid.law import LAW as OUYANG
from shared.laws.elasticity import elasticities, slope
from shared.laws.law import Array, Law
from shared.laws.settings import Published
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

    def theta(self, published: Mapping[str, Published]) -> Array | None:
        """Internal constants (P,), or None where one of them is not published."""
        known = published[self.paper].constants(self.law, self.constants)
        return self.law.internal({name: constant.value for name, constant in known.items()}) if known else None

    def point(self) -> dict[str, float]:
        return {**POINT, **self.at}


def readings(published: Mapping[str, Published]) -> list[Reading]:
    """Every law with published constants, at 4 bits where it knows bits."""
    sun = published["capybara_fp"].values()
    total = sun["delta"] + sun["nu"]
    streams = {"P_w": 1.0, "P_a": 1.0, "P_kv": 1.0}
    chen = [("W4A4", None), *((name, name) for name in published["qat_scaling"].laws)]
    return [
        Reading("kumar_precision", "published, rounding (Eq. 2)", kumar.LAW),
        Reading("kumar_precision", "published, weights in 4 bits (Eq. 3)", kumar.EQ3_BIAS_TIED),
        Reading("kumar_precision", "published, all in 4 bits (Eq. 4)", kumar.EQ4_BIAS, bit=streams),
        Reading("undertrained_qid", "published, rounding (Eq. 8)", OUYANG),
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


def slopes(law: Law, theta: Array, at: Mapping[str, float], bit: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The quantities of `QUANTITIES` that the law knows. B and G are both the elements that share a scale."""
    found = elasticities(law, theta, None, at)
    named: dict[str, dict[str, float]] = {name: found[name] for name in ("D", "N") if name in found}
    if bit and set(bit) <= set(law.inputs):
        value = sum(share * float(slope(law, theta, name, at)) for name, share in bit.items())
        named["bits"] = {"value": value, "at": at["bits"]}
    group = next((name for name in ("G", "B") if name in found), None)
    return named | ({"G": found[group]} if group else {})


def published_rows(published: Mapping[str, Published], without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows as of `compare` for every published law at `POINT`, but for the laws named in `without`."""
    rows = []
    for reading in readings(published):
        theta = reading.theta(published)
        if theta is not None and reading.law.name not in without:
            found = slopes(reading.law, theta, reading.point(), reading.bit)
            rows.append(_row(reading.paper, reading.law.name, "published", None, None, reading.label, found))
    return rows


def refitted_rows(refits: Mapping[str, Refit]) -> list[dict[str, Any]]:
    """Chen's exponents on other groups' runs, where the refits have both."""
    runs = [(f"quest/{{}}/{bits}", f"QuEST, W = A in {bits} bits") for bits in (2, 3, 4)]
    runs += [(f"quartet/{side}/{{}}", f"Quartet, {side} pass in MXFP4") for side in ("forward", "backward")]
    rows = []
    for name, label in runs:
        found = {key: refits.get(name.format(f"gamma_{key}")) for key in ("D", "N")}
        if found["D"] and found["N"]:
            D, N = found["D"], found["N"]  # delta falls with N as N^-gamma_N
            slopes = {
                "D": {"value": D.value, "low": D.low, "high": D.high},
                "N": {"value": -N.value, "low": -N.high, "high": -N.low},
            }
            rows.append(_row("qat_scaling", CHEN.name, "refitted", None, None, f"refitted, {label}", slopes))
    return rows


def compare(
    fits: list[PaperFit],
    published: Mapping[str, Published] | None = None,
    refits: Mapping[str, Refit] | None = None,
) -> list[dict[str, Any]]:
    """Rows {"paper", "law", "source", "phase", "group_size", "label", "D", "N", "bits", "G"}; the last four are
    estimates {"value", "low", "high", "at"} or None where the law has no such slope. Fitted laws first, then what
    `published` has of others, then the refits. A slope of zero is a statement too: a multiplier of N knows no D."""
    rows = []
    for fit in fits:
        found = fit.published["elasticities"]
        rows.append(_row(fit.paper, fit.law, "published", None, None, "published", found))
        rows += [
            _row(fit.paper, fit.law, "ours", p.phase, p.group_size, f"ours, {p.name}", p.elasticities)
            for p in fit.parts
        ]
    rows += published_rows(published, tuple(fit.law for fit in fits)) if published else []
    return rows + refitted_rows(refits or {})


def _row(
    paper: str, law: str, source: str, phase: str | None, group_size: str | None, label: str, slopes: dict[str, Any]
) -> dict[str, Any]:
    named = {name: _estimate(slopes.get(name)) for name in QUANTITIES}
    return {
        "paper": paper, "law": law, "source": source, "phase": phase, "group_size": group_size, "label": label, **named,
    }  # fmt: skip


def _estimate(slope: dict[str, float] | None) -> dict[str, float | None] | None:
    return {end: slope.get(end) for end in ("value", "low", "high", "at")} if slope else None
