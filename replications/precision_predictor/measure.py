"""Losses of a model whose blocks' matrices are rounded, and the bits of integer formats by name.

Shape letters: S windows, T positions, O outputs, I inputs.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from replications.precision_predictor.subject import Subject
from shared.errors import BitlawError
from shared.evaluate.losses import mean, paired
from shared.ptq.cells import Cell, batch_windows, row_of, window_losses
from shared.ptq.layers import block_list, listed, matrices, weight_OI
from shared.ptq.methods import find_method
from shared.ptq.sequential import quantize
from shared.ptq.text import Windows, from_dataset, from_files
from shared.quantize.quantizer import Quantizer, named_quantizer
from shared.quantize.rtn import round_to_nearest

BITS = (8, 6, 5, 4, 3, 2)  # the page's 8, 4 and 2, and what lies between
FAST_BITS = (8, 7, 6, 5, 4)
CALIBRATION = 128  # windows, for methods that look at text
EVERYTHING = 10**9
Row = dict[str, Any]


@dataclass(frozen=True)
class Rounding:
    """Of all matrices together."""

    bits_per_weight: float
    relative_mse: float


def integer(bits: int, group: str = "channel", rounding: str = "nearest") -> Quantizer:
    """INTk by its bits. Raises BitlawError outside 2 to 8."""
    if not 2 <= bits <= 8:
        raise BitlawError(f"{bits} bits: integers of 2 to 8 bits can be measured")
    return named_quantizer(f"INT{bits}@{group}" + (":sr" if rounding == "stochastic" else ""))


def layers(model: Any) -> list[nn.Module]:
    """Those that are quantized, block by block."""
    _, blocks = block_list(model)
    return [layer for block in blocks for layer in matrices(block).values()]


@contextmanager
@torch.no_grad()
def rounded(model: Any, quantizer: Quantizer, seed: int = 0) -> Iterator[Rounding]:
    """While it lasts the model has rounded matrices, each with its own noise where rounding is stochastic."""
    kept = [(weight_OI(layer), weight_OI(layer).clone()) for layer in layers(model)]
    bits = error = norm = 0.0
    weights = sum(w_OI.numel() for _, w_OI in kept)
    try:
        for number, (weight, w_OI) in enumerate(kept):
            made = round_to_nearest(w_OI, quantizer, 1000 * seed + number)
            weight.copy_(made.weight)
            bits += made.bits_per_weight * w_OI.numel() / weights
            error, norm = error + made.squared_error, norm + made.squared_norm
        yield Rounding(bits, error / norm)
    finally:
        for weight, w_OI in kept:
            weight.copy_(w_OI)


def batch_of(model: Any, context: int) -> int:
    """Windows that go through the model at once."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return batch_windows(context, vocabulary, max(matrix.outputs for matrix in listed(model, False)))


def losses_of(model: Any, windows_ST: Tensor) -> Tensor:
    """(S,) nats/token, float64, of windows (S, T + 1)."""
    batch = batch_of(model, windows_ST.shape[1] - 1)
    return window_losses(model, windows_ST, batch, lambda: None)


def rounded_losses(model: Any, bits: int, windows_ST: Tensor) -> Tensor:
    """(S,) with integers of so many bits per channel, rounded to nearest."""
    with rounded(model, integer(bits)):
        return losses_of(model, windows_ST)


def estimates(losses_S: Tensor, base_S: Tensor) -> Row:
    """Columns of a row: loss and delta with their standard errors, the latter paired over windows."""
    loss, delta = mean(losses_S), paired(losses_S, base_S)
    return {"loss": loss.value, "loss_se": loss.se, "delta": delta.value, "delta_se": delta.se}


def size_of(subject: Subject) -> int:
    """N: weights of the blocks' matrices."""
    return subject.N or sum(matrix.weights for matrix in listed(subject.model, False))


def windows_of(
    subject: Subject, dataset: str, files: Sequence[Path], context: int, training: int, evaluation: int
) -> Windows:
    """Text of a data set or of files in the model's tokens: `calibration` (S, T) holds so many `training` tokens (0:
    all there are), `evaluation` (S, T + 1) so many windows.

    Raises BitlawError for a context that the model does not take, unless one of data set and files is given, for text
    that cannot be read or is too short, and for tokens that the model does not know.
    """
    if context > subject.context:
        raise BitlawError(f"--context {context}: {subject.name} takes {subject.context} positions at most")
    if bool(dataset) == bool(files):
        raise BitlawError("give text to train and measure on: either --dataset NAME or --text FILE")
    wanted = -(-training // context) if training else EVERYTHING
    if files:
        # Files are cut in this proportion: three quarters train where there is not enough for both.
        found = from_files(list(files), subject.tokenizer, context, min(wanted, 3 * evaluation), evaluation)
    else:
        found = from_dataset(dataset, subject.tokenizer, context, wanted, evaluation)
    known = subject.model.get_input_embeddings().weight.shape[0]
    largest = int(max(found.calibration.max(), found.evaluation.max()))
    if largest >= known:
        raise BitlawError(f"{subject.name}: its tokenizer gives token {largest}, the model knows {known}")
    return found


def sweep(model: Any, cell: Cell, text: Windows, base_S: Tensor) -> Row:
    """One width by a method of `bitlaw ptq`, on a copy of the model; its columns as `bitlaw ptq` has them."""
    begun = time.perf_counter()
    batch = batch_of(model, text.context)
    copied = deepcopy(model)
    made = quantize(
        copied, find_method(cell.method), cell.quantizer, text.calibration[:CALIBRATION], batch, with_head=False,
        tell=lambda: None,
    )  # fmt: skip
    return row_of(cell, made, window_losses(copied, text.evaluation, batch, lambda: None), base_S, begun)


def parse_bits(text: str, least: int) -> tuple[int, ...]:
    """ "8,4,2" -> (8, 4, 2). Raises BitlawError for what is no list of at least `least` widths of 2 to 8 bits."""
    words = [word for word in text.replace(",", " ").split() if word]
    if not all(word.isdigit() and 2 <= int(word) <= 8 for word in words) or len(set(words)) < least:
        raise BitlawError(f"--bits {text!r}: give at least {least} widths from 2 to 8, such as 8,6,5,4,3,2")
    return tuple(sorted({int(word) for word in words}, reverse=True))
