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
def round_to_nearest(weight_OI: Tensor, quantizer: Quantizer, seed: int = 0) -> Rounded:
    """Quantize in FP32; `seed` is that of stochastic rounding, drawn on the CPU and so the same on every device.

    Raises BitlawError when the group does not divide the inputs.
    """
    noise_OI = None
    if quantizer.rounding == "stochastic":
        generator = torch.Generator().manual_seed(seed)
        noise_OI = torch.rand(weight_OI.shape, generator=generator).to(weight_OI.device)
    rounded_OI = fake_quantize(weight_OI, quantizer, noise_OI)
    return measured(rounded_OI, weight_OI, quantizer)


def measured(rounded_OI: Tensor, weight_OI: Tensor, quantizer: Quantizer) -> Rounded:
    """What a quantized matrix costs and loses against the one it stands for."""
    outputs, inputs = weight_OI.shape
    error = (rounded_OI - weight_OI).double().square().sum().item()
    norm = weight_OI.double().square().sum().item()
    return Rounded(rounded_OI, quantizer.bits_per_value(inputs, outputs), error, norm)
