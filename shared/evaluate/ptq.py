"""Post-training quantization cells: one checkpoint, one quantization, one row.

The blocks' matrices are quantized; the embedding and the head stay as they are (they are not counted in N either).
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.errors import BitlawError, nearest
from shared.evaluate.calibrate import METHODS as CALIBRATED
from shared.evaluate.calibrate import CalibrationText, calibrated
from shared.evaluate.losses import mean, paired
from shared.model import Decoder
from shared.quantize.quantizer import PRESETS, Quantizer, named_quantizer
from shared.quantize.rtn import Rounded, round_to_nearest

METHODS = ("rtn", *CALIBRATED)


@dataclass(frozen=True, order=True)
class Cell:
    """A quantization to measure: any format or preset (MXFP4, NVFP4, ...) by name.

    `method` is rtn or one of `calibrate`'s. `group_size` is a number of inputs, or 'channel' for the whole row. The
    code books of lnq are formats of their own, LUT1 to LUT8 (2^k values of FP16 for each channel).
    """

    method: str
    format: str
    group_size: str

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = nearest(self.method, list(METHODS))
            raise BitlawError(f"method {self.method!r} is unknown{hint}: use {', '.join(METHODS)}")
        if self.group_size != "channel" and not (self.group_size.isdigit() and int(self.group_size) > 0):
            raise BitlawError(f"group_size {self.group_size!r} must be a number of inputs or 'channel'")
        if self.method == "lnq" and (not re.fullmatch("LUT[1-8]", self.format) or self.group_size != "channel"):
            raise BitlawError(f"lnq makes LUT1 to LUT8 per channel, not {self.format} in groups of {self.group_size}")
        _ = self.bits

    @property
    def quantizer(self) -> Quantizer | None:
        """None for lnq. Raises BitlawError for an unknown format and for a preset with another group."""
        if self.method == "lnq":
            return None
        preset = PRESETS.get(self.format)
        if preset and str(preset[1]) != self.group_size:
            raise BitlawError(f"format {self.format} has groups of {preset[1]}: set group_size to that")
        return named_quantizer(self.format if preset else f"{self.format}@{self.group_size}")

    @property
    def bits(self) -> float:
        """Of a weight's code, without scales and code books."""
        return self.quantizer.format.bits if self.quantizer else int(self.format.removeprefix("LUT"))

    @property
    def needs_text(self) -> bool:
        return self.method in CALIBRATED

    @property
    def name(self) -> str:
        return f"{self.method}-{self.format}-{self.group_size}"


def rivals(cells: Iterable[Cell]) -> list[Cell]:
    """The cells whose bits and group size another cell has too: what can be compared method by method."""
    cells = list(cells)
    sizes = [(cell.bits, cell.group_size) for cell in cells]
    return [cell for cell, size in zip(cells, sizes, strict=True) if sizes.count(size) > 1]


def block_matrices(model: Decoder) -> dict[str, Tensor]:
    """The matrices that are quantized, by name."""
    return {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if name.startswith("layers.") and parameter.dim() == 2
    }


def quantize(model: Decoder, cell: Cell, text: CalibrationText | None) -> dict[str, Rounded]:
    """The blocks' matrices as the cell has them, by name; the model stays as it is.

    Raises BitlawError when the method needs calibration text and there is none, and what the method raises.
    """
    if cell.needs_text:
        if text is None:
            raise BitlawError(f"method {cell.method} needs calibration text: give it training windows")
        return calibrated(model, cell.method, cell.quantizer, int(cell.bits), text)
    quantizer = cell.quantizer
    assert quantizer is not None
    return {name: round_to_nearest(matrix, quantizer) for name, matrix in block_matrices(model).items()}


@torch.no_grad()
def measure_losses(
    model: Decoder,
    cell: Cell,
    losses: Callable[[Tensor], Tensor],
    windows_ST: Tensor,
    base_S: Tensor,
    text: CalibrationText | None = None,
) -> tuple[dict[str, object], Tensor]:
    """Quantize the model in place, measure, and put the weights back; the row's measured columns and the losses (S,).

    `text` is what the methods that look at text are calibrated on.
    """
    begun = time.perf_counter()
    matrices = block_matrices(model)
    rounded = quantize(model, cell, text)
    kept = {name: matrix.clone() for name, matrix in matrices.items()}
    size = None if cell.group_size == "channel" else int(cell.group_size)
    try:
        for name, matrix in matrices.items():
            matrix.copy_(rounded[name].weight)
        losses_S = losses(windows_ST)
    finally:
        for name, matrix in matrices.items():
            matrix.copy_(kept[name])
    weights = sum(matrix.numel() for matrix in kept.values())
    delta = paired(losses_S, base_S)
    row: dict[str, object] = {
        "method": cell.method,
        "format": cell.format,
        "bits": cell.bits,
        "group_size": cell.group_size,
        "group_size_d_model": min(size or model.shape.d_model, model.shape.d_model),
        "group_size_d_ff": min(size or model.shape.d_ff, model.shape.d_ff),
        "bits_per_weight": sum(r.bits_per_weight * kept[n].numel() for n, r in rounded.items()) / weights,
        "activation_format": "none",
        "kv_format": "none",
        "calibration": text.name if cell.needs_text and text else "none",
        "relative_mse": sum(r.squared_error for r in rounded.values()) / sum(r.squared_norm for r in rounded.values()),
        "loss": mean(losses_S).value,
        "delta": delta.value,
        "delta_se": delta.se,
        "seconds": time.perf_counter() - begun,
    }
    return row, losses_S


def measure(
    model: Decoder,
    cell: Cell,
    losses: Callable[[Tensor], Tensor],
    windows_ST: Tensor,
    base_S: Tensor,
    text: CalibrationText | None = None,
) -> dict[str, object]:
    """The row's measured columns of `measure_losses`."""
    return measure_losses(model, cell, losses, windows_ST, base_S, text)[0]
