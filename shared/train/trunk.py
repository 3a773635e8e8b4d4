"""The training loop: a trunk, and from it a cooldown branch to each horizon.

The trunk stops at `branch_step(D)` of each horizon, trains the branch to D on a copy, hands the cooled checkpoint
out, goes on, and hands its own checkpoint out at D. Its state is saved at every branch point, now and then in
between, and when it is told to stop; a run that was killed goes on from there with the same numbers.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.model import Decoder, Shape, kernels
from shared.model.transformer import mean_loss
from shared.quantize.sparsity import Sparsity, attach_masks, prune
from shared.quantize.training import Precision, attach, stochastic
from shared.train.batches import Batches
from shared.train.distributed import World
from shared.train.recipe import Recipe, branch_fraction, trunk_fraction
from shared.train.state import DamagedFileError, load, save

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# A loss above that of a uniform guess, this long after the start, is divergence too.
PATIENCE_STEPS = 100
ALONE = World()


class StoppedError(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model at a horizon, as handed out by `run`."""

    tokens: int
    cooled: bool
    diverged: bool
    lr_fraction: float
    train_loss: float
    seconds: float
    weights: dict[str, Tensor]


def low_precision(shape: Shape, precision: Precision, sparsity: Sparsity) -> Decoder:
    """A model with the casts and masks of a recipe: what is trained, and what is evaluated afterwards."""
    model = Decoder(shape)
    attach(model, precision)
    attach_masks(model, sparsity, precision.quantizer("weights"))
    return model


class Trainer:
    """Model, optimizer and compiled step of one trunk; `step` is the number of steps taken."""

    def __init__(self, recipe: Recipe, batches: Batches, device: torch.device, world: World = ALONE) -> None:
        self.recipe, self.batches, self.device, self.world = recipe, batches, device, world
        self.stopping = False
        self.model = low_precision(recipe.shape, recipe.precision, recipe.sparsity).to(device)
        # `compile` says that there is a C++ compiler, for torch's code and for ours.
        self.model.fast = recipe.compile and device.type == "cpu" and kernels.usable()
        self.model.initialise(recipe.seed)
        # A learned clip is a factor on a scale: decaying it would clip for no reason.
        clips = [p for name, p in self.model.named_parameters() if ".casts." in name]
        others = [p for name, p in self.model.named_parameters() if ".casts." not in name]
        groups = [{"params": others}] + ([{"params": clips, "weight_decay": 0.0}] if clips else [])
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.epsilon,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.loss, self.diverged, self.seconds = 0, math.nan, False, 0.0
        self.random = stochastic(recipe.precision)
        dtype = DTYPES[recipe.compute]

        def batch_loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
            return mean_loss(self.model(tokens_BT, dtype), targets_BT, self.model.fast)

        # On a CPU the generated code's own launcher is C++: Python's takes 2 % of a step.
        options: dict[str, str | int | bool | Callable[..., object]] = {"cpp_wrapper": device.type == "cpu"}
        compiled = torch.compile(batch_loss, dynamic=False, options=options) if recipe.compile else batch_loss
        self.batch_loss = compiled

    def advance(self, fraction: float, stop: bool = False) -> float:
        """One step at this fraction of the peak learning rate; returns the batch's loss before it.

        `stop`: this process was told to stop; `stopping` says afterwards whether any of the run's processes was.
        """
        begun = time.perf_counter()
        if self.random:
            # Stochastic rounding draws from torch's generator: the same at this step after any resume.
            torch.manual_seed(self.recipe.seed * 2**32 + self.step)
        tokens_BT, targets_BT = self.batches(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * fraction
        parts = self.recipe.accumulate
        total = 0.0
        for part_BT, goals_BT in zip(tokens_BT.chunk(parts), targets_BT.chunk(parts), strict=True):
            mine_BT, my_goals_BT = self.world.part(part_BT), self.world.part(goals_BT)
            loss = self.batch_loss(mine_BT.to(self.device), my_goals_BT.to(self.device)) / parts
            loss.backward()
            total += loss.item()
        self.world.average(self.model.parameters())
        total, self.stopping = self.world.mean_and_any(total, stop, self.device)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not norm <= self.recipe.clip - 2e-6:  # below, torch multiplies by one: clip / (norm + 1e-6), at most 1
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip, torch.tensor(norm))
        self.loss = total
        late = self.step >= self.recipe.warmup_steps + PATIENCE_STEPS
        lost = late and self.loss > math.log(self.recipe.shape.vocabulary)
        if lost or not math.isfinite(self.loss) or not math.isfinite(norm):
            self.diverged = True
        else:
            self.optimizer.step()
            prune(self.model, self.recipe.sparsity, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.perf_counter() - begun
        return self.loss

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer moments, by name."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return {name: value.detach().clone() for name, value in tensors.items()}

    def notes(self) -> dict[str, float | int | bool | None]:
        loss = self.loss if math.isfinite(self.loss) else None
        return {"step": self.step, "loss": loss, "diverged": self.diverged, "seconds": self.seconds}

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, float | int | bool | None]) -> None:
        self.model.load_state_dict({n[6:]: v for n, v in tensors.items() if n.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            state = {
                key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}.{name}" in tensors
            }
            self.optimizer.state[parameter] = {key: value.to(self.device).clone() for key, value in state.items()}
        self.step = int(notes["step"] or 0)
        self.loss = math.nan if notes["loss"] is None else float(notes["loss"])
        self.diverged, self.seconds = bool(notes["diverged"]), float(notes["seconds"] or 0.0)


def checkpoint(trainer: Trainer, tokens: int, cooled: bool, fraction: float) -> Checkpoint:
    return Checkpoint(tokens, cooled, trainer.diverged, fraction, trainer.loss, trainer.seconds, trainer.weights())


def run(
    recipe: Recipe,
    batches: Batches,
    horizons: dict[int, tuple[bool, bool]],
    folder: Path,
    device: torch.device,
    world: World = ALONE,
    *,
    save_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    tick: Callable[[int], None] = lambda steps: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Iterator[Checkpoint]:
    """Train a trunk and yield its checkpoints, in the order in which they come.

    `horizons`: tokens -> (trunk checkpoint wanted, cooled checkpoint wanted); those not wanted are not trained for.
    `folder` keeps `trunk.safetensors` and `branch.safetensors` for resuming; damaged ones are named through `warn`
    and the work is done again from the start of what they held. `tick` is told each step taken (for progress).
    Raises StoppedError, with the state saved, once `stop()` is true.
    """
    if recipe.compile and device.type == "cpu":
        need_compiler()
    trainer = Trainer(recipe, batches, device, world)
    trunk_file, branch_file = folder / "trunk.safetensors", folder / "branch.safetensors"
    if world.first:
        for path in (trunk_file, branch_file):
            drop_damaged(path, warn)
    world.told(None)  # the others look at the files after the first has
    if trunk_file.exists():
        trainer.restore(*load(trunk_file))
    todo = sorted(
        [(recipe.branch_step(tokens), 0, tokens) for tokens, (_, cooled) in horizons.items() if cooled]
        + [(recipe.steps(tokens), 1, tokens) for tokens, (trunk, _) in horizons.items() if trunk]
    )
    if todo and todo[0][0] < trainer.step:
        # A horizon was asked for later than the saved state: only the beginning can serve it.
        warn(f"{trunk_file}: is past a horizon that is wanted now, so that this trunk is trained again from its start")
        trainer = Trainer(recipe, batches, device, world)

    def until(end: int, fraction: Callable[[int], float], path: Path, extra: dict[str, int]) -> None:
        saved = time.monotonic()
        while trainer.step < end and not trainer.diverged:
            trainer.advance(fraction(trainer.step), stop())
            tick(trainer.step)
            # Alone, a stop that came during the step counts at once.
            stopping = trainer.stopping or (world.size == 1 and stop())
            if world.first and (stopping or time.monotonic() - saved > save_seconds):
                save(path, trainer.tensors(), trainer.notes() | extra)
                saved = time.monotonic()
            if stopping:
                raise StoppedError

    for step, kind, tokens in todo:
        until(step, partial(trunk_fraction, recipe), trunk_file, {})
        if world.first:
            save(trunk_file, trainer.tensors(), trainer.notes())
        if kind == 1:
            yield checkpoint(trainer, tokens, cooled=False, fraction=trunk_fraction(recipe, step - 1))
            continue
        kept = trainer.tensors(), trainer.notes()
        if world.told(branch_file.exists()):
            tensors, notes = load(branch_file)
            if notes["tokens"] == tokens:
                trainer.restore(tensors, notes)
        end = recipe.steps(tokens)
        until(end, partial(branch_fraction, recipe, tokens), branch_file, {"tokens": tokens})
        yield checkpoint(trainer, tokens, cooled=True, fraction=0.0)
        if world.first:
            branch_file.unlink(missing_ok=True)
        trainer.restore(*kept)


def drop_damaged(path: Path, warn: Callable[[str], None]) -> None:
    """Remove a file of ours that is not whole, and say so."""
    if path.exists():
        try:
            load(path)
        except DamagedFileError as error:
            warn(f"{error} (done: it was removed and its work starts again)")
            path.unlink()


def need_compiler() -> None:
    """torch.compile on CPU calls the C++ compiler at run time."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise BitlawError("this profile compiles its step and needs a C++ compiler: install g++ (or clang)") from error
