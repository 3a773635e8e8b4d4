"""The CPU kernels of `kernels.cpp` as operators of torch: attention, cross-entropy and SwiGLU in BF16.

Shape letters: B sequences, T positions, H heads, K head size, F feed-forward width, V vocabulary.

They are compiled once per machine by the compiler that `torch.compile` needs as well. Each has a plain form beside its
caller, which is its definition, its form on every other machine, and its oracle in the tests.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.native import built, instructions

SOURCE = Path(__file__).with_name("kernels.cpp")
# No -ffast-math: reassociation would undo the rounding inside the exponential, and linking it flushes denormals.
FLAGS = [
    "-std=c++20",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-fPIC",
    "-shared",
]
NEEDED = {"avx512f", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16"}
BLOCK = 32  # rows of a block of attention in kernels.cpp; positions and head sizes come in multiples of it


@cache
def usable() -> bool:
    """Whether this machine has what the kernels call: Linux, AVX-512 with BF16, and its tiles (AMX)."""
    if sys.platform != "linux" or not NEEDED.issubset(instructions().split()):
        return False
    return bool(library().supported())


@cache
def library() -> ctypes.CDLL:
    """`kernels.cpp`, compiled. Raises BitlawError without a C++ compiler, or when it fails."""
    opened = built(SOURCE, FLAGS)
    opened.supported.restype = ctypes.c_bool
    return opened


def call(name: str, *arguments: Tensor | int) -> None:
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int64(a) for a in arguments]
    getattr(library(), name)(*values)


Context = Any  # torch's autograd context, which has no public type


@torch.library.custom_op("bitlaw::attention", mutates_args=())
def attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention, (B, T, H, K), and the log-sum-exp of its scores, (B, H, T)."""
    q_BTHK, k_BTHK, v_BTHK = q_BTHK.contiguous(), k_BTHK.contiguous(), v_BTHK.contiguous()
    B, T, H, _ = q_BTHK.shape
    out_BTHK, lse_BHT = torch.empty_like(q_BTHK), torch.empty(B, H, T)
    call("attention", q_BTHK, k_BTHK, v_BTHK, out_BTHK, lse_BHT, *q_BTHK.shape)
    return out_BTHK, lse_BHT


@attention.register_fake
def _(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q_BTHK.shape
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty((B, H, T), dtype=torch.float32)


@torch.library.custom_op("bitlaw::attention_backward", mutates_args=())
def attention_backward(
    g_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = [x.contiguous() for x in (g_BTHK, q_BTHK, k_BTHK, v_BTHK, out_BTHK, lse_BHT)]
    dq_BTHK, dk_BTHK, dv_BTHK = (torch.empty_like(tensors[1]) for _ in range(3))
    call("attention_backward", *tensors, dq_BTHK, dk_BTHK, dv_BTHK, *q_BTHK.shape)
    return dq_BTHK, dk_BTHK, dv_BTHK


@attention_backward.register_fake
def _(
    g_BTHK: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape), q_BTHK.new_empty(q_BTHK.shape)


def _keep_all(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _attention_gradient(ctx: Context, g_BTHK: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward(g_BTHK, *ctx.saved_tensors)


attention.register_autograd(_attention_gradient, setup_context=_keep_all)


@torch.library.custom_op("bitlaw::cross_entropy", mutates_args=())
def cross_entropy(logits_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each row in nats, and its log-sum-exp; FP32."""
    logits_RV, target_R = logits_RV.contiguous(), target_R.contiguous()
    loss_R, lse_R = (torch.empty(len(logits_RV)) for _ in range(2))
    call("cross_entropy", logits_RV, target_R, loss_R, lse_R, *logits_RV.shape)
    return loss_R, lse_R


@cross_entropy.register_fake
def _(logits_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
    R = logits_RV.shape[:1]
    return logits_RV.new_empty(R, dtype=torch.float32), logits_RV.new_empty(R, dtype=torch.float32)


@torch.library.custom_op("bitlaw::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(g_R: Tensor, logits_RV: Tensor, target_R: Tensor, lse_R: Tensor) -> Tensor:
    g_R, logits_RV, target_R = g_R.contiguous(), logits_RV.contiguous(), target_R.contiguous()
    out_RV = torch.empty_like(logits_RV)
    call("cross_entropy_backward", g_R, logits_RV, target_R, lse_R, out_RV, *logits_RV.shape)
    return out_RV


@cross_entropy_backward.register_fake
def _(g_R: Tensor, logits_RV: Tensor, target_R: Tensor, lse_R: Tensor) -> Tensor:
    return logits_RV.new_empty(logits_RV.shape)


def _keep_rows(ctx: Context, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _cross_entropy_gradient(ctx: Context, g_R: Tensor, _: Tensor) -> tuple[Tensor, None]:
    return cross_entropy_backward(g_R, *ctx.saved_tensors), None


cross_entropy.register_autograd(_cross_entropy_gradient, setup_context=_keep_rows)


@torch.library.custom_op("bitlaw::swiglu", mutates_args=())
def swiglu(x_R2F: Tensor) -> Tensor:
    """silu(gate) * up of rows [gate, up]: (R, 2 F) -> (R, F)."""
    x_R2F = x_R2F.contiguous()
    R, width = x_R2F.shape
    out_RF = x_R2F.new_empty(R, width // 2)
    call("swiglu", x_R2F, out_RF, R, width // 2)
    return out_RF


@swiglu.register_fake
def _(x_R2F: Tensor) -> Tensor:
    return x_R2F.new_empty(x_R2F.shape[0], x_R2F.shape[1] // 2)


@torch.library.custom_op("bitlaw::swiglu_backward", mutates_args=())
def swiglu_backward(g_RF: Tensor, x_R2F: Tensor) -> Tensor:
    g_RF, x_R2F = g_RF.contiguous(), x_R2F.contiguous()
    out_R2F = torch.empty_like(x_R2F)
    call("swiglu_backward", g_RF, x_R2F, out_R2F, *g_RF.shape)
    return out_R2F


@swiglu_backward.register_fake
def _(g_RF: Tensor, x_R2F: Tensor) -> Tensor:
    return x_R2F.new_empty(x_R2F.shape)


def _keep_input(ctx: Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(ctx: Context, g_RF: Tensor) -> Tensor:
    return swiglu_backward(g_RF, *ctx.saved_tensors)


swiglu.register_autograd(_swiglu_gradient, setup_context=_keep_input)
