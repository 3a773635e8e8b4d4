"""The page's test for researchers: does the exponent of the gap differ between fine-tuning on 10k tokens and on all?

It asks for |delta_low - delta_full| > 0.2 "to claim significance", and whether delta comes closer to 1. Here both parts
are fine-tuned from the same model with several seeds, each with an order and a small part of its own, and the mean
difference over seeds has Student's interval: wholly beyond 0.2 on either side is a difference, wholly within is none.
All are fitted to the same widths, because the exponent depends on them: those whose penalty is clear of zero in each.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replications.precision_predictor.finetune import Recipe, finetune, schedule
from replications.precision_predictor.forms import LEAST_WIDTHS, as_the_page, fit_form, widths_of
from replications.precision_predictor.measure import BITS, estimates, losses_of, rounded_losses
from replications.precision_predictor.predictor import student_interval
from shared.errors import BitlawError
from shared.evaluate.losses import mean
from shared.ptq.text import Windows

COLUMNS = ("model", "arm", "seed", "tokens", "bits", "base_loss", "loss", "loss_se", "delta", "delta_se")
KEY = ("model", "arm", "seed", "bits")
LOW, FULL = "low", "full"
BOUND = 0.2
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """Blocks (S, T) to fine-tune on, of one part and seed."""

    name: str
    seed: int
    blocks_ST: Tensor


def arms(blocks_ST: Tensor, low_tokens: int, seeds: int) -> list[Arm]:
    """For each seed the small part, drawn from all blocks, and all of them.

    Raises BitlawError when the small part is not smaller.
    """
    count = max(1, round(low_tokens / blocks_ST.shape[1]))
    if count >= len(blocks_ST):
        raise BitlawError(
            f"--low-tokens {low_tokens}: the text has {blocks_ST.numel()} tokens to train on: give fewer, or more text"
        )
    found = []
    for seed in range(seeds):
        some = np.random.default_rng(seed).choice(len(blocks_ST), count, replace=False)
        found += [Arm(LOW, seed, blocks_ST[torch.from_numpy(np.sort(some))]), Arm(FULL, seed, blocks_ST)]
    return found


def steps(arm: Arm, recipe: Recipe) -> range:
    """One for each step and each width, for progress."""
    return range(len(schedule(len(arm.blocks_ST), recipe)) + len(BITS))


def measure(model: Any, arm: Arm, recipe: Recipe, text: Windows, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Fine-tune a copy of the model on the arm and round it to each width; rows of `COLUMNS` without its name."""
    name = f"{arm.name}, seed {arm.seed}"
    tuned = deepcopy(model)
    finetune(tuned, arm.blocks_ST, replace(recipe, seed=arm.seed), tell=lambda step, all_steps: tell(name))
    base_S = losses_of(tuned, text.evaluation)
    rows = []
    for bits in BITS:
        found = estimates(rounded_losses(tuned, bits, text.evaluation), base_S)
        rows.append({"arm": arm.name, "seed": arm.seed, "tokens": arm.blocks_ST.numel(), "bits": bits,
                     "base_loss": mean(base_S).value, **found})  # fmt: skip
        tell(name)
    return rows


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """{"models": [...]}: for each model the exponents of both parts, their difference over seeds, and the verdict, by
    the fit of the logarithm (`log`, to the widths of `bits_used`) and by the page's curve_fit (`page`, to all widths).

    Raises BitlawError without rows, for a model with fewer than two seeds that have both parts, and with fewer than
    four widths that are clear of zero in all of these.
    """
    if not rows:
        raise BitlawError("no row of the low-data test is there: run `bitlaw low-data` first")
    return {"bound": BOUND, "models": [_model(name, rows) for name in sorted({str(row["model"]) for row in rows})]}


def _model(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    grouped: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["model"] == name:
            grouped.setdefault((str(row["arm"]), int(row["seed"])), []).append(row)
    seeds = sorted(seed for arm, seed in grouped if arm == LOW and (FULL, seed) in grouped)
    if len(seeds) < 2:
        raise BitlawError(f"{name}: the low-data test needs both parts of two seeds; {len(seeds)} are there")
    tables = {
        (arm, seed): widths_of(grouped[arm, seed], f"{name}, {arm}, seed {seed}")
        for arm in (LOW, FULL)
        for seed in seeds
    }
    used = sorted(set.intersection(*(set(table["bits"][table["clear"]]) for table in tables.values())))
    if len(used) < LEAST_WIDTHS:
        raise BitlawError(
            f"{name}: {len(used)} bit widths have a penalty clear of zero in both parts of every seed, {LEAST_WIDTHS} "
            "are the least: measure more windows"
        )
    exponents: dict[str, dict[str, list[float]]] = {"log": {LOW: [], FULL: []}, "page": {LOW: [], FULL: []}}
    about: dict[str, Any] = {}
    for arm in (LOW, FULL):
        for seed in seeds:
            some = grouped[arm, seed]
            table = tables[arm, seed]
            table = table.assign(clear=table["bits"].isin(used))
            value = fit_form("gap", table).constants["delta"]["value"]
            assert value is not None
            exponents["log"][arm].append(value)
            page = as_the_page(table, float(some[0]["base_loss"]))
            exponents["page"][arm].append(page["delta"]["value"] if "delta" in page else float("nan"))
        mine = [grouped[arm, seed] for seed in seeds]
        about[arm] = {
            "tokens": int(mine[0][0]["tokens"]),
            "base_loss": student_interval([float(some[0]["base_loss"]) for some in mine]),
            "delta_by_bits": {
                f"{row['bits']}": student_interval([float(some[i]["delta"]) for some in mine])
                for i, row in enumerate(mine[0])
            },
        }
    judged = {way: _judged(both) for way, both in exponents.items()}
    return {"model": name, "seeds": len(seeds), "bits_used": used, **about, **judged}


def _judged(both: dict[str, list[float]]) -> dict[str, Any]:
    low, full = (np.array(both[arm]) for arm in (LOW, FULL))
    found = student_interval((low - full).tolist())
    nearer = student_interval((np.abs(low - 1) - np.abs(full - 1)).tolist())
    if not np.isfinite([found["low"], found["high"]]).all():
        verdict = "undecided"
    elif found["low"] > BOUND or found["high"] < -BOUND:
        verdict = "different"
    else:
        verdict = "not different" if found["low"] >= -BOUND and found["high"] <= BOUND else "undecided"
    return {
        "low": student_interval(both[LOW]),
        "full": student_interval(both[FULL]),
        "difference": found,
        "verdict": verdict,
        "closer_to_1": {
            **nearer,
            "verdict": "yes" if nearer["high"] < 0 else "no" if nearer["low"] > 0 else "undecided",
        },
    }


def lines(summary: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    said = []
    for model in summary["models"]:
        sizes = {arm: f"{model[arm]['tokens']:,}" for arm in (LOW, FULL)}
        used = ", ".join(f"{bits:g}" for bits in model["bits_used"])
        said.append(
            f"{model['model']}: {sizes[LOW]} tokens against {sizes[FULL]}, {model['seeds']} seeds, fitted to the "
            f"widths that are clear of zero in all: {used} bits"
        )
        for way, what in (("log", "of the logarithm"), ("page", "the page's curve_fit")):
            one = model[way]
            ends = {key: f"{one[key]['value']:.3f} [{one[key]['low']:.3f}, {one[key]['high']:.3f}]"
                    for key in ("low", "full", "difference")}  # fmt: skip
            said.append(
                f"  {what}: delta {ends['low']} low, {ends['full']} full, difference {ends['difference']}: "
                f"{one['verdict']} by the bound of {summary['bound']}; closer to 1: {one['closer_to_1']['verdict']}"
            )
    return said
