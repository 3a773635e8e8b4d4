"""Round-to-nearest of weight matrices with absmax scales, per output channel or per group of inputs.

Shape letters: O outputs, I inputs, G groups in a row, E elements of a group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.formats.integer import Integer

SCALE_BITS = 32


@dataclass(frozen=True)
class Rounded:
    """A quantized matrix in FP32, the bits it takes a weight (scales included), and its squared errors."""

    weight: Tensor
    bits_per_weight: float
    squared_error: float
    squared_norm: float


def grouped(weight_OI: Tensor, group_size: int | None) -> Tensor:
    """(O, I) -> (O, G, E); None is the whole row. Raises BitlawError when the group does not divide the row."""
    outputs, inputs = weight_OI.shape
    size = inputs if group_size is None else group_size
    if size < 1 or inputs % size:
        raise BitlawError(f"group_size {size} does not divide a matrix with {inputs} inputs")
    return weight_OI.reshape(outputs, inputs // size, size)


def round_to_nearest(weight_OI: Tensor, form: Integer, group_size: int | None) -> Rounded:
    """Quantize in FP32: scale = max |w| of the group / largest integer; an all-zero group stays zero."""
    weight_OGE = grouped(weight_OI.float(), group_size)
    scale_OG1 = weight_OGE.abs().amax(-1, keepdim=True) / form.limit
    # A group of zeros divides by one: its values are zero whatever the scale.
    scale_OG1 = torch.where(scale_OG1 > 0, scale_OG1, torch.ones_like(scale_OG1))
    rounded_OI = (form.cast(weight_OGE / scale_OG1) * scale_OG1).reshape(weight_OI.shape)
    error = (rounded_OI - weight_OI).double().square().sum().item()
    norm = weight_OI.double().square().sum().item()
    return Rounded(rounded_OI, form.bits + SCALE_BITS / weight_OGE.shape[-1], error, norm)
