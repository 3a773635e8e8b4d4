"""What PTQ methods need to know about a layer's inputs, gathered batch by batch.

Shape letters: I inputs, R calibration rows (tokens).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import BitlawError


@dataclass
class Calibration:
    """Second moments and mean magnitudes of a layer's inputs, summed in FP32 on the inputs' device."""

    inputs: int
    rows: int = 0
    squares_II: Tensor | None = field(default=None, repr=False)
    magnitudes_I: Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """x (..., I). Raises BitlawError when it has another width."""
        if x.shape[-1] != self.inputs:
            raise BitlawError(f"calibration inputs have {x.shape[-1]} values, the layer takes {self.inputs}")
        x_RI = x.reshape(-1, self.inputs).float()
        if self.squares_II is None or self.magnitudes_I is None:
            self.squares_II = torch.zeros(self.inputs, self.inputs, device=x.device)
            self.magnitudes_I = torch.zeros(self.inputs, device=x.device)
        self.squares_II.addmm_(x_RI.T, x_RI)
        self.magnitudes_I.add_(x_RI.abs().sum(0))
        self.rows += len(x_RI)

    @property
    def hessian_II(self) -> Tensor:
        """X^T X / R: half the second derivative of the mean squared output error by one output's weights."""
        if self.squares_II is None or not self.rows:
            raise BitlawError("no calibration input reached a layer: give more text")
        return self.squares_II / self.rows

    @property
    def mean_abs_I(self) -> Tensor:
        """Mean magnitude of each input."""
        if self.magnitudes_I is None or not self.rows:
            raise BitlawError("no calibration input reached a layer: give more text")
        return self.magnitudes_I / self.rows


@contextmanager
def gathering(layers: Mapping[str, nn.Module], widths: Mapping[str, int]) -> Iterator[dict[str, Calibration]]:
    """While it lasts, every forward pass of these layers adds its first argument to the layer's calibration."""
    gathered = {name: Calibration(widths[name]) for name in layers}

    def gather(name: str) -> Any:
        return lambda _layer, arguments: gathered[name].add(arguments[0])

    handles = [layer.register_forward_pre_hook(gather(name)) for name, layer in layers.items()]
    try:
        yield gathered
    finally:
        for handle in handles:
            handle.remove()


def output_error(weight_OI: Tensor, rounded_OI: Tensor, hessian_II: Tensor) -> float:
    """Mean squared change of the outputs summed over O: d H d^T with d = rounded - weight."""
    difference_OI = (rounded_OI - weight_OI).double()
    return (difference_OI @ hessian_II.double() * difference_OI).sum().item()
