"""Post-training quantization that looks at text: block after block, each calibrated behind the quantized ones.

The matrices that share an input (queries, keys and values; gate and up) share a calibration. All inputs of a block are
those that its unquantized matrices make of what the quantized blocks before it pass on: as GPTQ's own code does unless
told `--true-sequential` (IST-DASLab/gptq, llama.py).

gptq    with act-order (most active inputs first, the scales those of the uncorrected weight)
awq     with clip; llm-awq (pre_quant.py) calibrates each block behind unquantized ones instead
guided  GPTQ by GuidedQuant's Hessians (arXiv 2505.07004), four groups of outputs a matrix; the gradients are those of
        the model as far as it is quantized
lnq     code books by the same Hessians

Shape letters: S windows, B windows of a batch, T positions, D width, I inputs, O outputs of a product.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import BitlawError
from shared.evaluate.losses import BATCH_SEQUENCES
from shared.model import Decoder
from shared.model.transformer import Block, token_losses
from shared.quantize.awq import awq
from shared.quantize.calibration import Calibration
from shared.quantize.gptq import gptq
from shared.quantize.guided import GuidedCalibration, guided_gptq, watched
from shared.quantize.lnq import lnq
from shared.quantize.quantizer import Quantizer
from shared.quantize.rtn import Rounded
from shared.quantize.training import PRODUCTS
from shared.train.batches import order

WINDOWS = 64
# No run of the pool has this seed, so that the windows are not the first batches of any.
SEED = 0


@dataclass(frozen=True)
class CalibrationText:
    """Windows (S, T + 1) of training text, and what a row says of them, such as python-64x256."""

    name: str
    windows_ST: Tensor


def calibration_text(corpus: str, train: NDArray[np.uint16], context: int, windows: int = WINDOWS) -> CalibrationText:
    """Windows of the training tokens in a fixed random order, the same for every checkpoint; all of a shorter text.

    A checkpoint may or may not have been trained on them; it never was validated on them.
    Raises BitlawError when the text is shorter than one window.
    """
    available = (len(train) - 1) // context
    if available < 1:
        raise BitlawError(
            f"corpus '{corpus}' has {len(train)} training tokens, a calibration window {context + 1}: give more text"
        )
    starts = order(available, SEED, 0)[:windows] * context
    cut = np.stack([train[start : start + context + 1] for start in starts]).astype(np.int64)
    return CalibrationText(f"{corpus}-{len(cut)}x{context}", torch.from_numpy(cut))


class Watch(nn.Module):
    """Stands where a block looks for the cast of a product (`Block.product`) and shows its input and output."""

    def __init__(self, see: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.see = see

    def forward(self, x_BTI: Tensor, weights: list[Tensor]) -> Tensor:
        return self.see(x_BTI, F.linear(x_BTI, torch.cat(weights).to(x_BTI.dtype)))


# The matrices of one product, its inputs' moments, and the quantizer (None for code books) with its bits.
Plain = Callable[[list[Tensor], Calibration, Quantizer], list[Rounded]]
Guided = Callable[[Tensor, Tensor, Quantizer | None, int], Rounded]

PLAIN: dict[str, Plain] = {
    "gptq": lambda weights, seen, quantizer: [gptq(w, seen.hessian_II, quantizer, act_order=True) for w in weights],
    "awq": lambda weights, seen, quantizer: awq(weights, seen, quantizer)[0],
}


def _guided(weight_OI: Tensor, hessians_gII: Tensor, quantizer: Quantizer | None, bits: int) -> Rounded:
    assert quantizer is not None
    return guided_gptq(weight_OI, hessians_gII, quantizer, act_order=True)


GUIDED: dict[str, Guided] = {
    "guided": _guided,
    "lnq": lambda weight, hessians, quantizer, bits: lnq(weight, hessians, bits),
}
METHODS = (*PLAIN, *GUIDED)


def calibrated(
    model: Decoder, method: str, quantizer: Quantizer | None, bits: int, text: CalibrationText
) -> dict[str, Rounded]:
    """The blocks' matrices, quantized, by name; the model stays as it is (a copy of it is worked on).

    Raises BitlawError for a model that was trained with casts, whose products are not plain ones, and what the method
    raises for weights or inputs that are not finite.
    """
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    device = twin.lm_head.weight.device
    T = text.windows_ST.shape[1] - 1
    angles = twin.cos_TK[:T], twin.sin_TK[:T]
    batches = [windows_BT.to(device) for windows_BT in text.windows_ST.split(BATCH_SEQUENCES)]
    inputs = [twin.embed_tokens(windows_BT[:, :-1]) for windows_BT in batches]
    rounded: dict[str, Rounded] = {}
    for number, block in enumerate(twin.layers):
        assert isinstance(block, Block)
        if len(block.casts):
            raise BitlawError(
                f"method {method} needs a model that was trained unquantized, block {number} of this one has casts: "
                "use rtn"
            )
        if method in GUIDED:
            made = _by_gradients(twin, number, method, quantizer, bits, inputs, batches)
        else:
            assert quantizer is not None
            made = _by_inputs(block, method, quantizer, inputs, angles)
        for name, matrix in made.items():
            getattr(block, name).weight.copy_(matrix.weight)
            rounded[f"layers.{number}.{name}.weight"] = matrix
        inputs = [block(x_BTD, *angles, torch.float32, False) for x_BTD in inputs]
    return rounded


def _by_inputs(
    block: Block, method: str, quantizer: Quantizer, inputs: list[Tensor], angles: tuple[Tensor, Tensor]
) -> dict[str, Rounded]:
    """One block's matrices by the second moments of what they read."""
    weights = _weights(block)
    seen = {product: Calibration(matrices[0].shape[1]) for product, matrices in weights.items()}

    def see(product: str) -> Callable[[Tensor, Tensor], Tensor]:
        def add(x_BTI: Tensor, y_BTO: Tensor) -> Tensor:
            seen[product].add(x_BTI)
            return y_BTO

        return add

    _watch(block, see)
    for x_BTD in inputs:
        block(x_BTD, *angles, torch.float32, False)
    block.casts.clear()
    return {
        name: made
        for product, names in PRODUCTS.items()
        for name, made in zip(names, PLAIN[method](weights[product], seen[product], quantizer), strict=True)
    }


def _by_gradients(
    twin: Decoder,
    number: int,
    method: str,
    quantizer: Quantizer | None,
    bits: int,
    inputs: list[Tensor],
    batches: list[Tensor],
) -> dict[str, Rounded]:
    """One block's matrices by GuidedQuant's Hessians: from here to the loss and back, summed over tokens."""
    block = twin.layers[number]
    assert isinstance(block, Block)
    weights = _weights(block)
    seen = {
        product: [GuidedCalibration(matrix.shape[1], matrix.shape[0]) for matrix in matrices]
        for product, matrices in weights.items()
    }
    _watch(block, lambda product: lambda x_BTI, y_BTO: watched(x_BTI, y_BTO, *seen[product]))
    with torch.enable_grad():
        for x_BTD, windows_BT in zip(inputs, batches, strict=True):
            T = x_BTD.shape[1]
            for later in twin.layers[number:]:
                x_BTD = later(x_BTD, twin.cos_TK[:T], twin.sin_TK[:T], torch.float32, False)
            logits_BTV = twin.lm_head(twin.norm(x_BTD, torch.float32))
            token_losses(logits_BTV, windows_BT[:, 1:]).sum().backward()
    block.casts.clear()
    return {
        name: GUIDED[method](weight, one.hessians_gII, quantizer, bits)
        for product, names in PRODUCTS.items()
        for name, weight, one in zip(names, weights[product], seen[product], strict=True)
    }


def _weights(block: Block) -> dict[str, list[Tensor]]:
    """The matrices (O, I) of each product."""
    return {product: [getattr(block, name).weight.data for name in names] for product, names in PRODUCTS.items()}


def _watch(block: Block, see: Callable[[str], Callable[[Tensor, Tensor], Tensor]]) -> None:
    for product in PRODUCTS:
        block.casts[product] = Watch(see(product))
