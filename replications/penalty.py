"""What a model pays for its bits: penalty laws fitted to the cells of `bitlaw ptq`, the effective N, and the figure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from replications.kumar_precision import law as kumar_precision
from replications.precision_predictor import law as precision_predictor
from replications.undertrained_qid import law as undertrained_qid
from shared.errors import BitlawError
from shared.formats import format_named
from shared.laws.fit import fit
from shared.laws.law import Array, Law
from shared.laws.result import Fit, interval
from shared.quantize.quantizer import PRESETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_WIDTHS = 3  # of two free constants; fewer test nothing
# Constants that one model cannot tell are held: exponents of N and D at none, the loss without rounding as measured.
EXPONENTIAL, POWER, GAP = kumar_precision.LAW, undertrained_qid.BITS, precision_predictor.SIMPLE
LARGEST_N, SMALLEST_N = 1e15, 1.0
HALVINGS = 100


def penalties(rows: Sequence[Mapping[str, Any]], base_loss: float) -> list[dict[str, Any]]:
    """Three laws of bits for each method, kind of format and group with at least three widths.

    kumar_eq2 delta = C e^(-bits / gamma_post), ouyang_bits delta = k / bits^gamma, and page_simple
    loss = base + eta (16 - bits)^delta; `bits` are those of an element, as in the papers.
    """
    grouped: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["bits"] < 16:
            head = row["format"].split(":")[0]
            kind = str("preset" if head in PRESETS else format_named(head).kind)
            kind = "unsigned integer" if kind == "integer" and head.startswith("U") else kind
            grouped.setdefault((row["method"], kind, row["group_size"]), []).append(row)
    found = []
    for (method, kind, group), some in grouped.items():
        if len({row["bits"] for row in some}) < LEAST_WIDTHS:
            continue
        table = pd.DataFrame([{key: row[key] for key in ("bits", "loss", "delta", "delta_se")} for row in some])
        table = table.assign(N=1.0, D=1.0)
        for law, held in (
            (EXPONENTIAL, {"gamma_D": 0.0, "gamma_N": 0.0}),
            (POWER, {}),
            (GAP, {"L_base": base_loss}),
        ):
            entry: dict[str, Any] = {"law": law.name, "method": method, "kind": kind, "group_size": group}
            try:
                result = fit(law, table, fixed=held, n_boot=200, name=f"{method} {kind} {group}")
            except BitlawError as error:
                found.append(entry | {"status": "FAILED", "reasons": [str(error)]})
                continue
            free = {name: value for name, value in result.parameters.items() if name not in held}
            found.append(
                entry
                | {
                    "status": result.status,
                    "reasons": list(result.reasons),
                    "rows": len(table),
                    "rms": result.rms,
                    "constants": {n: {"value": e.value, "low": e.low, "high": e.high} for n, e in free.items()},
                    "held": held,
                }
            )
    return found


def check_base_law(law: Law, tokens: float | None) -> None:
    """Raises BitlawError when the law cannot say at which N a loss is reached."""
    if law.target != "loss" or "N" not in law.inputs:
        raise BitlawError(
            f"--base-law: {law.name} predicts {law.target} from {', '.join(law.inputs)}: give a law of the loss "
            "by N, such as chinchilla"
        )
    rest = [name for name in law.inputs if name not in ("N", "D") and name not in law.unquantized]
    if rest:
        raise BitlawError(f"--base-law: {law.name} needs {', '.join(rest)}, which a model's folder does not say")
    if "D" in law.inputs and tokens is None:
        raise BitlawError(f"--base-law: {law.name} needs the tokens that the model was trained on: give --D")


def effective_size(law: Law, result: Fit, loss: float, tokens: float | None) -> dict[str, float | None]:
    """N at which the unquantized law has this loss, with its 95 % interval over the law's resamples; None where no N
    up to 1e15 has it (the loss is below the law's at any N); at least 1."""
    draws = result.draws if len(result.draws) else result.theta[None]
    value = _size(law, result.theta[None], loss, tokens)[0]
    # Of 1 / N: where a resample reaches the loss at no N, that is zero.
    ends = [1 / max(float(end), 1 / LARGEST_N) for end in interval(1 / _size(law, draws, loss, tokens))]
    high, low = (end if end < LARGEST_N / 2 else np.inf for end in ends)
    return {name: float(v) if np.isfinite(v) else None for name, v in (("value", value), ("low", low), ("high", high))}


def _size(law: Law, theta: Array, loss: float, tokens: float | None) -> Array:
    """For each parameter vector (k, P): N (k,) from 1 on, by bisection in ln N; infinity where there is none."""
    at = dict(law.unquantized) | ({} if tokens is None else {"D": tokens})

    def losses(log_N: Array) -> Array:
        columns = {name: np.full(1, at.get(name, 1.0)) for name in law.inputs}
        return np.array(
            [law.predict(one, columns | {"N": np.exp(n)[None]})[0] for one, n in zip(theta, log_N, strict=True)]
        )

    low, high = np.full(len(theta), np.log(SMALLEST_N)), np.full(len(theta), np.log(LARGEST_N))
    never = losses(high) > loss
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = losses(middle) > loss
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(never, np.inf, np.exp(high))


def figure(rows: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """Delta against bits per weight, a colour and a mark a method; formats are named at their points."""
    from matplotlib.figure import Figure

    from shared.report.figures.style import FAINT, INK, MARKERS, PALETTE, tidy

    made = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = made.subplots()
    positive = [row["delta"] for row in rows if row["delta"] > 0]
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        some = sorted((row for row in rows if row["method"] == method), key=lambda row: row["bits_per_weight"])
        axes.errorbar(
            [row["bits_per_weight"] for row in some],
            [row["delta"] for row in some],
            yerr=[1.96 * row["delta_se"] for row in some],
            ls="none", marker=MARKERS[number % len(MARKERS)], ms=4.5, lw=0.8, capsize=2,
            color=PALETTE[number % len(PALETTE)], label=method,
        )  # fmt: skip
        for row in some if number == 0 else []:
            axes.annotate(row["format"], (row["bits_per_weight"], row["delta"]), (4, 4),
                          textcoords="offset points", fontsize=6.5, color=INK)  # fmt: skip
    if positive:
        axes.set_yscale("symlog", linthresh=max(min(positive), 1e-4))
    axes.axhline(0, color=FAINT, lw=0.8, zorder=1)
    axes.set(xlabel="bits per weight, scales included", ylabel="delta (nats per token), with 95 % intervals")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False)
    tidy(axes)
    return made
