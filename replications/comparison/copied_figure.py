"""What copying from the context does to a run's loss, and to what rounding adds to it."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from replications.copying import COPIES
from shared.report.figures.gallery import Drawing
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, empty, tidy

FORMAT = "INT3"


def draw(runs: pd.DataFrame, left: pd.DataFrame) -> Drawing:
    """`runs`: cooled low-precision runs with size, gain, delta and mixed; `left`: of `copied.what_is_left`."""
    return Drawing(
        name="copying",
        caption="Copying: by how many nats the second half of a window is easier when it repeats the first; dashed, "
        "where a run counts as one that copies. Left: low-precision runs against their base run, "
        f"{int(runs['mixed'].sum())} of {len(runs)} left out (open); those that lost more than half a nat are beyond "
        f"the panel. Right: unquantized checkpoints rounded to {FORMAT} per channel, what is left of ln delta after "
        "ln D and ln N; the models with three layers and more copy first, so that depth may be the reason as well.",
        alt="Delta of low-precision runs, and what is left of ln delta after rounding, both against copying; one "
        "marker for each size.",
        figure=_figure(runs, left),
    )


def _figure(runs: pd.DataFrame, left: pd.DataFrame) -> Figure:
    if runs.empty and left.empty:
        return empty("needs runs: copying is not measured yet; `bitlaw statistics cpu` measures it")
    sizes = sorted({*runs["size"], *left["size"]})
    looks = {size: (MARKERS[k % len(MARKERS)], PALETTE[k % len(PALETTE)]) for k, size in enumerate(sizes)}
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    axes_of_runs, axes_of_rounding = figure.subplots(1, 2)
    for (size, mixed), some in runs.groupby(["size", "mixed"]):
        marker, color = looks[str(size)]
        axes_of_runs.plot(
            some["gain"], some["delta"], ls="none", marker=marker, ms=4.6, color=color, alpha=0.85,
            mfc="none" if mixed else color,
        )  # fmt: skip
    for size, some in left.groupby("size"):
        marker, color = looks[str(size)]
        axes_of_rounding.plot(some["copying"], some["left"], ls="none", marker=marker, ms=4.6, color=color, alpha=0.85)
    axes_of_runs.set(ylim=(-0.42, 0.5), ylabel="delta (nats per token)")
    axes_of_rounding.set(ylabel="left of ln delta")
    for axes in (axes_of_runs, axes_of_rounding):
        axes.set(xlabel="copying (nats per token)")
        axes.axhline(0, color=FAINT, lw=1, zorder=1)
        axes.axvline(COPIES, color=FAINT, lw=1, ls="--", zorder=1)
        tidy(axes)
    handles = [
        Line2D([], [], ls="none", marker=marker, color=color, ms=5, label=size)
        for size, (marker, color) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK, handlelength=1.2)
    return figure
