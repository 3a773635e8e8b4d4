"""Gradual magnitude pruning of the blocks' matrices, unstructured or 2:4, while a model trains.

Shape letters: O outputs, I inputs of a matrix, G groups of four in a row.

The share of zeros rises from 0 along a cubic (Zhu and Gupta, arXiv 1710.01878) between two steps that are the same for
every horizon, so that one trunk serves all of them; from then on the mask stays. A pruned weight stays zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.errors import BitlawError, nearest
from shared.model import Decoder
from shared.quantize.quantizer import Quantizer

PATTERNS = ("unstructured", "2:4")
# Steps between two prunings on the way.
EVERY = 10


@dataclass(frozen=True)
class Sparsity:
    """Share of zeros in each block matrix and how it is reached; 0 leaves the model alone."""

    fraction: float = 0.0
    pattern: str = "unstructured"
    begin_step: int = 50
    end_step: int = 500

    def __post_init__(self) -> None:
        """Raises BitlawError for a share outside [0, 1), an unknown pattern, or 2:4 with another share than 1/2."""
        if self.pattern not in PATTERNS:
            raise BitlawError(
                f"sparsity_pattern {self.pattern!r} is unknown{nearest(self.pattern, list(PATTERNS))}: "
                f"use {' or '.join(PATTERNS)}"
            )
        if not 0 <= self.fraction < 1:
            raise BitlawError(f"sparsity is {self.fraction}, it must lie in [0, 1)")
        if self.pattern == "2:4" and self.fraction != 0.5:
            raise BitlawError(
                f"sparsity_pattern 2:4 keeps half of the weights: set sparsity to 0.5, not {self.fraction}"
            )
        if self.fraction and not 0 <= self.begin_step < self.end_step:
            raise BitlawError(
                f"sparsity_begin ({self.begin_step}) must come before sparsity_end ({self.end_step}), in steps"
            )

    def share(self, step: int) -> float:
        """Share of zeros after this step (from 0)."""
        done = min(1.0, max(0.0, (step + 1 - self.begin_step) / (self.end_step - self.begin_step)))
        return self.fraction * (1 - (1 - done) ** 3)

    def due(self, step: int) -> bool:
        """Whether the mask is drawn anew after this step."""
        last = step + 1 == self.end_step
        return bool(self.fraction) and (
            last or (self.begin_step <= step + 1 < self.end_step and (step + 1) % EVERY == 0)
        )


def mask_of(weight_OI: Tensor, share: float, pattern: str) -> Tensor:
    """True where a weight stays: the largest magnitudes. Of equal ones the later in the matrix go first.

    2:4 on the way to its half prunes only weights that are among the two smallest of their four.
    Raises BitlawError for 2:4 in a matrix whose inputs are no multiple of four.
    """
    size_OI = weight_OI.abs()
    if pattern == "2:4":
        if weight_OI.shape[1] % 4:
            raise BitlawError(f"2:4 sparsity needs a multiple of 4 inputs, a matrix has {weight_OI.shape[1]}")
        order_OG4 = size_OI.unflatten(-1, (-1, 4)).argsort(dim=-1, descending=True, stable=True)
        rank_OI = order_OG4.argsort(dim=-1).flatten(-2)
        # The two that stay in the end are out of reach.
        size_OI = torch.where(rank_OI < 2, torch.inf, size_OI)
    zeros = int(share * weight_OI.numel())
    order = size_OI.flatten().argsort(descending=True, stable=True)
    mask = torch.ones(weight_OI.numel(), dtype=torch.bool, device=weight_OI.device)
    mask[order[weight_OI.numel() - zeros :]] = False
    return mask.view(weight_OI.shape)


def matrices(model: Decoder) -> list[nn.Module]:
    """The blocks' linear layers, in order."""
    return [layer for name, layer in model.layers.named_modules() if name.endswith("_proj")]


def attach_masks(model: Decoder, sparsity: Sparsity, weights: Quantizer | None) -> None:
    """Give each block matrix a mask, all true, that is saved with the model; nothing at a share of 0.

    Raises BitlawError when the weights' format has no zero.
    """
    if not sparsity.fraction:
        return
    if weights is not None and float(weights.format.cast(torch.zeros(1))) != 0.0:
        raise BitlawError(f"sparsity needs a format with a zero, {weights.format.name} has none")
    for layer in matrices(model):
        layer.register_buffer("mask_OI", torch.ones_like(layer.weight, dtype=torch.bool))  # type: ignore[arg-type]


@torch.no_grad()
def prune(model: Decoder, sparsity: Sparsity, step: int) -> None:
    """After the optimizer's step: draw the masks anew when due, and set what they leave out to zero."""
    if not sparsity.fraction:
        return
    for layer in matrices(model):
        weight_OI, mask_OI = layer.weight, layer.mask_OI
        assert isinstance(weight_OI, Tensor)
        assert isinstance(mask_OI, Tensor)
        if sparsity.due(step):
            mask_OI.copy_(mask_of(weight_OI, sparsity.share(step), sparsity.pattern))
        weight_OI.mul_(mask_OI)
