"""Validation losses in FP32, one a sequence, and what differs between two models on the same sequences.

Shape letters: S sequences, B sequences of a batch, T positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import BitlawError
from shared.model import Decoder
from shared.model.transformer import token_losses

VALIDATION_TOKENS = 262_144
BATCH_SEQUENCES = 32


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences and its standard error, nats/token."""

    value: float
    se: float


def validation_windows(tokens: NDArray[np.uint16], context: int, wanted: int = VALIDATION_TOKENS) -> Tensor:
    """Windows (S, T + 1), evenly spread over the validation tokens: every model is judged on the same ones.

    A text shorter than `wanted` tokens gives all its whole windows. Raises BitlawError when it gives fewer than two.
    """
    available = (len(tokens) - 1) // context
    count = min(wanted // context, available)
    if count < 2:
        raise BitlawError(
            f"the validation text has {len(tokens)} tokens, two windows of {context + 1} are the least: give more text"
        )
    starts = [(i * available // count) * context for i in range(count)]
    return torch.from_numpy(np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64))


def evaluator(model: Decoder, compiled: bool) -> Callable[[Tensor], Tensor]:
    """A function windows (S, T + 1) -> mean loss of each sequence (S,), in FP32, on the model's device."""

    def sequence_losses(windows_BT: Tensor) -> Tensor:
        return token_losses(model(windows_BT[:, :-1]), windows_BT[:, 1:]).mean(-1)

    forward = torch.compile(sequence_losses, dynamic=False) if compiled else sequence_losses
    device = model.lm_head.weight.device

    @torch.no_grad()
    def losses(windows_ST: Tensor) -> Tensor:
        parts = [forward(windows_BT.to(device)).cpu() for windows_BT in windows_ST.split(BATCH_SEQUENCES)]
        return torch.cat(parts).double()

    return losses


def mean(losses_S: Tensor) -> Estimate:
    """Mean loss with its standard error over sequences."""
    return Estimate(losses_S.mean().item(), losses_S.std().item() / math.sqrt(len(losses_S)))


def paired(losses_S: Tensor, base_S: Tensor) -> Estimate:
    """Mean difference to the base on the same sequences: its error is far below that of either mean."""
    if losses_S.shape != base_S.shape:
        raise BitlawError(f"paired losses need the same sequences: {len(losses_S)} against {len(base_S)}")
    return mean(losses_S - base_S)
