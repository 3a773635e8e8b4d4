"""Figures of Chen et al. (arXiv 2505.14302) from our table: delta against D, N and log2 G of each way to quantize, the
deltas of weights and activations beside that of both, and the exponents."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from replications.qat_scaling.law import delta
from shared.report.figures.gallery import Drawing
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, count_label, empty, tidy, tokens_label
from shared.report.figures.trained import (
    OURS,
    PUBLISHED,
    Line,
    Panel,
    Trained,
    constants_figure,
    delta_panels,
    uncertain,
)

TITLE = "Chen et al. 2025: Scaling Law for Quantization-Aware Training"
LAW = "k · D^gamma_D · (log2 G)^gamma_G / N^gamma_N"
PANELS = (("gamma_N", "gamma_N"), ("gamma_D", "gamma_D"), ("gamma_G", "gamma_G"))
NAMES = ("k", "gamma_N", "gamma_D", "gamma_G")
WAYS = ("W4A4", "W4A16", "W16A4", "W3A3", "W3A16", "W2A16")
GROUPS = {"8": "G = 8", "channel": "per channel"}
LINES = (
    f"Full lines: {LAW}, fitted to our deltas of that way; dashes: the published constants, which are for far larger "
)
LINES += "models. Held-out cells are not fitted."
Y = "delta (nats per token)"


def draw(material: Trained) -> list[Drawing]:
    return [_tokens(material), _parameters(material), _groups(material), _split(material), _constants(material)]


def known(material: Trained, way: str) -> dict[str, Mapping[str, float]]:
    """Constants by style of line: ours where the pool tells them, the paper's for its three ways."""
    found: dict[str, Mapping[str, float]] = {}
    ours = material.fitted(f"pool/trained/chen/{way}", NAMES)
    if ours is not None:
        found[OURS] = ours
    of_way = material.published.law if way == "W4A4" else material.published.laws.get(way, {})
    if of_way:
        found[PUBLISHED] = {name: of_way[name].value for name in NAMES}
    return found


def _panels(material: Trained, hue: str, x: str) -> list[Panel]:
    """A panel for each way and group; lines along `x` at the value of `hue`."""
    found = []
    for way in WAYS:
        table = material.view(way)
        for group, text in GROUPS.items():
            cells = table[table["group"] == group] if len(table) else table
            lines: dict[float, dict[str, Line]] = {}
            for value, some in cells.groupby(hue) if len(cells) else ():
                at = {"N": float(some["N"].iloc[0]), "D": float(some["D"].iloc[0]), "G": float(some["G"].mean())}
                lines[value] = {style: _along(c, at, x) for style, c in known(material, way).items()}
            found.append(Panel(f"{way}, {text}", cells, lines))
    return found


def _along(constants: Mapping[str, float], at: Mapping[str, float], x: str) -> Line:
    return lambda value: delta(dict(constants), **{**at, x: value})


def _tokens(material: Trained) -> Drawing:
    drawn = _panels(material, "N", "D")
    return Drawing(
        name="delta_tokens",
        caption="What training in few bits adds to the loss, against training tokens D. "
        f"{uncertain(pd.concat([panel.cells for panel in drawn]))} {LINES}",
        alt="Delta against training tokens, one panel for each way to quantize and group, one colour for each model.",
        figure=delta_panels(
            drawn, "D", "N", label="D (tokens)", y_label=Y, name=lambda N: f"N = {count_label(N)}",
            ticks=tokens_label, missing="no run with integers on weights or activations is in the table yet",
        ),
    )  # fmt: skip


def _parameters(material: Trained) -> Drawing:
    drawn = _panels(material, "D", "N")
    return Drawing(
        name="delta_parameters",
        caption="The same against the model's parameters N. "
        f"{uncertain(pd.concat([panel.cells for panel in drawn]))} {LINES}",
        alt="Delta against parameters, one panel for each way to quantize and group, one colour for each horizon.",
        figure=delta_panels(
            drawn, "N", "D", label="N (parameters)", y_label=Y, name=lambda D: f"D = {tokens_label(D)}",
            ticks=count_label, missing="no run with integers on weights or activations is in the table yet",
        ),
    )  # fmt: skip


def _groups(material: Trained) -> Drawing:
    drawn = []
    for way in WAYS:
        cells = material.view(way)
        if len(cells):
            cells = cells.assign(place=_places(cells), log2_G=np.log2(cells["G"].astype(float)))
        lines: dict[str, dict[str, Line]] = {}
        for value, some in cells.groupby("place") if len(cells) else ():
            at = {"N": float(some["N"].iloc[0]), "D": float(some["D"].iloc[0])}
            lines[str(value)] = {style: _of_log2(c, at) for style, c in known(material, way).items()}
        drawn.append(Panel(way, cells, lines))
    return Drawing(
        name="delta_groups",
        caption="The same against the elements that share a scale; the last point of a model is a scale for each "
        f"channel or token. {uncertain(pd.concat([panel.cells for panel in drawn]))} {LINES}",
        alt="Delta against the logarithm of the group, one panel for each way to quantize, one colour for each model "
        "and horizon.",
        figure=delta_panels(
            drawn, "log2_G", "place", label="log2 G", y_label=Y, name=str, ticks=lambda value: f"{value:.1f}",
            log=False, missing="no run with integers on weights or activations is in the table yet",
        ),
    )  # fmt: skip


def _of_log2(constants: Mapping[str, float], at: Mapping[str, float]) -> Line:
    return lambda value: delta(dict(constants), at["N"], at["D"], 2.0**value)


def _places(cells: pd.DataFrame) -> list[str]:
    return [f"{size}, {tokens_label(float(D))}" for size, D in zip(cells["size"], cells["D"], strict=True)]


def _split(material: Trained) -> Drawing:
    key = ["size", "N", "D", "group"]
    sides = {way: material.view(way) for way in ("W4A4", "W4A16", "W16A4")}
    figure, count = empty("needs runs: no model and horizon has W4A4, W4A16 and W16A4 with one group yet"), 0
    factor = material.published.numbers["additivity"].value
    if all(len(some) for some in sides.values()):
        both = sides["W4A16"].merge(sides["W16A4"], on=key, suffixes=("_w", "_a")).merge(sides["W4A4"], on=key)
        if len(both):
            figure, count = _scatter(both, factor), len(both)
    return Drawing(
        name="split",
        caption=f"Delta of W4A4 against the sum of those of W4A16 and W16A4, of {count} models, horizons and groups: "
        f"on the full line they add up, on the dashes they are the published {factor:g} of the sum. Means over seeds "
        "with 95 % intervals; the three deltas share their base run, so that the two errors of a point are correlated.",
        alt="Delta of both against the sum of the deltas of weights and of activations.",
        figure=figure,
    )


def _scatter(both: pd.DataFrame, factor: float) -> Figure:
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    total = both["delta_w"] + both["delta_a"]
    half = np.hypot(both["delta_w"] - both["low_w"], both["delta_a"] - both["low_a"])
    for k, (group, some) in enumerate(both.groupby("group")):
        axes.errorbar(
            total[some.index], some["delta"], xerr=half[some.index],
            yerr=np.stack([some["delta"] - some["low"], some["high"] - some["delta"]]),
            ls="none", marker=MARKERS[k % len(MARKERS)], color=PALETTE[k % len(PALETTE)], ms=4.6, elinewidth=0.7,
            label=GROUPS.get(str(group), f"G = {group}"),
        )  # fmt: skip
    end = float(max(total.max(), both["delta"].max()) * 1.25)
    axes.plot([0, end], [0, end], color=FAINT, lw=1)
    axes.plot([0, end], [0, factor * end], color=FAINT, lw=1, ls="--")
    axes.set(xlabel="delta of W4A16 plus delta of W16A4 (nats per token)", ylabel="delta of W4A4 (nats per token)")
    axes.legend(frameon=False, labelcolor=INK)
    tidy(axes)
    return figure


def _constants(material: Trained) -> Drawing:
    ours = {
        way: [material.seen.get(f"pool/trained/chen/{way}/{name}") for name, _ in PANELS]
        for way in WAYS
        if f"pool/trained/chen/{way}/gamma_N" in material.seen
    }
    published = {way: c[PUBLISHED] for way in WAYS if PUBLISHED in (c := known(material, way))}
    return Drawing(
        name="constants",
        caption=f"Exponents of {LAW}: published, and fitted to the deltas of our runs with 95 % intervals.",
        alt="Published and fitted exponents side by side, one panel for each, one row for each way to quantize.",
        figure=constants_figure(PANELS, published, ours),
    )
