"""The page's task for an engineer: 4 or 3 bits under a bound on the 95th percentile of a token's latency.

Measured here are latency for each generated token, weights in memory and loss on a short dialog, at FP32, BF16, 8 and
4 bits by the kernels that torch has on this machine; 3 bits have none and are simulated: a loss and no speed. Latencies
of another runtime come from a file.

The loss of 8, 4 and 3 bits is that of the rounded weights with FP32 activations; the kernels that are timed compute in
BF16, whose own loss is the row of BF16. Intervals of a p95 take tokens as independent. Load on a shared machine comes
in bursts that last for many tokens, so that they are too narrow: a row has no times of its rounds, which would have to
be resampled instead.

Shape letters: T positions.
"""

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, TypeAdapter, ValidationError, model_validator
from scipy.stats import binom
from torch import Tensor

from replications.precision_predictor.kernels import QUANTIZERS, refuses, replace_layers
from replications.precision_predictor.measure import layers, rounded
from replications.precision_predictor.subject import Subject
from shared.errors import BitlawError
from shared.model.transformer import token_losses
from shared.ptq.layers import weight_OI
from shared.ptq.text import token_ids
from shared.quantize.quantizer import named_quantizer

COLUMNS = (
    "model", "precision", "bits", "kernel", "runtime", "threads", "timed", "p50_ms", "p95_ms", "p95_low_ms",
    "p95_high_ms", "memory_mib", "tokens", "loss", "loss_se", "delta", "delta_se",
)  # fmt: skip
KEY = ("model", "precision")
PRECISIONS = {"FP32": 32, "BF16": 16, "INT8": 8, "INT4": 4, "INT3": 3}
CHUNK = 16  # tokens whose mean loss counts as one, because neighbouring tokens are alike
PROMPT, WARM = 8, 8
Z = 1.959964
# Written for this test; the page names no dialog.
DIALOG = """User: Good morning. I would like to send a report to my manager before noon. Can you help me?
Assistant: Of course. Please tell me what the report is about and how long it should be.
User: It is about the state of our service. Last week two regions were not available for an hour.
Assistant: Then I would begin with a short summary: what happened, when, and which customers were affected.
User: The request failed because a policy did not allow access to the resource. We changed the policy.
Assistant: Good. After the summary, list the steps that you have taken, and say how the team will prevent it.
User: We will add a test for each policy, and a second person will review every change.
Assistant: That is clear. End with the date of the next update and the name of the person to contact.
User: Thank you. Can you write the first paragraph?
Assistant: On Monday, requests to two regions failed for one hour because a policy denied access to a resource. The
policy was changed, and the service is available again.
"""


class Latency(BaseModel):
    """One precision on another runtime. `memory_mib` of the weights, where known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Literal["FP32", "BF16", "INT8", "INT4", "INT3"]
    p50_ms: PositiveFloat
    p95_ms: PositiveFloat
    runtime: str = ""
    memory_mib: PositiveFloat | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "Latency":
        if self.p95_ms < self.p50_ms:
            raise ValueError("p95_ms is below p50_ms")
        return self


def read_latencies(path: Path) -> list[Latency]:
    """A JSON list of objects, or a CSV table, with precision, p50_ms, p95_ms, and optionally runtime and memory_mib.

    Raises BitlawError naming the entry and the field that is wrong, and for a precision that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entries: Any = (
            [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(text.splitlines())]
            if path.suffix.lower() == ".csv"
            else json.loads(text)
        )
        found = TypeAdapter(list[Latency]).validate_python(entries)
    except OSError as error:
        raise BitlawError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        fault = error.errors()[0]
        place = [f"entry {fault['loc'][0] + 1}" if isinstance(fault["loc"][0], int) else ""] if fault["loc"] else []
        where = ", ".join([*place, *(str(part) for part in fault["loc"][1:])]) or "the file"
        raise BitlawError(f"{path}: {where}: {fault['msg'].lower()}; mend this entry") from error
    except (ValueError, csv.Error) as error:
        raise BitlawError(f"{path}: is neither JSON nor CSV ({error})") from error
    names = [one.precision for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        raise BitlawError(
            f"{path}: {twice[0] + ' stands twice; keep one' if twice else 'holds no latency; add entries'}"
        )
    return found


def versions(subject: Subject) -> dict[str, tuple[Any, str]]:
    """The model at each precision that runs here, with the kernel's name; for others None and the reason."""
    found: dict[str, tuple[Any, str]] = {"FP32": (subject.model, "torch FP32")}
    found["BF16"] = (deepcopy(subject.model).to(torch.bfloat16), "torch BF16")
    for name, bits in PRECISIONS.items():
        if bits < 16:
            reason = refuses(subject.model, bits)
            made = None if reason else replace_layers(deepcopy(subject.model), bits)
            found[name] = (made, reason or f"torch weight-only int{bits}")
    return found


@torch.no_grad()
def token_milliseconds(model: Any, prompt_1T: Tensor, count: int) -> list[float]:
    """Times of `count` greedily generated tokens after the prompt, each one step with the cache of keys and values."""
    made = model(input_ids=prompt_1T, use_cache=True)
    times = []
    for _ in range(count):
        token_11 = made.logits[:, -1:].argmax(-1)
        begun = time.perf_counter()
        made = model(input_ids=token_11, past_key_values=made.past_key_values, use_cache=True)
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def percentile(times: Sequence[float], share: float) -> tuple[float, float, float]:
    """The sample's percentile with a 95 % interval from order statistics (binomial ranks); tokens are taken as
    independent, which under load that comes in bursts is too narrow."""
    ordered = np.sort(np.asarray(times))
    low, high = (int(rank) for rank in binom.ppf([0.025, 0.975], len(ordered), share))
    return (
        float(np.quantile(ordered, share)),
        float(ordered[max(low - 1, 0)]),
        float(ordered[min(high, len(ordered) - 1)]),
    )


def measure(
    subject: Subject, dialog: str, tokens: int, rounds: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of `COLUMNS`. The precisions take turns in each of the `rounds`, so that what else the machine does falls on
    all of them.

    Raises BitlawError for a dialog of under two chunks, and for more tokens than the model has positions.
    """
    ids = token_ids(dialog, subject.tokenizer, add_special_tokens=False)
    if len(ids) <= 2 * CHUNK:
        raise BitlawError(f"the dialog has {len(ids)} tokens, {2 * CHUNK + 1} are the least: give a longer one")
    if PROMPT + tokens > subject.context:
        raise BitlawError(f"--tokens {tokens}: {subject.name} has {subject.context} positions, {PROMPT} for the prompt")
    device = next(subject.model.parameters()).device
    prompt_1T = torch.tensor([ids[:PROMPT]], device=device)
    running = versions(subject)
    times: dict[str, list[float]] = {name: [] for name, (model, _) in running.items() if model is not None}
    for name in times:
        token_milliseconds(running[name][0], prompt_1T, min(WARM, tokens))
    for _ in range(rounds):
        for name in times:
            times[name] += token_milliseconds(running[name][0], prompt_1T, tokens)
            tell(f"{name}: latency")
    base_T = _losses(subject.model, ids, subject.context)
    rows = []
    for name, (model, kernel) in running.items():
        bits = PRECISIONS[name]
        if bits in QUANTIZERS:
            with rounded(subject.model, named_quantizer(QUANTIZERS[bits])) as made:
                losses_T, width = _losses(subject.model, ids, subject.context), made.bits_per_weight
        else:
            losses_T, width = _losses(model, ids, subject.context), float(bits)
        row = {"model": subject.name, "precision": name, "bits": bits, "threads": torch.get_num_threads(),
               "kernel": kernel if model is not None else f"simulated: {kernel}",
               "runtime": f"torch {torch.__version__}",
               "memory_mib": _mib(subject.model, width), "tokens": len(losses_T), "timed": 0}  # fmt: skip
        if name in times:
            p95, low, high = percentile(times[name], 0.95)
            row |= {"timed": len(times[name]), "p50_ms": float(np.median(times[name])), "p95_ms": p95,
                    "p95_low_ms": low, "p95_high_ms": high}  # fmt: skip
        rows.append(row | _estimates(losses_T, base_T))
        tell(f"{name}: loss")
    return rows


@torch.no_grad()
def _losses(model: Any, ids: Sequence[int], context: int) -> Tensor:
    """(T,) of every token after the first of each window."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(ids) - 1, context):
        window_1T = torch.tensor([ids[start : start + context + 1]], device=device)
        parts.append(token_losses(model(input_ids=window_1T[:, :-1]).logits, window_1T[:, 1:])[0].double().cpu())
    return torch.cat(parts)


def _estimates(losses_T: Tensor, base_T: Tensor) -> dict[str, float]:
    """Means over tokens; standard errors over chunks of neighbouring ones, of delta paired."""

    def se(values_T: Tensor) -> float:
        chunks = values_T[: len(values_T) // CHUNK * CHUNK].reshape(-1, CHUNK).mean(-1)
        return float(chunks.std() / np.sqrt(len(chunks)))

    delta_T = losses_T - base_T
    return {
        "loss": float(losses_T.mean()),
        "loss_se": se(losses_T),
        "delta": float(delta_T.mean()),
        "delta_se": se(delta_T),
    }


def _mib(model: Any, bits_per_weight: float) -> float:
    """Weights: the blocks' matrices at this width, everything else in BF16, or in FP32 beside FP32 matrices."""
    inside = sum(weight_OI(layer).numel() for layer in layers(model))
    rest = sum(parameter.numel() for parameter in model.parameters()) - inside
    return (inside * bits_per_weight + rest * (32 if bits_per_weight == 32 else 16)) / 8 / 2**20


def decide(rows: Sequence[Mapping[str, Any]], target_ms: float, given: Sequence[Latency] = ()) -> dict[str, Any]:
    """{"bits": 4, 3 or None, "why", "options"} for one model's rows. Latencies of a file take the place of measured.

    A width whose p95 is unknown promises nothing. Where both widths keep the bound, 4 bits are taken unless 3 cost no
    loss that can be seen (the 95 % interval of delta between them holds zero), because then only memory differs.

    Raises BitlawError when the rows lack 4 or 3 bits.
    """
    other = {one.precision: one for one in given}
    options: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["precision"] not in ("INT4", "INT3"):
            continue
        one = other.get(row["precision"])
        p95 = one.p95_ms if one else row.get("p95_ms")
        options[int(row["bits"])] = {
            "p95_ms": p95,
            "from": (one.runtime or "the file") if one else row["kernel"],
            "keeps_bound": None if p95 is None else p95 <= target_ms,
            "edge": bool(not one and p95 is not None and row["p95_low_ms"] <= target_ms <= row["p95_high_ms"]),
            "memory_mib": one.memory_mib if one and one.memory_mib else row["memory_mib"],
            "delta": row["delta"],
            "delta_se": row["delta_se"],
        }
    if set(options) != {3, 4}:
        raise BitlawError("the decision needs rows at 4 and at 3 bits: measure the model again")
    four, three = options[4], options[3]
    cost = three["delta"] - four["delta"]
    half = Z * float(np.hypot(three["delta_se"], four["delta_se"]))  # as if independent: rather too wide
    saved = four["memory_mib"] - three["memory_mib"]
    trade = f"3 bits cost {cost:+.3f} +- {half:.3f} nats per token of the dialog and save {saved:.2f} MiB"
    bits, why = _rule(four, three, target_ms, cost, half, trade)
    if any(option["edge"] for option in options.values()):
        why += "; the interval of a p95 holds the bound: measure more tokens"
    return {"bits": bits, "why": why, "target_ms": target_ms, "options": {str(b): one for b, one in options.items()},
            "cost_of_3": {"value": cost, "low": cost - half, "high": cost + half}}  # fmt: skip


def _rule(
    four: Mapping[str, Any], three: Mapping[str, Any], target: float, cost: float, half: float, trade: str
) -> tuple[int | None, str]:
    def speed(bits: int, option: Mapping[str, Any]) -> str:
        if option["p95_ms"] is None:
            return (
                f"{bits} bits have no measured speed ({option['from']}; another runtime's can be given by --latencies)"
            )
        kept = "keep" if option["keeps_bound"] else "miss"
        return (
            f"{bits} bits {kept} the bound of {target:g} ms with a p95 of {option['p95_ms']:.3g} ms ({option['from']})"
        )

    both = f"{speed(4, four)}; {speed(3, three)}; {trade}"
    if four["keeps_bound"] and three["keeps_bound"]:
        return (3, f"{both}: no loss that can be seen") if cost - half <= 0 else (4, f"{both}: both are fast enough")
    if four["keeps_bound"]:
        return 4, both
    if three["keeps_bound"]:
        return 3, both
    return None, f"{both}: neither width is known to keep the bound"


def lines(rows: Sequence[Mapping[str, Any]], decision: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    said = [
        f"{rows[0]['model']}: {rows[0]['tokens']} tokens of dialog, {rows[0]['threads']} threads, {rows[0]['runtime']}"
    ]
    for row in rows:
        speed = (
            f"p50 {row['p50_ms']:.3g} ms, p95 {row['p95_ms']:.3g} "
            f"[{row['p95_low_ms']:.3g}, {row['p95_high_ms']:.3g}] ms over {row['timed']} tokens"
            if row.get("p95_ms") is not None
            else "no speed"
        )
        said.append(
            f"  {row['precision']:<5} {row['memory_mib']:8.2f} MiB, "
            f"delta {row['delta']:+.4f} +- {Z * row['delta_se']:.4f}, {speed} ({row['kernel']})"
        )
    chosen = f"{decision['bits']} bits" if decision["bits"] else "neither"
    return [*said, f"under {decision['target_ms']:g} ms: {chosen}; {decision['why']}"]
