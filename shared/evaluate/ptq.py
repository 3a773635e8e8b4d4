"""Post-training quantization cells: one checkpoint, one quantization, one row.

The blocks' matrices are quantized; the embedding and the head stay as they are (they are not counted in N either).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.evaluate.losses import mean, paired
from shared.model import Decoder
from shared.quantize.quantizer import PRESETS, Quantizer, named_quantizer
from shared.quantize.rtn import Rounded, round_to_nearest


@dataclass(frozen=True, order=True)
class Cell:
    """A quantization to measure: any format or preset (MXFP4, NVFP4, ...) by name.

    `group_size` is a number of inputs, or 'channel' for the whole row.
    """

    method: str
    format: str
    group_size: str

    def __post_init__(self) -> None:
        if self.method != "rtn":
            raise BitlawError(f"method {self.method!r} is unknown: use rtn")
        if self.group_size != "channel" and not (self.group_size.isdigit() and int(self.group_size) > 0):
            raise BitlawError(f"group_size {self.group_size!r} must be a number of inputs or 'channel'")
        _ = self.quantizer

    @property
    def quantizer(self) -> Quantizer:
        """Raises BitlawError for an unknown format and for a preset with another group."""
        preset = PRESETS.get(self.format)
        if preset and str(preset[1]) != self.group_size:
            raise BitlawError(f"format {self.format} has groups of {preset[1]}: set group_size to that")
        return named_quantizer(self.format if preset else f"{self.format}@{self.group_size}")

    @property
    def name(self) -> str:
        return f"{self.method}-{self.format}-{self.group_size}"


def block_matrices(model: Decoder) -> dict[str, Tensor]:
    """The matrices that are quantized, by name."""
    return {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if name.startswith("layers.") and parameter.dim() == 2
    }


@torch.no_grad()
def measure(
    model: Decoder,
    cell: Cell,
    losses: Callable[[Tensor], Tensor],
    windows_ST: Tensor,
    base_S: Tensor,
) -> dict[str, object]:
    """Quantize the model in place, measure, and put the weights back; returns the row's measured columns."""
    begun = time.perf_counter()
    matrices = block_matrices(model)
    kept = {name: matrix.clone() for name, matrix in matrices.items()}
    size = None if cell.group_size == "channel" else int(cell.group_size)
    rounded: dict[str, Rounded] = {}
    try:
        for name, matrix in matrices.items():
            rounded[name] = round_to_nearest(matrix, cell.quantizer)
            matrix.copy_(rounded[name].weight)
        losses_S = losses(windows_ST)
    finally:
        for name, matrix in matrices.items():
            matrix.copy_(kept[name])
    weights = sum(matrix.numel() for matrix in kept.values())
    delta = paired(losses_S, base_S)
    return {
        "method": cell.method,
        "format": cell.format,
        "bits": cell.quantizer.format.bits,
        "group_size": cell.group_size,
        "group_size_d_model": min(size or model.shape.d_model, model.shape.d_model),
        "group_size_d_ff": min(size or model.shape.d_ff, model.shape.d_ff),
        "bits_per_weight": sum(r.bits_per_weight * kept[n].numel() for n, r in rounded.items()) / weights,
        "activation_format": "none",
        "kv_format": "none",
        "calibration": "none",
        "relative_mse": sum(r.squared_error for r in rounded.values()) / sum(r.squared_norm for r in rounded.values()),
        "loss": mean(losses_S).value,
        "delta": delta.value,
        "delta_se": delta.se,
        "seconds": time.perf_counter() - begun,
    }
