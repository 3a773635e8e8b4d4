"""The figure of progressive decoding: where bits matter, what schedules gain at equal bits, and generated text."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shared.report.figures.gallery import Drawing
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, empty, tidy

READINGS = {
    "measured": (INK, "-", "measured"),
    "memoryless": (PALETTE[0], "--", "uniform widths, step by step"),
    "remaining": (PALETTE[3], "-.", "page's sum, D_t remaining"),
    "training": (PALETTE[2], ":", "page's sum, D_t = D"),
}
POLICIES = (("learned", 3), ("prior", 1), ("needed", 2))
SHOWN = "linear:5:3"


CAPTION = (
    "First: the penalty of uniform widths by decode step, over its mean. Second: one schedule as measured and as "
    "predicted from uniform widths. Third: what schedules gain over uniform widths of the same average bits "
    "(orange: in reverse order), with 95 % intervals. Last: Rouge-L against the unquantized model's text; the line are "
    "uniform widths, triangles schedules (orange: low bits first)."
)


def draw(summary: dict[str, Any]) -> list[Drawing]:
    """Of `decoding_summary.summarise`."""
    alt = "Four panels: penalty by decode step, a schedule with its predictions, gains at equal bits, Rouge-L by bits."
    return [Drawing("decoding", CAPTION, alt, decoding_figure(summary))]


def decoding_figure(summary: dict[str, Any]) -> Figure:
    """Penalty by step, one schedule with its predictions, gains, Rouge-L by bits."""
    steps = summary["sum_over_steps"]
    if not steps:
        return empty("needs runs: no schedule has been measured by step yet")
    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    flat = list(figure.subplots(2, 2).flat)
    _by_step(flat[0], steps["by_step"])
    _predicted(flat[1], steps["by_step"])
    _gains(flat[2], summary["relative_gain"])
    _text(flat[3], summary)
    for axes in flat:
        tidy(axes)
    handles = [Line2D([], [], color=c, ls=s, lw=1.2, label=label) for c, s, label in READINGS.values()]
    handles += [
        Line2D([], [], color=PALETTE[k], marker=MARKERS[k], ls="none", ms=5, label=f"scheduler: {name}")
        for name, k in POLICIES
        if name in summary["scheduler"]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _by_step(axes: Axes, by_step: dict[str, Any]) -> None:
    """Each uniform width's penalty over its own mean: flat where all steps are alike."""
    for k, (width, penalty) in enumerate(sorted(by_step["uniform"].items(), key=lambda item: int(item[0]))):
        values = np.array(penalty, dtype=float)
        if values.mean() > 0 and int(width) <= 4:  # above, noise
            axes.plot(by_step["first_step"], values / values.mean(), color=PALETTE[k], marker=MARKERS[k], ms=3, lw=1)
            axes.annotate(
                f"{width} bits", (0.98, 0.26 - 0.08 * k), xycoords="axes fraction", ha="right", color=PALETTE[k]
            )
    axes.axhline(1, color=FAINT, lw=0.8)
    axes.set_ylim(bottom=0)
    axes.set_title("where bits matter: uniform widths")
    axes.set_xlabel("decode step")
    axes.set_ylabel("penalty over its mean")


def _predicted(axes: Axes, by_step: dict[str, Any]) -> None:
    schedules = by_step["schedules"]
    if not schedules:
        return
    name = SHOWN if SHOWN in schedules else next(iter(schedules))
    for reading, (color, style, _) in READINGS.items():
        if reading in schedules[name]:
            axes.plot(by_step["first_step"], schedules[name][reading], color=color, ls=style, lw=1.2)
    axes.set_title(f"penalty under {name}")
    axes.set_xlabel("decode step")
    axes.set_ylabel("nats per token")


def _gains(axes: Axes, gains: dict[str, Any]) -> None:
    """Against the uniform widths of the same average bits."""
    chord = {key.removesuffix(" against chord"): one for key, one in gains.items() if key.endswith(" against chord")}
    names = [name for name in chord if chord[name]["low"] is not None]
    for place, name in enumerate(names):
        one = chord[name]
        color = PALETTE[1] if name.startswith("reverse:") else PALETTE[0]
        axes.plot([100 * one["low"], 100 * one["high"]], [place, place], color=color, lw=1.2)
        axes.plot(100 * one["value"], place, marker="o", ms=4, color=color)
    axes.axvline(0, color=FAINT, lw=0.8)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("gain over uniform, equal bits")
    axes.set_xlabel("% of uniform's penalty")


def _text(axes: Axes, summary: dict[str, Any]) -> None:
    points = {name: one for name, one in summary["rouge"].items() if "@" not in name}
    line = sorted((one["bits"], one["value"]) for name, one in points.items() if name.startswith("uniform:"))
    axes.plot([b for b, _ in line], [v for _, v in line], color=INK, marker="o", ms=3.5, lw=1)
    for name, one in points.items():
        if not name.startswith("uniform:"):
            late = name.startswith("reverse:")
            axes.plot(one["bits"], one["value"], ls="none", marker="v" if late else "^", ms=4.5, mfc="none",
                      color=PALETTE[1] if late else PALETTE[0])  # fmt: skip
    for name, k in POLICIES:
        if name in summary["scheduler"]:
            one = summary["scheduler"][name]
            axes.plot(one["bits"], one["value"], ls="none", marker=MARKERS[k], ms=5, color=PALETTE[k])
    axes.set_title("generated text")
    axes.set_xlabel("average bits")
    axes.set_ylabel("Rouge-L")
