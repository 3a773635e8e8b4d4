"""Delta against D: one panel per bit width, one colour and marker per model size, with the fitted lines."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from shared.report.figures.points import FITTED, HELD_OUT, SHORT
from shared.report.figures.style import (
    FAINT,
    INK,
    MARKERS,
    PALETTE,
    count_label,
    empty,
    outer_labels,
    panels,
    tidy,
    tokens_label,
)
from shared.report.results import Part


def delta_figure(points: pd.DataFrame, part: Part | None) -> Figure:
    """`points` of `points.points`; `part` holds the curves, None when nothing was fitted yet."""
    if points.empty:
        return empty("needs runs: no measurement of this kind is in the tables yet")
    bits = sorted(points["bits"].unique())
    sizes = size_styles(points)
    figure, flat, spare = panels(len(bits), height=1.95)
    known = np.array(list(sizes))
    curves = []
    for curve in part.curves if part else []:
        # The file of the fit has six significant digits.
        match = known[np.isclose(known, curve["N"], rtol=1e-5)]
        curves += [{**curve, "N": float(N)} for N in match]
    ends = points["D"].min() / 1.2, points["D"].max() * 1.2
    for axes, b in zip(flat, bits, strict=True):
        here = points[points["bits"] == b]
        for curve in curves:
            if curve["bits"] == b:
                D = np.array(curve["D"], dtype=float)
                color = sizes[curve["N"]][1]
                axes.fill_between(D, _positive(curve["low"]), _positive(curve["high"]), color=color, alpha=0.16, lw=0)
                axes.plot(D, _positive(curve["delta"]), color=color, lw=1.1)
        for N, cells in here.groupby("N"):
            draw_points(axes, cells, *sizes[N][1:])
        panel(axes, here, [curve for curve in curves if curve["bits"] == b])
        axes.set_xlim(*ends)
        axes.set_title(f"{b:g} bits")
    outer_labels(flat, "D (tokens)", "delta (nats per token)")
    legend(spare[0], sizes, with_lines=bool(curves))
    return figure


def size_styles(points: pd.DataFrame) -> dict[float, tuple[str, tuple[float, float, float], str]]:
    """N -> (label, colour, marker), in order of N."""
    known = points.drop_duplicates("N").sort_values("N")
    return {
        float(N): (f"{size}  N = {count_label(N)}", PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)])
        for k, (N, size) in enumerate(zip(known["N"], known["size"], strict=True))
    }


def draw_points(axes: Axes, cells: pd.DataFrame, color: tuple[float, float, float], marker: str) -> None:
    """Filled: fitted. Pale with a rim: held out. Hollow: shown only. Triangle down: 95 % upper end of a delta that
    is not distinct from zero."""
    seen = cells[cells["low"] > 0]
    faces = {FITTED: color, HELD_OUT: _pale(color), SHORT: "white"}
    for use, some in seen.groupby("use"):
        spread = np.stack([some["delta"] - some["low"], some["high"] - some["delta"]])
        axes.errorbar(
            some["D"], some["delta"], yerr=spread, ls="none", marker=marker, ms=4.6, mfc=faces[str(use)], mec=color,
            mew=0.9, ecolor=color, elinewidth=0.8, zorder=3,
        )  # fmt: skip
    unseen = cells[(cells["low"] <= 0) & (cells["high"] > 0)]
    axes.plot(unseen["D"], unseen["high"], ls="none", marker="v", ms=4.6, mfc="none", mec=color, mew=0.9, zorder=3)


def panel(axes: Axes, cells: pd.DataFrame, curves: list[dict[str, Any]]) -> None:
    """Logarithmic axes: the horizons as ticks of D, and a range of delta that holds every mark and line."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    low = np.where(cells["low"] > 0, cells["low"], cells["high"])
    lines = np.concatenate([np.empty(0), *(_positive(curve["delta"]) for curve in curves)])
    marks = np.concatenate([low[low > 0], cells["high"][cells["high"] > 0], lines[np.isfinite(lines)]])
    if len(marks) == 0:
        axes.text(0.5, 0.5, "every interval\nis negative", transform=axes.transAxes, ha="center", va="center")
        axes.tick_params(left=False, labelleft=False)
        marks = np.ones(1)  # any range: a logarithmic axis cannot be without one
    # Never less than a factor of six, in which the ticks 1, 2, 5 stand at least twice.
    decades = max(math.log10(marks.max() / marks.min()) + 0.2, math.log10(6))
    middle = math.sqrt(marks.max() * marks.min())
    axes.set_ylim(middle / 10 ** (decades / 2), middle * 10 ** (decades / 2))
    horizons = np.unique(cells["D"])
    axes.xaxis.set_major_locator(FixedLocator(list(horizons[:: 1 if len(horizons) < 7 else 2])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda D, _: tokens_label(D)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.9 else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda delta, _: short(delta)))
    tidy(axes)


def short(value: float) -> str:
    """0.02 stays, 0.0002 becomes 2e-4: tick labels of one width."""
    if value >= 0.01:
        return f"{value:g}"
    digits, _, power = f"{value:.0e}".partition("e")
    return f"{digits}e{int(power)}"


def legend(
    axes: Axes, sizes: dict[float, tuple[str, tuple[float, float, float], str]], *, with_lines: bool = False
) -> None:
    """What colours, shapes and fillings mean, in a panel of its own."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="none", marker=marker, color=color, ms=5, label=label)
        for label, color, marker in sizes.values()
    ]
    shapes = (
        ("fitted" if with_lines else "to be fitted", "o", FAINT),
        ("held out of the fit", "o", _pale((0.54, 0.54, 0.54))),
        ("too short to be fitted", "o", "white"),
        ("upper end, not distinct from 0", "v", "white"),
    )
    handles += [
        Line2D([], [], ls="none", marker=marker, mfc=face, mec=FAINT, ms=5, label=label)
        for label, marker, face in shapes
    ]
    if with_lines:
        handles.append(Line2D([], [], color=FAINT, lw=1.1, label="fitted law"))
        handles.append(Patch(color=FAINT, alpha=0.3, lw=0, label="its 95 % band"))
    axes.legend(handles=handles, loc="upper left", frameon=False, borderaxespad=0, labelcolor=INK, handlelength=1.4)


def _positive(values: list[float | None]) -> np.ndarray:
    """A logarithmic axis has no place for what is not above zero: a gap there."""
    array = np.array([np.nan if value is None else value for value in values], dtype=float)
    return np.where(array > 0, array, np.nan)


def _pale(color: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(1 - 0.4 * (1 - part) for part in color)
