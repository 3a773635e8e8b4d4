"""A number format and its casts, written with elementwise operations that inductor vectorises on CPU and CUDA.

On CPU inductor has no vector form of a bit cast, of `searchsorted` or of `frexp`, and turns them into scalar loops
(three times slower, docs/log.md). So the power of two below |x| is found by compares and selections, which is exact. A
binary search has the fewest, but each round uses the last one's result three times, and inductor writes shared
subexpressions out before it merges them: compile time was exponential in the rounds.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["integer", "float", "codebook"]
Variant = Literal["", "FN", "IEEE"]
Rounding = Literal["nearest", "half_away", "stochastic"]

# FP32 keeps 24 bits: adding and subtracting 2^23 steps rounds to whole steps, ties to even.
FP32_MANTISSA = 23
FP32_LARGEST_EXPONENT = 127


@dataclass(frozen=True)
class Format:
    """The values an element can take, without any scale.

    kind      integer: lowest..limit in steps of 1. float: sign, `exponent` bits, `mantissa` bits, subnormals kept, bias
              2^(E-1) - 1; E = 0 is a sign-magnitude fixed-point grid m 2^(1-M). codebook: `levels`, ascending.
    bits      of one element; log2 3 for TERNARY.
    variant   floats only. "": no reserved code, all are numbers (Sun et al., arXiv 2501.02423; OCP's FP4 and FP6).
              FN: the code of all ones is NaN (OCP E4M3). IEEE: the largest exponent is kept for infinities and NaN.
    limit     the largest magnitude.
    """

    name: str
    kind: Kind
    bits: float
    limit: float
    exponent: int = 0
    mantissa: int = 0
    variant: Variant = ""
    levels: tuple[float, ...] = ()
    lowest: float | None = None  # of integers without a sign: 0; otherwise -limit

    @property
    def bias(self) -> int:
        """Floats: 2^(E-1) - 1 (OCP MX 1.0), and 0 for E = 0 and E = 1."""
        return 2 ** (self.exponent - 1) - 1 if self.exponent else 0

    @property
    def smallest_normal(self) -> float:
        """Floats: 2^(1 - bias); below it the steps do not shrink any more."""
        return 2.0 ** (1 - self.bias)

    @property
    def largest_exponent(self) -> int:
        """floor(log2 limit), the `emax` of the MX scale rule."""
        return math.frexp(self.limit)[1] - 1

    def cast(self, x: Tensor, rounding: Rounding = "nearest", noise: Tensor | None = None) -> Tensor:
        """The value of the format for each x; any shape, FP32 in and out, saturating (infinities too), NaN stays.

        nearest     ties to the even code; in a code book to the lower level (bitsandbytes' rule), 0 to +1 in BINARY
        half_away   ties away from zero (microxcaling's "nearest"); not for code books
        stochastic  up with a probability proportional to the distance: unbiased between -limit and limit;
                    `noise` is uniform in [0, 1), of x's shape
        """
        if self.kind == "codebook":
            return self._cast_codebook(x, noise if rounding == "stochastic" else None)
        if self.kind == "integer":
            lowest = -self.limit if self.lowest is None else self.lowest
            return torch.clamp(whole(x, rounding, noise), lowest, self.limit)
        return self._cast_float(x, rounding, noise)

    def cast_stochastic(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.cast(x, "stochastic", noise)

    def _cast_float(self, x: Tensor, rounding: Rounding, noise: Tensor | None) -> Tensor:
        magnitude = x.abs().clamp_max(self.limit)
        power, odd = self._octave(magnitude)
        if rounding == "nearest" and self.mantissa and self.exponent < 8:
            shift = power * 2.0 ** (FP32_MANTISSA - self.mantissa)
            return torch.copysign((magnitude + shift) - shift, x)
        # With E = 8 that shift could overflow, and with M = 0 the even code is not the even multiple.
        step = power * 2.0**-self.mantissa
        steps = magnitude / step
        nearest = whole(steps, rounding, noise)
        if rounding == "nearest" and not self.mantissa:
            # Halfway from 2^k to 2^(k+1) the even code is the lower one in every other octave.
            nearest = torch.where((steps == 1.5) & odd, torch.ones_like(nearest), nearest)
        # Rounding up to 2^128 overflows, so saturate again.
        return torch.copysign((nearest * step).clamp_max(self.limit), x)

    def _octave(self, magnitude: Tensor) -> tuple[Tensor, Tensor]:
        """The power of two below each magnitude, no smaller than the smallest normal; and where its octave is odd.

        In two rounds of about sqrt(number of octaves) compares, by blocks of octaves and inside a block.
        """
        octaves = max(self.largest_exponent - (1 - self.bias), 0) if self.exponent else 0
        block = octaves + 1 if octaves < 4 else 2 * math.ceil(math.sqrt(octaves + 1) / 2)  # even, for the parity
        power = torch.full_like(magnitude, self.smallest_normal)
        for octave in range(block, octaves + 1, block):
            start = self.smallest_normal * 2.0**octave
            power = torch.where(magnitude >= start, start, power)
        first = power
        odd = torch.zeros_like(magnitude, dtype=torch.bool)
        for octave in range(1, block):
            above = magnitude >= first * 2.0**octave
            power = torch.where(above, first * 2.0**octave, power)
            odd = torch.where(above, bool(octave % 2), odd)
        return power, odd

    def _cast_codebook(self, x: Tensor, noise: Tensor | None) -> Tensor:
        lower = torch.full_like(x, self.levels[0])
        if noise is None:
            for low, high in zip(self.levels, self.levels[1:], strict=False):
                above = x >= 0.0 if self.ties_up else x > (low + high) / 2
                lower = torch.where(above, high, lower)
            return torch.where(x.isnan(), x, lower)
        x = x.clamp(self.levels[0], self.levels[-1])
        upper = torch.full_like(x, self.levels[1])
        for low, high in zip(self.levels[1:], self.levels[2:], strict=False):
            lower, upper = torch.where(x >= low, low, lower), torch.where(x >= low, high, upper)
        return torch.where(noise < (x - lower) / (upper - lower), upper, lower)

    @property
    def ties_up(self) -> bool:
        """BINARY maps 0 to +1, as a sign bit does."""
        return len(self.levels) == 2


def whole(x: Tensor, rounding: Rounding, noise: Tensor | None) -> Tensor:
    """x rounded to integers. The fraction x - floor(x) is exact, so whole numbers never move."""
    if rounding == "nearest":
        return torch.round(x)
    if rounding == "half_away":
        magnitude = x.abs()
        down = magnitude.floor()
        return torch.copysign(down + (magnitude - down >= 0.5), x)
    assert noise is not None, "stochastic rounding needs noise"
    down = x.floor()
    return down + (noise < x - down)
