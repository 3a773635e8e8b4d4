"""Every format, the FN and IEEE variants too, on a million values over all of FP32: cast, kernel and oracle agree.

First ties, zeros and infinities; then a third from anywhere in FP32, as many in every octave, subnormals too; then
values from a quarter of the format's smallest one to twice its largest. And groups with scales from all of FP32.
"""

import math
from functools import cache
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_fast import FORMATS
from test_fast_million import hard_groups
from test_formats import EXISTING

from shared.formats import Format, format_named
from shared.formats.oracle import LARGEST_FP32, decision_points, nearest_values, values
from shared.quantize import Quantizer, fake_quantize
from shared.quantize.fast import fast_fake_quantize, in_kernel

COUNT = 1_000_000
TIES = 10_000  # at most, and the two numbers beside each
GROUP = 50
CACHED = 1 << 15  # a cast is faster on what fits the cache

Rounding = Literal["nearest", "half_away"]


@cache
def even() -> NDArray[np.float64]:
    """In [0, 1), ascending: sorted values are looked up faster."""
    return np.sort(np.random.Generator(np.random.PCG64(0)).random(COUNT))


def even_by_bits(low: float, high: float, count: int) -> NDArray[np.float32]:
    """As many magnitudes in every octave between the two; every other number negative."""
    first, last = np.array([low, high], np.float32).view(np.int32).tolist()
    made = (first + even()[np.arange(count) * COUNT // count] * (last - first)).astype(np.int32).view(np.float32)
    made[::2] *= -1
    return made


@cache
def everywhere() -> NDArray[np.float32]:
    return even_by_bits(0.0, LARGEST_FP32, COUNT // 3)


def million(form: Format) -> NDArray[np.float32]:
    ties = decision_points(form).astype(np.float32)
    ties = ties[:: -(-len(ties) // TIES)]
    beside = [np.nextafter(ties, np.float32(end)) for end in (math.inf, -math.inf)]
    edges = np.concatenate([ties, *beside, [0.0, 2.0**-149, LARGEST_FP32, math.inf]]).astype(np.float32)
    low, high = min(abs(value) for value in values(form) if value) / 4, min(2 * form.limit, LARGEST_FP32)
    own = even_by_bits(low, high, COUNT - 2 * len(edges) - len(everywhere()))
    return np.concatenate([edges, -edges, everywhere(), own])


def by_cast(x: NDArray[np.float32], form: Format, rounding: Rounding) -> NDArray[np.float32]:
    return torch.cat([form.cast(part, rounding) for part in torch.from_numpy(x).split(CACHED)]).numpy()


def by_kernel(x: NDArray[np.float32], form: Format, rounding: Rounding) -> NDArray[np.float32]:
    """In each group a power of two more, the largest below the limit, makes its scale by the rule mx one."""
    q = Quantizer(form, GROUP + 1, "mx", "E8M0", rounding)
    groups = np.full((len(x) // GROUP, GROUP + 1), 2.0**form.largest_exponent, np.float32)
    groups[:, :GROUP] = x.reshape(-1, GROUP)
    assert in_kernel(torch.from_numpy(groups), q)
    return fast_fake_quantize(torch.from_numpy(groups), q)[:, :GROUP].reshape(-1).numpy()


@pytest.mark.parametrize("name", EXISTING)
def test_cast_kernel_and_oracle(name: str) -> None:
    """To nearest on all; half away on the first 60,000, where the ties are.

    What lies beyond the octave of the limit would change the kernel's scale, so it gets the end of that octave instead.
    """
    form = format_named(name)
    x = million(form)
    assert len(x) == COUNT
    last = np.float32(2.0 ** (form.largest_exponent + 1) * (1 - 2.0**-24))
    runs: list[tuple[NDArray[np.float32], Rounding]] = [(x, "nearest"), (x[:60_000], "half_away")]
    for part, rounding in runs[: 1 if form.kind == "codebook" else 2]:
        expected = nearest_values(part, form, rounding == "half_away")
        cast = by_cast(part, form, rounding)
        assert np.array_equal(cast, expected)
        if form.kind != "codebook" and form.lowest is None:
            assert np.array_equal(np.signbit(cast), np.signbit(expected))
            kernel = by_kernel(part.clip(-last, last), form, rounding)
            assert np.array_equal(kernel, expected)
            assert np.array_equal(np.signbit(kernel), np.signbit(expected))


@pytest.mark.parametrize("name", [*FORMATS, "BINARY", "NF4", "NF3", "FP4"])
def test_groups_of_any_scale(name: str) -> None:
    """Quotients, by numpy, cast by the oracle; also in groups of subnormals, whose scales have no reciprocal.

    Code books multiply by reciprocals, so there a quotient within 1e-6 of a decision may go to the other side.
    """
    form = format_named(name)
    x_GE = hard_groups(form, COUNT // 32, 32, -149, 0)
    largest_G1 = x_GE.abs().amax(1, keepdim=True).numpy()
    assert 0.1 < (largest_G1 < 2.0**-128).mean() < 0.5
    scale_G1 = largest_G1 / np.float32(form.limit)
    with np.errstate(over="ignore"):  # at FP32's ends limit x scale, and where E8's scales are subnormal x / scale
        ratio_GE = x_GE.numpy() / np.where(scale_G1 > 0, scale_G1, np.float32(1))
        expected_GE = nearest_values(ratio_GE, form).astype(np.float32) * scale_G1
    actual_GE = fake_quantize(x_GE, Quantizer(form, 32)).numpy()
    same_GE = actual_GE == expected_GE
    if form.kind == "codebook":
        middles = decision_points(form)
        above_GE = np.searchsorted(middles, ratio_GE).clip(0, len(middles) - 1)
        near = [np.abs(ratio_GE - middles[code]) < 1e-6 for code in (above_GE, np.maximum(above_GE - 1, 0))]
        assert np.logical_or(*near).mean() < 0.4
        same_GE |= np.logical_or(*near)
    assert same_GE.all()
