"""Round-to-nearest of weight matrices: `fake_quantize` with its bits and errors.

Shape letters: O outputs, I inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.quantize.quantizer import Quantizer, fake_quantize


@dataclass(frozen=True)
class Rounded:
    """A quantized matrix in FP32, the bits it takes a weight (scales included), and its squared errors."""

    weight: Tensor
    bits_per_weight: float
    squared_error: float
    squared_norm: float


@torch.no_grad()
def round_to_nearest(weight_OI: Tensor, quantizer: Quantizer) -> Rounded:
    """Quantize in FP32. Raises BitlawError when the group does not divide the inputs."""
    rounded_OI = fake_quantize(weight_OI, quantizer)
    return measured(rounded_OI, weight_OI, quantizer)


def measured(rounded_OI: Tensor, weight_OI: Tensor, quantizer: Quantizer) -> Rounded:
    """What a quantized matrix costs and loses against the one it stands for."""
    outputs, inputs = weight_OI.shape
    error = (rounded_OI - weight_OI).double().square().sum().item()
    norm = weight_OI.double().square().sum().item()
    return Rounded(rounded_OI, quantizer.bits_per_value(inputs, outputs), error, norm)
