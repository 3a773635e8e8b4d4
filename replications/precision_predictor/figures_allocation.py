"""Figures of guided bit allocation, from the summary alone (allocation_summary.py). Call inside `style.theme`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.report.figures.gallery import Drawing
from shared.report.figures.style import INK, MARKERS, PALETTE, empty, tidy

Summary = Mapping[str, Any]
UNITS = {"layer": "each layer", "channel": "each output channel", "group": "each group of weights"}
METHODS = {"rtn": "nearest", "rtn_mse": "nearest, clipped", "guided": "guided GPTQ"}
LABELS = {
    "fisher": "Fisher, optimum",
    "fisher_position": "Fisher of positions, optimum",
    "fisher_linear": "Fisher, the page's map",
    "block": "guided blocks",
    "measured": "measured layer by layer",
    "inputs": "inputs, no gradients",
    "error": "plain error",
    "magnitude": "magnitude, optimum",
    "magnitude_linear": "magnitude, the page's map",
}


def allocation_drawings(summary: Summary) -> list[Drawing]:
    return [_penalties(summary), _kept(summary)]


def _penalties(summary: Summary) -> Drawing:
    """A panel for each unit and method: penalty over uniform's at each budget."""
    cells = [cell for cell in summary["cells"] if cell["allocation"] in LABELS and cell["log_uniform"]]
    units = [unit for unit in UNITS if any(cell["unit"] == unit for cell in cells)]
    methods = [method for method in METHODS if any(cell["method"] == method for cell in cells)]
    caption = (
        "What rounding costs over what it costs with the same width everywhere, at equal total bits (widths' codes "
        f"counted): geometric means over {len(summary['checkpoints'])} checkpoints with 95 % intervals. Below the line "
        "an allocation is better than uniform. Bits of a weight do not count scales, which are the same for all."
    )
    alt = "Penalty of each allocation over that of uniform widths against the budget, by unit and method."
    if not cells:
        return Drawing("allocation", caption, alt, empty("needs runs: `bitlaw allocate` has measured nothing yet"))
    figure = Figure(figsize=(9.6, 0.7 + 2.5 * len(methods)), layout="constrained")
    grid = figure.subplots(len(methods), len(units), squeeze=False, sharex=True, sharey=True)
    names = [name for name in LABELS if any(cell["allocation"] == name for cell in cells)]
    for number, (line, method) in enumerate(zip(grid, methods, strict=True)):
        for axes, unit in zip(line, units, strict=True):
            _panel(axes, [c for c in cells if (c["unit"], c["method"]) == (unit, method)], names)
            if number == 0:
                axes.set_title(UNITS[unit])
        line[0].set_ylabel(f"{METHODS[method]}\npenalty / uniform's")
    for axes in grid[-1]:
        axes.set_xlabel("bits of a weight")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return Drawing("allocation", caption, alt, figure)


def _panel(axes: Axes, cells: Sequence[Summary], names: Sequence[str]) -> None:
    budgets = sorted({cell["budget"] for cell in cells})
    for number, name in enumerate(names):
        mine = sorted((cell for cell in cells if cell["allocation"] == name), key=lambda cell: float(cell["budget"]))
        place = [budgets.index(cell["budget"]) + (number - (len(names) - 1) / 2) * 0.8 / len(names) for cell in mine]
        logs = [cell["log_uniform"] for cell in mine]
        value = np.exp([-log["value"] for log in logs])
        # No interval, of fewer than three checkpoints: a point alone.
        low, high = (np.exp([-log["value" if log[end] is None else end] for log in logs]) for end in ("high", "low"))
        spread = [value - low, high - value]
        axes.errorbar(
            place, value, yerr=spread, ls="none", marker=MARKERS[number % len(MARKERS)], ms=4, elinewidth=0.9,
            color=PALETTE[number % len(PALETTE)], label=LABELS[name],
        )  # fmt: skip
    axes.axhline(1, color=INK, lw=0.8, zorder=1)
    axes.set_yscale("log")
    axes.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
    tidy(axes)


def _kept(summary: Summary) -> Drawing:
    """What each criterion keeps of the gain by exact second derivatives."""
    rows = [one for one in summary["surrogates"] if one["criterion"] not in ("uniform", "exact") and one["kept"]]
    caption = (
        "On some hundred weights of one small matrix, whose second derivatives are exact: the share of the best "
        "allocation's fall of d H d / 2 below uniform widths that each cheaper criterion keeps, with 95 % intervals "
        "over checkpoints, at equal bits with the codes of widths counted. `page` takes the row "
        "sums of |d2L / dw_i dw_j|."
    )
    alt = "Share of the exact allocation's gain kept by each criterion, at each budget."
    if not rows:
        return Drawing("surrogates", caption, alt, empty("needs runs: no exact second derivatives yet"))
    budgets = sorted({one["budget"] for one in rows})
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    for axes, budget in zip(figure.subplots(1, len(budgets), squeeze=False, sharey=True).flat, budgets, strict=True):
        mine = sorted((one for one in rows if one["budget"] == budget), key=lambda one: -float(one["kept"]["value"]))
        for place, one in enumerate(mine):
            kept = one["kept"]
            if kept["low"] is not None:
                axes.plot([kept["low"], kept["high"]], [place, place], color=PALETTE[0], lw=1)
            axes.plot(kept["value"], place, marker="o", ms=5, color=PALETTE[0])
            axes.annotate(one["criterion"], (kept["value"], place), xytext=(0, 5), textcoords="offset points",
                          ha="center", fontsize=7)  # fmt: skip
        for at in (0, 1):
            axes.axvline(at, color=INK, lw=0.8, zorder=1)
        axes.set(
            title=f"{budget:g} bits", xlabel="share of the fall of d H d / 2", yticks=[], ylim=(len(mine) - 0.3, -0.9)
        )
        tidy(axes)
    return Drawing("surrogates", caption, alt, figure)
