"""What sets papers and phases side by side: elasticities of the laws; cooled against trunk deltas."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from shared.report.figures.forest import Mark, Row, forest_figure
from shared.report.figures.gallery import Drawing
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, count_label, empty, tidy

PANELS = (("D", "d ln delta / d ln D"), ("N", "d ln delta / d ln N"), ("bits", "d ln delta / d bits"))


def draw(rows: list[dict[str, Any]], cooled: pd.DataFrame, trunk: pd.DataFrame) -> list[Drawing]:
    """`rows` of `elasticities.compare`; points of both phases, per channel (`report.points`)."""
    return [_elasticities(rows), _phases(both_phases(cooled, trunk))]


def _elasticities(rows: list[dict[str, Any]]) -> Drawing:
    marks = []
    for row in rows:
        if row["of"] != "delta" or (row["source"] == "ours" and row["group_size"] != "channel"):
            continue
        found = {
            key: Mark(row[key]["value"], row[key]["low"], row[key]["high"]) for key, _ in PANELS if row[key] is not None
        }
        marks.append(Row(f"{row['law']}: {row['label']}", row["phase"] or "published", found))
    at = sorted({row["bits"]["at"] for row in rows if row["bits"] and row["bits"]["at"] is not None})
    where = f" Slopes in bits at {' and '.join(f'{b:g}' for b in at)} bits." if at else ""
    for name, mine in (("Ours", True), ("Published and refitted", False)):
        points = sorted({(row["at"]["N"], row["at"]["D"]) for row in rows if (row["source"] == "ours") == mine})
        if points:
            where += f" {name}: " + " and ".join(f"N = {count_label(N)}, D = {count_label(D)}" for N, D in points) + "."
    return Drawing(
        name="elasticities",
        caption="Elasticities of delta that each law states: published (diamonds, dashes), and with 95 % intervals "
        f"refitted on published runs and fitted to ours, with weights rounded to nearest per channel.{where}",
        alt="Elasticities of delta in D, N and bits: published and fitted values of each law, one row each.",
        figure=forest_figure(PANELS, marks),
    )


def both_phases(cooled: pd.DataFrame, trunk: pd.DataFrame) -> pd.DataFrame:
    """Points distinct from zero in both phases: N, D, bits, `cooled` and `trunk` delta, `ratio` with its 95 % ends.

    The interval of the ratio takes the two errors as independent; both phases share a trunk, so it is rather wide.
    """
    key = ["size", "N", "D", "bits"]
    both = cooled.merge(trunk, on=key, suffixes=("_cooled", "_trunk"))
    both = both[(both["low_cooled"] > 0) & (both["low_trunk"] > 0)]
    spread = np.hypot(
        both["sd_cooled"].astype(float) / both["delta_cooled"].astype(float),
        both["sd_trunk"].astype(float) / both["delta_trunk"].astype(float),
    )
    ratio = both["delta_cooled"].astype(float) / both["delta_trunk"].astype(float)
    found = both[key].assign(cooled=both["delta_cooled"], trunk=both["delta_trunk"], ratio=ratio)
    ends = {"low": ratio * np.exp(-1.96 * spread), "high": ratio * np.exp(1.96 * spread)}
    return found.assign(**ends).sort_values(["bits", "N", "D"], ignore_index=True)


def _phases(both: pd.DataFrame) -> Drawing:
    higher = int((both["low"] > 1).sum())
    lower = int((both["high"] < 1).sum())
    return Drawing(
        name="cooled_against_trunk",
        caption="The same run before and after its learning rate is brought to zero, at equal N, D and bits, weights "
        "rounded to nearest per channel. Left: both deltas, dashes where they are equal. Right: their ratio against "
        "D/N with 95 % intervals, the bits of one D/N drawn beside each other. "
        f"Of {len(both)} pairs distinct from zero, {higher} are larger when cooled and {lower} smaller. "
        "The two are different objects and are never mixed in one fit.",
        alt="Delta of cooled checkpoints against delta of trunk checkpoints, and their ratio against tokens per "
        "parameter, coloured by bits, one marker for each size.",
        figure=_phase_figure(both),
    )


def _phase_figure(both: pd.DataFrame) -> Figure:
    if both.empty:
        return empty("needs runs: no pair of a cooled and a trunk checkpoint has both deltas distinct from zero yet")
    bits = {b: PALETTE[k % len(PALETTE)] for k, b in enumerate(sorted(set(both["bits"])))}
    sizes = {N: MARKERS[k % len(MARKERS)] for k, N in enumerate(sorted(set(both["N"])))}
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (b, N), some in both.groupby(["bits", "N"]):
        look = {"ls": "none", "marker": sizes[N], "color": bits[b], "ms": 4.6, "alpha": 0.85}
        left.plot(some["trunk"], some["cooled"], **look)
        spread = np.stack([some["ratio"] - some["low"], some["high"] - some["ratio"]])
        aside = 1.035 ** (list(bits).index(b) - (len(bits) - 1) / 2)  # bars of one D/N beside each other
        right.errorbar(some["D"] / some["N"] * aside, some["ratio"], yerr=spread, elinewidth=0.7, **look)
    ends = [both[["cooled", "trunk"]].min().min() / 1.5, both[["cooled", "trunk"]].max().max() * 1.5]
    left.plot(ends, ends, color=FAINT, lw=1, ls="--", zorder=1)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    left.set(xlabel="delta on the trunk (nats per token)", ylabel="delta when cooled (nats per token)")
    right.axhline(1, color=FAINT, lw=1, ls="--", zorder=1)
    right.set(xscale="log", yscale="log", xlabel="D/N (tokens per parameter)", ylabel="cooled / trunk")
    right.set_ylim(both["ratio"].min() / 1.15, both["ratio"].max() * 1.15)
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    right.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axes in (left, right):
        tidy(axes)
    handles = [
        Line2D([], [], ls="none", marker="o", color=color, ms=5, label=f"{b:g} bits") for b, color in bits.items()
    ]
    handles += [
        Line2D([], [], ls="none", marker=marker, color=FAINT, ms=5, label=f"N = {count_label(N)}")
        for N, marker in sizes.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, handlelength=1.2)
    return figure
