"""What random values miss, by the table `PEERS` of test_peers.py, entry by entry: so no entry is without a test.

Floats and integers over all of FP32: subnormals, ties, zeros, infinities, what is beyond the largest value. Blocks and
code books in groups of values, ties and zeros times powers of two, down to where the peer's own scales end.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from test_fast import same
from test_fast_million import hard_groups
from test_formats_million import million
from test_peers import PEERS, codes_of, compare_with_gfloat
from torch import Tensor

from shared.formats import format_named
from shared.formats.oracle import decision_points, values
from shared.quantize import fake_quantize
from shared.quantize.quantizer import named_quantizer, scales

TORCHAO = {
    "MXFP4": torch.float4_e2m1fn_x2,
    "MXFP6E2M3": "fp6_e2m3",
    "MXFP6E3M2": "fp6_e3m2",
    "MXFP8E4M3": torch.float8_e4m3fn,
    "MXFP8E5M2": torch.float8_e5m2,
}
GFLOAT = {
    "MXFP4": "mxfp4_e2m1",
    "MXFP6E2M3": "mxfp6_e2m3",
    "MXFP6E3M2": "mxfp6_e3m2",
    "MXFP8E4M3": "mxfp8_e4m3",
    "MXFP8E5M2": "mxfp8_e5m2",
    "MXINT8": "mxint8",
}


def groups(name: str, size: int, smallest: int, count: int = 4000) -> Tensor:
    """(G, E): `hard_groups` of which the largest magnitude is at least 2^smallest, or zero."""
    x_GE = hard_groups(format_named(name), count, size, -149, 0)
    largest_G = x_GE.abs().amax(1)
    return x_GE[(largest_G >= 2.0**smallest) | (largest_G == 0)]


def clear_of_ties(x_GE: Tensor, name: str) -> Tensor:
    """Where x over its group's largest magnitude is no closer than 1e-6 to the middle between two levels."""
    ratio_GE = x_GE.double() / x_GE.abs().amax(1, keepdim=True).double()
    form = format_named(name)
    middles = torch.from_numpy(decision_points(form))
    if form.kind != "codebook":  # those of the magnitudes
        middles = torch.cat([-middles, middles])
    return (ratio_GE.unsqueeze(-1) - middles).abs().amin(-1) > 1e-6


def elementwise(name: str) -> None:
    """ml_dtypes, numpy: beyond the largest value they give it, an infinity or NaN, and we give it."""
    form = format_named(name)
    x = million(form)
    expected = x.astype(codes_of(name).dtype).astype(np.float32)
    beyond = np.abs(x) > form.limit
    assert beyond.any()
    assert (np.isnan(expected) | np.isin(np.abs(expected), [form.limit, np.inf]))[beyond].all()
    assert np.isfinite(expected[~beyond]).all()
    expected = np.where(beyond, np.copysign(np.float32(form.limit), x), expected)
    assert same(form.cast(torch.from_numpy(x)), torch.from_numpy(expected))


def by_gfloat(name: str) -> None:
    if name in GFLOAT:
        return blocks_by_gfloat(name)
    form = format_named(name)
    x = million(form)
    if form.exponent == 8:  # gfloat goes on to 2^128
        x = x.clip(-form.limit, form.limit)
    if form.kind == "integer":  # and to one value less
        x = x.clip(-form.limit)
    return compare_with_gfloat(form, torch.from_numpy(x), ("nearest",))


def blocks_by_gfloat(name: str) -> None:
    """Clipped first, because its blocks do not saturate."""
    info = getattr(pytest.importorskip("gfloat.formats"), f"format_info_{GFLOAT[name]}")
    blocks = pytest.importorskip("gfloat.block")
    q = named_quantizer(name)
    x_GE = groups(q.format.name, 32, -149, 120)
    x_GE = x_GE[x_GE.any(1)]  # its scale of a group of zeros is none
    x_GE = x_GE.abs() if name == "MXINT8" else x_GE  # two's complement reaches -2
    actual_GE = fake_quantize(x_GE, q).double().numpy()
    for actual_E, x_E in zip(actual_GE, x_GE.double().numpy(), strict=True):
        scale = blocks.compute_scale_amax(info.etype.emax, x_E)
        clipped_E = np.clip(x_E, -info.etype.max * scale, info.etype.max * scale)
        assert actual_E.tolist() == blocks.quantize_block(info, clipped_E, blocks.compute_scale_amax).tolist()


def by_torchao(name: str) -> None:
    if name == "NVFP4":
        return nvfp4_by_torchao()
    module = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    q = named_quantizer(name)
    # Its scales end at 2^-126, E8M0 at 2^-127.
    x_GE = groups(q.format.name, 32, q.format.largest_exponent - 126, 8000)
    infinite_GE = x_GE[:500].clone()
    infinite_GE[:, 7] = torch.inf
    for x in (x_GE, infinite_GE):
        expected_GE = module.MXTensor.to_mx(x, TORCHAO[name], 32).dequantize(torch.float32)
        assert same(fake_quantize(x, q), expected_GE)
    return None


def nvfp4_by_torchao() -> None:
    """A tensor's scale of 2^-11, blocks from E4M3's smallest normal scale up."""
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    largest, unit = 6 * 448 * 2.0**-11, 2.0**-11
    x_GE = hard_groups(format_named("E2M1"), 16_000, 16, -18, 0).clamp(-largest, largest)
    most_G = x_GE.abs().amax(1)
    x_GE = x_GE[(most_G >= 6 * 2.0**-6 * unit) | (most_G == 0)]
    x_GE = x_GE[: len(x_GE) // 16 * 16]
    x_GE[0, 0] = largest
    x = x_GE.view(16, -1)
    made = module.NVFP4Tensor.to_nvfp4(x, 16, per_tensor_scale=torch.tensor(unit))
    scale_G = scales(x_GE.view(1, -1, 16), named_quantizer("NVFP4"))[0].flatten()
    assert torch.equal(scale_G[scale_G > 0], made.scale.float().flatten()[scale_G > 0] * unit)
    expected = made.dequantize(torch.float32)
    torch.testing.assert_close(fake_quantize(x, named_quantizer("NVFP4")), expected, rtol=1e-6, atol=0)


def four_bit(name: str) -> None:
    """bitsandbytes takes scales under 2^-126 for other numbers than they are."""
    functional = pytest.importorskip("bitsandbytes.functional")
    x_GE = groups(name, 64, -126, 4000)
    packed, state = functional.quantize_4bit(x_GE, blocksize=64, quant_type=name.lower())
    assert same(fake_quantize(x_GE, named_quantizer(f"{name}@64")), functional.dequantize_4bit(packed, state))


def blockwise(name: str) -> None:
    """In FP64, so that what lies on a tie for us may not for them, and another level of a tie is as near."""
    pytest.importorskip("bitsandbytes")
    x_GE = groups(name, 64, -126, 4000)
    x_GE = x_GE[x_GE.any(1)]
    code = torch.tensor(values(format_named(name)))
    index, most = torch.ops.bitsandbytes.quantize_blockwise.default(x_GE.double(), code, 64)
    expected_GE = code[index.long()].view(-1, 64) * most.view(-1, 1)
    clear_GE = clear_of_ties(x_GE, name)
    assert clear_GE.float().mean() > 0.5
    assert torch.equal(fake_quantize(x_GE, named_quantizer(f"{name}@64:absmax"))[clear_GE], expected_GE[clear_GE])


def by_torch(name: str) -> None:
    """It multiplies by 1 / scale, and adds the zero point before it rounds, so that ties agree only without one and
    where the scale is a power of two. Ranges of 2^128 are no FP32 numbers: they make a group NaN, there too."""
    q = named_quantizer(f"{name}@channel")
    x_GE = groups(name, 64, -100, 4000)
    x_GE = x_GE[x_GE.any(1) & (x_GE.abs().amax(1) < 2.0**127)]
    scale, zero = scales(x_GE.unsqueeze(1), q)
    zeros = torch.zeros(len(x_GE), dtype=torch.int32) if zero is None else zero.flatten().int()
    low = 0 if q.has_zero_point else -int(q.format.limit)
    expected_GE = torch.fake_quantize_per_channel_affine(x_GE, scale.flatten(), zeros, 0, low, int(q.format.limit))
    ratio_GE = x_GE.double() / scale.view(-1, 1).double()
    tie_GE = (ratio_GE - ratio_GE.floor() - 0.5).abs() <= 1e-6 * ratio_GE.abs()
    if not q.has_zero_point:
        tie_GE &= scale.view(-1, 1).frexp().mantissa != 0.5
    assert (~tie_GE).float().mean() > 0.5
    torch.testing.assert_close(fake_quantize(x_GE, q)[~tie_GE], expected_GE[~tie_GE], rtol=1e-6, atol=0)


CHECKS: dict[str, Callable[[str], None]] = {
    "ml_dtypes": elementwise,
    "numpy": elementwise,
    "gfloat": by_gfloat,
    "torchao": by_torchao,
    "bitsandbytes 4-bit": four_bit,
    "bitsandbytes blockwise": blockwise,
    "torch": by_torch,
}


def entries() -> Iterator[object]:
    """gfloat takes 0.1 to 0.3 s for a million values, and serves 280 formats."""
    for name, peers in PEERS.items():
        for peer in peers:
            slow = peer == "gfloat" and name not in GFLOAT
            yield pytest.param(name, peer, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.filterwarnings("ignore")  # torchao and bitsandbytes import what torch deprecates
@pytest.mark.parametrize(("name", "peer"), list(entries()))
def test_edges(name: str, peer: str) -> None:
    CHECKS[peer](name)
