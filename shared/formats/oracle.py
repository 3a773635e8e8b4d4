"""The readable definitions of the formats: every code and its value, and the nearest value by looking at all of them.

Slow, exact (doubles hold every value, fractions every distance), and written without a look at the fast path, which
the tests compare with it.
"""

from bisect import bisect_left
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from shared.formats.format import Format

LARGEST_FP32 = (2.0 - 2.0**-23) * 2.0**127


@cache
def magnitudes(form: Format) -> tuple[float, ...]:
    """Floats: the value of each code without its sign bit, in the order of the codes (which is ascending); exact."""
    values = []
    for code in range(2 ** (form.exponent + form.mantissa)):
        exponent, mantissa = divmod(code, 2**form.mantissa)
        fraction = mantissa / 2**form.mantissa
        if form.variant == "IEEE" and exponent == 2**form.exponent - 1:
            continue
        if form.variant == "FN" and code == 2 ** (form.exponent + form.mantissa) - 1:
            continue
        bias = 2 ** (form.exponent - 1) - 1 if form.exponent else 0
        value = 2.0 ** (1 - bias) * fraction if exponent == 0 else 2.0 ** (exponent - bias) * (1 + fraction)
        if value <= LARGEST_FP32:
            values.append(value)
    return tuple(values)


def values(form: Format) -> list[float]:
    """All distinct values, ascending."""
    if form.kind == "codebook":
        return list(form.levels)
    if form.kind == "integer":
        top = int(form.limit)
        return [float(value) for value in range(-top if form.lowest is None else int(form.lowest), top + 1)]
    positive = magnitudes(form)
    return [*(-value for value in positive[:0:-1]), *positive]


def nearest_value(x: float, form: Format) -> float:
    """Of all values the nearest; of two as near the one of the even code; beyond the last the last.

    A code book has no even codes: there the decision points are the FP32 numbers nearest to the midpoints, and a tie
    takes the lower level (bitsandbytes' rule); in BINARY zero is +1.
    """
    if form.kind == "codebook":
        if len(form.levels) == 2:
            return form.levels[int(x >= 0)]
        middles = [float(torch.tensor((a + b) / 2)) for a, b in zip(form.levels, form.levels[1:], strict=False)]
        return form.levels[bisect_left(middles, x)]
    if form.kind == "integer":
        bounded = min(max(x, -form.limit), form.limit)
        return min(values(form), key=lambda value: (abs(bounded - value), value % 2))
    grid = magnitudes(form)
    magnitude = min(abs(x), grid[-1])
    above = bisect_left(grid, magnitude)
    codes = [code for code in (above - 1, above) if 0 <= code < len(grid)]
    best = grid[min(codes, key=lambda code: (abs(Fraction(grid[code]) - Fraction(magnitude)), code % 2))]
    return -best if x < 0 else best


def decision_points(form: Format) -> NDArray[np.float64]:
    """The middles between neighbouring values, ascending: a cast to nearest is constant between two of them.

    Of floats and integers those of the magnitudes; of code books the FP32 numbers nearest to them (0 in BINARY).
    """
    held = np.array(form.levels or _magnitudes(form))
    middles = (held[1:] + held[:-1]) / 2  # exact: no value has more than eleven bits
    return middles.astype(np.float32).astype(np.float64) if form.kind == "codebook" else middles


def _magnitudes(form: Format) -> NDArray[np.float64]:
    return np.array(magnitudes(form)) if form.kind == "float" else np.arange(form.limit + 1)


def nearest_values(x: NDArray[np.floating], form: Format, half_away: bool = False) -> NDArray[np.float64]:
    """`nearest_value` of each, from the decision points; or ties away from zero. NaN stays."""
    x = x.astype(np.float64)
    middles = decision_points(form)
    if form.kind == "codebook":
        found = np.array(form.levels)[np.searchsorted(middles, x, "right" if len(form.levels) == 2 else "left")]
        return np.where(np.isnan(x), np.nan, found)
    magnitude = np.abs(x) if form.lowest is None else np.maximum(x, form.lowest)
    code = np.searchsorted(middles, magnitude, "right" if half_away else "left")
    if not half_away:  # a tie has found the lower code, and goes up when that is odd
        code += (code % 2 == 1) & (np.append(middles, np.inf)[code] == magnitude) & (code < len(middles))
    return np.where(np.isnan(x), np.nan, np.copysign(_magnitudes(form)[code], x))
