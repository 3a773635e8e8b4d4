"""The one-pass fake-quantize against the eager function, bit for bit, and its errors."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.formats import format_named
from shared.formats.names import names
from shared.quantize import Quantizer, fake_quantize, parse_quantizer
from shared.quantize import fast as module
from shared.quantize.fast import fast_fake_quantize, in_kernel
from shared.quantize.quantizer import PRESETS, named_quantizer

GROUPS = ("channel", "tensor", 4, 8, 16, 32, 48)
SCALES = ("fp32", "bf16", "e8m0", "e4m3")
FORMATS = ("INT2", "INT4", "INT8", "TERNARY", "E2M1", "E4M3FN", "E5M2IEEE", "E0M3", "E3M0", "E4M0", "E8M0", "E8M3")
ROUNDINGS = ("rne", "away", "sr")
EAGER = (
    "BINARY@8",
    "TERNARY@channel",
    "NF4@64",
    "FP4@32",
    "INT3@32:mse",
    "INT8@token:p99.9",
    "UINT4@32",
    "UINT2@8:mse",
)


def matrix() -> Tensor:
    """Normal values of all magnitudes; rows of zeros, ties, FP32's ends, infinities and NaN; 96 columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 96, generator=generator)
    x[0] = 0.0
    x[1, :48] = -0.0
    x[2] = torch.randint(-14, 15, (96,), generator=generator) / 2  # ties of every grid, with a scale of one
    x[2, ::16] = 7.0
    x[3] *= 2.0**-130
    x[4] *= 2.0**-146
    x[5] *= 2.0**120
    x[6, 5] = 40.0
    x[7] = torch.exp2(torch.arange(96) - 60.0)
    x[8] = 1.5 * torch.exp2(torch.arange(96) % 7 - 3.0)
    return x


def specials() -> Tensor:
    x = matrix()
    x[10, 3] = math.inf
    x[11, 50] = -math.inf
    x[12, 70] = math.nan
    x[13, ::2] = math.inf
    return x


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; NaN is NaN whatever its payload."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf).view(torch.int32),
        b.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf).view(torch.int32),
    )


def both(x: Tensor, q: Quantizer) -> tuple[Tensor, Tensor]:
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) if q.rounding == "stochastic" else None
    return fast_fake_quantize(x, q, noise), fake_quantize(x, q, noise)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", FORMATS)
def test_kernel_is_eager_bit_for_bit(name: str, group: int | str) -> None:
    for scale in SCALES:
        for rounding in ROUNDINGS:
            q = named_quantizer(f"{name}@{group}:absmax:{scale}:{rounding}")
            assert in_kernel(matrix(), q)
            for x in (matrix(), specials(), torch.zeros(2, 96)):
                assert same(*both(x, q)), q


@pytest.mark.parametrize("text", [f"{preset}{way}" for preset in PRESETS for way in ("", ":away", ":sr")])
def test_presets_too(text: str) -> None:
    q = named_quantizer(text)
    assert in_kernel(matrix(), q)
    for x in (matrix(), specials(), torch.zeros(2, 96)):
        assert same(*both(x, q))


@pytest.mark.parametrize("text", EAGER)
def test_what_the_kernel_leaves_to_eager(text: str) -> None:
    q = named_quantizer(text)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    assert not in_kernel(x, q)
    assert same(*both(x, q))
    assert not in_kernel(x.to("meta"), named_quantizer("INT4@32"))


@pytest.mark.parametrize("name", [name for name in names() if name[0] in "EIT"])
def test_every_format_on_many_values(name: str) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(2))
    x *= torch.exp2(torch.randint(-40, 40, (64, 1), generator=torch.Generator().manual_seed(3)).float())
    for group, scale_format in (("channel", "FP32"), (32, "E8M0")):
        assert same(*both(x, Quantizer(format_named(name), group, "absmax", scale_format)))


def test_any_layout_and_type() -> None:
    q = named_quantizer("INT4@16")
    x = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fast_fake_quantize(x.T, named_quantizer("INT4@16")), fake_quantize(x.T, q))
    assert torch.equal(fast_fake_quantize(x.bfloat16(), q), fake_quantize(x.bfloat16(), q))
    assert torch.equal(fast_fake_quantize(x[::2], q), fake_quantize(x[::2], q))
    assert torch.equal(fast_fake_quantize(x[0], q), fake_quantize(x[0], q))
    assert fast_fake_quantize(x[:0], q).shape == (0, 32)
    leaf = x.clone().requires_grad_()
    assert not fast_fake_quantize(leaf, q).requires_grad
    noise = torch.rand(48, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    random = named_quantizer("INT4@16:sr")
    assert torch.equal(fast_fake_quantize(x, random, noise), fake_quantize(x, random, noise))


@pytest.mark.parametrize("text", ["INT4@16", "NVFP4", "NF4@32"])
def test_into_a_tensor_or_in_place(text: str) -> None:
    q = named_quantizer(text)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    expected = fake_quantize(x, q)
    out = torch.empty_like(x)
    assert fast_fake_quantize(x, q, out=out) is out
    assert torch.equal(out, expected)
    fast_fake_quantize(x, q, out=x)
    assert torch.equal(x, expected)
    for wrong in (torch.empty(8, 32), torch.empty(8, 64).bfloat16(), torch.empty(64, 8).T):
        with pytest.raises(BitlawError, match=r"out must be contiguous FP32 of shape \(8, 64\)"):
            fast_fake_quantize(x, q, out=wrong)


@pytest.mark.parametrize("text", ["INT4@16", "NVFP4", "E4M3@channel", "INT4@tensor", "INT4@16:sr"])
def test_threads_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARALLEL", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert same(*both(matrix(), named_quantizer(text)))
    assert same(*both(specials(), named_quantizer(text)))


def test_bad_calls() -> None:
    x = torch.ones(2, 64)
    for text, noise, sentence in (
        ("INT4@7", None, "group_size 7 does not divide a row of 64 values"),
        ("INT4@8:sr", None, "takes noise"),
        ("INT4@8", x, "takes no noise"),
    ):
        with pytest.raises(BitlawError, match=sentence):
            fast_fake_quantize(x, named_quantizer(text), noise)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "fast.cpp"
    broken.write_text("int x = y;")
    monkeypatch.setattr(module, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module.library.cache_clear()
    with pytest.raises(BitlawError, match=r"fast.cpp: the C\+\+ compiler failed"):
        module.library()
    assert not list(tmp_path.glob("bitlaw/*.so"))
    module.library.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("text", ["INT4@32", "E4M3FN@channel", "MXFP4", "NVFP4"])
def test_compiled_by_torch_it_is_the_same(text: str) -> None:
    q = parse_quantizer(text)
    assert q is not None
    compiled = torch.compile(lambda x: fake_quantize(x, q), fullgraph=True)
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    assert same(compiled(x), fast_fake_quantize(x, q))
