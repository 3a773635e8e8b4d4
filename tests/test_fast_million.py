"""The one-pass kernel and the eager function on a million values of each format, bit for bit, group by group.

tests/test_formats_million.py compares the kernel with the oracle, value by value.

Shape letters: G groups, E elements of a group.
"""

import math

import numpy as np
import pytest
import torch
from test_fast import FORMATS, same
from torch import Tensor

from shared.formats import Format, format_named
from shared.formats.oracle import LARGEST_FP32, decision_points, magnitudes, values
from shared.quantize.fast import fast_fake_quantize, in_kernel
from shared.quantize.quantizer import Quantizer, fake_quantize, named_quantizer, scales

MILLION = 1_000_000
ROW = 1003  # of groups that are whole rows or the whole tensor
# Groups that the kernel has loops of their own for (8, 16, 32), and groups with a tail after whole registers; together
# every scale and every rounding.
CASES = (
    *("7:absmax:bf16", "8:absmax", "13:absmax:sr", "16:absmax:e4m3", "24:mx:e8m0:away", "32:mx:e8m0"),
    *("channel:absmax:e8m0:away", "tensor:absmax"),
)


def even_by_bits(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Positive FP32 numbers, as many in every octave; below 2^-126 the subnormals."""
    first, last = torch.tensor([low, high]).view(torch.int32).tolist()
    return torch.randint(first, last, shape, generator=generator, dtype=torch.int32).view(torch.float32)


def points(form: Format) -> tuple[Tensor, Tensor]:
    """The magnitudes of a format and the ties between them; the FP32 numbers beside these."""
    held = magnitudes(form) if form.kind == "float" else values(form)
    on = torch.from_numpy(np.concatenate([held, decision_points(form)])).float()
    return on, torch.cat([torch.nextafter(on, 2 * on), torch.nextafter(on, 0 * on)]).clamp_max(form.limit)


def hard_groups(form: Format, count: int, size: int, low: int, seed: int) -> Tensor:
    """(G, E), finite; the largest magnitude of most groups lies anywhere from 2^low to FP32's end (or to 1).

    Some groups hold values and ties, or what is beside them, and the limit, all times a power of two: by every rule
    but the mean this power is the scale, and x / scale exact. In others the largest is beyond the limit but below the
    next power of two, where the rule mx saturates.
    """
    generator = torch.Generator().manual_seed(seed)
    share = -(-count // 8)
    shape, top = (share, size), form.largest_exponent
    high = 127 if low < -126 else 0
    tiny, huge = (0.0, LARGEST_FP32) if high else (2.0**low, 1.0)

    def times_powers(x_GE: Tensor, top: int) -> Tensor:
        """Each group times a power of two, that makes 2^top anything from 2^low to 2^high."""
        power_G1 = torch.randint(low - top, high - top + 1, (share, 1), generator=generator)
        return torch.ldexp(x_GE.double(), power_G1).float()  # 2^power alone may be no FP32 number

    def led(x: Tensor, largest: float) -> Tensor:
        """Drawn from x, with the largest somewhere in each group."""
        x_GE = x[torch.randint(0, len(x), shape, generator=generator)]
        at_G1 = torch.randint(0, size, (share, 1), generator=generator)
        return times_powers(x_GE.scatter(1, at_G1, torch.full((share, 1), largest)), top)

    on, beside = points(form)
    within = even_by_bits(form.limit / 4, form.limit, (10_000,), generator)
    beyond = 2.0 ** (top + 1) * (1 - 2.0**-24)  # the last FP32 number of the octave
    kinds_KGE = [
        times_powers(torch.randn(shape, generator=generator), 0),
        times_powers(even_by_bits(2.0**-12, 1.0, shape, generator), 0),
        even_by_bits(tiny, huge, shape, generator),
        even_by_bits(0.0, max(2.0**low, 2.0**-126), shape, generator),
        led(on, form.limit),
        led(beside, form.limit),
        led(torch.cat([within, even_by_bits(form.limit, beyond, (10_000,), generator)]), beyond),
        torch.zeros(shape),
    ]
    x_GE = torch.stack(kinds_KGE, 1).flatten(0, 1)[:count].clamp(-LARGEST_FP32, LARGEST_FP32)
    zero = torch.rand(x_GE.shape, generator=generator) < 0.01
    return x_GE.masked_fill(zero, 0.0) * (torch.randint(0, 2, x_GE.shape, generator=generator) * 2 - 1)


def compare(x_GE: Tensor, q: Quantizer) -> None:
    noise_GE = None
    if q.rounding == "stochastic":
        noise_GE = torch.rand(x_GE.shape, generator=torch.Generator().manual_seed(1))
    assert in_kernel(x_GE, q, noise_GE)
    assert same(fast_fake_quantize(x_GE, q, noise_GE), fake_quantize(x_GE, q, noise_GE)), q


@pytest.mark.parametrize("name", FORMATS)
def test_kernel_is_eager_on_a_million_values(name: str) -> None:
    for seed, case in enumerate(CASES):
        q = named_quantizer(f"{name}@{case}")
        size = q.group if isinstance(q.group, int) else ROW
        # The E4M3 scales of a tensor cover 17 octaves, so that more would leave nothing but zeros.
        low = -20 if q.scale_format == "E4M3" else -149
        x_GE = hard_groups(format_named(name), -(-MILLION // size), size, low, seed)
        assert x_GE.numel() >= MILLION
        assert x_GE.isfinite().all()
        compare(x_GE, q)
        for value in (math.inf, -math.inf, math.nan):
            part_GE = x_GE[:700].clone()
            part_GE[::7, size // 2] = value
            compare(part_GE, q)


@pytest.mark.parametrize("name", FORMATS)
def test_the_groups_are_hard(name: str) -> None:
    """They hold what they are said to hold."""
    form = format_named(name)
    x_GE = hard_groups(form, 8000, 32, -149, 0)
    ratio_GE = x_GE.double().abs() / scales(x_GE, named_quantizer(f"{name}@32:mx:e8m0"))[0].double()
    assert x_GE.isfinite().all()
    assert x_GE.abs().max() > 2.0**127
    assert set(torch.signbit(x_GE[x_GE == 0]).tolist()) == {False, True}
    assert ((x_GE != 0) & (x_GE.abs() < 2.0**-126)).float().mean() > 0.1
    assert np.isin(ratio_GE.numpy(), decision_points(form)).mean() > 0.02
    assert (ratio_GE > form.limit).float().mean() > 0.02
