"""Values side by side with their intervals: one panel a quantity, one row a source."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shared.report.figures.style import FAINT, INK, PALETTE, empty, tidy

PUBLISHED_COLOR, OUR_COLORS = PALETTE[3], {"cooled": PALETTE[0], "trunk": PALETTE[1]}
MARKERS = {"published": "D", "cooled": "o", "trunk": "s"}
LOG_FROM = 20.0  # a panel whose values span more than this factor gets a logarithmic axis


@dataclass(frozen=True)
class Mark:
    """A value of one row in one panel; `wide_low` and `wide_high` are a second, wider range (leave-one-size-out)."""

    value: float
    low: float | None = None
    high: float | None = None
    wide_low: float | None = None
    wide_high: float | None = None


@dataclass(frozen=True)
class Row:
    """One source of values; `kind` (published, cooled, trunk) sets colour and marker."""

    label: str
    kind: str
    marks: dict[str, Mark]


def forest_figure(panels: Sequence[tuple[str, str]], rows: Sequence[Row]) -> Figure:
    """`panels` are (key, title). Rows stand from top to bottom in the order given."""
    if not any(row.kind != "published" for row in rows):
        return empty("needs runs: nothing is fitted yet, so there is nothing to set beside the published values")
    figure = Figure(figsize=(9.6, 0.9 + 0.3 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (key, title) in zip(grid.flat, panels, strict=True):
        _panel(axes, key, rows)
        axes.set_title(title)
    grid.flat[0].set_yticks(range(len(rows)), [row.label for row in rows])
    grid.flat[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _panel(axes: Axes, key: str, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        mark = row.marks.get(key)
        if mark is None:
            axes.text(0.5, place, "none", transform=axes.get_yaxis_transform(), ha="center", va="center", color=FAINT)
            continue
        color = PUBLISHED_COLOR if row.kind == "published" else OUR_COLORS[row.kind]
        if mark.wide_low is not None and mark.wide_high is not None:
            axes.plot([mark.wide_low, mark.wide_high], [place, place], color=color, lw=4.5, alpha=0.25, zorder=2)
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [place, place], color=color, lw=1.2, zorder=3)
        axes.plot(mark.value, place, marker=MARKERS[row.kind], color=color, ms=5, zorder=4)
        if row.kind == "published":
            # Down to the last row before the next published one: to those that it is to be compared with.
            below = [n for n, other in enumerate(rows) if n > place and other.kind == "published"]
            end = below[0] - 0.5 if below else len(rows) - 0.4
            axes.plot([mark.value, mark.value], [place, end], color=color, lw=0.9, ls="--", alpha=0.8, zorder=1)
    _scale(axes, [mark for row in rows if (mark := row.marks.get(key))])
    tidy(axes)
    axes.tick_params(axis="y", length=0)


def _scale(axes: Axes, marks: list[Mark]) -> None:
    """Logarithmic when the values span decades and none is at or below zero; else linear, with zero if it is near."""
    axes.margins(x=0.08)
    ends = [end for m in marks for end in (m.value, m.low, m.high, m.wide_low, m.wide_high) if end is not None]
    if not ends:
        return
    if min(ends) > 0 and max(ends) / min(ends) > LOG_FROM:
        axes.set_xscale("log")
        return
    if min(ends) < 0 < max(ends):
        axes.axvline(0, color=INK, lw=0.8, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
