"""`bitlaw plan --plot`: each law's front, or what each law expects of a given model."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from replications.planning.result import LawPlan, Plan
from replications.planning.setting import element_bits
from shared.files import replacing
from shared.report.figures import style

LABELS = {"loss": "loss (nats per token)", "train_flops": "training (16-bit FLOPs)"}
SMALLEST_DELTA = 1e-5
WIDE = 1e3  # times, from which an axis has labels at whole decades only


def draw(plan: Plan) -> Figure:
    """A panel of each law's front over memory, coloured by the bits of an element; for a given model the deltas of all
    laws over bits, which can be compared. Inside `style.theme()`."""
    answering = [law for law in plan.laws if law.best is not None]
    return _deltas(answering) if any(law.readings for law in answering) else _fronts(answering, plan.axis)


def write(plan: Plan, path: Path) -> None:
    """An SVG file, whole or not at all; the same plan gives the same bytes."""
    with style.theme():
        figure = draw(plan)
        with replacing(path) as temporary:
            FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None, "Creator": None})


def _fronts(laws: list[LawPlan], axis: str) -> Figure:
    figure, axes, rest = style.panels(len(laws), height=1.6)
    widths = sorted({round(element_bits(point.format)) for law in laws for point in law.front}, reverse=True)
    colours = {bits: style.PALETTE[i % len(style.PALETTE)] for i, bits in enumerate(widths)}
    markers = {bits: style.MARKERS[i % len(style.MARKERS)] for i, bits in enumerate(widths)}
    for panel, law in zip(axes, laws, strict=True):
        height = [point.loss.value if axis == "loss" else point.train_flops for point in law.front]
        memory = [point.memory for point in law.front]
        panel.plot(memory, height, color=style.FAINT, linewidth=0.8, zorder=1)
        if axis == "loss" and law.draws:
            ends = [(point.loss.low or 0.0, point.loss.high or 0.0) for point in law.front]
            panel.fill_between(memory, [low for low, _ in ends], [high for _, high in ends], color="#dddddd", zorder=0)
        for bits in widths:
            some = [i for i, point in enumerate(law.front) if round(element_bits(point.format)) == bits]
            panel.plot(
                [memory[i] for i in some], [height[i] for i in some], markers[bits], color=colours[bits], markersize=3.5
            )
        panel.set_xscale("log")
        if axis != "loss":
            panel.set_yscale("log")
        _finish(panel, law)
    style.outer_labels(axes, "memory (GiB)", LABELS[axis])
    handles = [Line2D([], [], linestyle="", marker=markers[b], color=colours[b], label=f"{b} bits") for b in widths]
    rest[0].legend(handles=handles, loc="center", frameon=False, title="of a weight")
    return figure


def _deltas(laws: list[LawPlan]) -> Figure:
    figure = Figure(figsize=(7.2, max(4.2, 0.17 * len(laws) + 0.4)), layout="constrained")
    axes = figure.subplots()
    seen: list[float] = []
    for i, law in enumerate(laws):
        some = sorted(law.readings, key=lambda point: point.bits_per_weight)
        some = [point for point in some if SMALLEST_DELTA < point.delta.value < float("inf")]
        if not some:
            continue
        bits, delta = [p.bits_per_weight for p in some], [p.delta.value for p in some]
        seen += delta
        colour = style.PALETTE[i % len(style.PALETTE)]
        axes.plot(
            bits, delta, marker=style.MARKERS[i % len(style.MARKERS)], markersize=4, linewidth=1, color=colour,
            linestyle=("-", "--", ":")[i // len(style.PALETTE) % 3], label=law.law,
        )  # fmt: skip
        if law.draws:
            low = [max(p.delta.low or 0.0, SMALLEST_DELTA) for p in some]
            axes.fill_between(bits, low, [p.delta.high or 0.0 for p in some], color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    if seen:  # bands may leave the frame
        axes.set_ylim(min(seen) / 2, max(seen) * 2)
    axes.set_xlabel("bits per weight, scales included")
    axes.set_ylabel("added loss (nats per token)")
    axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    style.tidy(axes)
    return figure


def _finish(panel: Axes, law: LawPlan) -> None:
    panel.set_title(law.law)
    panel.tick_params(labelsize=6)
    for axis in (panel.xaxis, panel.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < WIDE * low else (1.0,), numticks=5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    style.tidy(panel)
