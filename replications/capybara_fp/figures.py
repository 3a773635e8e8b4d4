"""Figures of Sun et al. (arXiv 2501.02423) from our table: what training with floating-point numbers costs by exponent
bits, mantissa bits, layout and block, which of the inputs of the products bears it, and the exponents of Eq. 1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from replications.capybara_fp import optimum
from shared.laws.loglinear import REFERENCE_D, REFERENCE_N
from shared.report.figures.forest import Mark
from shared.report.figures.gallery import Drawing
from shared.report.figures.style import tokens_label
from shared.report.figures.trained import (
    OURS,
    PUBLISHED,
    Line,
    Panel,
    Trained,
    constants_figure,
    delta_panels,
    dot_figure,
    uncertain,
)

TITLE = "Sun et al. 2025: Scaling Laws for Floating-Point Quantization Training"
LAW = "D^phi / N^eta · (log2 B)^kappa / ((E + 1/2)^delta (M + 1/2)^nu)"
PANELS = (
    ("delta", "delta (of E)"),
    ("nu", "nu (of M)"),
    ("phi", "phi (of D)"),
    ("eta", "eta (of N)"),
    ("kappa", "kappa"),
)
VIEW, STUDIED = "P2, P4, P6", "E1M1"
NAMES = ("level", "phi", "eta", "kappa", "channel", "delta", "nu")
Y = "delta (nats per token)"
MISSING = "no run with floating-point weights on P2, P4 and P6 is in the table yet"
LINES = (
    f"Full lines: {LAW}, every exponent free, fitted to our deltas; dashes: Eq. 1 with the published constants, which "
)
LINES += "are for far larger models (a whole channel counts as log2 B = 13.16)."


def draw(material: Trained) -> list[Drawing]:
    return [
        _bits(material, "E", "M"),
        _bits(material, "M", "E"),
        _optimum(material),
        _blocks(material),
        _targets(material),
        _constants(material),
    ]


def cells(material: Trained) -> pd.DataFrame:
    """The view's cells with `place`, a model and a horizon, log2 B and the bits of the format."""
    table = material.view(VIEW)
    if table.empty:
        return table
    place = [f"{size}, {tokens_label(float(D))}" for size, D in zip(table["size"], table["D"], strict=True)]
    bits = table["E"] + table["M"] + 1
    return table.assign(place=place, log2_B=np.log2(table["B"].astype(float)), bits=bits)


@dataclass(frozen=True)
class Penalty:
    """delta of one set of constants: Eq. 1's, where a whole channel counts as `whole`, or ours (`whole` is None)."""

    c: Mapping[str, float]
    whole: float | None

    def at(self, point: Mapping[str, float], *, channel: bool) -> float:
        """At N, D, E, M and log2_B, in nats per token."""
        c, E, M = self.c, point["E"] + 0.5, point["M"] + 0.5
        if self.whole is None:
            shared = c["channel"] if channel else c["kappa"] * np.log(point["log2_B"])
            n, d = np.log(point["N"] / REFERENCE_N), np.log(point["D"] / REFERENCE_D)
            level = c["level"] + c["phi"] * d - c["eta"] * n + shared
            return float(np.exp(level - c["delta"] * np.log(E) - c["nu"] * np.log(M)))
        log2_B = self.whole if channel else point["log2_B"]
        shape = c["gamma"] * E ** c["delta"] * M ** c["nu"]
        return float(point["D"] ** c["beta"] / point["N"] ** c["alpha"] * log2_B / shape)


def laws(material: Trained) -> dict[str, Penalty]:
    """By style of line: ours where the pool tells it, and the paper's."""
    published = {name: constant.value for name, constant in material.published.law.items()}
    found = {PUBLISHED: Penalty(published, material.published.numbers["log2_B_channel"].value)}
    ours = material.fitted("pool/trained/sun", NAMES)
    return {OURS: Penalty(ours, None), **found} if ours is not None else found


def _along(law: Penalty, some: pd.DataFrame, x: str, *, channel: bool, bits: float | None = None) -> Line:
    """The law along one column, at the rest of the cells' first row; with `bits`, M is what E leaves of them."""
    first = {name: float(some[name].iloc[0]) for name in ("N", "D", "E", "M", "log2_B")}

    def line(value: float) -> float:
        point = {**first, x: value}
        if bits is not None:
            point["M"] = max(bits - 1 - value, -0.49)
        return law.at(point, channel=channel)

    return line


def _panel(
    material: Trained, title: str, some: pd.DataFrame, x: str, *, channel: bool, bits: float | None = None
) -> Panel:
    lines: dict[str, dict[str, Line]] = {
        str(place): {style: _along(law, here, x, channel=channel, bits=bits) for style, law in laws(material).items()}
        for place, here in some.groupby("place")
    }
    return Panel(title, some, lines)


def _bits(material: Trained, x: str, other: str) -> Drawing:
    table = cells(material)
    table = table[table["group"] == "channel"] if len(table) else table
    drawn = [
        _panel(material, f"{other} = {value:g}", some, x, channel=True)
        for value, some in (table.groupby(other) if len(table) else ())
    ]
    kind = "exponent" if x == "E" else "mantissa"
    return Drawing(
        name=f"{kind}_bits",
        caption=f"What P2, P4 and P6 in few bits add to the loss, against the {kind} bits, a scale for each channel or "
        f"token. {uncertain(table)} {LINES}",
        alt=f"Delta against {kind} bits, one panel for each number of the other bits, one colour for each model and "
        "horizon.",
        figure=delta_panels(
            drawn, x, "place", label=f"{kind} bits", y_label=Y, name=str, ticks=lambda v: f"{v:g}", log=False,
            missing=MISSING,
        ),
    )  # fmt: skip


def _optimum(material: Trained) -> Drawing:
    table = cells(material)
    table = table[table["group"] == "channel"] if len(table) else table
    constants = {name: constant.value for name, constant in material.published.law.items()}
    drawn = []
    for bits, some in table.groupby("bits") if len(table) else ():
        E, M = optimum.best_layout(constants, int(bits))
        drawn.append(
            _panel(material, f"{bits:g} bits, published best E{E}M{M}", some, "E", channel=True, bits=float(bits))
        )
    return Drawing(
        name="optimum",
        caption="The same by layouts of one width: E exponent bits, the rest but the sign are mantissa. The paper's "
        f"best layout by Eq. 1 stands above each panel. {uncertain(table)} {LINES}",
        alt="Delta against exponent bits at equal width, one panel for each width.",
        figure=delta_panels(
            drawn, "E", "place", label="exponent bits", y_label=Y, name=str, ticks=lambda v: f"{v:g}", log=False,
            missing=MISSING,
        ),
    )  # fmt: skip


def _blocks(material: Trained) -> Drawing:
    table = cells(material)
    drawn = []
    for (E, M), some in table.groupby(["E", "M"]) if len(table) else ():
        if some["group"].nunique() > 1:
            # The line is that of blocks; the last point of a model is a whole channel, at its width.
            drawn.append(_panel(material, f"E{E:g}M{M:g}", some, "log2_B", channel=False))
    shown = pd.concat([panel.cells for panel in drawn]) if drawn else table.iloc[:0]
    return Drawing(
        name="blocks",
        caption="The same against the elements that share a scale. The last point of a model is a scale for each "
        f"channel or token, at the geometric mean of its widths; the lines are those of blocks. {uncertain(shown)} "
        f"{LINES}",
        alt="Delta against the logarithm of the block, one panel for each format, one colour for each model and "
        "horizon.",
        figure=delta_panels(
            drawn, "log2_B", "place", label="log2 B", y_label=Y, name=str, ticks=lambda v: f"{v:.1f}", log=False,
            missing="no format is in the table with two sizes of the block yet",
        ),
    )  # fmt: skip


def _targets(material: Trained) -> Drawing:
    some = material.every
    some = some[(some["form"] == STUDIED) & some["how"].str.contains("@(?:channel|token)")] if len(some) else some
    places = sorted({f"{size}, {tokens_label(float(D))}" for size, D in zip(some["size"], some["D"], strict=True)})
    rows: list[tuple[str, dict[str, Mark]]] = []
    alone = some[some["targets"].str.len() == 2] if len(some) else some
    # Where something else than P2, P4 and P6 was tried: that is the study.
    studied = {(size, D) for size, D in zip(alone["size"], alone["D"], strict=True)}
    for where in sorted(set(some["targets"]), key=lambda text: (len(text), text)) if len(alone) else []:
        marks = {
            f"{row['size']}, {tokens_label(float(row['D']))}": Mark(row["delta"], row["low"], row["high"])
            for _, row in some[some["targets"] == where].iterrows()
            if (row["size"], row["D"]) in studied
        }
        rows.append((where, marks))
    return Drawing(
        name="targets",
        caption=f"Which inputs of the products bear {STUDIED}, each alone and together (a scale for each channel or "
        "token): P1 and P2 are activations and weights of the forward product, P3 and P4 gradients and weights of "
        "that for the gradient of the inputs, P5 and P6 gradients and inputs of that for the gradient of the weights. "
        f"The paper finds P1, P3 and P5 the worst. {uncertain(alone)}",
        alt="Delta of each choice of quantized inputs.",
        figure=dot_figure(
            rows,
            places,
            label=Y,
            lines=(0.0,),
            missing=f"no run with {STUDIED} on one of P1 to P6 alone is in the table",
        ),
    )


def _constants(material: Trained) -> Drawing:
    law = material.published.law
    tied = {"delta": "delta", "nu": "nu", "phi": "beta", "eta": "alpha"}
    published = {"Eq. 1": {name: law[key].value for name, key in tied.items()} | {"kappa": 1.0}}
    found = [material.seen.get(f"pool/trained/sun/{name}") for name, _ in PANELS]
    ours = {"ours": found} if found[0] is not None else {}
    return Drawing(
        name="constants",
        caption=f"Exponents of the penalty {LAW}: in Eq. 1 phi and eta are beta and alpha of the loss, and kappa is "
        "one. Ours are fitted to deltas, with 95 % intervals.",
        alt="Published and fitted exponents side by side.",
        figure=constants_figure(PANELS, published, ours),
    )
