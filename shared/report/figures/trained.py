"""Figures of runs trained in low precision: what a paper's are drawn from, and panels of deltas with their lines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from shared.laws.settings import Published
from shared.report.evidence import Seen
from shared.report.figures.forest import Mark, Row, forest_figure
from shared.report.figures.points import FITTED, HELD_OUT, SHORT
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, empty, outer_labels, panels, tidy

Color = tuple[float, float, float]
Line = Callable[[float], float]  # x -> the law's value
PUBLISHED, OURS = "--", "-"
POINTS_OF_A_LINE = 40


@dataclass(frozen=True)
class Trained:
    """What a paper's figures of low-precision runs are drawn from: its cells by view with the law's inputs as columns,
    all compressed cells, unquantized cells, the fits of `replicate trained` by view, quantities of the pool by name,
    and what the paper publishes. Tables are empty while there are no runs."""

    views: dict[str, pd.DataFrame]
    every: pd.DataFrame
    base: pd.DataFrame
    fits: dict[str, dict[str, Any]]
    seen: Mapping[str, Seen]
    published: Published

    def view(self, name: str) -> pd.DataFrame:
        return self.views.get(name, self.every.iloc[:0])

    def fitted(self, prefix: str, names: Sequence[str]) -> dict[str, float] | None:
        """Constants by name where the pool has every `prefix/name`, else None."""
        keys = [f"{prefix}/{name}" for name in names]
        if not all(key in self.seen for key in keys):
            return None
        return {name: self.seen[key].value for name, key in zip(names, keys, strict=True)}


@dataclass(frozen=True)
class Panel:
    """Cells under one title, with lines: {value of the hue column or None (for all): {style: line}}."""

    title: str
    cells: pd.DataFrame
    lines: dict[Any, dict[str, Line]] = field(default_factory=dict)


def delta_panels(
    drawn: Sequence[Panel],
    x: str,
    hue: str,
    *,
    label: str,
    y_label: str,
    name: Callable[[Any], str],
    ticks: Callable[[float], str],
    missing: str,
    log: bool = True,
    y: str = "delta",
    level: float | None = 0.0,
    window: tuple[float, float] | None = None,
) -> Figure:
    """`y` with its interval (columns low and high) against column `x`, a colour and a marker for each value of column
    `hue`, which `name` puts in words. Full lines are ours, dashed ones published. Without cells a figure that says
    `missing`. `level` is where a line says that nothing is lost, `window` the
    range of y that cuts what is wider."""
    drawn = [panel for panel in drawn if len(panel.cells)]
    if not drawn:
        return empty(f"needs runs: {missing}")
    every = pd.concat([panel.cells for panel in drawn])
    hues = sorted(set(every[hue]))
    looks = {value: (PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]) for k, value in enumerate(hues)}
    figure, flat, spare = panels(len(drawn), height=1.95)
    for axes, panel in zip(flat, drawn, strict=True):
        if level is not None:  # first: with a single D on a logarithmic axis matplotlib divides by its width
            axes.axhline(level, color=FAINT, lw=0.8, zorder=1)
        if log:
            axes.set_xscale("log")
        for value, some in panel.cells.groupby(hue):
            points(axes, some.sort_values(x), x, *looks[value], y=y)
        _lines(axes, panel, x, looks, log)
        axes.set_title(panel.title)
        seen = sorted(set(every[x].astype(float)))
        if len(seen) < 9:
            axes.set_xticks(seen if len(seen) < 6 else seen[::2])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: ticks(at)))
        spread = (max(seen) / min(seen)) ** 0.08 if log else (max(seen) - min(seen)) * 0.08
        room = max(spread, 1.1) if log else max(spread, 0.3)
        axes.set_xlim(*((min(seen) / room, max(seen) * room) if log else (min(seen) - room, max(seen) + room)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if window is not None:
            axes.set_ylim(*window)
        tidy(axes)
    outer_labels(flat, label, y_label)
    styles = {style for panel in drawn for lines in panel.lines.values() for style in lines}
    legend(spare[0], {name(value): looks[value] for value in hues}, styles)
    return figure


def points(
    axes: Axes, cells: pd.DataFrame, x: str, color: Color, marker: str, *, y: str = "delta", ends: bool = True
) -> None:
    """Filled: fitted. Pale with a rim: held out. Hollow: too short to be fitted."""
    faces = {FITTED: color, HELD_OUT: tuple(1 - 0.4 * (1 - part) for part in color), SHORT: "white"}
    for use, some in cells.groupby("use"):
        spread = np.stack([some[y] - some["low"], some["high"] - some[y]]) if ends else None
        axes.errorbar(
            some[x].astype(float), some[y], yerr=spread, ls="none", marker=marker, ms=4.6, mfc=faces[str(use)],
            mec=color, mew=0.9, ecolor=color, elinewidth=0.8, zorder=3,
        )  # fmt: skip


def _lines(axes: Axes, panel: Panel, x: str, looks: dict[Any, tuple[Color, str]], log: bool) -> None:
    ends = float(panel.cells[x].min()), float(panel.cells[x].max())
    if ends[0] == ends[1]:
        ends = (ends[0] / 1.3, ends[1] * 1.3) if log else (ends[0] - 0.3, ends[1] + 0.3)
    at = np.geomspace(*ends, POINTS_OF_A_LINE) if log else np.linspace(*ends, POINTS_OF_A_LINE)
    for value, styles in panel.lines.items():
        color = looks[value][0] if value in looks else INK
        for style, line in styles.items():
            axes.plot(at, [line(float(one)) for one in at], color=color, ls=style, lw=1.0, zorder=2)


def legend(axes: Axes, names: dict[str, tuple[Color, str]], styles: set[str]) -> None:
    """What colours, fillings and lines mean, in a panel of its own."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="none", marker=marker, color=color, ms=5, label=label)
        for label, (color, marker) in names.items()
    ]
    pale = tuple(1 - 0.4 * (1 - part) for part in (0.54, 0.54, 0.54))
    for label, face in (("held out of the fit", pale), ("too short to be fitted", "white")):
        handles.append(Line2D([], [], ls="none", marker="o", mfc=face, mec=FAINT, ms=5, label=label))
    for style, label in ((OURS, "law fitted to our runs"), (PUBLISHED, "published law")):
        if style in styles:
            handles.append(Line2D([], [], color=INK, lw=1.0, ls=style, label=label))
    axes.legend(handles=handles, loc="upper left", frameon=False, borderaxespad=0, labelcolor=INK, handlelength=1.4)


def uncertain(cells: pd.DataFrame) -> str:
    """One clause for a caption: what the bars are, and how many cells noise hides."""
    if cells.empty:
        return "No run yet."
    hidden = int(((cells["low"] <= 0) & (cells["high"] >= 0)).sum())
    several = int((cells["seeds"] > 1).sum())
    return (
        "Means over seeds with 95 % intervals (validation text and what another seed would change, which is taken from "
        f"runs of several seeds at the nearest horizon); {several} of {len(cells)} cells have several seeds, {hidden} "
        "intervals hold zero."
    )


def constants_figure(
    titles: Sequence[tuple[str, str]],
    published: Mapping[str, Mapping[str, float]],
    ours: Mapping[str, Sequence[Seen | None]],
) -> Figure:
    """Published and fitted constants, a row a source: `ours` has for each row the quantities of `titles`."""
    rows = []
    for name in dict.fromkeys([*published, *ours]):
        if name in published:
            marks = {key: Mark(published[name][key]) for key, _ in titles if key in published[name]}
            rows.append(Row(f"{name}, published", "published", marks))
        if name in ours:
            found = zip(titles, ours[name], strict=True)
            rows.append(Row(name, "cooled", {key: Mark(s.value, s.low, s.high) for (key, _), s in found if s}))
    return forest_figure(titles, rows)


def dot_figure(
    rows: Sequence[tuple[str, Mapping[str, Mark]]],
    kinds: Sequence[str],
    *,
    label: str,
    missing: str,
    lines: Sequence[float] = (),
    window: tuple[float, float] | None = None,
) -> Figure:
    """A row for each quantity, a colour and a marker for each of `kinds`; intervals are cut by `window`. Without any
    mark a figure that says `missing`."""
    if not any(marks for _, marks in rows):
        return empty(f"needs runs: {missing}")
    figure = Figure(figsize=(7.6, 1.1 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, marks) in enumerate(rows):
        for k, kind in enumerate(kinds):
            mark = marks.get(kind)
            if mark is None:
                continue
            at = place + 0.14 * (k - (len(kinds) - 1) / 2)
            color, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
            if mark.low is not None and mark.high is not None:
                axes.plot([mark.low, mark.high], [at, at], color=color, lw=1.0, zorder=2)
            axes.plot(mark.value, at, ls="none", marker=marker, color=color, ms=4.6, zorder=3)
    for line in lines:
        axes.axvline(line, color=FAINT, lw=0.9, ls="--", zorder=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if window is not None:
        axes.set_xlim(*window)
    axes.set_xlabel(label)
    tidy(axes)
    handles = [
        Line2D([], [], ls="none", marker=MARKERS[k % len(MARKERS)], color=PALETTE[k % len(PALETTE)], ms=5, label=kind)
        for k, kind in enumerate(kinds)
        if any(kind in marks for _, marks in rows)
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, handlelength=1.2)
    return figure
