"""Two statements of the page on numerics: stochastic against nearest rounding at equal bits (S6), and weights that were
held in FP32 against the same held in BF16 before they are rounded to few bits (S5).

Both are differences on one checkpoint, over the same windows; a mean over rounding seeds stands for stochastic
rounding. Across checkpoints the intervals are Student's, of the logarithm of ratios.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replications.precision_predictor.forms import CLEAR, LEAST_WIDTHS, fit_form, table_of
from replications.precision_predictor.law import B_TRAIN
from replications.precision_predictor.measure import BITS, estimates, integer, losses_of, rounded
from replications.precision_predictor.predictor import student_interval
from shared.errors import BitlawError
from shared.evaluate.losses import mean, paired

COLUMNS = (
    "model", "N", "D", "held", "rounding", "seed", "bits", "base_loss", "loss", "loss_se", "delta", "delta_se",
    "excess", "excess_se", "relative_mse",
)  # fmt: skip
KEY = ("model", "held", "rounding", "seed", "bits")
FP32, BF16 = "FP32", "BF16"
NEAREST, STOCHASTIC = "nearest", "stochastic"
LEAST = 3  # checkpoints
B_TRAIN_FP32 = 32.0
Row = Mapping[str, Any]


def variants(seeds: int) -> list[tuple[str, str, int]]:
    """(held, rounding, seed): nearest from FP32 and from BF16, and stochastic from FP32 with so many seeds."""
    return [(FP32, NEAREST, 0), (BF16, NEAREST, 0), *((FP32, STOCHASTIC, seed) for seed in range(seeds))]


@contextmanager
@torch.no_grad()
def held_in(model: Any, form: str) -> Any:
    """While it lasts all parameters are what `form` can hold, rounded once to nearest even."""
    if form == FP32:
        yield
        return
    kept = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        for parameter, _ in kept:
            parameter.copy_(parameter.to(torch.bfloat16))
        yield
    finally:
        for parameter, before in kept:
            parameter.copy_(before)


def measure(model: Any, windows_ST: Tensor, seeds: int, tell: Callable[[], None]) -> list[dict[str, Any]]:
    """Rows of `COLUMNS` without the model's name and sizes. `delta` is over the same held weights unrounded, `excess`
    over nearest rounding from FP32 at the same bits; 16 bits stands for the held weights themselves."""
    exact_S = losses_of(model, windows_ST)
    nearest: dict[int, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for held, rounding, seed in variants(seeds):
        with held_in(model, held):
            base_S = losses_of(model, windows_ST)
            about = {"held": held, "rounding": rounding, "seed": seed, "base_loss": mean(base_S).value}
            if held == BF16:
                rows.append({**about, "bits": 16, **estimates(base_S, exact_S), "excess": 0.0, "excess_se": 0.0,
                             "relative_mse": 0.0})  # fmt: skip
            for bits in BITS:
                with rounded(model, integer(bits, rounding=rounding), seed) as made:
                    losses_S = losses_of(model, windows_ST)
                nearest.setdefault(bits, losses_S)
                # Of the penalties: the held weights' own loss is not theirs.
                excess = paired(losses_S - base_S, nearest[bits] - exact_S)
                rows.append({**about, "bits": bits, **estimates(losses_S, base_S), "excess": excess.value,
                             "excess_se": excess.se, "relative_mse": made.relative_mse})  # fmt: skip
                tell()
    return rows


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """{"models", "stochastic", "bf16"}. `stochastic`: at each width the ratio of the penalties, stochastic over
    nearest, and that of eta (`eta_ratio`), both with one exponent. `bf16`: delta of FP32-held weights over that of
    BF16-held ones, less one, at each width. Geometric means over checkpoints, with Student's intervals.

    Raises BitlawError under three checkpoints.
    """
    by_model: dict[str, list[Row]] = {}
    for row in rows:
        by_model.setdefault(str(row["model"]), []).append(row)
    if len(by_model) < LEAST:
        raise BitlawError(f"numerics are judged over {LEAST} checkpoints and more; {len(by_model)} are measured")
    models = [_model(name, some) for name, some in sorted(by_model.items())]
    stochastic: dict[str, Any] = {"by_bits": {}, "seeds": min(model["seeds"] for model in models)}
    bf16: dict[str, Any] = {"by_bits": {}}
    for bits in sorted({int(b) for model in models for b in model["bits"]}):
        found = [model["bits"][bits] for model in models if bits in model["bits"]]
        stochastic["by_bits"][str(bits)] = ratio_interval([one["stochastic"] for one in found])
        ratio = ratio_interval([one["bf16"] for one in found])
        bf16["by_bits"][str(bits)] = {**{key: ratio[key] - 1 for key in ("value", "low", "high")}, "n": ratio["n"]}
    stochastic["eta_ratio"] = ratio_interval([model["eta_ratio"] for model in models])
    # What the page's law says of the same step: ((32 - 2) / (16 - 2))^delta, less one.
    gaps = (B_TRAIN_FP32 - 2) / (B_TRAIN - 2)
    powers = [model["delta"] for model in models if model["delta"] is not None]
    bf16["page_says_at_2"] = float(gaps ** np.median(powers)) - 1 if powers else float("nan")
    bf16["base_loss"] = student_interval([model["bf16_base"] for model in models])
    stochastic["verdict"] = _verdict(stochastic["eta_ratio"], 1.0, "lowers eta", "raises eta")
    two = bf16["by_bits"].get("2")
    bf16["verdict"] = _verdict(two, 0.05, "no worse from FP32 by 5 %", "worse from FP32 by 5 %") if two else "undecided"
    return {
        "models": [{**model, "bits": {str(bits): one for bits, one in model["bits"].items()}} for model in models],
        "stochastic": stochastic,
        "bf16": bf16,
    }


def ratio_interval(values: Sequence[float]) -> dict[str, Any]:
    """The geometric mean of ratios above zero, with Student's interval of the logarithm; those below are left out and
    counted as `left_out`."""
    used = [float(np.log(value)) for value in values if np.isfinite(value) and value > 0]
    found = student_interval(used)
    ends = {key: float(np.exp(found[key])) for key in ("value", "low", "high")}
    return {**ends, "n": len(used), "left_out": len(values) - len(used)}


def _model(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    def deltas(held: str, rounding: str) -> dict[int, list[Row]]:
        found: dict[int, list[Row]] = {}
        for row in rows:
            if (row["held"], row["rounding"]) == (held, rounding) and int(row["bits"]) < 16:
                found.setdefault(int(row["bits"]), []).append(row)
        return found

    plain, coarse, noisy = deltas(FP32, NEAREST), deltas(BF16, NEAREST), deltas(FP32, STOCHASTIC)
    exact = [some[0] for some in plain.values()]
    # A short run's penalties may be clear at two or three widths only: enough for a ratio, too few for a law.
    enough = sum(float(row["delta"]) > CLEAR * float(row["delta_se"]) for row in exact) >= LEAST_WIDTHS
    gap = fit_form("gap", table_of(exact, name)).constants if enough else None
    by_bits: dict[int, dict[str, float]] = {}
    logs = []
    for bits, (row, *_) in sorted(plain.items()):
        one, average = float(row["delta"]), float(np.mean([float(other["delta"]) for other in noisy[bits]]))
        held = float(coarse[bits][0]["delta"])
        clear = one > CLEAR * float(row["delta_se"])
        by_bits[bits] = {
            "nearest": one,
            "stochastic_delta": average,
            "stochastic_sd": float(np.std([float(other["delta"]) for other in noisy[bits]], ddof=1))
            if len(noisy[bits]) > 1
            else float("nan"),
            "bf16_delta": held,
            "stochastic": average / one if clear else float("nan"),
            "bf16": one / held if clear and held > 0 else float("nan"),
        }
        if clear and average > 0:
            logs.append((np.log(one), np.log(average)))
    # With a common exponent the constants of least squares of the logarithm differ by the mean of its differences.
    ratio = float(np.exp(np.mean([noise - one for one, noise in logs]))) if logs else float("nan")
    eta = gap["eta"]["value"] if gap else None
    base = next(float(row["delta"]) for row in rows if row["held"] == BF16 and int(row["bits"]) == 16)
    first = rows[0]
    return {
        "model": name,
        "N": first["N"],
        "D": first["D"],
        "seeds": min(len(some) for some in noisy.values()),
        "eta_nearest": eta,
        "eta_stochastic": ratio * eta if eta is not None else None,
        "delta": gap["delta"]["value"] if gap else None,
        "eta_ratio": ratio,
        "bf16_base": base,
        "bits": by_bits,
    }


def _verdict(found: Mapping[str, Any], bound: float, below: str, above: str) -> str:
    return below if found["high"] < bound else above if found["low"] > bound else "undecided"


def lines(summary: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    stochastic, bf16 = summary["stochastic"], summary["bf16"]
    eta = stochastic["eta_ratio"]
    said = [f"{len(summary['models'])} checkpoints, {stochastic['seeds']} seeds of stochastic rounding"]
    for bits, one in stochastic["by_bits"].items():
        held = bf16["by_bits"][bits]
        said.append(
            f"  {bits} bits: stochastic / nearest {one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]; "
            f"FP32 / BF16 less one {held['value']:+.4f} [{held['low']:+.4f}, {held['high']:+.4f}]"
        )
    said.append(
        f"  eta, stochastic over nearest: {eta['value']:.3f} [{eta['low']:.3f}, {eta['high']:.3f}]: "
        f"{stochastic['verdict']}"
    )
    base = bf16["base_loss"]
    said.append(
        f"  BF16 alone costs {base['value']:+.2g} [{base['low']:+.2g}, {base['high']:+.2g}] nats; at 2 bits: "
        f"{bf16['verdict']} (the page's law: {bf16['page_says_at_2']:+.2g})"
    )
    return said
