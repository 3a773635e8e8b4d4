"""Figures of Frantar et al. (arXiv 2502.16440) from our table: the loss of each compression against D and N with the
fitted multipliers, the multipliers beside the published ones, whether they are constants, and whether they multiply."""

from collections.abc import Callable

import numpy as np

from replications.compression_laws.law import GROUPED
from shared.report.figures.forest import Mark
from shared.report.figures.gallery import Drawing
from shared.report.figures.style import count_label, tokens_label
from shared.report.figures.trained import OURS, Line, Panel, Trained, delta_panels, dot_figure, uncertain

TITLE = "Frantar et al. 2025: Compression Scaling Laws"
LAW = "A / (N eff)^alpha + B / D^beta + E"
PANELS = (("alpha", "alpha"), ("beta", "beta"))
VIEW, BASE = "multipliers", "unquantized"
# What the public summaries print of the paper, and QuEST's fit of the same form, by our names of the compressions.
SUMMARIES = {
    "W4": "eff_weights_4bit",
    "W4A4": "eff_full_4bit",
    "W1A1": "eff_full_1bit",
    "sparse0.5": "eff_sparse_50",
}
KINDS = ("ours, from losses", "ours, from deltas", "the paper, by a public summary", "QuEST")
WINDOW = (-0.05, 1.6)  # of eff: a few intervals are open
MISSING = "no run with low-precision weights, or sparse ones, is in the table yet"


def draw(material: Trained) -> list[Drawing]:
    return [
        _losses(material, "D", "N"),
        _losses(material, "N", "D"),
        _multipliers(material),
        _over_cells(material),
        _products(material),
    ]


def _names(material: Trained) -> list[str]:
    table = material.view(VIEW)
    return sorted(set(table[GROUPED])) if len(table) else []


def _losses(material: Trained, x: str, hue: str) -> Drawing:
    fit = material.fits.get(VIEW, {})
    constants = {name: value["value"] for name, value in fit.get("parameters", {}).items()}
    table, drawn = material.view(VIEW), []
    for name in [BASE, *_names(material)] if len(table) else []:
        some = material.base if name == BASE else table[table[GROUPED] == name]
        # A run scatters by less than the difference of two: by the root of a half.
        below, above = (np.abs(some[end] - some["delta"]) / np.sqrt(2) for end in ("low", "high"))
        cells = some.assign(low=some["loss"] - below, high=some["loss"] + above)
        eff = 1.0 if name == BASE else constants.get(f"eff_{name}")
        lines: dict[float, dict[str, Line]] = {}
        if eff is not None and constants:
            lines = {value: {OURS: _loss(constants, eff, x, float(value))} for value in sorted(set(cells[hue]))}
        drawn.append(Panel(name, cells, lines))
    along = "training tokens D" if x == "D" else "parameters N"
    status = (
        f"Lines: {LAW}, fitted to the losses ({fit.get('status', 'no fit')})." if constants else "No law is fitted."
    )
    return Drawing(
        name="loss_tokens" if x == "D" else "loss_parameters",
        caption=f"Loss of cooled runs against {along}, one panel for each compression: W4 weights alone, W4A4 weights "
        f"and activations (per channel and token), sparse0.5 half of the weights zero. {uncertain(table)} The error "
        f"over the validation text, which all runs share, is left out. {status}",
        alt=f"Loss against {along}, one panel for each compression, one colour for each {hue}.",
        figure=delta_panels(
            drawn, x, hue, label="D (tokens)" if x == "D" else "N (parameters)", y_label="loss (nats per token)",
            y="loss", name=_name(hue), ticks=tokens_label if x == "D" else count_label, missing=MISSING, level=None,
        ),
    )  # fmt: skip


def _name(hue: str) -> Callable[[float], str]:
    return lambda value: f"N = {count_label(value)}" if hue == "N" else f"D = {tokens_label(value)}"


def _loss(c: dict[str, float], eff: float, x: str, other: float) -> Line:
    def line(value: float) -> float:
        N, D = (value, other) if x == "N" else (other, value)
        return float(c["A"] / (N * eff) ** c["alpha"] + c["B"] / D ** c["beta"] + c["E"])

    return line


def _multipliers(material: Trained) -> Drawing:
    constants = material.fits.get(VIEW, {}).get("parameters", {})
    numbers, quest = material.published.numbers, material.published.laws["quest"]
    rows = []
    for name in _names(material):
        marks = {}
        if f"eff_{name}" in constants:
            found = constants[f"eff_{name}"]
            marks[KINDS[0]] = Mark(found["value"], found["low"], found["high"])
        if (seen := material.seen.get(f"pool/trained/frantar/eff/{name}")) is not None:
            marks[KINDS[1]] = Mark(seen.value, seen.low, seen.high)
        if name in SUMMARIES:
            marks[KINDS[2]] = Mark(numbers[SUMMARIES[name]].value)
        if f"eff_{name}" in quest:
            marks[KINDS[3]] = Mark(quest[f"eff_{name}"].value)
        rows.append((name, marks))
    return Drawing(
        name="multipliers",
        caption="The multiplier of N of each compression: from the law of the loss, and from deltas with the term of "
        "N in Chinchilla's law on our unquantized runs (95 % intervals, cut by the frame), beside what is published. "
        "Ours are of runs without the Hadamard transform that QuEST trains with.",
        alt="Effective-parameter multipliers by format: ours, the paper's and QuEST's.",
        figure=dot_figure(rows, KINDS, label="eff (share of N)", missing=MISSING, lines=(1.0,), window=WINDOW),
    )


def _over_cells(material: Trained) -> Drawing:
    drawn = []
    for name in _names(material):
        table = material.view(VIEW)
        some = table[table[GROUPED] == name]
        keys = [
            f"pool/trained/frantar/cell/{name}/{size}, {float(D) / 2**20:g}M tokens"
            for size, D in zip(some["size"], some["D"], strict=True)
        ]
        kept = some[[key in material.seen for key in keys]]
        values = [material.seen[key] for key in keys if key in material.seen]
        ends = {"eff": [v.value for v in values], "low": [v.low for v in values], "high": [v.high for v in values]}
        drawn.append(Panel(name, kept.assign(**ends)))
    return Drawing(
        name="multiplier_cells",
        caption="The multiplier of each run by itself, against D: the law says that every panel is one level line. "
        "Intervals hold what seeds do, the validation text, and what Chinchilla's law on our unquantized runs leaves "
        "open, which all points share; the frame cuts them.",
        alt="Multiplier of each run against training tokens, one panel for each compression, one colour for each "
        "model.",
        figure=delta_panels(
            drawn, "D", "N", label="D (tokens)", y_label="eff (share of N)", y="eff", name=_name("N"),
            ticks=tokens_label, missing="no multiplier could be told yet", level=1.0, window=WINDOW,
        ),
    )  # fmt: skip


def _products(material: Trained) -> Drawing:
    prefix = "pool/trained/frantar/product/"
    found = {name.removeprefix(prefix): seen for name, seen in sorted(material.seen.items()) if name.startswith(prefix)}
    rows = [(name.replace("/", ", "), {"ours": Mark(s.value, s.low, s.high)}) for name, s in found.items()]
    return Drawing(
        name="products",
        caption="The multiplier of runs that are sparse and quantized over the product of the multipliers of each "
        "alone, with 95 % intervals: one where compressions combine in one law. Dashes: 0.9 and 1.1.",
        alt="Ratio of the joint multiplier to the product of the single ones.",
        figure=dot_figure(
            rows, ("ours",), label="eff of both over the product", lines=(0.9, 1.1),
            missing="no model and horizon has a sparse run, a quantized run and one that is both",
        ),
    )  # fmt: skip
