"""Every law with constants: those that papers publish, and those that our stages fitted (fits.json)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from replications.explorer import points as marks
from replications.explorer.formulas import FORMULAS
from replications.laws import ENTRIES, restore
from replications.papers import FITS, GUIDE, PAPERS, all_published, kept_fits
from replications.unified.forms import INPUT, STREAMS, TRAINED
from shared.files import read_json
from shared.laws.law import Law
from shared.laws.result import KEPT, Fit
from shared.laws.settings import Published, Selection, read_settings
from shared.report.explorer.data import SLIDERS, UNROUNDED, Curve
from shared.report.explorer.formula import Formula

READS: dict[str, str] = {
    "N": "N", "D": "D", "bits": "bits", "G": "G", "B": "G", "E": "E", "M": "M",
    "P_w": "bits", "P_a": "bits", "P_kv": "bits", "P_post": "bits", "relative_mse": "e",
}  # fmt: skip
UNIFIED = "unified"  # the folder of reports
EQUATIONS = {"kumar_eq2": "Eq. 2", "ouyang_joint": "Eq. 8"}
MULTIPLIERS = ("eff", "effN", "effD")
WEIGHTS, BOTH = re.compile(r"W(\d+)"), re.compile(r"W(\d+)A\1")
SHORT = {
    "kumar_precision": "Kumar", "undertrained_qid": "Ouyang", "compression_laws": "Frantar", "qat_scaling": "Chen",
    "capybara_fp": "Sun", "precision_predictor": "the page", GUIDE.name: "Hoffmann", "unified": "Unified",
}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """Published constants to draw: the set of published.yaml (none: the paper's law and numbers)."""

    paper: str
    law: str
    label: str
    which: str = ""
    only_bits: tuple[int, ...] = ()
    groups: re.Pattern[str] | None = None  # of a law with a multiplier a precision: which of its groups
    fixed: Mapping[str, float] = field(default_factory=dict)
    by_bits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    opened: bool = False


PUBLISHED = (
    Shown("kumar_precision", "kumar_eq2", "Eq. 2, rounded after training", opened=True),
    Shown("kumar_precision", "kumar_eq3_bias_tied", "Eq. 3, weights trained in few bits"),
    Shown("kumar_precision", "kumar_eq4_bias", "Eq. 4, weights, activations and KV in equal bits"),
    Shown("undertrained_qid", "ouyang_joint", "Eq. 8, rounded after training", opened=True),
    Shown("undertrained_qid", "ouyang_16bit", "Eq. 3, the 16-bit loss"),
    Shown("qat_scaling", "chen_loss", "W4A4 trained", only_bits=(4,)),
    Shown("qat_scaling", "chen_loss", "W4A16 trained", which="W4A16", only_bits=(4,)),
    Shown("qat_scaling", "chen_loss", "W16A4 trained", which="W16A4", only_bits=(4,)),
    Shown("capybara_fp", "capybara", "Eq. 1, trained in floating point"),
    Shown("compression_laws", "frantar", "QuEST, weights and activations", which="quest", groups=BOTH),
    Shown("compression_laws", "frantar", "QuEST, weights alone", which="quest", groups=WEIGHTS),
    Shown(
        "compression_laws", "quartet", "Quartet, MXFP4 forward", which="quartet_paper", only_bits=(4,),
        fixed={"effD": 1.0}, by_bits={"effN": {"4": "effN_MXFP4"}},
    ),
    Shown(
        "compression_laws", "quartet", "Quartet, MXFP4 forward and backward", which="quartet_paper", only_bits=(4,),
        by_bits={"effN": {"4": "effN_MXFP4"}, "effD": {"4": "effD_MXFP4"}},
    ),
    Shown(GUIDE.name, "chinchilla", "Chinchilla's law, unquantized", which="besiroglu"),
)  # fmt: skip


def published() -> list[Curve]:
    """Curves of published constants; of these no draws are known."""
    papers = all_published()
    return [_published(shown, papers[shown.paper]) for shown in PUBLISHED]


def _published(shown: Shown, paper: Published) -> Curve:
    known = {**paper.numbers, **paper.law, **(paper.laws[shown.which] if shown.which else {})}
    law = ENTRIES[shown.law].law
    names = [name for name in law.parameters if not name.startswith(MULTIPLIERS)]
    by_bits = dict(shown.by_bits)
    if shown.groups:
        by_bits["eff"] = _multipliers(known, shown.groups)
    names += [name for some in by_bits.values() for name in some.values()]
    constants = {name: known[name] for name in names}
    sources = list(dict.fromkeys(f"{one.source} ({one.confidence})" for one in constants.values()))
    return Curve(
        id="-".join(part for part in ("published", shown.law, shown.which, _slug(shown.label)) if part),
        paper=shown.paper,
        label=f"{SHORT[shown.paper]}, {shown.label}",
        kind="published",
        law=shown.law,
        target=law.target,
        reads=_reads(law),
        constants={name: one.value for name, one in constants.items()} | dict(shown.fixed),
        base=_base(law),
        by_bits=by_bits,
        only_bits=shown.only_bits,
        note="; ".join(sources[:3]) + ("; and others" if len(sources) > 3 else ""),
        shown=shown.opened,
    )


def _multipliers(names: Mapping[str, Any], groups: re.Pattern[str]) -> dict[str, str]:
    """{bits: the constant of its group}: eff_W4A4 where `groups` are those of weights and activations."""
    found = {name: groups.fullmatch(name.removeprefix("eff_")) for name in names if name.startswith("eff_")}
    return {match[1]: name for name, match in found.items() if match}


def ours(reports: Path) -> list[Curve]:
    """Curves of what was fitted to our runs, as far as the stages wrote it (reports/PAPER/fits.json)."""
    curves = []
    for paper in PAPERS.values():
        where = f"{reports.name}/{paper.name}/{FITS}"
        for part, result in kept_fits(paper.name, reports).items():
            first, _, second = part.partition("/")
            if first == paper.name:
                curves += _trained(paper.name, second, result, where, part)
                continue
            group = "channel" if second == "channel" else f"group {second}"
            method = read_settings(paper.file("experiment.yaml"), Selection, "fit").method
            points = {"kind": marks.ROUNDED, "method": method, "phase": first, "group": second}
            curve = _ours(paper.name, f"{EQUATIONS[result.law]}, {first}, {group}", result, where, part, points=points)
            curves.append(_opened(curve) if (first, second) == ("cooled", "channel") else curve)
    return [*curves, *_unified(reports)]


def _trained(paper: str, view: str, result: Fit, where: str, part: str) -> list[Curve]:
    """A view of low-precision training; of a law with multipliers a curve for each way to quantize that has any."""
    if result.groups:
        ways = ((BOTH, "weights and activations"), (WEIGHTS, "weights alone"))
        found = [_ours(paper, f"{view}, {words}", result, where, part, groups) for groups, words in ways]
        return [curve for curve in found if curve.by_bits["eff"]]
    widths = re.fullmatch(r"W(\d+)A(\d+)", view)  # what is trained in one width has constants for it alone
    only = (min(int(width) for width in widths.groups()),) if widths else ()
    return [_ours(paper, f"{view}, trained", result, where, part, only_bits=only)]


def _unified(reports: Path) -> list[Curve]:
    """The unified law's one fit to the pool, for three ways to quantize."""
    path = reports / UNIFIED / "fit.json"
    if not path.exists():
        return []
    result = Fit.from_json(read_json(path))
    result = replace(result, draws=result.draws[:: max(1, -(-len(result.draws) // KEPT))])
    law = restore(result.law, result.groups)
    curves = []
    for label, trained, errors in (
        ("rounded after training", 0.0, (INPUT,)),
        ("weights trained", 1.0, (INPUT,)),
        ("weights and activations trained", 1.0, (INPUT, STREAMS["a"])),
    ):
        reads: dict[str, str | float] = {name: "e" if name in errors else READS.get(name, 0.0) for name in law.inputs}
        kind = marks.TRAINED if trained else marks.ROUNDED
        curve = _ours(
            UNIFIED, label, result, f"{reports.name}/{UNIFIED}/fit.json", "", reads=reads | {TRAINED: trained},
            points={"kind": kind, "phase": "cooled"},
        )  # fmt: skip
        curves.append(curve)
    return curves


def _opened(curve: Curve) -> Curve:
    return replace(curve, shown=True)


def _ours(
    paper: str, label: str, result: Fit, path: str, part: str,
    groups: re.Pattern[str] | None = None, only_bits: Sequence[int] = (),
    reads: Mapping[str, str | float] | None = None, points: Mapping[str, str] | None = None,
) -> Curve:  # fmt: skip
    """A curve of a fit: its raw constants, and those of its draws."""
    law = restore(result.law, result.groups)
    result.check(law)
    raw = law.to_raw(np.concatenate([result.theta[None], result.draws]))
    by_bits = {"eff": _multipliers(dict.fromkeys(law.parameters), groups)} if groups else {}
    reads = reads or _reads(law)
    widths = {bits: name.removeprefix("eff_") for bits, name in by_bits.get("eff", {}).items()}
    about = f"{result.status}, {result.rows} rows" + (f"; {'; '.join(result.reasons)}" if result.reasons else "")
    return Curve(
        id="-".join(("ours", _slug(result.law), _slug(label))),
        paper=paper,
        label=f"{SHORT.get(paper, paper)}, {label}",
        kind="ours",
        law=result.law,
        target=law.target,
        reads=reads,
        constants=dict(zip(law.parameters, raw[0].tolist(), strict=True)),
        base=_base(law),
        draws=raw[1:].tolist(),
        by_bits=by_bits,
        only_bits=only_bits,
        domain={str(reads[name]): list(ends) for name, ends in result.domain.items() if reads.get(name) in SLIDERS},
        note=about,
        warning="" if result.status == "CONVERGED" else f"the fit is {result.status}",
        command=f"bitlaw predict {path}" + (f" --part '{part}'" if part else ""),
        groups=widths,
        grouped=law.grouped or "",
        points=points or {"kind": marks.TRAINED, "phase": "cooled"},
    )


def _reads(law: Law) -> dict[str, str | float]:
    return {name: READS[name] for name in law.inputs if name != law.grouped}


def _base(law: Law) -> dict[str, float]:
    """The unquantized setting, with infinite bits as a number; a multiplier of one."""
    if law.grouped:
        return dict.fromkeys(MULTIPLIERS, 1.0)
    return {name: min(value, UNROUNDED) for name, value in law.unquantized.items()}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def formulas(curves: Sequence[Curve]) -> dict[str, tuple[Formula, Sequence[str], Sequence[str]]]:
    """For each law of the curves: its formula, inputs and constants."""
    found: dict[str, tuple[Formula, Sequence[str], Sequence[str]]] = {}
    for curve in curves:
        law = ENTRIES[curve.law].law
        names = [name for name in law.parameters if not name.startswith(MULTIPLIERS)]
        found[curve.law] = (FORMULAS[curve.law], law.inputs, [*names, *(MULTIPLIERS if law.grouped else ())])
    return found
