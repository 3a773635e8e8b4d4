"""How every figure looks and how it is saved: the same numbers give the same bytes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from shared.files import replacing

PNG_DPI = 160
VECTOR = ("svg", "pdf")
INK = "#222222"
FAINT = "#8a8a8a"
PALETTE: list[tuple[float, float, float]] = sns.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "P", "X", "p", "h")  # a second code beside colour

RC = {
    # Identifiers inside an SVG are hashes of its content with this salt instead of random ones.
    "svg.hashsalt": "bitlaw",
    # Letters stay letters: smaller files, and text that can be searched and read aloud.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # whole TrueType outlines, which journals ask for
    # The font that matplotlib ships, so that a layout does not depend on what a machine has installed.
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.grid.which": "major",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "path.simplify": False,
}


@contextlib.contextmanager
def theme() -> Iterator[None]:
    """Draw and save inside this context; nothing global is left changed."""
    with mpl.rc_context():
        sns.set_theme(style="ticks", context="paper", palette="colorblind", rc=RC)
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.svg and `name`.png, each whole or not at all. No time, no version, no machine inside."""
    _lay_out(figure)
    png = folder / f"{name}.png"
    with replacing(png) as temporary:
        FigureCanvasAgg(figure).print_png(temporary, metadata={"Software": None})
    return [save_vector(figure, folder, name, "svg"), png]


def save_vector(figure: Figure, folder: Path, name: str, form: str) -> Path:
    """Write `name`.`form`, svg or pdf, as `save` does."""
    _lay_out(figure)
    target = folder / f"{name}.{form}"
    with replacing(target) as temporary:
        if form == "svg":
            FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None, "Creator": None})
        else:
            nothing = {"CreationDate": None, "Creator": None, "Producer": None}
            with temporary.open("wb") as opened:
                FigureCanvasPdf(figure).print_pdf(opened, metadata=nothing)
    return target


def _lay_out(figure: Figure) -> None:
    """The layout is found once and kept; `Figure.savefig` would find it anew, with a trial drawing, for each format."""
    figure.set_dpi(PNG_DPI)
    if figure.get_layout_engine() is not None:
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def panels(n: int, *, height: float, share: bool = False) -> tuple[Figure, list[Axes], list[Axes]]:
    """`n` panels of `height` inches in rows of four: the figure, the panels, and the axes left over for a legend.

    Margins are set in inches rather than found by trial, which would take longer than drawing. Only panels of the
    first column have room for a label of the y axis; the lowest panel of each column should label x.
    """
    columns, width, left, right, top, bottom, between = 4, 9.6, 0.68, 0.12, 0.28, 0.48, (0.48, 0.62)
    rows = n // columns + 1
    total = top + bottom + rows * height + (rows - 1) * between[1]
    figure = Figure(figsize=(width, total))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    across = (width - left - right - (columns - 1) * between[0]) / columns
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, top=1 - top / total, bottom=bottom / total,
        wspace=between[0] / across, hspace=between[1] / height,
    )  # fmt: skip
    flat = list(grid.flat)
    for axes in flat[n:]:
        axes.axis("off")
    return figure, flat[:n], flat[n:]


def outer_labels(axes: list[Axes], x: str, y: str) -> None:
    """Label y in the first column and x on the lowest panel of each column of four."""
    for number, each in enumerate(axes):
        if number % 4 == 0:
            each.set_ylabel(y)
        if number + 4 >= len(axes):
            each.set_xlabel(x)


def empty(sentence: str) -> Figure:
    """A figure for which there is no data yet: it says so, in place of axes."""
    figure = Figure(figsize=(7.2, 1.2))
    figure.text(0.5, 0.5, sentence, ha="center", va="center", color=INK)
    return figure


def tidy(axes: Axes) -> None:
    """Open frame, faint grid behind the data."""
    axes.grid(True)
    axes.set_axisbelow(True)
    sns.despine(ax=axes)


def count_label(value: float) -> str:
    """106496 -> '0.11M', 33554432 -> '34M'."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size or (unit == "M" and value >= 5e4):
            scaled = value / size
            return (
                f"{scaled:.2f}{unit}" if scaled < 1 else f"{scaled:.2g}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
            )
    return f"{value:.0f}"


def tokens_label(tokens: float) -> str:
    """Tokens in the pool's unit: 1M is 2^20."""
    return f"{tokens / 2**20:.4g}M"
