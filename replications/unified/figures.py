"""The tournament as one figure, the candidates for the unified form as another."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from replications.unified.forms import LINKS, MEASURES
from shared.report.figures.gallery import Drawing
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, empty, tidy

OURS = PALETTE[3]
SHOWN_FROM, SHOWN_TO = 0.02, 3.0  # of the axis; what lies beyond stands at its edge


def draw(tournament: dict[str, Any], selection: dict[str, Any], published: dict[str, Any] | None) -> list[Drawing]:
    """`tournament.json`, `selection.json` and, where it is there, `published.json` of reports/unified."""
    return [_tournament(tournament), _candidates(selection), *([_published(published)] if published else [])]


def _tournament(found: dict[str, Any]) -> Drawing:
    parts = [part for part in found["parts"] if any(row["error"] is not None for row in part["laws"])]
    return Drawing(
        name="tournament",
        caption="Held-out error of every law on every part of the pool: median |ln(measured / predicted)| of cells "
        "clear of zero, with 95 % intervals over trunks where there are five of them or more. The unified law, fitted "
        "to the part alone, is orange; the open mark is one fit of it to the whole pool; filled squares are laws of "
        "the paper whose part it is. In brackets the constants beside those of the unquantized loss. What lies beyond "
        "the axis stands at its edge.",
        alt="Rows of laws grouped by part of the pool with their held-out errors and intervals.",
        figure=_tournament_figure(parts) if parts else empty("needs runs: no part has rows to score a law on yet"),
    )


def _tournament_figure(parts: list[dict[str, Any]]) -> Figure:
    lines: list[tuple[str, dict[str, Any] | None, bool]] = []
    for part in parts:
        lines.append((f"{part['part']} ({part['clear_cells']} cells)", None, False))
        lines += [(f"{row['law']} ({row['constants']})", row, row["law"] in part["own"])
                  for row in part["laws"] if row["error"] is not None]  # fmt: skip
    figure = Figure(figsize=(7.2, 0.155 * len(lines) + 0.7), layout="constrained")
    axes = figure.subplots()
    for k, (_, row, own) in enumerate(lines):
        if row is None:
            continue
        ours = row["law"].startswith("unified")
        color = OURS if ours else INK
        names = [name for name in ("low", "error", "high") if row[name] is not None]  # of few cells no interval
        clipped = {name: min(max(row[name], SHOWN_FROM), SHOWN_TO) for name in names}
        if "low" in clipped:
            axes.plot([clipped["low"], clipped["high"]], [k, k], color=color, lw=1, solid_capstyle="butt")
        filled = own or (ours and "one fit" not in row["law"])
        axes.plot(
            clipped["error"], k, marker=MARKERS[1 if own else 0], ms=4.2, color=color, mfc=color if filled else "white"
        )
    axes.set(xscale="log", xlim=(SHOWN_FROM / 1.1, SHOWN_TO * 1.1), ylim=(len(lines) - 0.4, -0.6))
    axes.set_yticks(range(len(lines)), [text for text, _, _ in lines])
    for label, (_, row, _own) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set(fontsize=6.5, fontweight="bold" if row is None else "normal")
    axes.set_xlabel("median |ln(measured / predicted)| of held-out cells")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    tidy(axes)
    return figure


def _candidates(found: dict[str, Any]) -> Drawing:
    best = found["form"]
    return Drawing(
        name="candidates",
        caption="The candidates for the unified form, scored inside the rows that fits may see (formats, sizes and "
        "largest horizons left out in turn; geometric mean over parts and kinds of split). Left: link and measure of "
        f"the error, exponents free. Right: exponents of the chosen '{best['link']}, {best['measure']}', with their "
        "number of constants.",
        alt="Inner held-out errors of twelve links and measures, and of four sets of exponents.",
        figure=_candidate_figure(found),
    )


def _candidate_figure(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for one in found["links"]:
        at, k = LINKS.index(one["link"]), MEASURES.index(one["measure"])
        chosen = (one["link"], one["measure"]) == (found["form"]["link"], found["form"]["measure"])
        look = {"marker": MARKERS[k], "ms": 7 if chosen else 5, "mec": INK if chosen else PALETTE[k]}
        left.plot(at + 0.16 * (k - 1), one["score"], ls="none", color=PALETTE[k], **look)
    left.set_xticks(range(len(LINKS)), LINKS)
    left.set_ylabel("inner held-out error")
    handles = [Line2D([], [], ls="none", marker=MARKERS[k], color=PALETTE[k], label=name)
               for k, name in enumerate(MEASURES)]  # fmt: skip
    left.legend(handles=handles, frameon=False, title="measure of e", loc="upper left")
    for k, one in enumerate(found["exponents"]):
        right.plot(k, one["score"], ls="none", marker="o", color=OURS if one["exponents"] == "free" else FAINT)
    right.set_xticks(range(len(found["exponents"])),
                     [f"{one['exponents']} ({one['constants']})" for one in found["exponents"]])  # fmt: skip
    for axes in (left, right):
        axes.grid(axis="y")
        tidy(axes)
    return figure


def _published(found: dict[str, Any]) -> Drawing:
    lines: list[tuple[str, dict[str, Any] | None]] = []
    for name, one in found["comparisons"].items():
        scores = [(f"{score['law']} ({score['parameters']})", score["errors"][one["split"]]) for score in one["scores"]]
        lines += [(f"{name}: {one['split']} ({scores[0][1]['rows']} runs)", None), *scores]
    figure = Figure(figsize=(7.2, 0.17 * len(lines) + 0.7), layout="constrained")
    axes = figure.subplots()
    for k, (text, error) in enumerate(lines):
        if error is not None:
            color = OURS if text.startswith("unified") else INK
            axes.plot([error["low"], error["high"]], [k, k], color=color, lw=1)
            axes.plot(error["value"], k, marker="o", ms=4, color=color)
    axes.set(xscale="log", ylim=(len(lines) - 0.4, -0.6), xlabel="mean |ln(measured / predicted)| of unseen losses")
    axes.set_yticks(range(len(lines)), [text for text, _ in lines])
    for label, (_, error) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set(fontsize=6.5, fontweight="bold" if error is None else "normal")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    tidy(axes)
    return Drawing(
        name="published",
        caption="The chosen form on published runs, which the choice did not read: QuEST by family and whole, "
        "Quartet's forward pass. "
        "All constants of every law (in brackets, those of the unquantized loss among them) are fitted to what a split "
        "leaves; rollouts in N and D stand in the table.",
        alt="Held-out errors of the papers' laws and of the unified law on QuEST and Quartet.",
        figure=figure,
    )
