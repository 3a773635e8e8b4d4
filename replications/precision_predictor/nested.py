"""One model at several weight precisions: a code per weight at the highest width, whose leading bits are the others.

As in Any-Precision LLM, which progressive decoding builds on (arXiv 2410.13461), a switch of width costs no second
model: width b reads the first b bits of the code. Here the grid is uniform. With codes q in 0 .. 2^B - 1, the range c
and one scale s_b a width, of each group,

    q = floor((w / c + 1) / 2 * 2^B)      level_b(q) = (2 (q >> (B - b)) + 1) / 2^b - 1      w_b = s_b level_b(q)

The thresholds of every width are thresholds of the next one; the levels lie in the middle between them (there is no
zero). s_b is the least-squares scale of the group at width b. c is what the widths share, and so what nesting costs:
of RATIOS times the largest magnitude it is the one with the least sum over widths of error_b(c) / min_c error_b(c).
A width rounded by itself has the same grid with its own best c.

Shape letters: O outputs, I inputs, G groups of a row, E elements of a group, C candidates of the range, W widths.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replications.precision_predictor.schedules import FULL
from shared.errors import BitlawError
from shared.ptq.layers import listed, weight_OI

RATIOS = tuple(1 - 0.05 * k for k in range(19))  # 1.00 to 0.10
MOST_BITS = 8  # a code is a byte
SCALE_BITS = 32


@dataclass(frozen=True)
class NestedMatrix:
    """`codes_OGE` (uint8) has `highest` bits used; `scales_OG` by width."""

    codes_OGE: Tensor
    highest: int
    scales_OG: Mapping[int, Tensor]

    def weight(self, width: int) -> Tensor:
        """(O, I) in FP32 from the first `width` bits. Raises BitlawError for a width that was not prepared."""
        if width not in self.scales_OG:
            known = ", ".join(map(str, sorted(self.scales_OG)))
            raise BitlawError(f"this nested model has no width of {width} bits: choose one of {known}")
        levels_OGE = _levels(self.codes_OGE, self.highest, width)
        return (self.scales_OG[width][..., None] * levels_OGE).flatten(1)

    @property
    def stored_bits(self) -> float:
        """Of a weight: its code, and its share of one scale for each width."""
        return self.highest + len(self.scales_OG) * SCALE_BITS / self.codes_OGE.shape[-1]


@torch.no_grad()
def nest(weight_OI: Tensor, widths: Sequence[int], group: int | None) -> NestedMatrix:
    """Codes of the largest of `widths`; `group` inputs share a range and scales, None: the whole row.

    A group of zeros stays zero. Raises BitlawError for widths outside 1 to 8 and a group that does not divide a row.
    """
    if not widths or min(widths) < 1 or max(widths) > MOST_BITS:
        raise BitlawError(f"nested widths {list(widths)}: name one or more of 1 to {MOST_BITS} bits")
    size = group or weight_OI.shape[1]
    if weight_OI.shape[1] % size:
        raise BitlawError(f"group {size} does not divide the {weight_OI.shape[1]} inputs of a matrix: give another")
    highest = max(widths)
    weight_OGE = weight_OI.float().unflatten(1, (-1, size))
    most_OG1 = weight_OGE.abs().amax(-1, keepdim=True)
    errors_CWOG = torch.stack(
        [
            torch.stack([_error(weight_OGE, _codes(weight_OGE, most_OG1 * ratio, highest), highest, b) for b in widths])
            for ratio in RATIOS
        ]
    )
    least_WOG = errors_CWOG.amin(0).clamp_min(torch.finfo(torch.float32).tiny)
    best_OG = (errors_CWOG / least_WOG).sum(1).argmin(0)
    range_OG1 = most_OG1 * torch.tensor(RATIOS, device=weight_OI.device)[best_OG][..., None]
    codes_OGE = _codes(weight_OGE, range_OG1, highest)
    return NestedMatrix(codes_OGE, highest, {b: _scale(weight_OGE, _levels(codes_OGE, highest, b)) for b in widths})


def _codes(weight_OGE: Tensor, range_OG1: Tensor, highest: int) -> Tensor:
    ratio_OGE = weight_OGE / torch.where(range_OG1 > 0, range_OG1, torch.ones_like(range_OG1))
    return torch.floor((ratio_OGE + 1) / 2 * 2**highest).clamp(0, 2**highest - 1).to(torch.uint8)


def _levels(codes_OGE: Tensor, highest: int, width: int) -> Tensor:
    """Odd multiples of 2^-width in (-1, 1): exact in FP32."""
    return (2 * (codes_OGE >> (highest - width)).float() + 1) / 2**width - 1


def _scale(weight_OGE: Tensor, levels_OGE: Tensor) -> Tensor:
    """Least squares, (O, G); no level is zero, so that the denominator is positive."""
    return (weight_OGE * levels_OGE).sum(-1) / levels_OGE.square().sum(-1)


def _error(weight_OGE: Tensor, codes_OGE: Tensor, highest: int, width: int) -> Tensor:
    """Squared error of each group, (O, G), at its least-squares scale."""
    levels_OGE = _levels(codes_OGE, highest, width)
    return (weight_OGE - _scale(weight_OGE, levels_OGE)[..., None] * levels_OGE).square().sum(-1)


@dataclass(frozen=True)
class Switch:
    """A model whose blocks' matrices can be set to any prepared width, or back to what they were."""

    model: Any
    matrices: Mapping[str, NestedMatrix]
    full_OI: Mapping[str, Tensor]

    @torch.no_grad()
    def use(self, width: int) -> None:
        """From now on the model computes at this width; FULL (16): with its weights as they were."""
        for name, full_OI in self.full_OI.items():
            value_OI = full_OI if width == FULL else self.matrices[name].weight(width)
            weight_OI(self.model.get_submodule(name)).copy_(value_OI)

    @property
    def stored_bits(self) -> float:
        """Of a weight, over all matrices: the one code and all scales."""
        sizes = {name: full_OI.numel() for name, full_OI in self.full_OI.items()}
        return sum(self.matrices[name].stored_bits * size for name, size in sizes.items()) / sum(sizes.values())

    def relative_mse(self, width: int) -> float:
        """Squared error of all weights over their squares."""
        error = norm = 0.0
        for name, full_OI in self.full_OI.items():
            error += (self.matrices[name].weight(width) - full_OI).double().square().sum().item()
            norm += full_OI.double().square().sum().item()
        return error / norm


@contextmanager
def nested(model: Any, widths: Sequence[int], group: int | None) -> Iterator[Switch]:
    """The model with a `Switch`; afterwards its weights are what they were. Raises BitlawError as `nest` does."""
    full_OI = {m.name: weight_OI(model.get_submodule(m.name)).float().clone() for m in listed(model, with_head=False)}
    switch = Switch(model, {name: nest(each_OI, widths, group) for name, each_OI in full_OI.items()}, full_OI)
    try:
        yield switch
    finally:
        switch.use(FULL)
