"""Formats and quantizers against other people's code: ml_dtypes, gfloat, torchao, bitsandbytes, torch.

peer          what is compared
ml_dtypes     E2M1, E2M3, E3M2, E4M3FN, E4M3IEEE, E3M4IEEE, E5M2IEEE: all codes, 1e6 values, subnormals, ties
gfloat        every ExMy in its three variants (round_ndarray with saturation); blocks MXFP4/6/8, MXINT8
torchao       MXFP4/6/8 and NVFP4 tensors
bitsandbytes  NF4, FP4, 1e6 values, bit for bit
torch         INTk and UINTk per channel (fake_quantize_per_channel_affine multiplies by 1 / scale: ties may differ)
None was found for NF3, BINARY and TERNARY: their oracle is in test_formats.py.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from shared.formats import format_named
from shared.formats.names import names
from shared.formats.oracle import values
from shared.quantize import Quantizer, fake_quantize, parse_quantizer
from shared.quantize.quantizer import scales

ML_DTYPES = {
    "E2M1": "float4_e2m1fn",
    "E2M3": "float6_e2m3fn",
    "E3M2": "float6_e3m2fn",
    "E4M3FN": "float8_e4m3fn",
    "E4M3IEEE": "float8_e4m3",
    "E3M4IEEE": "float8_e3m4",
    "E5M2IEEE": "float8_e5m2",
}
FLOATS = [name for name in names() if name[0] == "E"]
VARIANTS = [
    *(f"E{e}M{m}FN" for e in range(2, 9) for m in (0, 3)),
    *(f"E{e}M{m}IEEE" for e in range(2, 9) for m in (0, 3)),
]


def quantizer(text: str) -> Quantizer:
    made = parse_quantizer(text)
    assert made is not None
    return made


def million(limit: float, count: int = 1_000_000) -> torch.Tensor:
    """Values over the whole range of magnitudes and around one, the ends included."""
    generator = torch.Generator().manual_seed(0)
    third = count // 3
    spread = torch.exp2(torch.rand(third, generator=generator) * 40 - 39) * min(limit, 2.0**100)
    spread *= torch.randint(0, 2, (third,), generator=generator) * 2 - 1
    flat = (torch.rand(third, generator=generator) * 2 - 1) * min(limit, 2.0**100)
    normal = torch.randn(count - 2 * third, generator=generator)
    return torch.cat([spread, flat, normal]).clamp(-limit, limit)


def codes_and_ties(name: str) -> torch.Tensor:
    grid = torch.tensor(values(format_named(name)), dtype=torch.float64)
    if len(grid) > 2000:
        grid = grid[torch.randperm(len(grid), generator=torch.Generator().manual_seed(0))[:2000]].sort().values
    points = torch.cat([grid, (grid[1:] + grid[:-1]) / 2]).float()
    return torch.cat([points, torch.nextafter(points, points * 2), torch.nextafter(points, torch.zeros_like(points))])


@pytest.mark.parametrize("name", list(ML_DTYPES))
def test_ml_dtypes(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    form = format_named(name)
    peer = np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
    codes = np.arange(2**form.bits, dtype=np.uint8).view(peer).astype(np.float32)
    finite = np.unique(codes[np.isfinite(codes)])
    assert finite.tolist() == values(form)
    x = torch.cat([million(form.limit), codes_and_ties(name).clamp(-form.limit, form.limit)])
    expected = x.numpy().astype(peer).astype(np.float32)
    assert np.array_equal(form.cast(x).numpy(), expected)


def gfloat_info(name: str):  # type: ignore[no-untyped-def]
    gfloat = pytest.importorskip("gfloat")
    form = format_named(name)
    reserved = {"": 0, "FN": 1, "IEEE": 2**form.mantissa - 1}[form.variant]
    return gfloat.FormatInfo(
        name,
        form.bits,
        form.mantissa + 1,
        bias=form.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended if form.variant == "IEEE" else gfloat.Domain.Finite,
        has_nz=True,
        num_high_nans=reserved,
        has_subnormals=True,
        is_twos_complement=False,
    )


def compare_with_gfloat(name: str, x: torch.Tensor) -> None:
    gfloat = pytest.importorskip("gfloat")
    form, info = format_named(name), gfloat_info(name)
    if form.exponent < 8:  # there gfloat goes on to 2^128, which FP32 does not have
        assert info.max == form.limit
        x = torch.cat([x, torch.tensor([torch.inf, -torch.inf, 3e38, -3e38])])
    for rounding, mode in (("nearest", gfloat.RoundMode.TiesToEven), ("half_away", gfloat.RoundMode.TiesToAway)):
        expected = gfloat.round_ndarray(info, x.double().numpy(), mode, sat=True)
        actual = form.cast(x, rounding).double().numpy()  # type: ignore[arg-type]
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("name", [*FLOATS, *VARIANTS])
def test_gfloat(name: str) -> None:
    limit = format_named(name).limit
    compare_with_gfloat(name, torch.cat([million(limit, 3000), codes_and_ties(name).clamp(-limit, limit)]))


@pytest.mark.parametrize("name", ["E2M1", "E2M3", "E3M2", "E4M3", "E4M3FN", "E5M2IEEE", "E1M1", "E0M7"])
def test_gfloat_on_a_million(name: str) -> None:
    compare_with_gfloat(name, million(format_named(name).limit))


@pytest.mark.parametrize(
    ("text", "block"),
    [
        *(("MXFP4", "mxfp4_e2m1"), ("MXFP6E2M3", "mxfp6_e2m3"), ("MXFP6E3M2", "mxfp6_e3m2")),
        *(("MXFP8E4M3", "mxfp8_e4m3"), ("MXFP8E5M2", "mxfp8_e5m2"), ("MXINT8", "mxint8")),
    ],
)
def test_gfloat_blocks(text: str, block: str) -> None:
    info = getattr(pytest.importorskip("gfloat.formats"), f"format_info_{block}")
    blocks = pytest.importorskip("gfloat.block")
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * torch.exp2(torch.arange(64) - 32.0)[:, None]
    x[5, 3:] = 0.0
    if text == "MXINT8":
        x = x.abs()  # gfloat's two's complement reaches -2, ours is symmetric like microxcaling's
    actual = fake_quantize(x, quantizer(text))
    for row, expected_row in zip(actual, x, strict=True):
        saturated = expected_row.double().numpy()
        scale = blocks.compute_scale_amax(info.etype.emax, saturated)
        saturated = np.clip(saturated, -info.etype.max * scale, info.etype.max * scale)
        assert row.tolist() == blocks.quantize_block(info, saturated, blocks.compute_scale_amax).tolist()


@pytest.fixture(scope="module")
def torchao() -> Iterator[object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what torch deprecates
        yield pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("MXFP4", torch.float4_e2m1fn_x2),
        ("MXFP6E2M3", "fp6_e2m3"),
        ("MXFP6E3M2", "fp6_e3m2"),
        ("MXFP8E4M3", torch.float8_e4m3fn),
        ("MXFP8E5M2", torch.float8_e5m2),
    ],
)
def test_torchao_mx(text: str, element: torch.dtype | str, torchao: object) -> None:
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    x *= torch.exp2(torch.randint(-30, 30, (1024, 1), generator=torch.Generator().manual_seed(1)).float())
    x[3] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torchao.MXTensor.to_mx(x, element, 32).dequantize(torch.float32)  # type: ignore[attr-defined]
    assert torch.equal(fake_quantize(x, quantizer(text)), expected)


def test_torchao_nvfp4(torchao: object) -> None:
    """The scales agree, and all but the ties (torchao multiplies by reciprocals). Blocks below 2^-6 of the largest one
    are left out: torchao does not let block scales fall under E4M3's smallest normal."""
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    tensor_scale = x.abs().max() / (6 * 448)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = nvfp4.NVFP4Tensor.to_nvfp4(x, 16, per_tensor_scale=tensor_scale)
        expected = made.dequantize(torch.float32)
    scale, _ = scales(x.unflatten(-1, (-1, 16)), quantizer("NVFP4"))
    assert torch.equal(scale.squeeze(-1), made.scale.float().reshape(1024, 64) * tensor_scale)
    actual = fake_quantize(x, quantizer("NVFP4"))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("text", "kind"), [("NF4@64", "nf4"), ("FP4@64", "fp4"), ("NF4@256", "nf4"), ("FP4@32", "fp4")]
)
def test_bitsandbytes(text: str, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("bitsandbytes.functional")
        x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
        x[7] = 0.0
        size = int(text.partition("@")[2])
        packed, state = functional.quantize_4bit(x, blocksize=size, quant_type=kind)
        expected = functional.dequantize_4bit(packed, state)
    assert torch.equal(fake_quantize(x, quantizer(text)), expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_codes(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("bitsandbytes.functional")
        code = functional.get_4bit_type(kind, device="cpu")
    assert sorted(set(code.tolist())) == list(format_named(kind.upper()).levels)


@pytest.mark.parametrize(
    "text", [*(f"INT{k}@channel" for k in range(2, 9)), *(f"UINT{k}@channel" for k in range(1, 9))]
)
def test_torch_integers(text: str) -> None:
    q = quantizer(text)
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)) + (0.5 if q.has_zero_point else 0.0)
    scale, zero = scales(x.unsqueeze(1), q)
    zeros = torch.zeros(512, dtype=torch.int32) if zero is None else zero.flatten().int()
    low = 0 if q.has_zero_point else -int(q.format.limit)
    expected = torch.fake_quantize_per_channel_affine(x, scale.flatten(), zeros, 0, low, int(q.format.limit))
    actual = fake_quantize(x, q)
    different = (actual - expected).abs() > 1e-6 * expected.abs()
    assert different.float().mean() < 1e-4
