"""Fake-quantize, FP32 in and out, against copying the tensor, gfloat, our eager form, and what torch or torchao has."""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.turns import compared, in_turns
from shared.formats.gaussian import gaussian_fit
from shared.quantize import Quantizer, fake_quantize
from shared.quantize.fast import fast_fake_quantize, in_kernel
from shared.quantize.quantizer import E4M3, named_quantizer

ROUNDS = 9
ROWS, LENGTH = 2048, 4096  # 32 MB of FP32
GFLOAT_ROWS = 128  # gfloat gets a sixteenth of the tensor, 2 MB, which stays in the cache
TEXTS = ["INT4@32", "E4M3FN@channel", "MXFP4", "NVFP4"]


def gfloat_form(name: str) -> Any:
    import gfloat.formats

    if name == "INT4":
        bits = {"k": 4, "precision": 4, "bias": -2, "is_signed": True, "domain": gfloat.Domain.Finite}
        return gfloat.FormatInfo(
            "INT4", **bits, has_nz=False, num_high_nans=0, has_subnormals=True, is_twos_complement=True
        )
    return {"E2M1": gfloat.formats.format_info_ocp_e2m1, "E4M3FN": gfloat.formats.format_info_ocp_e4m3}[name]


def by_gfloat(x_RL: np.ndarray, q: Quantizer) -> np.ndarray:
    """The same quantizer: its scales in numpy, all casts by gfloat's `round_ndarray`."""
    import gfloat

    form, fp8 = gfloat_form(q.format.name), gfloat_form("E4M3FN")
    x_NE = x_RL.reshape(-1, q.group_size(x_RL.shape[-1]))
    most_N1 = np.abs(x_NE).max(-1, keepdims=True)
    if q.scale_rule == "mx":
        scale_N1 = np.exp2(np.floor(np.log2(most_N1)) - q.format.largest_exponent)
    else:
        scale_N1 = most_N1 / np.float32(q.format.limit)
    if q.scale_format == "E4M3":
        shared = most_N1.max() / np.float32(E4M3.limit * q.format.limit)
        scale_N1 = gfloat.round_ndarray(fp8, scale_N1 / shared, sat=True) * shared
    return (gfloat.round_ndarray(form, x_NE / scale_N1, sat=True) * scale_N1).reshape(x_RL.shape)


def by_torch(text: str) -> Callable[[Tensor], Tensor]:
    """What torch and torchao have for it, eager as it comes."""
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    def integer(x_RL: Tensor) -> Tensor:
        x_NE = x_RL.view(-1, 32)
        scale_N = x_NE.abs().amax(-1) / 7
        zeros = torch.zeros(len(x_NE), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x_NE, scale_N, zeros, 0, -7, 7).view(x_RL.shape)

    def float8(x_RL: Tensor) -> Tensor:
        scale_R1 = x_RL.abs().amax(-1, keepdim=True) / 448
        return (x_RL / scale_R1).to(torch.float8_e4m3fn).float() * scale_R1

    def mx(x_RL: Tensor) -> Tensor:
        return MXTensor.to_mx(x_RL, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32)

    def nvfp4(x_RL: Tensor) -> Tensor:
        made = NVFP4Tensor.to_nvfp4(x_RL, 16, per_tensor_scale=x_RL.abs().max() / (6 * 448))
        return made.dequantize(torch.float32)

    return dict(zip(TEXTS, (integer, float8, mx, nvfp4), strict=True))[text]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", TEXTS)
def test_fake_quantize(benchmark: Any, text: str) -> None:
    """One thread; bandwidth is bytes read plus written over seconds; copy and ours write into an existing tensor."""
    torch.set_num_threads(1)
    q = named_quantizer(text)
    x = torch.randn(ROWS, LENGTH, generator=torch.Generator().manual_seed(0))
    assert in_kernel(x, q)
    out, peer = torch.empty_like(x), by_torch(text)
    part = x[:GFLOAT_ROWS].numpy()
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: out.copy_(x),
        "ours": lambda: fast_fake_quantize(x, q, out=out),
        "ours_allocating": lambda: fast_fake_quantize(x, q),
        "eager": lambda: fake_quantize(x, q),
        "torch": lambda: peer(x),
        "gfloat_part": lambda: by_gfloat(part, q),
    }
    seconds = in_turns(steps, ROUNDS, warm_up=1)
    share = ROWS / GFLOAT_ROWS
    moved = 2 * x.numel() * x.element_size()
    rounded = fast_fake_quantize(x, q)
    assert torch.equal(rounded, fake_quantize(x, q))
    errors = {name: relative_mse(y, x) for name, y in (("", rounded), ("torch_", peer(x)))}
    errors["gfloat_"] = relative_mse(torch.from_numpy(by_gfloat(part, q)), x[:GFLOAT_ROWS])
    benchmark.extra_info |= {
        "values": x.numel(),
        "copy_gigabytes_per_second": moved / statistics.median(seconds["copy"]) / 1e9,
        "gigabytes_per_second": moved / statistics.median(seconds["ours"]) / 1e9,
        **compared("share_of_copy", seconds, "copy", "ours"),
        **compared("share_of_copy_allocating", seconds, "copy", "ours_allocating"),
        **compared("times_faster_than_gfloat", seconds, "gfloat_part", "ours"),
        **compared("times_faster_than_eager", seconds, "eager", "ours"),
        **compared("times_faster_than_torch", seconds, "torch", "ours"),
        **{f"{name}relative_mse": error for name, error in errors.items()},
        "best_relative_mse_of_one_scale": gaussian_fit(q.format).mse,
    }
    benchmark.extra_info["times_faster_than_gfloat"] *= share
    benchmark.pedantic(steps["ours"], rounds=5)


def relative_mse(y: Tensor, x: Tensor) -> float:
    return float((y - x).double().square().sum() / x.double().square().sum())
