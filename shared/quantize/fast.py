"""`fake_quantize` in one pass over memory, on CPU: the kernel of `fast.cpp`, bit for bit the eager function.

Eager `fake_quantize` writes ten to forty tensors of x's size; compiled by torch it takes seconds for each quantizer and
shape, and NVFP4 stayed under 30 % of the copy bandwidth (docs/log.md). Eager stays the definition, the form on every
other device and inside compiled code, and the oracle of this one in the tests.
"""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from shared.errors import BitlawError
from shared.native import built
from shared.quantize.quantizer import E4M3, Quantizer, check_noise, fake_quantize

SOURCE = Path(__file__).with_suffix(".cpp")
# Nothing that changes a bit: no fused multiply-adds, no fast-math.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fopenmp-simd",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
]
KINDS = ("integer", "shift", "step")
ROUNDINGS = ("nearest", "half_away", "stochastic")
SCALES = ("FP32", "BF16", "E8M0", "E4M3", "mx")
PARALLEL = 1 << 20  # elements from which another thread is worth its start

T = TypeVar("T")


class _Quantizer(ctypes.Structure):
    """The struct of `fast.cpp`."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("kind", "rounding", "scale", "mantissa", "largest_exponent")),
        *((name, ctypes.c_float) for name in ("limit", "smallest_normal", "tensor_scale")),
    )


def fast_fake_quantize(
    x_RL: Tensor, quantizer: Quantizer, noise_RL: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`fake_quantize(x, quantizer, noise)`, bit for bit, without a gradient; FP32.

    By the kernel where `in_kernel`, else by `fake_quantize` itself. With torch's number of threads. `out`, contiguous
    FP32 of x's shape, saves the allocation, which costs as much as the rest on large tensors; it may be x itself.
    Raises BitlawError as `fake_quantize` does, for another `out`, and without a C++ compiler.
    """
    if out is not None and (out.shape != x_RL.shape or out.dtype != torch.float32 or not out.is_contiguous()):
        raise BitlawError(f"out must be contiguous FP32 of shape {tuple(x_RL.shape)}: leave it out, or make it so")
    check_noise(quantizer, noise_RL)
    size = quantizer.group_size(x_RL.shape[-1])
    if not in_kernel(x_RL, quantizer, noise_RL):
        with torch.no_grad():
            rounded = fake_quantize(x_RL, quantizer, noise_RL)
            return rounded if out is None else out.copy_(rounded)
    x = x_RL.detach().float().contiguous()
    noise = None if noise_RL is None else noise_RL.detach().expand_as(x).contiguous()
    out = torch.empty_like(x) if out is None else out
    if not x.numel():
        return out
    if quantizer.group == "tensor":
        size = x.numel()
    made = _struct(quantizer, x)

    def run(begin: int, end: int) -> None:
        x_noise_out = (None if t is None else t.data_ptr() + 4 * size * begin for t in (x, noise, out))
        library().fake_quantize(*x_noise_out, end - begin, size, ctypes.byref(made))

    in_parts(run, x.numel() // size, x.numel())
    return out


def in_parts(run: Callable[[int, int], T], groups: int, elements: int) -> list[T]:
    """run(begin, end) over all groups, in so many parts as torch has threads and the elements are worth."""
    parts = max(min(torch.get_num_threads(), groups, elements // PARALLEL), 1)
    bounds = [groups * part // parts for part in range(parts + 1)]
    if parts == 1:
        return [run(0, groups)]
    with ThreadPoolExecutor(parts) as pool:  # ctypes lets go of Python's lock
        return list(pool.map(run, bounds[:-1], bounds[1:]))


def in_kernel(x: Tensor, quantizer: Quantizer, noise: Tensor | None = None) -> bool:
    """Whether the kernel covers it: Linux, CPU, symmetric integers and floats, scales by absmax or mx, FP32 noise."""
    form = quantizer.format
    return (
        sys.platform == "linux"
        and x.device.type == "cpu"
        and form.kind != "codebook"
        and not quantizer.has_zero_point
        and quantizer.scale_rule in ("absmax", "mx")
        and (noise is None or (noise.device.type == "cpu" and noise.dtype == torch.float32))
    )


def _struct(quantizer: Quantizer, x: Tensor) -> _Quantizer:
    form = quantizer.format
    kind = "integer"
    if form.kind == "float":  # the cases of Format._cast_float
        kind = "shift" if quantizer.rounding == "nearest" and form.mantissa and form.exponent < 8 else "step"
    tensor_scale = 1.0
    if quantizer.scale_format == "E4M3":

        def largest(begin: int, end: int) -> float:
            return float(library().largest_magnitude(x.data_ptr() + 4 * begin, end - begin))

        shared = torch.tensor(in_parts(largest, x.numel(), x.numel())).amax() / (E4M3.limit * form.limit)
        tensor_scale = shared.item() if shared > 0 else 1.0
    return _Quantizer(
        KINDS.index(kind),
        ROUNDINGS.index(quantizer.rounding),
        SCALES.index("mx" if quantizer.scale_rule == "mx" else quantizer.scale_format),
        form.mantissa,
        form.largest_exponent,
        form.limit,
        form.smallest_normal,
        tensor_scale,
    )


@cache
def library() -> ctypes.CDLL:
    """`fast.cpp`, compiled. Raises BitlawError without a C++ compiler, or when it fails."""
    opened = built(SOURCE, FLAGS)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    opened.fake_quantize.argtypes = [pointer, pointer, pointer, number, number, ctypes.POINTER(_Quantizer)]
    opened.fake_quantize.restype = None
    opened.largest_magnitude.argtypes = [pointer, number]
    opened.largest_magnitude.restype = ctypes.c_float
    return opened
