"""Figures of the predictor and its variants, each from its summary as it is in a file. Call inside `style.theme`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from shared.report.figures.gallery import Drawing
from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, count_label, empty, tidy, tokens_label

Summary = Mapping[str, Any]
EXACT = 16  # bits; dashed, because 8 bits lie under it
FORM_STYLES = {"gap": ("the page's gap", "-"), "exponential": ("exponential", "--"), "power": ("power of bits", ":")}


def predictor_drawings(summary: Summary) -> list[Drawing]:
    return [_penalty(summary), _effective(summary)]


def _title(model: Summary, between: str = ", ") -> str:
    size = [] if model["N"] is None else [f"N = {count_label(model['N'])}"]
    tokens = [] if model["D"] is None else [f"D = {tokens_label(model['D'])}"]
    return between.join([str(model["model"]).rsplit("/")[-1], ", ".join([*size, *tokens])]).removesuffix(between)


def _penalty(summary: Summary) -> Drawing:
    models = summary["models"]
    figure, each = _row(len(models), 3.7)
    for axes, model in zip(each, models, strict=True):
        fitted = "missing" not in model
        for number, (name, (label, dashes)) in enumerate(FORM_STYLES.items() if fitted else ()):
            curve = model["forms"][name]["curve"]
            axes.plot(curve["bits"], curve["delta"], dashes, color=PALETTE[number], lw=1.3, label=label)
        points = model["measured"]
        bits = [point["bits"] for point in points]
        axes.errorbar(bits, [point["delta"] for point in points], yerr=[1.96 * point["delta_se"] for point in points],
                      ls="none", marker="o", ms=4.5, color=INK, elinewidth=0.8, zorder=3, label="measured")  # fmt: skip
        if not fitted:
            axes.annotate("no law: too few widths\nclear of zero", (0.97, 0.95), xycoords="axes fraction", ha="right",
                          va="top", fontsize=7, color=FAINT)  # fmt: skip
        elif model["page"]["status"] == "CONVERGED":
            eta, delta = model["page"]["eta"]["value"], model["page"]["delta"]["value"]
            at = np.linspace(min(bits), max(bits), 60)
            axes.plot(at, eta * (summary["b_train"] - at) ** delta, color=FAINT, lw=1.1, label="curve_fit, as the page")
        axes.set_yscale("log")
        axes.set_xlabel("bits of a weight")
        axes.set_title(_title(model, "\n"), fontsize=8)
        tidy(axes)
    positive = [point["delta"] for model in models for point in model["measured"] if point["delta"] > 0]
    if positive:  # one range for all panels
        each[0].set_ylim(min(positive) / 3, max(positive) * 3)
    each[0].set_ylabel("penalty (nats per token)")
    handles = max((axes.get_legend_handles_labels() for axes in each), key=lambda both: len(both[1]))
    figure.legend(*handles, loc="outside lower center", ncols=5 if len(models) > 1 else 3, frameon=False)
    return Drawing(
        "penalty",
        "What rounding costs at each width, with 95 % intervals over windows, and three laws of the bits fitted to the "
        "logarithm. The grey line is the page's own fit, squares of the loss, which sees the lowest width alone.",
        "Penalty against bits for each model, with the fitted power of the gap, exponential and power of the bits.",
        figure,
    )


def _effective(summary: Summary) -> Drawing:
    models = [model for model in summary["models"] if "sizes" in model["n_eff"]]
    caption = (
        "The share of the parameters that the penalty leaves: N at which a clean law has lost as much, over N, with "
        "95 % intervals of that law. Dashes: the page's N - eta' (b_train - b)^delta, fitted to it; dots: eta' by "
        "first order."
    )
    known = {model["n_eff"]["smallest_N"] for model in models}
    for smallest in known:
        caption += (
            " The sizes that the law was fitted to are not known."
            if smallest is None
            else f" Hollow: extrapolated, below {count_label(smallest)}, the smallest N that the law was fitted to."
        )
    alt = "Effective parameters over N against bits for each model, derived and by the page's form."
    if not models:
        figure = empty("no effective parameters: they need a clean law, and N and D of the model")
        return Drawing("effective_parameters", caption, alt, figure)
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(models):
        marker = MARKERS[number % len(MARKERS)]
        color, rows, N = PALETTE[number % len(PALETTE)], model["n_eff"]["sizes"], model["n_eff"]["N"]
        bits, share = [row["bits"] for row in rows], np.array([row["share"] for row in rows])
        spread = np.abs(np.array([[row["low"], row["high"]] for row in rows]).T / N - share)
        axes.errorbar(bits, share, yerr=spread, lw=1.2, color=color, elinewidth=0.8)
        for at, row in zip(bits, rows, strict=True):
            filled = "white" if row["extrapolated"] else color
            axes.plot(at, row["share"], ls="none", marker=marker, ms=4.5, color=color, mfc=filled, zorder=3)
        axes.plot(bits, [row["page"] / N for row in rows], "--", color=color, lw=1)
        axes.plot(bits, [row["first_order"] / N for row in rows], ":", color=color, lw=1)
    axes.set_ylim(-0.15, 1.08)
    axes.axhline(0, color=FAINT, lw=0.8)
    axes.set(xlabel="bits of a weight", ylabel="N_eff / N")
    handles = [
        *(Line2D([], [], marker=MARKERS[k % len(MARKERS)], ms=4.5, lw=1.2, color=PALETTE[k % len(PALETTE)],
                 label=_title(model)) for k, model in enumerate(models)),
        Line2D([], [], ls="none", marker="o", ms=4.5, color=INK, mfc="white", label="extrapolated"),
        Line2D([], [], ls="--", lw=1, color=INK, label="the page's form, fitted to N_eff"),
        Line2D([], [], ls=":", lw=1, color=INK, label="the page's form, eta' by first order"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    tidy(axes)
    return Drawing("effective_parameters", caption, alt, figure)


def low_data_drawings(summary: Summary) -> list[Drawing]:
    figure = Figure(figsize=(6.4, 1.2 + 0.8 * len(summary["models"])), layout="constrained")
    axes = figure.subplots()
    labels: list[str] = []
    for model in summary["models"]:
        for way, what in (("log", "of the logarithm"), ("page", "curve_fit")):
            one = model[way]["difference"]
            at = len(labels)
            spread = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
            axes.errorbar(one["value"], at, xerr=spread, marker="o", ms=4.5, color=PALETTE[at % 2], elinewidth=1)
            labels.append(f"{model['model']}, {what}")
    bound = summary["bound"]
    axes.axvspan(-bound, bound, color=FAINT, alpha=0.15, lw=0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.set_xlabel("delta after few tokens less delta after all\n(95 % intervals over seeds)")
    tidy(axes)
    caption = (
        "The exponent of the gap after fine-tuning on few tokens less that after all. Each fit has the same widths in "
        f"both parts and all seeds; of the logarithm, those clear of zero in all. Grey: the bound of {bound}."
    )
    return [Drawing("low_data", caption, "Differences of exponents with intervals, against the bound.", figure)]


def engineer_drawings(rows: Sequence[Summary], decision: Summary) -> list[Drawing]:
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [row["precision"] for row in rows]
    for at, row in enumerate(rows):
        if row["p95_ms"] is None:
            left.annotate("simulated: no speed", (at, 0.04), xycoords=("data", "axes fraction"), rotation=90,
                          ha="center", fontsize=7, color=FAINT)  # fmt: skip
            continue
        spread = [[row["p95_ms"] - row["p95_low_ms"]], [row["p95_high_ms"] - row["p95_ms"]]]
        left.errorbar(at, row["p95_ms"], yerr=spread, marker="o", ms=4.5, color=PALETTE[0], elinewidth=1)
        left.plot(at, row["p50_ms"], marker="_", ms=12, color=PALETTE[0])
    for bits, option in decision["options"].items():
        if option["p95_ms"] is not None and rows[names.index(f"INT{bits}")]["p95_ms"] != option["p95_ms"]:
            left.plot(names.index(f"INT{bits}"), option["p95_ms"], marker="D", ms=5, color=PALETTE[1])
    left.axhline(decision["target_ms"], color=PALETTE[3], lw=1, ls="--")
    left.set(yscale="log", ylabel="ms per token: p95 (dash: p50)", xlim=(-0.6, len(rows) - 0.4))
    right.errorbar([row["memory_mib"] for row in rows], [row["delta"] for row in rows],
                   yerr=[1.96 * row["delta_se"] for row in rows], ls="none", marker="s", ms=4.5,
                   color=PALETTE[2])  # fmt: skip
    for row in rows:
        right.annotate(
            row["precision"], (row["memory_mib"], row["delta"]), (5, 4), textcoords="offset points", fontsize=7
        )
    right.axhline(0, color=FAINT, lw=0.8)
    right.set(xlabel="weights (MiB)", ylabel="loss on the dialog over FP32 (nats)")
    left.set_xticks(range(len(names)), names)
    for axes in (left, right):
        tidy(axes)
    caption = (
        "A generated token's latency on this machine at each precision with a kernel, against the bound (dashes; "
        "diamonds: another runtime's), and what each costs on a short dialog for its memory, with 95 % intervals. "
        "Integers are scored with FP32 activations, while the kernel that is timed computes in BF16. Intervals of the "
        "p95 take tokens as independent: load comes in bursts, so that they are too narrow."
    )
    return [Drawing("engineer", caption, "Latency of each precision, and loss against memory.", figure)]


def numerics_drawings(summary: Summary) -> list[Drawing]:
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, rest in ((left, "stochastic", 1.0), (right, "bf16", 0.0)):
        found = [(int(bits), one) for bits, one in summary[key]["by_bits"].items() if one["n"] > 1]
        value = np.array([one["value"] for _, one in found])
        spread = np.array([[one["value"] - one["low"], one["high"] - one["value"]] for _, one in found]).T
        if found:
            axes.errorbar(
                [bits for bits, _ in found], value, yerr=spread, ls="none", marker="o", ms=4.5, color=PALETTE[0]
            )
        axes.axhline(rest, color=FAINT, lw=1, ls="--")
        axes.set_xlabel("bits of a weight")
        tidy(axes)
    left.set(ylabel="penalty, stochastic / nearest", yscale="log")
    right.set_ylabel("penalty from FP32 / from BF16, less one")
    caption = (
        f"Left: rounding stochastically against to nearest at equal bits. Right: weights rounded from FP32 against the "
        f"same held in BF16. Geometric means over {len(summary['models'])} checkpoints, with 95 % intervals."
    )
    return [Drawing("numerics", caption, "Ratios of penalties against bits with intervals.", figure)]


def surface_drawings(summary: Summary) -> list[Drawing]:
    return [_iso(summary), _along(summary), _from_scratch(summary)]


def _iso(summary: Summary) -> Drawing:
    caption = (
        "Iso-loss curves of L_PTQ(N, D, b): the N that reaches a loss with D tokens, when the weights are used in so "
        "many bits (dashes: 16, over 8). Where a curve turns up, more tokens need more parameters: rounding takes back "
        "what they gave."
    )
    alt = "Curves of N against D at three losses, one line style for each bit width."
    iso = summary["iso_loss"]
    if not iso:
        return Drawing("iso_loss", caption, alt, empty("no surface: it needs cooled cells and a clean law"))
    levels = sorted({curve["loss"] for curve in iso["curves"]}, reverse=True)
    figure, each = _row(len(levels), 3.2)
    for axes, level in zip(each, levels, strict=True):
        widths = [curve for curve in iso["curves"] if curve["loss"] == level]
        for number, curve in enumerate(widths):
            N = np.array([np.nan if value is None else value for value in curve["N"]])
            axes.plot(curve["D"], N, _dashes(curve), color=PALETTE[number], lw=1.3, label=f"{curve['bits']:g} bits")
        axes.set(yscale="log", title=f"loss {level:.2f}")
        _tokens(axes)
        tidy(axes)
    each[0].set_ylabel("N (parameters of the blocks)")
    figure.legend(*each[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return Drawing("iso_loss", caption, alt, figure)


def _along(summary: Summary) -> Drawing:
    caption = (
        "The surface along D at each N: loss of the model when its weights are used in so many bits (page's full law; "
        "dashes: 16 bits, over 8)."
    )
    alt = "Loss against D at each size, one colour for each bit width."
    iso = summary["iso_loss"]
    if not iso:
        return Drawing("surface", caption, alt, empty("no surface: it needs cooled cells and a clean law"))
    sizes = sorted({curve["N"] for curve in iso["along_D"]})
    figure, each = _row(len(sizes), 2.6)
    exact = [loss for curve in iso["along_D"] if curve["bits"] == 16 for loss in curve["loss"]]
    for axes, N in zip(each, sizes, strict=True):
        for number, curve in enumerate(c for c in iso["along_D"] if c["N"] == N):
            axes.plot(curve["D"], curve["loss"], _dashes(curve), color=PALETTE[number], lw=1.3,
                      label=f"{curve['bits']:g} bits")  # fmt: skip
        axes.set(title=f"N = {count_label(N)}")
        _tokens(axes)
        axes.set_ylim(min(exact) - 0.1, max(exact) + 1.0)
        tidy(axes)
    each[0].set_ylabel("loss (nats per token)")
    figure.legend(*each[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return Drawing("surface", caption, alt, figure)


def _dashes(curve: Summary) -> str:
    return "--" if curve["bits"] == EXACT else "-"


def _from_scratch(summary: Summary) -> Drawing:
    caption = (
        "3 bits: loss over the unquantized run of the same seed, when trained with 3-bit weights from scratch (filled) "
        "and when rounded to them after training (hollow), with 95 % intervals over seeds where there are several."
    )
    alt = "Loss over the base against D for training in 3 bits and rounding to 3 bits, by size."
    found = [item for item in summary["scratch"]["each"] if item["phase"] == "cooled"]
    if not found:
        reason = summary["scratch"]["missing"] or "no cooled run trained in 3 bits is in the tables yet"
        return Drawing("three_bits", caption, alt, empty(f"needs runs: {reason}"))
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    sizes = sorted({item["N"] for item in found})
    for number, N in enumerate(sizes):
        mine = [item for item in found if item["N"] == N]
        _points(axes, mine, "trained", PALETTE[number], MARKERS[number], True)
        _points(axes, mine, "rounded", PALETTE[number], MARKERS[number], False)
    handles = [Line2D([], [], ls="none", marker=MARKERS[k], color=PALETTE[k], label=f"N = {count_label(N)}")
               for k, N in enumerate(sizes)]  # fmt: skip
    handles += [Line2D([], [], ls="none", marker="o", color=INK, mfc=mfc, label=label)
                for mfc, label in ((INK, "trained in 3 bits"), ("white", "rounded to 3 bits after"))]  # fmt: skip
    axes.legend(handles=handles, frameon=False)
    axes.set(yscale="log", ylabel="loss over the unquantized run (nats per token)")
    _tokens(axes)
    tidy(axes)
    return Drawing("three_bits", caption, alt, figure)


def _points(axes: Axes, items: Sequence[Summary], key: str, color: Any, marker: str, filled: bool) -> None:
    for item in items:
        value = item[key]
        # An interval without an end (one seed) is None in a file.
        bounded = value["n"] > 1 and value["low"] > 0
        spread = [[value["value"] - value["low"]], [value["high"] - value["value"]]] if bounded else None
        axes.errorbar(item["D"], value["value"], yerr=spread, marker=marker, ms=5, color=color, elinewidth=0.8,
                      mfc=color if filled else "white")  # fmt: skip


def _tokens(axes: Axes) -> None:
    """D on a logarithmic axis, with powers of two as ticks."""
    axes.set(xscale="log", xlabel="D (tokens)")
    low, high = axes.get_xlim()
    powers = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator(powers.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda D, _: tokens_label(D)))


def _row(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side, of one range of y."""
    figure = Figure(figsize=(max(4.8, 3.2 * count), height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True)[0])
