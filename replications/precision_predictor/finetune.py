"""The page's fine-tuning of a causal language model before it is rounded, in a loop that stops and resumes.

The page gives blocks of 512 tokens, 2 epochs, batches of 2 accumulated 4 times, and a learning rate of 5e-5. What it
leaves open is as the Trainer of `transformers`, which it uses, has it by default: AdamW without weight decay, gradients
clipped at norm 1, and a learning rate that falls linearly to zero without warm-up.

Shape letters: S blocks of the text, B blocks of a batch, T positions.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.errors import BitlawError, nearest
from shared.model.transformer import token_losses
from shared.train.state import load, save

OPTIMIZERS = ("adamw", "adamw8bit")
CLIP = 1.0
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; the defaults are the page's. `adamw8bit` is that of bitsandbytes.

    Raises BitlawError for a number that is not above zero and an unknown optimizer.
    """

    epochs: int = 2
    batch: int = 2
    accumulation: int = 4
    learning_rate: float = 5e-5
    optimizer: str = "adamw"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            hint = nearest(self.optimizer, list(OPTIMIZERS))
            raise BitlawError(f"optimizer {self.optimizer!r} is unknown{hint}: use {' or '.join(OPTIMIZERS)}")
        for name in ("epochs", "batch", "accumulation", "learning_rate"):
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                raise BitlawError(f"{name.replace('_', ' ')} must be above zero, not {getattr(self, name)}")


@dataclass(frozen=True)
class Trained:
    """Steps and tokens of all epochs, and the mean training loss of the first and last step, nats/token."""

    steps: int
    tokens: int
    first_loss: float
    last_loss: float
    seconds: float


def schedule(blocks: int, recipe: Recipe) -> list[list[Tensor]]:
    """For each step the blocks of its batches: every epoch in an order of its own, the rest of an epoch as the last
    batch of it."""
    steps = []
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(blocks)
        batches = list(torch.from_numpy(order).split(recipe.batch))
        steps += [batches[i : i + recipe.accumulation] for i in range(0, len(batches), recipe.accumulation)]
    return steps


def finetune(
    model: Any,
    blocks_ST: Tensor,
    recipe: Recipe,
    state: Path | None = None,
    tell: Callable[[int, int], None] = lambda step, steps: None,
    stop: int | None = None,
) -> Trained:
    """Train the model in place on blocks (S, T), each predicting its own tokens after the first; evaluation mode after.

    `state` is written once a minute and taken up by the next call; it goes when all is done. The result does not depend
    on where a run was stopped. `tell` is called with the step after each. `stop` ends after that step, saved.

    Raises BitlawError when the loss is not finite, and when `state` is of another recipe, text or model.
    """
    begun = time.perf_counter()
    steps = schedule(len(blocks_ST), recipe)
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    optimizer = _optimizer(list(parameters.values()), recipe)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
    about = {**asdict(recipe), "blocks": list(blocks_ST.shape), "first": blocks_ST[0, :8].tolist()}
    done, losses = 0, [math.nan, math.nan]
    if state and state.exists():
        done, losses = _resume(state, about, parameters, optimizer)
        rate.last_epoch = done
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 - done / len(steps))
    saved = time.perf_counter()
    model.train()
    for step in range(done, len(steps)):
        # Dropout is drawn anew from the step's own seed, so that a resumed run draws what an unbroken one does.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed * 1_000_003 + step)
            total = 0.0
            for rows in steps[step]:
                ids_BT = blocks_ST[rows].to(device)
                loss = token_losses(model(input_ids=ids_BT, use_cache=False).logits[:, :-1], ids_BT[:, 1:]).mean()
                (loss / len(steps[step])).backward()
                total += loss.item() / len(steps[step])
        if not math.isfinite(total):
            raise BitlawError(f"fine-tuning: the loss of step {step + 1} is not finite: give a lower --learning-rate")
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate.step()
        losses = [total if step == 0 else losses[0], total]
        tell(step + 1, len(steps))
        if state and (step + 1 == stop or time.perf_counter() - saved > SAVE_SECONDS):
            _keep(state, about, step + 1, losses, parameters, optimizer)
            saved = time.perf_counter()
        if step + 1 == stop:
            break
    else:
        if state:
            state.unlink(missing_ok=True)
    model.eval()
    tokens = recipe.epochs * blocks_ST.numel()
    return Trained(len(steps), tokens, losses[0], losses[1], time.perf_counter() - begun)


def _optimizer(parameters: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BitlawError(f"optimizer adamw8bit needs bitsandbytes, which cannot be imported ({error})") from error
    made: torch.optim.Optimizer = AdamW8bit(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    return made


def _keep(
    path: Path,
    about: dict[str, Any],
    step: int,
    losses: list[float],
    parameters: dict[str, Any],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{name}": parameter for name, parameter in parameters.items()}
    numbers: dict[str, float] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in _flat(values).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value.clone()  # bitsandbytes shares some between parameters
            else:
                numbers[f"{index}.{key}"] = value
    save(path, tensors, {"about": about, "step": step, "losses": losses, "numbers": numbers})


def _resume(
    path: Path, about: dict[str, Any], parameters: dict[str, Any], optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    tensors, notes = load(path)
    for key, value in about.items():
        if notes.get("about", {}).get(key) != value:
            raise BitlawError(
                f"{path}: is of a fine-tuning with another {key.replace('_', ' ')} ({notes.get('about', {}).get(key)}, "
                f"not {value}): choose another --out"
            )
    missing = [name for name in parameters if f"model.{name}" not in tensors]
    if missing:
        raise BitlawError(f"{path}: is of another model (it lacks {missing[0]}): choose another --out")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    found: dict[int, dict[str, Any]] = {}
    prefix = "optimizer."
    parts: dict[str, Any] = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    for name, value in (parts | notes["numbers"]).items():
        index, path_of = name.split(".", 1)
        *outer, key = path_of.split("/")
        place = found.setdefault(int(index), {})
        for part in outer:
            place = place.setdefault(part, {})
        place[key] = value
    optimizer.load_state_dict({"state": found, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(notes["step"]), list(notes["losses"])


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """bitsandbytes keeps its quantized moments in a dictionary of their own."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, dict) else None
        found |= {key: value} if inner is None else {f"{key}/{name}": one for name, one in inner.items()}
    return found
