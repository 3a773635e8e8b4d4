"""Local elasticities d ln delta / d ln D between neighbouring horizons against D/N, beside the fitted exponent."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, count_label, empty, outer_labels, panels, tidy
from shared.report.results import Part

FIT_COLOR, PUBLISHED_COLOR = INK, PALETTE[3]


def slope_figure(part: Part | None, published: float | None) -> Figure:
    """`published` is the paper's d ln delta / d ln D, None when it states none."""
    slopes = local_slopes(part)
    if part is None or slopes.empty:
        return empty("needs runs: no two neighbouring horizons have a delta distinct from zero yet")
    bits = sorted(slopes["bits"].unique())
    sizes = {N: (PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]) for k, N in enumerate(sorted(set(slopes["N"])))}
    figure, flat, spare = panels(len(bits), height=1.95, share=True)
    fitted = part.elasticities["D"]
    for axes, b in zip(flat, bits, strict=True):
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.axhspan(fitted["low"], fitted["high"], color=FIT_COLOR, alpha=0.13, lw=0)
        axes.axhline(fitted["value"], color=FIT_COLOR, lw=1.0)
        if published is not None:
            axes.axhline(published, color=PUBLISHED_COLOR, lw=1.2, ls="--")
        for N, some in slopes[slopes["bits"] == b].groupby("N"):
            color, marker = sizes[N]
            spread = np.stack([some["value"] - some["low"], some["high"] - some["value"]])
            axes.errorbar(
                some["ratio"], some["value"], yerr=spread,
                ls="none", marker=marker, ms=4.4, color=color, elinewidth=0.8,
            )  # fmt: skip
        axes.set_title(f"{b:g} bits")
        axes.set_xscale("log")
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        tidy(axes)
    flat[0].set_ylim(
        *_window(slopes, [0.0, fitted["low"], fitted["high"], *([] if published is None else [published])])
    )
    outer_labels(flat, "D/N (tokens per parameter)", "d ln delta / d ln D")
    _legend(spare[0], sizes, published is not None)
    return figure


def local_slopes(part: Part | None) -> pd.DataFrame:
    """Columns N, bits, D_from, D_to, ratio (geometric mean of the two D, over N), value, low, high."""
    columns = ["N", "bits", "D_from", "D_to", "value", "low", "high"]
    slopes = pd.DataFrame(part.local_elasticities if part else [], columns=columns).dropna()
    slopes = slopes.astype(float).sort_values(["bits", "N", "D_from"], ignore_index=True)
    slopes.insert(4, "ratio", np.sqrt(slopes["D_from"] * slopes["D_to"]) / slopes["N"])
    return slopes


def _window(slopes: pd.DataFrame, always: list[float]) -> tuple[float, float]:
    """A range with every value and nine in ten interval ends: a few wide intervals would flatten all the others."""
    low = min([*always, slopes["value"].min(), float(slopes["low"].quantile(0.1))])
    high = max([*always, slopes["value"].max(), float(slopes["high"].quantile(0.9))])
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _legend(axes: Axes, sizes: dict[float, tuple[tuple[float, float, float], str]], published: bool) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="none", marker=marker, color=color, ms=5, label=f"N = {count_label(N)}")
        for N, (color, marker) in sizes.items()
    ]
    handles.append(Line2D([], [], color=FIT_COLOR, lw=1.0, label="fitted exponent"))
    handles.append(Patch(color=FIT_COLOR, alpha=0.2, lw=0, label="its 95 % interval"))
    if published:
        handles.append(Line2D([], [], color=PUBLISHED_COLOR, lw=1.2, ls="--", label="published exponent"))
    axes.legend(handles=handles, loc="upper left", frameon=False, borderaxespad=0, labelcolor=INK, handlelength=1.4)
