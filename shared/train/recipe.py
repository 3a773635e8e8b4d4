"""What a training run is made of, and the learning rate at each of its steps."""

import math
from dataclasses import dataclass

from shared.errors import BitlawError
from shared.model import Shape
from shared.quantize.sparsity import Sparsity
from shared.quantize.training import Precision

UNQUANTIZED, DENSE = Precision(), Sparsity()
# How the learning rate falls to zero: "sqrt" over the last part of the steps (`cooldown`), "cosine" over all of them
# after the warm-up, so that a cosine run is a branch that leaves its trunk there.
DECAYS = ("sqrt", "cosine")


@dataclass(frozen=True)
class Recipe:
    """Everything about a trunk that changes its numbers, but for the corpus."""

    shape: Shape
    seed: int
    learning_rate: float
    batch_tokens: int = 4096
    warmup_steps: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0
    cooldown: float = 0.2
    decay: str = "sqrt"
    accumulate: int = 1
    compute: str = "bf16"
    threads: int = 1
    compile: bool = True
    precision: Precision = UNQUANTIZED
    sparsity: Sparsity = DENSE

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.batch_tokens % (self.shape.context * self.accumulate):
            raise BitlawError(
                f"batch_tokens {self.batch_tokens} must be a multiple of context x accumulate "
                f"({self.shape.context} x {self.accumulate})"
            )
        if self.decay not in DECAYS:
            raise BitlawError(f"decay is {self.decay!r}, it must be one of {', '.join(DECAYS)}")
        if self.compute not in ("bf16", "fp32"):
            raise BitlawError(f"compute is {self.compute!r}, it must be 'bf16' or 'fp32'")
        if not 0 < self.learning_rate < 1 or not 0 < self.cooldown < 1:
            raise BitlawError(
                f"learning_rate ({self.learning_rate}) and cooldown ({self.cooldown}) must lie between 0 and 1"
            )

    @property
    def batch_sequences(self) -> int:
        return self.batch_tokens // self.shape.context

    def steps(self, tokens: int) -> int:
        """Steps to a horizon; raises BitlawError when it is no whole number of batches, at least two."""
        if tokens % self.batch_tokens or tokens < 2 * self.batch_tokens:
            raise BitlawError(
                f"a horizon of {tokens} tokens is no multiple of the batch ({self.batch_tokens}), two at least"
            )
        return tokens // self.batch_tokens

    def branch_step(self, tokens: int) -> int:
        """The trunk's step at which the cooldown to this horizon begins."""
        steps = self.steps(tokens)
        if self.decay == "cosine":
            return min(self.warmup_steps, steps - 1)
        return steps - max(1, round(self.cooldown * steps))


def trunk_fraction(recipe: Recipe, step: int) -> float:
    """Learning rate of the trunk at a step (from 0), as a fraction of the peak: linear warm-up, then constant."""
    return min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0


def branch_fraction(recipe: Recipe, tokens: int, step: int) -> float:
    """Learning rate of a branch that falls to zero: the trunk's times 1 - sqrt(progress) (Haegele et al.,
    arXiv 2405.18392) or times half a cosine (Loshchilov and Hutter, arXiv 1608.03983)."""
    begin, end = recipe.branch_step(tokens), recipe.steps(tokens)
    progress = (step - begin) / (end - begin)
    fall = 0.5 * (1.0 + math.cos(math.pi * progress)) if recipe.decay == "cosine" else 1.0 - math.sqrt(progress)
    return trunk_fraction(recipe, step) * fall
