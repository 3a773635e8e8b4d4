"""Formats and quantizers against other people's code; PEERS says whose code serves which format.

ml_dtypes, numpy  IEEE and OCP floats that they have: all codes, ties and their neighbours, 1e6 values
gfloat            every ExMy in its three variants and INTk, to nearest and half away: all magnitudes and ties of the
                  plain formats, 2e4 values of each, 1e6 values of eight (it takes 0.2 us a value, 200 formats 40 s);
                  stochastic rounding; blocks MXFP4/6/8 and MXINT8
torchao           MXFP4/6/8, scales by the next power of two, NVFP4: 1e6 values
bitsandbytes      NF4 and FP4; NF3, BINARY and TERNARY as code books of its blockwise quantization: 1e6 values
torch             INTk and UINTk per channel (it multiplies by 1 / scale, so ties may differ): 1e6 values
"""

import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from shared.errors import BitlawError
from shared.formats import Format, format_named
from shared.formats.names import names
from shared.formats.oracle import decision_points, magnitudes, values
from shared.quantize import Quantizer, fake_quantize
from shared.quantize.quantizer import PRESETS, SCALE_BITS, named_quantizer, scales

ML_DTYPES = {
    "E2M1": "float4_e2m1fn",
    "E2M3": "float6_e2m3fn",
    "E3M2": "float6_e3m2fn",
    "E4M3FN": "float8_e4m3fn",
    "E4M3IEEE": "float8_e4m3",
    "E3M4IEEE": "float8_e3m4",
    "E5M2IEEE": "float8_e5m2",
    "E8M7IEEE": "bfloat16",
}
FLOATS = [name for name in names() if name[0] == "E"]


def exists(name: str) -> bool:
    try:
        return bool(format_named(name))
    except BitlawError:  # no code but zero is left
        return False


VARIANTS = [name + variant for name in FLOATS for variant in ("FN", "IEEE") if exists(name + variant)]

PEERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*FLOATS, *VARIANTS), ("gfloat",)),
    **dict.fromkeys(ML_DTYPES, ("ml_dtypes", "gfloat")),
    "E5M10IEEE": ("numpy", "gfloat"),
    **{f"INT{bits}": ("torch", "gfloat") for bits in range(2, 9)},
    **{f"UINT{bits}": ("torch",) for bits in range(1, 9)},
    **dict.fromkeys(("NF4", "FP4"), ("bitsandbytes 4-bit",)),
    **dict.fromkeys(("NF3", "BINARY", "TERNARY"), ("bitsandbytes blockwise",)),
    **dict.fromkeys(("MXFP4", "MXFP6E2M3", "MXFP6E3M2", "MXFP8E4M3", "MXFP8E5M2"), ("torchao", "gfloat")),
    "MXINT8": ("gfloat",),
    "NVFP4": ("torchao",),
}
SCALE_PEERS = {"FP32": "bitsandbytes", "BF16": "ml_dtypes", "E8M0": "torchao", "E4M3": "torchao"}


def served(peer: str, *of: str) -> list[str]:
    return [name for name in of or PEERS if peer in PEERS[name]]


def test_every_format_has_its_peer() -> None:
    assert set(PEERS) == {*names(), *VARIANTS, *PRESETS}
    assert all(PEERS.values())
    assert set(SCALE_PEERS) == set(SCALE_BITS)


def quantizer(text: str) -> Quantizer:
    return named_quantizer(text)


@cache
def million(count: int = 1_000_000) -> torch.Tensor:
    """A third of magnitudes from 2^-40 to 1, a third flat on (-1, 1), a third normal, divided by the largest."""
    generator = torch.Generator().manual_seed(0)
    third = count // 3
    spread = torch.exp2(torch.rand(third, generator=generator) * -40)
    spread *= torch.randint(0, 2, (third,), generator=generator) * 2 - 1
    normal = torch.randn(count - 2 * third, generator=generator)
    return torch.cat([spread, torch.rand(third, generator=generator) * 2 - 1, normal / normal.abs().max()])


def spread(form: Format, count: int = 1_000_000) -> torch.Tensor:
    """Values over the range of a format; with their share around one."""
    x = million(count) * form.limit
    x[-count // 6 :] = million(count)[-count // 6 :] * min(4.0, form.limit)
    return x


def codes_and_ties(form: Format) -> torch.Tensor:
    """All magnitudes (of variants the two largest octaves), all ties, and the FP32 numbers beside them."""
    held = magnitudes(form) if form.kind == "float" else values(form)
    points = torch.from_numpy(np.concatenate([held, decision_points(form)])).float()
    if form.variant:
        points = points[points >= 2.0 ** (form.largest_exponent - 1)]
    points = torch.cat([points, torch.nextafter(points, 2 * points), torch.nextafter(points, 0 * points)])
    return points.clamp(-form.limit, form.limit)


def codes_of(name: str) -> NDArray[np.float32]:
    form = format_named(name)
    whole = np.uint16 if form.bits > 8 else np.uint8
    if "numpy" in PEERS[name]:
        peer = np.dtype(np.float16)
    else:
        peer = np.dtype(getattr(pytest.importorskip("ml_dtypes"), ML_DTYPES[name]))
    return np.arange(2**form.bits, dtype=whole).view(peer)


@pytest.mark.parametrize("name", [*ML_DTYPES, "E5M10IEEE"])
def test_ml_dtypes_and_numpy(name: str) -> None:
    """Without what is beyond the largest value, which they do not saturate, and NaN where they have no code for it."""
    form = format_named(name)
    codes = codes_of(name)
    finite = np.unique(codes.astype(np.float32)[np.isfinite(codes.astype(np.float32))])
    assert finite.tolist() == values(form)
    x = torch.cat([spread(form), codes_and_ties(form), -codes_and_ties(form), torch.tensor([0.0, -0.0])])
    x = torch.cat([x, torch.tensor([torch.nan])]) if form.variant else x
    expected = x.numpy().astype(codes.dtype).astype(np.float32)
    assert np.array_equal(form.cast(x).numpy(), expected, equal_nan=True)


def gfloat_info(form: Format):  # type: ignore[no-untyped-def]
    gfloat = pytest.importorskip("gfloat")
    if form.exponent == 1 and form.variant == "IEEE":  # subnormals only, which gfloat's `max` does not know: E0My
        form = format_named(f"E0M{form.mantissa}")
    integer = form.kind == "integer"
    reserved = {"": 0, "FN": 1, "IEEE": 2**form.mantissa - 1}[form.variant]
    return gfloat.FormatInfo(
        form.name,
        form.bits,
        form.bits if integer else form.mantissa + 1,
        bias=2 - form.bits if integer else form.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended if form.variant == "IEEE" else gfloat.Domain.Finite,
        has_nz=not integer,
        num_high_nans=reserved,
        has_subnormals=True,
        is_twos_complement=integer,
    )


def compare_with_gfloat(form: Format, x: torch.Tensor, roundings: tuple[str, ...] = ("nearest", "half_away")) -> None:
    gfloat = pytest.importorskip("gfloat")
    info = gfloat_info(form)
    modes = {"nearest": gfloat.RoundMode.TiesToEven, "half_away": gfloat.RoundMode.TiesToAway}
    x = torch.cat([x, torch.tensor([0.0, -0.0])])
    if form.exponent < 8:  # there gfloat goes on to 2^128, which FP32 does not have
        assert info.max == form.limit
        x = torch.cat([x, torch.tensor([torch.inf, 3e38])])
    if form.kind == "float" and form.exponent < 8:  # gfloat's two's complement has one negative value more
        x = torch.cat([x, torch.tensor([-torch.inf, -3e38])])
    for rounding in roundings:
        expected = gfloat.round_ndarray(info, x.double().numpy(), modes[rounding], sat=True)
        actual = form.cast(x, rounding).double().numpy()  # type: ignore[arg-type]
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("name", served("gfloat", *FLOATS, *VARIANTS, *(f"INT{bits}" for bits in range(2, 9))))
def test_gfloat(name: str) -> None:
    """All magnitudes, ties and neighbours to nearest; 2e4 values in both roundings."""
    form = format_named(name)
    compare_with_gfloat(form, codes_and_ties(form), ("nearest",))
    compare_with_gfloat(form, spread(form, 20_000))


@pytest.mark.parametrize("name", ["E2M1", "E2M3", "E3M2", "E4M3", "E4M3FN", "E5M2IEEE", "E0M7", "INT4"])
def test_gfloat_on_a_million(name: str) -> None:
    compare_with_gfloat(format_named(name), spread(format_named(name)), ("nearest",))


@pytest.mark.parametrize("name", ["E2M1", "E3M0", "E4M3FN", "E8M3", "E0M4", "INT4"])
def test_gfloat_stochastic(name: str) -> None:
    """It rounds away from zero when the fraction is 1 - bits / 2^16 or more; ours when it is above the noise."""
    gfloat = pytest.importorskip("gfloat")
    form = format_named(name)
    x = spread(form, 100_000)
    x = x.abs() if form.kind == "integer" else x  # integers: up, not away from zero
    bits = np.random.Generator(np.random.PCG64(0)).integers(0, 2**16, len(x))
    least = torch.from_numpy(1 - bits / 2**16).float()
    stochastic = gfloat.RoundMode.StochasticFastest
    expected = gfloat.round_ndarray(gfloat_info(form), x.double().numpy(), stochastic, True, bits, 16)
    actual = form.cast_stochastic(x, torch.nextafter(least, torch.zeros(()).expand_as(least)))
    assert np.array_equal(actual.double().numpy(), expected)


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


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("E2M1", torch.float4_e2m1fn_x2),
        ("E2M3", "fp6_e2m3"),
        ("E3M2", "fp6_e3m2"),
        ("E4M3FN", torch.float8_e4m3fn),
        ("E5M2IEEE", torch.float8_e5m2),
    ],
)
def test_torchao_e8m0_scales(name: str, element: torch.dtype | str, torchao: object) -> None:
    """Its RCEIL: the next power of two up from max / limit."""
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    x *= torch.exp2(torch.randint(-30, 30, (1024, 1), generator=torch.Generator().manual_seed(1)).float())
    x[3] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mode = torchao.ScaleCalculationMode.RCEIL  # type: ignore[attr-defined]
        made = torchao.MXTensor.to_mx(x, element, 32, scaling_mode=mode)  # type: ignore[attr-defined]
    assert torch.equal(fake_quantize(x, quantizer(f"{name}@32:e8m0")), made.dequantize(torch.float32))


def test_scale_formats_hold_their_scales() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = torch.randn(4096, 1, 16, generator=torch.Generator().manual_seed(0))
    x *= torch.exp2(torch.randint(-40, 40, (4096, 1, 1), generator=torch.Generator().manual_seed(1)).float())
    plain, _ = scales(x, quantizer("INT4@16"))
    coarse, _ = scales(x, quantizer("INT4@16:bf16"))
    assert np.array_equal(coarse.numpy(), plain.numpy().astype(ml_dtypes.bfloat16).astype(np.float32))
    for text in ("INT4@16:e8m0", "E2M1@16:mx:e8m0"):
        power = scales(x, quantizer(text))[0].numpy()
        assert np.array_equal(power, power.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32))


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


@pytest.mark.parametrize("name", served("bitsandbytes blockwise"))
def test_bitsandbytes_blockwise(name: str) -> None:
    """Its exact form, which it takes for FP64 input; that for FP32 finds the level by a table, 3e-5 of them wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("bitsandbytes")
    code = torch.tensor(values(format_named(name)))
    x = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    index, most = torch.ops.bitsandbytes.quantize_blockwise.default(x.double(), code, 64)
    expected = code[index.long()].unflatten(-1, (-1, 64)) * most.view(1024, 16, 1)
    assert torch.equal(fake_quantize(x, quantizer(f"{name}@64:absmax")), expected.reshape(x.shape))


@pytest.mark.parametrize("name", served("torch"))
def test_torch_integers(name: str) -> None:
    q = quantizer(f"{name}@channel")
    x = torch.randn(1000, 1024, generator=torch.Generator().manual_seed(0)) + (0.5 if q.has_zero_point else 0.0)
    scale, zero = scales(x.unsqueeze(1), q)
    zeros = torch.zeros(1000, dtype=torch.int32) if zero is None else zero.flatten().int()
    low = 0 if q.has_zero_point else -int(q.format.limit)
    expected = torch.fake_quantize_per_channel_affine(x, scale.flatten(), zeros, 0, low, int(q.format.limit))
    actual = fake_quantize(x, q)
    different = (actual - expected).abs() > 1e-6 * expected.abs()
    assert different.float().mean() < 1e-4
